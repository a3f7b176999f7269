"""Results to an MQTT broker, one message of JSON each."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections import Counter
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from edgemm.errors import MissingExtraError, SinkError, UsageError
from edgemm.stream.accounting import SinkAccount, by_name
from edgemm.stream.results import Result

CONNECT_S = 5.0
"""How long the broker may take to answer before the run begins."""

IN_FLIGHT = 20
"""Messages that may be on their way at once: what a broker takes by default (`max_inflight_messages`)."""

RETRY_S = (1, 2)
"""The shortest and the longest wait before the broker is tried again: it is found within 2 s of its return."""

USER_VARIABLE = "EDGEMM_MQTT_USER"
PASSWORD_VARIABLE = "EDGEMM_MQTT_PASSWORD"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Broker:
    """Where to publish, as a URL says it: mqtt[s]://[user[:password]@]host[:port]/topic[?qos=0|1][&ca=FILE]."""

    host: str
    port: int
    topic: str
    tls: bool
    qos: int
    user: str | None
    password: str | None
    ca: str | None
    """Certificates to trust instead of the system's."""

    def __str__(self) -> str:
        return f"mqtt{'s' if self.tls else ''}://{self.host}:{self.port}/{self.topic}"


def parse(url: str) -> Broker:
    """Read a broker's URL; user and password may come from EDGEMM_MQTT_USER and EDGEMM_MQTT_PASSWORD instead.

    Raises UsageError, which does not repeat the URL: it may hold a password.
    """
    form = "expected mqtt://HOST[:PORT]/TOPIC or mqtts://, with ?qos=0 or 1 and &ca=FILE if need be"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--mqtt is no URL, or its port no number: {form}.") from error
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise UsageError(f"--mqtt names no broker: {form}.")
    if parts.fragment or url.endswith("#"):
        raise UsageError(f"--mqtt has a #, which no topic may have and a password only as %23: {form}.")
    topic = unquote(parts.path.removeprefix("/"))
    if not topic or "+" in topic or "#" in topic or "\0" in topic or len(topic.encode()) > 65535:
        raise UsageError(f'--mqtt has the topic "{topic}", which cannot be published to: {form}.')
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    qos, ca = options.pop("qos", "1"), options.pop("ca", None)
    if options or qos not in ("0", "1"):
        wrong = ", ".join(options) or f"qos={qos}"
        raise UsageError(f"--mqtt has the option {wrong}: {form}.")
    tls = parts.scheme == "mqtts"
    if ca is not None and not tls:
        raise UsageError("--mqtt has ca=, but mqtt:// is not encrypted: write mqtts://.")
    return Broker(
        host=parts.hostname,
        port=port or (8883 if tls else 1883),
        topic=topic,
        tls=tls,
        qos=int(qos),
        user=unquote(parts.username) if parts.username else os.environ.get(USER_VARIABLE),
        password=unquote(parts.password) if parts.password else os.environ.get(PASSWORD_VARIABLE),
        ca=ca,
    )


class MqttSink:
    """Publishes each result, as JSON Lines has it, on the topic of `url` (see `Broker`); {model} in it is the model.

    With QoS 1, the default, a result counts as written when the broker has acknowledged it, and is sent again after a
    break; with QoS 0 when it was handed to the system. While the broker is away `write` waits: the run has a queue
    before it. The broker must be there when the sink is entered; later it is tried again after 1 s, then every 2 s.

    Raises UsageError for a URL that is none, MissingExtraError without the package paho-mqtt, and SinkError, when
    entered, if the broker does not answer within 5 s or refuses.
    """

    def __init__(self, url: str) -> None:
        self.broker = parse(url)
        self._paho = _paho()
        self._changed = threading.Condition()
        self._connected = False
        self._refused: str | None = None
        self._has_begun = False
        self._given_up = False
        self._in_flight = 0
        self._taken = 0
        self._written = 0
        self._dropped: Counter[str] = Counter()
        self.reconnects = 0
        """How often the broker went away and came back."""
        self._client: Any = None

    @property
    def name(self) -> str:
        """For the accounts; without user and password."""
        return str(self.broker)

    def __enter__(self) -> MqttSink:
        broker = self.broker
        client = self._paho.Client(self._paho.CallbackAPIVersion.VERSION2, clean_session=True)
        if broker.user is not None:
            client.username_pw_set(broker.user, broker.password)
        if broker.tls:
            try:
                client.tls_set(ca_certs=broker.ca)
            except (OSError, ssl.SSLError) as error:
                raise SinkError(f"Cannot read the certificates of {broker.ca}: {error}.") from error
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.max_inflight_messages_set(IN_FLIGHT)
        client.reconnect_delay_set(*RETRY_S)
        client.connect_timeout = CONNECT_S
        try:
            client.connect(broker.host, broker.port, keepalive=10)
        except (OSError, ssl.SSLError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise SinkError(f"Cannot reach the MQTT broker at {broker}: {why}. Is it running?") from error
        client.loop_start()
        self._client = client
        with self._changed:
            self._changed.wait_for(lambda: self._connected or self._refused, CONNECT_S)
            answer = None if self._connected else self._refused or f"no answer within {CONNECT_S:.0f} s"
            self._has_begun = True
        if answer is not None:
            self._close()
            raise SinkError(f"The MQTT broker at {broker} does not let us in: {answer}. Check user and password.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def write(self, result: Result) -> None:
        """Publish one result; waits while the broker is away, or has as many unacknowledged as it takes."""
        topic = self.broker.topic.replace("{model}", result.model)
        payload = result.to_json()
        with self._changed:
            self._taken += 1
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._given_up or (self._connected and self._in_flight < IN_FLIGHT))
                if self._given_up:
                    self._dropped["not_delivered"] += 1
                    return
                self._in_flight += 1
            info = self._client.publish(topic, payload, self.broker.qos)
            if self.broker.qos or info.rc == self._paho.MQTT_ERR_SUCCESS:
                return  # with QoS 1 the client keeps it until it is acknowledged, whatever becomes of the connection
            with self._changed:
                self._in_flight -= 1
                self._changed.wait(0.1)  # gone, but not yet said to be

    def flush(self, patience_s: float) -> None:
        """Wait for the broker's acknowledgements."""
        with self._changed:
            before = -1
            while self._in_flight and self._in_flight != before:
                before = self._in_flight
                self._changed.wait_for(lambda: self._in_flight != before, patience_s)  # noqa: B023 - called at once
            self._dropped["not_delivered"] += self._in_flight
            self._in_flight = 0
            self._given_up = True
            self._changed.notify_all()

    def account(self) -> SinkAccount:
        """What became of the results that were to be published."""
        with self._changed:
            known = self._written + sum(self._dropped.values())
            return SinkAccount(self._taken, self._written, by_name(self._dropped), self._taken - known)

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    # Called in the client's thread.

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        with self._changed:
            if reason.is_failure:
                self._refused = str(reason)
            else:
                if self._has_begun:
                    self.reconnects += 1
                    _log.warning("The MQTT broker at %s is back.", self.broker)
                self._connected = True
            self._changed.notify_all()

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        with self._changed:
            if self._connected and self._client is not None and not self._given_up:
                _log.warning("The MQTT broker at %s has gone (%s); trying again.", self.broker, reason)
            self._connected = False
            if self.broker.qos == 0:
                # What was under way is lost, and nobody will say of which message.
                self._dropped["connection_lost"] += self._in_flight
                self._in_flight = 0
            self._changed.notify_all()

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        with self._changed:
            if self._in_flight:
                self._in_flight -= 1
                self._written += 1
            self._changed.notify_all()


def _paho() -> ModuleType:
    try:
        import paho.mqtt.client
    except ImportError as error:
        raise MissingExtraError("--mqtt", "mqtt", "paho") from error
    return paho.mqtt.client
