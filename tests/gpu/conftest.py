"""Everything in this folder waits for a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgemm.engine.gpu import find_gpu

HERE = Path(__file__).parent
REASON = "waits for a GPU: run `python tests/gpu/run.py` on a machine with an NVIDIA GPU and its driver"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder, and skip it where there is no GPU; fail instead if EDGEMM_CI_REQUIRE has "gpu"."""
    mine = [item for item in items if HERE in item.path.parents]
    if not mine:
        return
    missing = find_gpu() is None
    required = "gpu" in os.environ.get("EDGEMM_CI_REQUIRE", "").split(",")
    for item in mine:
        item.add_marker(pytest.mark.gpu)
        if missing and not required:
            item.add_marker(pytest.mark.skip(reason=REASON))
