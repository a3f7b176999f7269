"""The sinks of `edgemm run` as a user meets them: in a process of its own, with real readers."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from broker import Broker, require_broker
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import edgemm

pytestmark = pytest.mark.real_time

DEMO = Path(__file__).parents[1] / "calibration" / "av_digits"
CLIP = str(DEMO / "clip.mkv")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("demo") / "demo.edgemm"
    edgemm.build(DEMO / "recipe.toml", path, precision="fp32")
    return str(path)


def start(*words: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgemm", *map(str, words)],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def fails(code: int, *words: object) -> str:
    """What a run says that cannot be: one line, and nothing else."""
    run = start(*words)
    out, said = run.communicate(timeout=60)
    assert run.returncode == code, said
    assert out == ""
    assert said.startswith("edgemm: ")
    assert said.count("\n") == 1
    return said


def announced(run: subprocess.Popen[str], *names: str) -> list[str]:
    assert run.stderr is not None
    urls = []
    for name in names:
        word, url = run.stderr.readline().split()
        assert word == f"{name}:"
        urls.append(url)
    return urls


def test_all_sinks_at_once_say_the_same(bundle: str, tmp_path: Path) -> None:
    from paho.mqtt.client import CallbackAPIVersion, Client

    require_broker()
    published: list[bytes] = []
    with Broker(tmp_path, "allow_anonymous true") as broker:
        listener = Client(CallbackAPIVersion.VERSION2)
        listener.on_message = lambda _c, _u, message: published.append(message.payload)
        listener.connect("127.0.0.1", broker.port)
        listener.subscribe("home/av", qos=1)
        listener.loop_start()
        lines, summary = tmp_path / "r.jsonl", tmp_path / "s.json"
        run = start(
            "run", bundle, "-i", CLIP, "-o", lines, "--summary", summary, "--duration", 4, "--view", ":0",
            "--websocket", ":0", "--mqtt", f"mqtt://127.0.0.1:{broker.port}/home/{{model}}", "--metrics", ":0",
        )  # fmt: skip
        view, websocket, metrics = announced(run, "view", "websocket", "metrics")
        received = []
        samples: dict[str, float] = {}
        with connect(websocket) as client:
            assert b"<!doctype html>" in urllib.request.urlopen(view, timeout=5).read()
            try:
                while True:
                    received.append(client.recv(timeout=10))
                    if len(received) == 4:
                        text = urllib.request.urlopen(metrics, timeout=5).read().decode()
                        for family in text_string_to_metric_families(text):
                            samples.update({sample.name: sample.value for sample in family.samples})
            except ConnectionClosed:
                pass
        out, said = run.communicate(timeout=30)
        listener.disconnect()
        listener.loop_stop()
    assert run.returncode == 0, said
    written = lines.read_text().splitlines()
    assert len(written) > 5
    assert received == written[-len(received) :]
    assert [line.decode() for line in published] == written
    assert samples["edgemm_results_total"] >= 4
    assert samples["edgemm_frames_captured_total"] > 10
    books = json.loads(summary.read_text())["sinks"]
    assert [name.split()[0] for name in books] == [
        "jsonl",
        "view",
        "websocket",
        f"mqtt://127.0.0.1:{broker.port}/home/{{model}}",
        "metrics",
    ]
    for name, account in books.items():
        assert account["taken"] == account["written"] == (len(received) if "websocket" in name else len(written)), name
    assert "sink" in out
    assert f"jsonl {lines}" in out


def test_a_port_in_use_is_one_sentence(bundle: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        said = fails(1, "run", bundle, "-i", CLIP, "--view", where)
    assert (
        said == f"edgemm: --view cannot listen on {where}: the port is in use. Choose another, or 0 for a free one.\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--metrics", "here"], 2, '--metrics is "here", expected [HOST]:PORT'),
        (["--mqtt", "localhost:1883/x"], 2, "--mqtt names no broker"),
        (["--mqtt", "mqtt://u:secret@127.0.0.1:9/x"], 1, "mqtt://127.0.0.1:9/x: Connection refused. Is it running?"),
        (["--view", "--simulate", "none.json"], 2, "A simulation is over before anybody looks"),
        (["-o", "/dev/full"], 1, "Cannot write results to /dev/full: No space left on device."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_one_sentence(bundle: str, words: list[str], code: int, sentence: str) -> None:
    said = fails(code, "run", bundle, "-i", CLIP, *words)
    assert sentence in said
    assert "secret" not in said


def test_a_bare_view_needs_no_address(bundle: str) -> None:
    # With the bundle behind it, too: what is no address is not taken for one.
    said = fails(2, "run", "--view", bundle, "--simulate", "none.json")
    assert "A simulation is over" in said


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_there_is(bundle: str, tmp_path: Path) -> None:
    tape = tmp_path / "s.mkv"
    run = start("run", bundle, "-i", CLIP, "-o", "/dev/full", "--record", tape, "--websocket", ":0", "--duration", 20)
    begin = time.monotonic()
    _, said = run.communicate(timeout=30)
    assert time.monotonic() - begin < 15
    assert run.returncode == 1
    assert said.splitlines()[-1].startswith("edgemm: Cannot write results to /dev/full: No space left on device.")
    again = start("run", bundle, "--replay", tape, "-o", "-")
    out, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert out


@pytest.mark.slow
def test_a_reader_that_sleeps_holds_up_nothing(bundle: str, tmp_path: Path) -> None:
    """Results that nobody takes are dropped and counted; the run makes its steps, and ends."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)  # ten lines
    summary = tmp_path / "s.json"
    begin = time.monotonic()
    run = start("run", bundle, "-i", CLIP, "-o", "-", "--summary", summary, "--duration", 4, stdout=writer)
    os.close(writer)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert time.monotonic() - begin < 20
    books = json.loads(summary.read_text())
    assert books["models"]["av"]["made"] > 10  # more than the pipe holds
    account = books["sinks"]["jsonl"]
    assert account["taken"] == books["models"]["av"]["made"]
    assert account["dropped"]["stuck"] == account["taken"] - account["written"] > 0
    assert f"{account['dropped']['stuck']} stuck" in said
    lines = os.read(reader, 1 << 16).decode().splitlines()
    os.close(reader)
    assert [json.loads(line)["model"] for line in lines[: account["written"]]] == ["av"] * account["written"]


@pytest.mark.slow
def test_nothing_listens_unless_asked(bundle: str) -> None:
    """Privacy: a plain run opens no port and no connection."""
    run = start("run", bundle, "-i", CLIP, "-q", "--duration", 3)
    time.sleep(2)
    inodes = set()
    for link in Path(f"/proc/{run.pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    tables = [Path(f"/proc/{run.pid}/net/{kind}") for kind in ("tcp", "tcp6", "udp", "udp6")]
    sockets = {line.split()[9] for table in tables if table.exists() for line in table.read_text().splitlines()[1:]}
    running = run.poll() is None
    run.communicate(timeout=30)
    assert running
    assert not inodes & sockets
