"""Reads parts of PostgreSQL's tables, each in one transaction, and tells what such a part contains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from upwell.model import Cursor, Rejection, TableSchema
from upwell.sources.pgoutput import iso_time, key_encoder, reason_of
from upwell.sources.postgres_catalog import CatalogTable
from upwell.sources.postgres_session import RAW_TEXT, quote_ident, quote_literal
from upwell.sources.postgres_types import Decode, unescape

if TYPE_CHECKING:
    import psycopg

CHUNK_BYTES_MAX: Final = 8 * 2**20  # of COPY's text; a chunk of very long rows ends early
SNAPSHOT_FUNCTIONS: Final = 130000  # pg_current_snapshot() was txid_current_snapshot() before

_NULL: Final = b"\\N"
_XIDS: Final = 2**32  # the log knows the lower half of a transaction's id only


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which transactions a read sees: as pg_current_snapshot() says it."""

    xmin: int  # all before have ended
    xmax: int  # none from here on has ended, though some may be in progress
    running: frozenset[int]  # in between

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """xmin:xmax:id,id,…"""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(map(int, filter(None, running.split(",")))))

    def contains(self, xid: int) -> bool:
        """Whether it sees a committed transaction, by the lower 32 bits of its top-level id."""
        full = whole_xid(xid, self.xmax)
        return full < self.xmin or (full < self.xmax and full not in self.running)


def whole_xid(xid: int, near: int) -> int:
    """The 64 bits of a transaction's id that is within two billion of another."""
    return near + (xid - near + _XIDS // 2) % _XIDS - _XIDS // 2


@dataclass(frozen=True, slots=True)
class Moment:
    """What a reading transaction sees, and when."""

    snapshot: Snapshot
    lsn: int  # nothing that it sees committed beyond
    time: str


def begin(connection: psycopg.Connection[tuple[Any, ...]], lock: str = "") -> Moment:
    """Open a REPEATABLE READ transaction. `lock`: a quoted table whose columns stay as they are until its end."""
    locking = f"; LOCK TABLE {lock} IN ACCESS SHARE MODE" if lock else ""
    # The lock comes first: the snapshot is taken by the first statement after it.
    connection.execute(f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY{locking}".encode())
    return moment(connection)


def moment(connection: psycopg.Connection[tuple[Any, ...]]) -> Moment:
    """What the transaction, or outside of one the next statement, sees."""
    new = connection.info.server_version >= SNAPSHOT_FUNCTIONS
    function = "pg_current_snapshot()" if new else "txid_current_snapshot()"
    row = connection.execute(_MOMENT.format(snapshot=function).encode()).fetchone()
    assert row is not None
    text, lsn, micros = row
    return Moment(Snapshot.parse(text), int(lsn), iso_time(int(micros)))


def next_xid(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    """Above the id of every transaction that began before. Nothing but taking one tells that, so on a standby, which
    has none to give, it is only above those that have ended.
    """
    row = connection.execute("SELECT NOT pg_is_in_recovery()").fetchone()
    if row == (True,):
        row = connection.execute("SELECT txid_current()").fetchone()
        assert row is not None
        return int(row[0])
    return moment(connection).snapshot.xmax


# The end of the log is asked for after the snapshot was taken, so nothing that it sees lies beyond.
_MOMENT: Final = """
SELECT {snapshot}::text,
       CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_insert_lsn() END - '0/0'::pg_lsn,
       (extract(epoch FROM clock_timestamp() - '2000-01-01Z'::timestamptz) * 1000000)::bigint"""


@dataclass(slots=True)
class Rows:
    """Some rows of a table, in the order of its key."""

    rows: list[tuple[bytes, bytes]]  # (key, row) as in ChangeEvent
    rejected: list[Rejection]
    last: list[str]  # the last row's key as the database prints it
    ended: bool  # the table has no more


class _Enough(Exception):
    """The rows read so far fill a chunk. Raised inside a COPY, it makes the driver cancel that."""


class RowReader:
    """Reads rows of one table, with the schema and the decoders that hold now."""

    def __init__(
        self, table: CatalogTable, schema: TableSchema, decoders: Sequence[Decode], operator_schemas: Sequence[str]
    ) -> None:
        self._table = table
        self._schema = schema
        self._decoders = list(decoders)
        self._search_path = ", ".join(["pg_catalog", *map(quote_ident, operator_schemas)])
        self._declared = {column.name: column.declared for column in table.columns}
        self._key = key_encoder(schema.key_indexes)

    def after(self, connection: psycopg.Connection[tuple[Any, ...]], key: Sequence[str] | None, limit: int) -> Rows:
        """Up to `limit` rows after a key; None: from the first on."""
        order = ", ".join(map(quote_ident, self._schema.key))
        condition = f" WHERE {self._compare('>', key)}" if key is not None else ""
        query = f"{self._select()}{condition} ORDER BY {order} LIMIT {limit}"
        result = Rows([], [], [], ended=False)
        self._prepare(connection)
        decoders, encode_key, keep = self._decoders, self._key, result.rows.append
        size = count = 0
        line = b""
        with suppress(_Enough), connection.cursor().copy(_copy(query)) as copy:
            for data in copy:
                line = bytes(data)
                count += 1
                size += len(line)
                try:
                    values = _values(line, decoders)
                    keep((encode_key(values), b"%b" % orjson.dumps(values)))  # copied: see pgoutput.py
                except ValueError as unreadable:
                    result.rejected.append(self._rejection(line, unreadable))
                if size >= CHUNK_BYTES_MAX:
                    raise _Enough
            result.ended = count < limit
        if count:
            fields = line[:-1].split(b"\t")
            result.last = [_printed(fields[index]) for index in self._schema.key_indexes]
        return result

    def one(self, connection: psycopg.Connection[tuple[Any, ...]], key: Sequence[str]) -> list[Any] | None:
        """The values of the row with this key; None where there is none. Raises ValueError where they can't be read."""
        self._prepare(connection)
        with connection.cursor().copy(_copy(f"{self._select()} WHERE {self._compare('=', key)}")) as copy:
            lines = [bytes(data) for data in copy]
        return _values(lines[0], self._decoders) if lines else None

    def _prepare(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Settings for the rest of the transaction."""
        connection.execute(f"SET LOCAL search_path = {self._search_path}".encode())
        if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
            connection.execute(RAW_TEXT.replace("SET", "SET LOCAL").encode())

    def _select(self) -> str:
        columns = ", ".join(quote_ident(column.name) for column in self._schema.columns)
        return f"SELECT {columns} FROM {self._table.only}"  # noqa: S608 - quoted names of the catalog

    def _compare(self, operator: str, key: Sequence[str]) -> str:
        """The database's own comparison, on its own types: collations are its business."""
        names = ", ".join(map(quote_ident, self._schema.key))
        values = ", ".join(
            f"{quote_literal(text)}::{self._declared[name]}" for name, text in zip(self._schema.key, key, strict=True)
        )
        return f"ROW({names}) {operator} ROW({values})"

    def _rejection(self, line: bytes, error: ValueError) -> Rejection:
        fields = line[:-1].split(b"\t")
        good = 0
        try:
            for good, (decode, text) in enumerate(zip(self._decoders, fields, strict=True)):  # noqa: B007 - it is used
                if text != _NULL:
                    decode(unescape(text))
            good = len(fields)
        except ValueError:
            pass
        key = json.dumps([_printed(fields[index]) for index in self._schema.key_indexes])
        return Rejection(self._schema.table, key, reason_of(error, self._schema, good))


def _values(line: bytes, decoders: Sequence[Decode]) -> list[Any]:
    fields = line[:-1].split(b"\t")
    if b"\\" in line:
        return [
            None if text == _NULL else decode(unescape(text) if b"\\" in text else text)
            for decode, text in zip(decoders, fields, strict=True)
        ]
    return [decode(text) for decode, text in zip(decoders, fields, strict=True)]


def _printed(field: bytes) -> str:
    # A database in SQL_ASCII may hold anything: what is no UTF-8 survives as lone surrogates.
    return unescape(field).decode(errors="surrogateescape")


def _copy(query: str) -> bytes:
    return f"COPY ({query}) TO STDOUT".encode(errors="surrogateescape")


def write_cursor(schema: TableSchema, last: Sequence[str]) -> Cursor:
    """Where the next chunk starts."""
    return Cursor(json.dumps({"key": list(schema.key), "after": list(last)}))


def read_cursor(schema: TableSchema, cursor: Cursor | None) -> list[str] | None:
    """The key after which to go on; None: from the start, also where the table has another key by now."""
    if cursor is None:
        return None
    saved = json.loads(cursor)
    after: list[str] | None = saved["after"] if saved["key"] == list(schema.key) else None
    return after
