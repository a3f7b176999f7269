"""How the scheduler treats threads, and who may ask it for more."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from edgemm.stream.turns import NICENESS, turns

T = TypeVar("T")


def in_thread(look: Callable[[], T]) -> T:
    """What `look` returns in a thread of its own, which ends with what it asked for."""
    seen: list[T] = []
    thread = threading.Thread(target=lambda: seen.append(look()))
    thread.start()
    thread.join()
    return seen[0]


def may_be_nicer() -> bool:
    """Whether this process has the usual niceness, and may lower a thread's."""
    if sys.platform != "linux" or os.getpriority(os.PRIO_PROCESS, 0) != 0:
        return False

    def try_it() -> bool:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        except PermissionError:
            return False
        return turns() is not None

    return in_thread(try_it)


def may_give_way() -> bool:
    """Whether a thread of this process that gives way to all others may return to the usual policy."""

    def try_it() -> bool:
        try:
            for policy in (os.SCHED_IDLE, os.SCHED_OTHER):
                os.sched_setscheduler(0, policy, os.sched_param(0))
        except OSError:
            return False
        return True

    return sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER and in_thread(try_it)


wants_permission = pytest.mark.skipif(
    not may_be_nicer(),
    reason="takes Linux and a permission: run the tests as root, or with `ulimit -e 31`, and without `nice`",
)
