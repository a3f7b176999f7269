"""A way to an RTSP server on which something can be changed: FFmpeg connects here, and this to the server."""

from __future__ import annotations

import re
import selectors
import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

from edgemm.stream.sources.picture_ends import PictureEnds

RTSP_PORT = 554
CHUNK_BYTES = 1 << 16
GOODBYE_S = 0.2

_NUMBER = re.compile(rb"(?im)^cseq[^\r\n]*")


class RtspRelay:
    """One connection to the server of an `rtsp://` URL, for one client on this machine, who asks for `url`.

    What the client says goes to the server as it is; what the server sends goes through a `PictureEnds`. Where that is
    of no use the client is sent on to the server itself. Names in the client's requests are the relay's own, as from
    behind any address translation. Raises OSError if the server cannot be reached within `wait_s`, ValueError if the
    URL makes no sense. `close` ends it, and so does either side.
    """

    def __init__(self, url: str, wait_s: float) -> None:
        parts = urlsplit(url)
        self._ends = PictureEnds()
        self._server = socket.create_connection((parts.hostname or "", parts.port or RTSP_PORT), wait_s)
        try:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        except OSError:
            self._server.close()
            raise
        self._listener.settimeout(wait_s)
        self._server.settimeout(None)
        self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        user, at, host = parts.netloc.rpartition("@")
        # FFmpeg keeps the password that it has, and may log where it is sent on to.
        self._direct = urlunsplit(parts._replace(netloc=host))
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))
        self._thread = threading.Thread(target=self._run, name="rtsp-relay", daemon=True)
        self._thread.start()

    @property
    def misled(self) -> bool:
        """True if the sender's markers turned out to be wrong; the connection has then ended."""
        return self._ends.misled

    @property
    def is_needless(self) -> bool:
        """True if the client has been sent on to the server itself."""
        return self._ends.is_needless

    def close(self) -> None:
        """End the connection and the thread."""
        with suppress(OSError):  # it may have ended by itself
            self._listener.shutdown(socket.SHUT_RDWR)
        # The client's goodbye may still be on its way.
        self._thread.join(GOODBYE_S)
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _run(self) -> None:
        with self._server, self._listener, suppress(OSError):
            client, _ = self._listener.accept()
            # Nobody else may come, nor wait in the queue.
            self._listener.close()
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._carry(client)

    def _carry(self, client: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            selector.register(self._server, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is client:
                        data = client.recv(CHUNK_BYTES)
                        self._server.sendall(data)
                    else:
                        data = self._server.recv(CHUNK_BYTES)
                        rewritten = self._ends.feed(data)
                        if self._ends.misled:
                            return
                        if self._ends.is_needless:
                            client.sendall(self._moved(rewritten))
                            return
                        client.sendall(rewritten)
                    if not data:
                        return

    def _moved(self, answer: bytes) -> bytes:
        """What sends the client on, instead of an answer (RFC 2326, 11.3)."""
        number = _NUMBER.search(answer)
        line = number[0].decode() if number else "CSeq: 0"
        return f"RTSP/1.0 302 Found\r\n{line}\r\nLocation: {self._direct}\r\n\r\n".encode()
