# ruff: noqa: S608 - names are quoted by _name(), values travel as parameters
"""Reads for the API from PostgreSQL: a page is one statement and one round trip.

Sessions are read-only, whatever the role may do. Values come as the text that the types' output functions print, and
a parameter goes as text whose type the server infers from the column that it is compared with.
"""

from __future__ import annotations

import threading
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final, cast

from upwell.errors import OperatorError, TransientError, UpwellError
from upwell.heartbeat import HEARTBEAT
from upwell.model import Column, Kind, TableName, TableSchema, Value
from upwell.pgtext import TEXT_FORMS, wire_value
from upwell.ports import Found, Listing, Page
from upwell.presentation import row_presenter

if TYPE_CHECKING:
    import psycopg

CONNECTIONS_MAX: Final = 10
CONNECT_TIMEOUT_S: Final = 3
STATEMENT_TIMEOUT_S: Final = 5
POOL_WAIT_S: Final = 2.0
PAGE_BYTES_MAX: Final = 1024 * 1024  # of values; a page ends with the row that exceeds it, as DynamoDB's do

_SETTINGS: Final = f"""{TEXT_FORMS}SET jit TO off;
SET default_transaction_read_only TO on;
SET statement_timeout TO '{STATEMENT_TIMEOUT_S}s';
SET lock_timeout TO '{STATEMENT_TIMEOUT_S}s';
SET idle_in_transaction_session_timeout TO '{STATEMENT_TIMEOUT_S}s'
"""
# Which equality a column has is the database's choice; of a tenant every byte counts.
_BYTEWISE: Final = frozenset({Kind.TEXT, Kind.OTHER})
_MISSING: Final = ("42P01", "42703", "3F000")
_PASSING: Final = ("08", "40", "53", "55", "57", "58", "25")
_STALE_PLAN: Final = "0A000"  # a table was altered under a prepared statement

Row = tuple[str | None, ...]
# (host, port, user) → a password; raises UpwellError.
Password = Callable[[str, str, str], str]
_PLACE: Final = {"host": "localhost", "port": "5432", "user": "postgres"}


class _NoSuchValue(Exception):
    """What was asked for can't be a value of the column: no row has it."""


class _Lost(Exception):
    """The connection is gone, or its plans are: once more with another one."""

    def __init__(self, error: UpwellError) -> None:
        super().__init__(str(error))
        self.error = error


class PostgresReader:
    """A Reader; see ports.Reader. Connects when it is first asked, and again after every loss."""

    def __init__(
        self,
        url: str,
        names: Mapping[str, TableName],
        *,
        connections_max: int = CONNECTIONS_MAX,
        password: Password | None = None,
    ) -> None:
        """`names`: source table → the database's, the heartbeat's included. `password`: one for each connection."""
        self._pool = _Pool(url, connections_max, password)
        self._names = names

    def get(self, schema: TableSchema, key: Sequence[Value], tenant: tuple[str, str] | None) -> list[Value] | None:
        """See ports.Reader."""
        statement = f"{self._select(schema)} WHERE {' AND '.join([*_equal(schema.key), *_of_tenant(schema, tenant)])}"
        try:
            parameters = [_parameter(schema, name, value) for name, value in zip(schema.key, key, strict=True)]
            rows = self._pool.run(lambda session: session.all(statement, [*parameters, *_tenant(schema, tenant)]))
        except _NoSuchValue:
            return None
        return _row(schema)(rows[0]) if rows else None

    def page(self, listing: Listing) -> Page:
        """See ports.Reader."""
        schema, index = listing.schema, listing.index
        order = list(dict.fromkeys([*([index.sort_key] if index and index.sort_key else []), *schema.key]))
        wanted = [*_of_tenant(schema, listing.tenant)]
        try:
            parameters: list[Any] = _tenant(schema, listing.tenant)
            if index is not None:
                wanted += _equal([index.partition_key])
                wanted += [f"t.{_name(index.sort_key)} IS NOT NULL"] if index.sort_key else []
                parameters.append(_parameter(schema, index.partition_key, listing.partition))
            if listing.after is not None:
                wanted.append(f"({_list(order)}) > ({', '.join(['%s'] * len(order))})")
                parameters += listing.after
            condition = f" WHERE {' AND '.join(wanted)}" if wanted else ""
            statement = f"{self._select(schema)}{condition} ORDER BY {_list(order)} LIMIT %s"
            rows = self._pool.run(
                lambda session: session.some(statement, [*parameters, listing.limit + 1], listing.limit)
            )
        except _NoSuchValue:
            return Page((), None)
        return _page(schema, order, *rows)

    def heartbeats(self, pipeline: str) -> Sequence[Mapping[str, Any]]:
        """See ports.Reader."""
        statement = f"{self._select(HEARTBEAT)} WHERE t.pipeline = %s"
        try:
            rows = self._pool.run(lambda session: session.all(statement, [pipeline]))
        except OperatorError as error:
            if error.code == "UW-AP-012":
                return []  # none has arrived yet
            raise
        values, names = _row(HEARTBEAT), [column.name for column in HEARTBEAT.columns]
        return [dict(zip(names, values(row), strict=True)) for row in rows]

    def close(self) -> None:
        """See ports.Reader."""
        self._pool.close()

    def _select(self, schema: TableSchema) -> str:
        columns = _list([column.name for column in schema.columns])
        return f"SELECT {columns} FROM {self._names[schema.table].sql.replace('%', '%%')} AS t"


def _name(column: str) -> str:
    return TableName("", column).sql.replace("%", "%%")


def _list(columns: Sequence[str]) -> str:
    return ", ".join(f"t.{_name(column)}" for column in columns)


def _equal(columns: Sequence[str]) -> list[str]:
    return [f"t.{_name(column)} = %s" for column in columns]


def _of_tenant(schema: TableSchema, tenant: tuple[str, str] | None) -> list[str]:
    if tenant is None:
        return []
    bytewise = [f't.{_name(tenant[0])}::text COLLATE "C" = %s'] if _column(schema, tenant[0]).kind in _BYTEWISE else []
    return [*_equal([tenant[0]]), *bytewise]


def _tenant(schema: TableSchema, tenant: tuple[str, str] | None) -> list[Any]:
    return [] if tenant is None else [tenant[1]] * len(_of_tenant(schema, tenant))


def _column(schema: TableSchema, name: str) -> Column:
    return next(column for column in schema.columns if column.name == name)


def _parameter(schema: TableSchema, column: str, value: Value) -> str:
    """The text that the column's type reads. Raises _NoSuchValue."""
    if isinstance(value, str):
        if "\0" in value:
            raise _NoSuchValue
        if _column(schema, column).kind is Kind.BYTES:
            try:
                return "\\x" + a2b_base64(value, strict_mode=True).hex()
            except (Base64Error, ValueError) as error:
                raise _NoSuchValue from error
        return value
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _row(schema: TableSchema) -> Callable[[Row], list[Value]]:
    kinds, present = [column.kind for column in schema.columns], row_presenter(schema)
    return lambda row: present([wire_value(kind, text) for kind, text in zip(kinds, row, strict=True)])


def _page(schema: TableSchema, order: Sequence[str], rows: Sequence[Row], more: bool) -> Page:
    names = [column.name for column in schema.columns]
    places, values = [names.index(column) for column in order], _row(schema)
    found = [Found(values(row), [row[place] for place in places]) for row in rows]
    return Page(found, found[-1].after if more else None)


class _Session:
    """One connection, used by one thread at a time."""

    def __init__(self, url: str, password: Password | None) -> None:
        import psycopg
        from psycopg.adapt import AdaptersMap
        from psycopg.conninfo import conninfo_to_dict
        from psycopg.types.string import StrDumperUnknown, TextLoader

        self.error = psycopg.Error
        texts = AdaptersMap(types=psycopg.adapters.types)  # every value comes as the server prints it
        texts.register_dumper(str, StrDumperUnknown)
        texts.register_dumper(int, psycopg.adapters.get_dumper(int, psycopg.adapt.PyFormat.TEXT))
        texts.register_loader(0, TextLoader)
        settings: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "upwell-api",
            "keepalives_idle": 30,
            "tcp_user_timeout": STATEMENT_TIMEOUT_S * 1000,
        } | {name: value for name, value in conninfo_to_dict(url).items() if value is not None}
        if password is not None:
            asked = [str(settings.get(name) or usual) for name, usual in _PLACE.items()]
            settings = {"sslmode": "require", **settings, "password": password(*asked)}
        try:
            self._connection: psycopg.Connection[Any] = psycopg.connect(autocommit=True, context=texts, **settings)
            self._connection.execute(_SETTINGS.encode(), prepare=False)
        except psycopg.Error as error:
            raise TransientError(
                f"The API's database can't be reached ({_last_line(error)}).",
                code="UW-AP-010",
                remedy="Check api.database (or subscriber.target), and that this machine may connect.",
            ) from error

    @property
    def broken(self) -> bool:
        """Not to be used again."""
        return bool(self._connection.closed)

    def all(self, statement: str, parameters: Sequence[Any]) -> list[Row]:
        """Few rows."""
        try:
            return self._connection.execute(statement.encode(), parameters).fetchall()
        except self.error as error:
            raise self._translated(error) from error

    def some(self, statement: str, parameters: Sequence[Any], limit: int) -> tuple[list[Row], bool]:
        """Up to `limit` rows and PAGE_BYTES_MAX, one at a time, and whether there are more."""
        rows: list[Row] = []
        size = 0
        try:
            rows_coming = cast("Generator[Row]", self._connection.cursor().stream(statement.encode(), parameters))
            with closing(rows_coming):  # ends the statement, where not all of its rows are wanted
                for row in rows_coming:
                    if len(rows) == limit or size > PAGE_BYTES_MAX:
                        return rows, True
                    rows.append(row)
                    size += sum(map(len, filter(None, row)))
        except self.error as error:
            raise self._translated(error) from error
        return rows, False

    def close(self) -> None:
        """Never raises."""
        with suppress(self.error, OSError):
            self._connection.close()

    def _translated(self, error: psycopg.Error) -> Exception:
        """What comes next. The server's own messages quote values; none of them leaves this module."""
        import psycopg

        state = error.sqlstate
        if self.broken or (state is None and isinstance(error, psycopg.OperationalError)):
            self.close()
            return _Lost(TransientError("The connection to the API's database was lost.", code="UW-AP-010"))
        if state is None:
            return _NoSuchValue() if isinstance(error, psycopg.DataError) else error
        if state.startswith("22"):
            return _NoSuchValue()
        if state == _STALE_PLAN:
            self.close()
            return _Lost(TransientError("A table of the API's database was changed.", code="UW-AP-010"))
        if state == "57014":
            return TransientError(
                f"The database took longer than {STATEMENT_TIMEOUT_S} s.",
                code="UW-AP-011",
                remedy="Make an index for this way to read; see docs/api.md.",
            )
        if state.startswith(_PASSING):
            self.close()
            return TransientError(f"The API's database can't answer now (SQLSTATE {state}).", code="UW-AP-010")
        return _for_a_person(error, state) or error


def _for_a_person(error: psycopg.Error, state: str) -> OperatorError | None:
    """Messages of these SQLSTATEs name objects, never values."""
    said = error.diag.message_primary or "it says no more"
    if state in _MISSING:
        return OperatorError(
            f"The API's database lacks something that the schema file names: {said}.",
            code="UW-AP-012",
            remedy="Let `upwell subscribe` make it, or write the schema file anew: upwell api --learn",
        )
    if state == "42501":
        return OperatorError(
            f"The API's role lacks a right: {said}.",
            code="UW-AP-013",
            remedy="GRANT USAGE ON SCHEMA and GRANT SELECT ON the tables to it, those of the schema upwell included.",
        )
    return None


def _last_line(error: Exception) -> str:
    """What libpq says of a failed connect names host and role, never a password."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "no reason given"


class _Pool:
    """At most `connections_max` connections; a read that finds one lost is done once more with a new one."""

    def __init__(self, url: str, connections_max: int, password: Password | None) -> None:
        self._url = url
        self._password = password
        self._max = connections_max
        self._free = threading.BoundedSemaphore(connections_max)
        self._lock = threading.Lock()
        self._idle: list[_Session] = []

    def run(self, read: Callable[[_Session], Any]) -> Any:
        """What `read` gives. Raises UpwellError or _NoSuchValue."""
        if not self._free.acquire(timeout=POOL_WAIT_S):
            raise TransientError(f"All {self._max} connections to the API's database are in use.", code="UW-AP-014")
        try:
            rested = self._rested()
            if rested is not None:
                try:
                    return self._use(rested, read)
                except _Lost:
                    self.close()  # the others lead to the same server
            try:
                return self._use(_Session(self._url, self._password), read)
            except _Lost as lost:
                raise lost.error from lost.__cause__
        finally:
            self._free.release()

    def close(self) -> None:
        """Close what is idle; never raises."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _rested(self) -> _Session | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _use(self, session: _Session, read: Callable[[_Session], Any]) -> Any:
        try:
            return read(session)
        finally:
            if session.broken:
                session.close()
            else:
                with self._lock:
                    self._idle.append(session)
