"""The demo's Internet: a TCP forwarder on loopback that can be cut and restored."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

LOOPBACK: Final = "127.0.0.1"
READ_BYTES: Final = 65_536
CALL_S: Final = 5.0


class Internet:
    """Carries bytes between whoever connects to `url` and the address it was made for, while it is up."""

    def __init__(self, port: int) -> None:
        """`port`: where it leads to, on loopback."""
        self._to = port
        self._socket = _bound(0)
        self._address = self._socket.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="internet", daemon=True)
        self._thread.start()
        self.sent_bytes = 0  # towards AWS
        self.cut_at: float | None = None  # monotonic; None: it is up
        self._call(self._listen())

    @property
    def url(self) -> str:
        """The address of its near end; stays the same."""
        return f"http://{LOOPBACK}:{self._address}"

    @property
    def up(self) -> bool:
        return self.cut_at is None

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        if self.up:
            self.cut_at = time.monotonic()
            self._call(self._sever())
            # Bound but not listening: connections are refused, and nobody else gets the port.
            self._socket = _bound(self._address)

    def restore(self) -> None:
        """Take connections again."""
        if not self.up:
            self._call(self._listen())
            self.cut_at = None

    def close(self) -> None:
        """End all, for good."""
        self._call(self._sever())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._socket.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._carry, sock=self._socket)

    async def _sever(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open:
            writer.transport.abort()
        while self._open:  # each connection's task ends by itself now
            await asyncio.sleep(0)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, both directions; ends when either side does."""
        if self._server is None:  # it was accepted just before the cut
            writer.transport.abort()
            return
        self._open.add(writer)
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._to)
            await asyncio.gather(self._pump(reader, far_writer, counted=True), self._pump(far_reader, writer))
        writer.close()
        self._open.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool = False) -> None:
        with suppress(OSError):
            while data := await reader.read(READ_BYTES):
                writer.write(data)
                await writer.drain()
                self.sent_bytes += len(data) if counted else 0
        writer.close()  # which ends the other direction too


def _bound(port: int) -> socket.socket:
    """A socket that holds a port of loopback."""
    # With its protocol named: asyncio sends small packets at once only where it sees that this is TCP.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if hasattr(socket, "SO_REUSEADDR") and not hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
        # Elsewhere than on Windows: connections that just ended must not keep the port from us.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((LOOPBACK, port))
    return bound
