"""An RTSP server that sends H.264 or H.265 exactly as told: slices, marker bits, pauses, B pictures."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from urllib.parse import urlsplit

import av
import numpy as np

FPS = 25
BASE = (1 << 32) - 2 * 90000
"""The RTP clock begins here, and comes around after two seconds."""


def level(number: int) -> int:
    """The gray of a picture."""
    return 20 + number * 37 % 200


@dataclass(frozen=True)
class Picture:
    """A coded picture in the order of sending."""

    number: int
    units: list[bytes]


def encode(codec: str, count: int, options: str, size: tuple[int, int] = (320, 240)) -> list[Picture]:
    """`count` flat pictures of their `level`s with noise; `options` are the encoder's own."""
    name = {"H264": "libx264", "H265": "libx265"}[codec]
    context = av.CodecContext.create(name, "w")
    context.width, context.height, context.pix_fmt = *size, "yuv420p"
    context.time_base, context.framerate = Fraction(1, FPS), Fraction(FPS)
    tune = {} if "bframes" in options else {"tune": "zerolatency"}
    context.options = {"preset": "ultrafast", f"{name[3:]}-params": f"keyint=25:repeat-headers=1:{options}", **tune}
    noise = np.random.default_rng(0).integers(-12, 13, (size[1], size[0]))
    packets = []
    for number in range(count):
        picture = (level(number) + np.roll(noise, number * 5, 1)).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, FPS)
        packets += context.encode(frame)
    packets += context.encode(None)
    return [Picture(packet.pts, [u for u in re.split(rb"\x00{2,}\x01", bytes(packet)) if u]) for packet in packets]


def payloads(codec: str, unit: bytes, limit: int) -> list[bytes]:
    """A NAL unit as RTP carries it: as it is, or in fragments (RFC 6184, 5.8; RFC 7798, 4.4.3)."""
    if len(unit) <= limit:
        return [unit]
    if codec == "H264":
        head, kind, body = bytes([unit[0] & 0xE0 | 28]), unit[0] & 31, unit[1:]
    else:
        head, kind, body = bytes([unit[0] & 0x81 | 49 << 1, unit[1]]), unit[0] >> 1 & 63, unit[2:]
    pieces = [body[at : at + limit] for at in range(0, len(body), limit)]
    flags = [0x80 * (not n) | 0x40 * (n == len(pieces) - 1) for n in range(len(pieces))]
    return [head + bytes([flag | kind]) + piece for flag, piece in zip(flags, pieces, strict=True)]


@dataclass
class H26xServer:
    """Serves pictures in real time to one client after the other.

    `marks(position, unit, units)` says whether a NAL unit's last packet is marked; `pauses` are seconds before a
    position, and `slow` is one whose NAL units come 20 ms apart.
    """

    codec: str
    pictures: list[Picture]
    marks: Callable[[int, int, int], bool] = lambda position, unit, count: unit == count - 1
    pauses: dict[int, float] = field(default_factory=dict)
    slow: int | None = None
    limit: int = 1000
    sent: dict[int, tuple[float, float]] = field(default_factory=dict)
    """When sending a position began and was over, by the machine's monotonic clock, in seconds."""
    requests: list[str] = field(default_factory=list)
    hosts: tuple[str, ...] = ()
    """The only names that it answers to; any, if none."""

    def __enter__(self) -> H26xServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://user:pass@127.0.0.1:{self._listener.getsockname()[1]}/live"
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while not self._end.is_set():
            with suppress(OSError):
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with client:
                    self._talk(client)
                    self._send(client)

    def _talk(self, client: socket.socket) -> None:
        lines = client.makefile("r", newline="\r\n")
        sdp = f"v=0\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 {self.codec}/90000\r\na=control:track\r\n"
        if self.codec == "H264":
            sdp += "a=fmtp:96 packetization-mode=1\r\n"
        while True:
            request = lines.readline()
            if not request:
                raise ConnectionError
            number = ""
            self.requests.append(request.strip())
            while (line := lines.readline()).strip():
                if line.lower().startswith("cseq"):
                    number = line.strip()
            if self.hosts and urlsplit(request.split()[1]).netloc not in self.hosts:
                client.sendall(f"RTSP/1.0 404 Not Found\r\n{number}\r\n\r\n".encode())
                raise ConnectionError
            head, body = f"RTSP/1.0 200 OK\r\n{number}\r\nSession: 1\r\n", ""
            if request.startswith("DESCRIBE"):
                body = sdp
                head += f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            elif request.startswith("SETUP"):
                head += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            client.sendall(f"{head}\r\n{body}".encode())
            if request.startswith("PLAY"):
                return

    def _send(self, client: socket.socket) -> None:
        begin, number = time.monotonic(), 0
        for position, picture in enumerate(self.pictures):
            begin += self.pauses.get(position, 0.0)
            if self._end.wait(max(0, begin + position / FPS - time.monotonic())):
                return
            first = time.monotonic()
            for at, unit in enumerate(picture.units):
                if position == self.slow:
                    time.sleep(0.02)
                parts = payloads(self.codec, unit, self.limit)
                for part in parts:
                    mark = part is parts[-1] and self.marks(position, at, len(picture.units))
                    stamp = (BASE + picture.number * 90000 // FPS) % (1 << 32)
                    rtp = struct.pack(">BBHII", 0x80, 96 | mark << 7, number % (1 << 16), stamp, 7) + part
                    client.sendall(struct.pack(">BBH", 0x24, 0, len(rtp)) + rtp)
                    number += 1
            self.sent[position] = first, time.monotonic()
        self._end.wait(0.2)
