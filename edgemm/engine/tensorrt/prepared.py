"""What can be made for a device before it is at hand: its kernels, and the plans that this TensorRT compiles for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgemm.bundle import KernelEntry, ModelEntry, PlanEntry, Variant
from edgemm.engine.gpu import find_gpu
from edgemm.engine.targets import Target
from edgemm.engine.tensorrt import compiled, flavours
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plan import Plan
from edgemm.engine.tensorrt.plugins.own import OwnPlugins, kernel_source
from edgemm.errors import EngineError, KernelError
from edgemm.graph.ops import kernel_options_in
from edgemm.kernels.compile import Compiler, compile_kernel, compilers
from edgemm.recipe import Recipe

_WARNINGS_SHOWN = 3
"""Of TensorRT's own; the layers that a DLA leaves to the GPU are all named."""

_UNNUMBERED_WHEEL = 13
"""From CUDA 13 on the name of NVRTC's wheel has no number."""

Tell = Callable[[str], None]
Files = dict[str, bytes | Path]


@dataclass
class Prepared:
    """What was made for the target; the members themselves are among the bundle's files."""

    plans: list[PlanEntry] = field(default_factory=list)
    kernels: list[KernelEntry] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """What was compiled, what was not and why, and what will be compiled on the device, in sentences."""


def prepare(recipe: Recipe, models: Mapping[str, ModelEntry], files: Files, target: Target, tell: Tell) -> Prepared:
    """Compile what can be compiled here for the target, into `files`; say what cannot, and when it will be."""
    made = Prepared()
    if target.release is None:
        made.said.append(f"{target.title} has no TensorRT that edgemm builds for: it runs on onnxruntime there")
        return made
    _compile_kernels(recipe, models, files, target, made, tell)
    later = f"the plan will be compiled on {target.title}, at the first run or by: edgemm build engine BUNDLE"
    wanted = "tensorrt-rtx" if target.family == "rtx" else "tensorrt"
    flavour = next((found for found in flavours.installed() if found.name == wanted), None)
    if flavour is None:
        hint = ' To compile it here: pip install "edgemm[rtx]"' if wanted == "tensorrt-rtx" else ""
        made.said.append(later + "." + hint)
        return made
    for name, entry in models.items():
        for precision, variant in entry.variants.items():
            if compiled.graph_member(variant)[2] is not None:
                made.said.append(f"{name}, {precision}: over 2 GB; {later}")
                continue
            tell(f"{name}: compiling the {precision} plan for {target.title}")
            plan = _plan(recipe, name, entry, precision, files, flavour, target, made, tell)
            if plan is None:
                continue
            file = f"plans/{plan.key.id}.plan"
            files[file] = plan.to_bytes()
            made.plans.append(PlanEntry(file=file, model=name, key=asdict(plan.key)))
            made.said += described(f"{name}, {precision}", plan, flavour)
    return made


def described(what: str, plan: Plan, flavour: Flavour) -> list[str]:
    """One plan in sentences: how it was compiled, and each layer that a DLA leaves to the GPU."""
    used = sum(layer.kind.startswith("PLUGIN") for layer in plan.layers)
    kernels = f", {used} of its layers edgemm's own kernels" if plan.key.plugins else ""
    lines = [
        f"{what}: compiled for {plan.key.sm} by {flavour.title} in {plan.seconds:.1f} s, "
        f"{len(plan.data) / 1e6:.2f} MB{kernels}"
    ]
    if plan.key.dla:
        on_dla = sum(layer.device == "DLA" for layer in plan.layers)
        lines.append(f"{what}: {on_dla} of {len(plan.layers)} layers run on DLA core {plan.key.dla}")
        lines += [f"{what}: on the GPU: {layer.name} ({layer.kind})" for layer in plan.layers if layer.device == "GPU"]
    return lines + [f"{what}: {warning}" for warning in plan.warnings[:_WARNINGS_SHOWN]]


def _plan(
    recipe: Recipe,
    name: str,
    entry: ModelEntry,
    precision: str,
    files: Files,
    flavour: Flavour,
    target: Target,
    made: Prepared,
    tell: Tell,
) -> Plan | None:
    """One plan; with edgemm's kernels if the recipe wants them, and if TensorRT refuses these, from the bodies."""
    variant = entry.variants[precision]
    member, digest, _ = compiled.graph_member(variant)
    options = compiled.options_for(recipe, name, entry)
    gpu = None if flavour.builds_without_gpu else find_gpu()
    wanted = compiled.plugins_for(recipe, name, variant)
    tries: list[OwnPlugins | None] = [None] if wanted is None else [wanted, None]
    for plugins in tries:
        try:
            return compiled.compile_for(
                flavour,
                target,
                files[member],
                digest,
                precision,
                options,
                operators=variant.operators,
                plugins=plugins,
                gpu=gpu,
                tell=tell,
            )
        except EngineError as error:
            how = " with edgemm's kernels" if plugins is not None else ""
            made.said.append(f"{name}, {precision}: no plan{how}: {error}")
    return None


def _compile_kernels(
    recipe: Recipe, models: Mapping[str, ModelEntry], files: Files, target: Target, made: Prepared, tell: Tell
) -> None:
    """Compile the kernels that the graphs' operators need, for the target's architecture."""
    wanted: set[str] = set()
    digest = ""
    for name, entry in models.items():
        for variant in entry.variants.values():
            plugins = compiled.plugins_for(recipe, name, variant)
            if plugins is not None:
                digest = plugins.digest
                wanted |= _sources(variant, files)
    if not wanted:
        return
    arch = int(target.compute_capability.replace(".", ""))
    try:
        compiler = _compiler_for(target, arch)
        tell(f"compiling {', '.join(sorted(wanted))} for {target.sm}")
        for source in sorted(wanted):
            binary = compile_kernel(source, arch, compiler=compiler).read_bytes()
            file = f"kernels/{target.sm}/{source}.cubin"
            files[file] = binary
            made.kernels.append(
                KernelEntry(file=file, source=source, arch=target.sm, compiler=str(compiler), digest=digest)
            )
            made.said.append(f"kernel {source}: compiled for {target.sm} by {compiler}, {len(binary) / 1e3:.0f} kB")
    except KernelError as error:
        made.said.append(
            f"kernels {', '.join(sorted(wanted))}: not compiled here, but on the device when they are needed: {error}"
        )


def _sources(variant: Variant, files: Files) -> set[str]:
    content = files[compiled.graph_member(variant)[0]]
    graph = content if isinstance(content, bytes) else content.read_bytes()
    return {kernel_source(options) for options in kernel_options_in(graph)}


def _compiler_for(target: Target, arch: int) -> Compiler:
    """A compiler whose cubins every driver of the target loads: of its own CUDA or older. Raises KernelError."""
    newest = target.oldest_cuda or (0, 0)
    found = [compiler for compiler in compilers() if arch in compiler.archs]
    fitting = [compiler for compiler in found if compiler.version <= newest]
    if fitting:
        return fitting[0]
    have = ", ".join(str(compiler) for compiler in found) or "none"
    cuda = ".".join(str(part) for part in newest)
    wheel = "nvidia-cuda-nvrtc" + (f"-cu{newest[0]}" if newest[0] < _UNNUMBERED_WHEEL else "")
    raise KernelError(
        f"a driver takes kernels of its own CUDA or an older one, and of CUDA {cuda} or older there is no compiler for "
        f'sm_{arch} here (found: {have}). Install one: pip install "{wheel}=={cuda}.*".'
    )
