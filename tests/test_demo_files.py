"""The committed files of the demo model: what PROVENANCE.md says of them, and that they score as it says."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

import edgemm
from edgemm import demo

HOME = Path(__file__).parents[1] / "calibration" / "av_digits"


def test_every_hash_in_the_provenance_is_right() -> None:
    listed = re.findall(r"\| `([\w.]+)` \| \d+ \| `([0-9a-f]{64})` \|", (HOME / "PROVENANCE.md").read_text())
    assert len(listed) == 6
    for name, digest in listed:
        assert hashlib.sha256((HOME / name).read_bytes()).hexdigest() == digest, name


def test_sizes_are_what_a_checkout_can_carry() -> None:
    sizes = {path.name: path.stat().st_size for path in HOME.iterdir() if path.is_file()}
    assert sizes["av_digits.onnx"] <= 2_000_000
    assert sizes["clip.mkv"] <= 1_500_000


def test_the_float_model_meets_its_targets_on_the_test_set(tmp_path: Path) -> None:
    edgemm.build(HOME / "recipe.toml", tmp_path / "d.edgemm", precision="fp32")
    found = demo.score_test(edgemm.open(tmp_path / "d.edgemm"), "fp32", HOME / "test.npz")
    assert found["clean"].digit >= 0.99
    assert found["clean"].match >= 0.88
    assert found["noise at -5 dB"].digit >= 0.98
    assert found["occluded picture"].digit >= 0.90


def test_the_clip_is_scored_by_its_rule() -> None:
    truth = json.loads((HOME / "clip.truth.json").read_text())
    nothing = demo.score_clip([], truth)
    assert (nothing.digit, nothing.match) == (0, 0)
    assert nothing.matches == len(truth["segments"]) == 40
    assert demo.score_clip([], truth, until_s=truth["segments"][3]["end_s"]).matches == 4


def test_files_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "edgemm" / "demo.py"))
    with pytest.raises(edgemm.errors.UsageError, match="demo's files are not in this installation"):
        demo.folder()
