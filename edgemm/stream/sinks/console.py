"""The newest result of each model as a table that stays in place; plain lines where there is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from edgemm.stream.decode import Decoded, Label, Score, Vector
from edgemm.stream.results import Result

if TYPE_CHECKING:
    from rich.table import Table


class ConsoleSink:
    """Shows results on `file` (standard output if None), refreshed ten times a second.

    A terminal gets a table; anything else gets one line of text a result.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._target = file
        self._console: Any = None
        self._live: Any = None
        self._newest: dict[str, Result] = {}
        self._counts: dict[str, int] = {}

    @property
    def name(self) -> str:
        """For the accounts."""
        return "terminal"

    def __enter__(self) -> ConsoleSink:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=self._target, highlight=False)
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=10)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def write(self, result: Result) -> None:
        """Show one result."""
        self._newest[result.model] = result
        self._counts[result.model] = self._counts.get(result.model, 0) + 1
        if self._live is None:
            outputs = "  ".join(f"{name} {show(value)}" for name, value in result.outputs.items())
            self._console.print(
                f"{result.time_ns / 1e9:9.3f} s  {result.model}  {outputs}", markup=False, soft_wrap=True
            )

    def _table(self) -> Table:
        from rich.table import Table

        table = Table("model", "time s", "outputs", "audio age ms", "video age ms", "skew ms", "latency ms", "results")
        for model, result in self._newest.items():
            table.add_row(
                model,
                f"{result.time_ns / 1e9:.3f}",
                "\n".join(f"{name} {show(value)}" for name, value in result.outputs.items()),
                _ms(result.audio_age_ns),
                _ms(result.video_age_ns),
                _ms(result.skew_ns),
                _ms(result.latency.total_ns if result.latency else None),
                str(self._counts[model]) + (" (late)" if result.deadline_missed else ""),
            )
        return table


def show(value: Decoded) -> str:
    """A decoded output in a few words."""
    if isinstance(value, Label):
        return f"{value.label} ({value.score:.2f})"
    if isinstance(value, Score):
        return f"{'yes' if value.above else 'no'} ({value.score:.2f})"
    array = value.vector if isinstance(value, Vector) else value.values
    if array.size == 1:
        return f"{array.reshape(())[()]:g}"
    return f"{array.dtype}{list(array.shape)}"


def _ms(ns: int | None) -> str:
    return "" if ns is None else f"{ns / 1e6:.1f}"
