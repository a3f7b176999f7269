"""The devices that edgemm knows: what TensorRT and CUDA they have, and what they could do at best.

Peak rates are dense (without 2:4 sparsity), of the GPU alone (without DLA), in TFLOPS or TOPS, as their makers
publish them; they are ceilings for a roofline, not measurements. None stands where no publication gives the figure.
Each entry names its publication, and `target_checks` the pages in which its figures were found again.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edgemm.engine.target_checks import CHECKED
from edgemm.errors import UsageError

OLDEST_TENSORRT = (10, 3)
"""The oldest TensorRT that edgemm builds for: older ones have no strongly typed Python plugins and no IPluginV3."""


@dataclass(frozen=True)
class Release:
    """One software release of a device: on a Jetson a JetPack, elsewhere what pip installs."""

    name: str
    tensorrt: str
    cuda: str
    python: str | None = None
    checked: str = ""
    """The page, or the package, in which these versions were found again; "" if nowhere."""

    @property
    def is_supported(self) -> bool:
        """True if edgemm can build for its TensorRT."""
        return tuple(int(part) for part in self.tensorrt.split(".")[:2]) >= OLDEST_TENSORRT


@dataclass(frozen=True)
class Target:
    """One device, or one class of devices with the same compute capability."""

    name: str
    title: str
    family: Literal["jetson", "rtx", "data-centre"]
    compute_capability: str
    """"8.7"."""
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None
    """Peak of the device's memory, which on a Jetson CPU and GPU share."""
    peak: Mapping[str, float | None] = field(default_factory=dict)
    """Dense TFLOPS or TOPS by precision: fp32 (CUDA cores), fp16, int8, fp8, fp4 (tensor cores)."""
    dla_cores: int = 0
    releases: tuple[Release, ...] = ()
    """Newest first."""
    source: str = ""
    """The publication that the figures are from."""
    checked: Mapping[str, str] = field(default_factory=dict)
    """For each figure that was found again in another public page (`target_checks`), that page."""

    @property
    def unchecked(self) -> tuple[str, ...]:
        """The figures given here that stand on `source` alone: nobody has found them a second time."""
        given = {"memory_gb": self.memory_gb, "bandwidth_gb_s": self.bandwidth_gb_s, **self.peak}
        if self.family == "jetson":
            given["dla_cores"] = self.dla_cores
        return tuple(name for name, value in given.items() if value is not None and name not in self.checked)

    @property
    def oldest_cuda(self) -> tuple[int, int] | None:
        """The oldest CUDA of the releases that edgemm builds for: its kernels load on every newer one, too."""
        versions = [release.cuda for release in self.releases if release.is_supported]
        return min(((int(v.split(".")[0]), int(v.split(".")[1])) for v in versions), default=None)

    @property
    def sm(self) -> str:
        """The compute capability as CUDA's compiler spells it: "sm_87"."""
        return "sm_" + self.compute_capability.replace(".", "")

    @property
    def is_integrated(self) -> bool:
        """True if CPU and GPU share their memory."""
        return self.family == "jetson" or self.name == "dgx-spark"

    @property
    def release(self) -> Release | None:
        """The newest release that edgemm can build for, or None."""
        return next((release for release in self.releases if release.is_supported), None)


def get(name: str) -> Target:
    """Return the target called `name`. Raises UsageError with the nearest names."""
    found = TARGETS.get(name.lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), TARGETS, n=3, cutoff=0.4)
    raise UsageError(
        f'There is no target "{name}"; '
        + (f"did you mean {', '.join(near)}? " if near else "")
        + "`edgemm targets` lists all."
    )


def refusal(target: Target, precision: str) -> str | None:
    """Say why a device has no arithmetic for a precision, or return None: then TensorRT decides, node by node.

    FP8 came with Ada (SM89), and TensorRT's kernels for INT4 weights begin with Ampere (SM80).
    """
    needed = _OLDEST_CAPABILITY.get(precision)
    major, minor = (int(part) for part in target.compute_capability.split("."))
    if needed is None or (major, minor) >= needed:
        return None
    others = "int8, fp16 or fp32" if precision == "int4" or (major, minor) < (8, 0) else "int8, int4, fp16 or fp32"
    return (
        f"{target.title} is SM{major}{minor} and has no kernels for {precision}, which needs SM{needed[0]}{needed[1]} "
        f"or newer. Build with --precision {others}, or choose another --target."
    )


_OLDEST_CAPABILITY = {"fp8": (8, 9), "int4": (8, 0)}


def of_device(name: str, compute_capability: str, memory_bytes: int = 0, board: str | None = None) -> Target:
    """Return a target for the GPU at hand: the table's entry for it, else one with only what is known.

    A Jetson's GPU calls itself "Orin" whatever the module: `board` says more, and is read from the device tree if None.
    """
    board = _board() if board is None else board
    for words, names in _BOARDS:
        if words in board and TARGETS[names[0]].compute_capability == compute_capability:
            # The system keeps some of the memory for itself: the module is the smallest that holds what is seen.
            fitting = [known for known in names if (TARGETS[known].memory_gb or 0) * 1e9 >= memory_bytes]
            found = (fitting or list(names))[0]
            return TARGETS.get(f"{found}-super", TARGETS[found]) if "Super" in board else TARGETS[found]
    for target in TARGETS.values():
        if target.title.lower() in name.lower() and target.compute_capability == compute_capability:
            return target
    return Target(
        name="device",
        title=name,
        family="jetson" if compute_capability in _JETSON_CAPABILITIES else "rtx",
        compute_capability=compute_capability,
        source="asked of the driver",
    )


def _board() -> str:
    try:
        return _DEVICE_TREE.read_text(errors="replace").rstrip("\0")
    except OSError:
        return ""


_DEVICE_TREE = Path("/proc/device-tree/model")
"""On a Jetson, e.g. "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"."""

_BOARDS = (
    # What the device tree says, and the modules of that name, the smallest first.
    ("AGX Orin", ("agx-orin-32gb", "agx-orin-64gb")),
    ("Orin NX", ("orin-nx-8gb", "orin-nx-16gb")),
    ("Orin Nano", ("orin-nano-4gb", "orin-nano-8gb")),
    ("Thor", ("thor-t4000", "thor-t5000")),
    ("AGX Xavier", ("agx-xavier",)),
    ("Xavier NX", ("xavier-nx",)),
)
_JETSON_CAPABILITIES = ("7.2", "8.7", "11.0")

_JETPACK_5 = Release("JetPack 5.1", "8.5.2", "11.4", "3.8")
_ORIN_WHEELS = "https://github.com/Shattered217/Jetson-Orin-Wheels"
_JETPACK_6 = Release("JetPack 6.2", "10.3.0", "12.6", "3.10", _ORIN_WHEELS)
_JETPACK_7_ORIN = Release("JetPack 7.2", "10.16.2", "13.2", "3.12", _ORIN_WHEELS)
_JETPACK_7 = Release("JetPack 7.0", "10.13.3", "13.0", "3.12")
_PIP = Release("pip install tensorrt", "11.4.0", "13.0", checked="the package tensorrt_cu13_bindings 11.4.0.106")
_PIP_RTX = Release("pip install tensorrt-rtx-cu13", "1.7.1", "13.0", checked="the package tensorrt-rtx-cu13 1.7.1.116")

_ORIN_RELEASES = (_JETPACK_7_ORIN, _JETPACK_6)

_ORIN_BRIEF = "NVIDIA Jetson AGX Orin Series Technical Brief v1.2: SMs x clock x 4096 int8 op per clock and SM"
_ORIN_SUPER = "NVIDIA, JetPack 6.2 Brings Super Mode to Jetson Orin Nano and Orin NX Modules (clocks, bandwidth)"
_THOR = "NVIDIA Jetson Thor Series Modules data sheet"
_XAVIER = "NVIDIA Jetson AGX Xavier and Xavier NX data sheets"
_TURING = "NVIDIA Turing GPU Architecture whitepaper"
_GA102 = "NVIDIA Ampere GA102 GPU Architecture whitepaper v2"
_ADA = "NVIDIA Ada GPU Architecture whitepaper"
_BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture whitepaper"


def _orin(
    name: str, title: str, memory_gb: float, bandwidth_gb_s: float, sms: int, clock_ghz: float, dla: int, source: str
) -> Target:
    # An Orin SM does 128 FMA in fp32, and dense on its tensor cores 1024 FMA in fp16 and 2048 in int8, each clock.
    per_clock = sms * clock_ghz / 1000
    peak = {"fp32": 256 * per_clock, "fp16": 2048 * per_clock, "int8": 4096 * per_clock, "fp8": None, "fp4": None}
    return Target(name, title, "jetson", "8.7", memory_gb, bandwidth_gb_s, peak, dla, _ORIN_RELEASES, source)


def _rtx(
    name: str,
    title: str,
    compute_capability: str,
    memory_gb: float | None = None,
    bandwidth_gb_s: float | None = None,
    fp32: float | None = None,
    fp16: float | None = None,
    int8: float | None = None,
    fp8: float | None = None,
    fp4: float | None = None,
    source: str = "a class of cards: no figures",
) -> Target:
    peak = {"fp32": fp32, "fp16": fp16, "int8": int8, "fp8": fp8, "fp4": fp4}
    return Target(name, title, "rtx", compute_capability, memory_gb, bandwidth_gb_s, peak, 0, (_PIP, _PIP_RTX), source)


def _table() -> dict[str, Target]:
    both = f"{_ORIN_BRIEF}; {_ORIN_SUPER}"
    targets = [
        # name, title, GB, GB/s, SMs, GHz, DLA cores, source
        _orin("agx-orin-64gb", "Jetson AGX Orin 64GB", 64, 204.8, 16, 1.3, 2, _ORIN_BRIEF),
        _orin("agx-orin-32gb", "Jetson AGX Orin 32GB", 32, 204.8, 14, 0.93, 2, _ORIN_BRIEF),
        _orin("orin-nx-16gb", "Jetson Orin NX 16GB", 16, 102.4, 8, 0.918, 2, both),
        _orin("orin-nx-16gb-super", "Jetson Orin NX 16GB, Super mode", 16, 102.4, 8, 1.173, 2, both),
        _orin("orin-nx-8gb", "Jetson Orin NX 8GB", 8, 102.4, 8, 0.765, 1, both),
        _orin("orin-nx-8gb-super", "Jetson Orin NX 8GB, Super mode", 8, 102.4, 8, 1.173, 1, both),
        _orin("orin-nano-8gb", "Jetson Orin Nano 8GB", 8, 68, 8, 0.625, 0, both),
        _orin("orin-nano-8gb-super", "Jetson Orin Nano 8GB, Super mode", 8, 102, 8, 1.02, 0, both),
        _orin("orin-nano-4gb", "Jetson Orin Nano 4GB", 4, 34, 4, 0.625, 0, both),
        _orin("orin-nano-4gb-super", "Jetson Orin Nano 4GB, Super mode", 4, 51, 4, 1.02, 0, both),
        _thor("thor-t5000", "Jetson T5000 (AGX Thor)", 128, {"fp16": 258.75, "fp8": 517.5, "fp4": 1035}),
        # The data sheet gives the T4000's fp4 rate with sparsity only: 1200.
        _thor("thor-t4000", "Jetson T4000", 64, {"fp4": 600}),
        _xavier("agx-xavier", "Jetson AGX Xavier", 32, 136.5, 11, 22),
        _xavier("xavier-nx", "Jetson Xavier NX", 8, 59.7, 6, 12.3),
        # name, title, capability, GB, GB/s, fp32, fp16, int8, fp8, fp4
        _rtx("rtx-2080-ti", "GeForce RTX 2080 Ti", "7.5", 11, 616, 13.4, 107.6, 215.2, None, None, source=_TURING),
        _rtx("rtx-3090", "GeForce RTX 3090", "8.6", 24, 936, 35.6, 142, 284, None, None, source=_GA102),
        _rtx("rtx-4090", "GeForce RTX 4090", "8.9", 24, 1008, 82.6, 330.3, 660.6, 660.6, None, source=_ADA),
        _rtx("rtx-5090", "GeForce RTX 5090", "12.0", 32, 1792, 104.8, 419, 838, 838, 1676, source=_BLACKWELL),
        _rtx("dgx-spark", "DGX Spark (GB10)", "12.1", 128, 273, None, None, None, None, 500, source="NVIDIA DGX Spark"),
        _rtx("rtx-sm75", "RTX with SM75 (Turing)", "7.5"),
        _rtx("rtx-sm80", "GPU with SM80 (Ampere)", "8.0"),
        _rtx("rtx-sm86", "RTX with SM86 (Ampere)", "8.6"),
        _rtx("rtx-sm89", "RTX with SM89 (Ada)", "8.9"),
        _rtx("rtx-sm120", "RTX with SM120 (Blackwell)", "12.0"),
        _rtx("rtx-sm121", "RTX with SM121 (GB10)", "12.1"),
        _server("t4", "T4", "7.5", 16, 320, 8.1, 65, 130, None, None, "NVIDIA T4 data sheet"),
        _server("a100-80gb", "A100 80GB", "8.0", 80, 2039, 19.5, 312, 624, None, None, "NVIDIA A100 data sheet"),
        _server("a10", "A10", "8.6", 24, 600, 31.2, 125, 250, None, None, "NVIDIA A10 data sheet"),
        _server("l4", "L4", "8.9", 24, 300, 30.3, 121, 242.5, 242.5, None, "NVIDIA L4 data sheet"),
        _server("l40s", "L40S", "8.9", 48, 864, 91.6, 362, 733, 733, None, "NVIDIA L40S data sheet"),
        _server("h100", "H100 SXM", "9.0", 80, 3350, 67, 989.5, 1979, 1979, None, "NVIDIA H100 data sheet"),
        _server("h200", "H200", "9.0", 141, 4800, 67, 989.5, 1979, 1979, None, "NVIDIA H200 data sheet"),
        _server("b200", "B200", "10.0", 180, 8000, None, 2250, None, 4500, 9000, "NVIDIA DGX B200 data sheet, per GPU"),
    ]
    table = {target.name: replace(target, checked=CHECKED.get(target.name, {})) for target in targets}
    # The short names stand for the module that a developer kit carries.
    for short, full in {
        "orin-nano": "orin-nano-8gb",
        "orin-nx": "orin-nx-16gb",
        "agx-orin": "agx-orin-64gb",
        "thor": "thor-t5000",
        "a100": "a100-80gb",
    }.items():
        table[short] = table[full]
    return table


def _thor(name: str, title: str, memory_gb: float, peak: Mapping[str, float]) -> Target:
    return Target(name, title, "jetson", "11.0", memory_gb, 273, _peak(peak), 0, (_JETPACK_7,), _THOR)


def _xavier(name: str, title: str, memory_gb: float, bandwidth_gb_s: float, fp16: float, int8: float) -> Target:
    # JetPack 5 is the last one for Xavier and its TensorRT is too old: kernels and onnxruntime only.
    peak = _peak({"fp16": fp16, "int8": int8})
    return Target(name, title, "jetson", "7.2", memory_gb, bandwidth_gb_s, peak, 2, (_JETPACK_5,), _XAVIER)


def _server(
    name: str,
    title: str,
    compute_capability: str,
    memory_gb: float,
    bandwidth_gb_s: float,
    fp32: float | None,
    fp16: float | None,
    int8: float | None,
    fp8: float | None,
    fp4: float | None,
    source: str,
) -> Target:
    peak = {"fp32": fp32, "fp16": fp16, "int8": int8, "fp8": fp8, "fp4": fp4}
    return Target(name, title, "data-centre", compute_capability, memory_gb, bandwidth_gb_s, peak, 0, (_PIP,), source)


def _peak(known: Mapping[str, float]) -> dict[str, float | None]:
    return {precision: known.get(precision) for precision in ("fp32", "fp16", "int8", "fp8", "fp4")}


TARGETS: Mapping[str, Target] = _table()
"""Every device by name; short names ("orin-nano") are further keys to the same entries."""
