"""The constant offsets of this user's rigs, as `edgemm calibrate-sync` measured them: one small JSON file.

A rig is a microphone and a camera. Its offset says how much later the camera stamps its pictures than the microphone
its sound; a run takes it off the one that is late, so that nothing comes from the future.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgemm.errors import UsageError
from edgemm.stream.sources.protocol import RigSource, Source

VERSION = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rig:
    """A microphone and a camera, by their identities, and what was measured."""

    microphone: str
    camera: str
    offset_ms: float
    """How much later pictures are stamped than sound; negative: earlier."""
    spread_ms: float
    events: int
    measured: str
    """When, in UTC: 2026-01-31 12:00."""


def path() -> Path:
    """Where the file is: `EDGEMM_RIGS`, else `edgemm/rigs.json` under `XDG_CONFIG_HOME` or `~/.config`."""
    named = os.environ.get("EDGEMM_RIGS")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "edgemm" / "rigs.json"


def find(microphone: str, camera: str) -> Rig | None:
    """What is known of this pair; None if it was never measured. Raises UsageError if the file is damaged."""
    return next((rig for rig in _load() if (rig.microphone, rig.camera) == (microphone, camera)), None)


def store(rig: Rig) -> Path:
    """Remember `rig` in the place of what was known of its pair; gives the file's path. Raises UsageError, OSError."""
    _save([*_others(rig.microphone, rig.camera), rig])
    return path()


def forget(microphone: str, camera: str) -> bool:
    """Forget a pair; False if nothing was known of it. Raises UsageError, OSError."""
    known = find(microphone, camera) is not None
    if known:
        _save(_others(microphone, camera))
    return known


def _others(microphone: str, camera: str) -> list[Rig]:
    return [rig for rig in _load() if (rig.microphone, rig.camera) != (microphone, camera)]


def _load() -> list[Rig]:
    file = path()
    try:
        found: Any = json.loads(file.read_text())
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']}, expected {VERSION}")
        return [_rig(entry) for entry in found["rigs"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"The offsets in {file} cannot be read ({error}). Delete it, and measure again: edgemm calibrate-sync"
        ) from error


def _rig(entry: Mapping[str, Any]) -> Rig:
    rig = Rig(**{field.name: entry[field.name] for field in fields(Rig)})
    if not (isinstance(rig.offset_ms, float | int) and abs(rig.offset_ms) < 10_000):
        raise ValueError(f"offset_ms is {rig.offset_ms!r}")
    return rig


def _save(rigs: list[Rig]) -> None:
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": VERSION, "rigs": [asdict(rig) for rig in rigs]}, indent=1) + "\n"
    # Whole or not at all: two measurements at once, or a full disk, leave a file that can be read.
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".rigs-")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def apply(sources: Sequence[Source]) -> None:
    """Tell entered sources to take off what was measured of them, and log that they do. Call it before they start.

    Raises UsageError if the file of offsets is damaged.
    """
    devices = [source for source in sources if isinstance(source, RigSource)]
    sounds = [(info.name, source) for source in devices for info in source.streams if info.kind == "audio"]
    pictures = [(info.name, source) for source in devices for info in source.streams if info.kind == "video"]
    if len(sounds) != 1:
        return  # an offset is against the one microphone
    [(sound, microphone)] = sounds
    known = {name: (camera, find(microphone.identity, camera.identity)) for name, camera in pictures}
    offsets_ns = {name: round(rig.offset_ms * 1e6) for name, (_, rig) in known.items() if rig is not None}
    # Only what is late can be moved: where sound is, pictures that are in step with it move along.
    late_ns = max([0, *(-offset_ns for offset_ns in offsets_ns.values())])
    microphone.delays_ns[sound] = late_ns
    for name, (camera, rig) in known.items():
        if rig is not None:
            camera.delays_ns[name] = offsets_ns[name] + late_ns
            _log.info(
                '"%s" is stamped %+.1f ms after "%s", as measured on %s (%d events): taken off.',
                *(name, rig.offset_ms, sound, rig.measured, rig.events),
            )
