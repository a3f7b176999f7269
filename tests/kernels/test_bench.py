"""The GPU run: its arithmetic, that it says what is missing, stops in time and goes on, and runs on the driver stub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import driver_stub
import numpy as np
import pytest

from edgemm.kernels.compile import compilers

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "kernels" / "bench" / "run.py"
sys.path.insert(0, str(SCRIPT.parent))

import attention  # noqa: E402
import front_end  # noqa: E402
import measure  # noqa: E402
import proofs  # noqa: E402
import run as script  # noqa: E402
from results import Part, Row, Time, cases, table, times  # noqa: E402


def start(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def row(case: str, candidate: str, stream_us: float, graph_us: float | None = None) -> Row:
    graph = None if graph_us is None else Time(graph_us, 2 * graph_us)
    return Row(case, candidate, Time(stream_us, 2 * stream_us), graph, 5.0, 1.0, "bytes", 4e5)


# ---- its arithmetic --------------------------------------------------------------------------------------------------


def test_the_floor_is_the_largest_of_three() -> None:
    device = {"launch_us": 2.0, "bytes_per_us": 3e6, "flops_per_us": 5e7}
    assert measure.floor(3e6, 1e7, **device) == (2.0, "launch")
    assert measure.floor(3e7, 1e7, **device) == (10.0, "bytes")
    assert measure.floor(3e7, 1e9, **device) == (20.0, "flops")
    assert measure.floor(3e7, 1e9, **{**device, "flops_per_us": 0.0}) == (10.0, "bytes")


def test_the_summary_is_median_and_99th_percentile() -> None:
    assert measure.summary([1.0] * 98 + [50.0, 100.0]) == Time(1.0, pytest.approx(50.5))


def test_the_shapes_are_those_of_the_aims() -> None:
    shapes = list(attention.shapes())
    assert len({str(shape) for shape in shapes}) == len(shapes)
    assert {shape.head_dim for shape in shapes} == {32, 64, 128}
    assert {shape.queries for shape in shapes} >= {1, 4, 16, 64, 4096}
    assert any(shape.padded for shape in shapes)
    assert any(shape.causal for shape in shapes)
    long, short = attention.Shape(1024, 1024, 64), attention.Shape(64, 1500, 64)
    assert (long.aim, short.aim) == (0.9, 1.2)
    assert long.moved_bytes == 2 * 4 * 8 * 1024 * 64 * 4  # fp16; q, k, v and out of 4 x 8 heads
    assert long.flops * 16 == 4 * 4 * 8 * 1024 * 1024 * 64
    assert attention.Shape(8, 8, 64, causal=True).flops == attention.Shape(8, 8, 64).flops / 2
    padded = attention.Shape(8, 100, 64, padded=True)
    assert padded.lengths == (100, 75, 50, 25)
    assert padded.flops == attention.Shape(8, 100, 64).flops * 250 / 400


def test_figures_compare_with_the_best_peer() -> None:
    case = str(attention.Shape(64, 64, 32))
    rows = [row(case, "edgemm", 10.0, 4.0), row(case, "torch flash", 15.0, 9.0), row(case, "Triton", 12.0, None)]
    assert attention.figures(rows, 1.0) == [f"{case}: 1.20x the best peer (Triton), 2.25x in a graph; aim 1.2x"]
    rows = [
        row("log-mel 1 x 1 s", "edgemm", 10.0, 9.0),
        row("log-mel 1 x 1 s", "torchaudio", 90.0, 60.0),
        row("log-mel 1 x 1 s", "torchaudio, compiled", 70.0),
        row(front_end.HOP, "edgemm stream", 9.0, 6.0),
    ]
    assert front_end.figures(rows, 1.0) == [
        "log-mel 1 x 1 s: 6.0x the fastest torchaudio; aim 5x",
        "log-mel, a hop of 10 ms: 6.0 us in a graph; aim below 8 us",
    ]
    import frames

    rows = [row("frame x", "edgemm", 10.0), row("frame x", "torch", 25.0)]
    assert frames.figures(rows, 1e5) == ["frame x: 40% of the speed of a copy; aim 70%; 2.5x the fastest torch"]


def test_rows_become_a_table() -> None:
    rows = [row("a", "edgemm", 10.0, 4.0), row("b", "edgemm", 3.0)]
    assert cases(rows, "a") == ["a"]
    assert times(rows, "b") == {"edgemm": Time(3.0, 6.0)}
    assert table(rows).splitlines()[2:] == [
        "| a | edgemm | 10.0 / 20.0 | 4.0 / 8.0 | 5.0 | 1.00 | bytes |  |",
        "| b | edgemm | 3.0 / 6.0 | - | 5.0 | 1.00 | bytes |  |",
    ]


# ---- stopping and going on -------------------------------------------------------------------------------------------


def bench(part: Part, **options: float) -> measure.Bench:
    """A bench without a device: it measures nothing, and keeps the books."""
    empty = measure.Bench.__new__(measure.Bench)
    empty.part, empty.deadline = part, options.get("deadline", float("inf"))
    return empty


def test_a_part_is_saved_after_every_case_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "parts" / "frames.json"
    first = Part(path)

    def measured(name: str) -> None:
        first.rows.append(row(name, "edgemm", 1.0, 2.0))

    bench(first).case("one", lambda: measured("one"))
    first.rows.append(row("two", "edgemm", 1.0))  # of a case that was cut off
    first.save()
    again = Part.load(path)
    assert [item.case for item in again.rows] == ["one"]
    assert again.rows[0] == first.rows[0]
    ran: list[str] = []
    going_on = bench(again)
    going_on.case("one", lambda: ran.append("one"))
    going_on.case("two", lambda: ran.append("two"))
    assert ran == ["two"]
    assert list(Part.load(path).done) == ["one", "two"]


def test_what_time_does_not_suffice_for_is_left(tmp_path: Path) -> None:
    part = Part(tmp_path / "x.json")
    bench(part, deadline=0.0).case("late", lambda: pytest.fail("begun after its time"))
    assert part.left == ["late"]


def test_a_case_that_never_ends_is_begun_twice_at_most(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            bench(Part.load(path) if path.exists() else Part(path)).case("hangs", interrupted)
    part = Part.load(path)
    bench(part).case("hangs", lambda: pytest.fail("begun a third time"))
    assert part.failed == ["hangs: begun 2 times, and not ended: it hangs, crashes, or needs more time"]


def interrupted() -> None:
    raise KeyboardInterrupt


def test_what_is_missing_or_disagrees_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    part = Part(None)
    assert bench(part).optional("no_such_module", "pip install it") is None
    bench(part).optional("no_such_module", "pip install it")
    assert part.missing == [
        "no_such_module (ModuleNotFoundError: No module named 'no_such_module'): pip install it",
    ]
    bench(part).agrees("good", np.ones(3), np.ones(3) + 1e-4, 1e-3)
    bench(part).agrees("bad", np.ones(3), np.ones(3) + 1e-2, 1e-3)
    bench(part).agrees("nothing", np.full(3, np.nan), np.ones(3), 1e-3)
    assert part.missing[1:] == [
        "agreement of bad with float64: 1.00e-02 off, 1e-03 allowed",
        "agreement of nothing with float64: nan off, 1e-03 allowed",
    ]
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_part_that_dies_or_hangs_is_a_line_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = Namespace(output=tmp_path, device=0, small=False, resume=True)
    seen: list[list[str]] = []

    def die(command: list[str], **options: object) -> SimpleNamespace:
        seen.append(command)
        return SimpleNamespace(returncode=-11)

    monkeypatch.setattr(script.subprocess, "run", die)
    assert script.spawn("frames", arguments, float("inf")) == "frames ended with exit code -11"
    assert seen[0][1:4] == [str(SCRIPT), "--part", "frames"]
    assert "--resume" in seen[0]

    def hang(command: list[str], timeout: float, check: bool) -> None:
        assert timeout == pytest.approx(script.GRACE_S)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(script.subprocess, "run", hang)
    assert "did not end by itself" in str(script.spawn("frames", arguments, 0.0))


def test_the_report_has_everything(tmp_path: Path) -> None:
    part = Part(None, device={"name": "A GPU", "arch": 90})
    part.calibration = {"launch_us": 2.5, "bytes_per_us": 3e6, "flops_per_us": 0.0, "warm_up": 30, "rounds": 300}
    part.rows.append(row("frame x", "edgemm", 10.0))
    part.proofs["primitive: mma"] = "same"
    part.failed.append("frames: wrong")
    part.left.append("frame y")
    script.write({"frames": part}, ["attention ended with exit code -6"], tmp_path)
    text = (tmp_path / "a-gpu.md").read_text()
    assert text.startswith("# A GPU, sm_90\n")
    for words in ("An empty launch takes 2.5 us, a copy moves 3000 GB/s", "- primitive: mma: same", "aim 70%"):
        assert words in text
    for words in ("- attention ended with exit code -6", "- frames: wrong", "Left for want of time:\n- frame y"):
        assert words in text
    assert json.loads((tmp_path / "a-gpu.json").read_text())["frames"]["done"] == {}


# ---- tests and sanitizers --------------------------------------------------------------------------------------------


def test_test_files_are_run_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part(tmp_path / "tests.json")
    answers = {
        "test_log_mel_cuda.py": (0, "104 passed, 3 skipped in 9.1s"),
        "test_frame_prep.py": (1, "E   assert 1 == 2\n1 failed, 70 passed in 3.0s"),
        "test_attention.py": (0, "260 passed in 2.0s"),
        "test_attention_torch.py": (5, "1 skipped in 0.1s"),
    }

    def answer(words: list[str], env: dict[str, str], **options: object) -> SimpleNamespace:
        assert env["EDGEMM_TEST_RUNNER"] == "device"
        name = next(word.rsplit("/", 1)[1] for word in words if word.endswith(".py"))
        return SimpleNamespace(returncode=answers[name][0], stdout=answers[name][1], stderr="")

    monkeypatch.setattr(proofs.subprocess, "run", answer)
    proofs.run_tests(part, float("inf"))
    assert part.proofs["test_log_mel_cuda.py on the device"] == "104 passed, 3 skipped in 9.1s"
    assert part.failed == ["test_frame_prep.py on the device:\nE   assert 1 == 2\n1 failed, 70 passed in 3.0s"]
    assert len(part.done) == 4


def test_a_test_file_that_takes_too_long_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(words: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(words, 1.0)

    monkeypatch.setattr(proofs.subprocess, "run", slow)
    monkeypatch.setattr(proofs, "sanitizer", lambda: "/opt/compute-sanitizer")
    part = Part(tmp_path / "sanitizers.json")
    proofs.run_sanitizers(part, 1e12)
    assert len(part.left) == 6
    assert not part.done


def test_the_sanitizer_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "sanitizer", lambda: "/opt/compute-sanitizer")
    words = proofs.command("test_attention.py", "racecheck")
    assert words[:5] == ["/opt/compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9"]
    assert words[-2:] == ["-k", proofs.SANITIZED]
    monkeypatch.setattr(proofs, "sanitizer", lambda: None)
    part = Part(None)
    proofs.run_sanitizers(part, float("inf"))
    assert part.missing == ["compute-sanitizer: comes with the CUDA toolkit (cuda-sanitizer)"]


# ---- the script ------------------------------------------------------------------------------------------------------


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": "", "CUDA_VISIBLE_DEVICES": "-1"}
    done = start("--small", "--output", str(tmp_path), environment=environment)
    assert done.returncode == 1 or done.returncode == 2  # no driver, or no Python module for it
    assert done.stderr.startswith("Nothing measured: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_goes_through_on_the_stub(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver", reason='pip install "edgemm[kernels]"')
    if not compilers():
        pytest.skip("needs a CUDA compiler: nvcc on PATH, or pip install nvidia-cuda-nvrtc-cu12")
    sources = (SCRIPT.parent / "floor.cu", ROOT / "tests" / "kernels" / "emulator_kernels.cu")
    environment = driver_stub.environment(tmp_path, *sources)
    results = tmp_path / "results"
    words = ("--small", "--only", "conformance", "front_end", "frames", "--output", str(results))
    done = start(*words, "--seconds", "0", environment=environment)
    assert done.returncode == script.LEFT, done.stderr
    assert "cases are left; the same command with --resume goes on" in done.stderr
    done = start(*words, "--resume", environment=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads((results / "emulated-gpu.json").read_text())
    proofs_found = report["conformance"]["proofs"]
    assert set(proofs_found.values()) == {"same"}
    assert len(proofs_found) == 12
    rows = report["front_end"]["rows"] + report["frames"]["rows"]
    assert {item["case"] for item in rows} >= {"log-mel 1 x 1 s", front_end.HOP, "frame rgb 1280x720 to 224"}
    missing = [line for name in ("front_end", "frames") for line in report[name]["missing"]]
    assert not [line for line in missing if "agreement" in line or line.startswith("edgemm")]
    assert not [item for item in rows if item["candidate"].startswith("edgemm") and item["graph"] is None]
    assert f"| {front_end.HOP} | edgemm stream |" in (results / "emulated-gpu.md").read_text()


@pytest.mark.slow
def test_the_kernel_tests_run_on_a_device(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver", reason='pip install "edgemm[kernels]"')
    if not compilers():
        pytest.skip("needs a CUDA compiler: nvcc on PATH, or pip install nvidia-cuda-nvrtc-cu12")
    environment = driver_stub.environment(tmp_path) | {"EDGEMM_TEST_RUNNER": "device"}
    tests = [str(ROOT / "tests" / "kernels" / name) for name in ("test_log_mel_cuda.py", "test_frame_prep.py")]
    command = [sys.executable, "-m", "pytest", "-q", *tests, "-m", "not slow"]
    command += ["-k", "cepstra or reset or real_size or faces or fit or order"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "is about the emulator" in done.stdout  # the thread orders, which a device does not take
