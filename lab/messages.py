"""HTTP/1.1 messages on asyncio's streams, as far as AWS's JSON services and their stand-ins use them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

# A PutRecords call has up to 10 MiB of data, a GetRecords answer of a stand-in more; in base64 a third more.
BODY_BYTES_MAX: Final = 256 * 1024 * 1024
HEAD_BYTES_MAX: Final = 64 * 1024


class BadMessage(Exception):
    """The other end does not speak HTTP as AWS does."""


@dataclass(slots=True)
class Asked:
    """A request. Names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def service(self) -> str:
        """kinesis or dynamodb; empty where the request is for neither."""
        return self.headers.get("x-amz-target", "").partition("_")[0].lower()

    @property
    def action(self) -> str:
        """Such as PutRecords; empty where there is none."""
        return self.headers.get("x-amz-target", "").partition(".")[2]

    def payload(self) -> Any:
        """The body as JSON, decoded anew each time."""
        return orjson.loads(self.body or b"{}")

    def wire(self, host: str) -> bytes:
        """The request for another host; all its headers stay but those that belong to the connection."""
        kept = {name: value for name, value in self.headers.items() if name not in _OF_THE_CONNECTION}
        headers = {**kept, "host": host, "content-length": str(len(self.body))}
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            *(f"{name.title()}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


@dataclass(slots=True)
class Said:
    """An answer."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Any, status: int = 200) -> Said:
        """JSON, as AWS's services answer."""
        return cls(status, orjson.dumps(content), {"content-type": "application/x-amz-json-1.1"})

    @property
    def payload(self) -> Any:
        """The body as JSON, decoded anew each time."""
        return orjson.loads(self.body or b"{}")

    def wire(self) -> bytes:
        """The answer with its length announced."""
        kept = {name: value for name, value in self.headers.items() if name not in _OF_THE_CONNECTION}
        headers = {**kept, "content-length": str(len(self.body))}
        lines = [f"HTTP/1.1 {self.status} Said", *(f"{name.title()}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


_OF_THE_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "host"})


async def read_request(stream: asyncio.StreamReader) -> Asked | None:
    """The next request; None where the other end has closed. Raises BadMessage."""
    head = await _head(stream)
    if head is None:
        return None
    first, headers = head
    method, _, rest = first.partition(" ")
    path, _, version = rest.rpartition(" ")
    if not version.startswith("HTTP/1."):
        raise BadMessage(f"not a request: {first[:80]!r}")
    return Asked(method, path, headers, await _body(stream, headers))


async def read_answer(stream: asyncio.StreamReader) -> Said:
    """The answer to a request. Raises BadMessage, also where the other end closed instead."""
    head = await _head(stream)
    if head is None:
        raise BadMessage("closed without an answer")
    first, headers = head
    status = first[9:12]
    if not first.startswith("HTTP/1.") or not status.isdigit():
        raise BadMessage(f"not an answer: {first[:80]!r}")
    return Said(int(status), await _body(stream, headers), headers)


async def _head(stream: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    try:
        head = await stream.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise BadMessage("closed within a head") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise BadMessage("a head without an end") from error
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _body(stream: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    try:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return await _chunks(stream)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            raise BadMessage(f"a body of {length[:20]} bytes")
        return await stream.readexactly(int(length))
    except asyncio.IncompleteReadError as error:
        raise BadMessage("closed within a body") from error


async def _chunks(stream: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        line = await stream.readuntil(b"\r\n")
        try:
            size = int(line.split(b";")[0], 16)
        except ValueError as error:
            raise BadMessage("a chunk without a size") from error
        if len(body) + size > BODY_BYTES_MAX:
            raise BadMessage("a body without an end")
        chunk = await stream.readexactly(size + 2)
        if size == 0:
            return bytes(body)
        body += chunk[:-2]
