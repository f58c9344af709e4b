"""What holds for every request, whatever becomes of it: limits, headers, a line in the log, no detail of a crash."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from upwell.app import logs
from upwell.cloud.answers import Answer, Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("upwell.api")

URL_BYTES_MAX: Final = 16 * 1024
HEADER_BYTES_MAX: Final = 16 * 1024
# Answered however many wait: a process that has much to do is not to be replaced.
HEALTH: Final = "/healthz"
# More requests than that at the same time wait longer than their callers do.
REQUESTS_MAX: Final = 256
_ALWAYS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=31536000"),
)


class Guard:
    """Around the application that routes."""

    def __init__(self, app: ASGIApp, timer: Callable[[], float]) -> None:
        self._app = app
        self._timer = timer
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, number = self._timer(), 500, uuid.uuid4().hex
        started = False

        async def sent(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message["headers"], *_ALWAYS, (b"x-request-id", number.encode())]
            elif scope["method"] == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        self._running += 1
        try:
            crowded = self._running > REQUESTS_MAX and scope["path"] != HEALTH
            refused = _TOO_MANY if crowded else _refusal(scope)
            if refused is not None:
                await _send(refused.answer(), sent)
            else:
                await self._app(scope, receive, sent)
        except Exception:
            logs.crashed()
            if not started:
                await _send(CRASHED.answer(), sent)
        finally:
            self._running -= 1
            _log(scope, status, (self._timer() - began) * 1000, number)


CRASHED: Final = Problem(500, "A mistake of ours; it is in our log.")
_TOO_MANY: Final = Problem(503, "Too many requests at the same time; ask again.", retry_after="1")


def _refusal(scope: Scope) -> Problem | None:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > URL_BYTES_MAX:
        return Problem(414, f"The URL is longer than {URL_BYTES_MAX} bytes.")
    if sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES_MAX:
        return Problem(431, f"The headers are longer than {HEADER_BYTES_MAX} bytes.")
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return Problem(413, "Requests have no body.", connection="close")
    return None


async def _send(answer: Answer, send: Callable[[Any], Any]) -> None:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _log(scope: Scope, status: int, ms: float, number: str) -> None:
    """Without what stands in the URL: a key is a value of a row."""
    log.info(
        "%s %s %d %.1f ms, caller %s, request %s",
        scope["method"],
        scope.get("upwell.route", "-"),
        status,
        ms,
        scope.get("upwell.caller", "-"),
        number,
    )
