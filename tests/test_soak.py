"""Three minutes of bench/soak.py: what an hour of it checks, with every kind of fault at least once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sound_server import require_sound

require_sound()

pytestmark = pytest.mark.real_time

SOAK = Path(__file__).parents[1] / "bench" / "soak.py"


@pytest.mark.slow
def test_three_minutes_of_faults_lose_nothing_without_a_cause() -> None:
    done = subprocess.run(
        [sys.executable, str(SOAK), "--minutes", "3"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    # Eight faults at twenty seconds each: every kind.
    for kind in ("camera killed", "camera garbage", "microphone killed", "engine slow", "camera clock", "sink stalled"):
        assert f"| {kind} | " in done.stdout
