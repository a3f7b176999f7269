"""Compiled plans on disk: one file a plan, made once, checked whenever it is read, offered only where it fits."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from edgemm import cache
from edgemm.bundle import atomic_file
from edgemm.engine.file_lock import locked, remove_if_free
from edgemm.engine.tensorrt.plan import Plan, PlanKey, key_of, read_plan
from edgemm.errors import BundleError, EngineError

_SUFFIX = ".plan"

_WORDS = {
    "flavour": "the TensorRT flavour",
    "version": "the TensorRT version",
    "compute_capability": "the compute capability",
    "gpu": "the GPU",
    "dla": "the DLA core",
    "precision": "the precision",
    "plugins": "the plugins",
    "graph": "the graph",
    "options": "the build options",
    "compatibility": "the compatibility mode",
}


@dataclass(frozen=True)
class Host:
    """Where a plan is to run: what `preflight` compares its key with."""

    flavour: str
    version: str
    compute_capability: str
    """"8.7"."""
    gpu: str
    integrated: bool = False
    """True on a Jetson: hardware compatibility levels do not reach there."""
    dla_cores: int = 0
    plugins: str = ""
    """Hash of the plugins registered here, "" if none."""


@dataclass(frozen=True)
class Cached:
    """A plan and how it was come by."""

    plan: Plan
    origin: Literal["cache", "built"]
    notes: tuple[str, ...] = ()
    """Sentences for the user: why an older plan was not taken, that the plan could not be kept."""


@dataclass(frozen=True)
class Entry:
    """One plan in the cache, without its bytes."""

    path: Path
    key: PlanKey
    size_bytes: int
    made_s: float
    """When it was written, in seconds since the epoch."""


def preflight(key: PlanKey, host: Host) -> None:
    """Raise EngineError unless a plan with this key may be handed to the TensorRT of `host`.

    TensorRT itself is not asked: handed a plan of another version or GPU it may refuse, or crash.
    """
    rebuild = "Compile it again here: edgemm build engine BUNDLE"
    if key.flavour != host.flavour:
        raise EngineError(f"The plan was compiled by {key.flavour}, this is {host.flavour}. {rebuild}")
    if not _version_fits(key, host):
        raise EngineError(
            f"The plan was compiled by {key.flavour} {key.version}, this is {host.version} (a plan belongs to one "
            f"version; a JetPack or package update changes it). {rebuild}"
        )
    if not _capability_fits(key, host):
        raise EngineError(
            f"The plan targets {key.sm} (compute capability {key.compute_capability}), this device is "
            f"sm_{host.compute_capability.replace('.', '')} ({host.gpu}). {rebuild}"
        )
    if key.gpu not in ("any", host.gpu) and not _hardware_level(key):
        raise EngineError(f'The plan was tuned on "{key.gpu}", this device is "{host.gpu}". {rebuild}')
    if key.dla and int(key.dla) >= host.dla_cores:
        raise EngineError(
            f"The plan uses DLA core {key.dla}, this device has {host.dla_cores} DLA cores. "
            "Compile it again without --dla."
        )
    if key.plugins and key.plugins != host.plugins:
        raise EngineError(
            f"The plan uses edgemm's plugins in version {key.plugins[:12]}, here is "
            f"{host.plugins[:12] or 'none'}. {rebuild}"
        )


def _version_fits(key: PlanKey, host: Host) -> bool:
    if key.version == host.version:
        return True
    built, here = _numbers(key.version), _numbers(host.version)
    return "version" in key.compatibility.split("+") and built[:1] == here[:1] and built <= here


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _hardware_level(key: PlanKey) -> str:
    return next((part for part in key.compatibility.split("+") if part not in ("", "version")), "")


def _capability_fits(key: PlanKey, host: Host) -> bool:
    if key.compute_capability == host.compute_capability:
        return True
    ampere_plus = _hardware_level(key) == "AMPERE_PLUS" and not host.integrated
    return ampere_plus and _numbers(host.compute_capability) >= (8, 0)


class PlanCache:
    """A folder of plans.

    Each plan is one file named by its key's id, which appears whole or not at all. It is verified against its own
    hashes and the wanted key whenever it is read; one that fails is removed. Plans are machine code: a folder or file
    that another user could have written is refused.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache.folder("plans") if folder is None else folder

    def path(self, key: PlanKey) -> Path:
        """Where the plan with this key is kept, whether or not it is there."""
        return self.folder / (key.id + _SUFFIX)

    def get(self, key: PlanKey) -> Plan | None:
        """Return the plan, or None if there is none. A damaged entry is removed, and EngineError says why."""
        path = self.path(key)
        try:
            refuse_foreign(self.folder)
            refuse_foreign(path)
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EngineError(
                f"Cannot read the cached plan {path}: {error.strerror}. Check its permissions."
            ) from error
        try:
            plan = read_plan(content)
            if plan.key != key:
                raise EngineError("The plan is another one than its file name says. Compile it again.")
        except EngineError as error:
            path.unlink(missing_ok=True)
            raise EngineError(f"{path}: {error} The file was removed.") from error
        return plan

    def put(self, plan: Plan) -> Path:
        """Keep a plan, whole or not at all. Raises EngineError if the disk refuses."""
        path = self.path(plan.key)
        self._make_folder()
        try:
            with atomic_file(path) as file:
                file.write(plan.to_bytes())
        except BundleError as error:
            raise EngineError(f"The plan was not kept: {error}") from error
        return path

    def get_or_build(
        self, key: PlanKey, build: Callable[[], Plan], on_wait: Callable[[], None] | None = None
    ) -> Cached:
        """Return the plan from the cache, or build and keep it: once, however many processes ask at the same time.

        `on_wait` is called when another process is building it. If the disk refuses the new plan it is returned all
        the same, with a note. Raises what `build` raises, and EngineError if the cache folder cannot be used.
        """
        self._make_folder()
        with locked(self._lock(key), on_wait):
            self._sweep(key)
            return self._get_or_build(key, build)

    def list(self) -> tuple[Entry, ...]:
        """Return what is in the cache, newest first. Files that are no plans are left out."""
        return tuple(sorted(self._entries(), key=lambda entry: entry.made_s, reverse=True))

    def clear(self) -> int:
        """Delete every plan and every trace of interrupted builds; return the bytes freed.

        A plan that another process is building stays.
        """
        freed = 0
        if not self.folder.is_dir():
            return 0
        for lock in self.folder.glob("*.lock"):
            if remove_if_free(lock):
                freed += sum(_remove(file) for file in self.folder.glob(f".{lock.stem}{_SUFFIX}.*.tmp"))
        return freed + sum(_remove(file) for file in self.folder.glob("*" + _SUFFIX))

    def why_absent(self, key: PlanKey) -> str | None:
        """Say why a plan that is kept for the same graph does not serve, or None if there is no such plan.

        "The cached plan was compiled for the TensorRT version 10.3.0, here it is 10.7.0: compiling again."
        """
        nearest: list[str] | None = None
        for entry in self._entries():
            if entry.key.graph != key.graph:
                continue
            differs = [
                item.name for item in fields(PlanKey) if getattr(entry.key, item.name) != getattr(key, item.name)
            ]
            if not differs:
                return None
            if nearest is None or len(differs) < len(nearest):
                nearest = differs
                other = entry.key
        if nearest is None:
            return None
        name = nearest[0]
        then, now = getattr(other, name), getattr(key, name)
        if name in ("graph", "options", "plugins"):
            return f"The cached plan was compiled with other values of {_WORDS[name]}: compiling again."
        return (
            f"The cached plan was compiled for {_WORDS[name]} {then or 'none'}, here it is {now or 'none'}: "
            "compiling again."
        )

    def _get_or_build(self, key: PlanKey, build: Callable[[], Plan]) -> Cached:
        notes = []
        try:
            plan = self.get(key)
        except EngineError as error:
            plan = None
            notes.append(f"{error} Compiling again.")
        if plan is not None:
            return Cached(plan, "cache")
        if not notes:
            reason = self.why_absent(key)
            notes += [reason] if reason else []
        plan = build()
        if plan.key != key:
            raise EngineError(
                "The plan that was built has another key than the one asked for: a setting changed during the build. "
                "Start it again."
            )
        try:
            self.put(plan)
        except EngineError as error:
            notes.append(f"{error} It is used now and must be compiled again next time.")
        return Cached(plan, "built", tuple(notes))

    def _entries(self) -> Iterator[Entry]:
        if not self.folder.is_dir():
            return
        for path in self.folder.glob("*" + _SUFFIX):
            try:
                info = path.stat()
                key = key_of(path.read_bytes())
            except (OSError, EngineError):
                continue
            yield Entry(path, key, info.st_size, info.st_mtime)

    def _lock(self, key: PlanKey) -> Path:
        return self.folder / (key.id + ".lock")

    def _sweep(self, key: PlanKey) -> None:
        """Remove what a killed build left. The lock is held, so nobody is writing it."""
        for file in self.folder.glob(f".{key.id}{_SUFFIX}.*.tmp"):
            file.unlink(missing_ok=True)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise EngineError(
                f"Cannot make the plan cache {self.folder}: {error.strerror}. "
                "Set EDGEMM_CACHE to a folder that you can write."
            ) from error
        refuse_foreign(self.folder)


def _remove(file: Path) -> int:
    try:
        size = file.stat().st_size
        file.unlink()
    except FileNotFoundError:
        return 0
    return size


def refuse_foreign(path: Path) -> None:
    """Raise EngineError if another user owns `path` or could have written it."""
    info = path.stat()
    if info.st_uid not in (os.getuid(), 0) or (info.st_mode & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX):
        raise EngineError(
            f"{path} belongs to or can be written by another user, and a plan is machine code. "
            f"Run: chown {os.getuid()} {path} && chmod go-w {path}, or set EDGEMM_CACHE to a folder of your own."
        )
