"""A way to an RTSP server on which something can be changed: FFmpeg connects here, and this to the server."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

from edgemm.stream.sources.picture_ends import PictureEnds

RTSP_PORT = 554
CHUNK_BYTES = 1 << 16


class RtspRelay:
    """One connection to the server of an `rtsp://` URL, for one client on this machine, who asks for `url`.

    What the client says goes to the server as it is; what the server sends goes through a `PictureEnds`. Names in the
    client's requests are the relay's own, as from behind any address translation. Raises OSError if the server cannot
    be reached within `wait_s`, ValueError if the URL makes no sense. `close` ends it, and so does either side.
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
        user, at, _ = parts.netloc.rpartition("@")
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))
        self._thread = threading.Thread(target=self._run, name="rtsp-relay", daemon=True)
        self._thread.start()

    @property
    def misled(self) -> bool:
        """True if the sender's markers turned out to be wrong; the connection has then ended."""
        return self._ends.misled

    def close(self) -> None:
        """End the connection and the thread."""
        for end in (self._listener, self._server):
            with suppress(OSError):  # it may have ended by itself
                end.shutdown(socket.SHUT_RDWR)
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
                        client.sendall(rewritten)
                    if not data:
                        return
