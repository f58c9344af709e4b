"""The proxy itself: a thread with an event loop that takes requests, passes them on, and does what was decided."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from lab.faults import control
from lab.faults.decide import OF_PARTS, Faults, Kind
from lab.faults.services import FAILED, SKEW_S_MAX, THROTTLED, Shards, joined, refusal, skew_s, without
from lab.messages import HEAD_BYTES_MAX, Asked, BadMessage, Said, read_answer, read_request
from lab.part import LOOPBACK, PORT_TRIES, PartFailed, free_port

BACKLOG: Final = 256
# A connection to the server that rested longer is not used again: the server may be about to close it.
REST_S_MAX: Final = 2.0
SETTLE_S: Final = 60.0
CUT_AFTER_S: Final = 0.05  # so that the answer to who asked for it gets away
_REFUSED: Final = ("throttled", "failed_before", "keys_expired", "clock_skewed")
_TERABYTE: Final = 10**12
_PAGE: Final = Said(200, b"<html><title>Sign in</title></html>", {"content-type": "text/html"})

T = TypeVar("T")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class FaultProxy:
    """Stands before one server, which may serve Kinesis, DynamoDB or both. Use it as a context manager.

    `faults` says what is to be done, `done` counts what was done (for `shard_throttled` and `record_…` the
    records), `requests` counts what was asked.
    """

    def __init__(self, upstream: str, *, seed: int = 0, rates: Mapping[Kind, float] | None = None) -> None:
        """`upstream`: the server's URL."""
        self.faults = Faults(seed, rates or {})
        self.done: Counter[Kind] = Counter()
        self.requests: Counter[str] = Counter()  # by action
        self.lost_upstream = 0  # requests that the server itself left without an answer: no fault of ours
        where = urlsplit(upstream)
        self._host, self._port = str(where.hostname), where.port or 80
        self._shards = Shards(self._forward)
        self._idle: list[tuple[float, Stream]] = []  # connections to the server, and since when they rest
        self._open: set[asyncio.StreamWriter] = set()  # connections of clients
        self._late: set[asyncio.Task[None]] = set()  # requests that have still to land
        self._server: asyncio.Server | None = None
        self._socket, self.port = _bound()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faults", daemon=True)

    @property
    def url(self) -> str:
        """The endpoint for clients."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def up(self) -> bool:
        """False while it is cut."""
        return self._server is not None

    def start(self) -> None:
        """Takes connections when it returns."""
        self._thread.start()
        self._run(self._listen())

    def cut(self) -> None:
        """The Internet is gone: connections end, new ones are refused. What is to land late still does."""
        self._run(self._sever())

    def restore(self) -> None:
        """The Internet is back."""
        self._run(self._listen())

    def cut_for(self, seconds: float) -> None:
        """Cut, and restored by itself; returns before, also to the thread of the proxy."""

        async def away() -> None:
            await asyncio.sleep(CUT_AFTER_S)
            await self._sever()
            await asyncio.sleep(seconds)
            await self._listen()

        asyncio.run_coroutine_threadsafe(away(), self._loop)

    def settle(self) -> None:
        """Returns when all that is to land late has landed."""
        self._run(self._landed())

    def close(self) -> None:
        """Ends everything; what has not landed yet never will."""
        if self._thread.is_alive():
            self._run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()
        self._socket.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SETTLE_S)

    # --- connections of clients ---------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, sock=self._socket, backlog=BACKLOG, limit=HEAD_BYTES_MAX
            )

    async def _sever(self) -> None:
        if self._server is None:
            return
        # First no more is accepted, then what was accepted becomes a connection: one that the server's end finds half
        # made is never closed (CPython 3.11).
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        await asyncio.sleep(0)
        self._server.close()
        self._server = None
        # Bound but not listening: connections are refused, and nobody else gets the port.
        self._socket = _bind(self.port)
        for writer in self._open:
            writer.transport.abort()

    async def _landed(self) -> None:
        while self._late:
            await asyncio.wait(self._late)

    async def _end(self) -> None:
        await self._sever()
        for _, (_, writer) in self._idle:
            writer.close()
        await asyncio.sleep(0)  # a task that is cancelled before it starts closes nothing
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets in the loop's next round

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # it was accepted just before the cut
            writer.transport.abort()
            return
        self._open.add(writer)
        with suppress(ConnectionError, BadMessage, asyncio.CancelledError):
            while request := await read_request(reader):
                if request.path == control.PATH:
                    writer.write(control.answered(self, request).wire())
                elif not await self._treat(request, (reader, writer)):
                    break
                await writer.drain()
        self._open.discard(writer)
        writer.close()

    async def _treat(self, request: Asked, client: Stream) -> bool:
        """Does to the request what was decided. False: nothing more goes over this connection."""
        self.requests[request.action] += 1
        kind, by_chance = self.faults.kind(request)
        if abs(skew_s(request, self._aws_now())) > SKEW_S_MAX:
            kind = "clock_skewed"
        if kind is not None and kind not in OF_PARTS:
            self.done[kind] += 1
        if kind in _REFUSED:
            self._write(client, refusal(kind, request, self._aws_now(), busy=self.faults.coin()))
            return True
        if kind == "swallowed":
            await client[0].read()
            return False
        if kind == "reset_before":
            _reset(client[1])
            return False
        if kind in ("landed_late", "landed_twice"):
            self._land(request, self.faults.late())
        if kind == "landed_late":
            return False
        answer = await self._carried_out(request, kind, by_chance)
        return await self._deliver(kind, request, answer, client)

    async def _deliver(self, kind: Kind | None, request: Asked, answer: Said, client: Stream) -> bool:
        """Gives the answer back, or what the fault makes of it. False: nothing more goes over this connection."""
        reader, writer = client
        if kind == "answer_lost":
            return False
        if kind == "answer_withheld":
            await reader.read()
            return False
        if kind == "reset_after":
            wire = answer.wire()
            writer.write(wire[: len(wire) // 2])
            await writer.drain()
            _reset(writer)
            return False
        if kind == "not_http":
            writer.write(b"220 mail.example.com ESMTP\r\n\r\n")
            return False
        if kind == "too_large":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % _TERABYTE + b"x" * 65536)
            return False
        if kind == "too_long":
            # The worst of it: what goes on looks like the answer to the next request.
            writer.write(answer.wire() * 2)
            return True
        if kind == "slow":
            await asyncio.sleep(self.faults.slow())
        elif kind == "not_json":
            answer = _PAGE
        elif kind == "failed_after":
            answer = refusal(kind, request, self._aws_now(), busy=self.faults.coin())
        self._write(client, answer)
        return True

    def _write(self, client: Stream, answer: Said) -> None:
        if self.faults.clock_ahead_s or "date" not in answer.headers:
            answer.headers["date"] = email.utils.formatdate(self._aws_now(), usegmt=True)
        client[1].write(answer.wire())

    def _aws_now(self) -> float:
        return time.time() + self.faults.clock_ahead_s

    # --- what reaches the server --------------------------------------------------------------------------------------

    async def _carried_out(self, request: Asked, kind: Kind | None, by_chance: bool) -> Said:
        """The server's answer; parts of the request may be refused in its place."""
        if request.action == "PutRecords" and self._parts_may_fail(kind, by_chance):
            return await self._put_in_part(request, kind, by_chance)
        if request.service == "dynamodb" and self._shards_may_be_closed(by_chance):
            partition = await self._shards.of_item(request)
            if partition is not None and self.faults.closed(partition, time.monotonic()):
                self.done["shard_throttled"] += 1
                return refusal("shard_throttled", request, self._aws_now())
        return await self._forward(request)

    def _shards_may_be_closed(self, by_chance: bool) -> bool:
        return bool(self.faults.closed_shards) or (by_chance and self.faults.rates.get("shard_throttled", 0.0) > 0)

    def _parts_may_fail(self, kind: Kind | None, by_chance: bool) -> bool:
        rates = self.faults.rates
        failing = by_chance and max(rates.get("record_failed", 0.0), rates.get("record_deleted", 0.0)) > 0
        chosen = kind in OF_PARTS or self.faults.deletes is not None
        return chosen or failing or self._shards_may_be_closed(by_chance)

    async def _put_in_part(self, request: Asked, kind: Kind | None, by_chance: bool) -> Said:
        payload = request.payload()
        now = time.monotonic()
        refused: dict[int, str] = {}
        deleted: dict[int, str] = {}  # number → shard
        for number, shard in enumerate(await self._shards.of_records(request, payload)):
            if self.faults.closed(shard, now):
                refused[number] = THROTTLED
                self.done["shard_throttled"] += 1
            elif (kind == "record_failed" and number % 2) or (by_chance and self.faults.fails()):
                refused[number] = FAILED
                self.done["record_failed"] += 1
            elif self._deletes(payload["Records"][number], by_chance) or (kind == "record_deleted" and number == 0):
                deleted[number] = shard
                self.done["record_deleted"] += 1
        count, missing = len(payload["Records"]), refused.keys() | deleted.keys()
        stored: Sequence[Mapping[str, Any]] = ()
        if len(missing) < count:
            answer = await self._forward(without(request, payload, missing) if missing else request)
            if answer.status != 200:
                return answer
            stored = answer.payload["Records"]
            self._shards.learn(payload, stored)
            if not missing:
                return answer
        return joined(count, refused, deleted, stored)

    def _deletes(self, record: Mapping[str, Any], by_chance: bool) -> bool:
        return self.faults.deleted(base64.b64decode(record["Data"]), by_chance=by_chance)

    def _land(self, request: Asked, after_s: float) -> None:
        async def land() -> None:
            await asyncio.sleep(after_s)
            with suppress(ConnectionError, BadMessage):  # it counts as lost upstream
                await self._carried_out(request, None, by_chance=False)

        task = self._loop.create_task(land())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _forward(self, request: Asked) -> Said:
        """One attempt. Raises ConnectionError or BadMessage, after which the client's connection is closed."""
        try:
            server = self._rested() or await asyncio.open_connection(self._host, self._port, limit=HEAD_BYTES_MAX)
            reader, writer = server
            try:
                writer.write(request.wire(f"{self._host}:{self._port}"))
                await writer.drain()
                answer = await read_answer(reader)
            except BaseException:
                writer.close()
                raise
        except (OSError, BadMessage) as error:
            self.lost_upstream += 1
            raise ConnectionError("the server did not answer") from error
        if answer.headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append((time.monotonic(), server))
        return answer

    def _rested(self) -> Stream | None:
        """A connection to the server that can be used again."""
        while self._idle:
            since, (reader, writer) = self._idle.pop()
            if time.monotonic() - since < REST_S_MAX and not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return None


def _bound() -> tuple[socket.socket, int]:
    """A socket on a port that nobody else uses."""
    for _ in range(PORT_TRIES):
        port = free_port()
        with suppress(OSError):
            return _bind(port), port
    raise PartFailed(f"no free port for the fault proxy after {PORT_TRIES} tries")


def _bind(port: int) -> socket.socket:
    made = socket.socket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((LOOPBACK, port))
    except OSError:
        made.close()
        raise
    return made


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends the connection with RST instead of FIN."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
