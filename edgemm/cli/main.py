"""The command line: one app, one file a command. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgemm import __version__
from edgemm.cli import (
    build,
    cache,
    calibrate_sync,
    check,
    demo,
    devices,
    doctor,
    inspect,
    profile,
    recipe,
    run,
    targets,
)
from edgemm.errors import EdgemmError

# Plain help: with rich, `--help` takes three times as long.
app = typer.Typer(
    name="edgemm",
    help=(
        "From a trained audio-visual ONNX model to measured, synchronised inference on an embedded GPU.\n\n"
        "Start here:  edgemm demo\n\n"
        "Your model:  edgemm recipe MODEL.onnx > recipe.toml;  edgemm build engine recipe.toml -o out.edgemm;  "
        "edgemm run out.edgemm --input clip.mp4"
    ),
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(build.app, name="build")
app.command("run", cls=run.RunCommand)(run.run)
app.command("profile")(profile.profile)
app.command("check")(check.check)
app.command("inspect")(inspect.inspect)
app.command("recipe")(recipe.recipe)
app.command("devices")(devices.devices)
app.command("calibrate-sync")(calibrate_sync.calibrate_sync)
app.command("doctor")(doctor.doctor)
app.command("targets")(targets.targets)
app.command("demo")(demo.demo)
app.add_typer(cache.app, name="cache")


_INTERRUPTED = 130


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgemm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 the work failed, 2 the call was wrong."""
    try:
        app()
    except SystemExit as end:
        # typer turns Ctrl-C into 130; ours are 0, 1 and 2. A run ends well on Ctrl-C, so this was other work.
        if end.code != _INTERRUPTED:
            raise
        typer.echo("edgemm: interrupted. Nothing that was there before was changed.", err=True)
        sys.exit(1)
    except EdgemmError as error:
        typer.echo(f"edgemm: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone (`edgemm run ... | head`): nothing is left to say, or to whom.
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        # A file named on the command line that cannot be read or written: a report, a summary, a recipe.
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"edgemm: {place}{error.strerror or error}. Name another file or folder.", err=True)
        sys.exit(1)
