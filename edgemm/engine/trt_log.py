"""A logger for TensorRT that remembers what was said: its errors have no other way out."""

from __future__ import annotations

from typing import Any

from edgemm.engine.trt_errors import explain
from edgemm.errors import EngineError


class Log:
    """What TensorRT said while it worked: `sink` is the logger to hand to it."""

    def __init__(self) -> None:
        self.sink: Any = None
        self.errors: list[str] = []
        self.warnings: list[str] = []


_FIRST: dict[str, Any] = {}
"""The first logger of each TensorRT module: TensorRT keeps a bare pointer to it for as long as the process lives, and
its plugin registry speaks through it. Were it collected, the next registration would crash."""


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
    _FIRST.setdefault(trt.__name__, log.sink)
    return log
