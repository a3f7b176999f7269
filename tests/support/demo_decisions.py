"""What the demo model decides on its clip: live, and as a file at every phase of a hop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import edgemm
from edgemm.stream.decode import Label, Score
from edgemm.stream.frames import AudioChunk, Event
from edgemm.stream.results import Result
from edgemm.stream.sources.media import MediaSource
from edgemm.stream.sources.protocol import AudioWant, VideoWant

DEMO = Path(__file__).parents[2] / "calibration" / "av_digits"
Decision = tuple[int, bool]
Made = tuple[int, int, bool]
"""Time of a result, digit, match."""


def segments(seconds: float) -> list[dict[str, float]]:
    """The clip's segments that are over at `seconds`."""
    truth = json.loads((DEMO / "clip.truth.json").read_text())
    return [segment for segment in truth["segments"] if segment["end_s"] <= seconds]


def build(path: Path) -> Path:
    """The demo's bundle in fp32."""
    edgemm.build(DEMO / "recipe.toml", path, precision="fp32")
    return path


def made(results: Iterable[Result]) -> list[Made]:
    """Time, digit and match of each result."""
    found: list[Made] = []
    for result in results:
        digit, match = result.outputs["digit"], result.outputs["match"]
        assert isinstance(digit, Label)
        assert isinstance(match, Score)
        found.append((result.time_ns, digit.index, bool(match.above)))
    return found


def decisions(results: Sequence[Made], begin_ns: int, chosen: Sequence[dict[str, float]]) -> list[Decision]:
    """Digit and match of each segment: of the first result whose window lies within it."""
    found = []
    for segment in chosen:
        first_ns = begin_ns + round(segment["decide_at_s"] * 1e9)
        time_ns, digit, match = next(result for result in results if result[0] >= first_ns)
        assert time_ns < begin_ns + round(segment["end_s"] * 1e9), "no result in time for a segment"
        found.append((digit, match))
    return found


class _Late(MediaSource):
    """The clip, of which a session sees only what comes after `skip_ns`: its steps fall otherwise on the clip."""

    skip_ns = 0

    def __iter__(self) -> Iterator[Event]:
        first = None
        for event in super().__iter__():
            if isinstance(event, AudioChunk) and event.capture_ns >= self.skip_ns:
                first = event.capture_ns if first is None else first
            if first is not None and event.end_ns >= first:
                yield event


def file_decisions(bundle: Path, seconds: float) -> list[set[Decision]]:
    """What the clip as a file decides on each segment, wherever in a hop its steps fall."""
    chosen = segments(seconds)
    found: list[set[Decision]] = [set() for _ in chosen]
    for skip_ms in range(0, 100, 10):
        source = _Late(DEMO / "clip.mkv", [AudioWant("mic"), VideoWant("camera", "gray")])
        source.skip_ns = skip_ms * 10**6
        results = made(edgemm.run(bundle, input=source, duration_s=seconds).results)
        for known, decision in zip(found, decisions(results, 0, chosen), strict=True):
            known.add(decision)
    return found


def assert_same(live: Sequence[Made], begin_ns: int, seconds: float, from_file: Sequence[set[Decision]]) -> None:
    """Live decisions are those of the file. In few segments it matters where in a hop the steps fall: chance."""
    assert sum(len(known) == 1 for known in from_file) >= 0.7 * len(from_file)
    found = decisions(live, begin_ns, segments(seconds))
    assert len(found) == len(from_file)
    for segment, decision, known in zip(segments(seconds), found, from_file, strict=True):
        assert decision in known, segment
