"""`edgemm cache`: what edgemm keeps and can make again."""

from __future__ import annotations

import typer

app = typer.Typer(help="List or clear the compiled plans that edgemm keeps and can make again.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """Show every plan in the cache: what it was compiled for, its size and age.

    Example:  edgemm cache list
    """
    import time

    from edgemm.cli.tables import table
    from edgemm.engine.tensorrt.cache import PlanCache

    kept = PlanCache()
    entries = kept.list()
    if not entries:
        typer.echo(f"No plans in {kept.folder}.")
        return
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


@app.command()
def clear() -> None:
    """Delete every plan in the cache; one that is being compiled stays.

    Example:  edgemm cache clear
    """
    from edgemm.engine.tensorrt.cache import PlanCache

    kept = PlanCache()
    typer.echo(f"Freed {kept.clear() / 1e6:.1f} MB in {kept.folder}.")
