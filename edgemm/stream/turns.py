"""Turns on the processor: a thread of a live run that wakes beside busy ones shall not wait for theirs to be over.

Two wishes of an ordinary thread to Linux's scheduler, neither of which takes it out of the ordinary policy:

- **A smaller niceness** is a larger share, and by that turns that come sooner and last until the work is done. It takes
  a permission: that of root (CAP_SYS_NICE), or a limit (RLIMIT_NICE).
- **Short turns** take none, and give no larger share, only an earlier one: without them a thread that has slept goes
  before a busy one only when that one's turn (a "slice" of some milliseconds) is over. Linux knows the wish since 6.12;
  an older one ignores it.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

NICENESS = -11
"""What PulseAudio takes for itself, if its configuration says nothing else."""

TURN_NS = 100_000
"""The shortest that Linux grants."""

_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Of the system calls sched_setattr and sched_getattr, for which the C library has no function before glibc 2.41."""

_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""struct sched_attr (linux/sched/types.h): size, policy, flags, nice, priority, runtime, deadline, period."""

_SCHED_OTHER = 0


class Turns(NamedTuple):
    """How the scheduler treats an ordinary thread."""

    niceness: int
    turn_ns: int
    """How long its turns are; 0 if the system does not tell."""


@contextmanager
def prompt_turns() -> Iterator[None]:
    """The calling thread, and those that it starts, ask for prompt turns while entered, as far as they are permitted.

    A niceness or a policy (real time, batch, idle) that its owner gave a thread is left as it is.
    """
    before = turns()
    changed = False
    if before is not None:
        niceness = NICENESS if before.niceness == 0 else before.niceness
        changed = _set(Turns(niceness, TURN_NS)) or _set(Turns(before.niceness, TURN_NS))
    try:
        yield
    finally:
        if before is not None and changed:
            # 0 is the usual length, of which what was read back would be a wish if it were written.
            _set(Turns(before.niceness, TURN_NS if before.turn_ns == TURN_NS else 0))


def turns() -> Turns | None:
    """How the calling thread is treated; None if it has no ordinary policy, or the system does not tell."""
    attributes = _get()
    return None if attributes is None or attributes[1] != _SCHED_OTHER else Turns(attributes[3], attributes[5])


def _get() -> tuple[int, ...] | None:
    numbers = _NUMBERS.get(platform.machine()) if sys.platform == "linux" else None
    if numbers is None:
        return None
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if ctypes.CDLL(None).syscall(numbers[1], 0, buffer, _ATTRIBUTES.size, 0) != 0:
        return None
    return _ATTRIBUTES.unpack(buffer.raw)


def _set(wanted: Turns) -> bool:
    attributes = _get()
    if attributes is None:
        return False
    size, policy, flags, _, priority, _, deadline, period = attributes
    wish = _ATTRIBUTES.pack(size, policy, flags, wanted.niceness, priority, wanted.turn_ns, deadline, period)
    return bool(ctypes.CDLL(None).syscall(_NUMBERS[platform.machine()][0], 0, wish, 0) == 0)
