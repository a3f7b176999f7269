"""V4L2's questions: their numbers and layouts against the kernel's own header, and a driver made up in memory.

No test here talks to a real camera's driver.
"""

from __future__ import annotations

import ctypes
import errno
import shutil
import subprocess
from pathlib import Path

import pytest

from edgemm.cli.run import camera_options
from edgemm.errors import SourceError, UsageError
from edgemm.stream.sources import v4l2, v4l2_controls
from edgemm.stream.sources.camera import CameraMode, open_camera
from edgemm.stream.sources.protocol import VideoWant

HEADER = Path("/usr/include/linux/videodev2.h")
ASKED = {
    "VIDIOC_QUERYCAP": v4l2._QUERYCAP,
    "VIDIOC_ENUM_FMT": v4l2._ENUM_FMT,
    "VIDIOC_ENUM_FRAMESIZES": v4l2._ENUM_FRAMESIZES,
    "VIDIOC_ENUM_FRAMEINTERVALS": v4l2._ENUM_FRAMEINTERVALS,
    "VIDIOC_QUERYCTRL": v4l2_controls._QUERYCTRL,
    "VIDIOC_QUERYMENU": v4l2_controls._QUERYMENU,
    "VIDIOC_G_CTRL": v4l2_controls._G_CTRL,
    "VIDIOC_S_CTRL": v4l2_controls._S_CTRL,
}
FIELDS = {
    ("v4l2_capability", "card"): (v4l2._Capability, "card"),
    ("v4l2_capability", "bus_info"): (v4l2._Capability, "bus_info"),
    ("v4l2_capability", "device_caps"): (v4l2._Capability, "device_caps"),
    ("v4l2_fmtdesc", "pixelformat"): (v4l2._Format, "pixelformat"),
    ("v4l2_frmsizeenum", "stepwise"): (v4l2._Size, "size"),
    ("v4l2_frmivalenum", "stepwise"): (v4l2._Interval, "interval"),
    ("v4l2_queryctrl", "name"): (v4l2_controls._Query, "name"),
    ("v4l2_queryctrl", "minimum"): (v4l2_controls._Query, "minimum"),
    ("v4l2_queryctrl", "default_value"): (v4l2_controls._Query, "default_value"),
    ("v4l2_queryctrl", "flags"): (v4l2_controls._Query, "flags"),
    ("v4l2_querymenu", "name"): (v4l2_controls._Menu, "name"),
    ("v4l2_control", "value"): (v4l2_controls._Value, "value"),
}


@pytest.mark.skipif(
    shutil.which("cc") is None or not HEADER.exists(), reason="needs cc and linux/videodev2.h: apt-get install g++"
)
def test_numbers_and_layouts_are_the_kernels(tmp_path: Path) -> None:
    lines = [f'printf("%lu\\n", (unsigned long){name});' for name in ASKED]
    lines += [f'printf("%zu\\n", offsetof(struct {kind}, {field}));' for kind, field in FIELDS]
    lines += [f'printf("%d\\n", {name});' for name in ("V4L2_CTRL_TYPE_MENU", "V4L2_CTRL_TYPE_INTEGER_MENU")]
    program = (
        "#include <stdio.h>\n#include <stddef.h>\n#include <linux/videodev2.h>\nint main() {" + "".join(lines) + "}"
    )
    (tmp_path / "ask.c").write_text(program)
    subprocess.run(["cc", str(tmp_path / "ask.c"), "-o", str(tmp_path / "ask")], check=True)
    said = subprocess.run([str(tmp_path / "ask")], capture_output=True, text=True, check=True).stdout.split()
    ours = list(ASKED.values()) + [getattr(kind, field).offset for kind, field in FIELDS.values()]
    assert [int(value) for value in said] == [*ours, v4l2_controls._MENU, v4l2_controls._INTEGER_MENU]


class Driver:
    """A UVC camera as the kernel's driver shows one, in memory. Its exposure can be set once that is manual."""

    def __init__(self) -> None:
        #           number: (type, name, minimum, maximum, step, default, flags)
        self.known = {
            0x980900: (1, b"Brightness", -64, 64, 1, 0, 0),
            0x98090C: (2, b"White Balance, Automatic", 0, 1, 1, 1, 0),
            0x980918: (3, b"Power Line Frequency", 0, 2, 1, 1, 0),
            0x980920: (1, b"Old", 0, 1, 1, 0, 1),  # disabled
            0x980921: (4, b"Button", 0, 0, 0, 0, 0),  # no value
            0x9A0901: (3, b"Auto Exposure", 0, 3, 1, 3, 0),
            0x9A0902: (1, b"Exposure Time, Absolute", 3, 2047, 1, 250, 0),
            0x9A090A: (1, b"Focus, Absolute", 0, 250, 5, 0, 0),
            0x9A0913: (9, b"Link Frequency", 0, 1, 1, 0, 4),  # read only, 64-bit names
        }
        self.menus = {
            0x980918: {0: b"Disabled", 1: b"50 Hz", 2: b"60 Hz"},
            0x9A0901: {1: b"Manual Mode", 3: b"Aperture Priority Mode"},
            0x9A0913: {0: (456_000_000).to_bytes(8, "little"), 1: (912_000_000).to_bytes(8, "little")},
        }
        self.values = {number: entry[5] for number, entry in self.known.items()}

    def ioctl(self, file: int, request: int, answer: ctypes.Structure) -> int:
        if request == v4l2._QUERYCAP:
            answer.card, answer.bus_info = b"A Webcam", b"usb-1.4"
            answer.capabilities, answer.device_caps = 0x84A00001, 0x04200001
        elif request == v4l2._ENUM_FMT and answer.index < 2:
            answer.pixelformat = int.from_bytes((b"MJPG", b"YUYV")[answer.index], "little")
        elif request == v4l2._ENUM_FRAMESIZES and answer.index == 0:
            answer.type = 1 if answer.pixel_format == int.from_bytes(b"MJPG", "little") else 3
            answer.size[:] = (1280, 720, 0, 0, 0, 0) if answer.type == 1 else (16, 1920, 8, 16, 1080, 8)
        elif request == v4l2._ENUM_FRAMEINTERVALS and answer.index < 2:
            answer.type = 1
            answer.interval[:2] = (1, (30, 60)[answer.index])
        elif request == v4l2_controls._QUERYCTRL:
            assert answer.id & 0x80000000
            number = min((n for n in self.known if n > answer.id & 0x7FFFFFFF), default=None)
            if number is None:
                raise OSError(errno.EINVAL, "Invalid argument")
            answer.id = number
            (
                answer.type,
                answer.name,
                answer.minimum,
                answer.maximum,
                answer.step,
                answer.default_value,
                answer.flags,
            ) = self.known[number]
        elif request == v4l2_controls._QUERYMENU and answer.index in self.menus[answer.id]:
            # ctypes would copy a number's bytes up to the first zero only.
            name = self.menus[answer.id][answer.index]
            ctypes.memmove(ctypes.addressof(answer) + type(answer).name.offset, name, len(name))
        elif request == v4l2_controls._G_CTRL and answer.id != 0x9A0913:
            answer.value = self.values[answer.id]
        elif request == v4l2_controls._S_CTRL:
            if answer.id == 0x9A0902 and self.values[0x9A0901] != 1:
                raise OSError(errno.EACCES, "Permission denied")
            self.values[answer.id] = answer.value
        else:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr("fcntl.ioctl", made.ioctl)
    return made


@pytest.fixture
def node(tmp_path: Path) -> str:
    (tmp_path / "video0").touch()
    return str(tmp_path / "video0")


def test_modes_and_controls_are_listed(driver: Driver, node: str) -> None:
    [camera] = v4l2.cameras(Path(node).parent)
    assert (camera.name, camera.problem) == ("A Webcam", None)
    assert [(mode.pixel_format, mode.width, mode.height, mode.fps) for mode in camera.modes] == [
        ("MJPG", 1280, 720, (30.0, 60.0)),
        ("YUYV", 1920, 1080, ()),
    ]
    found = {control.name: control for control in camera.controls}
    assert list(found) == [
        *("brightness", "white_balance_automatic", "power_line_frequency"),
        *("auto_exposure", "exposure_time_absolute", "focus_absolute", "link_frequency"),
    ]
    assert found["brightness"].range == "-64 to 64"
    assert found["focus_absolute"].range == "0 to 250 in steps of 5"
    assert found["white_balance_automatic"].range == "on or off"
    assert found["auto_exposure"].range == "1 (Manual Mode), 3 (Aperture Priority Mode)"
    assert found["auto_exposure"].value == 3
    assert found["link_frequency"].choices == {0: "456000000", 1: "912000000"}
    assert found["link_frequency"].value is None
    assert found["link_frequency"].is_read_only
    assert v4l2.camera_identity(node) == "A Webcam at usb-1.4"


def test_controls_are_set_in_their_order(driver: Driver, node: str) -> None:
    wanted = {"auto_exposure": "manual", "exposure_time": "200", "White Balance": "off", "focus": "15", "power": "2"}
    v4l2_controls.set_controls(node, list(wanted.items()))
    set_now = {driver.known[number][1]: value for number, value in driver.values.items()}
    assert set_now[b"Auto Exposure"] == 1
    assert set_now[b"Exposure Time, Absolute"] == 200
    assert set_now[b"White Balance, Automatic"] == 0
    assert set_now[b"Focus, Absolute"] == 15
    assert set_now[b"Power Line Frequency"] == 2


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("zoom", "1", '"zoom" is no control of .*video0, there are: brightness, white_balance_automatic'),
        ("expo", "1", None),
        ("o", "1", '"o" fits [0-9]+ controls of'),
        ("link_frequency", "1", '"link_frequency" is no control'),
        ("exposure_time_absolute", "9999", 'exposure_time_absolute cannot be "9999": it takes 3 to 2047'),
        ("focus", "7", 'cannot be "7": it takes 0 to 250 in steps of 5'),
        ("auto_exposure", "2", 'cannot be "2": it takes 1 .Manual Mode., 3 .Aperture Priority Mode.'),
        ("auto_exposure", "mode", 'cannot be "mode"'),
        ("white_balance_automatic", "maybe", "it takes on or off"),
    ],
)
def test_what_cannot_be_set_is_one_sentence(driver: Driver, node: str, name: str, value: str, said: str | None) -> None:
    if said is None:
        # A part of a name that fits but one: exposure_time_absolute, which needs auto_exposure=manual first.
        with pytest.raises(SourceError, match="refuses exposure_time_absolute=4: Permission denied. Another control"):
            v4l2_controls.set_controls(node, [(name, "4")])
        return
    with pytest.raises(UsageError, match=said) as caught:
        v4l2_controls.set_controls(node, [(name, value)])
    assert "\n" not in str(caught.value)


def test_a_device_without_controls_says_so(node: str) -> None:
    with pytest.raises(UsageError, match="has no controls: leave out --camera-option"):
        v4l2_controls.set_controls(node, [("gain", "1")])
    # What is no V4L2 device at all is named by its path.
    assert v4l2.camera_identity(node) == node
    assert v4l2.camera_identity("/dev/nowhere") == "/dev/nowhere"


def test_a_driver_that_never_ends_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    asked = 0

    def ioctl(file: int, request: int, answer: ctypes.Structure) -> int:
        nonlocal asked
        asked += 1
        if request == v4l2._QUERYCAP:
            answer.capabilities = 1
        return 0

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    assert v4l2.cameras(Path(node).parent)[0].controls == ()
    assert asked < 2000


def test_a_device_that_only_outputs_is_left_out(monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    monkeypatch.setattr("fcntl.ioctl", lambda file, request, answer: 0)
    assert v4l2.cameras(Path(node).parent) == []
    monkeypatch.undo()
    assert v4l2.camera_path("/dev/video3") == "/dev/video3"


def test_options_belong_to_v4l2_cameras(driver: Driver, node: str) -> None:
    assert camera_options(["a=1", " b = x=y"]) == {"a": "1", "b": "x=y"}
    assert camera_options(None) == {}
    for wrong in ("exposure", "=3", "gain="):
        with pytest.raises(UsageError, match="expected NAME=VALUE, e.g. exposure_time_absolute=200"):
            camera_options([wrong])
    mode = CameraMode(controls=(("brightness", "5"),))
    for device in ("rtsp://host/x", "gst:videotestsrc", "csi:0"):
        with pytest.raises(UsageError, match="takes no --camera-option: only V4L2 cameras do"):
            open_camera(device, VideoWant("eye"), mode)
    # They are set when the camera is opened; this one then turns out to be a file.
    with pytest.raises(SourceError), open_camera(node, VideoWant("eye"), mode):
        pass
    assert driver.values[0x980900] == 5
