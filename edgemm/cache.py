"""Where edgemm keeps what it can make again: compiled plans, kernels, unpacked large graphs."""

from __future__ import annotations

import os
from pathlib import Path


def folder(kind: str) -> Path:
    """The cache folder for one kind of thing ("plans", "kernels", "models"), not yet created.

    `EDGEMM_CACHE` names the root; else it is `edgemm` under `XDG_CACHE_HOME` or `~/.cache`.
    """
    root = os.environ.get("EDGEMM_CACHE")
    if root:
        return Path(root) / kind
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgemm" / kind
