from __future__ import annotations

import fcntl
import os
import threading
import time
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_results import result

from edgemm.errors import SinkError
from edgemm.stream.accounting import SinkAccount
from edgemm.stream.decode import Values
from edgemm.stream.results import Result
from edgemm.stream.sinks import outbox
from edgemm.stream.sinks.jsonl import JsonLinesSink
from edgemm.stream.sinks.memory import MemorySink
from edgemm.stream.sinks.outbox import Direct, Outbox

pytestmark = pytest.mark.real_time


class Held(MemorySink):
    """A sink whose writes wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.entered = threading.Event()
        self.left: type[BaseException] | str | None = "not left"

    def write(self, result: Result) -> None:
        self.entered.set()
        self.go.wait()
        super().write(result)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left = kind


def steps(sink: MemorySink) -> list[int]:
    return [r.step for r in sink.results]


def test_everything_is_written_in_order() -> None:
    sink = MemorySink()
    with Outbox(sink) as out:
        for step in range(500):
            out.write(result(step))
        out.drain()
        assert out.account() == SinkAccount(500, 500)
    assert steps(sink) == list(range(500))


def test_leaving_drains_too() -> None:
    sink = Held()
    out = Outbox(sink)
    with out:
        out.write(result(1))
        sink.go.set()
    assert steps(sink) == [1]
    assert sink.left is None
    assert out.account() == SinkAccount(1, 1)


def test_a_slow_sink_does_not_hold_up_the_writer_and_loses_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "QUEUE_RESULTS", 10)
    sink = Held()
    with Outbox(sink) as out:
        out.write(result(0))
        assert sink.entered.wait(5)  # 0 is on its way; from now on the queue fills
        begin = time.perf_counter()
        for step in range(1, 101):
            out.write(result(step))
        assert time.perf_counter() - begin < 1
        assert out.account() == SinkAccount(101, 0, {"queue_full": 90}, 11)
        sink.go.set()
        out.drain()
        account = out.account()
    assert steps(sink) == [0, *range(91, 101)]
    assert account == SinkAccount(101, 11, {"queue_full": 90})
    account.check("held")


def test_large_results_fill_the_queue_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "QUEUE_BYTES", 10_000)
    big = {"raw": Values(np.zeros(1000, np.float32))}  # 4000 bytes
    sink = Held()
    with Outbox(sink) as out:
        out.write(result(0))
        assert sink.entered.wait(5)
        for step in range(1, 6):
            out.write(result(step, outputs=big))
        assert out.account().dropped == {"queue_full": 3}
        sink.go.set()
    assert steps(sink) == [0, 4, 5]


def test_a_result_larger_than_the_queue_is_still_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "QUEUE_BYTES", 1)
    sink = MemorySink()
    with Outbox(sink) as out:
        out.write(result(7))
    assert steps(sink) == [7]


class Failing(MemorySink):
    def write(self, result: Result) -> None:
        if result.step == 3:
            raise SinkError("The disk is full.")
        super().write(result)


def test_an_error_is_raised_by_the_next_write() -> None:
    sink = Failing()
    out = Outbox(sink)
    with pytest.raises(SinkError, match="disk is full"), out:  # noqa: PT012 - the outbox is what raises
        for step in range(1, 1000):
            out.write(result(step))
            time.sleep(0.001)
    assert steps(sink) == [1, 2]
    account = out.account()
    account.check("failing")
    assert account.written == 2
    assert account.dropped["sink_failed"] >= 1


def test_an_error_of_the_last_result_is_raised_when_the_run_ends() -> None:
    out = Outbox(Failing())
    with pytest.raises(SinkError, match="disk is full"), out:  # noqa: PT012 - the outbox is what raises
        for step in (1, 2, 3):
            out.write(result(step))
        out.drain()
    assert out.account() == SinkAccount(3, 2, {"sink_failed": 1})


def test_another_error_is_not_covered_by_the_sinks_own() -> None:
    out = Outbox(Failing())
    with pytest.raises(KeyError, match="of the run"), out:  # noqa: PT012 - the outbox is what raises
        out.write(result(3))
        raise KeyError("of the run")


def test_a_sink_that_is_stuck_is_given_up_and_not_closed_under_its_thread() -> None:
    sink = Held()
    begin = time.monotonic()
    with Outbox(sink, patience_s=0.2) as out:
        for step in range(5):
            out.write(result(step))
        out.drain()
        account = out.account()
    assert time.monotonic() - begin < 3
    assert account == SinkAccount(5, 0, {"stuck": 5})
    assert sink.left == "not left"
    sink.go.set()  # the write comes back after all: nothing is counted twice
    time.sleep(0.1)
    assert out.account() == account


def test_patience_is_with_progress_not_with_the_whole() -> None:
    class Slow(MemorySink):
        def write(self, result: Result) -> None:
            time.sleep(0.1)
            super().write(result)

    sink = Slow()
    with Outbox(sink, patience_s=0.5) as out:
        for step in range(8):
            out.write(result(step))
        out.drain()  # 0.8 s
        assert out.account() == SinkAccount(8, 8)


class Losing(MemorySink):
    """Keeps books: every second result is lost on its way, but for the last, which `flush` waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[float] = []

    def flush(self, patience_s: float) -> None:
        self.flushed.append(patience_s)

    def account(self) -> SinkAccount:
        lost = sum(step % 2 for step in steps(self))
        return SinkAccount(len(self.results), len(self.results) - lost, {"lost": lost} if lost else {})


@pytest.mark.parametrize("kind", [Direct, Outbox])
def test_a_sink_with_books_of_its_own(kind: type[Direct] | type[Outbox]) -> None:
    sink = Losing()
    with kind(sink) as out:
        for step in range(4):
            out.write(result(step))
        out.drain()
        assert out.account() == SinkAccount(4, 2, {"lost": 2})
    assert sink.flushed[0] == outbox.PATIENCE_S


def test_direct_writes_at_once() -> None:
    sink = MemorySink()
    with Direct(sink) as out:
        out.write(result(1))
        assert steps(sink) == [1]
        out.drain()
        assert out.account() == SinkAccount(1, 1)


def test_a_pipe_whose_reader_sleeps_does_not_hold_up_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "QUEUE_RESULTS", 50)
    reader, writer = os.pipe()
    # One page, some ten lines: fewer than the queue still holds when the last is written, whoever ran how long.
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    sink = JsonLinesSink(f"/dev/fd/{writer}")
    with Outbox(sink, patience_s=0.2) as out:
        for step in range(3000):
            out.write(result(step))
        out.drain()
        account = out.account()
    account.check("pipe")
    assert 0 < account.written < 50
    assert account.dropped["queue_full"] > 2000
    assert account.dropped["stuck"] >= 30
    data = os.read(reader, 1 << 20)
    os.close(reader)
    os.close(writer)
    assert data.count(b"\n") >= 5


@given(st.lists(st.sampled_from(["write", "let", "block"]), max_size=60), st.booleans())
def test_the_books_balance_whatever_the_sink_does(moves: list[str], fails: bool) -> None:
    class Moody(MemorySink):
        def __init__(self) -> None:
            super().__init__()
            self.go = threading.Event()

        def write(self, result: Result) -> None:
            self.go.wait(0.01)
            if fails and result.step == 7:
                raise SinkError("no")
            super().write(result)

    sink: Any = Moody()
    out = Outbox(sink, patience_s=0.5)
    taken = 0
    try:
        with out:
            for move in moves:
                if move == "write":
                    taken += 1
                    out.write(result(taken))
                elif move == "let":
                    sink.go.set()
                else:
                    sink.go.clear()
                out.account().check("moody")
    except SinkError:
        taken = out.account().taken
    account = out.account()
    account.check("moody")
    assert account.taken == taken
    assert account.written == len(sink.results)
    assert account.pending == 0
