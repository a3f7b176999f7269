"""Memory for outputs whose size is known only once they have been computed."""

from __future__ import annotations

from typing import Any

from edgemm.engine.tensorrt.run.memory import TensorMemory


class Outputs:
    """What TensorRT asked for through its `IOutputAllocator`, by tensor: `sink` is the allocator to hand to it.

    An exception must not cross TensorRT's C++: it is kept in `failure`, and TensorRT is told that there is no memory.
    """

    def __init__(self) -> None:
        self.sink: Any = None
        self.memory: dict[str, TensorMemory] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.failure: Exception | None = None

    def allocate(self, name: str, size: int) -> int:
        """Make room for an output, and return its address; 0 if that failed."""
        try:
            self.memory[name].reserve(size)
            return self.memory[name].address
        except Exception as error:  # noqa: BLE001  # raised by the engine once TensorRT has returned
            self.failure = error
            return 0


def make_allocator(trt: Any) -> Outputs:
    """Return Outputs whose sink is an allocator of this TensorRT module."""
    outputs = Outputs()

    class Sink(trt.IOutputAllocator):  # type: ignore[misc]  # the base class is known only at run time
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            return outputs.allocate(tensor_name, size)

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return outputs.allocate(tensor_name, size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            outputs.shapes[tensor_name] = tuple(shape)

    outputs.sink = Sink()
    return outputs
