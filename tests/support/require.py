"""Skips that say what would unskip them, and that fail where they must not happen."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def require(module: str, extra: str, install: str = "") -> ModuleType:
    """Import `module`, or skip with the extra that installs it, or with `install` for a dependency group's.

    `EDGEMM_CI_REQUIRE` holds extras and groups, separated by commas, whose absence is a failure: CI installs them.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = install or f'pip install "edgemm[{extra}]"'
        reason = f"needs {module} ({error}): {remedy}"
        if required(extra):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def required(what: str) -> bool:
    """True where the absence of `what` is a failure, not a skip: `EDGEMM_CI_REQUIRE` names it."""
    return what in os.environ.get("EDGEMM_CI_REQUIRE", "").split(",")
