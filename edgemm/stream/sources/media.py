"""Sound and pictures of any file or URL that FFmpeg can open, through PyAV, in one pass.

Timestamps are the container's: `capture_ns` is a frame's PTS, counted from the start of the file. Sound is resampled
to the rate wanted, its channels averaged, and cut into blocks of 10 ms, as a microphone would give it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemm.errors import SourceError
from edgemm.stream.frames import AudioChunk, End, Event, Lost, StreamInfo, VideoFrame, ns
from edgemm.stream.scheduler import GAP_NS
from edgemm.stream.sources.protocol import AudioWant, VideoWant, Want
from edgemm.stream.sources.reformat import PIXEL_FORMATS, Reformatter

BLOCKS_PER_SECOND = 100

_MAX_WAITING_BYTES = 256 << 20
"""Packets of one stream that wait for the other: seconds of a well interleaved file, minutes of most."""


class MediaSource:
    """A media file or URL as a Source: at most one stream of sound and one of pictures.

    Raises SourceError on entry if `url` cannot be opened or lacks a stream that is wanted, and while iterating if a
    stream that is wanted cannot be decoded at all. Single damaged packets are entered as lost ("corrupt"). Streams
    that are not wanted are ignored.
    """

    live = False

    def __init__(self, url: str | Path, wants: Sequence[Want]) -> None:
        self._url = str(url)
        self._audio = next((want for want in wants if isinstance(want, AudioWant)), None)
        self._video = next((want for want in wants if isinstance(want, VideoWant)), None)
        self._container: Any = None
        self._audio_stream: Any = None
        self._video_stream: Any = None
        self.streams: tuple[StreamInfo, ...] = ()

    def __enter__(self) -> MediaSource:
        import av

        path = None if "://" in self._url else Path(self._url)
        if path is not None and path.is_file() and path.stat().st_size == 0:
            raise SourceError(f"{self._url} is empty (0 bytes): expected a media file.")
        try:
            self._container = av.open(self._url)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(_refused(self._url, error)) from error
        try:
            self._find_streams()
        except BaseException:
            self._container.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def __iter__(self) -> Iterator[Event]:
        if self._container is None:
            raise SourceError(f"{self._url} is not open: use the source in a with statement.")
        wanted = [stream for stream in (self._audio_stream, self._video_stream) if stream is not None]
        packets = _Packets(self._url, self._container, wanted)
        start_ns = (self._container.start_time or 0) * 1000
        tracks: list[Iterator[Event]] = []
        if self._audio is not None:
            decoded = _decode(self._url, packets, self._audio_stream, self._audio.name, start_ns)
            tracks.append(_sound(decoded, self._audio, self._audio_stream.time_base, start_ns))
        if self._video is not None:
            decoded = _decode(self._url, packets, self._video_stream, self._video.name, start_ns)
            tracks.append(_pictures(decoded, self._video, self._video_stream, start_ns))
        return _interleave(tracks)

    def _find_streams(self) -> None:
        # A cover picture is a video stream of one frame to FFmpeg; nobody means it when asking for video.
        videos = [s for s in self._container.streams.video if not _is_cover(s)]
        audios = list(self._container.streams.audio)
        infos: list[StreamInfo] = []
        if self._audio is not None:
            if not audios:
                raise SourceError(_lacks(self._url, "sound", self._audio.name, len(videos), "video"))
            self._audio_stream = audios[0]
            infos.append(StreamInfo(self._audio.name, "audio", rate_hz=self._audio.rate_hz))
        if self._video is not None:
            if not videos:
                raise SourceError(_lacks(self._url, "pictures", self._video.name, len(audios), "audio"))
            stream = self._video_stream = videos[0]
            # Frame threads make a live picture late by one frame each; for a file they only make it faster.
            stream.thread_type = "SLICE" if "://" in self._url else "AUTO"
            rate = stream.average_rate or stream.guessed_rate
            infos.append(
                StreamInfo(
                    self._video.name,
                    "video",
                    interval_ns=round(10**9 / rate) if rate else None,
                    width=stream.codec_context.width,
                    height=stream.codec_context.height,
                )
            )
        self.streams = tuple(infos)


class _Packets:
    """The packets of several streams from one pass over the file, each stream at its own pace."""

    def __init__(self, url: str, container: Any, streams: Sequence[Any]) -> None:
        self._url = url
        self._demuxer = container.demux(*streams)
        self._waiting: dict[int, deque[Any]] = {stream.index: deque() for stream in streams}
        self._waiting_bytes = 0
        self.damage: str | None = None

    def next(self, index: int) -> Any:
        """The next packet of the stream `index`; None after its last."""
        import av

        queue = self._waiting[index]
        while not queue:
            try:
                packet = next(self._demuxer, None)
            except (av.FFmpegError, OSError) as error:
                # The rest of the file cannot be read; what came before is good.
                self.damage = str(error)
                packet = None
            if packet is None:
                return None
            if packet.size == 0:
                continue  # PyAV's own mark for the end of a stream
            self._waiting[packet.stream.index].append(packet)
            self._waiting_bytes += packet.size
            if self._waiting_bytes > _MAX_WAITING_BYTES:
                raise SourceError(
                    f"{self._url} is badly interleaved: more than {_MAX_WAITING_BYTES >> 20} MB of one stream come "
                    "before the other. Remux it: ffmpeg -i IN -c copy OUT.mkv"
                )
        packet = queue.popleft()
        self._waiting_bytes -= packet.size
        return packet


def _decode(url: str, packets: _Packets, stream: Any, name: str, start_ns: int) -> Iterator[Any]:
    """The frames of one stream; a Lost for each packet that cannot be decoded."""
    import av

    count = 0
    problem = ""
    last_ns = 0
    while True:
        packet = packets.next(stream.index)
        if packet is not None and packet.pts is not None:
            last_ns = ns(packet.pts, packet.time_base) - start_ns
        try:
            frames = stream.codec_context.decode(packet)
        except (av.FFmpegError, OSError) as error:
            problem = str(error)
            yield Lost(name, "corrupt", last_ns)
            frames = []
        for frame in frames:
            count += 1
            yield frame
        if packet is None:
            break
    if not count:
        kind = "sound" if stream.type == "audio" else "picture"
        why = problem or packets.damage
        raise SourceError(
            f"{url}: its {stream.type} stream ({stream.codec_context.name}) holds no {kind} that can be decoded"
            f"{': ' + why if why else ''}. Give another file, or encode it again."
        )
    if packets.damage is not None:
        yield Lost(name, "corrupt", last_ns)


def _sound(frames: Iterator[Any], want: AudioWant, time_base: Fraction, start_ns: int) -> Iterator[Event]:
    """Blocks of 10 ms. A break in the timestamps ends a block early, and is marked on the next one."""
    from av.audio.resampler import AudioResampler

    resampler: Any = None
    resampler_shape: tuple[str, str, int] | None = None
    blocks = _Blocks(want)
    expected_ns: int | None = None
    broken = False
    for frame in frames:
        if isinstance(frame, Lost):
            yield frame
            continue
        # What a decoder gives when it is flushed has lost its time base; it is the stream's.
        begin_ns = None if frame.pts is None else ns(frame.pts, frame.time_base or time_base) - start_ns
        length_ns = frame.samples * 10**9 // frame.sample_rate
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if begin_ns is None:
            begin_ns = expected_ns or 0
        gap = expected_ns is not None and abs(begin_ns - expected_ns) > GAP_NS
        if resampler is None or gap or shape != resampler_shape:
            if resampler is not None:
                yield from blocks.push(_mono(resampler.resample(None)))
                yield from blocks.flush()
                broken = broken or gap
            resampler = AudioResampler(format="fltp", layout=frame.layout.name, rate=want.rate_hz)
            resampler_shape = shape
            blocks.begin(begin_ns, discontinuity=broken)
            broken = False
        expected_ns = begin_ns + length_ns
        yield from blocks.push(_mono(resampler.resample(frame)))
    if resampler is not None:
        yield from blocks.push(_mono(resampler.resample(None)))
        yield from blocks.flush()
    yield End(want.name, blocks.end_ns)


def _mono(frames: Sequence[Any]) -> npt.NDArray[np.float32]:
    parts = [frame.to_ndarray() for frame in frames]  # planar float: [channels, samples]
    mixed = [part[0] if len(part) == 1 else part.mean(axis=0, dtype=np.float32) for part in parts]
    return np.concatenate(mixed) if mixed else np.empty(0, np.float32)


class _Blocks:
    """Cuts sound into blocks of equal length, and keeps the time of each by counting samples."""

    def __init__(self, want: AudioWant) -> None:
        self._want = want
        self._size = max(1, want.rate_hz // BLOCKS_PER_SECOND)
        self._rest = np.empty(0, np.float32)
        self._begin_ns = 0
        self._given = 0
        self._discontinuity = False

    @property
    def end_ns(self) -> int:
        """Where the sound given so far ends."""
        return self._begin_ns + self._given * 10**9 // self._want.rate_hz

    def begin(self, begin_ns: int, *, discontinuity: bool) -> None:
        """The next sample was captured at `begin_ns`."""
        self._begin_ns = begin_ns
        self._given = 0
        self._discontinuity = discontinuity

    def push(self, samples: npt.NDArray[np.float32]) -> Iterator[AudioChunk]:
        """Take samples; give the blocks that are full."""
        self._rest = np.concatenate((self._rest, samples))
        while len(self._rest) >= self._size:
            yield self._cut(self._size)

    def flush(self) -> Iterator[AudioChunk]:
        """Give what is left as a shorter block."""
        if len(self._rest):
            yield self._cut(len(self._rest))

    def _cut(self, size: int) -> AudioChunk:
        rate_hz = self._want.rate_hz
        capture_ns = self.end_ns
        samples, self._rest = self._rest[:size], self._rest[size:]
        first = round(Fraction(self._begin_ns * rate_hz, 10**9))
        chunk = AudioChunk(
            self._want.name,
            first + self._given,
            Fraction(1, rate_hz),
            capture_ns,
            samples,
            rate_hz,
            self._discontinuity,
        )
        self._given += size
        self._discontinuity = False
        return chunk


def _pictures(frames: Iterator[Any], want: VideoWant, stream: Any, start_ns: int) -> Iterator[Event]:
    reformatter = Reformatter(PIXEL_FORMATS[want.color])
    rate = stream.average_rate or stream.guessed_rate or 25
    step_ns = round(10**9 / rate)
    last_ns = -step_ns
    for frame in frames:
        if isinstance(frame, Lost):
            yield frame
            continue
        if frame.pts is None:
            capture_ns, pts, time_base = last_ns + step_ns, 0, Fraction(1, 10**9)
        else:
            # The frames that a decoder gives up at the end carry no time base of their own.
            pts, time_base = frame.pts, frame.time_base or stream.time_base
            capture_ns = ns(pts, time_base) - start_ns
        last_ns = capture_ns
        picture = reformatter.picture(frame)
        # A phone held upright writes a picture that lies, and how to turn it, counter-clockwise as numpy does.
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        if turns:
            picture = np.ascontiguousarray(np.rot90(picture, turns))
        yield VideoFrame(want.name, pts, time_base, capture_ns, picture, want.color)
    yield End(want.name, last_ns)


def _interleave(tracks: Sequence[Iterator[Event]]) -> Iterator[Event]:
    """The events of all tracks by `end_ns`, the earlier track first among equals; decodes no further than needed."""
    heads: list[tuple[Event, Iterator[Event]]] = []
    for track in tracks:
        head = next(track, None)
        if head is not None:
            heads.append((head, track))
    while heads:
        at = min(range(len(heads)), key=lambda i: heads[i][0].end_ns)
        event, track = heads[at]
        yield event
        following = next(track, None)
        if following is None:
            del heads[at]
        else:
            heads[at] = (following, track)


def _is_cover(stream: Any) -> bool:
    return "attached_pic" in str(getattr(stream, "disposition", "")).lower()


def _lacks(url: str, what: str, name: str, others: int, kind: str) -> str:
    found = f"{others} {kind} stream{'s' if others != 1 else ''}" if others else "no stream"
    return (
        f'{url} holds {found} and no {what}, but the recipe\'s stream "{name}" needs {what}. '
        f"Give a clip with {what}, or a recipe without that stream."
    )


def _refused(url: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"Cannot open {url}: there is no such file."
    if isinstance(error, IsADirectoryError):
        return f"Cannot open {url}: it is a folder, expected a media file."
    detail = getattr(error, "strerror", None) or str(error)
    return f"Cannot open {url}: {detail}. Expected a file or URL that FFmpeg can read."
