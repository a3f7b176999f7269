"""The bundle: one `.edgemm` file that holds everything a device needs to run a recipe.

A bundle is a zip whose members are stored, not compressed: the same content gives the same bytes with every zlib,
and nothing can unpack to more than the file's own size. Its first member is `manifest.json` with the SHA-256 and
size of every other member; the archive's comment holds the SHA-256 of all bytes before it, so that one flipped bit
anywhere, the zip's own headers included, is found when the bundle is opened.

    manifest.json                    this module's `Manifest`
    recipe.json                      the recipe, normalised
    models/<model>/<precision>.onnx  the graphs, float and quantized (with `.onnx.data` beside one over 2 GB)
    models/<model>/ranges.json       the calibration ranges
    plans/<key>.plan                 compiled TensorRT plans
    kernels/<arch>/<source>.cubin    edgemm's CUDA kernels, compiled for the target

`docs/bundle.md` describes the format for other readers.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from edgemm import recipe as recipes
from edgemm.errors import BundleError, EdgemmError
from edgemm.recipe import Recipe
from edgemm.types import StatePair, TensorSpec

SCHEMA = 1
"""Version of the bundle's schema."""

SUFFIX = ".edgemm"
MANIFEST = "manifest.json"
RECIPE = "recipe.json"

_SEAL = re.compile(rb"edgemm sha256=([0-9a-f]{64})")
_SEAL_BYTES = len(b"edgemm sha256=") + 64
_MAX_MANIFEST_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest says of one member."""

    sha256: str
    size: int


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model in one precision."""

    file: str
    digest: str
    """The graph's digest (`edgemm.graph.model.Model.digest`): what ranges and plans are keyed by."""
    data: str | None = None
    """The member with external data, for a graph over 2 GB."""
    tensorrt: str | None = None
    """The same precision with Q/DQ placed for TensorRT's fusion rules, where they differ from onnxruntime's."""
    tensorrt_digest: str | None = None
    tensorrt_data: str | None = None
    operators: list[str] = []
    """edgemm's operators in the graph for TensorRT, which plugins run there unless the recipe says otherwise."""
    scores: dict[str, float] = {}
    """What was measured at build time, by name, e.g. agreement with float, milliseconds."""


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model of the bundle."""

    inputs: list[TensorSpec]
    """All inputs of the graph, state included."""
    outputs: list[TensorSpec]
    states: list[StatePair] = []
    variants: dict[str, Variant]
    """By precision: "fp32", "fp16", "int8", "fp8", "int4"."""
    precision: str
    """The variant that runs unless another is asked for."""
    reason: str
    """Why that precision was chosen."""
    ranges: str | None = None
    """The member with the calibration ranges."""


class PlanEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One compiled TensorRT plan."""

    file: str
    model: str
    key: dict[str, str]
    """What the plan depends on: flavour, version, compute capability, precision, graph, plugins ..."""


class KernelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of edgemm's CUDA kernels, compiled."""

    file: str
    source: str
    """The kernel's source: a name of `edgemm.kernels.compile.sources`."""
    arch: str
    """"sm_87"."""
    compiler: str
    digest: str
    """Hash of the kernels and of what launches them: taken only where edgemm has the same ones."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table of contents: what the bundle holds and what it was made from."""

    schema: int = SCHEMA
    edgemm: str
    """Version of edgemm that wrote the bundle."""
    name: str
    target: str
    """The device that the build was for, a name of `edgemm.engine.targets`, or "cpu"."""
    files: dict[str, FileEntry]
    models: dict[str, ModelEntry]
    plans: list[PlanEntry] = []
    kernels: list[KernelEntry] = []


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle. It holds no file open; members are read, and verified again, when asked for."""

    path: Path
    manifest: Manifest
    recipe: Recipe
    digest: str
    """SHA-256 of the whole content: two bundles with the same digest are the same."""

    @property
    def models(self) -> Mapping[str, ModelEntry]:
        """The models by name."""
        return self.manifest.models

    def read(self, member: str) -> bytes:
        """The verified bytes of one member. Raises BundleError."""
        entry = self._entry(member)
        with _open_member(self.path, member) as file:
            data = file.read(entry.size + 1)
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _changed(self.path, member)
        return data

    def extract(self, member: str, folder: Path) -> Path:
        """Write one member, verified, to `folder` under its own file name, and return where it is.

        For graphs with external data, which onnxruntime must read from disk. The file appears whole or not at all.
        """
        entry = self._entry(member)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / Path(member).name
        digest = hashlib.sha256()
        with _open_member(self.path, member) as file, atomic_file(target) as out:
            for block in iter(lambda: file.read(_CHUNK_BYTES), b""):
                digest.update(block)
                out.write(block)
            if digest.hexdigest() != entry.sha256:
                raise _changed(self.path, member)
        return target

    def _entry(self, member: str) -> FileEntry:
        entry = self.manifest.files.get(member)
        if entry is None:
            raise BundleError(f'{self.path} holds no "{member}".')
        return entry


def open(path: Path | str) -> Bundle:
    """Open and verify the bundle at `path`. Raises BundleError if anything in it is not as it was written."""
    path = Path(path)
    digest = _verify_seal(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise BundleError(f"{path} holds two members of the same name. Build it again.")
            for name, info in members.items():
                _check_member(path, name, info)
            if MANIFEST not in members:
                raise BundleError(f"{path} is a zip without {MANIFEST}: expected an edgemm bundle.")
            if members[MANIFEST].file_size > _MAX_MANIFEST_BYTES:
                raise BundleError(f"{path}: the manifest is larger than {_MAX_MANIFEST_BYTES >> 20} MB.")
            manifest = _decode_manifest(path, archive.read(MANIFEST))
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise BundleError(f"{path} is not a readable bundle: {error}. Build or copy it again.") from error
    listed, held = set(manifest.files), set(members) - {MANIFEST}
    if listed != held:
        odd = sorted(listed ^ held)[0]
        raise BundleError(
            f'{path}: "{odd}" is {"listed but missing" if odd in listed else "not in the manifest"}. '
            "The bundle was changed after it was built."
        )
    for name, entry in manifest.files.items():
        if members[name].file_size != entry.size:
            raise _changed(path, name)
    bundle = Bundle(path, manifest, _EMPTY_RECIPE, digest)
    recipe = recipes.from_json(bundle.read(RECIPE), f"{path}: {RECIPE}")
    return Bundle(path, manifest, recipe, digest)


def is_bundle(path: Path) -> bool:
    """True if the file looks like a bundle (a zip), sound or not."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK"
    except OSError:
        return False


def write(
    path: Path | str,
    *,
    recipe: Recipe,
    models: Mapping[str, ModelEntry],
    files: Mapping[str, bytes | Path],
    target: str = "cpu",
    plans: Sequence[PlanEntry] = (),
    kernels: Sequence[KernelEntry] = (),
) -> Bundle:
    """Write a bundle atomically and open it again.

    `files` maps member names to their bytes, or to files to copy (large graphs); the recipe is added. Until the
    last byte is written the old file at `path` stays as it was. Raises BundleError (disk full, no permission).
    """
    from edgemm import __version__

    path = Path(path)
    contents: dict[str, bytes | Path] = {RECIPE: recipe.to_json(), **files}
    for name in contents:
        if not _NAME.fullmatch(name):
            raise BundleError(f'"{name}" cannot be a member\'s name: expected letters, digits and "_.+-/".')
    manifest = Manifest(
        edgemm=__version__,
        name=recipe.name,
        target=target,
        files={name: _describe(content) for name, content in sorted(contents.items())},
        models=dict(models),
        plans=list(plans),
        kernels=list(kernels),
    )
    encoded = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1)
    with atomic_file(path) as out:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            archive.comment = b"edgemm sha256=" + b"0" * 64
            _add(archive, MANIFEST, encoded)
            for name, content in sorted(contents.items()):
                _add(archive, name, content)
        _seal(out)
    return open(path)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well, and vanishes when it does not.

    The data is on disk before the name is: after a power cut there is the old file or the new one. Raises
    BundleError for what the file system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BundleError(_refused(path, error)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _refused(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"No space left while writing {path}: free some, or write elsewhere with -o. Nothing was changed."
    if error.errno == errno.ENOENT:
        return f"Cannot write {path}: the folder {path.parent} does not exist."
    return f"Cannot write {path}: {error.strerror or error}. Nothing was changed."


def _describe(content: bytes | Path) -> FileEntry:
    if isinstance(content, bytes):
        return FileEntry(hashlib.sha256(content).hexdigest(), len(content))
    with content.open("rb") as file:
        return FileEntry(_digest(file), content.stat().st_size)


def _digest(file: IO[bytes], limit: int | None = None) -> str:
    digest = hashlib.sha256()
    left = limit
    while block := file.read(_CHUNK_BYTES if left is None else min(_CHUNK_BYTES, left)):
        digest.update(block)
        if left is not None:
            left -= len(block)
    return digest.hexdigest()


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> None:
    # A fixed date, system and mode: the bytes depend on the content alone.
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = 0o644 << 16
    info.compress_type = zipfile.ZIP_STORED
    if isinstance(content, bytes):
        archive.writestr(info, content)
        return
    info.file_size = content.stat().st_size
    with content.open("rb") as source, archive.open(info, "w") as sink:
        shutil.copyfileobj(source, sink, _CHUNK_BYTES)


def _seal(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = _digest(file, size - _SEAL_BYTES)
    file.seek(size - _SEAL_BYTES)
    file.write(b"edgemm sha256=" + digest.encode())


def _verify_seal(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                raise BundleError(
                    f"{path} is not an edgemm bundle. Make one: edgemm build engine MODEL.onnx -o OUT{SUFFIX}"
                )
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _SEAL_BYTES))
            seal = _SEAL.fullmatch(file.read())
            if seal is None:
                raise BundleError(f"{path} has no seal at its end: it is truncated, or not an edgemm bundle.")
            file.seek(0)
            digest = _digest(file, size - _SEAL_BYTES)
    except OSError as error:
        raise BundleError(f"Cannot read {path}: {error.strerror}.") from error
    if digest != seal[1].decode():
        raise BundleError(
            f"{path} is damaged or was changed: its SHA-256 is {digest[:12]}..., the seal says "
            f"{seal[1][:12].decode()}.... Build or copy it again."
        )
    return digest


def _check_member(path: Path, name: str, info: zipfile.ZipInfo) -> None:
    if not _NAME.fullmatch(name) or ".." in name.split("/"):
        raise BundleError(f'{path} holds a member named "{name}", which no bundle has. It was not opened.')
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise BundleError(f'{path}: "{name}" is compressed or encrypted, expected stored. It was not opened.')


def _decode_manifest(path: Path, data: bytes) -> Manifest:
    try:
        schema = msgspec.json.decode(data, type=dict[str, Any]).get("schema")
    except msgspec.DecodeError as error:
        raise BundleError(f"{path}: the manifest is not JSON: {error}.") from error
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise BundleError(
            f"{path} has schema version {schema!r}, this edgemm reads {SCHEMA}. "
            + ("Update edgemm: pip install -U edgemm" if newer else "Build it again.")
        )
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"{path}: the manifest is malformed: {error}. Build it again.") from error


@contextlib.contextmanager
def _open_member(path: Path, member: str) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            yield file
    except (zipfile.BadZipFile, OSError, KeyError) as error:
        if isinstance(error, EdgemmError):
            raise
        raise BundleError(f'{path}: cannot read "{member}": {error}. Was it replaced while open?') from error


def _changed(path: Path, member: str) -> BundleError:
    return BundleError(f'{path}: "{member}" is not what the manifest says. Build or copy the bundle again.')


_EMPTY_RECIPE = Recipe(edgemm=recipes.SCHEMA, name="", models={})
