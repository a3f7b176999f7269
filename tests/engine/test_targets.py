"""The table of devices."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgemm.cli.main import app
from edgemm.engine.target_checks import CHECKED
from edgemm.engine.targets import TARGETS, get, of_device, refusal
from edgemm.errors import UsageError

EVERY = list({target.name: target for target in TARGETS.values()}.values())


@pytest.mark.parametrize("name", list(CHECKED))
def test_what_is_said_to_be_checked_is_in_the_table(name: str) -> None:
    entry = get(name)
    assert entry.checked == CHECKED[name]
    for figure, url in entry.checked.items():
        given = entry.peak[figure] if figure in entry.peak else getattr(entry, figure)
        assert given is not None, figure
        assert url.startswith("http")
        assert figure not in entry.unchecked


def test_what_was_found_only_once_is_named() -> None:
    assert get("orin-nano-8gb").unchecked == ()
    assert get("orin-nano-4gb").unchecked == ("bandwidth_gb_s", "dla_cores")
    assert get("a10").unchecked == ("memory_gb", "bandwidth_gb_s", "fp32", "fp16", "int8")
    assert get("rtx-sm86").unchecked == (), "it gives no figures"
    result = CliRunner().invoke(app, ["targets"])
    line = next(line for line in result.output.splitlines() if line.startswith("orin-nano-4gb "))
    assert line.endswith("bandwidth, DLA")
    assert "10.16.2 (JetPack 7.2), 10.3.0 (JetPack 6.2)" in line
    listed = json.loads(CliRunner().invoke(app, ["targets", "--json"]).output)
    assert listed["orin-nano-4gb"]["unchecked"] == ["bandwidth_gb_s", "dla_cores"]


def test_kernels_are_for_the_oldest_driver() -> None:
    assert get("orin-nano").oldest_cuda == (12, 6)
    assert get("thor").oldest_cuda == (13, 0)
    assert get("agx-xavier").oldest_cuda is None


@pytest.mark.parametrize(
    ("name", "precision", "words"),
    [
        ("rtx-sm86", "fp8", "SM86 and has no kernels for fp8, which needs SM89 or newer"),
        ("t4", "int4", "SM75 and has no kernels for int4, which needs SM80 or newer"),
        ("rtx-sm89", "fp8", None),
        ("thor", "fp8", None),
        ("orin-nano", "int4", None),
        ("t4", "int8", None),
    ],
)
def test_precisions_that_a_device_lacks(name: str, precision: str, words: str | None) -> None:
    reason = refusal(get(name), precision)
    assert reason is None if words is None else words in str(reason)


@pytest.mark.parametrize("target", EVERY, ids=lambda target: target.name)
def test_an_entry_is_whole(target: object) -> None:
    entry = get(target.name)  # type: ignore[attr-defined]
    assert re.fullmatch(r"\d+\.\d", entry.compute_capability)
    assert re.fullmatch(r"sm_\d{2,3}", entry.sm)
    assert set(entry.peak) == {"fp32", "fp16", "int8", "fp8", "fp4"}
    assert entry.source
    assert entry.releases
    known = [value for value in entry.peak.values() if value is not None]
    assert all(value > 0 for value in known)
    assert (entry.bandwidth_gb_s is None) == (entry.memory_gb is None)
    assert entry.release is None or entry.release in entry.releases


@pytest.mark.parametrize(
    ("name", "dense_int8"),
    # Half of the sparse TOPS that NVIDIA publishes for the GPU alone: AGX Orin 64GB 170, Orin Nano 8GB 40, Super 67,
    # Orin Nano 4GB 20, Super 34, AGX Orin 32GB 108.
    [
        ("agx-orin-64gb", 85),
        ("agx-orin-32gb", 54),
        ("orin-nano-8gb", 20),
        ("orin-nano-8gb-super", 33.5),
        ("orin-nano-4gb", 10),
        ("orin-nano-4gb-super", 17),
    ],
)
def test_the_derived_rates_of_orin_agree_with_the_published(name: str, dense_int8: float) -> None:
    assert get(name).peak["int8"] == pytest.approx(dense_int8, rel=0.03)


def test_short_names() -> None:
    assert get("orin-nano") is get("Orin-Nano-8GB")
    assert get("thor").compute_capability == "11.0"


def test_a_jetpack_brings_its_tensorrt() -> None:
    release = get("orin-nano").release
    assert release is not None
    assert (release.name, release.tensorrt, release.cuda, release.python) == ("JetPack 7.2", "10.16.2", "13.2", "3.12")
    assert [known.tensorrt for known in get("orin-nano").releases] == ["10.16.2", "10.3.0"]


def test_xavier_has_no_tensorrt_that_serves() -> None:
    assert get("agx-xavier").release is None
    assert get("agx-xavier").sm == "sm_72"


def test_an_unknown_name_gets_near_ones() -> None:
    with pytest.raises(UsageError, match=r'no target "orin-nono"; did you mean orin-nano'):
        get("orin-nono")
    with pytest.raises(UsageError, match=r'no target "@"; `edgemm targets` lists all'):
        get("@")


def test_the_device_at_hand() -> None:
    assert of_device("NVIDIA GeForce RTX 4090", "8.9").name == "rtx-4090"
    unknown = of_device("NVIDIA Future", "13.0")
    assert (unknown.title, unknown.sm, unknown.family) == ("NVIDIA Future", "sm_130", "rtx")
    assert of_device("Orin", "8.7").is_integrated


@pytest.mark.parametrize(
    ("board", "gigabytes", "expected"),
    [
        ("NVIDIA Jetson AGX Orin Developer Kit", 61.4, "agx-orin-64gb"),
        ("NVIDIA Jetson AGX Orin", 29.9, "agx-orin-32gb"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 15.3, "orin-nx-16gb"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7.4, "orin-nano-8gb-super"),
        ("NVIDIA Jetson Orin Nano Developer Kit", 3.3, "orin-nano-4gb"),
        ("NVIDIA Jetson Orin NX", 0, "orin-nx-8gb"),
        ("NVIDIA Jetson Orin NX", 99, "orin-nx-8gb"),
        ("Some other board", 7.4, "device"),
    ],
)
def test_a_jetson_is_known_by_its_board(board: str, gigabytes: float, expected: str) -> None:
    assert of_device("Orin", "8.7", int(gigabytes * 1e9), board).name == expected


def test_the_board_is_read_from_the_device_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes(b"NVIDIA Jetson AGX Thor Developer Kit\0")
    monkeypatch.setattr("edgemm.engine.targets._DEVICE_TREE", file)
    assert of_device("NVIDIA Thor", "11.0", 122 * 10**9).name == "thor-t5000"


def test_others_share_their_memory_too() -> None:
    assert get("dgx-spark").is_integrated
