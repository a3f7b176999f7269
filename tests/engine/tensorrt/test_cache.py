"""The plan cache: one build for many askers, and never a bad entry, whatever happens to the builder or the disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from edgemm.engine.file_lock import locked, remove_if_free
from edgemm.engine.tensorrt.cache import Host, PlanCache, preflight
from edgemm.engine.tensorrt.plan import Plan, PlanKey, PlanTensor
from edgemm.errors import EngineError

KEY = PlanKey("tensorrt", "10.3.0", "8.7", "Orin", "", "int8", "", "g" * 64, "o" * 64)
PLAN = Plan(KEY, b"x" * 100_000, (PlanTensor("x", True, "float32", (1,)),))
HOST = Host("tensorrt", "10.3.0", "8.7", "Orin", integrated=True)

BUILDER = """
import sys, time
from pathlib import Path
from edgemm.engine.tensorrt.cache import PlanCache
from edgemm.engine.tensorrt.plan import Plan, PlanKey, PlanTensor

folder, log, seconds, size = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
key = PlanKey("tensorrt", "10.3.0", "8.7", "Orin", "", "int8", "", "g" * 64, "o" * 64)

def build():
    with log.open("a") as file:
        file.write("built\\n")
    time.sleep(seconds)
    return Plan(key, b"x" * size, (PlanTensor("x", True, "float32", (1,)),))

cached = PlanCache(folder).get_or_build(key, build, lambda: print("waiting", flush=True))
print(cached.origin, len(cached.plan.data), *cached.notes, flush=True)
"""


def start(folder: Path, log: Path, seconds: float = 0.0, size: int = 100_000) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(folder), str(log), str(seconds), str(size)],
        stdout=subprocess.PIPE,
        text=True,
    )


def forbidden() -> Plan:
    raise AssertionError("nothing is to be built here")


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def test_a_plan_is_built_once(cache: PlanCache) -> None:
    first = cache.get_or_build(KEY, lambda: PLAN)
    second = cache.get_or_build(KEY, forbidden)
    assert (first.origin, second.origin) == ("built", "cache")
    assert second.plan == PLAN
    assert first.notes == second.notes == ()


def test_two_processes_at_once_give_one_build(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(tmp_path / "plans", log, 0.5) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert log.read_text().count("built") == 1
    assert sorted(line for output in outputs for line in output.splitlines()) == [
        "built 100000",
        "cache 100000",
        "waiting",
    ]


def test_two_threads_at_once_give_one_build(cache: PlanCache) -> None:
    started, waiting = threading.Event(), threading.Event()

    def build() -> Plan:
        started.set()
        assert waiting.wait(30)
        return PLAN

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_build, KEY, build)
        assert started.wait(30)
        second = pool.submit(cache.get_or_build, KEY, forbidden, waiting.set)
        assert (first.result().origin, second.result().origin) == ("built", "cache")


def test_a_lock_that_was_deleted_while_it_was_waited_for_is_taken_anew(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    waiting, entered = threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with locked(lock, waiting.set):
            assert lock.exists()
            entered.set()

    with ThreadPoolExecutor(1) as pool:
        with locked(lock):
            late = pool.submit(wait_for_it)
            assert waiting.wait(30)
            lock.unlink()
        late.result()
    assert entered.is_set()


def test_kill_9_in_a_build_leaves_no_trace(tmp_path: Path, cache: PlanCache) -> None:
    log = tmp_path / "log"
    process = start(cache.folder, log, 60)
    deadline = time.monotonic() + 30
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    waiting = start(cache.folder, log, 0)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "built 100000" in waiting.communicate(timeout=60)[0], "the one that waited builds now"
    assert cache.get(KEY) is not None


def test_kill_9_in_the_middle_of_writing_leaves_no_entry(tmp_path: Path, cache: PlanCache) -> None:
    """Killed again and again at random moments of a long write, the cache holds the whole plan or none."""
    size = 200_000_000
    left = 0
    for attempt in range(4):
        process = start(cache.folder, tmp_path / "log", 0, size)
        deadline = time.monotonic() + 30
        while not list(cache.folder.glob(".*.tmp")):
            assert time.monotonic() < deadline
            assert process.poll() is None, "the write was over too soon to be interrupted"
            time.sleep(0.001)
        time.sleep(0.01 * attempt)
        process.kill()
        process.wait()
        left += len(list(cache.folder.glob(".*.tmp")))
        found = cache.get(KEY)
        assert found is None or len(found.data) == size
        assert [entry.key for entry in cache.list()] in ([], [KEY])
        cache.path(KEY).unlink(missing_ok=True)
    assert left > 0, "at least one write was interrupted"
    assert cache.get_or_build(KEY, lambda: PLAN).origin == "built"
    assert not list(cache.folder.glob(".*.tmp")), "the next build sweeps up"


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "tampered", "renamed"])
def test_a_bad_entry_is_removed_and_built_again_with_a_note(cache: PlanCache, damage: str) -> None:
    path = cache.put(PLAN)
    content = path.read_bytes()
    other = replace(PLAN, key=replace(KEY, version="10.7.0"))
    path.write_bytes(
        {
            "truncated": content[:-10],
            "empty": b"",
            "foreign": b"ftrt" + b"\0" * 1000,
            "tampered": content[:-10] + b"y" + content[-9:],
            "renamed": other.to_bytes(),
        }[damage]
    )
    with pytest.raises(EngineError, match="The file was removed"):
        cache.get(KEY)
    assert not path.exists()
    path.write_bytes(content[:-10])
    cached = cache.get_or_build(KEY, lambda: PLAN)
    assert cached.origin == "built"
    assert "Compiling again" in cached.notes[0]
    assert cache.get(KEY) == PLAN


def test_a_disk_that_is_full_keeps_nothing_and_loses_nothing(cache: PlanCache) -> None:
    # Python ignores SIGXFSZ: the write fails with EFBIG.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache.folder.mkdir(parents=True, mode=0o700)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        cached = cache.get_or_build(KEY, lambda: PLAN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cached.plan == PLAN, "a plan that took minutes is used although it cannot be kept"
    assert "was not kept" in cached.notes[0]
    assert cache.list() == ()
    assert not list(cache.folder.glob(".*.tmp"))
    assert cache.get_or_build(KEY, lambda: PLAN).origin == "built"


def test_no_space_left_on_a_real_small_disk(tmp_path: Path) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    script = f"mount -t tmpfs -o size=64k tmpfs {mounted} && exec {sys.executable} -c '{BUILDER}' {mounted}/plans "
    script += f"{tmp_path}/log 0 200000"
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    if "unshare" in ran.stderr or "mount" in ran.stderr:
        pytest.skip(f"needs the right to mount a file system: {ran.stderr.strip()}")
    assert "built 200000" in ran.stdout
    assert "No space left" in ran.stdout


def test_a_jetpack_update_is_said(cache: PlanCache) -> None:
    cache.put(PLAN)
    cached = cache.get_or_build(
        replace(KEY, version="10.7.0"), lambda: replace(PLAN, key=replace(KEY, version="10.7.0"))
    )
    assert cached.notes == (
        "The cached plan was compiled for the TensorRT version 10.3.0, here it is 10.7.0: compiling again.",
    )
    assert "other values of the build options" in str(cache.why_absent(replace(KEY, options="else")))
    assert cache.why_absent(replace(KEY, graph="else")) is None
    assert cache.why_absent(KEY) is None


def test_a_plan_of_another_key_is_not_kept(cache: PlanCache) -> None:
    with pytest.raises(EngineError, match="another key than the one asked for"):
        cache.get_or_build(replace(KEY, precision="fp16"), lambda: PLAN)
    assert cache.list() == ()


def test_an_error_of_the_build_comes_out_and_frees_the_lock(cache: PlanCache) -> None:
    def fail() -> Plan:
        raise EngineError("TensorRT refused it")

    with pytest.raises(EngineError, match="refused it"):
        cache.get_or_build(KEY, fail)
    assert cache.get_or_build(KEY, lambda: PLAN).origin == "built"


def test_list_and_clear(cache: PlanCache) -> None:
    assert cache.clear() == 0
    assert cache.list() == ()
    cache.get_or_build(KEY, lambda: PLAN)
    other = replace(PLAN, key=replace(KEY, precision="fp16"))
    cache.put(other)
    os.utime(cache.path(KEY), (1, 1))
    (cache.folder / "no.plan").write_bytes(b"no plan")
    (cache.folder / f".{KEY.id}.plan.1-0.tmp").write_bytes(b"12345")
    entries = cache.list()
    assert [entry.key for entry in entries] == [other.key, KEY]
    sizes = sum(entry.size_bytes for entry in entries)
    assert cache.clear() == sizes + len(b"no plan") + 5
    assert list(cache.folder.iterdir()) == []


def test_clear_leaves_a_build_alone(cache: PlanCache) -> None:
    cache.put(PLAN)
    lock = cache.folder / f"{KEY.id}.lock"
    with locked(lock):
        (cache.folder / f".{KEY.id}.plan.1-0.tmp").write_bytes(b"12345")
        cache.clear()
        assert lock.exists()
        assert len(list(cache.folder.glob(".*.tmp"))) == 1


def test_a_lock_whose_file_was_deleted_keeps_nobody_out(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with locked(lock):
        assert not remove_if_free(lock)
    assert remove_if_free(lock)
    assert remove_if_free(lock), "it is gone"
    with pytest.raises(EngineError, match=r"Cannot lock .*EDGEMM_CACHE"), locked(tmp_path / "none" / "a.lock"):
        pass


def test_a_folder_that_others_can_write_is_refused(cache: PlanCache) -> None:
    cache.put(PLAN)
    cache.folder.chmod(0o777)
    with pytest.raises(EngineError, match="a plan is machine code"):
        cache.get(KEY)
    with pytest.raises(EngineError, match="a plan is machine code"):
        cache.get_or_build(KEY, forbidden)
    cache.folder.chmod(0o700)
    cache.path(KEY).chmod(0o666)
    assert "machine code" in cache.get_or_build(KEY, lambda: PLAN).notes[0]


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="Cannot make the plan cache"):
        PlanCache(tmp_path / "file" / "plans").put(PLAN)


def test_an_entry_that_cannot_be_read(cache: PlanCache) -> None:
    cache.path(KEY).mkdir(parents=True)
    with pytest.raises(EngineError, match="Cannot read the cached plan"):
        cache.get(KEY)


def test_the_default_place_follows_edgemm_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path))
    assert PlanCache().folder == tmp_path / "plans"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (replace(KEY, flavour="tensorrt-rtx"), "compiled by tensorrt-rtx, this is tensorrt"),
        (replace(KEY, version="10.7.0"), "compiled by tensorrt 10.7.0, this is 10.3.0.*JetPack"),
        (replace(KEY, compute_capability="11.0"), r"targets sm_110 .*this device is sm_87 \(Orin\)"),
        (replace(KEY, gpu="Thor"), 'tuned on "Thor", this device is "Orin"'),
        (replace(KEY, dla="1"), "uses DLA core 1, this device has 0 DLA cores"),
        (replace(KEY, plugins="abc"), "plugins in version abc, here is none"),
    ],
)
def test_preflight_refuses_with_a_sentence(key: PlanKey, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        preflight(key, HOST)


@pytest.mark.parametrize(
    ("key", "host", "fits"),
    [
        (KEY, HOST, True),
        (replace(KEY, gpu="any"), replace(HOST, gpu="RTX 3090"), True),
        (replace(KEY, compatibility="version"), replace(HOST, version="10.13.3"), True),
        (replace(KEY, compatibility="version"), replace(HOST, version="10.2.0"), False),
        (replace(KEY, compatibility="version"), replace(HOST, version="11.0.0"), False),
        (replace(KEY, compatibility="AMPERE_PLUS"), replace(HOST, compute_capability="12.0", integrated=False), True),
        (replace(KEY, compatibility="AMPERE_PLUS"), replace(HOST, compute_capability="11.0"), False),
        (replace(KEY, compatibility="AMPERE_PLUS"), replace(HOST, compute_capability="7.5", integrated=False), False),
        (replace(KEY, compatibility="SAME_COMPUTE_CAPABILITY"), replace(HOST, gpu="Orin NX"), True),
        (replace(KEY, dla="0"), replace(HOST, dla_cores=2), True),
        (replace(KEY, plugins="abc"), replace(HOST, plugins="abc"), True),
    ],
)
def test_preflight_knows_what_is_compatible(key: PlanKey, host: Host, fits: bool) -> None:
    if fits:
        preflight(key, host)
    else:
        with pytest.raises(EngineError):
            preflight(key, host)
