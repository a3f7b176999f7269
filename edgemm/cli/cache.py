"""`edgemm cache`: what edgemm keeps and can make again."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="List or clear what edgemm keeps and can make again: compiled plans, timings, kernels.", no_args_is_help=True
)


@app.command("list")
def list_() -> None:
    """Show every plan in the cache (what it was compiled for, its size and age), and how much else is kept.

    Example:  edgemm cache list
    """
    import time

    from edgemm import cache
    from edgemm.cli.tables import table
    from edgemm.engine.tensorrt.cache import PlanCache

    kept = PlanCache()
    entries = kept.list()
    if entries:
        rows = [
            [
                entry.key.id[:12],
                f"{entry.key.flavour} {entry.key.version}",
                f"{entry.key.sm} ({entry.key.gpu})",
                entry.key.precision,
                entry.key.graph[:12],
                f"{entry.size_bytes / 1e6:.1f} MB",
                f"{(time.time() - entry.made_s) / 3600:.1f} h",
            ]
            for entry in entries
        ]
        typer.echo(table(["plan", "TensorRT", "for", "precision", "graph", "size", "age"], rows))
        typer.echo(f"in {kept.folder}")
    else:
        typer.echo(f"No plans in {kept.folder}.")
    for kind, what in cache.KINDS.items():
        count, size = cache.size(kind)
        if count and kind != "plans":
            typer.echo(f"{kind}: {count} files, {size / 1e6:.1f} MB ({what})")


@app.command()
def clear(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(help="Only these: plans, timings, jit, kernels, emulator, models.", metavar="KIND"),
    ] = None,
) -> None:
    """Delete what is kept, or only some kinds of it. A plan that is being compiled stays.

    Examples:

      edgemm cache clear

      edgemm cache clear plans jit
    """
    from edgemm import cache
    from edgemm.engine.tensorrt.cache import PlanCache
    from edgemm.errors import UsageError

    wanted = kinds or list(cache.KINDS)
    for kind in wanted:
        if kind not in cache.KINDS:
            raise UsageError(f'The cache keeps no "{kind}", expected some of: {", ".join(cache.KINDS)}.')
    freed = sum(PlanCache().clear() if kind == "plans" else cache.clear(kind) for kind in wanted)
    typer.echo(f"Freed {freed / 1e6:.1f} MB in {cache.folder('plans').parent}.")
