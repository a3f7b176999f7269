"""The package's own names: what the command line does is one call in Python."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgemm


def test_the_four_calls_and_their_types() -> None:
    assert edgemm.open is edgemm.bundle.open  # type: ignore[attr-defined]
    for call in (edgemm.build, edgemm.run, edgemm.profile, edgemm.open):
        assert callable(call)
        assert call.__doc__
    assert {t.__name__ for t in (edgemm.BuildReport, edgemm.Summary, edgemm.ProfileReport, edgemm.Bundle)} == {
        "BuildReport",
        "Summary",
        "ProfileReport",
        "Bundle",
    }


def test_they_work_however_the_submodules_were_imported() -> None:
    code = "import edgemm.runner, edgemm.builder, edgemm.profiler.profile, edgemm\n" + "\n".join(
        f"assert callable(edgemm.{name})" for name in ("build", "run", "profile", "open")
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match='has no attribute "nothing"'):
        edgemm.nothing  # type: ignore[attr-defined]  # noqa: B018
