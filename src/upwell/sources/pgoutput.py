"""Decodes pgoutput, protocol version 1 in text mode, into change events. Pure: no connection, no clock.

Message formats: PostgreSQL documentation, "Logical Replication Message Formats". The decoder is fed one CopyData
message of the replication connection after another and keeps what they said until `take`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any, Final, NamedTuple

import orjson

from upwell.model import DELETE, UPSERT, ChangeEvent, Operation, Rejection, TableSchema, Was, pack_version
from upwell.sources.postgres_types import Decode

# What a column's decoder is when the column does not leave the source: its bytes are stepped over.
SKIP: Final = None
Decoders = Sequence[Decode | None]

_XLOG_HEADER: Final = 25  # 'w', start, end, clock of the server: 1 + 8 + 8 + 8 bytes
_PAD: Final = bytes(4)  # so that the head of a column can be read as a whole where a message ends with a NULL
_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)

_column_head = struct.Struct(">BI").unpack_from
_u32 = struct.Struct(">I").unpack_from
_begin = struct.Struct(">QqI").unpack_from
_commit = struct.Struct(">BQQ").unpack_from
_keepalive = struct.Struct(">QqB").unpack_from
_truncate = struct.Struct(">IB").unpack_from

_TEXT, _NULL = ord("t"), ord("n")
_OLD, _KEY, _NEW = ord("O"), ord("K"), ord("N")


class Unchanged:
    """Stands for a value that the log does not repeat: stored out of line (TOAST) and not changed."""


UNCHANGED: Final = Unchanged()
Values = list[Any]  # of Value, None and UNCHANGED


class RelationColumn(NamedTuple):
    """A column as the Relation message has it."""

    name: str
    type: int  # pg_type.oid
    typmod: int  # pg_attribute.atttypmod
    in_identity: bool


class Relation(NamedTuple):
    """What a table looks like from here on."""

    oid: int
    schema: str
    name: str
    identity: str  # pg_class.relreplident: d, n, f or i
    columns: tuple[RelationColumn, ...]


class Transaction(NamedTuple):
    """What Begin says."""

    commit: int  # where the commit record starts
    xid: int
    time: str  # ISO 8601 in UTC


class KeyMissing(ValueError):
    """The log does not hold a row's key."""

    def __str__(self) -> str:
        return "the log does not hold the row's key; see REPLICA IDENTITY"


@dataclass
class Table:
    """How to read the rows of a relation."""

    schema: TableSchema
    decoders: Decoders  # one for each of the relation's columns
    key: Callable[[Values], bytes] = field(init=False)  # a row's key as JSON; raises KeyMissing
    partial: dict[frozenset[str], tuple[TableSchema, tuple[int, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key = key_encoder(self.schema.key_indexes)

    def without(self, missing: frozenset[str]) -> tuple[TableSchema, tuple[int, ...]]:
        """The schema of rows that lack these columns, and where the others stand."""
        found = self.partial.get(missing)
        if found is None:
            kept = tuple(i for i, column in enumerate(self.schema.columns) if column.name not in missing)
            found = self.partial[missing] = (self.schema.without(missing), kept)
        return found


# What orjson returns occupies a page of memory however short it is, until it is freed: what is kept is copied, which
# also takes a third of the time (measured with orjson 3.13). The copying is what `b"%b" %` does.


def key_encoder(indexes: tuple[int, ...]) -> Callable[[Values], bytes]:
    """What makes the key's JSON of a row's values."""
    if len(indexes) == 1:
        index = indexes[0]

        def encode(values: Values) -> bytes:
            value = values[index]
            if value is None or value is UNCHANGED:
                raise KeyMissing
            return b"%b" % orjson.dumps((value,))
    else:
        pick = itemgetter(*indexes)

        def encode(values: Values) -> bytes:
            key = pick(values)
            if None in key or UNCHANGED in key:
                raise KeyMissing
            return b"%b" % orjson.dumps(key)

    return encode


# Finds out how to read a relation; None: its rows are not wanted.
Resolve = Callable[[Relation], Table | None]
# Reads columns of a row that the log lacks: (table, the key as printed, names, xid) → their values; None: no such row.
Fetch = Callable[[Table, Sequence[str], Sequence[str], int], Values | None]


@dataclass(slots=True)
class Taken:
    """What the messages said since the last time."""

    events: list[ChangeEvent] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    schemas: list[TableSchema] = field(default_factory=list)
    resync: list[tuple[str, str]] = field(default_factory=list)
    size: int = 0  # bytes of row messages


class Decoder:
    """Messages in, events out.

    `position` is the end of the last whole transaction, or beyond it where the server says that nothing followed;
    `transaction` is the one being read, of which `ordinal` row changes have come so far.
    """

    def __init__(
        self,
        epoch: int,
        position: int,
        resolve: Resolve,
        fetch: Fetch,
        *,
        known: dict[str, TableSchema],
        returned: tuple[int, int] = (0, 0),
    ) -> None:
        """known: the schemas reported so far, which it adds to; returned: (commit, ordinal) of what was taken of an
        unfinished transaction over an earlier connection, and comes again but is not wanted again."""
        self.position = position
        self.transaction: Transaction | None = None
        self.ordinal = 0
        self.taken = Taken()
        self._epoch = epoch
        self._resolve, self._fetch = resolve, fetch
        self._known = known
        self._returned = returned
        self._skip = 0  # up to this ordinal the transaction's changes were returned before
        self._tables: dict[int, Table | None] = {}
        self._names: dict[int, str] = {}
        self.newest_xid: int | None = None  # of the transactions that it saw
        self._time = ""
        self._xid = self._commit = 0
        self._handlers: dict[int, Callable[[bytes], None]] = {
            ord("I"): self._on_insert,
            ord("U"): self._on_update,
            ord("D"): self._on_delete,
            ord("B"): self._on_begin,
            ord("C"): self._on_commit,
            ord("R"): self._on_relation,
            ord("T"): self._on_truncate,
        }

    def take(self) -> Taken:
        """What was decoded since the last call."""
        taken, self.taken = self.taken, Taken()
        return taken

    def feed(self, message: bytes) -> bool:
        """Reads one CopyData message; True where it asks for an answer at once."""
        if message[0] == 0x77:  # 'w': XLogData
            handler = self._handlers.get(message[_XLOG_HEADER])
            if handler is not None:  # else an origin, a type or a logical message: nothing to us
                handler(message)
            return False
        if message[0] != 0x6B:  # 'k': keepalive
            raise ValueError(f"unknown replication message {message[:1]!r}")
        end, _, reply = _keepalive(message, 1)
        # Within a transaction it speaks of what was decoded, not of what was sent.
        if self.transaction is None and end > self.position:
            self.position = end
        return bool(reply)

    def _on_begin(self, message: bytes) -> None:
        commit, micros, xid = _begin(message, 26)
        self.transaction = Transaction(commit, xid, iso_time(micros))
        self.ordinal = 0
        self._commit, self._xid, self._time = commit, xid, self.transaction.time
        # Ids are 32 bits that start anew at some time: newer is what is less than half the circle ahead.
        if self.newest_xid is None or 0 < (xid - self.newest_xid) % 2**32 < 2**31:
            self.newest_xid = xid
        self._skip = self._returned[1] if self._returned[0] == commit else 0

    def _on_commit(self, message: bytes) -> None:
        _, _, end = _commit(message, 26)
        self.position = end
        self.transaction = None

    def _on_relation(self, message: bytes) -> None:
        relation = parse_relation(message, 26)
        table = self._tables[relation.oid] = self._resolve(relation)
        if table is None:
            return
        name = table.schema.table
        self._names[relation.oid] = name
        known = self._known.get(name)
        if known is None or known.hash != table.schema.hash:
            self._known[name] = table.schema
            self.taken.schemas.append(table.schema)

    def _on_truncate(self, message: bytes) -> None:
        count, _ = _truncate(message, 26)
        for oid in struct.unpack_from(f">{count}I", message, 31):
            if self._tables.get(oid) is not None:
                self.taken.resync.append((self._names[oid], "TRUNCATE"))

    def _on_insert(self, message: bytes) -> None:
        self.ordinal += 1
        table = self._tables[_u32(message, 26)[0]]
        if table is None or self.ordinal <= self._skip:
            return
        values: Values = []
        try:
            read_tuple(message + _PAD, 31, table.decoders, values)
            event = ChangeEvent(
                table.schema,
                UPSERT,
                pack_version(self._epoch, self._commit, self.ordinal),
                self._time,
                table.key(values),
                b"%b" % orjson.dumps(values),
                "insert",
                self._xid,
            )
        except ValueError as unreadable:
            self._reject(table, values, unreadable)
            return
        self.taken.events.append(event)
        self.taken.size += len(message)

    def _on_update(self, message: bytes) -> None:
        table = self._tables[_u32(message, 26)[0]]
        self.ordinal += 1
        if message[30] == _NEW:
            if table is None or self.ordinal <= self._skip:
                return
            new: Values = []
            try:
                read_tuple(message + _PAD, 31, table.decoders, new)
                if UNCHANGED in new:
                    self._upsert_partial(table, new)
                else:
                    self._upsert(table, new)
            except ValueError as unreadable:
                self._reject(table, new, unreadable)
        else:
            self._on_update_with_old(table, message)
        self.taken.size += len(message)

    def _on_update_with_old(self, table: Table | None, message: bytes) -> None:
        """With REPLICA IDENTITY FULL always, else where the key changed."""
        # Two ordinals in any case, so that they do not depend on which tables and columns are wanted this time.
        self.ordinal += 1
        if table is None or self.ordinal <= self._skip:
            return
        old: Values = []
        new: Values = []
        try:
            at = read_tuple(message + _PAD, 31, table.decoders, old)
            read_tuple(message + _PAD, at + 1, table.decoders, new)
            self._fill(table, old, new, whole=message[30] == _OLD)
            old_key, new_key = table.key(old), table.key(new)
            if old_key == new_key:
                self._upsert_partial(table, new, self._changed(table, old, new, whole=message[30] == _OLD))
                return
            self._append(table.schema, DELETE, old_key, None, "update", ordinal=self.ordinal - 1)
            self._upsert_moved(table, new, message, at + 1)
        except ValueError as unreadable:
            self._reject(table, old if len(old) < len(table.schema.columns) else new, unreadable)

    def _on_delete(self, message: bytes) -> None:
        self.ordinal += 1
        table = self._tables[_u32(message, 26)[0]]
        if table is None or self.ordinal <= self._skip:
            return
        old: Values = []
        try:
            read_tuple(message + _PAD, 31, table.decoders, old)
            self._append(table.schema, DELETE, table.key(old), None, "delete")
        except ValueError as unreadable:
            self._reject(table, old, unreadable)
        self.taken.size += len(message)

    def _fill(self, table: Table, old: Values, new: Values, *, whole: bool) -> None:
        """Takes unchanged values from the old row: all of them where it is whole, else those of the key."""
        keys = table.schema.key_indexes
        for index in range(len(new)) if whole else keys:
            if new[index] is UNCHANGED:
                new[index] = old[index]

    def _changed(self, table: Table, old: Values, new: Values, *, whole: bool) -> tuple[str, ...] | None:
        if not whole:
            return None
        columns = table.schema.columns
        return tuple(column.name for column, was, now in zip(columns, old, new, strict=True) if was != now)

    def _upsert(self, table: Table, values: Values, changed: tuple[str, ...] | None = None) -> None:
        self._append(table.schema, UPSERT, table.key(values), b"%b" % orjson.dumps(values), "update", changed)

    def _upsert_partial(self, table: Table, values: Values, changed: tuple[str, ...] | None = None) -> None:
        missing = frozenset(
            column.name for column, value in zip(table.schema.columns, values, strict=True) if value is UNCHANGED
        )
        if not missing:
            self._upsert(table, values, changed)
            return
        schema, kept = table.without(missing)
        self._append(
            schema, UPSERT, table.key(values), b"%b" % orjson.dumps([values[i] for i in kept]), "update", changed
        )

    def _upsert_moved(self, table: Table, values: Values, message: bytes, at: int) -> None:
        """A row under a new key, which the target does not have: it needs all columns."""
        missing = [i for i, value in enumerate(values) if value is UNCHANGED]
        if missing:
            raw: Values = []
            as_printed: list[Decode | None] = [None if decode is SKIP else bytes.decode for decode in table.decoders]
            read_tuple(message + _PAD, at, as_printed, raw)
            columns = table.schema.columns
            key = [raw[i] for i in table.schema.key_indexes]
            fetched = self._fetch(table, key, [columns[i].name for i in missing], self._xid)
            if fetched is None:
                return  # it has gone, or has another key by now: its delete follows
            for index, value in zip(missing, fetched, strict=True):
                values[index] = value
        self._upsert(table, values)

    def _append(
        self,
        schema: TableSchema,
        operation: Operation,
        key: bytes,
        row: bytes | None,
        was: Was,
        changed: tuple[str, ...] | None = None,
        ordinal: int | None = None,
    ) -> None:
        version = pack_version(self._epoch, self._commit, ordinal or self.ordinal)
        event = ChangeEvent(schema, operation, version, self._time, key, row, was, self._xid, changed)
        self.taken.events.append(event)

    def _reject(self, table: Table, values: Values, error: ValueError) -> None:
        """The row can't be encoded: its key, as far as it was read, and why."""
        known = dict(zip((column.name for column in table.schema.columns), values, strict=False))
        key = [known.get(name) for name in table.schema.key]
        text = orjson.dumps([None if value is UNCHANGED else value for value in key]).decode()
        self.taken.rejected.append(Rejection(table.schema.table, text, reason_of(error, table.schema, len(values))))


def reason_of(error: ValueError, schema: TableSchema, column: int) -> str:
    """Why a row can't be encoded, without its values: a decoder's own message would show them."""
    if isinstance(error, KeyMissing):
        return str(error)
    name = schema.columns[column].name if column < len(schema.columns) else "of the row"
    problem = "holds bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else "is not of its type"
    return f"column {name} {problem}"


def read_tuple(data: bytes, at: int, decoders: Decoders, values: Values) -> int:
    """Appends the values of a TupleData at `at` to `values` and returns where it ends.

    This is the hot path: everything in it is there for speed. `data` has 4 bytes to spare at its end.
    """
    append = values.append
    at += 2  # the number of columns, which is the relation's
    for decode in decoders:
        kind, length = _column_head(data, at)
        if kind == _TEXT:
            start = at + 5
            at = start + length
            if decode is not SKIP:
                append(decode(data[start:at]))
        else:
            at += 1
            if decode is not SKIP:
                append(None if kind == _NULL else UNCHANGED)
    return at


def parse_relation(data: bytes, at: int) -> Relation:
    """A Relation message, from its oid on."""
    (oid,) = _u32(data, at)
    schema, at = _string(data, at + 4)
    name, at = _string(data, at)
    identity = chr(data[at])
    count = int.from_bytes(data[at + 1 : at + 3], "big")
    at += 3
    columns = []
    for _ in range(count):
        flags = data[at]
        column, at = _string(data, at + 1)
        type_, typmod = struct.unpack_from(">Ii", data, at)
        columns.append(RelationColumn(column, type_, typmod, bool(flags & 1)))
        at += 8
    # An empty namespace stands for pg_catalog.
    return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns))


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode(), end + 1


def iso_time(micros: int) -> str:
    """Microseconds since 2000 as ISO 8601 in UTC."""
    return (_POSTGRES_EPOCH + timedelta(microseconds=micros)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_lsn(text: str) -> int:
    """16/B374D848 as a number."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def format_lsn(lsn: int) -> str:
    """A number as 16/B374D848."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
