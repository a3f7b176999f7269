"""A logger for TensorRT that remembers what was said: its errors have no other way out."""

from __future__ import annotations

from typing import Any

from edgemm.engine.tensorrt.problems import explain
from edgemm.errors import EngineError


class Log:
    """What TensorRT said while it worked: `sink` is the logger to hand to it."""

    def __init__(self) -> None:
        self.sink: Any = None
        self.errors: list[str] = []
        self.warnings: list[str] = []


_KEPT: list[Any] = []
"""Every logger that was handed to TensorRT. It keeps bare pointers to some of them beyond the Builder or Runtime that
they were given to (its plugin registry speaks through one), so that collecting them crashes a later registration. A
logger is a few hundred bytes, and there is one for each build."""


def construct(kind: Any, log: Log, title: str) -> Any:
    """Make a Builder or Runtime. Raises EngineError where CUDA cannot be used: the bindings raise a bare TypeError."""
    try:
        return kind(log.sink)
    except TypeError as error:
        said = explain("start", log.errors[-1]) if log.errors else None
        reason = f"{said.reason}. {said.remedy}" if said is not None else f"{error}."
        raise EngineError(f"{title} cannot start: {reason}") from error


def make_logger(trt: Any) -> Log:
    """Return a Log whose sink is a logger of this TensorRT module."""
    log = Log()

    class Sink(trt.ILogger):  # type: ignore[misc]  # the base class is known only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                log.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                log.warnings.append(message)

    log.sink = Sink()
    _KEPT.append(log.sink)
    return log
