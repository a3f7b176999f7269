"""The view without a browser: what it serves, what it sends, and what it costs."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from sample_results import result
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from edgemm import recipe as recipes
from edgemm.errors import MissingExtraError, SinkError
from edgemm.stream.accounting import ModelAccount, SinkAccount, StreamAccount
from edgemm.stream.decode import Values
from edgemm.stream.drift import ClockReport
from edgemm.stream.frames import AudioChunk, Color, End, Lost, StreamInfo, VideoFrame
from edgemm.stream.sinks.protocol import Run, Snapshot, Watcher
from edgemm.view import view as views
from edgemm.view.page import page
from edgemm.view.picture import MAX_WIDTH, jpeg
from edgemm.view.view import View

pytestmark = pytest.mark.real_time

RECIPE = recipes.load(Path(__file__).parents[2] / "calibration" / "av_digits" / "recipe.toml")
BOOKS = Snapshot(
    {"mic": StreamAccount(10, 7, {"queue_full": 2, "not_needed": 1}), "camera": StreamAccount(4, 4)},
    {"av": ModelAccount(9, 6, {"filling": 1, "late": 2})},
    {"mic": ClockReport(None, 0.5, 1)},
    {"jsonl r.jsonl": SinkAccount(6, 6)},
)


def a_run(live: frozenset[str] = frozenset(), clock: Literal["wall", "virtual"] = "wall") -> Run:
    streams = (StreamInfo("mic", "audio", 16000), StreamInfo("camera", "video", interval_ns=40_000_000))
    return Run(RECIPE, streams, live, clock)


def sound(at_ms: int, amplitude: float) -> AudioChunk:
    samples = np.full(160, amplitude, np.float32)
    samples[::2] *= -1
    return AudioChunk("mic", 0, Fraction(1, 16000), at_ms * 10**6, samples, 16000)


def picture(
    at_ms: int, pixels: Any = (200, 30, 10), color: Color = "rgb", size: tuple[int, int] = (48, 64)
) -> VideoFrame:
    image = np.empty((*size, 3) if color != "gray" else size, np.uint8)
    image[:] = pixels
    return VideoFrame("camera", 0, Fraction(1, 1000), at_ms * 10**6, image, color)


def unpack(message: Any) -> tuple[dict[str, Any], list[bytes]]:
    length = int.from_bytes(message[:4], "big")
    content: dict[str, Any] = json.loads(message[4 : 4 + length])
    blobs = []
    offset = 4 + length
    for entry in content["pictures"]:
        blobs.append(message[offset : offset + entry["bytes"]])
        offset += entry["bytes"]
    assert offset == len(message)
    return content, blobs


def watch(view: View) -> ClientConnection:
    url = view.url.replace("http", "ws")
    return connect(url, origin=view.url.partition("/?")[0].rstrip("/"), max_size=None).__enter__()  # type: ignore[arg-type]


def until(client: ClientConnection, true: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        content, _ = unpack(client.recv(timeout=5))
        if true(content):
            return content
    raise AssertionError("waited in vain")


def test_it_is_a_watcher() -> None:
    assert isinstance(View(":0"), Watcher)


def test_a_client_is_told_everything_and_then_what_is_new() -> None:
    said: list[str] = []
    with View(":0", announce=said.append) as view:
        assert said == [view.url]
        view.begin(a_run())
        view.event(sound(0, 0.5))
        view.event(picture(10))
        view.write(result(1))
        view.look(BOOKS)
        client = watch(view)
        hello, _ = unpack(client.recv(timeout=5))
        assert hello["config"] == {
            "name": "av-digits",
            "clock": "wall",
            "deadline_ms": 200.0,
            "tolerance_ms": 40.0,
            "streams": {"mic": {"kind": "audio", "live": False}, "camera": {"kind": "video", "live": False}},
            "models": {"av": ["mic", "camera"]},
        }
        assert ["result", 1101.5, "av", 6.5, 21.5, 15.0] in hello["points"]
        assert [point[2:] for point in hello["points"] if point[0] == "lost"] == [
            [2, 2]
        ]  # what did no harm is left out
        now, blobs = unpack(client.recv(timeout=5))
        assert now["models"]["av"]["results"] == 1
        newest = now["models"]["av"]["newest"]
        assert newest["step"] == 1
        assert newest["outputs"]["digit"] == {"kind": "label", "label": "three", "score": 0.75}
        assert newest["outputs"]["face"] == {"kind": "vector", "size": 2, "norm": pytest.approx(1)}
        assert newest["outputs"]["raw"] == {"kind": "values", "shape": [1, 2], "values": [1.0, None]}
        assert now["streams"]["mic"]["account"]["dropped"] == {"queue_full": 2, "not_needed": 1}
        assert now["streams"]["mic"]["clock"]["reconnects"] == 1
        assert now["sinks"]["jsonl r.jsonl"]["written"] == 6
        assert "config" not in now
        decoded = cv2.imdecode(np.frombuffer(blobs[0], np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(decoded.astype(int) - (10, 30, 200)).max() < 12
        view.write(result(2, skew_ns=None))
        until(client, lambda now: ["result", 1101.5, "av", 6.5, 21.5, None] in now["points"])
        client.close()


def test_every_point_has_a_number_so_that_none_is_drawn_twice() -> None:
    with View(":0") as view:
        view.begin(a_run())
        sent = 0
        for _ in range(5):
            for _ in range(3):
                view.write(result(1))
            sent += 3
            client = watch(view)
            hello, _ = unpack(client.recv(timeout=5))
            assert hello["first_point"] == 0
            assert len(hello["points"]) == sent
            now = until(client, lambda now: "config" not in now)
            # What the next message repeats begins before where the greeting ended, and nothing lies between.
            assert now["first_point"] <= sent
            assert now["first_point"] + len(now["points"]) == sent
            client.close()


def test_a_client_that_comes_before_the_run_learns_of_it() -> None:
    with View(":0") as view:
        client = watch(view)
        assert unpack(client.recv(timeout=5))[0]["config"] is None
        view.begin(a_run())
        assert until(client, lambda now: now.get("config"))["config"]["name"] == "av-digits"
        client.close()


def test_the_level_of_the_sound() -> None:
    with View(":0") as view:
        view.begin(a_run())
        client = watch(view)
        view.event(sound(0, 0.5))
        now = until(client, lambda now: any(point[0] == "level" for point in now["points"]))
        level = next(point for point in now["points"] if point[0] == "level")
        assert level[1:3] == [10.0, "mic"]
        assert level[3:] == [pytest.approx(-6.02, abs=0.01)] * 2
        view.event(sound(10, 0.0))
        now = until(client, lambda now: any(point[0] == "level" for point in now["points"]))
        assert next(point for point in now["points"] if point[0] == "level")[3:] == [-90.0, -90.0]
        client.close()


def test_how_a_stream_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "STALLED_S", 0.3)
    with View(":0") as view:
        view.begin(a_run(live=frozenset({"camera"})))
        client = watch(view)

        def state(stream: str) -> Callable[[Mapping[str, Any]], Any]:
            return lambda now: now["streams"][stream]["state"] == expected

        expected = "waiting"
        until(client, state("camera"))
        view.event(picture(0))
        expected = "live"
        until(client, state("camera"))
        expected = "stalled"
        until(client, state("camera"))
        view.event(End("camera", 10**9))
        expected = "reconnecting"
        until(client, state("camera"))
        view.event(picture(2000))
        expected = "live"
        until(client, state("camera"))
        view.event(sound(0, 0.1))
        view.event(End("mic", 10**9))
        view.event(Lost("mic", "corrupt", 10**9))
        view.event(End("unknown", 10**9))
        expected = "ended"
        until(client, state("mic"))
        client.close()


def test_time_goes_on_while_nothing_comes_but_not_under_the_virtual_clock() -> None:
    for clock, goes_on in (("wall", True), ("virtual", False)):
        with View(":0") as view:
            view.begin(a_run(clock=clock))  # type: ignore[arg-type]
            view.event(picture(1000))
            client = watch(view)
            first = unpack(client.recv(timeout=5))[0]["now_ms"]
            time.sleep(0.3)
            last = 0.0
            for _ in range(4):
                last = unpack(client.recv(timeout=5))[0]["now_ms"]
            assert (last > first) == goes_on
            client.close()


@pytest.mark.parametrize(
    ("error", "state", "words"), [(None, "ended", ""), (SinkError("The disk is full."), "failed", "full")]
)
def test_the_last_word(error: SinkError | None, state: str, words: str) -> None:
    view = View(":0")
    view.__enter__()
    view.begin(a_run())
    view.event(picture(0))
    client = watch(view)
    until(client, lambda now: now["state"] == "running")
    view.write(result(99))
    view.__exit__(type(error) if error else None, error, None)
    last = until(client, lambda now: now["state"] != "running")
    assert last["state"] == state
    assert words in last["message"]
    assert last["models"]["av"]["newest"]["step"] == 99
    assert last["streams"]["camera"]["state"] == "ended"
    with pytest.raises(ConnectionClosed):
        client.recv(timeout=5)


def test_pictures_are_encoded_while_somebody_looks_and_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[VideoFrame] = []

    def counting(frame: VideoFrame) -> bytes:
        made.append(frame)
        assert threading.current_thread().name == "view"
        return jpeg(frame)

    monkeypatch.setattr(views, "jpeg", counting)
    with View(":0") as view:
        view.begin(a_run())
        for at in range(50):
            view.event(picture(at))
        time.sleep(0.3)
        assert made == []
        client = watch(view)
        begin = time.monotonic()
        for at in range(50, 250):
            view.event(newest := picture(at))
            time.sleep(0.005)
        until(client, lambda now: any(entry["capture_ms"] == 249.0 for entry in now["pictures"]))
        passed = time.monotonic() - begin
        assert 2 <= len(made) <= passed / views.TICK_S + 2
        assert made[-1] is newest
        count = len(made)
        time.sleep(0.2)
        assert len(made) == count  # the same picture is not sent again
        client.close()


def test_a_browser_that_reads_nothing_holds_up_nobody() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (480, 640, 3), np.uint8)
    with View(":0") as view:
        view.begin(a_run())
        host, port = view.url[7:-1].split(":")
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((host, int(port)))
            deaf.sendall(
                f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            client = watch(view)
            slowest = 0.0
            for at in range(100):
                begin = time.perf_counter()
                view.event(VideoFrame("camera", 0, Fraction(1, 1000), at * 10**7, noise, "rgb"))
                view.event(sound(at * 10, 0.1))
                view.write(result(at))
                view.look(BOOKS)
                slowest = max(slowest, time.perf_counter() - begin)
                time.sleep(0.01)
            assert slowest < 0.1
            until(client, lambda now: (now["models"]["av"]["newest"] or {}).get("step") == 99)
            client.close()


def test_the_page_is_one_document_that_may_load_nothing() -> None:
    with View(":0") as view, urllib.request.urlopen(view.url, timeout=5) as answer:
        body = answer.read().decode()
        headers = answer.headers
    assert body == page().body.decode()
    assert "<title>edgemm</title>" in body
    assert "/*page" not in body  # both parts are in it
    assert not re.search(r"""(src|href)=(?!["']data:)|url\(|@import|https?://""", body)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/", "localhost:1", 200),
        ("/", "evil.example", 403),
        ("/favicon.ico", "localhost", 404),
        ("/../etc/passwd", "127.0.0.1", 404),
    ],
)
def test_what_is_served_to_whom(path: str, host: str, status: int) -> None:
    with View(":0") as view:
        request = urllib.request.Request(view.url[:-1] + path, headers={"Host": host})
        try:
            found = urllib.request.urlopen(request, timeout=5).status
        except urllib.error.HTTPError as error:
            found = error.code
    assert found == status


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:1", "http://localhost", "null", "https://{where}x"]
)
def test_only_its_own_page_may_connect(origin: str) -> None:
    with View(":0") as view:
        where = view.url[7:-1]
        with pytest.raises(InvalidStatus):
            connect(f"ws://{where}/", origin=origin.format(where=where)).__enter__()  # type: ignore[arg-type]


def test_elsewhere_the_page_and_its_socket_need_the_token() -> None:
    with View("0.0.0.0:0") as view:
        place, _, query = view.url.partition("/?")
        here = f"127.0.0.1:{place.rpartition(':')[2]}"
        assert urllib.request.urlopen(f"http://{here}/?{query}", timeout=5).status == 200
        for wrong in ("", "?token=guess"):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(f"http://{here}/{wrong}", timeout=5)
            with pytest.raises(InvalidStatus):
                connect(f"ws://{here}/{wrong}", origin=f"http://{here}").__enter__()  # type: ignore[arg-type]
        with pytest.raises(InvalidStatus):  # the token does not help a page of another origin
            connect(f"ws://{here}/?{query}", origin="http://evil.example").__enter__()  # type: ignore[arg-type]
        connect(f"ws://{here}/?{query}", origin=f"http://{here}").__enter__().close()  # type: ignore[arg-type]


@pytest.mark.parametrize(("color", "pixels"), [("rgb", (200, 30, 10)), ("bgr", (10, 30, 200)), ("gray", 120)])
def test_pictures_of_every_color(color: Color, pixels: Any) -> None:
    decoded = cv2.imdecode(np.frombuffer(jpeg(picture(0, pixels, color)), np.uint8), cv2.IMREAD_COLOR)
    expected = (10, 30, 200) if color != "gray" else (120, 120, 120)
    assert decoded.shape == (48, 64, 3)
    assert np.abs(decoded.astype(int) - expected).max() < 12


def test_large_pictures_are_scaled_down() -> None:
    decoded = cv2.imdecode(np.frombuffer(jpeg(picture(0, size=(1080, 1920))), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (540, MAX_WIDTH, 3)


def test_large_outputs_are_cut() -> None:
    shown = views._output(Values(np.arange(1000).reshape(10, 100)))
    assert shown == {"kind": "values", "shape": (10, 100), "values": list(range(views.SHOWN_VALUES))}


def test_a_port_in_use() -> None:
    with View(":0") as view, pytest.raises(SinkError) as caught, View(view.url[7:-1]):
        pass
    assert str(caught.value).startswith("--view cannot listen on 127.0.0.1:")
    assert str(caught.value).endswith(": the port is in use. Choose another, or 0 for a free one.")


def test_without_the_library_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    with pytest.raises(MissingExtraError, match=r'pip install "edgemm\[view\]"'):
        View(":0")
