"""The read API as an ASGI application: the same behind API Gateway on Lambda and behind a load balancer.

Everything that a request needs is done by one thread of a pool (`ReadApi`), since readers are synchronous; the
application around it only routes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from upwell.cloud.age import Age
from upwell.cloud.answers import JSON, Answer, Problem, json_answer
from upwell.cloud.authorization import Authorizer, Caller
from upwell.cloud.cursors import CURSOR_S, Cursors
from upwell.cloud.guard import CRASHED, HEALTH, Guard
from upwell.cloud.openapi import CURSOR_CHARS_MAX, CURSOR_PATTERN, description
from upwell.cloud.throttle import Throttle
from upwell.errors import OperatorError, TransientError, UpwellError
from upwell.exposure import RESERVED, ExposedTable, key_of, tenant_of, value_of
from upwell.model import Value
from upwell.ports import Clock, Listing, Page, Reader, ReadIndex

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger("upwell.api")

LIMIT_DEFAULT: Final = 100
THREADS: Final = 32  # most of the time they wait for the database
TROUBLE_EVERY_S: Final = 10.0
_ETAG: Final = re.compile(r'(?:W/)?("[^"]*")')
_CURSOR: Final = re.compile(CURSOR_PATTERN)
_CACHE: Final = "private, no-cache"  # may be kept by the caller, and is asked about each time


class Asked(NamedTuple):
    """What of a request counts."""

    table: str
    key: str
    query: Sequence[tuple[str, str]]
    authorization: str | None
    if_none_match: str | None
    event: Mapping[str, Any] | None  # API Gateway's


class Limits(NamedTuple):
    """How much a caller may ask for."""

    page: int
    requests_per_second: float
    answer_bytes: int | None = None  # what Lambda takes; None: no limit beyond that of a row


class ReadApi:
    """Answers requests. Threads share it."""

    def __init__(
        self,
        pipeline: str,
        tables: Sequence[ExposedTable],
        reader: Reader,
        authorizer: Authorizer,
        cursor_key: str,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._pipeline = pipeline
        self._tables = {table.name: table for table in tables}
        self._reader = reader
        self._authorizer = authorizer
        self._cursors = Cursors(cursor_key, clock)
        self._limits = limits
        self._throttle = Throttle(limits.requests_per_second, clock)
        self._clock = clock
        self._age = Age(reader, pipeline, clock)
        self._database = "unknown"
        self._told_at: dict[str, float] = {}
        scheme, described = authorizer.scheme, authorizer.described
        self._description = orjson.dumps(description(pipeline, tables, scheme, described, limits.page))

    def answer(self, to: Callable[[Asked, Caller], Answer], asked: Asked) -> tuple[Answer, str]:
        """What `to` answers once it is known who calls, and the caller's name. Problems are answers too."""
        name = "-"
        try:
            caller = self._authorizer.caller(asked.authorization, asked.event)
            name = caller.name
            self._throttle.take(name)
            answer = to(asked, caller)
            self._database = "up"
        except Problem as problem:
            answer = problem.answer()
        except UpwellError as error:
            if isinstance(error, TransientError) and name != "-":  # before, the identity provider may be away
                self._database = "down"
            answer = self._failed(error).answer()
        return answer, name

    def _failed(self, error: UpwellError) -> Problem:
        now = self._clock.monotonic()
        if now - self._told_at.get(error.code, float("-inf")) > TROUBLE_EVERY_S:  # as often as it is new
            self._told_at[error.code] = now
            log.error("%s", error.message, extra={"code": error.code, "remedy": error.remedy})
        if isinstance(error, TransientError):
            return Problem(503, "The data can't be read at the moment; ask again.", retry_after="2")
        if isinstance(error, OperatorError):
            return Problem(503, "The data can't be read until somebody mends it.", retry_after="30")
        return Problem(500, "A part of the row that was asked for can't be had any more.")

    # --- what is answered -----------------------------------------------------------------------------------------

    def row(self, asked: Asked, caller: Caller) -> Answer:
        """GET /v1/{table}/{key}."""
        table, tenant = self._table(asked, caller)
        _only(asked.query, frozenset())
        try:
            key = key_of(asked.key, table.key)
        except ValueError as error:
            raise Problem(400, f"{error}.") from error
        as_of = self._age.of(table)
        row = None if tenant == _NOBODY else self._reader.get(table.schema, key, tenant)
        if row is None:
            raise Problem(404, "There is no such row.")
        body = _encoded(table, row)
        if self._limits.answer_bytes is not None and len(body) > self._limits.answer_bytes:
            raise Problem(500, "The row is too large for an answer on this way.")
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        return _with_tag(Answer(200, body, _headers(as_of)), tag, asked)

    def rows(self, asked: Asked, caller: Caller) -> Answer:
        """GET /v1/{table}."""
        table, tenant = self._table(asked, caller)
        listing, bound_to = self._listing(table, tenant, asked.query)
        as_of = self._age.of(table)
        page = Page((), None) if tenant == _NOBODY else self._reader.page(listing)
        items: list[bytes] = []
        size, after = 0, page.after
        for number, found in enumerate(page.found):
            item = _encoded(table, found.row)
            size += len(item)
            if self._limits.answer_bytes is not None and size > self._limits.answer_bytes:
                if not items:
                    raise Problem(500, "A row is too large for an answer on this way.")
                after = page.found[number - 1].after
                break
            items.append(item)
        cursor = None if after is None else self._cursors.seal(bound_to, after)
        body = b'{"items":[%b],"cursor":%b}' % (b",".join(items), orjson.dumps(cursor))
        return _with_tag(Answer(200, body, _headers(as_of)), self._page_tag(items, after), asked)

    def freshness(self, asked: Asked, caller: Caller) -> Answer:
        """GET /v1/_freshness."""
        _only(asked.query, frozenset())
        return json_answer(self._age.told(list(self._tables.values())), cache_control="no-store")

    def description(self, asked: Asked, caller: Caller) -> Answer:
        """GET /openapi.json."""
        _only(asked.query, frozenset())
        return Answer(200, self._description, {"content-type": JSON, "cache-control": _CACHE})

    def health(self) -> Answer:
        """GET /healthz: good as long as this process answers. Another one would find the same database."""
        return json_answer({"status": "ok", "database": self._database}, cache_control="no-store")

    def nothing(self, asked: Asked, caller: Caller) -> Answer:
        """What is not there, for those who may know."""
        raise Problem(404, "There is no such thing.")

    def known(self, table: str) -> str:
        """The name of a table for the log, where it is one."""
        return table if table in self._tables else "-"

    # --- what is asked --------------------------------------------------------------------------------------------

    def _table(self, asked: Asked, caller: Caller) -> tuple[ExposedTable, tuple[str, str] | None]:
        """The table, and what must be so of a row that the caller may see. Raises Problem."""
        table = self._tables.get(asked.table)
        if table is None:
            raise Problem(404, "There is no such table.")
        if table.tenant is None:
            return table, None
        if caller.tenant is None:
            raise Problem(403, "This table is for callers of a tenant.")
        tenant = tenant_of(table.column(table.tenant), caller.tenant)
        return table, _NOBODY if tenant is None else (table.tenant, tenant)

    def _listing(
        self, table: ExposedTable, tenant: tuple[str, str] | None, query: Sequence[tuple[str, str]]
    ) -> tuple[Listing, list[Any]]:
        """What is asked for, and what its cursors are bound to. Raises Problem."""
        given = dict(query)
        index = _index(table, given)
        _only(query, RESERVED | ({index.partition_key} if index is not None else set()))
        partition = None if index is None else _partition(table, index, tenant, given)
        # `after` means something to this reader alone, and for this key and index alone.
        how = [] if index is None else [index.name, index.partition_key, index.sort_key]
        way = [type(self._reader).__name__, table.schema.hash, how]
        bound_to = [self._pipeline, table.name, way, partition, tenant]
        after = self._cursors.open(bound_to, _cursor(given["cursor"])) if "cursor" in given else None
        limit = _limit(given.get("limit"), self._limits.page)
        return Listing(table.schema, tenant, index, partition, after, limit), bound_to

    def _page_tag(self, items: Sequence[bytes], after: Any) -> str:
        """Weak, since a cursor is never the same twice; and new after a while, so that no caller keeps a dead one."""
        age = 0 if after is None else int(self._clock.now() / (CURSOR_S / 2))
        content = b",".join(items) + orjson.dumps([after, age])
        return f'W/"{self._cursors.tag(content)}"'


# The tenant of a caller of whom no row can be.
_NOBODY: Final = ("", "")


def _only(query: Sequence[tuple[str, str]], known: frozenset[str] | set[str]) -> None:
    names = [name for name, _ in query]
    if not known.issuperset(names):
        raise Problem(400, "A parameter of the query is not known here; see /openapi.json.")
    if len(set(names)) != len(names):
        raise Problem(400, "A parameter of the query is given twice.")


def _index(table: ExposedTable, given: Mapping[str, str]) -> ReadIndex | None:
    if "index" not in given:
        return None
    index = table.indexes.get(given["index"])
    if index is None:
        raise Problem(400, "The table has no index of this name.")
    return index


def _partition(
    table: ExposedTable, index: ReadIndex, tenant: tuple[str, str] | None, given: Mapping[str, str]
) -> Value:
    column = table.column(index.partition_key)
    text = given.get(column.name)
    if text is None:
        if tenant is None or column.name != table.tenant:
            raise Problem(400, f"With this index, the parameter {column.name} is needed.")
        text = tenant[1]
    if not text:
        raise Problem(400, f"The parameter {column.name} is empty.")
    try:
        value = value_of(column, text)
    except ValueError as error:
        raise Problem(400, f"{error}.") from error
    if column.name == table.tenant and tenant is not None and str(value) != tenant[1]:
        raise Problem(403, "These are another tenant's rows.")
    return value


def _cursor(text: str) -> str:
    if len(text) > CURSOR_CHARS_MAX or not _CURSOR.fullmatch(text):
        raise Problem(400, "A cursor is never of this form.")
    return text


def _limit(text: str | None, most: int) -> int:
    if text is None:
        return min(LIMIT_DEFAULT, most)
    if re.fullmatch(r"[0-9]{1,4}", text) is None or not 1 <= int(text) <= most:
        raise Problem(400, f"limit must be a whole number from 1 to {most}.")
    return int(text)


def _encoded(table: ExposedTable, row: Sequence[Value]) -> bytes:
    return orjson.dumps({column.name: value for column, value in zip(table.columns, row, strict=False)})


def _headers(as_of: str | None) -> dict[str, str]:
    headers = {"content-type": JSON, "cache-control": _CACHE, "vary": "Authorization"}
    return headers if as_of is None else {**headers, "x-data-as-of": as_of}


def _with_tag(answer: Answer, tag: str, asked: Asked) -> Answer:
    """304 where the caller has it already."""
    headers = {**answer.headers, "etag": tag}
    known = asked.if_none_match
    if known is not None and (known.strip() == "*" or tag.removeprefix("W/") in _ETAG.findall(known)):
        return Answer(304, b"", {name: value for name, value in headers.items() if name != "content-type"})
    return Answer(answer.status, answer.body, headers)


# --- the application ----------------------------------------------------------------------------------------------


def create_app(
    pipeline: str,
    tables: Sequence[ExposedTable],
    reader: Reader,
    authorizer: Authorizer,
    *,
    cursor_key: str,
    limits: Limits,
    clock: Clock,
) -> Guard:
    """The ASGI application. It closes `reader` when the server tells it that it ends."""
    api = ReadApi(pipeline, tables, reader, authorizer, cursor_key, limits, clock)
    return Guard(_routes(api, reader), time.perf_counter)


def _routes(api: ReadApi, reader: Reader) -> Starlette:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import Response
    from starlette.routing import Route

    threads = ThreadPoolExecutor(THREADS, "read")

    def made(answer: Answer) -> Response:
        return Response(answer.body, answer.status, dict(answer.headers))

    def endpoint(to: Callable[[Asked, Caller], Answer]) -> Callable[[Request], Any]:
        async def answered(request: Request) -> Response:
            asked = _asked(request)
            # Starlette's own way to a thread takes four times as long.
            answer, caller = await asyncio.get_running_loop().run_in_executor(threads, api.answer, to, asked)
            request.scope.update({"upwell.caller": caller, "upwell.route": f"{to.__name__} {api.known(asked.table)}"})
            return made(answer)

        return answered

    async def health(_: Request) -> Response:
        return made(api.health())

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = "There is no such thing." if error.status_code == 404 else "Only GET and HEAD are answered."
        problem = Problem(error.status_code, detail)
        problem.headers |= {name.lower(): value for name, value in (error.headers or {}).items()}
        return made(problem.answer())

    async def crashed(_: Request, error: Exception) -> Response:
        return made(CRASHED.answer())  # then it is raised on, to Guard

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        threads.shutdown()
        reader.close()

    routes = [
        Route(HEALTH, health),
        Route("/openapi.json", endpoint(api.description)),
        Route("/v1/_freshness", endpoint(api.freshness)),
        Route("/v1/{table}", endpoint(api.rows)),
        Route("/v1/{table}/{key}", endpoint(api.row)),
        Route("/v1/{rest:path}", endpoint(api.nothing)),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refused, Exception: crashed}, lifespan=lifespan)
    app.router.redirect_slashes = False
    return app


def _all(values: Sequence[str]) -> str | None:
    """As one, whichever way they came: https://www.rfc-editor.org/rfc/rfc9110#section-5.3."""
    return ", ".join(values) if values else None


def _asked(request: Request) -> Asked:
    headers, parameters = request.headers, request.path_params
    return Asked(
        table=parameters.get("table", ""),
        key=parameters.get("key", ""),
        query=request.query_params.multi_items(),
        authorization=_all(headers.getlist("authorization")),  # two of them are none
        if_none_match=_all(headers.getlist("if-none-match")),
        event=request.scope.get("aws.event"),
    )
