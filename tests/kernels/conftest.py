"""Lets the same tests run against CUDA sources with a planted bug (tests/support/planted.py), and on a GPU."""

from __future__ import annotations

import os
from pathlib import Path

from edgemm.kernels import launch, sources

_PLANTED = os.environ.get("EDGEMM_TEST_PLANTED")
if _PLANTED:
    sources._HERE = Path(_PLANTED)  # a folder that holds csrc/ and emulator/, as an installed edgemm/kernels does

if os.environ.get("EDGEMM_TEST_RUNNER") == "device":
    from device_runner import DeviceTestRunner

    launch.EmulatorRunner = DeviceTestRunner
