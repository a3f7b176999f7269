"""A plan in the hands of TensorRT: deserialised, on a device, ready to give execution contexts."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import TracebackType
from typing import Any

from edgemm import cache
from edgemm.device import Device, open_device
from edgemm.engine.gpu import find_gpu, gpu_of
from edgemm.engine.tensorrt import flavours
from edgemm.engine.tensorrt.cache import Host, preflight
from edgemm.engine.tensorrt.flavours import Flavour
from edgemm.engine.tensorrt.log import construct, make_logger
from edgemm.engine.tensorrt.plan import Plan
from edgemm.engine.tensorrt.plugins.protocol import Plugins
from edgemm.engine.tensorrt.problems import explain, parser_problems
from edgemm.engine.tensorrt.run.jit import JitCache
from edgemm.errors import EngineError


class LoadedPlan:
    """A deserialised plan. Entering it takes the device and loads the plan; leaving gives both back.

    Several engines may run on one loaded plan, each with an execution context, a stream and buffers of its own: the
    weights are on the device once. `weights` is the ONNX model that a weight-stripped plan is filled from.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        flavour: Flavour | None = None,
        plugins: Plugins | None = None,
        weights: bytes | None = None,
        open_device: Callable[[], Device] = open_device,
    ) -> None:
        self.plan = plan
        self._given_flavour = flavour
        self._plugins = plugins
        self._weights = weights
        self._open_device = open_device
        self._users = 0
        self._jit: JitCache | None = None
        self.notes: list[str] = []
        """Sentences for the user about what was not done."""
        self._device: Device | None = None
        self._flavour: Flavour | None = None
        self._engine: Any = None
        self._log: Any = None
        self._runtime: Any = None

    def __enter__(self) -> LoadedPlan:
        self._users += 1
        if self._users > 1:
            return self
        try:
            self._load()
        except BaseException:
            self._users = 0
            self._unload()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._users -= 1
        if self._users == 0:
            self._unload()

    @property
    def device(self) -> Device:
        """The device it is on. Raises EngineError before it is entered."""
        if self._device is None:
            raise _not_entered()
        return self._device

    @property
    def flavour(self) -> Flavour:
        """The TensorRT that runs it. Raises EngineError before it is entered."""
        if self._flavour is None:
            raise _not_entered()
        return self._flavour

    @property
    def engine(self) -> Any:
        """TensorRT's `ICudaEngine`. Raises EngineError before it is entered."""
        if self._engine is None:
            raise _not_entered()
        return self._engine

    @property
    def errors(self) -> str:
        """The last error that TensorRT logged, in words, or that it logged none."""
        return explain("run", self._log.errors[-1]).reason if self._log.errors else "it gave no reason"

    def create_context(self) -> Any:
        """Return a new `IExecutionContext`. Raises EngineError if its memory cannot be had."""
        config = self._jit.config_for(self.engine) if self._jit is not None else None
        context = self.engine.create_execution_context(*(() if config is None else (config,)))
        if context is None:
            raise EngineError(
                f"{self.flavour.title} cannot make an execution context: {self.errors}. "
                "Free GPU memory, or compile the plan with a smaller workspace."
            )
        return context

    def layers(self) -> list[dict[str, Any]]:
        """What TensorRT's engine inspector says of each layer after fusion: name, type, precision, tactic.

        Only names if the plan was compiled without `detailed_layers`.
        """
        inspector = self.engine.create_engine_inspector()
        text = inspector.get_engine_information(self.flavour.member("LayerInformationFormat", "JSON"))
        found = json.loads(text).get("Layers", [])
        return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in found]

    def refit(self, model: bytes) -> None:
        """Replace the weights by those of `model`, the same graph with other numbers.

        Raises EngineError if the plan was not compiled with `refit` or `strip_weights`, or if weights are missing.
        """
        trt = self.flavour.module
        if not self.engine.refittable:
            raise EngineError("The plan cannot be refitted. Compile it again with refit=True.")
        refitter = trt.Refitter(self.engine, self._log.sink)
        parser = trt.OnnxParserRefitter(refitter, self._log.sink)
        if not parser.refit_from_bytes(model) or not refitter.refit_cuda_engine():
            said = "; ".join(str(problem) for problem in parser_problems(parser)) or self.errors
            raise EngineError(
                f"{self.flavour.title} cannot refit the plan: {said}. Give the model it was compiled from."
            )

    def _load(self) -> None:
        flavour = self._given_flavour or flavours.get(self.plan.key.flavour)
        self._flavour = flavour
        device = self._open_device()
        device.__enter__()
        self._device = device
        trt = flavour.module
        self._log = make_logger(trt)
        self._runtime = construct(trt.Runtime, self._log, flavour.title)
        gpu = gpu_of(device.info)
        # A plan for "any" GPU of a capability is finished differently on each.
        self._jit = JitCache(cache.folder("jit") / f"{self.plan.key.id}-{_word(gpu.name)}")
        preflight(
            self.plan.key,
            Host(
                flavour=flavour.name,
                version=flavour.version,
                compute_capability=gpu.compute_capability,
                gpu=gpu.name,
                integrated=gpu.integrated,
                dla_cores=self._runtime.num_DLA_cores,
                plugins=self._plugins.digest if self._plugins is not None else "",
            ),
        )
        if self._plugins is not None:
            self._plugins.register(flavour)
        if self.plan.key.dla:
            self._runtime.DLA_core = int(self.plan.key.dla)
        self._engine = self._runtime.deserialize_cuda_engine(self.plan.data)
        if self._engine is None:
            if find_gpu() is None:
                remedy = "There is no GPU or no driver here: run it on the device, or with --engine onnxruntime."
            else:
                remedy = "Compile it again here: edgemm build engine BUNDLE"
            raise EngineError(f"{flavour.title} cannot load the plan: {self.errors}. {remedy}")
        if self._weights is not None:
            self.refit(self._weights)

    def _unload(self) -> None:
        if self._jit is not None:
            try:
                self._jit.save()
            except EngineError as error:
                self.notes.append(str(error))
            self._jit = None
        # In this order: TensorRT's objects free device memory when they go.
        self._engine = None
        self._runtime = None
        if self._device is not None:
            self._device.__exit__(None, None, None)
            self._device = None


def _word(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _not_entered() -> EngineError:
    return EngineError('The plan is not loaded. Use it inside its "with" block.')
