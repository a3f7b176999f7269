"""Sound and pictures of a URL (RTSP, HTTP, UDP, TCP ...) as they come, with as little delay as FFmpeg allows.

Both streams of a URL count on one clock, the sender's, so one fit against the arrivals places both: whatever the
network does, sound and picture stay together as the sender stamped them. Where the sender tells its wall clock (RTCP
sender reports, which FFmpeg hands on as "producer reference time" with each packet) and that clock agrees with the
machine's, the delay of encoder and network is known, too, and taken off. Pictures without timestamps (JPEG over HTTP)
are taken to be captured when they arrive.
"""

from __future__ import annotations

import errno
import logging
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt

from edgemm.errors import SourceError
from edgemm.stream.drift import ClockFit, ClockReport
from edgemm.stream.frames import AudioChunk, End, Event, Lost, StreamInfo, VideoFrame, ns
from edgemm.stream.sources.camera import JUMP_NS, PRIME_NS
from edgemm.stream.sources.level import Level, LevelMeter
from edgemm.stream.sources.picture_ends import START_BYTES, is_empty, stamp_change
from edgemm.stream.sources.protocol import AudioWant, VideoWant, Want
from edgemm.stream.sources.reformat import PIXEL_FORMATS, Reformatter
from edgemm.stream.sources.reopening import ReopeningSource
from edgemm.stream.sources.rtsp_relay import RtspRelay
from edgemm.stream.sources.sound_frames import BLOCKS_PER_SECOND, ChunkMaker

ANSWER_S = 5.0
"""How long a URL may take to answer: a camera that wakes up takes two or three."""

STALL_S = 2.0
"""How long an open URL, or one of its streams, may be silent before it is taken to be gone."""

REPORT_NS = 1_500_000_000
"""How long the first opening waits for the sender's wall clock; by RFC 3550 it comes within 3 s, often in the first."""

LISTEN = 10
"""Packets with a wall clock that are heard before it is judged: the fastest of so many was hardly held up."""

LISTEN_NS = 10_000_000_000
"""How long faster ones than those are believed: all ten may have waited while this machine, or the sender, stood still.
Not for ever, as the sender's wall clock may run at another rate."""

CHANGE_NS = 10_000_000
"""A delay that becomes known late moves the times, and begins a new segment if it moves them by more than this."""

MOST_DELAY_NS = 2_000_000_000
"""A delay beyond this, or a negative one, says that the sender's wall clock is not set."""

LEAST_DELAY_NS = -20_000_000
"""Two clocks that are set by NTP agree within milliseconds, and some senders stamp a packet of sound at its end."""

NO_TIMESTAMPS = 0x80
"""AVFMT_NOTIMESTAMPS (libavformat/avformat.h): JPEG over HTTP, say. FFmpeg then counts pictures at 25 a second."""

GAP_NS = 15_000_000
"""Timestamps of sound that part from the count of samples by this much mean that a packet was lost."""

_log = logging.getLogger(__name__)


class NetworkSource(ReopeningSource):
    """A URL as a live Source of sound, pictures, or both.

    `wants` names at most one stream of each kind. Raises SourceError on entry if the URL does not answer within 5 s or
    lacks a stream. If it ends, fails or is silent for 2 s, its streams end, and go on when it is back; a single stream
    that is silent for 2 s ends, too. What cannot be decoded is entered as lost ("corrupt"), sound that the network
    lost likewise ("network").
    """

    def __init__(self, url: str, wants: Sequence[Want]) -> None:
        super().__init__(
            without_password(url),
            tuple(StreamInfo(want.name, "audio" if isinstance(want, AudioWant) else "video") for want in wants),
        )
        self._url = url
        self._wants = tuple(wants)
        self._fit = ClockFit(late_only=True)
        self._container: Any = None
        self._tracks: dict[int, _Track] = {}
        self._packets: Iterator[Any] = iter(())
        self._is_timed = True
        self._relay: RtspRelay | None = None
        self._relays = url.startswith("rtsp://")
        """Whether FFmpeg is to be told where pictures end."""
        self._meter = LevelMeter(self.name)
        self._transport_ns = 0
        """The shortest delay from capture to arrival, where the sender's wall clock tells."""
        self._delay_ns = 0
        """The shortest of those that were heard, plausible or not."""
        self._heard = 0
        self._heard_at_ns = 0

    @property
    def level(self) -> Level | None:
        """How loud the sound is just now; None if there is none, or not yet."""
        return self._meter.level

    def report(self) -> ClockReport:
        """How the sender's clock ran against the machine's."""
        return ClockReport(self._fit.drift_ppm, self._fit.jitter_ns / 1e6, self._reconnects, self._transport_ns / 1e6)

    def _connect(self) -> tuple[StreamInfo, ...]:
        container = self._open(time.monotonic())
        self._is_timed = not container.format.flags & NO_TIMESTAMPS
        try:
            tracks = [self._track(container, want) for want in self._wants]
        except BaseException:
            container.close()
            self._end_relay()
            raise
        self._container = container
        if self._relay is not None and self._relay.is_needless:
            self._end_relay()
        self._tracks = {track.index: track for track in tracks}
        self._packets = container.demux(*(track.stream for track in tracks))
        self._fit.reset()
        return tuple(track.info for track in tracks)

    def _open(self, begin: float) -> Any:
        """FFmpeg on the URL, by way of a relay if that tells it where pictures end; `begin` is when opening began."""
        import av

        url = self._url
        try:
            if self._relays:
                self._relay = RtspRelay(url, ANSWER_S)
                url = self._relay.url
            limits = (max(0.1, begin + ANSWER_S - time.monotonic()), STALL_S)
            return av.open(url, options=_options(url), timeout=limits)
        except (av.FFmpegError, OSError, ValueError) as error:
            self._end_relay()
            if self._relays and isinstance(error, av.error.HTTPClientError):
                # It may know itself by its own name only, or ask for the password anew behind a relay that sends on.
                self._relays = False
                try:
                    return self._open(begin)
                except SourceError:
                    self._relays = True
                    raise
            # Interrupted by the time limit, FFmpeg reports whatever it was doing.
            if time.monotonic() - begin >= ANSWER_S:
                raise SourceError(
                    f"{self.name} did not answer within {ANSWER_S:g} s. Check the address, and that the camera is on."
                ) from error
            raise SourceError(self._refused(error)) from error

    def _disconnect(self) -> None:
        self._container.close()
        self._container, self._tracks, self._packets = None, {}, iter(())
        self._end_relay()

    def _end_relay(self) -> None:
        if self._relay is not None:
            self._relay.close()
            self._relays = self._relays and not self._relay.misled
            self._relay = None

    def _track(self, container: Any, want: Want) -> _Track:
        if isinstance(want, AudioWant):
            if not container.streams.audio:
                raise SourceError(f"{self.name} holds no sound. Give another address, or a microphone: --mic")
            return _Sound(container.streams.audio[0], want, self._meter)
        if not container.streams.video:
            raise SourceError(f"{self.name} holds no pictures. Give the address of a camera's video stream.")
        return _Pictures(container.streams.video[0], want, is_timed=self._is_timed)

    def _frames(self, *, broken: bool) -> Generator[Event, None, str]:
        for track in self._tracks.values():
            track.broken = broken
        primed = yield from self._prime()
        if primed is not None:
            return primed
        heard_ns = dict.fromkeys(self._tracks, time.monotonic_ns())
        while not self._stop.is_set():
            packet, why = self._next()
            if packet is None:
                return why
            arrived_ns = time.monotonic_ns()
            heard_ns[packet.stream.index] = arrived_ns
            if self._listen(packet, arrived_ns):
                # Later than hoped for, and all that comes is older than what came.
                for track in self._tracks.values():
                    track.cut()
            yield from self._events(packet, arrived_ns)
            for index, track in self._tracks.items():
                if not track.ended and arrived_ns - heard_ns[index] > STALL_S * 1e9:
                    track.ended = track.broken = True
                    _log.warning("%s has sent nothing for %g s as %s.", self.name, STALL_S, track.info.name)
                    yield End(track.info.name, arrived_ns - self._offset_ns)
        return "stopped"

    def _prime(self) -> Generator[Event, None, str | None]:
        """Throw away what comes in a burst out of buffers, and listen for the sender's wall clock."""
        begin_ns = time.monotonic_ns()
        # Once known, the delay holds for the connections to come: they shall be back soon.
        hopes = self._url.startswith("rtsp") and not self._reconnects
        while not self._stop.is_set():
            waited_ns = time.monotonic_ns() - begin_ns
            if waited_ns >= PRIME_NS and (not hopes or self._has_heard or waited_ns >= REPORT_NS):
                break
            packet, why = self._next()
            if packet is None:
                return why
            arrived_ns = time.monotonic_ns()
            if packet.pts is not None:
                self._fit.observe(self._tracks[packet.stream.index].end_ns(packet), arrived_ns)
            self._listen(packet, arrived_ns)
            # A decoder that misses its first packets has nothing to go by.
            self._tracks[packet.stream.index].decode(packet)
        yield from ()
        return None

    def _listen(self, packet: Any, arrived_ns: int) -> bool:
        """Hear the sender's wall clock; True when what it says is known at last, or better, and changes times."""
        if self._has_heard and arrived_ns - self._heard_at_ns > LISTEN_NS:
            return False
        wall_ns = _producer_ns(packet)
        if wall_ns is None:
            return False
        away_ns = time.time_ns() - time.monotonic_ns() + arrived_ns - wall_ns
        delay_ns = away_ns - self._tracks[packet.stream.index].length_ns(packet)
        self._delay_ns = min(self._delay_ns, delay_ns) if self._heard else delay_ns
        self._heard += 1
        if self._heard == LISTEN:
            self._heard_at_ns = arrived_ns
        return self._has_heard and self._take_off()

    def _take_off(self) -> bool:
        """Take the delay off, if it is plausible; True if that changes the times."""
        is_known = LEAST_DELAY_NS <= self._delay_ns <= MOST_DELAY_NS
        before_ns, self._transport_ns = self._transport_ns, max(0, self._delay_ns) if is_known else 0
        changes = abs(self._transport_ns - before_ns) > CHANGE_NS
        if changes or self._heard == LISTEN:
            if is_known:
                _log.info("%s tells its wall clock: %.1f ms from capture to arrival.", self.name, self._delay_ns / 1e6)
            else:
                _log.info("%s tells a wall clock that is %.1f s off this machine's.", self.name, self._delay_ns / 1e9)
        return changes

    @property
    def _has_heard(self) -> bool:
        return self._heard >= LISTEN

    def _next(self) -> tuple[Any, str]:
        """The next packet; None and why there is none."""
        import av

        try:
            packet = next(self._packets, None)
        except av.error.ExitError:
            return None, f"{self.name} has sent nothing for {STALL_S:g} s"
        except (av.FFmpegError, OSError) as error:
            return None, self._refused(error).rstrip(".")
        if self._relay is not None and self._relay.misled:
            # What there is of the picture must not be decoded: the pictures to come are made from it.
            return None, f"{self.name} marks the ends of pictures where none are"
        if packet is None or packet.size == 0:
            return None, f"{self.name} has ended"
        if not self._is_timed:
            packet.pts = packet.dts = None
        elif self._relay is not None and packet.pts is not None and packet.stream.type == "video":
            start = bytes(memoryview(packet)[:START_BYTES])
            if is_empty(start):
                return None, f"{self.name} has ended"
            packet.pts += stamp_change(start)
        return packet, ""

    def _events(self, packet: Any, arrived_ns: int) -> Iterator[Event]:
        track = self._tracks[packet.stream.index]
        if packet.pts is not None:
            end_ns = track.end_ns(packet)
            if self._fit.is_ready and track.jumped(packet, arrived_ns - self._fit.map(end_ns)):
                self._fit.reset()
                for other in self._tracks.values():
                    other.cut()
            self._fit.observe(end_ns, arrived_ns)

        offset_ns = self._offset_ns + self.delays_ns.get(track.info.name, 0)

        def place(source_ns: int, length_ns: int) -> int:
            # Nothing was captured after it arrived, whatever the fit still has to learn.
            captured_ns = self._fit.map(source_ns) - self._transport_ns
            return min(captured_ns, arrived_ns - length_ns) - offset_ns

        yield from track.events(packet, place, arrived_ns - offset_ns)

    def _refused(self, error: Exception) -> str:
        if getattr(error, "errno", None) == errno.ECONNREFUSED:
            return f"{self.name} refused the connection. Check the address, and that the camera is on."
        detail = (getattr(error, "strerror", None) or str(error)).replace(self._url, self.name)
        return f"{self.name} cannot be read: {detail}. Expected a camera, or a stream that FFmpeg can read."


class _Track(ABC):
    """One stream of an open URL: its decoder, and where in time it is."""

    def __init__(self, stream: Any, info: StreamInfo) -> None:
        self.stream = stream
        self.info = info
        self.index: int = stream.index
        self.broken = False
        """The next frame has nothing to do with the last."""
        self.ended = False
        self._last: int | None = None

    @abstractmethod
    def length_ns(self, packet: Any) -> int:
        """How long capturing lasted: sound is sent when its last sample is there."""
        ...

    def end_ns(self, packet: Any) -> int:
        """When capturing the packet was over, by the sender's clock."""
        return ns(packet.pts, packet.time_base) + self.length_ns(packet)

    def jumped(self, packet: Any, away_ns: int) -> bool:
        """True if the sender's timestamps have, by themselves or `away_ns` against their arrival."""
        stamp: int = packet.pts if packet.dts is None else packet.dts
        last, self._last = self._last, stamp
        return last is not None and (stamp <= last or abs(away_ns) > JUMP_NS)

    def cut(self) -> None:
        """What comes next has nothing to do with what came."""
        self.broken = True
        self._last = None

    def decode(self, packet: Any) -> list[Any] | None:
        """The frames of a packet, none while the decoder waits for more; None if it cannot be decoded."""
        import av

        try:
            return list(packet.decode())
        except (av.FFmpegError, OSError):
            return None

    @abstractmethod
    def events(self, packet: Any, place: Callable[[int, int], int], now_ns: int) -> Iterator[Event]:
        """What a packet holds; `place(source_ns, length_ns)` is a time on the session's timeline."""
        ...


class _Pictures(_Track):
    """Pictures, decoded without frame threads, each of which would hold one back."""

    def __init__(self, stream: Any, want: VideoWant, *, is_timed: bool) -> None:
        stream.thread_type = "NONE"
        context = stream.codec_context
        context.thread_count = 1
        context.flags |= 0x80000  # AV_CODEC_FLAG_LOW_DELAY
        rate = (stream.average_rate or stream.guessed_rate) if is_timed else None
        # A rate beyond this is FFmpeg's guess at a stream that names none.
        interval_ns = round(10**9 / rate) if rate and rate <= 1000 else None
        super().__init__(stream, StreamInfo(want.name, "video", None, interval_ns, context.width, context.height))
        self._want = want
        self._reformatter = Reformatter(PIXEL_FORMATS[want.color])
        self._last_ns = -1

    def length_ns(self, packet: Any) -> int:
        """A picture is of one moment."""
        return 0

    def cut(self) -> None:
        """What comes next has nothing to do with what came."""
        super().cut()
        self._last_ns = -1

    def events(self, packet: Any, place: Callable[[int, int], int], now_ns: int) -> Iterator[Event]:
        """The picture of a packet."""
        frames = self.decode(packet)
        if frames is None:
            yield Lost(self._want.name, "corrupt", now_ns)
            return
        for frame in frames:
            if frame.pts is None:
                capture_ns = max(now_ns, self._last_ns + 1)
                pts, time_base = capture_ns, Fraction(1, 10**9)
            else:
                pts, time_base = frame.pts, frame.time_base or self.stream.time_base
                # While the fit finds the earliest arrivals it moves back; pictures in order stay so.
                capture_ns = max(place(ns(pts, time_base), 0), self._last_ns + 1)
            if capture_ns < 0:
                continue
            self._last_ns = capture_ns
            if frame.is_corrupt:
                yield Lost(self._want.name, "corrupt", capture_ns)
                continue
            picture = self._reformatter.picture(frame)
            broken, self.broken, self.ended = self.broken, False, False
            yield VideoFrame(self._want.name, pts, time_base, capture_ns, picture, self._want.color, broken)


class _Sound(_Track):
    """Sound, in pieces of at most 10 ms."""

    def __init__(self, stream: Any, want: AudioWant, meter: LevelMeter) -> None:
        super().__init__(stream, StreamInfo(want.name, "audio", rate_hz=want.rate_hz))
        self._want = want
        self._meter = meter
        self._shape: tuple[str, str, int] | None = None
        self._planar: Any = None
        self._chunks: ChunkMaker | None = None
        self._expected_ns: int | None = None

    def length_ns(self, packet: Any) -> int:
        """The packet's length in time."""
        return ns(packet.duration, packet.time_base) if packet.duration else 0

    def cut(self) -> None:
        """What comes next has nothing to do with what came."""
        super().cut()
        self._expected_ns = None

    def events(self, packet: Any, place: Callable[[int, int], int], now_ns: int) -> Iterator[Event]:
        """The sound of a packet, and what is missing before it."""
        frames = self.decode(packet)
        if frames is None:
            self.cut()
            yield Lost(self._want.name, "corrupt", now_ns)
            return
        for frame in frames:
            length_ns = frame.samples * 10**9 // frame.sample_rate
            if frame.pts is not None:
                source_ns = ns(frame.pts, frame.time_base or self.stream.time_base)
            elif self._expected_ns is not None:
                source_ns = self._expected_ns
            else:
                continue
            if self._expected_ns is not None and abs(source_ns - self._expected_ns) > GAP_NS:
                missing_ns = source_ns - self._expected_ns
                self.cut()
                if missing_ns > 0:
                    count = max(1, round(missing_ns * BLOCKS_PER_SECOND / 10**9))
                    yield Lost(self._want.name, "network", max(0, place(source_ns, 0)), count)
            self._expected_ns = source_ns + length_ns
            yield from self._cut_up(self._mono(frame), frame.sample_rate, source_ns, place)

    def _cut_up(
        self, samples: npt.NDArray[np.float32], rate_hz: int, source_ns: int, place: Callable[[int, int], int]
    ) -> Iterator[AudioChunk]:
        chunks = self._chunks
        if chunks is None:
            chunks = self._chunks = ChunkMaker(self._want, rate_hz, self._meter, broken=self.broken)
        elif self.broken:
            chunks.cut()
        self.broken = self.ended = False
        size = max(1, rate_hz // BLOCKS_PER_SECOND)
        for first in range(0, len(samples), size):
            # The packet has arrived as a whole: its end bounds the times of all its pieces.
            left_ns = (len(samples) - first) * 10**9 // rate_hz
            capture_ns = place(source_ns + first * 10**9 // rate_hz, left_ns)
            if capture_ns < 0:
                continue  # before the session
            chunk = chunks.make(samples[first : first + size], capture_ns)
            if chunk is not None:
                yield chunk

    def _mono(self, frame: Any) -> npt.NDArray[np.float32]:
        from av.audio.resampler import AudioResampler

        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if shape != self._shape:
            if self._shape is not None:
                # Another rate is another device as far as counting samples goes.
                self.broken, self._chunks = True, None
            self._shape = shape
            self._planar = AudioResampler(format="fltp", layout=frame.layout.name, rate=frame.sample_rate)
        parts = [part.to_ndarray() for part in self._planar.resample(frame)]
        mixed = [part[0] if len(part) == 1 else part.mean(axis=0, dtype=np.float32) for part in parts]
        return np.concatenate(mixed) if mixed else np.empty(0, np.float32)


def without_password(url: str) -> str:
    """The URL as it may be shown and stored: user names and passwords are left out."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _options(url: str) -> dict[str, str]:
    options = {"fflags": "nobuffer", "flags": "low_delay", "probesize": "500000", "analyzeduration": "500000"}
    if url.startswith("rtsp"):
        # Over UDP a lost packet is a broken picture, and most networks between a camera and a board are wires.
        options["rtsp_transport"] = "tcp"
        options["reorder_queue_size"] = "0"
    return options


def _producer_ns(packet: Any) -> int | None:
    """The sender's wall clock at the packet's capture, in ns since 1970; None where it does not tell."""
    # PyAV 13 cannot tell; the delay then counts as zero at its shortest.
    for data in getattr(packet, "iter_sidedata", tuple)():
        if data.data_type == "prft":
            # AVProducerReferenceTime (libavcodec/packet.h): int64 microseconds, int flags.
            return int(struct.unpack_from("<q", bytes(data))[0]) * 1000
    return None
