"""Shared by all tests: keep caches out of the user's home, and make tests/support importable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test run its own cache, unless the caller chose one."""
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
