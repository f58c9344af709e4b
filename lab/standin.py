"""The wire of our stand-ins for AWS: HTTP/1.1 with AWS's JSON protocol, in one process and one thread.

What a stand-in knows is a mapping from an action's name to a function of the request's members. It has no await in
it, so that each action is atomic. Nothing is checked about keys and signatures but that there are some.
"""

import argparse
import asyncio
import email.utils
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

Request = dict[str, Any]
Answer = Mapping[str, Any] | bytes
Actions = Mapping[str, Callable[[Request], Answer]]

LOOPBACK: Final = "127.0.0.1"
ACCOUNT: Final = "000000000000"
REGION: Final = "eu-west-1"
BODY_BYTES_MAX: Final = 32 * 1024 * 1024
NOT_KNOWN: Final = "NotInStandin"


class Refusal(Exception):
    """What an action answers when it does not do as asked.

    `reason` is AWS's name for the error; `more` are further members of the answer.
    """

    def __init__(self, reason: str, message: str, *, status: int = 400, more: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.reason, self.message, self.status, self.more = reason, message, status, more or {}


def only(request: Request, *members: str) -> None:
    """Refuses a request with members that the stand-in would have to ignore: a test must not believe it."""
    unknown = request.keys() - set(members)
    if unknown:
        raise Refusal(NOT_KNOWN, f"the stand-in does not know {', '.join(sorted(unknown))}", status=501)


class Allowance:
    """So much a second and, after a pause, a second's worth at once; `per_s` 0: no limit."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._left = per_s
        self._at = time.monotonic()

    def left(self) -> float:
        """What may be taken now; below zero where more was taken than there was."""
        now = time.monotonic()
        self._left = min(self.per_s, self._left + (now - self._at) * self.per_s)
        self._at = now
        return self._left

    def has(self, amount: float) -> bool:
        """More than a second's worth passes when nothing was taken for a second: else it never would."""
        return not self.per_s or self.left() >= min(amount, self.per_s)

    def take(self, amount: float) -> None:
        self._left -= amount


def serve(target: str, actions: Actions, port: int) -> None:
    """Until the process ends. `target`: what X-Amz-Target has before the action's name."""
    asyncio.run(_serve(target, actions, port))


def arguments(what: str) -> argparse.ArgumentParser:
    """What every stand-in can be told."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("port", type=int)
    parser.add_argument(
        "--limits", type=float, default=0.0, metavar="SHARE", help="throttle at this share of AWS's limits; 0: never"
    )
    parser.add_argument(
        "--change-s", type=float, default=0.02, metavar="SECONDS", help="how long a stream or table is being changed"
    )
    return parser


async def _serve(target: str, actions: Actions, port: int) -> None:
    loop = asyncio.get_running_loop()
    prefix = f"{target}.".encode()
    known = {prefix + action.encode(): call for action, call in actions.items()}
    server = await loop.create_server(lambda: _Wire(known), LOOPBACK, port, backlog=1024)
    await server.serve_forever()


class _Wire(asyncio.Protocol):
    """One connection: requests one after the other, also several that are under way at once."""

    def __init__(self, actions: Mapping[bytes, Callable[[Request], Answer]]) -> None:
        self._actions = actions
        self._received = bytearray()
        self._wanted = 0  # bytes until the next request is whole, where that is known
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._received += data
        answers = []
        while len(self._received) >= self._wanted and (end := self._received.find(b"\r\n\r\n")) >= 0:
            headers = _headers(self._received[:end])
            size = int(headers.get(b"content-length", b"0"))
            if size > BODY_BYTES_MAX:
                self._transport.write(_http(413, b""))
                self._transport.close()
                return
            self._wanted = end + 4 + size
            if len(self._received) < self._wanted:
                break
            body = bytes(self._received[end + 4 : self._wanted])
            del self._received[: self._wanted]
            self._wanted = 0
            answers.append(self._answered(headers, body))
        if answers:
            self._transport.write(b"".join(answers))

    def _answered(self, headers: Mapping[bytes, bytes], body: bytes) -> bytes:
        try:
            if b"authorization" not in headers:
                raise Refusal("MissingAuthenticationTokenException", "Missing Authentication Token", status=403)
            action = self._actions.get(headers.get(b"x-amz-target", b""))
            if action is None:
                raise Refusal("UnknownOperationException", "")
            try:
                request = orjson.loads(body)
            except ValueError:
                raise Refusal("SerializationException", "") from None
            if not isinstance(request, dict):
                raise Refusal("SerializationException", "")
            answer = action(request)
        except Refusal as refusal:
            content = {"__type": refusal.reason, "message": refusal.message, **refusal.more}
            return _http(refusal.status, orjson.dumps(content))
        return _http(200, answer if isinstance(answer, bytes) else orjson.dumps(answer))


def _headers(head: bytearray) -> dict[bytes, bytes]:
    lines = bytes(head).split(b"\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}


_numbers = itertools.count(1)
_date = (0, b"")  # the second and how HTTP spells it


def _http(status: int, body: bytes) -> bytes:
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = now, email.utils.formatdate(now, usegmt=True).encode()
    return (
        b"HTTP/1.1 %d -\r\nContent-Type: application/x-amz-json-1.1\r\nx-amzn-RequestId: standin-%d\r\n"
        b"Date: %b\r\nContent-Length: %d\r\n\r\n%b" % (status, next(_numbers), _date[1], len(body), body)
    )
