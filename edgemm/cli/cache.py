"""`edgemm cache`: what edgemm keeps and can make again."""

from __future__ import annotations

import typer

app = typer.Typer(help="List or clear what edgemm keeps and can make again.", no_args_is_help=True)
