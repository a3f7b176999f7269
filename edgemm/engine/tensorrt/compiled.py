"""From a bundle to a TensorRT plan for the device at hand: taken from the bundle, from the cache, or compiled once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemm import cache
from edgemm.bundle import Bundle, ModelEntry, Variant
from edgemm.engine import targets
from edgemm.engine.gpu import Gpu, find_gpu
from edgemm.engine.targets import Target
from edgemm.engine.tensorrt import flavours
from edgemm.engine.tensorrt.build import Progress, build_plan, dla_cores, plan_key
from edgemm.engine.tensorrt.cache import Host, PlanCache, preflight
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.plan import BuildOptions, Plan, PlanKey, profiles_of, read_plan
from edgemm.engine.tensorrt.plugins.own import OwnPlugins
from edgemm.errors import EngineError, KernelError
from edgemm.kernels.compile import find_compiler
from edgemm.recipe import Recipe

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """A plan that fits the device at hand, and how it was come by."""

    plan: Plan
    origin: str
    """"bundle", "cache" or "built"."""
    notes: tuple[str, ...] = ()
    weights: bytes | None = None
    """The graph, where the plan was compiled without weights and takes them from it."""
    plugins: OwnPlugins | None = None
    """What runs edgemm's operators, if the plan was compiled with them."""


def options_for(recipe: Recipe, model: str, entry: ModelEntry) -> BuildOptions:
    """The build options of one model: its shapes from the recipe's `dims`, the rest from its [tensorrt]."""
    wanted = recipe.tensorrt_of(model)
    ranges = {name: sizes for name, sizes in recipe.models[model].dims.items() if isinstance(sizes, list)}
    return BuildOptions(
        profiles=profiles_of(entry.inputs, ranges),
        memory_pools={pool: megabytes << 20 for pool, megabytes in wanted.memory_pools_mb.items()},
        optimization_level=wanted.optimization_level,
        tactic_sources=None if wanted.tactic_sources is None else tuple(wanted.tactic_sources),
        dla_core=wanted.dla_core,
        dla_strict=wanted.dla_strict,
        sparsity=wanted.sparsity,
        version_compatible=wanted.version_compatible,
        hardware_compatibility=wanted.hardware_compatibility,
        strip_weights=wanted.strip_weights,
        refit=wanted.refit,
    )


def graph_member(variant: Variant) -> tuple[str, str, str | None]:
    """The member with the graph for TensorRT, its digest, and the member with its external data if it has any."""
    if variant.tensorrt is not None:
        return variant.tensorrt, variant.tensorrt_digest or "", variant.tensorrt_data
    return variant.file, variant.digest, variant.data


def plugins_for(
    recipe: Recipe, model: str, variant: Variant, cubins: Mapping[str, bytes] | None = None
) -> OwnPlugins | None:
    """What is to run edgemm's operators in one graph; None if it has none, or the recipe wants their bodies."""
    wanted = recipe.tensorrt_of(model)
    if not variant.operators or not wanted.plugins:
        return None
    return OwnPlugins(cubins=cubins, ahead_of_time=wanted.ahead_of_time)


def cubins_of(bundle: Bundle, arch: str, digest: str) -> dict[str, bytes]:
    """The kernels in a bundle that were compiled for `arch` ("sm_87") from the sources with this digest, by source."""
    return {
        entry.source: bundle.read(entry.file)
        for entry in bundle.manifest.kernels
        if (entry.arch, entry.digest) == (arch, digest)
    }


def compile_for(
    flavour: Flavour,
    target: Target,
    model: bytes | Path,
    digest: str,
    precision: str,
    options: BuildOptions,
    *,
    operators: Sequence[str] = (),
    plugins: OwnPlugins | None = None,
    gpu: Gpu | None = None,
    tell: Tell | None = None,
) -> Plan:
    """Compile one graph, with progress in words; with `plugins`, its `operators` are theirs. Raises EngineError."""
    if plugins is not None:
        model = _without_bodies(model, operators)
    phases: set[str] = set()

    def progress(step: Progress) -> None:
        if tell is not None and not step.parent and step.phase not in phases:
            phases.add(step.phase)
            tell(f"{flavour.title}: {step.phase}")

    return build_plan(
        model,
        options,
        target,
        flavour=flavour,
        graph=digest,
        precision=precision,
        gpu=gpu,
        plugins=plugins,
        timing_cache=cache.folder("timings"),
        progress=progress,
    )


def plan_for_device(
    bundle: Bundle, model: str, precision: str, flavour: Flavour, *, gpu: Gpu | None = None, tell: Tell | None = None
) -> Found:
    """The plan of one model for the GPU in this machine.

    A plan of the bundle is taken if its key fits, else one of the cache; else it is compiled, once, however many
    processes ask. Raises EngineError if there is no GPU, or TensorRT refuses the graph.
    """
    gpu = gpu or find_gpu()
    if gpu is None:
        raise EngineError(
            f"{flavour.title} needs an NVIDIA GPU with its driver, and none was found. "
            "Run on the CPU: --engine onnxruntime"
        )
    target = targets.of_device(gpu.name, gpu.compute_capability, gpu.memory_bytes)
    entry = bundle.models[model]
    options = options_for(bundle.recipe, model, entry)
    variant = entry.variants[precision]
    member, digest, data = graph_member(variant)
    notes: list[str] = []
    plugins = _plugins_here(bundle, model, variant, gpu, notes)
    key = plan_key(flavour, options, target, graph=digest, precision=precision, gpu=gpu, plugins=plugins)
    cores = dla_cores(flavour) if options.dla_core is not None else 0
    registered = plugins.digest if plugins is not None else ""
    host = Host(flavour.name, flavour.version, gpu.compute_capability, gpu.name, gpu.integrated, cores, registered)
    weights = bundle.read(member) if options.strip_weights and data is None else None
    if weights is not None and plugins is not None:
        weights = _strip(weights, variant.operators)
    for listed in bundle.manifest.plans:
        if listed.model != model or listed.key.get("graph") != digest or listed.key.get("precision") != precision:
            continue
        try:
            preflight(PlanKey(**listed.key), host)
        except EngineError as error:
            notes.append(str(error))
            continue
        plan = read_plan(bundle.read(listed.file))
        return Found(plan, "bundle", tuple(notes), weights, plugins if plan.key.plugins else None)

    def build() -> Plan:
        if tell is not None:
            tell(f"{model}: compiling the {precision} plan for {gpu.name}; this is done once")
        graph = bundle.read(member) if data is None else extracted(bundle, member, data, digest)
        return compile_for(
            flavour,
            target,
            graph,
            digest,
            precision,
            options,
            operators=variant.operators,
            plugins=plugins,
            gpu=gpu,
            tell=tell,
        )

    def waiting() -> None:
        if tell is not None:
            tell(f"{model}: another process is compiling this plan; waiting for it")

    kept = PlanCache().get_or_build(key, build, waiting)
    preflight(kept.plan.key, host)
    return Found(kept.plan, kept.origin, (*notes, *kept.notes), weights, plugins)


def _plugins_here(bundle: Bundle, model: str, variant: Variant, gpu: Gpu, notes: list[str]) -> OwnPlugins | None:
    """The plugins for the GPU in this machine, or None with a note if their kernels can neither be taken nor made."""
    plugins = plugins_for(bundle.recipe, model, variant)
    if plugins is None:
        return None
    arch = gpu.compute_capability.replace(".", "")
    cubins = cubins_of(bundle, f"sm_{arch}", plugins.digest)
    if cubins:
        return plugins_for(bundle.recipe, model, variant, cubins)
    try:
        find_compiler(int(arch))
    except KernelError as error:
        notes.append(f"{', '.join(variant.operators)} run from their ONNX bodies, not from edgemm's kernels: {error}")
        return None
    return plugins


def _without_bodies(model: bytes | Path, operators: Sequence[str]) -> bytes | Path:
    """The graph whose `operators` plugins are to run: bytes, or a file beside the one with the bodies."""
    if isinstance(model, bytes):
        return _strip(model, operators)
    stripped = model.with_name(f"{model.stem}.plugins{model.suffix}")
    # The graph alone: its external data keeps its place beside both files.
    stripped.write_bytes(_strip(model.read_bytes(), operators))
    return stripped


def _strip(model: bytes, operators: Sequence[str]) -> bytes:
    # Here, and not above: a device whose plans are there already needs no onnx.
    from edgemm.graph.ops import strip_bodies

    return strip_bodies(model, operators)


def extracted(bundle: Bundle, member: str, data: str, digest: str) -> Path:
    """Unpack a graph with external data into the cache, once, under its digest; return the graph's path."""
    folder = cache.folder("models") / digest
    for name in (data, member):
        file = folder / Path(name).name
        if not file.is_file() or file.stat().st_size != bundle.manifest.files[name].size:
            bundle.extract(name, folder)
    return folder / Path(member).name


def flavour_for(engine: str) -> Flavour | None:
    """The TensorRT that an engine's name asks for; for "auto" the first that is here, or None.

    Raises what `flavours.get` raises if one is asked for by name.
    """
    if engine == "auto":
        return next(iter(flavours.installed()), None)
    return flavours.get(engine)
