"""Progress of long work: a moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import typer

Progress = Callable[[str], None]
"""Called with a sentence each time the work enters a new stage."""


@contextlib.contextmanager
def progress(quiet: bool = False, moving: bool = True) -> Iterator[Progress]:
    """Give a function that shows what the work is doing, on standard error.

    `moving=False` prints plain lines on a terminal, too: for work that draws something of its own.
    """
    if quiet:
        yield lambda message: None
    elif moving and sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        with console.status("starting") as status:

            def show(message: str) -> None:
                console.print(f"[dim]{message}[/dim]")
                status.update(message)

            yield show
    else:
        yield lambda message: typer.echo(message, err=True)
