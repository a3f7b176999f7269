"""Progress of long work: a moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Progress = Callable[[str], None]
"""Called with a sentence each time the work enters a new stage."""


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """Give a function that shows what the work is doing, on standard error."""
    if quiet:
        yield lambda message: None
    elif sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        with console.status("starting") as status:

            def show(message: str) -> None:
                console.print(f"[dim]{message}[/dim]")
                status.update(message)

            yield show
    else:
        yield lambda message: print(message, file=sys.stderr, flush=True)
