"""The table of devices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgemm.engine.targets import TARGETS, get, of_device
from edgemm.errors import UsageError

EVERY = list({target.name: target for target in TARGETS.values()}.values())


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
    assert (release.name, release.tensorrt, release.cuda, release.python) == ("JetPack 6.2", "10.3.0", "12.6", "3.10")


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
