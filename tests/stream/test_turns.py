from __future__ import annotations

import os
import platform
import sys
import threading

import pytest

from edgemm.stream.turns import TURN_NS, short_turns, turn_ns


def knows_turns() -> bool:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return False
    major, minor = platform.release().split(".")[:2]
    return (int(major), int(minor)) >= (6, 12)


@pytest.mark.skipif(not knows_turns(), reason="takes Linux 6.12 or newer: older ones ignore what is asked for here")
def test_a_thread_gets_short_turns_and_gives_them_back() -> None:
    usual_ns = turn_ns()
    assert usual_ns is not None
    with short_turns():
        assert turn_ns() == TURN_NS < usual_ns
    assert turn_ns() == usual_ns


def test_niceness_and_another_policy_are_left_alone() -> None:
    if sys.platform != "linux":
        pytest.skip("takes Linux, which has one niceness and policy for each thread")
    seen: list[tuple[int, int]] = []

    def batch() -> None:
        # In a thread of its own, which ends with what it asked for.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)
        with short_turns():
            seen.append((os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.sched_getscheduler(0)))
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        with short_turns():
            seen.append((os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.sched_getscheduler(0)))
            assert turn_ns() is None

    thread = threading.Thread(target=batch)
    thread.start()
    thread.join()
    assert seen == [(3, os.SCHED_OTHER), (3, os.SCHED_BATCH)]


def test_a_system_that_knows_no_turns_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with short_turns():
        assert turn_ns() is None
