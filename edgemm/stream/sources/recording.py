"""A session in one Matroska file: sound (PCM float32), pictures (FFV1), decisions as subtitles, and the journal.

Any player shows it. Sound and pictures are lossless, so that a replay sees what the session saw; the journal, a second
subtitle track, says the rest (see tape.py). What was written stays playable if the process is killed: clusters are
closed twice a second.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgemm.errors import SinkError, SourceError
from edgemm.stream.decode import Label, Score
from edgemm.stream.frames import AudioChunk, End, Event, Lost, StreamInfo, VideoFrame
from edgemm.stream.results import Result
from edgemm.stream.sources.reformat import PIXEL_FORMATS, Reformatter
from edgemm.stream.tape import Entry

FORMAT = 1
BATCH_NS = 100_000_000
WAITING_PICTURES = 250
"""Pictures that may wait for the disk: ten seconds of a camera. Beyond, recording is given up, not the run."""

WAITING_ITEMS = 5000
"""What waits for the first picture of every camera, some ten seconds; a camera silent until then is not recorded."""

JOIN_S = 30.0
_MS = Fraction(1, 1000)
_PIXELS = {"gray": "gray", "rgb": "bgr0", "bgr": "bgr0"}
"""FFV1 has no packed rgb24; these hold the same bytes in another order."""

_log = logging.getLogger(__name__)


class RecordingWriter:
    """Records a session to `path` while it is entered; a Tape.

    Encoding happens on a thread of its own. If it falls behind, or a picture changes its size, recording is given up
    with a warning and the run goes on. Raises SinkError on entry if the file cannot be written.
    """

    def __init__(self, path: str | Path, streams: Sequence[StreamInfo]) -> None:
        self._path = str(path)
        self._streams = tuple(streams)
        self._names = [info.name for info in streams]
        self._items: SimpleQueue[tuple[Entry, Any] | None] = SimpleQueue()
        self._given = 0
        self._done = 0
        """Pictures: each number is counted by one thread."""
        self._given_up = False
        self._thread = threading.Thread(target=self._write, name="recording", daemon=True)
        self._container: Any = None
        self._tracks: dict[str, Any] = {}
        self._reformatters: dict[str, Reformatter] = {}
        self._last: dict[str, int] = {}
        self._journal: Any = None
        self._decisions: Any = None
        self._batch: list[Entry] = []
        self._now_ns = 0
        self._flushed_ns = 0

    def __enter__(self) -> RecordingWriter:
        import av

        if not hasattr(av.container.OutputContainer, "add_mux_stream"):
            raise SinkError(f"Recording needs PyAV 17 or later, found {av.__version__}: pip install -U av")
        try:
            with open(self._path, "wb"):
                pass
        except OSError as error:
            raise SinkError(f"Cannot record to {self._path}: {error.strerror}.") from error
        streams = [[s.name, s.kind, s.rate_hz, s.interval_ns, s.width, s.height] for s in self._streams]
        self.note(["h", {"format": FORMAT, "streams": streams}])
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._items.put(None)
        self._thread.join(JOIN_S)

    def event(self, event: Event, arrived_ns: int) -> None:
        """Take a frame."""
        index = self._names.index(event.stream)
        if isinstance(event, AudioChunk):
            base = event.time_base
            entry = ["a", index, arrived_ns, event.capture_ns, event.pts, base.numerator, base.denominator]
            self._items.put(([*entry, len(event.samples), event.rate_hz, event.discontinuity], event))
        elif isinstance(event, VideoFrame):
            self._given += 1
            base = event.time_base
            entry = ["v", index, arrived_ns, event.capture_ns, event.pts, base.numerator, base.denominator]
            self._items.put(([*entry, event.color, event.discontinuity], event))
        elif isinstance(event, Lost):
            self.note(["l", index, arrived_ns, event.cause, event.end_ns, event.count])
        else:
            self.note(["e", index, arrived_ns, event.end_ns])

    def note(self, entry: Entry) -> None:
        """Take an entry of the journal."""
        self._items.put((entry, None))

    def result(self, result: Result) -> None:
        """Take a result."""
        self._items.put((["r", result.with_latency(None).to_json().decode()], result))

    # The writing thread.

    def _write(self) -> None:
        waiting: list[tuple[Entry, Any]] = []
        missing = {info.name for info in self._streams if info.kind == "video"}
        try:
            while True:
                try:
                    item = self._items.get(timeout=BATCH_NS / 1e9)
                except Empty:
                    if self._container is not None:
                        self._flush()
                    continue
                if item is None:
                    break
                if self._given_up:
                    continue
                if self._container is None:
                    # Matroska's header needs the size of the pictures.
                    waiting.append(item)
                    if isinstance(item[1], VideoFrame):
                        missing.discard(item[1].stream)
                    if not missing or len(waiting) > WAITING_ITEMS:
                        self._open(waiting)
                        waiting = []
                    continue
                self._take(*item)
            if self._container is None:
                self._open(waiting)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must go on
            self._give_up(str(error))
        finally:
            self._close()

    def _open(self, waiting: Sequence[tuple[Entry, Any]]) -> None:
        import av

        self._container = av.open(
            self._path,
            "w",
            format="matroska",
            container_options={
                "flush_packets": "1",
                "cluster_time_limit": "500",
                # Subtitles come rarely; without a limit everything would wait for the next one.
                "max_interleave_delta": "200000",
            },
        )
        first: dict[str, Event] = {}
        for _, event in waiting:
            if isinstance(event, AudioChunk | VideoFrame):
                first.setdefault(event.stream, event)
        for info in self._streams:
            event = first.get(info.name)
            if isinstance(event, VideoFrame):
                track = self._container.add_stream("ffv1", rate=25)
                track.height, track.width = event.picture.shape[:2]
                track.pix_fmt = _PIXELS[event.color]
                self._reformatters[info.name] = Reformatter(_PIXELS[event.color])
                track.codec_context.time_base = _MS
            elif info.kind == "audio":
                track = self._container.add_stream("pcm_f32le", rate=info.rate_hz or 16000, layout="mono")
            else:
                continue  # a camera that never gave a picture
            track.metadata["title"] = info.name
            self._tracks[info.name] = track
        self._decisions = self._container.add_mux_stream("subrip", time_base=_MS)
        self._decisions.metadata["title"] = "decisions"
        self._journal = self._container.add_mux_stream("subrip", time_base=_MS)
        self._journal.metadata["title"] = "edgemm journal"
        for item in waiting:
            self._take(*item)

    def _take(self, entry: Entry, what: Any) -> None:
        self._batch.append(entry)
        kind = entry[0]
        if kind in "avle":
            self._now_ns = max(self._now_ns, entry[2])
        elif kind in "tc":
            self._now_ns = max(self._now_ns, entry[1])
        if isinstance(what, AudioChunk):
            self._sound(what)
        elif isinstance(what, VideoFrame):
            self._done += 1
            if self._given - self._done > WAITING_PICTURES:
                raise RuntimeError(f"{self._given - self._done} pictures wait for the disk")
            self._picture(what)
        elif isinstance(what, Result):
            self._text(self._decisions, _say(what), what.made_ns // 10**6, 1000)
        if self._now_ns - self._flushed_ns > BATCH_NS or kind == "h":
            self._flush()

    def _sound(self, chunk: AudioChunk) -> None:
        from av import AudioFrame

        track = self._tracks[chunk.stream]
        frame = AudioFrame.from_ndarray(chunk.samples[None, :], format="flt", layout="mono")
        frame.sample_rate = chunk.rate_hz
        frame.time_base = Fraction(1, chunk.rate_hz)
        pts = max(self._last.get(chunk.stream, 0), chunk.capture_ns * chunk.rate_hz // 10**9)
        frame.pts = pts
        self._last[chunk.stream] = pts + len(chunk.samples)
        self._container.mux(track.encode(frame))

    def _picture(self, event: VideoFrame) -> None:
        from av import VideoFrame as Picture

        track = self._tracks[event.stream]
        if event.picture.shape[:2] != (track.height, track.width):
            raise RuntimeError(f"the pictures of {event.stream} changed their size")
        frame = Picture.from_ndarray(np.ascontiguousarray(event.picture), format=PIXEL_FORMATS[event.color])
        frame = self._reformatters[event.stream].frame(frame)
        frame.pts = max(self._last.get(event.stream, -1) + 1, event.capture_ns // 10**6)
        frame.time_base = _MS
        self._last[event.stream] = frame.pts
        self._container.mux(track.encode(frame))

    def _flush(self) -> None:
        if self._batch:
            text = msgspec.json.encode(self._batch).decode()
            self._text(self._journal, text, self._now_ns // 10**6, BATCH_NS // 10**6)
            self._batch = []
        self._flushed_ns = self._now_ns

    def _text(self, track: Any, text: str, pts: int, duration: int) -> None:
        from av import Packet

        packet = Packet(text.encode())
        packet.stream = track
        packet.time_base = _MS
        pts = max(self._last.get(track.metadata["title"], 0), pts)
        self._last[track.metadata["title"]] = pts
        packet.pts = packet.dts = pts
        packet.duration = duration
        self._container.mux(packet)

    def _give_up(self, why: str) -> None:
        self._given_up = True
        _log.warning("Recording to %s was given up: %s. The run goes on.", self._path, why)
        while self._items.get() is not None:
            pass

    def _close(self) -> None:
        if self._container is None:
            return
        import av

        try:
            if not self._given_up:
                self._flush()
            for track in self._tracks.values():
                self._container.mux(track.encode(None))
            self._container.close()
        except (av.FFmpegError, OSError, ValueError) as error:
            _log.warning("The end of %s could not be written: %s.", self._path, error)


class Recording:
    """A recorded session. Iterating gives the journal's entries, those of frames with the frame itself.

    Raises SourceError on entry if it is no recording. One that was cut short ends where it ends.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._container: Any = None
        self._packets: Iterator[Any] = iter(())
        self._entries: deque[Entry] = deque()
        self._titles: dict[int, str] = {}
        self._sound: dict[str, deque[npt.NDArray[np.float32]]] = {}
        self._pictures: dict[str, deque[Any]] = {}
        self._reformatters: dict[str, Reformatter] = {}
        self.streams: tuple[StreamInfo, ...] = ()

    def __enter__(self) -> Recording:
        import av

        try:
            self._container = av.open(self._path)
        except (av.FFmpegError, OSError, ValueError) as error:
            detail = getattr(error, "strerror", None) or str(error)
            raise SourceError(f"Cannot open {self._path}: {detail}. Expected a recording of --record.") from error
        self._titles = {s.index: s.metadata.get("title", s.metadata.get("TITLE", "")) for s in self._container.streams}
        try:
            if "edgemm journal" not in self._titles.values():
                raise SourceError(f"{self._path} is no recording of --record: to run on it, give it as --input.")
            self._packets = self._container.demux()
            header = self._next()
            if header is None or header[0] != "h" or header[1].get("format") != FORMAT:
                raise SourceError(
                    f"{self._path} is damaged, or was recorded by another version of edgemm: expected format {FORMAT}."
                )
        except BaseException:
            self._container.close()
            raise
        self.streams = tuple(StreamInfo(*fields) for fields in header[1]["streams"])
        for info in self.streams:
            self._sound.setdefault(info.name, deque())
            self._pictures.setdefault(info.name, deque())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[tuple[Entry, Event | None]]:
        while (entry := self._next()) is not None:
            kind = entry[0]
            if kind not in "avle":
                yield entry, None
                continue
            name = self.streams[entry[1]].name
            event: Event | None
            if kind == "a":
                event = self._chunk(name, entry)
            elif kind == "v":
                event = self._frame(name, entry)
            elif kind == "l":
                event = Lost(name, entry[3], entry[4], entry[5])
            else:
                event = End(name, entry[3])
            if event is None:
                return
            yield entry, event

    def _next(self) -> Entry | None:
        while not self._entries:
            if not self._read():
                return None
        return self._entries.popleft()

    def _read(self) -> bool:
        """Take one packet from the file; False at its end, or where it is damaged."""
        import av

        try:
            packet = next(self._packets, None)
            if packet is None:
                return False
            if packet.size == 0:
                return True
            title = self._titles[packet.stream.index]
            if title == "edgemm journal":
                self._entries.extend(msgspec.json.decode(bytes(packet), type=list[Entry]))
            elif packet.stream.type == "audio":
                for frame in packet.decode():
                    self._sound.setdefault(title, deque()).append(frame.to_ndarray().reshape(-1))
            elif packet.stream.type == "video":
                self._pictures.setdefault(title, deque()).extend(packet.decode())
        except (av.FFmpegError, OSError, msgspec.DecodeError):
            return False
        return True

    def _chunk(self, name: str, entry: Entry) -> AudioChunk | None:
        _, _, _, capture_ns, pts, numerator, denominator, count, rate_hz, discontinuity = entry
        parts = self._sound[name]
        while sum(map(len, parts)) < count:
            if not self._read():
                return None
        whole = np.concatenate(list(parts))
        parts.clear()
        parts.append(whole[count:])
        base = Fraction(numerator, denominator)
        return AudioChunk(name, pts, base, capture_ns, whole[:count], rate_hz, discontinuity)

    def _frame(self, name: str, entry: Entry) -> VideoFrame | None:
        _, _, _, capture_ns, pts, numerator, denominator, color, discontinuity = entry
        while not self._pictures[name]:
            if not self._read():
                return None
        if color not in self._reformatters:
            self._reformatters[color] = Reformatter(PIXEL_FORMATS[color])
        picture = self._reformatters[color].picture(self._pictures[name].popleft())
        return VideoFrame(name, pts, Fraction(numerator, denominator), capture_ns, picture, color, discontinuity)


def _say(result: Result) -> str:
    """A result as a subtitle."""
    parts = []
    for name, decoded in result.outputs.items():
        if isinstance(decoded, Label):
            parts.append(f"{name}: {decoded.label} {decoded.score:.0%}")
        elif isinstance(decoded, Score):
            parts.append(f"{name}: {decoded.score:.2f}")
    return f"{result.model}  {',  '.join(parts)}"
