"""Lets the same tests run against CUDA sources with a planted bug (tests/support/planted.py)."""

from __future__ import annotations

import os
from pathlib import Path

from edgemm.kernels import sources

_PLANTED = os.environ.get("EDGEMM_TEST_PLANTED")
if _PLANTED:
    sources._HERE = Path(_PLANTED)  # a folder that holds csrc/ and emulator/, as an installed edgemm/kernels does
