"""What the stand-ins of services have in common: an HTTP server on this machine that stops at once."""

from __future__ import annotations

import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["LoopbackHandler", "LoopbackServer"]


class LoopbackServer(ThreadingHTTPServer):
    """A server on a free port of 127.0.0.1, in threads of its own; `stop` returns when none of them runs any more.

    Parameters
    ----------
    handler
        A `LoopbackHandler`.
    owner
        What the handler finds as ``self.server.owner``.

    Attributes
    ----------
    stopping
        Is set when the server stops: wait on it, do not sleep.
    opened
        How many connections were opened so far.
    """

    daemon_threads = False  # so that server_close waits for all of them
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, handler: type[LoopbackHandler], owner: Any) -> None:
        self.owner = owner
        self.stopping = threading.Event()
        self.opened = 0
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def stop(self) -> None:
        """Drop every connection and stop."""
        self.stopping.set()
        self.shutdown()
        with self._guard:
            still = list(self._open)
        for connection in still:
            _drop(connection)
        self.server_close()
        self._thread.join()

    def entered(self, connection: socket.socket) -> None:
        """Remember a connection."""
        with self._guard:
            self._open.add(connection)
            self.opened += 1
        if self.stopping.is_set():
            _drop(connection)

    def left(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._guard:
            self._open.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients that hang up are what the stand-ins are for."""


def _drop(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the client was faster


class LoopbackHandler(BaseHTTPRequestHandler):
    """Keeps connections open, sends head and body together, says nothing, and can hang up.

    Whatever the method, `answer` is called.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: LoopbackServer

    def setup(self) -> None:
        """Tell the server, which closes what is open when it stops."""
        super().setup()
        self.server.entered(self.connection)

    def finish(self) -> None:
        """Tell the server."""
        try:
            super().finish()
        finally:
            self.server.left(self.connection)

    def answer(self) -> None:
        """Answer one request."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer."""
        self.answer()

    def do_HEAD(self) -> None:
        """Answer."""
        self.answer()

    def do_POST(self) -> None:
        """Answer."""
        self.answer()

    def do_PUT(self) -> None:
        """Answer."""
        self.answer()

    def do_PATCH(self) -> None:
        """Answer."""
        self.answer()

    def do_DELETE(self) -> None:
        """Answer."""
        self.answer()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing: the stand-ins keep lists of what they were asked."""

    def hang_up(self, *, reset: bool) -> None:
        """Send what has been written and close: with a reset, or as if all were said."""
        self.close_connection = True
        self.wfile.flush()
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # shutdown_request would say goodbye first; closing now sends a reset.
            self.rfile.close()
            self.wfile.close()
            self.connection.close()
