"""The controls of a V4L2 camera (exposure, gain, focus ...), by the names that `v4l2-ctl` shows (linux/videodev2.h)."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgemm.errors import SourceError, UsageError

_NEXT = 0x80000000
_DISABLED, _READ_ONLY = 0x1, 0x4
_INTEGER, _BOOLEAN, _MENU, _INTEGER_MENU = 1, 2, 3, 9
_MOST = 512
"""A driver that never says "no more" is not asked for ever."""

_WORDS = {"on": 1, "true": 1, "yes": 1, "off": 0, "false": 0, "no": 0}


class _Query(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("name", ctypes.c_char * 32),
        ("minimum", ctypes.c_int32),
        ("maximum", ctypes.c_int32),
        ("step", ctypes.c_int32),
        ("default_value", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 2),
    )


class _Menu(ctypes.Structure):
    # The union's larger member; the other is an int64 in its first eight bytes.
    _fields_ = (
        ("id", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
        ("name", ctypes.c_char * 32),
        ("reserved", ctypes.c_uint32),
    )


class _Value(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint32), ("value", ctypes.c_int32))


def _request(number: int, kind: type[ctypes.Structure]) -> int:
    return 3 << 30 | ctypes.sizeof(kind) << 16 | ord("V") << 8 | number


_QUERYCTRL = _request(36, _Query)
_QUERYMENU = _request(37, _Menu)
_G_CTRL = _request(27, _Value)
_S_CTRL = _request(28, _Value)


@dataclass(frozen=True)
class V4l2Control:
    """Something that can be set on a camera."""

    name: str
    """As `v4l2-ctl --list-ctrls` writes it: exposure_time_absolute."""
    number: int
    minimum: int
    maximum: int
    step: int
    default: int
    value: int | None
    """Just now; None where the camera does not say."""
    choices: Mapping[int, str]
    """The names of a menu's values; empty for others."""
    is_switch: bool = False
    is_read_only: bool = False

    def parse(self, text: str) -> int:
        """The value that `text` means. Raises UsageError with what the control takes."""
        wanted = text.strip().lower()
        named = [value for value, name in self.choices.items() if wanted and wanted in name.lower()]
        exact = [value for value, name in self.choices.items() if wanted == name.lower()]
        value: int | None = None
        if re.fullmatch(r"[+-]?\d+", wanted):
            value = int(wanted)
        elif self.is_switch:
            value = _WORDS.get(wanted)
        elif len(exact or named) == 1:
            [value] = exact or named
        if value is None or not self._takes(value):
            raise UsageError(f'The camera\'s {self.name} cannot be "{text}": it takes {self.range}.')
        return value

    def _takes(self, value: int) -> bool:
        if self.choices:
            return value in self.choices
        return self.minimum <= value <= self.maximum and (value - self.minimum) % max(1, self.step) == 0

    @property
    def range(self) -> str:
        """What it takes, for people."""
        if self.choices:
            return ", ".join(f"{value} ({name})" for value, name in self.choices.items())
        if self.is_switch:
            return "on or off"
        steps = f" in steps of {self.step}" if self.step > 1 else ""
        return f"{self.minimum} to {self.maximum}{steps}"


def controls(file: int) -> list[V4l2Control]:
    """The controls of the open V4L2 device `file` that an integer sets; none where the driver has none."""
    return list(_controls(file))


def set_controls(path: str, wanted: Sequence[tuple[str, str]]) -> None:
    """Set controls of the camera at `path`, in this order: names, or unique parts of them, and values.

    Raises UsageError for a name or a value that it does not have, SourceError if the camera refuses.
    """
    file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        for name, text in wanted:
            # Asked anew each time: setting one may change what another takes.
            control = _choose(path, list(_controls(file)), name)
            value = control.parse(text)
            try:
                fcntl.ioctl(file, _S_CTRL, _Value(control.number, value))
            except OSError as error:
                raise SourceError(
                    f"{path} refuses {control.name}={text}: {error.strerror}. Another control may have to be set "
                    "first, e.g. auto_exposure=manual"
                ) from error
    finally:
        os.close(file)


def _controls(file: int) -> Iterator[V4l2Control]:
    number = 0
    for _ in range(_MOST):
        query = _Query(id=number | _NEXT)
        try:
            fcntl.ioctl(file, _QUERYCTRL, query)
        except OSError:
            return
        number = int(query.id)
        if query.flags & _DISABLED or query.type not in (_INTEGER, _BOOLEAN, _MENU, _INTEGER_MENU):
            continue
        value = _Value(id=number)
        try:
            fcntl.ioctl(file, _G_CTRL, value)
            now: int | None = int(value.value)
        except OSError:
            now = None
        yield V4l2Control(
            _plain(query.name.decode(errors="replace")),
            *(number, query.minimum, query.maximum, query.step, query.default_value, now),
            dict(_choices(file, query)) if query.type in (_MENU, _INTEGER_MENU) else {},
            is_switch=query.type == _BOOLEAN,
            is_read_only=bool(query.flags & _READ_ONLY),
        )


def _choices(file: int, query: _Query) -> Iterator[tuple[int, str]]:
    for index in range(query.minimum, min(query.maximum, query.minimum + _MOST) + 1):
        item = _Menu(id=query.id, index=index)
        try:
            fcntl.ioctl(file, _QUERYMENU, item)
        except OSError:
            continue  # menus have holes
        if query.type == _INTEGER_MENU:
            start = _Menu.name.offset
            yield index, str(int.from_bytes(bytes(item)[start : start + 8], "little", signed=True))
        else:
            yield index, item.name.decode(errors="replace")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _choose(path: str, found: Sequence[V4l2Control], name: str) -> V4l2Control:
    wanted = _plain(name)
    settable = [control for control in found if not control.is_read_only]
    chosen = [control for control in settable if control.name == wanted]
    chosen = chosen or [control for control in settable if control.name.startswith(wanted)]
    chosen = chosen or [control for control in settable if wanted in control.name]
    if not settable:
        raise UsageError(f"{path} has no controls: leave out --camera-option.")
    if len(chosen) != 1:
        names = ", ".join(control.name for control in chosen or settable)
        problem = f"fits {len(chosen)} controls" if chosen else "is no control"
        raise UsageError(f'"{name}" {problem} of {path}, there are: {names}.')
    return chosen[0]
