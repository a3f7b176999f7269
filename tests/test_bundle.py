"""The bundle: round trips, atomic writing, and every way a file can be wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm import bundle, recipe
from edgemm.bundle import Bundle, ModelEntry, Variant
from edgemm.errors import BundleError
from edgemm.recipe import Recipe
from edgemm.types import StatePair, TensorSpec

SPEC = TensorSpec("x", "float32", (1, "n", None))


def a_recipe(name: str = "demo") -> Recipe:
    return recipe.parse(f'edgemm = 1\nname = "{name}"\n[models.m]\nfile = "m.onnx"\n')


def an_entry() -> ModelEntry:
    return ModelEntry(
        inputs=[SPEC],
        outputs=[TensorSpec("y", "float32", (1,))],
        states=[StatePair("h0", "hn")],
        variants={"fp32": Variant(file="models/m/fp32.onnx", digest="d")},
        precision="fp32",
        reason="asked for",
    )


def make(path: Path, graph: bytes = b"graph", name: str = "demo") -> Bundle:
    return bundle.write(path, recipe=a_recipe(name), models={"m": an_entry()}, files={"models/m/fp32.onnx": graph})


def reseal(path: Path) -> None:
    """Make the seal right again, so that the checks behind it are reached."""
    data = path.read_bytes()
    body = data[: -len(b"edgemm sha256=") - 64]
    path.write_bytes(body + b"edgemm sha256=" + hashlib.sha256(body).hexdigest().encode())


def rewrite(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.comment = b"edgemm sha256=" + b"0" * 64
        for name, data in members.items():
            archive.writestr(name, data)
    reseal(path)


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    made = make(tmp_path / "a.edgemm")
    opened = bundle.open(tmp_path / "a.edgemm")
    assert opened == made
    assert opened.recipe == a_recipe()
    assert opened.models["m"] == an_entry()
    assert opened.read("models/m/fp32.onnx") == b"graph"
    assert bundle.is_bundle(tmp_path / "a.edgemm")


@settings(max_examples=25)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9_]{1,8}(/[a-z0-9_][a-z0-9_.]{0,8}){0,2}", fullmatch=True), st.binary(), max_size=4
    )
)
def test_round_trip_of_any_files_and_the_same_bytes_each_time(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("b")
    files.pop("recipe.json", None)
    files.pop("manifest.json", None)
    for name in ("one", "two"):
        bundle.write(folder / name, recipe=a_recipe(), models={}, files=files)
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()
    opened = bundle.open(folder / "one")
    assert {name: opened.read(name) for name in files} == files


def test_a_member_can_be_a_file_and_is_the_same_as_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"g" * 3_000_000)
    for name, content in (("a", b"g" * 3_000_000), ("b", tmp_path / "g.onnx")):
        bundle.write(tmp_path / name, recipe=a_recipe(), models={}, files={"models/g.onnx": content})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    extracted = bundle.open(tmp_path / "b").extract("models/g.onnx", tmp_path / "out")
    assert extracted == tmp_path / "out" / "g.onnx"
    assert extracted.read_bytes() == b"g" * 3_000_000


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    make(tmp_path / "a.edgemm")
    data = (tmp_path / "a.edgemm").read_bytes()
    broken = tmp_path / "broken.edgemm"
    for position in range(len(data)):
        broken.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        with pytest.raises(BundleError):
            bundle.open(broken)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    make(tmp_path / "a.edgemm")
    data = (tmp_path / "a.edgemm").read_bytes()
    broken = tmp_path / "broken.edgemm"
    for size in range(0, len(data), 7):
        broken.write_bytes(data[:size])
        with pytest.raises(BundleError, match=r"not an edgemm bundle|truncated"):
            bundle.open(broken)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil", "named"),
        ("/etc/evil", "named"),
        ("a/../../evil", "named"),
        ("a\\evil", "named"),
        ("odd", "not in the"),
    ],
)
def test_members_that_no_bundle_has(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / "a.edgemm"
    make(path)
    rewrite(path, {**members_of(path), name: b"x"})
    with pytest.raises(BundleError, match=words):
        bundle.open(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.edgemm"]


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.edgemm"
    make(path)
    members = members_of(path)
    rewrite(path, {**members, "models/m/fp32.onnx": b"\0" * 50_000_000}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(BundleError, match="compressed or encrypted, expected stored"):
        bundle.open(path)


def test_a_changed_member_under_a_right_seal(tmp_path: Path) -> None:
    path = tmp_path / "a.edgemm"
    make(path)
    members = members_of(path)
    rewrite(path, {**members, "models/m/fp32.onnx": b"GRAPH"})
    with pytest.raises(BundleError, match="not what the manifest says"):
        bundle.open(path).read("models/m/fp32.onnx")
    with pytest.raises(BundleError, match="not what the manifest says"):
        bundle.open(path).extract("models/m/fp32.onnx", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    rewrite(path, {**members, "models/m/fp32.onnx": b"longer than it was"})
    with pytest.raises(BundleError, match="not what the manifest says"):
        bundle.open(path)
    del members["models/m/fp32.onnx"]
    rewrite(path, members)
    with pytest.raises(BundleError, match="listed but missing"):
        bundle.open(path)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (b'{"schema": 2}', "schema version 2, this edgemm reads 1. Update edgemm"),
        (b'{"schema": 0}', "schema version 0, this edgemm reads 1. Build it again"),
        (b"{}", "schema version None"),
        (b'{"schema": 1}', "malformed"),
        (b"not json", "not JSON"),
    ],
)
def test_manifests_that_cannot_be_read(tmp_path: Path, manifest: bytes, words: str) -> None:
    path = tmp_path / "a.edgemm"
    make(path)
    rewrite(path, {**members_of(path), "manifest.json": manifest})
    with pytest.raises(BundleError, match=words):
        bundle.open(path)


def test_other_files_are_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BundleError, match=r"is not an edgemm bundle\. Make one: edgemm build engine"):
        bundle.open(tmp_path / "text")
    with pytest.raises(BundleError, match="Cannot read"):
        bundle.open(tmp_path / "nothing")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.comment = b"edgemm sha256=" + b"0" * 64
        archive.writestr("a", b"b")
    reseal(tmp_path / "zip")
    with pytest.raises(BundleError, match=r"a zip without manifest\.json"):
        bundle.open(tmp_path / "zip")
    assert not bundle.is_bundle(tmp_path / "nothing")


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.edgemm"
    make(path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("models/m/fp32.onnx", b"second")
    reseal(path)
    with pytest.raises(BundleError, match="two members of the same name"):
        bundle.open(path)


def test_a_failed_write_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.edgemm"
    old = make(path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="No space left while writing"):
        make(path, b"another")
    monkeypatch.undo()
    assert bundle.open(path) == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.edgemm"]


def test_an_interrupt_leaves_the_old_bundle(tmp_path: Path) -> None:
    path = tmp_path / "a.edgemm"
    old = make(path)

    def interrupted() -> None:
        with bundle.atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert bundle.open(path) == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.edgemm"]


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the folder .* does not exist"):
        make(tmp_path / "no" / "a.edgemm")


def test_names_and_members_are_checked(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be a member's name"):
        bundle.write(tmp_path / "a", recipe=a_recipe(), models={}, files={"../x": b""})
    with pytest.raises(BundleError, match='holds no "nothing"'):
        make(tmp_path / "a").read("nothing")


def test_a_bundle_replaced_while_open(tmp_path: Path) -> None:
    path = tmp_path / "a.edgemm"
    opened = make(path)
    make(path, b"other", name="other")
    with pytest.raises(BundleError, match="not what the manifest says"):
        opened.read("models/m/fp32.onnx")
    path.write_bytes(b"PK gone")
    with pytest.raises(BundleError, match="Was it replaced while open"):
        opened.read("models/m/fp32.onnx")
