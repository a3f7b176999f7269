"""Tells FFmpeg where the H.264 and H.265 pictures of an RTSP connection end, when they end.

FFmpeg cuts such a stream into pictures where the next one begins, and so hands each over one whole picture late: 40 ms
at 25 a second. The sender has said it before, in the marker bit of the picture's last RTP packet (RFC 6184, 5.1; RFC
7798, 4.1), which FFmpeg does not use. `PictureEnds` rewrites what a server sends over the connection (RFC 2326, 10.12:
RTSP messages, and RTP packets between them): after a marked packet it adds one with an access unit delimiter, by which
FFmpeg knows at once that the picture is over.

FFmpeg stamps what follows the delimiter, thus the next picture, with the delimiter's time. How far that is off is known
when the next picture begins, and `PictureEnds` says it there, in a message for this module alone (SEI, user data
unregistered) that `stamp_change` reads. All else passes as it is, but for the sequence numbers of the packets.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

PROVEN = 10
"""So many pictures must have ended with their marked packet before a marker is believed: some senders mark slices."""

LONGEST_TEXT = 1 << 16
"""An RTSP message beyond this is none; descriptions of cameras have about 1000 bytes."""

_MESSAGE = b"edgemm-stamp-by:"
"""16 bytes, as the message's type asks for; without zeros, which would need escapes."""

START_BYTES = 64
"""So many first bytes of a picture hold the message: before it are a delimiter and two start codes."""

_TEXT_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"(?im)^content-length\s*:\s*(\d+)")
_MEDIA = re.compile(rb"(?m)^m=")
_RTP_MAP = re.compile(rb"a=rtpmap:(\d+)\s+([^/\s]+)")


@dataclass(frozen=True)
class _Codec:
    """How RTP carries a codec's NAL units."""

    header_bytes: int
    aggregates: frozenset[int]
    fragments: frozenset[int]
    delimiter: bytes
    message: bytes
    """The head of a message with 24 bytes of user data."""

    def kind(self, first: int) -> int:
        """The type of a NAL unit by its first byte."""
        return first & 31 if self.header_bytes == 1 else first >> 1 & 63

    def is_slice(self, kind: int) -> bool:
        """Whether the type is a piece of picture."""
        return 1 <= kind <= 5 if self.header_bytes == 1 else kind < 32

    def holds_slice(self, payload: memoryview) -> bool:
        """Whether an RTP payload holds a slice or a part of one."""
        if len(payload) <= self.header_bytes:
            return False
        kind = self.kind(payload[0])
        if kind in self.fragments:
            # The type is in the fragment's own header.
            last = payload[self.header_bytes]
            return self.is_slice(last & (31 if self.header_bytes == 1 else 63))
        if kind in self.aggregates:
            at = self.header_bytes
            while at + 2 < len(payload):
                if self.is_slice(self.kind(payload[at + 2])):
                    return True
                at += 2 + int.from_bytes(payload[at : at + 2], "big")
            return False
        return self.is_slice(kind)


_CODECS = {
    # RFC 6184, table 3: STAP-A; FU-A. STAP-B, MTAP and FU-B are of the interleaved mode, where markers say nothing.
    b"H264": _Codec(1, frozenset({24}), frozenset({28}), b"\x09\xf0", b"\x06\x05\x18"),
    # RFC 7798, 4.4: AP; FU.
    b"H265": _Codec(2, frozenset({48}), frozenset({49}), b"\x46\x01\x50", b"\x4e\x01\x05\x18"),
}


_DELIMITERS = frozenset(codec.delimiter for codec in _CODECS.values())


class PictureEnds:
    """Rewrites the bytes that an RTSP server sends over one connection."""

    def __init__(self) -> None:
        self.misled = False
        """True once a picture went on behind its marked packet: the markers are not to be believed, and what was
        handed over as a picture was a part of one."""
        self.is_needless = False
        """True once the session's description has come, and names no such stream."""
        self._held = bytearray()
        self._codecs: dict[int, _Codec | None] = {}
        """By RTP payload type; None for one that has two meanings."""
        self._streams: dict[int, _Stream] = {}
        """By channel."""
        self._verbatim = False

    def feed(self, data: bytes) -> bytes:
        """The bytes to hand on; whole messages and packets, so a part may be kept for the next call."""
        self._held += data
        out = bytearray()
        while piece := self._take():
            if self._verbatim:
                out += piece
            elif piece[0] == 0x24:
                out += self._packet(piece)
            else:
                self._describe(piece)
                out += piece
        return bytes(out)

    def _take(self) -> bytearray:
        """The next message or packet; empty if it is not there as a whole."""
        held = self._held
        size = self._size()
        if size > len(held):
            return bytearray()
        piece = held[:size]
        del held[:size]
        return piece

    def _size(self) -> int:
        """How long the next message or packet is; more than there is if that is not known yet."""
        held = self._held
        more = len(held) + 1
        if self._verbatim or not held:
            return len(held)
        if held[0] == 0x24:
            return 4 + int.from_bytes(held[2:4], "big") if len(held) >= 4 else more
        if held[0] in b"\r\n":
            return 1
        end = _TEXT_END.search(held) if held[:1].isalpha() else None
        if end is not None:
            length = _LENGTH.search(held, 0, end.start())
            return end.end() + (int(length[1]) if length else 0)
        if held[:1].isalpha() and len(held) <= LONGEST_TEXT:
            return more
        # FFmpeg makes what it can of a server that speaks otherwise.
        self._verbatim = True
        return len(held)

    def _describe(self, text: bytearray) -> None:
        """Learn from a session's description (RFC 8866) which payload types are which codec."""
        if not _MEDIA.search(text):
            return
        for number, name in _RTP_MAP.findall(text):
            kind, codec = int(number), _CODECS.get(name.upper())
            self._codecs[kind] = codec if self._codecs.get(kind, codec) is codec else None
        self.is_needless = not any(self._codecs.values())

    def _packet(self, piece: bytearray) -> bytes | bytearray:
        """An interleaved packet, and what is to be sent with it."""
        if len(piece) < 16 or piece[4] >> 6 != 2:
            return piece
        codec = self._codecs.get(piece[5] & 127)
        if codec is None:
            return piece
        stream = self._streams.setdefault(piece[1], _Stream())
        out = stream.rewrite(piece, codec, trust=not self.misled)
        self.misled = self.misled or stream.misled
        return out


class _Stream:
    """The pictures of one channel."""

    def __init__(self) -> None:
        self.misled = False
        self._stamp: int | None = None
        self._has_slice = False
        self._is_over = False
        """The picture's marked packet has come."""
        self._proven = 0
        self._delimiter_stamp: int | None = None
        """Where the current picture was ended: the stamp that FFmpeg gives to the next."""
        self._added = 0

    def rewrite(self, piece: bytearray, codec: _Codec, *, trust: bool) -> bytearray:
        """The packet with its number in the sequence, a message before it, a delimiter behind it."""
        out = bytearray()
        stamp = int.from_bytes(piece[8:12], "big")
        holds_slice = codec.holds_slice(_payload(piece))
        if stamp != self._stamp:
            self._proven += self._is_over
            self._stamp, self._has_slice, self._is_over = stamp, False, False
            if self._delimiter_stamp is not None:
                change = (stamp - self._delimiter_stamp) % (1 << 32)
                out += self._made(piece, stamp, codec.message + _MESSAGE + b"%08x" % change + b"\x80", 0)
                self._delimiter_stamp = None
        elif self._is_over and holds_slice:
            # Before a marker was believed it costs nothing but the hope.
            self.misled = self.misled or self._delimiter_stamp is not None
            self._proven = -(1 << 62)
        number = int.from_bytes(piece[6:8], "big")
        piece[6:8] = ((number + self._added) % (1 << 16)).to_bytes(2, "big")
        out += piece
        self._has_slice = self._has_slice or holds_slice
        if piece[5] & 0x80 and self._has_slice and not self._is_over:
            self._is_over = True
            if self._proven >= PROVEN and trust:
                # A stamp of its own: FFmpeg takes two pictures of one time for a mistake.
                self._delimiter_stamp = (stamp + 1) % (1 << 32)
                out += self._made(piece, self._delimiter_stamp, codec.delimiter, 1)
        return out

    def _made(self, beside: bytearray, stamp: int, unit: bytes, after: int) -> bytes:
        """A packet with one NAL unit; `after` is 1 if it follows `beside`, whose number is final, and 0 before it."""
        number = int.from_bytes(beside[6:8], "big") + (1 if after else self._added)
        self._added += 1
        rtp = struct.pack(">BBHI4s", 0x80, beside[5] & 127, number % (1 << 16), stamp, beside[12:16]) + unit
        return struct.pack(">BBH", 0x24, beside[1], len(rtp)) + rtp


def stamp_change(start: bytes) -> int:
    """How much later than FFmpeg says a picture is, in ticks of its RTP clock, by its first START_BYTES bytes."""
    at = start.find(_MESSAGE)
    digits = start[at + len(_MESSAGE) : at + len(_MESSAGE) + 8]
    if at < 0 or len(digits) < 8:
        return 0
    change = int(digits, 16)
    return change - (1 << 32) if change >> 31 else change


def is_empty(packet: bytes) -> bool:
    """True for a picture of which there is nothing but the delimiter before it: the stream has ended."""
    return packet.lstrip(b"\0")[1:] in _DELIMITERS


def _payload(piece: bytearray) -> memoryview:
    """What an interleaved RTP packet carries (RFC 3550, 5.1)."""
    payload = memoryview(piece)[4:].toreadonly()
    first = payload[0]
    begin = 12 + 4 * (first & 15)
    if first & 0x10:
        begin += 4 + 4 * int.from_bytes(payload[begin + 2 : begin + 4], "big")
    end = len(payload) - (payload[-1] if first & 0x20 else 0)
    return payload[begin : max(begin, end)]
