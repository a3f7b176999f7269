from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator

import pytest
from niceness import in_thread, may_be_nicer, wants_permission
from sample_results import result

from edgemm.stream.capture import Capture
from edgemm.stream.clock import WallClock
from edgemm.stream.frames import Event, StreamInfo
from edgemm.stream.results import Result
from edgemm.stream.sinks.memory import MemorySink
from edgemm.stream.sinks.outbox import Outbox
from edgemm.stream.sources.reopening import ReopeningSource
from edgemm.stream.turns import NICENESS, TURN_NS, Turns, prompt_turns, turns

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
        reason="takes Linux on x86_64 or aarch64, where edgemm knows the system calls",
    ),
]


def knows_short_turns() -> bool:
    if sys.platform != "linux":
        return False
    major, minor = platform.release().split(".")[:2]
    return (int(major), int(minor)) >= (6, 12)


@pytest.mark.skipif(not knows_short_turns(), reason="takes Linux 6.12 or newer: older ones ignore what is asked for")
def test_a_thread_gets_short_turns_and_gives_them_back() -> None:
    usual = turns()
    assert usual is not None
    with prompt_turns():
        inside = turns()
        with prompt_turns():
            assert turns() == inside
        assert turns() == inside
    assert inside is not None
    assert inside.turn_ns == TURN_NS < usual.turn_ns
    assert turns() == usual


@wants_permission
def test_a_thread_gets_a_smaller_niceness_and_gives_it_back() -> None:
    def look() -> Turns | None:
        before = turns()
        with prompt_turns():
            inside = turns()
            with prompt_turns():
                assert turns() == inside
            assert turns() == inside
        assert turns() == before
        return inside

    inside = in_thread(look)
    assert inside is not None
    assert inside.niceness == NICENESS
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 0


UNPRIVILEGED = """
from edgemm.stream.turns import prompt_turns, turns
before = turns()
with prompt_turns():
    print(turns().niceness - before.niceness, turns().turn_ns)
assert turns() == before
"""


def test_who_may_not_lower_the_niceness_gets_short_turns_all_the_same() -> None:
    command = [sys.executable, "-c", UNPRIVILEGED]
    if os.geteuid() == 0:
        tool = shutil.which("setpriv")
        if tool is None:
            pytest.skip("as root it takes setpriv (package util-linux), to run without the permission")
        command = [tool, "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice", *command]
    elif may_be_nicer():
        pytest.skip("this user may lower the niceness: run the tests as root or as one who may not")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    change, turn_ns = map(int, done.stdout.split())
    assert change == 0
    if knows_short_turns():
        assert turn_ns == TURN_NS


def test_what_the_owner_of_a_thread_chose_is_left_alone() -> None:
    def nice() -> Turns | None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)
        with prompt_turns():
            inside = turns()
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 3
        return inside

    found = in_thread(nice)
    assert found is not None
    assert found.niceness == 3

    def batch() -> Turns | None:
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        with prompt_turns():
            assert os.sched_getscheduler(0) == os.SCHED_BATCH
            assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == niceness
            return turns()

    assert in_thread(batch) is None


def test_a_system_that_knows_no_turns_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with prompt_turns():
        assert turns() is None


# The threads of a run.


class Eavesdropper(ReopeningSource):
    """A source that notes how the threads are treated that open it, read it, and that it starts."""

    def __init__(self) -> None:
        super().__init__("eavesdropper", (StreamInfo("camera", "video"),))
        self.started: Turns | None = None
        self.read: Turns | None = None

    def _connect(self) -> tuple[StreamInfo, ...]:
        self.started = in_thread(turns)
        return self.streams

    def _frames(self, *, broken: bool) -> Generator[Event, None, str]:
        self.read = turns()
        self.stop()
        yield from ()
        return "stopped"

    def _disconnect(self) -> None:
        pass


class Listener(MemorySink):
    """A sink that notes how the thread is treated that writes to it."""

    wrote: Turns | None = None

    def write(self, result: Result) -> None:
        self.wrote = turns()


def threads_of_a_run() -> Iterator[tuple[str, Turns | None]]:
    source = Eavesdropper()
    with source:
        yield "started by a source", source.started
        with Capture([source], WallClock(), {"camera": 1}) as capture:
            assert capture.queue.take(5) is None
        yield "reading a source", source.read
    sink = Listener()
    with Outbox(sink) as outbox:
        outbox.write(result())
        outbox.drain()
    yield "writing to a sink", sink.wrote


@wants_permission
def test_the_threads_of_a_run_are_prompt() -> None:
    usual = turns()
    for which, found in threads_of_a_run():
        assert found is not None, which
        assert found.niceness == NICENESS, which
    assert turns() == usual
