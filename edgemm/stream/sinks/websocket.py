"""Results to whoever connects: a WebSocket server, one line of JSON a message."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Literal

from edgemm.stream.accounting import SinkAccount
from edgemm.stream.results import Result
from edgemm.stream.sinks import address
from edgemm.stream.sinks.protocol import Run
from edgemm.stream.sinks.server import Server

QUEUE_RESULTS = 256
"""Results that may wait for one client."""


class WebSocketSink:
    """Listens on `where`, "[HOST]:PORT", and sends each result to every client as a text message, as JSON Lines has it.

    Without a host only this machine can connect; with one, clients need the token that is part of `url`. A client that
    is too slow loses the oldest of what waits for it, and is cut off when it takes nothing for 5 s. Under the virtual
    clock the run waits for its clients instead. `announce` is given the URL once the sink listens.

    Raises UsageError for an address that is none, MissingExtraError without the package websockets, and SinkError, when
    entered, if it cannot listen there.
    """

    never_waits: Literal[True] = True

    def __init__(self, where: str, *, announce: Callable[[str], None] | None = None) -> None:
        self._server = Server(
            address.parse(where, "--websocket"), "--websocket", extra="websocket", queue=QUEUE_RESULTS
        )
        self._announce = announce
        self._send = self._server.send

    @property
    def name(self) -> str:
        """For the accounts."""
        return f"websocket {self._server.address}"

    @property
    def url(self) -> str:
        """Where to connect, with the token if one is needed."""
        return self._server.url("ws")

    @property
    def clients(self) -> int:
        """How many are connected."""
        return self._server.clients

    def __enter__(self) -> WebSocketSink:
        self._server.__enter__()
        if self._announce is not None:
            self._announce(self.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)

    def begin(self, run: Run) -> None:
        """Wait for clients rather than skip where time can wait, too."""
        self._send = self._server.send_all if run.clock == "virtual" else self._server.send

    def write(self, result: Result) -> None:
        """Send one result."""
        if self._server.clients:
            self._send(result.to_json().decode())

    def flush(self, patience_s: float) -> None:
        """Wait until the clients have what was sent."""
        self._server.flush(patience_s)

    def account(self) -> SinkAccount:
        """Results by what became of them; each counts once for each client."""
        return self._server.account()
