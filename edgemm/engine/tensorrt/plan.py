"""A compiled plan as a value: what it was compiled for, what it takes and gives, and its bytes.

A plan is code for one TensorRT version and one kind of GPU. All that a reader must know before the bytes may be
handed to TensorRT stands beside them, written when the plan was built: without a GPU nothing can be read back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgemm.errors import EngineError, UsageError
from edgemm.types import TensorSpec

_MAGIC = b"edgemm plan 1\n"
_FIXED_BYTES = len(_MAGIC) + 8 + 32

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]
"""min, opt, max of an optimization profile."""
Profile = Mapping[str, ShapeRange]
"""One optimization profile: a range for every input with a dynamic dimension."""


@dataclass(frozen=True)
class BuildOptions:
    """How TensorRT compiles a graph. Precision is not here: it is in the graph, as Q/DQ and casts.

    Flags, pools and tactic sources go by TensorRT's own names; one that the version at hand lacks is an EngineError.
    """

    profiles: tuple[Profile, ...] = ()
    memory_pools: Mapping[str, int] = field(default_factory=dict)
    """Limits in bytes by pool, e.g. {"WORKSPACE": 1 << 30}; a pool not named keeps TensorRT's default."""
    optimization_level: int | None = None
    """0 builds fastest, 5 searches longest; None leaves TensorRT's default of 3."""
    tactic_sources: tuple[str, ...] | None = None
    flags: tuple[str, ...] = ()
    """Further builder flags to set, e.g. "STRICT_NANS"."""
    clear_flags: tuple[str, ...] = ()
    """Flags to clear, e.g. "TF32", which is on by default."""
    dla_core: int | None = None
    dla_strict: bool = False
    """True: a layer that the DLA cannot run is an error. False: it runs on the GPU, and the plan says which."""
    sparsity: bool = False
    """Let TensorRT use 2:4 sparse kernels for weights that are already 2:4 sparse."""
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    """A HardwareCompatibilityLevel, e.g. "AMPERE_PLUS"."""
    strip_weights: bool = False
    refit: bool = False
    max_aux_streams: int | None = None
    detailed_layers: bool = True
    """Keep layer names and types in the plan, for the inspector and the per-layer profiler."""

    def __post_init__(self) -> None:
        level = self.optimization_level
        if level is not None and not 0 <= level <= 5:
            raise UsageError(f"Found builder optimization level {level}; expected 0 (fastest build) to 5.")
        if self.dla_strict and self.dla_core is None:
            raise UsageError("DLA strict was asked without a DLA core. Name the core: --dla 0 --dla strict.")
        for pool, size in self.memory_pools.items():
            if size <= 0:
                raise UsageError(f"Found {size} bytes for the memory pool {pool}; expected more than 0.")

    def digest(self) -> str:
        """Hash of everything here, in hex."""
        return _digest(asdict(self))


@dataclass(frozen=True)
class PlanKey:
    """Everything that a plan depends on, as text: two equal keys mean interchangeable plans."""

    flavour: str
    """"tensorrt" or "tensorrt-rtx"."""
    version: str
    compute_capability: str
    """"8.7"."""
    gpu: str
    """The GPU's name, or "any" where the plan was compiled for a compute capability and no particular GPU."""
    dla: str
    """The DLA core, "" for none."""
    precision: str
    plugins: str
    """Hash of the plugins that the graph uses, "" if none."""
    graph: str
    """`Model.digest` of the graph that was compiled."""
    options: str
    """`BuildOptions.digest()`."""
    compatibility: str = ""
    """"version" if a newer runtime may load it, and the HardwareCompatibilityLevel, joined by "+"; "" for neither."""

    @property
    def id(self) -> str:
        """Hash of the key, in hex: the name under which a plan is kept."""
        return _digest(asdict(self))

    @property
    def sm(self) -> str:
        """The compute capability as NVIDIA's tools spell it: "sm_87"."""
        return "sm_" + self.compute_capability.replace(".", "")


@dataclass(frozen=True)
class PlanTensor:
    """An input or output of a plan, as the network and its profiles gave it when the plan was built."""

    name: str
    is_input: bool
    dtype: str
    """numpy's name, or TensorRT's in lower case where numpy has none ("fp8")."""
    shape: tuple[int | None, ...]
    """None where a dimension is dynamic."""
    profiles: tuple[ShapeRange, ...] = ()
    """Its range in each optimization profile; empty for an output or a static input."""

    @property
    def spec(self) -> TensorSpec:
        """The same as edgemm's own type."""
        return TensorSpec(self.name, self.dtype, self.shape)


@dataclass(frozen=True)
class PlanLayer:
    """A layer of the network before fusion, and where it runs."""

    name: str
    kind: str
    """TensorRT's LayerType."""
    device: str = "GPU"
    """"GPU" or "DLA"."""


@dataclass(frozen=True)
class Plan:
    """A compiled plan and what a reader needs to know of it."""

    key: PlanKey
    data: bytes = field(repr=False)
    io: tuple[PlanTensor, ...]
    layers: tuple[PlanLayer, ...] = field(default=(), repr=False)
    seconds: float = 0.0
    """How long TensorRT took to compile it."""
    warnings: tuple[str, ...] = ()
    """What TensorRT warned about, and what edgemm left to the GPU."""

    @property
    def sha256(self) -> str:
        """Hash of the plan's bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    def to_bytes(self) -> bytes:
        """The plan as one file: a magic number, a JSON header with its own hash, then TensorRT's bytes."""
        header = json.dumps(
            {
                "key": asdict(self.key),
                "sha256": self.sha256,
                "bytes": len(self.data),
                "io": [asdict(tensor) for tensor in self.io],
                "layers": [asdict(layer) for layer in self.layers],
                "seconds": self.seconds,
                "warnings": list(self.warnings),
            },
            sort_keys=True,
        ).encode()
        return b"".join((_MAGIC, len(header).to_bytes(8, "little"), hashlib.sha256(header).digest(), header, self.data))


def key_of(content: bytes) -> PlanKey:
    """Read the key from a whole plan file, without hashing the plan itself. Raises EngineError, as `read_plan` does."""
    return _key(_header(content))


def read_plan(content: bytes) -> Plan:
    """Read what `Plan.to_bytes` wrote. Raises EngineError if it is not such a file, was cut off or was changed."""
    header = _header(content)
    data = content[_header_end(content) :]
    found = hashlib.sha256(data).hexdigest()
    if found != header.get("sha256") or len(data) != header.get("bytes"):
        raise EngineError(
            f"The plan has {len(data)} bytes with hash {found[:12]}; expected {header.get('bytes')} bytes with hash "
            f"{str(header.get('sha256'))[:12]}. It was cut off or changed: compile it again."
        )
    try:
        return Plan(
            key=_key(header),
            data=data,
            io=tuple(_tensor(entry) for entry in header["io"]),
            layers=tuple(PlanLayer(**entry) for entry in header["layers"]),
            seconds=float(header["seconds"]),
            warnings=tuple(header["warnings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"The plan's header is malformed ({error}). Compile it again.") from error


def _header_end(content: bytes) -> int:
    return _FIXED_BYTES + int.from_bytes(content[len(_MAGIC) : len(_MAGIC) + 8], "little")


def _header(content: bytes) -> dict[str, Any]:
    if content[: len(_MAGIC)] != _MAGIC:
        raise EngineError(
            f"The plan begins with {content[:8]!r}; expected edgemm's own mark. A plan that edgemm did not "
            "compile is never loaded: build it with edgemm build engine."
        )
    end = _header_end(content)
    header = content[_FIXED_BYTES:end]
    if len(content) < end or hashlib.sha256(header).digest() != content[len(_MAGIC) + 8 : _FIXED_BYTES]:
        raise EngineError("The plan's header was cut off or changed. Compile the plan again.")
    found = json.loads(header)
    if not isinstance(found, dict):
        raise EngineError("The plan's header is no table. Compile the plan again.")
    return found


def _key(header: Mapping[str, Any]) -> PlanKey:
    try:
        return PlanKey(**header["key"])
    except (KeyError, TypeError) as error:
        raise EngineError(
            f"The plan's key is not one that this edgemm writes ({error}). Compile the plan again."
        ) from error


def profiles_of(inputs: Sequence[TensorSpec], dims: Mapping[str, int | Sequence[int]]) -> tuple[Profile, ...]:
    """Turn a recipe's `dims` into optimization profiles.

    A dimension is a number or [min, opt, max]; three numbers more make another profile ([1, 1, 1, 2, 8, 16] is two).
    A dimension with fewer profiles than the others repeats its last one. Returns () if all inputs are static. Raises
    UsageError for a dimension without a value (a nameless one is called "<input>_dim<axis>", as the pass
    name-dims does), a range out of order, or
    a value for a dimension that no input has.
    """
    known = {
        _dim_name(spec, axis) for spec in inputs for axis, dim in enumerate(spec.shape) if not isinstance(dim, int)
    }
    for name in dims:
        if name not in known:
            raise UsageError(
                f'dims names "{name}", which is not a dynamic dimension of an input; '
                f"there {'is' if len(known) == 1 else 'are'}: {', '.join(sorted(known)) or 'none'}."
            )
    ranges: dict[str, list[tuple[int, int, int]]] = {}
    for name in sorted(known):
        if name not in dims:
            raise UsageError(
                f'The dimension "{name}" has no value. Give it one in the recipe: '
                f'dims = {{ "{name}" = 1 }}, or a range [min, opt, max].'
            )
        ranges[name] = _ranges(name, dims[name])
    if not ranges:
        return ()
    count = max(len(found) for found in ranges.values())
    profiles = []
    for index in range(count):
        profile: dict[str, ShapeRange] = {}
        for spec in inputs:
            if spec.is_static:
                continue
            sides = []
            for side in range(3):
                shape = []
                for axis, dim in enumerate(spec.shape):
                    if isinstance(dim, int):
                        shape.append(dim)
                    else:
                        found = ranges[_dim_name(spec, axis)]
                        shape.append(found[min(index, len(found) - 1)][side])
                sides.append(tuple(shape))
            profile[spec.name] = (sides[0], sides[1], sides[2])
        profiles.append(profile)
    return tuple(profiles)


def _dim_name(spec: TensorSpec, axis: int) -> str:
    dim = spec.shape[axis]
    return dim if isinstance(dim, str) else f"{spec.name}_dim{axis}"


def _ranges(name: str, value: int | Sequence[int]) -> list[tuple[int, int, int]]:
    if isinstance(value, int):
        value = (value, value, value)
    if not value or len(value) % 3:
        raise UsageError(f'The dimension "{name}" has {len(value)} numbers; expected one, or [min, opt, max].')
    found = [(value[i], value[i + 1], value[i + 2]) for i in range(0, len(value), 3)]
    for low, best, high in found:
        if not 0 <= low <= best <= high:
            raise UsageError(f'The dimension "{name}" has the range {[low, best, high]}; expected min <= opt <= max.')
    return found


def _tensor(entry: Mapping[str, Any]) -> PlanTensor:
    return PlanTensor(
        name=entry["name"],
        is_input=entry["is_input"],
        dtype=entry["dtype"],
        shape=tuple(entry["shape"]),
        profiles=tuple((tuple(low), tuple(best), tuple(high)) for low, best, high in entry["profiles"]),
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
