"""The WebSocket sink and its server, over real sockets."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from sample_results import result
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from edgemm.errors import MissingExtraError, SinkError
from edgemm.stream.sinks import server
from edgemm.stream.sinks.outbox import Direct
from edgemm.stream.sinks.protocol import Run
from edgemm.stream.sinks.websocket import WebSocketSink

pytestmark = pytest.mark.real_time


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def briefing(clock: Any) -> Run:
    return Run(recipe=None, streams=(), live=frozenset(), clock=clock)  # type: ignore[arg-type]


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url.replace("ws://", "http://"), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_every_client_gets_every_result() -> None:
    said: list[str] = []
    with WebSocketSink(":0", announce=said.append) as sink:
        assert said == [sink.url]
        assert sink.url.startswith("ws://127.0.0.1:")
        assert sink.name == f"websocket {sink.url[5:-1]}"
        sink.write(result(0))  # nobody is there to miss it
        with connect(sink.url) as one, connect(sink.url) as other:
            until(lambda: sink.clients == 2)
            for step in range(1, 101):
                sink.write(result(step))
            for client in (one, other):
                lines = [client.recv(timeout=5) for _ in range(100)]
                assert [json.loads(line)["step"] for line in lines] == list(range(1, 101))
                assert lines[0] == result(1).to_json().decode()
            sink.flush(5)
            assert sink.account().taken == sink.account().written == 200
        until(lambda: sink.clients == 0)
        sink.write(result(2))
        assert sink.account().taken == 200


def test_the_clients_have_everything_when_the_run_ends() -> None:
    sink = WebSocketSink(":0")
    with Direct(sink) as out, connect(sink.url) as client:
        until(lambda: sink.clients == 1)
        for step in range(50):
            out.write(result(step))
        out.drain()
        out.account().check("websocket")
        lines = [client.recv(timeout=5) for _ in range(50)]
        assert json.loads(lines[-1])["step"] == 49
        sink.__exit__(None, None, None)
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=5)


def slow_client(url: str) -> socket.socket:
    """A client that shakes hands and then reads nothing."""
    host, port = url[5:-1].split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.sendall(
        f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b"101" in client.recv(64)
    return client


def test_a_slow_client_loses_results_and_is_cut_off_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE_S", 0.5)
    big = result(1, outputs={}, engine="x" * 20_000)
    with WebSocketSink(":0") as sink, connect(sink.url, close_timeout=0.2) as quick, slow_client(sink.url):
        until(lambda: sink.clients == 2)
        received: list[int] = []
        # All the time: whoever reads only when the slow one is gone is slow, too.
        reader = threading.Thread(target=lambda: received.extend(json.loads(text)["step"] for text in quick))
        reader.start()
        for _ in range(1000):  # 20 MB: more than the kernel buffers
            sink.write(big)
        until(lambda: sink.clients == 1)  # cut off
        sink.write(result(2))
        until(lambda: received[-1:] == [2])
        quick.close()
        reader.join(5)
        assert received.count(1) >= 50
        until(lambda: sink.clients == 0)
        account = sink.account()
    account.check("websocket")
    assert account.pending == 0
    assert account.dropped["slow_client"] > 100
    assert account.dropped["cut_off"] > 0


def test_under_the_virtual_clock_the_run_waits_for_its_clients() -> None:
    big = result(1, outputs={}, engine="x" * 20_000)
    with WebSocketSink(":0") as sink:
        sink.begin(briefing("virtual"))

        with connect(sink.url) as client:
            until(lambda: sink.clients == 1)
            writer = threading.Thread(target=lambda: [sink.write(big) for _ in range(1500)])
            writer.start()
            time.sleep(0.3)
            assert writer.is_alive()  # 30 MB do not fit on the way
            for _ in range(1500):
                client.recv(timeout=5)
            writer.join(5)
            sink.flush(5)
            account = sink.account()
    assert account.dropped == {}
    assert account.written == 1500


def test_only_loopback_names_reach_a_server_on_loopback() -> None:
    with WebSocketSink("localhost:0") as sink:
        status, text = get(sink.url, Host="evil.example")
        assert status == 403
        assert "is refused" in text
        assert get(sink.url)[0] == 426
        with pytest.raises(InvalidStatus) as refused:
            connect(sink.url, additional_headers={"Host": "evil.example"}).__enter__()
        assert refused.value.response.status_code in (400, 403)  # two Host headers, or a wrong one


@pytest.mark.parametrize(
    ("origin", "is_let_in"),
    [("http://evil.example", False), ("null", False), ("http://localhost:3000", True), (None, True)],
)
def test_pages_of_other_origins_may_not_connect(origin: Any, is_let_in: bool) -> None:
    with WebSocketSink(":0") as sink:
        if is_let_in:
            connect(sink.url, origin=origin).__enter__().close()
        else:
            with pytest.raises(InvalidStatus) as refused:
                connect(sink.url, origin=origin).__enter__()
            assert refused.value.response.status_code == 403


def test_elsewhere_a_token_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = set()
    for _ in range(2):
        with WebSocketSink("0.0.0.0:0") as sink:
            url, _, token = sink.url.partition("?token=")
            tokens.add(token)
            here = f"ws://127.0.0.1:{url.rstrip('/').rpartition(':')[2]}/"
            assert len(token) >= 20
            for wrong in ("", "?token=", "?token=wrong", f"?token={token}x", f"?other={token}", "?token=%ff"):
                assert get(here + wrong)[0] == 403, wrong
            assert get(f"{here}?token={token}")[0] == 426
            assert get(here, Authorization=f"Bearer {token}")[0] == 426
            assert get(here, Authorization=f"Basic {token}")[0] == 403
            connect(f"{here}?token={token}", origin="http://dashboard.example").__enter__().close()
    assert len(tokens) == 2  # each run has its own
    monkeypatch.setenv("EDGEMM_TOKEN", "mine")
    with WebSocketSink("0.0.0.0:0") as sink:
        assert sink.url.endswith("/?token=mine")


def test_a_port_in_use() -> None:
    with WebSocketSink(":0") as sink:
        where = sink.url[5:-1]
        with pytest.raises(SinkError) as caught, WebSocketSink(where):
            pass
    assert str(caught.value) == (
        f"--websocket cannot listen on {where}: the port is in use. Choose another, or 0 for a free one."
    )
    with WebSocketSink(where):
        pass  # free again


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_that_is_not_this_machines(host: str) -> None:
    with (
        pytest.raises(SinkError, match=f"cannot listen on {host}:8765: .*Choose another address"),
        WebSocketSink(f"{host}:8765"),
    ):
        pass


def test_there_is_room_for_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 1)
    with WebSocketSink(":0") as sink, connect(sink.url):
        until(lambda: sink.clients == 1)
        with pytest.raises(InvalidStatus) as refused:
            connect(sink.url).__enter__()
        assert refused.value.response.status_code == 503


def test_without_the_library_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    with pytest.raises(MissingExtraError, match=r'pip install "edgemm\[websocket\]"'):
        WebSocketSink(":0")


def test_a_connection_that_never_speaks_does_not_delay_the_end() -> None:
    sink = WebSocketSink(":0").__enter__()
    with socket.create_connection(tuple(sink.url[5:-1].split(":"))), slow_client(sink.url):
        until(lambda: sink.clients == 1)
        begin = time.monotonic()
        sink.__exit__(None, None, None)
        assert time.monotonic() - begin < 3


def test_what_a_client_says_does_no_harm() -> None:
    with WebSocketSink(":0") as sink:
        with connect(sink.url) as talker:
            until(lambda: sink.clients == 1)
            talker.send("hello")
            talker.send(b"\x00" * 100)
            sink.write(result(1))
            assert json.loads(talker.recv(timeout=5))["step"] == 1
            talker.send("x" * 5000)  # more than it listens to
            until(lambda: sink.clients == 0)
        with socket.create_connection(tuple(sink.url[5:-1].split(":"))) as stranger:
            stranger.sendall(b"\x16\x03\x01 not HTTP at all\r\n\r\n")
            stranger.recv(100)
        with connect(sink.url):
            until(lambda: sink.clients == 1)
