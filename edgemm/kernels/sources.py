"""Where the CUDA sources are: beside this module in an installed package, at the top of a checkout otherwise."""

from __future__ import annotations

from pathlib import Path

from edgemm.errors import KernelError

_HERE = Path(__file__).resolve().parent


def source_dir(name: str = "csrc") -> Path:
    """The folder `csrc` (kernels) or `emulator` of the CUDA sources.

    Raises KernelError if this installation has no such folder.
    """
    for folder in (_HERE / name, _HERE.parents[1] / "kernels" / name):
        if folder.is_dir():
            return folder
    raise KernelError(
        f"Found no CUDA sources {name!r} in {_HERE} nor in a checkout above it. "
        "Install edgemm again, or run from a checkout."
    )
