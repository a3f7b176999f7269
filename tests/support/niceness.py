"""How the scheduler treats threads, and who may ask it for more."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

import pytest

from edgemm.stream.turns import NICENESS, Turns, turns


def in_thread(look: Callable[[], Turns | None]) -> Turns | None:
    """What `look` returns in a thread of its own, which ends with what it asked for."""
    seen: list[Turns | None] = []
    thread = threading.Thread(target=lambda: seen.append(look()))
    thread.start()
    thread.join()
    return seen[0]


def may_be_nicer() -> bool:
    """Whether this process has the usual niceness, and may lower a thread's."""
    if sys.platform != "linux" or os.getpriority(os.PRIO_PROCESS, 0) != 0:
        return False

    def try_it() -> Turns | None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        except PermissionError:
            return None
        return turns()

    return in_thread(try_it) is not None


wants_permission = pytest.mark.skipif(
    not may_be_nicer(),
    reason="takes Linux and a permission: run the tests as root, or with `ulimit -e 31`, and without `nice`",
)
