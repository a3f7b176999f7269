"""What the builder and the runtime need to know of a set of plugins."""

from __future__ import annotations

from typing import Protocol

from edgemm.engine.tensorrt.flavours import Flavour


class Plugins(Protocol):
    """The plugins that a graph needs; `edgemm.engine.tensorrt.plugins.own` makes one."""

    @property
    def digest(self) -> str:
        """Hash of the plugins' code: a plan that was compiled with other code is not loaded."""
        ...

    @property
    def ahead_of_time(self) -> bool:
        """True if TensorRT is to take ahead-of-time plugins, whose kernels go into the plan, where there are both."""
        ...

    def register(self, flavour: Flavour) -> None:
        """Make them known to this TensorRT, before a graph with their nodes is parsed or its plan loaded."""
        ...
