"""The MQTT sink against a real broker."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from broker import Broker, free_port, require_broker
from sample_results import result

from edgemm.errors import MissingExtraError, SinkError, UsageError
from edgemm.stream.accounting import SinkAccount
from edgemm.stream.sinks import outbox
from edgemm.stream.sinks.mqtt import Broker as Place
from edgemm.stream.sinks.mqtt import MqttSink, parse
from edgemm.stream.sinks.outbox import Direct, Outbox

require_broker()

pytestmark = pytest.mark.real_time

OPEN = "allow_anonymous true"


class Subscriber:
    """A client that keeps what is published."""

    def __init__(self, port: int, topic: str) -> None:
        from paho.mqtt.client import CallbackAPIVersion, Client

        self.messages: list[tuple[str, bytes]] = []
        self._ready = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = lambda _c, _u, message: self.messages.append((message.topic, message.payload))
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(5)

    @property
    def steps(self) -> list[int]:
        return [json.loads(payload)["step"] for _, payload in self.messages]

    def wait_for(self, count: int, seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while len(self.messages) < count:
            assert time.monotonic() < end, f"{len(self.messages)} of {count} messages came"
            time.sleep(0.01)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def subscribed(broker: Broker, topic: str) -> Iterator[Subscriber]:
    subscriber = Subscriber(broker.port, topic)
    try:
        yield subscriber
    finally:
        subscriber.close()


@pytest.mark.parametrize("qos", [0, 1])
def test_results_are_published(tmp_path: Path, qos: int) -> None:
    with Broker(tmp_path, OPEN) as broker, subscribed(broker, "home/#") as subscriber:
        sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/home/door/{{model}}?qos={qos}")
        assert sink.name == f"mqtt://127.0.0.1:{broker.port}/home/door/{{model}}"
        with Direct(sink) as out:
            for step in range(1, 101):
                out.write(result(step, model="vad" if step % 2 else "kws"))
            out.drain()
            account = out.account()
        subscriber.wait_for(100)
        assert account.taken == account.written == 100
        assert account.pending == 0
        assert subscriber.steps == list(range(1, 101))
        topic, payload = subscriber.messages[0]
        assert topic == "home/door/vad"
        assert payload == result(1, model="vad").to_json()
        assert subscriber.messages[1][0] == "home/door/kws"


@pytest.mark.parametrize("qos", [0, 1])
def test_a_broker_that_dies_and_comes_back(tmp_path: Path, qos: int, caplog: pytest.LogCaptureFixture) -> None:
    with Broker(tmp_path, OPEN) as broker:
        sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/results?qos={qos}")
        with Outbox(sink) as out:
            with subscribed(broker, "results") as before:
                for step in range(10):
                    out.write(result(step))
                before.wait_for(10)
            broker.kill()
            time.sleep(0.3)
            begin = time.perf_counter()
            for step in range(10, 30):
                out.write(result(step))
            assert time.perf_counter() - begin < 0.5  # nobody waits for the broker
            broker.start()
            with subscribed(broker, "results") as after:
                end = time.monotonic() + 10
                while not sink.reconnects:
                    assert time.monotonic() < end
                    time.sleep(0.01)
                for step in range(30, 40):
                    out.write(result(step))
                out.drain()
                account = out.account()
                account.check("mqtt")
                after.wait_for(1)
                time.sleep(0.2)
    assert sink.reconnects == 1
    assert "has gone" in caplog.text
    assert "is back" in caplog.text
    lost = account.dropped.get("connection_lost", 0)
    assert account.taken == 40
    assert account.pending == 0
    assert account.written + lost == 40
    assert lost == 0 or qos == 0
    if qos == 1:
        # The subscriber came after the broker: what was queued may have come before it. Nothing is written twice.
        assert account.written == 40
    assert set(range(30, 40)) <= set(after.steps)


def test_a_broker_that_stays_away_costs_results_and_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "QUEUE_RESULTS", 20)
    with Broker(tmp_path, OPEN) as broker:
        begin = time.monotonic()
        with Outbox(MqttSink(f"mqtt://127.0.0.1:{broker.port}/results"), patience_s=0.3) as out:
            broker.kill()
            time.sleep(0.2)
            for step in range(100):
                out.write(result(step))
            out.drain()
            account = out.account()
        assert time.monotonic() - begin < 5
    account.check("mqtt")
    assert account.pending == 0
    assert account.dropped["queue_full"] >= 59
    assert account.dropped["queue_full"] + account.dropped["stuck"] + account.dropped["not_delivered"] == 100


def test_with_qos_0_what_was_under_way_is_lost_with_the_connection_and_counted(tmp_path: Path) -> None:
    big = result(1, outputs={}, engine="x" * 1_000_000)
    with Broker(tmp_path, OPEN) as broker, Outbox(MqttSink(f"mqtt://127.0.0.1:{broker.port}/results?qos=0")) as out:
        broker.freeze()
        for _ in range(15):  # more than the system buffers
            out.write(big)
        end = time.monotonic() + 10
        while out.account().written == 0 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.3)
        before = out.account()
        assert before.pending > 5
        broker.kill()
        while not out.account().dropped and time.monotonic() < end:
            time.sleep(0.05)
        broker.start()
        out.write(result(2))
        out.drain()
        account = out.account()
    account.check("mqtt")
    assert account == SinkAccount(16, before.written + 1, {"connection_lost": before.pending})


def test_user_and_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch(0o600)
    subprocess.run(
        [shutil.which("mosquitto_passwd") or "mosquitto_passwd", "-b", passwords, "ann", "p@ss/word"],
        check=True,
        capture_output=True,
    )
    with Broker(tmp_path, "allow_anonymous false", f"password_file {passwords}") as broker:
        place = f"127.0.0.1:{broker.port}/results"
        with MqttSink(f"mqtt://ann:p%40ss%2Fword@{place}") as sink:
            assert "p@ss" not in sink.name
        for wrong in (f"mqtt://{place}", f"mqtt://ann:guess@{place}"):
            with pytest.raises(SinkError) as caught, MqttSink(wrong):
                pass
            assert str(caught.value) == (
                f"The MQTT broker at mqtt://{place} does not let us in: Not authorized. Check user and password."
            )
        monkeypatch.setenv("EDGEMM_MQTT_USER", "ann")
        monkeypatch.setenv("EDGEMM_MQTT_PASSWORD", "p@ss/word")
        with MqttSink(f"mqtt://{place}"):
            pass


def test_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl (a program): apt-get install openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext "
        f"subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    with Broker(tmp_path, f"certfile {certificate}", f"keyfile {key}", OPEN) as broker:
        sink = MqttSink(f"mqtts://localhost:{broker.port}/results?ca={certificate}")
        with Direct(sink) as out:
            out.write(result())
            out.drain()
            assert out.account().written == 1
        with (
            pytest.raises(SinkError, match="certificate verify failed"),
            MqttSink(f"mqtts://localhost:{broker.port}/results"),
        ):
            pass
        with (
            pytest.raises(SinkError, match="certificate verify failed: IP address mismatch"),
            MqttSink(f"mqtts://127.0.0.1:{broker.port}/results?ca={certificate}"),
        ):
            pass
        with (
            pytest.raises(SinkError, match="Cannot read the certificates of .*none.pem"),
            MqttSink(f"mqtts://localhost:{broker.port}/results?ca={tmp_path}/none.pem"),
        ):
            pass


def test_no_broker_is_one_sentence() -> None:
    port = free_port()
    with pytest.raises(SinkError) as caught, MqttSink(f"mqtt://me:secret@127.0.0.1:{port}/results"):
        pass
    assert str(caught.value) == (
        f"Cannot reach the MQTT broker at mqtt://127.0.0.1:{port}/results: Connection refused. Is it running?"
    )
    with pytest.raises(SinkError, match="Cannot reach the MQTT broker"), MqttSink("mqtt://no-such-host.invalid/t"):
        pass


def test_something_that_is_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemm.stream.sinks import mqtt

    monkeypatch.setattr(mqtt, "CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(SinkError, match="no answer within"), MqttSink(f"mqtt://127.0.0.1:{port}/results"):
            pass


def test_a_url() -> None:
    assert parse("mqtt://host/a/b") == Place("host", 1883, "a/b", False, 1, None, None, None)
    assert parse("mqtts://u:p%3A@[::1]:99/a%20b?qos=0&ca=/ca.pem") == Place(
        "::1", 99, "a b", True, 0, "u", "p:", "/ca.pem"
    )
    assert parse("mqtts://host/a").port == 8883


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("host/topic", "names no broker"),
        ("http://host/topic", "names no broker"),
        ("mqtt:///topic", "names no broker"),
        ("mqtt://host:port/topic", "is no URL"),
        ("mqtt://host", 'topic ""'),
        ("mqtt://host/a/#", "has a #"),
        ("mqtt://host/a/%23", 'topic "a/#"'),
        ("mqtt://host/+/a", "cannot be published to"),
        ("mqtt://host/a?qos=2", "qos=2"),
        ("mqtt://host/a?retain=1", "retain"),
        ("mqtt://host/a?ca=x.pem", "not encrypted"),
    ],
)
def test_a_url_that_is_none(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        MqttSink(url.replace("host", "ann:secret@host"))
    assert "secret" not in str(caught.value)


def test_without_the_library_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(MissingExtraError, match=r'pip install "edgemm\[mqtt\]"'):
        MqttSink("mqtt://host/topic")


def test_importing_the_sink_imports_no_client() -> None:
    code = "import sys, edgemm.stream.sinks.mqtt, edgemm.stream.sinks.metrics, edgemm.view.view; print(*sys.modules)"
    loaded: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"paho", "websockets", "prometheus_client", "cv2"} & {name.split(".")[0] for name in loaded.split()}
