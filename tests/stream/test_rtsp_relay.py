"""H.264 and H.265 over RTSP: each picture is handed over when it is complete, the right one, with its own time."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from h26x_server import FPS, H26xServer, encode, level

from edgemm.errors import SourceError
from edgemm.stream.clock import WallClock
from edgemm.stream.frames import End, Event, Lost, VideoFrame
from edgemm.stream.sources import network
from edgemm.stream.sources.network import NetworkSource
from edgemm.stream.sources.protocol import VideoWant
from edgemm.stream.sources.rtsp_relay import RtspRelay

pytestmark = pytest.mark.real_time

PICTURE = VideoWant("camera", "gray")
B_PICTURES = "bframes=2:b-adapt=0:rc-lookahead=0:sync-lookahead=0"


def watched(
    source: NetworkSource, until: Callable[[Event], bool] = lambda event: isinstance(event, End)
) -> list[tuple[float, Event]]:
    """What comes, and when by the monotonic clock, from entering the source until an event that ends it."""
    events: list[tuple[float, Event]] = []
    timer = threading.Timer(15, source.stop)
    with source:
        source.start(WallClock())
        timer.start()
        for event in source:
            events.append((time.monotonic(), event))
            if until(event):
                source.stop()
    timer.cancel()
    return events


def shown(events: list[tuple[float, Event]]) -> dict[int, float]:
    """When each picture came, by its number as its own time tells it; what it shows must agree."""
    times = {}
    for at, event in events:
        if isinstance(event, VideoFrame):
            number = event.pts * event.time_base * FPS
            assert number == round(number), "a time that no picture has"
            assert abs(event.picture.mean() - level(int(number))) < 4, "another picture's time"
            times[int(number)] = at
    return times


@pytest.fixture(autouse=True)
def _no_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    # The sender here tells none.
    monkeypatch.setattr(network, "REPORT_NS", 0)


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("H264", "sliced-threads=0"),
        ("H264", "slices=4:aud=1:sliced-threads=0"),
        ("H265", "log-level=none:slices=3"),
    ],
)
def test_a_picture_comes_before_the_next_is_sent(codec: str, options: str) -> None:
    # Silence behind a picture is no reason to wait for it.
    with H26xServer(codec, encode(codec, 70, options), pauses={55: 0.8}) as server:
        times = shown(watched(NetworkSource(server.url, [PICTURE])))
    assert sorted(times) == list(range(min(times), 70)), "all, to the very last"
    assert min(times) < 50
    assert times[54] < server.sent[55][0] - 0.5


def test_pictures_that_are_sent_out_of_order_are_shown_in_order() -> None:
    with H26xServer("H264", encode("H264", 70, B_PICTURES)) as server:
        events = watched(NetworkSource(server.url, [PICTURE]))
    times = shown(events)
    assert sorted(times) == list(times)
    assert len(times) >= 35
    assert not [event for _, event in events if isinstance(event, Lost)]


def test_slices_that_are_marked_each_are_put_together_as_before() -> None:
    pictures = encode("H264", 60, "slices=4:sliced-threads=0")
    with H26xServer("H264", pictures, marks=lambda position, unit, count: True) as server:
        events = watched(NetworkSource(server.url, [PICTURE]))
    times = shown(events)
    assert sorted(times) == list(range(min(times), 60))
    assert not [event for _, event in events if isinstance(event, Lost)]


@pytest.mark.slow
def test_markers_that_turn_out_wrong_cost_one_picture_and_an_opening(caplog: pytest.LogCaptureFixture) -> None:
    pictures = encode("H264", 75, "slices=4:sliced-threads=0")

    def marks(position: int, unit: int, count: int) -> bool:
        return position >= 50 or unit == count - 1

    # The first slice of a wrong picture is on its way when the next says that it was only one.

    numbers: list[int] = []

    def until(event: Event) -> bool:
        if isinstance(event, VideoFrame):
            numbers.append(round(event.pts * event.time_base * FPS))
        return len(numbers) > 1 and numbers[-1] == 74

    with H26xServer("H264", pictures, marks=marks, slow=50) as server, caplog.at_level(logging.WARNING):
        events = watched(NetworkSource(server.url, [PICTURE]), until)
    shown(events)
    assert "marks the ends of pictures where none are: trying to open it again" in caplog.text
    lost = [event for _, event in events if isinstance(event, Lost)]
    assert [event.cause for event in lost] == ["corrupt"]
    assert sum(isinstance(event, End) for _, event in events) == 1
    cut = numbers.index(49) + 1
    assert numbers[:cut] == list(range(numbers[0], 50))
    assert numbers[cut:] == list(range(numbers[cut], 75)), "without delimiters, from its beginning"


def test_a_server_that_knows_itself_by_its_name_only_is_asked_by_it() -> None:
    with H26xServer("H264", encode("H264", 40, "sliced-threads=0")) as server:
        name = urlsplit(server.url).netloc.partition("@")[2]
        server.hosts = (name,)
        times = shown(watched(NetworkSource(server.url, [PICTURE])))
    assert len(times) > 10
    asked = [urlsplit(line.split()[1]).netloc for line in server.requests]
    assert asked[0] != name
    assert asked[-1] == name


def test_a_server_without_such_pictures_is_left_to_the_client() -> None:
    with H26xServer("JPEG", []) as server:
        relay = RtspRelay(server.url, 1.0)
        parts = urlsplit(relay.url)
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as client:
            client.sendall(b"DESCRIBE x RTSP/1.0\r\nCSeq: 17\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(1000), b""))
        relay.close()
        place = server.url.replace("user:pass@", "")
        assert answer.decode() == f"RTSP/1.0 302 Found\r\nCSeq: 17\r\nLocation: {place}\r\n\r\n"


def test_a_page_that_is_missing_for_a_while_costs_nothing_later() -> None:
    with H26xServer("H264", [], hosts=("nobody",)) as server:
        source = NetworkSource(server.url, [PICTURE])
        for _ in range(2):
            server.requests.clear()
            with pytest.raises(SourceError, match="404"):
                source.__enter__()
            asked = [urlsplit(line.split()[1]).netloc in server.url for line in server.requests]
            assert asked == [False, True], "by way of a relay first, whatever came of it before"


def test_a_relay_that_nobody_uses_ends() -> None:
    with H26xServer("H264", []) as server:
        before = threading.active_count()
        relay = RtspRelay(server.url + "?a=b", 1.0)
        assert relay.url.startswith("rtsp://user:pass@127.0.0.1:")
        assert relay.url.endswith("/live?a=b")
        relay.close()
        assert threading.active_count() == before
        assert not relay.misled


def test_an_address_that_makes_no_sense_is_one_sentence() -> None:
    for url in ("rtsp://127.0.0.1:99999/x", "rtsp://host.invalid/x"):
        with pytest.raises(SourceError, match="cannot be read") as caught:
            NetworkSource(url, [PICTURE]).__enter__()
        assert "\n" not in str(caught.value)
