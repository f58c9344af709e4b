"""The demo's Internet: a TCP forwarder on loopback that can be cut and restored."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Final

LOOPBACK: Final = "127.0.0.1"
READ_BYTES: Final = 65_536
POLL_S: Final = 0.05  # how long a cut waits for the accepting thread
BACKLOG: Final = 128


class Internet:
    """Carries bytes between whoever connects to `url` and the address it was made for, while it is up."""

    def __init__(self, port: int) -> None:
        """`port`: where it leads to, on loopback."""
        self._to = port
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()  # for what connections read or change: `_open`, and the two below
        self._carrying = False
        self.sent_bytes = 0  # towards AWS
        self.cut_at: float | None = None  # monotonic; None: it is up
        self._restored_at = 0.0  # monotonic
        self._server = self._bound(0)
        self._address: int = self._server.server_address[1]
        self._listen()

    @property
    def url(self) -> str:
        """The address of its near end; stays the same."""
        return f"http://{LOOPBACK}:{self._address}"

    @property
    def up(self) -> bool:
        return self.cut_at is None

    def was_cut_since(self, moment: float) -> bool:
        """Whether it was down at any time after this moment (monotonic), or is now."""
        return not self.up or self._restored_at > moment

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        if self.up:
            self.cut_at = time.monotonic()
            self._sever()
            # Bound but not listening: connections are refused, and nobody else gets the port.
            self._server = self._bound(self._address)

    def restore(self) -> None:
        """Take connections again."""
        if not self.up:
            self._listen()
            self.cut_at, self._restored_at = None, time.monotonic()

    def close(self) -> None:
        """End all, for good."""
        if self.up:
            self._sever()
        else:
            self._server.server_close()

    def _bound(self, port: int) -> ThreadingTCPServer:
        server = _Server((LOOPBACK, port), self._handler(), bind_and_activate=False)
        server.server_bind()
        return server

    def _handler(self) -> type[BaseRequestHandler]:
        internet = self

        class Connection(BaseRequestHandler):
            def handle(self) -> None:
                internet._carry(self.request)

        return Connection

    def _listen(self) -> None:
        self._server.server_activate()
        self._carrying = True
        threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="internet", daemon=True).start()

    def _sever(self) -> None:
        self._server.shutdown()
        with self._lock:
            self._carrying = False
            for end in self._open:
                _end(end)
        self._server.server_close()  # waits for the threads of its connections

    def _carry(self, near: socket.socket) -> None:
        """One connection, both directions; ends when either side does."""
        with suppress(OSError), socket.create_connection((LOOPBACK, self._to)) as far:
            ends = {near, far}
            with self._lock:
                if not self._carrying:  # it was accepted just before the cut
                    return
                self._open |= ends
            back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
            back.start()
            self._pump(near, far, counted=True)
            back.join()
            with self._lock:
                self._open -= ends

    def _pump(self, source: socket.socket, sink: socket.socket, *, counted: bool = False) -> None:
        with suppress(OSError):
            sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := source.recv(READ_BYTES):
                sink.sendall(data)
                if counted:
                    with self._lock:
                        self.sent_bytes += len(data)
        _end(source)  # which ends the other direction too
        _end(sink)


class _Server(ThreadingTCPServer):
    # Elsewhere than on Windows: connections that just ended must not keep the port from us.
    allow_reuse_address = not hasattr(socket, "SO_EXCLUSIVEADDRUSE")
    request_queue_size = BACKLOG


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
