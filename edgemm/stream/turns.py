"""Short turns on the processor: a thread that wakes beside busy ones shall not wait for theirs to be over.

Linux's scheduler lets a thread that has slept go before a busy one only when that one's turn (a "slice" of about 3 ms)
is over, unless it asked for shorter turns itself. Asking takes no privilege and gives no larger share of the processor,
only an earlier one. Linux takes such a wish from an ordinary thread since 6.12; an older one ignores it.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TURN_NS = 100_000
"""The shortest that Linux grants."""

_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Of the system calls sched_setattr and sched_getattr, for which the C library has no function before glibc 2.41."""

_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""struct sched_attr (linux/sched/types.h): size, policy, flags, nice, priority, runtime, deadline, period."""

_SCHED_OTHER = 0


@contextmanager
def short_turns() -> Iterator[None]:
    """The calling thread asks for short turns while entered, where the system knows such a wish.

    A thread that its owner gave another policy (real time, batch, idle) keeps it.
    """
    before = turn_ns()
    granted = before is not None and _set(TURN_NS)
    try:
        yield
    finally:
        if granted:
            # 0 is the usual length. What was read back is no wish, and would be one if it were written.
            _set(0)


def turn_ns() -> int | None:
    """The length of the calling thread's turns; 0 if the system does not tell, None if it has no ordinary policy."""
    attributes = _get()
    return None if attributes is None or attributes[1] != _SCHED_OTHER else int(attributes[5])


def _get() -> tuple[int, ...] | None:
    numbers = _NUMBERS.get(platform.machine()) if sys.platform == "linux" else None
    if numbers is None:
        return None
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if ctypes.CDLL(None).syscall(numbers[1], 0, buffer, _ATTRIBUTES.size, 0) != 0:
        return None
    return _ATTRIBUTES.unpack(buffer.raw)


def _set(turn: int) -> bool:
    attributes = _get()
    if attributes is None:
        return False
    size, policy, flags, nice, priority, _, deadline, period = attributes
    wish = _ATTRIBUTES.pack(size, policy, flags, nice, priority, turn, deadline, period)
    return bool(ctypes.CDLL(None).syscall(_NUMBERS[platform.machine()][0], 0, wish, 0) == 0)
