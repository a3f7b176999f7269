"""A WebSocket server on a thread of its own, which may also serve a page; no client can hold up whoever sends.

Who may connect. On the loopback interface: what names it by a loopback name (a page that resolves its own name to
127.0.0.1 does not), and no page of another origin. On any other interface: whoever has the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from edgemm.errors import MissingExtraError, SinkError
from edgemm.stream.accounting import SinkAccount, by_name
from edgemm.stream.sinks.address import Address, names_loopback

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

Message = str | bytes

MAX_CLIENTS = 16
PATIENCE_S = 5.0
"""A client that takes nothing for so long is cut off."""

GOODBYE_S = 1.0
"""And how long the end waits for clients to say goodbye."""

BUFFER_BYTES = 1 << 16
"""What may wait in a connection's own buffer, beside the queue."""

TOKEN_VARIABLE = "EDGEMM_TOKEN"
"""Environment variable with the token to ask for, for a service whose clients should survive a restart."""


class Page:
    """A page that the server answers GET / with."""

    def __init__(self, body: bytes, headers: dict[str, str]) -> None:
        self.body = body
        self.headers = headers


class _Client:
    """One connection and what waits for it."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.waiting: deque[Message] = deque()
        self.busy = False
        self.more = asyncio.Event()
        self.progress = asyncio.Event()


class Server:
    """Listens on `address` while it is entered, and sends every message to every client.

    A client for which `queue` messages wait loses the oldest ("slow_client"); one that takes nothing for PATIENCE_S is
    cut off, and what waited for it is lost ("cut_off"). `greet` gives the first message of a new client. It is called
    in the server's thread. `option` is what the user asked for the server with, for errors. With `same_origin` only the
    server's own page may connect from a browser.
    """

    def __init__(
        self,
        address: Address,
        option: str,
        *,
        extra: str,
        queue: int,
        page: Page | None = None,
        greet: Callable[[], Message] | None = None,
        same_origin: bool = False,
    ) -> None:
        self._asked = address
        self._option = option
        self._queue = queue
        self._page = page
        self._greet = greet
        self._same_origin = same_origin
        self._library = _websockets(option, extra)
        self.token = None if address.is_loopback else os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(16)
        """What clients must show, None where only this machine can reach the server."""
        self.address = address
        """Where it listens; the port is known once it is entered."""
        self._clients: set[_Client] = set()
        self._taken = 0
        self._sent = 0
        self._dropped: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._is_up = threading.Event()
        self._error: OSError | None = None

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._run, name=f"server {self._option}", daemon=True)
        self._thread.start()
        self._is_up.wait()
        if self._error is not None:
            self._thread.join()
            raise cannot_listen(self._option, self._asked, self._error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._stop is not None and self._thread is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._loop = None

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def url(self, scheme: str) -> str:
        """Where to connect, with the token if there is one."""
        query = "" if self.token is None else f"?token={self.token}"
        return f"{scheme}://{self.address.reachable()}/{query}"

    def send(self, message: Message) -> None:
        """Give every client a message; returns at once."""
        if self._clients and self._loop is not None:
            self._loop.call_soon_threadsafe(self._spread, message)

    def send_all(self, message: Message) -> None:
        """Give every client a message; returns when each has room for it, or was cut off."""
        if self._clients:
            self._ask(self._spread_patiently(message))

    def flush(self, patience_s: float) -> None:
        """Wait until every client has what was sent, as long as that goes on; count the rest as dropped."""
        self._ask(self._drain(patience_s))

    def account(self) -> SinkAccount:
        """Messages by what became of them; each counts once for each client it was for."""
        sent, dropped, taken = self._sent, by_name(self._dropped), self._taken
        return SinkAccount(taken, sent, dropped, taken - sent - sum(dropped.values()))

    # The server's thread.

    def _ask(self, work: Coroutine[Any, Any, None]) -> None:
        if self._loop is None:
            work.close()
            return
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except OSError as error:
            self._error = error
        finally:
            self._is_up.set()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        silent = logging.Logger("websockets")  # it would log every client that breaks off, with a traceback
        silent.addHandler(logging.NullHandler())
        loop = asyncio.get_running_loop()
        server = await self._library.asyncio.server.serve(
            self._serve,
            self._asked.host,
            self._asked.port,
            process_request=self._judge,
            compression=None,
            max_size=1024,
            write_limit=BUFFER_BYTES,
            close_timeout=GOODBYE_S / 2,
            server_header=None,
            logger=silent,
        )
        self.address = Address(self._asked.host, server.sockets[0].getsockname()[1])
        self._loop = loop
        self._is_up.set()
        await self._stop.wait()
        server.close()
        # Only for clients: browsers open connections ahead, and the server would wait for what they never say.
        until_s = loop.time() + GOODBYE_S
        while self._clients and loop.time() < until_s:
            await asyncio.sleep(0.01)

    def _judge(self, connection: ServerConnection, request: Request) -> Response | None:
        """None to go on with the handshake of a WebSocket; a response to anything else."""
        hosts = request.headers.get_all("Host")
        if self.token is None:
            if len(hosts) != 1 or not names_loopback(hosts[0]):
                return connection.respond(
                    HTTPStatus.FORBIDDEN, f"Open it as {self.address}: a name that is not loopback's is refused.\n"
                )
        elif not self._shows_token(request):
            return connection.respond(
                HTTPStatus.FORBIDDEN, "The token is wrong or missing. Open the URL that edgemm printed.\n"
            )
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return self._get(connection, urlsplit(request.path).path)
        if not self._origin_fits(request.headers.get_all("Origin"), hosts):
            return connection.respond(HTTPStatus.FORBIDDEN, "Pages of other origins may not connect.\n")
        if len(self._clients) >= MAX_CLIENTS:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_CLIENTS} clients are connected: no room for another.\n"
            )
        return None

    def _shows_token(self, request: Request) -> bool:
        shown = parse_qs(urlsplit(request.path).query).get("token", [])
        bearer = request.headers.get("Authorization", "")
        if bearer.startswith("Bearer "):
            shown.append(bearer.removeprefix("Bearer "))
        return any(secrets.compare_digest(token.encode(), (self.token or "").encode()) for token in shown)

    def _origin_fits(self, origins: list[str], hosts: list[str]) -> bool:
        """A browser says which page connects; other programs say nothing."""
        if not origins:
            return True
        if len(origins) > 1:
            return False
        place = urlsplit(origins[0]).netloc
        if self._same_origin:
            return [place] == hosts
        return self.token is not None or names_loopback(place)

    def _get(self, connection: ServerConnection, path: str) -> Response:
        if self._page is None:
            return connection.respond(HTTPStatus.UPGRADE_REQUIRED, "Here is a WebSocket: connect with one.\n")
        if path != "/":
            return connection.respond(HTTPStatus.NOT_FOUND, "There is one page: /\n")
        response = connection.respond(HTTPStatus.OK, "")
        response.body = self._page.body
        for name, value in {**self._page.headers, "Content-Length": str(len(self._page.body))}.items():
            if name in response.headers:
                del response.headers[name]
            response.headers[name] = value
        return response

    async def _serve(self, connection: ServerConnection) -> None:
        client = _Client(connection)
        if self._greet is not None:
            self._give(client, self._greet())
        self._clients.add(client)
        sender = asyncio.create_task(self._feed(client))
        try:
            with contextlib.suppress(self._library.exceptions.ConnectionClosed):
                async for _ in connection:
                    pass  # clients have nothing to say; this notices when they go
        finally:
            self._clients.discard(client)
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sender
            self._lose(client, "gone")

    async def _feed(self, client: _Client) -> None:
        while True:
            while not client.waiting:
                client.more.clear()
                await client.more.wait()
            message = client.waiting.popleft()
            client.busy = True
            try:
                await asyncio.wait_for(client.connection.send(message), PATIENCE_S)
            except self._library.exceptions.ConnectionClosed:
                return
            except asyncio.TimeoutError:
                self._lose(client, "cut_off")
                client.connection.transport.abort()
                return
            client.busy = False
            self._sent += 1
            client.progress.set()

    def _give(self, client: _Client, message: Message) -> None:
        self._taken += 1
        client.waiting.append(message)
        client.more.set()

    def _lose(self, client: _Client, cause: str) -> None:
        """Whatever waits for a client is dropped."""
        lost = len(client.waiting) + client.busy
        client.waiting.clear()
        client.busy = False
        client.progress.set()
        if lost:
            self._dropped[cause] += lost

    def _spread(self, message: Message) -> None:
        for client in self._clients:
            if len(client.waiting) >= self._queue:
                client.waiting.popleft()
                self._dropped["slow_client"] += 1
            self._give(client, message)

    async def _spread_patiently(self, message: Message) -> None:
        for client in list(self._clients):
            # No time limit: `_feed` cuts off who takes nothing.
            while client in self._clients and len(client.waiting) >= self._queue:
                client.progress.clear()
                await client.progress.wait()
            if client in self._clients:
                self._give(client, message)

    async def _drain(self, patience_s: float) -> None:
        for client in list(self._clients):
            while client.waiting or client.busy:
                client.progress.clear()
                try:
                    await asyncio.wait_for(client.progress.wait(), patience_s)
                except asyncio.TimeoutError:
                    break
            self._lose(client, "slow_client")


def _websockets(option: str, extra: str) -> ModuleType:
    try:
        import websockets.asyncio.server
        import websockets.exceptions
    except ImportError as error:
        raise MissingExtraError(option, extra, "websockets") from error
    return websockets


def cannot_listen(option: str, address: Address, error: OSError) -> SinkError:
    """What to say where `option` cannot bind to `address`."""
    if error.errno == errno.EADDRINUSE:
        return SinkError(
            f"{option} cannot listen on {address}: the port is in use. Choose another, or 0 for a free one."
        )
    why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    return SinkError(f"{option} cannot listen on {address}: {why}. Choose another address.")
