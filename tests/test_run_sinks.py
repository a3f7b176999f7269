"""Runs with sinks that are slow, that look on, and that lose nothing."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import edgemm
from edgemm.errors import SinkError
from edgemm.stream.results import Result
from edgemm.stream.sinks.jsonl import JsonLinesSink
from edgemm.stream.sinks.memory import MemorySink
from edgemm.stream.sinks.metrics import MetricsSink
from edgemm.stream.sinks.protocol import Snapshot
from edgemm.stream.sinks.websocket import WebSocketSink
from edgemm.view.view import View

pytestmark = pytest.mark.real_time

DEMO = Path(__file__).parents[1] / "calibration" / "av_digits"
CLIP = DEMO / "clip.mkv"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.edgemm"
    edgemm.build(DEMO / "recipe.toml", path, precision="fp32")
    return path


class Late:
    """Sleeps at its first result for as long as the run takes."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.thread: threading.Thread | None = None
        self.results: list[Result] = []

    def __enter__(self) -> Late:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, result: Result) -> None:
        self.thread = threading.current_thread()
        if not self.results:
            time.sleep(self.seconds)
        self.results.append(result)


def test_a_sink_that_sleeps_is_not_felt_by_the_steps(bundle: Path) -> None:
    late, prompt = Late(3.0), MemorySink()
    summary = edgemm.run(bundle, input=CLIP, clock="wall", duration_s=3, sinks=[late, prompt])
    assert late.thread is not threading.current_thread()
    assert [r.step for r in late.results] == [r.step for r in prompt.results]  # all of them, in the end
    assert len(prompt.results) > 5
    made_ns = [r.made_ns for r in prompt.results]
    # Steps fall due ten times a second; had one waited for the sink, the gap would be three seconds.
    assert max(b - a for a, b in itertools.pairwise(made_ns)) < 1_500_000_000
    for account in summary.sinks.values():
        assert account.taken == account.written == summary.models["av"].made
    summary.check()


def test_under_the_virtual_clock_a_sink_is_waited_for(bundle: Path) -> None:
    late = Late(0.3)
    summary = edgemm.run(bundle, input=CLIP, duration_s=3, sinks=[late])
    assert late.thread is threading.current_thread()
    assert summary.sinks["Late"].written == summary.models["av"].made > 10


def test_a_websocket_client_gets_every_result_of_a_virtual_run(bundle: Path, tmp_path: Path) -> None:
    received: list[str] = []
    ready = threading.Event()

    def listen(url: str) -> None:
        with connect(url) as client:
            ready.set()
            try:
                while True:
                    received.append(str(client.recv()))
            except ConnectionClosed:
                pass

    def announce(url: str) -> None:
        threading.Thread(target=listen, args=(url,), daemon=True).start()
        assert ready.wait(10)
        time.sleep(0.2)  # the server knows of it, too

    sinks = [JsonLinesSink(tmp_path / "r.jsonl"), WebSocketSink(":0", announce=announce)]
    summary = edgemm.run(bundle, input=CLIP, sinks=sinks)
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert len(lines) > 500
    end = time.monotonic() + 5
    while len(received) < len(lines) and time.monotonic() < end:
        time.sleep(0.01)
    assert received == lines
    assert all(account.dropped == {} for account in summary.sinks.values())


def test_whoever_looks_on_changes_nothing_that_is_recorded(bundle: Path, tmp_path: Path) -> None:
    """The books are shown to watchers in the middle of a run, and a recording holds every reading of the clock."""
    tape, played, again = tmp_path / "s.mkv", tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    sinks = [JsonLinesSink(played), View(":0"), MetricsSink(":0")]
    edgemm.run(bundle, input=CLIP, duration_s=3, record=tape, sinks=sinks)
    edgemm.run(bundle, recording=tape, sinks=[JsonLinesSink(again), View(":0")])
    before = [json.loads(line) for line in played.read_text().splitlines()]
    for line in before:
        del line["latency_ms"]
    assert before == [json.loads(line) for line in again.read_text().splitlines()]
    assert len(before) > 5


class Watching(MemorySink):
    """Keeps the books that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.books: list[Snapshot] = []
        self.frames = 0

    def begin(self, run: object) -> None:
        pass

    def event(self, event: object) -> None:
        self.frames += 1

    def look(self, books: Snapshot) -> None:
        for name, stream in books.streams.items():
            stream.check(name)
        for name, model in books.models.items():
            model.check(name)
        self.books.append(books)


@pytest.mark.parametrize("clock", ["wall", "virtual"])
def test_the_books_balance_all_the_way_and_the_last_are_those_of_the_summary(bundle: Path, clock: str) -> None:
    watcher = Watching()
    summary = edgemm.run(bundle, input=CLIP, duration_s=3, clock=clock, sinks=[watcher])  # type: ignore[arg-type]
    assert len(watcher.books) >= 2
    made = [books.models["av"].made for books in watcher.books]
    assert made == sorted(made)
    last = watcher.books[-1]
    assert dict(last.models) == dict(summary.models)
    assert dict(last.streams) == dict(summary.streams)
    assert last.sinks == summary.sinks
    assert 0 < watcher.frames <= sum(account.captured for account in summary.streams.values())


def test_a_sink_that_fails_ends_the_run_and_the_others_are_closed(bundle: Path) -> None:
    closed = []

    class Closing(Late):
        def __exit__(self, *_: object) -> None:
            closed.append(True)

    class Full(Late):
        def write(self, result: Result) -> None:
            raise SinkError("The disk is full.")

    begin = time.monotonic()
    with pytest.raises(SinkError, match="disk is full"):
        edgemm.run(bundle, input=CLIP, clock="wall", duration_s=20, sinks=[Closing(0), Full(0)])
    assert closed == [True]
    assert time.monotonic() - begin < 10
