"""A run in a browser: pictures, sound level and results as they come, age, skew and losses as they went.

Everything is sent in messages of one form: 4 bytes, the length of what follows as JSON (big-endian), that JSON, then
the JPEGs that it lists under "pictures". The first message to a client has "config" and the history of the plots.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal

import msgspec
import numpy as np

from edgemm.recipe import streamed
from edgemm.stream.decode import Decoded, Label, Score, Vector
from edgemm.stream.frames import AudioChunk, End, Event, VideoFrame
from edgemm.stream.results import Result
from edgemm.stream.sinks import address
from edgemm.stream.sinks.protocol import Run, Snapshot
from edgemm.stream.sinks.server import Server
from edgemm.view.page import page
from edgemm.view.picture import jpeg

TICK_S = 1 / 15
"""Messages and pictures a second: smooth, and 3 % of a processor core for 640 x 480."""

HISTORY = 4096
"""Points of the plots that a new client is given."""

QUEUE = 2
"""Messages that may wait for a client: whoever is slow sees less often, not later."""

STALLED_S = 0.5
"""A stream of which nothing came for so long is shown as stalled; pictures slower than four a second have longer."""

FLOOR_DBFS = -90.0

SHOWN_VALUES = 8

# Losses that are no trouble: pictures between two steps, first windows, closed gates, the end.
HARMLESS = frozenset({"not_needed", "filling", "gated", "ended"})

StreamState = Literal["waiting", "live", "stalled", "reconnecting", "ended"]


class _Watched:
    """What the view knows of one stream."""

    def __init__(self, name: str, kind: str, *, live: bool, interval_ns: int | None) -> None:
        self.name = name
        self.kind = kind
        self.live = live
        self.patience_s = max(STALLED_S, 3 * (interval_ns or 0) / 1e9)
        self.seen_s: float | None = None
        self.has_ended = False
        self.frame: VideoFrame | None = None
        self.shown: VideoFrame | None = None
        self.chunks: deque[AudioChunk] = deque(maxlen=200)
        """Sound of at most two seconds that no level was taken of yet."""

    def state(self, now_s: float) -> StreamState:
        if self.has_ended:
            return "reconnecting" if self.live else "ended"
        if self.seen_s is None:
            return "waiting"
        return "stalled" if now_s - self.seen_s > self.patience_s else "live"


class View:
    """Serves a page on `where`, "[HOST]:PORT", that shows the run; a sink to be given to `run`.

    Without a host only this machine can look; with one, only whoever has the token that is part of `url`. Pictures are
    encoded while somebody looks, in a thread of the view's own, at most 15 a second; nothing waits for a browser.
    `announce` is given the URL once the page can be opened.

    Raises UsageError for an address that is none, MissingExtraError without the package websockets, and SinkError, when
    entered, if it cannot listen there.
    """

    never_waits: Literal[True] = True

    def __init__(self, where: str = ":8080", *, announce: Callable[[str], None] | None = None) -> None:
        self._server = Server(
            address.parse(where, "--view"),
            "--view",
            extra="view",
            queue=QUEUE,
            page=page(),
            greet=self._greeting,
            same_origin=True,
        )
        self._announce = announce
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._streams: dict[str, _Watched] = {}
        self._newest: dict[str, Result] = {}
        self._made: dict[str, int] = {}
        self._books: Snapshot | None = None
        self._fresh: list[list[Any]] = []
        self._history: deque[list[Any]] = deque(maxlen=HISTORY)
        self._points = 0
        """How many there have been: a client that is greeted between two ticks is given some twice."""
        self._state = "running"
        self._message = ""
        self._time_ns = 0
        self._time_s = time.monotonic()
        self._resend = False
        """There is a client that has seen no picture yet."""
        self._unbriefed = False
        """There is a client that came before the run was known."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="view", daemon=True)

    @property
    def name(self) -> str:
        """For the accounts."""
        return f"view {self._server.address}"

    @property
    def url(self) -> str:
        """What to open, with the token if one is needed."""
        return self._server.url("http")

    @property
    def clients(self) -> int:
        """How many look."""
        return self._server.clients

    def __enter__(self) -> View:
        self._server.__enter__()
        self._thread.start()
        if self._announce is not None:
            self._announce(self.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._state = "ended" if error is None else "failed"
        self._message = "" if error is None else str(error) or type(error).__name__
        self._server.send(self._now())
        self._server.flush(1.0)
        self._server.__exit__(kind, error, trace)

    # In the thread of the run.

    def begin(self, run: Run) -> None:
        """Learn what there will be to see."""
        with self._lock:
            self._streams = {
                info.name: _Watched(info.name, info.kind, live=info.name in run.live, interval_ns=info.interval_ns)
                for info in run.streams
            }
            self._run = run

    def event(self, event: Event) -> None:
        """Note what came; a picture replaces the one before."""
        stream = self._streams.get(event.stream)
        if stream is None:
            return
        if isinstance(event, End):
            stream.has_ended = True
            return
        stream.seen_s = self._time_s = time.monotonic()
        self._time_ns = max(self._time_ns, event.end_ns)
        if isinstance(event, VideoFrame):
            stream.frame = event
            stream.has_ended = False
        elif isinstance(event, AudioChunk):
            stream.chunks.append(event)
            stream.has_ended = False

    def look(self, books: Snapshot) -> None:
        """Keep the newest books, and what was lost by now as a point of the plot."""
        frames = sum(_troubles(account.dropped) for account in books.streams.values())
        steps = sum(_troubles(account.skipped) for account in books.models.values())
        self._books = books
        self._point(["lost", self._now_ms(), frames, steps])

    def write(self, result: Result) -> None:
        """Show a result, and its ages and skew as points of the plots."""
        self._newest[result.model] = result
        self._made[result.model] = self._made.get(result.model, 0) + 1
        self._time_ns = max(self._time_ns, result.made_ns)
        self._time_s = time.monotonic()
        self._point(
            [
                "result",
                result.made_ns / 1e6,
                result.model,
                _ms(result.audio_age_ns),
                _ms(result.video_age_ns),
                _ms(result.skew_ns),
            ]
        )

    def _point(self, point: list[Any]) -> None:
        with self._lock:
            self._fresh.append(point)
            self._history.append(point)
            self._points += 1

    # In the view's own thread.

    def _show(self) -> None:
        while not self._stop.wait(TICK_S):
            for stream in list(self._streams.values()):
                self._level(stream)
            if self._server.clients:
                self._server.send(self._now())
            else:
                with self._lock:
                    self._fresh.clear()

    def _level(self, stream: _Watched) -> None:
        """The level of the sound since the last tick, as a point of the plot."""
        chunks = []
        while stream.chunks:
            chunks.append(stream.chunks.popleft())
        if chunks:
            samples = np.concatenate([chunk.samples for chunk in chunks])
            peak = float(np.max(np.abs(samples))) if samples.size else 0.0
            rms = math.sqrt(float(np.dot(samples, samples)) / samples.size) if samples.size else 0.0
            self._point(["level", chunks[-1].end_ns / 1e6, stream.name, _dbfs(peak), _dbfs(rms)])

    def _now(self) -> bytes:
        """What is new since the last message."""
        pictures = []
        for stream in self._streams.values():
            frame = stream.frame
            if frame is not None and (frame is not stream.shown or self._resend):
                stream.shown = frame
                pictures.append((frame, jpeg(frame)))
        self._resend = False
        with self._lock:
            points, self._fresh = self._fresh, []
            run = self._run if self._unbriefed else None
            if run is not None:
                self._unbriefed = False
                points = list(self._history)  # the page begins anew
            first = self._points - len(points)
        content = self._content(points, first)
        if run is not None:
            content["config"] = _config(run)
        return self._pack(content, pictures)

    # In any.

    def _greeting(self) -> bytes:
        with self._lock:
            run = self._run
            self._unbriefed |= run is None
            points = list(self._history)
            first = self._points - len(points)
        self._resend = True
        content = self._content(points, first)
        content["config"] = None if run is None else _config(run)
        return self._pack(content, [])

    def _pack(self, content: dict[str, Any], pictures: list[tuple[VideoFrame, bytes]]) -> bytes:
        content["pictures"] = [
            {"stream": frame.stream, "bytes": len(data), "capture_ms": frame.capture_ns / 1e6}
            for frame, data in pictures
        ]
        head = _ENCODER.encode(content)
        return b"".join([len(head).to_bytes(4, "big"), head, *(data for _, data in pictures)])

    def _content(self, points: list[list[Any]], first: int) -> dict[str, Any]:
        now_s = time.monotonic()
        books = self._books
        over = self._state != "running"
        models = streamed(self._run.recipe) if self._run is not None else []
        return {
            "state": self._state,
            "message": self._message,
            "now_ms": self._now_ms(),
            "streams": {
                name: {
                    "state": "ended" if over else stream.state(now_s),
                    "account": None if books is None else books.streams.get(name),
                    "clock": None if books is None else books.clocks.get(name),
                }
                for name, stream in self._streams.items()
            },
            "models": {
                name: {
                    "results": self._made.get(name, 0),
                    "account": None if books is None else books.models.get(name),
                    "newest": _shown(self._newest.get(name)),
                }
                for name in models
            },
            "sinks": {} if books is None else books.sinks,
            "first_point": first,
            "points": points,
        }

    def _now_ms(self) -> float:
        """The session's time; under the wall clock it goes on while nothing comes."""
        running = self._state == "running" and self._run is not None and self._run.clock == "wall"
        since_s = time.monotonic() - self._time_s if running and self._time_ns else 0.0
        return self._time_ns / 1e6 + since_s * 1e3


def _config(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    models = {}
    for name in streamed(recipe):
        reads = [entry.stream for entry in recipe.models[name].inputs.values() if entry.stream is not None]
        models[name] = list(dict.fromkeys(reads))
    return {
        "name": recipe.name,
        "clock": run.clock,
        "deadline_ms": recipe.schedule.deadline.ns() / 1e6,
        "tolerance_ms": recipe.sync.tolerance.ns() / 1e6,
        "streams": {info.name: {"kind": info.kind, "live": info.name in run.live} for info in run.streams},
        "models": models,
    }


def _shown(result: Result | None) -> dict[str, Any] | None:
    """A result as the page shows it: as in JSON Lines, but of tensors only what fits."""
    if result is None:
        return None
    return {**result.to_dict(), "outputs": {name: _output(value) for name, value in result.outputs.items()}}


def _output(value: Decoded) -> Mapping[str, Any]:
    if isinstance(value, Label):
        return {"kind": "label", "label": value.label, "score": value.score}
    if isinstance(value, Score):
        return {"kind": "score", "score": value.score, "above": value.above}
    if isinstance(value, Vector):
        return {"kind": "vector", "size": value.vector.size, "norm": float(np.linalg.norm(value.vector))}
    flat = value.values.reshape(-1)
    return {"kind": "values", "shape": value.values.shape, "values": flat[:SHOWN_VALUES].tolist()}


def _troubles(causes: Mapping[str, int]) -> int:
    return sum(count for cause, count in causes.items() if cause not in HARMLESS)


def _dbfs(value: float) -> float:
    return max(FLOOR_DBFS, 20 * math.log10(value)) if value > 0 else FLOOR_DBFS


def _ms(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e6


_ENCODER = msgspec.json.Encoder()
