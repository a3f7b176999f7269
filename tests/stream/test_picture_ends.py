"""Delimiters where an RTSP server marks that a picture is over: only there, once proven; all else is untouched."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemm.stream.sources.picture_ends import PROVEN, START_BYTES, PictureEnds, is_empty, stamp_change

HEADS = {"H264": b"\x41", "H265": b"\x02\x01"}
"""Of a slice."""
DELIMITERS = {"H264": b"\x09\xf0", "H265": b"\x46\x01\x50"}
MESSAGES = {"H264": b"\x06\x05\x18edgemm", "H265": b"\x4e\x01\x05\x18edgemm"}
CODECS = pytest.mark.parametrize("codec", ["H264", "H265"])


def described(codec: str, *more: str) -> bytes:
    lines = ["v=0", "m=video 0 RTP/AVP 96", f"a=rtpmap:96 {codec}/90000", *more]
    body = "\r\n".join(lines) + "\r\n"
    return f"RTSP/1.0 200 OK\r\nCSeq: 2\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def rtp(payload: bytes, stamp: int, number: int = 0, *, mark: bool = False, kind: int = 96, channel: int = 0) -> bytes:
    head = struct.pack(">BBHII", 0x80, kind | mark << 7, number % (1 << 16), stamp % (1 << 32), 0x1234)
    return struct.pack(">BBH", 0x24, channel, len(head) + len(payload)) + head + payload


@dataclass
class Packet:
    channel: int
    mark: bool
    kind: int
    number: int
    stamp: int
    payload: bytes


def packets(data: bytes) -> list[Packet]:
    """The packets of a connection that holds nothing else behind its description."""
    found = []
    data = data[data.index(b"$") :] if b"$" in data else b""
    while data:
        _, channel, size = struct.unpack_from(">BBH", data)
        _, kind, number, stamp, source = struct.unpack_from(">BBHII", data, 4)
        assert source == 0x1234
        found.append(Packet(channel, bool(kind >> 7), kind & 127, number, stamp, data[16 : 4 + size]))
        data = data[4 + size :]
    return found


def pictures(codec: str, count: int, slices: int = 1, *, first: int = 0, each: bool = False) -> bytes:
    """`count` pictures of `slices` packets, 3600 apart; the last packet is marked, with `each` all are."""
    out = b""
    for n in range(first, first + count):
        for i in range(slices):
            out += rtp(HEADS[codec] + bytes([n, i]), n * 3600, n * slices + i, mark=each or i == slices - 1)
    return out


def added(codec: str, data: bytes) -> list[Packet]:
    return [p for p in packets(data) if p.payload.startswith((DELIMITERS[codec], MESSAGES[codec]))]


@CODECS
@pytest.mark.parametrize("slices", [1, 4])
def test_a_delimiter_follows_each_picture_once_markers_are_proven(codec: str, slices: int) -> None:
    out = packets(PictureEnds().feed(described(codec) + pictures(codec, PROVEN + 3, slices)))
    plain, rest = out[: (PROVEN + 1) * slices - slices], out[(PROVEN + 1) * slices - slices :]
    assert all(p.payload.startswith(HEADS[codec]) for p in plain)
    first, second = rest[: slices + 1], rest[slices + 1 : 2 * slices + 3]
    assert first[-1].payload == DELIMITERS[codec]
    assert not first[-1].mark
    assert first[-1].stamp == PROVEN * 3600 + 1
    assert second[0].payload.startswith(MESSAGES[codec])
    start = b"\0\0\0\1" + first[-1].payload + b"\0\0\0\1" + second[0].payload
    assert len(start) <= START_BYTES
    assert first[-1].stamp + stamp_change(start) == second[0].stamp == second[1].stamp == (PROVEN + 1) * 3600
    assert second[-1].payload == DELIMITERS[codec]
    assert [p.number for p in out] == list(range(len(out))), "no packet is missing for a receiver that counts"


@given(st.integers(0, (1 << 32) - 1), st.integers(-(1 << 31) + 1, (1 << 31) - 2))
def test_a_stamp_is_told_wherever_the_clock_is(stamp: int, step: int) -> None:
    ends = PictureEnds()
    ends.feed(described("H264"))
    for n in range(PROVEN + 1):
        out = ends.feed(rtp(b"\x41\x01", stamp - 3600 * (PROVEN - n), mark=True))
    [_, delimiter] = packets(out)
    if step == 0:
        return
    message, _, *_ = packets(ends.feed(rtp(b"\x41\x02", stamp + step, mark=True)))
    assert (delimiter.stamp + stamp_change(message.payload)) % (1 << 32) == (stamp + step) % (1 << 32)
    assert stamp_change(message.payload) == step - 1


UNITS = st.sampled_from([b"\x41\x11", b"\x65\x22\x33", b"\x67\x01", b"\x06\x01\x02", b"\x1c\x81\x00", b"\x1c\x41\x00"])
SENT = st.lists(
    st.one_of(
        st.tuples(UNITS, st.booleans(), st.booleans()),
        st.sampled_from(
            [b"\r\n", b"RTSP/1.0 200 OK\r\nCSeq: 7\r\n\r\n", rtp(b"sound", 5, kind=97, channel=2), b"$\1\0\4RTCP"]
        ),
    ),
    max_size=60,
)


@given(SENT, st.lists(st.integers(0, 3000), max_size=20))
def test_it_makes_no_difference_how_the_bytes_come_and_none_is_lost(sent: list, cuts: list[int]) -> None:
    data, plain, stamp, number = described("H264") + pictures("H264", PROVEN + 1), b"", (PROVEN + 1) * 3600, PROVEN + 1
    for item in sent:
        if isinstance(item, bytes):
            data += item
            continue
        unit, new, mark = item
        stamp += 3600 * new
        data += rtp(unit, stamp, number, mark=mark)
        plain += unit
        number += 1
    whole = PictureEnds().feed(data)
    ends, pieces, last = PictureEnds(), b"", 0
    for cut in [*sorted(cuts), len(data)]:
        pieces += ends.feed(data[last : max(last, cut)])
        last = max(last, cut)
    assert pieces == whole
    # All that was sent comes out, in order, but for the numbers of packets.
    at = 0
    while at < len(whole):
        if whole[at] != 0x24:
            assert whole[at] == data[0]
            at, data = at + 1, data[1:]
            continue
        size = 4 + int.from_bytes(whole[at + 2 : at + 4], "big")
        piece = whole[at : at + size]
        at += size
        if piece[16:].startswith((DELIMITERS["H264"], MESSAGES["H264"])):
            continue
        assert piece[:6] + piece[8:] == data[:6] + data[8:size] or piece == data[:size]
        data = data[size:]
    assert not data


def test_a_sender_that_marks_slices_is_left_alone() -> None:
    ends = PictureEnds()
    data = described("H264") + pictures("H264", 30, 3, each=True)
    assert ends.feed(data) == data
    assert not ends.misled


@CODECS
def test_markers_that_turn_out_wrong_are_noticed_at_once(codec: str) -> None:
    ends = PictureEnds()
    assert added(codec, ends.feed(described(codec) + pictures(codec, PROVEN + 5, 2)))
    assert not ends.misled
    ends.feed(rtp(HEADS[codec] + b"\x01", 10**6, mark=True))
    assert not ends.misled
    assert not added(codec, ends.feed(rtp(HEADS[codec] + b"\x02", 10**6, mark=True)))
    assert ends.misled
    after = packets(ends.feed(pictures(codec, 3, first=100)))
    assert DELIMITERS[codec] not in [p.payload for p in after]


def test_what_is_no_slice_neither_ends_a_picture_nor_continues_one() -> None:
    ends = PictureEnds()
    ends.feed(described("H264") + pictures("H264", PROVEN + 1))
    out = ends.feed(rtp(b"\x67\x42", 10**6, mark=True) + rtp(b"\x68\x42", 10**6, mark=True))
    assert [p.payload[:1] for p in packets(out)] == [b"\x06", b"\x67", b"\x68"], "parameter sets that are marked"
    out = ends.feed(rtp(b"\x65\x88", 10**6, mark=True) + rtp(b"\x0c\xff", 10**6, mark=True))
    assert [p.payload[:1] for p in packets(out)] == [b"\x65", b"\x09", b"\x0c"], "filler behind the end"
    assert not ends.misled


@pytest.mark.parametrize(
    ("codec", "payload", "holds"),
    [
        ("H264", b"\x18\x00\x02\x67\x01\x00\x02\x65\x88", True),
        ("H264", b"\x18\x00\x02\x67\x01\x00\x02\x68\x88", False),
        ("H264", b"\x7c\x45\x00", True),
        ("H264", b"\x7c\x47\x00", False),
        ("H264", b"\x7c", False),
        ("H264", b"", False),
        ("H265", b"\x60\x01\x00\x03\x42\x01\x00\x00\x03\x26\x01\x00", True),
        ("H265", b"\x60\x01\x00\x03\x42\x01\x00\x00\x03\x44\x01\x00", False),
        ("H265", b"\x62\x01\x53\x00", True),
        ("H265", b"\x62\x01\x61\x00", False),
    ],
)
def test_slices_are_found_in_aggregates_and_fragments(codec: str, payload: bytes, holds: bool) -> None:
    ends = PictureEnds()
    ends.feed(described(codec) + pictures(codec, PROVEN + 1))
    out = ends.feed(rtp(payload, 10**6, mark=True))
    assert (packets(out)[-1].payload == DELIMITERS[codec]) == holds


def test_contributors_extensions_and_padding_of_a_packet_are_no_payload() -> None:
    ends = PictureEnds()
    ends.feed(described("H264") + pictures("H264", PROVEN + 1))
    head = struct.pack(">BBHII", 0x80 | 0x20 | 0x10 | 1, 96 | 0x80, 1, 10**6, 0x1234)
    body = head + b"CSRC" + b"\xbe\xde\x00\x01\x10\x20\x30\x40" + b"\x65\x88" + b"\x00\x00\x03"
    out = ends.feed(struct.pack(">BBH", 0x24, 0, len(body)) + body)
    assert packets(out)[-1].payload == DELIMITERS["H264"]


@pytest.mark.parametrize(
    "sdp",
    [
        described("JPEG"),
        described("H264", "m=audio 0 RTP/AVP 96", "a=rtpmap:96 L16/16000"),
        described("H264", "m=video 0 RTP/AVP 96", "a=rtpmap:96 H265/90000"),
        b"",
    ],
)
def test_streams_that_are_other_or_unclear_pass_as_they_are(sdp: bytes) -> None:
    data = sdp + pictures("H264", PROVEN + 5)
    ends = PictureEnds()
    assert ends.feed(data) == data
    assert ends.is_needless == bool(sdp)


@pytest.mark.parametrize("noise", [b"\x00\x01\x02", b"HTTP" + bytes(70_000)])
def test_a_server_that_speaks_otherwise_is_handed_on(noise: bytes) -> None:
    ends = PictureEnds()
    data = described("H264") + noise + pictures("H264", PROVEN + 5)
    assert ends.feed(data) + ends.feed(b"$more") == data + b"$more"


def test_lines_may_end_without_a_return() -> None:
    data = b"RTSP/1.0 200 OK\nCSeq: 1\n\n"
    assert PictureEnds().feed(data) == data


def test_packets_that_are_none_pass() -> None:
    ends = PictureEnds()
    short, foreign = b"$\0\0\3abc", b"$\0\0\x10" + b"\x00" * 16
    assert ends.feed(short + foreign) == short + foreign


def test_what_ffmpeg_hands_over_is_read() -> None:
    assert stamp_change(b"\0\0\0\1\x41\x9a\x00") == 0
    assert stamp_change(b"edgemm-stamp-by:0e0") == 0, "cut off"
    assert is_empty(b"\0\0\0\1\x09\xf0")
    assert is_empty(b"\0\0\1\x46\x01\x50")
    assert not is_empty(b"\0\0\0\1\x09\xf0\0\0\1\x41\x9a")
