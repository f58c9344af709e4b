"""The words: a change event, its version, the schema it refers to, and what carries them.

Everything here is plain data. A row travels as the JSON array that goes over the wire, encoded once, next to the
database; whoever needs its values (masks, filters, DynamoDB) decodes that array with `ChangeEvent.values`.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, Generic, Literal, NamedTuple, NewType, TypeVar

import orjson

from upwell.errors import UpwellError

# A value as it stands in JSON: see docs/wire.md for how each type of a source is written.
Value = str | int | float | bool | None

# Where to resume reading; opaque to all but the source that made it.
Position = NewType("Position", str)
# Where a snapshot stands inside one table; opaque to all but the source that made it.
Cursor = NewType("Cursor", str)

Operation = Literal["u", "d"]
UPSERT: Final = "u"
DELETE: Final = "d"

# What the source called it. A hint only: Change Tracking reports net changes, so an "insert" may hit a row that exists.
Was = Literal["insert", "update", "delete", "read"]

# Which of two events of a row is newer: 16 bytes that compare as (epoch, commit, ordinal) does.
Version = bytes
_VERSION = struct.Struct(">IQI")
LOWEST_VERSION: Final[Version] = bytes(16)
HIGHEST_ORDINAL: Final = 2**32 - 1


def pack_version(epoch: int, commit: int, ordinal: int) -> Version:
    """The 16 bytes of a version: epoch u32, commit u64, ordinal u32, big-endian."""
    return _VERSION.pack(epoch, commit, ordinal)


def unpack_version(version: Version) -> tuple[int, int, int]:
    """`(epoch, commit, ordinal)` of a version."""
    return _VERSION.unpack(version)


class TableName(NamedTuple):
    """A table's name in two parts, as `schema.table`; either part is quoted as in SQL where it needs to be."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Split at the first dot outside quotes. Raises ValueError for anything but one or two parts."""
        parts = _NAME_PART.fullmatch(text)
        if parts is None:
            raise ValueError(f"{text!r} is not a table name; write schema.table, quoted as in SQL where needed")
        first, second = parts.group(1), parts.group(2)
        return cls("", _unquote(first)) if second is None else cls(_unquote(first), _unquote(second))

    @property
    def sql(self) -> str:
        """The name as SQL takes it, whatever is in it: for a statement that is shown to a person."""
        return ".".join('"' + part.replace('"', '""') + '"' for part in self if part)

    def __str__(self) -> str:
        return f"{_quote(self.schema)}.{_quote(self.name)}" if self.schema else _quote(self.name)


_NAME_PART = re.compile(r'("(?:[^"]|"")+"|[^".]+)(?:\.("(?:[^"]|"")+"|[^"]+))?', re.DOTALL)
_PLAIN_PART = re.compile(r"[^\".*?\s]+")


def _unquote(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


def _quote(part: str) -> str:
    return part if _PLAIN_PART.fullmatch(part) else '"' + part.replace('"', '""') + '"'


class Kind(StrEnum):
    """What a column holds, whichever database it comes from. Decides the type in a target that is not the source's."""

    BOOL = "bool"
    INT = "int"
    DECIMAL = "decimal"
    FLOAT = "float"
    TEXT = "text"
    BYTES = "bytes"
    DATE = "date"
    TIME = "time"
    TIMESTAMP = "timestamp"
    TIMESTAMPTZ = "timestamptz"
    UUID = "uuid"
    JSON = "json"
    OTHER = "other"  # carried as the source's text: intervals, ranges, arrays, geometry


class Column(NamedTuple):
    """A column: its name, its type in the source's own words, what it holds."""

    name: str
    type: str
    kind: Kind
    has_default: bool = False  # known to the source only: a column added with one changes rows without an event


@dataclass(frozen=True)
class TableSchema:
    """What the rows of a table look like at one point of the stream. Equal schemas have equal `hash`."""

    table: str  # str(TableName), the source's name for it
    columns: tuple[Column, ...]
    key: tuple[str, ...]  # the key's columns in the key's order
    dialect: str  # postgresql | sqlite | sqlserver | mysql | mariadb: whose type names these are
    target: str | None = None  # the table's name at the destination, where the configuration gives one
    partial: bool = False  # rows hold some of the table's columns; the others keep the values they have
    # Columns of the key in which the database holds values for equal that are written in several ways: interval,
    # citext. They don't count for the lane, so that a key's change of looks stays in order. Known next to the source.
    loose: frozenset[str] = frozenset()

    @cached_property
    def hash(self) -> str:
        """12 hex digits that name this schema in a record."""
        return hashlib.sha256(orjson.dumps(self.to_wire())).hexdigest()[:12]

    @cached_property
    def key_indexes(self) -> tuple[int, ...]:
        """Where the key's columns stand among `columns`, in the key's order."""
        names = [column.name for column in self.columns]
        return tuple(names.index(name) for name in self.key)

    @cached_property
    def lane_seed(self) -> int:
        """The table's part of a key's hash; see lanes.py."""
        return zlib.crc32(self.table.encode())

    def lane_key(self, key: bytes) -> bytes:
        """What of a key, as JSON, decides its lane."""
        if not self.loose:
            return key
        values = zip(self.key, orjson.loads(key), strict=True)
        return orjson.dumps([value for name, value in values if name not in self.loose])

    def to_wire(self) -> dict[str, Any]:
        """The schema as a record's header carries it."""
        wire: dict[str, Any] = {
            "table": self.table,
            "key": list(self.key),
            "columns": [[column.name, column.type] for column in self.columns],
            "kinds": [column.kind.value for column in self.columns],
            "dialect": self.dialect,
        }
        if self.target is not None:
            wire["to"] = self.target
        if self.partial:
            wire["partial"] = True
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> TableSchema:
        """Reads `to_wire`. Raises KeyError, TypeError or ValueError where it is not one."""
        return cls(
            table=wire["table"],
            columns=tuple(
                Column(name, type_, Kind(kind))
                for (name, type_), kind in zip(wire["columns"], wire["kinds"], strict=True)
            ),
            key=tuple(wire["key"]),
            dialect=wire["dialect"],
            target=wire.get("to"),
            partial=wire.get("partial", False),
        )

    def without(self, names: frozenset[str]) -> TableSchema:
        """The schema of a row that lacks some columns (PostgreSQL does not repeat unchanged TOAST values)."""
        return replace(self, columns=tuple(c for c in self.columns if c.name not in names), partial=True)


class ChangeEvent(NamedTuple):
    """One row's change."""

    schema: TableSchema
    operation: Operation
    version: Version
    time: str  # when the source committed it, ISO 8601 in UTC
    key: bytes  # JSON array of the key's values in the key's order: the row's identity, byte for byte
    row: bytes | None  # JSON array in the order of the schema's columns; None for a delete
    was: Was
    transaction: int = 0  # the source's own id of the transaction; never leaves the publisher
    changed: tuple[str, ...] | None = None  # the columns that changed, where the source knows
    context: str | None = None  # what the writer said of itself, where the source keeps that; base64

    def values(self) -> list[Value]:
        """The row's values in the order of the schema's columns; of a delete the key's values."""
        values: list[Value] = orjson.loads(self.key if self.row is None else self.row)
        return values


class Marker(NamedTuple):
    """Opens or closes a resync of a table in one lane, in order with the lane's events."""

    schema: TableSchema
    resync: int  # the epoch that the resync began with
    phase: Literal["open", "close"]
    lanes: int  # how many lanes there are: the resync is over when the last one is closed
    lane: int


# What a lane carries.
LaneItem = ChangeEvent | Marker


@dataclass(frozen=True, slots=True)
class Rejection:
    """An event that can't be delivered, with the reason. Its row may be missing: what can't be encoded has none."""

    table: str
    key: str  # JSON text of the key, or what is known of it
    reason: str
    event: ChangeEvent | None = None


@dataclass(slots=True)
class Window:
    """One bounded read of the source's changes, in version order."""

    events: list[ChangeEvent]
    position: Position  # where to resume when all of `events` is durable
    commit: int  # all that committed at or before this has been returned, in this window or earlier ones
    complete: bool = True  # False: the window ends inside a transaction, whose first part has been returned
    more: bool = False  # True: there is more to read at once
    rejected: list[Rejection] = field(default_factory=list)
    schemas: list[TableSchema] = field(default_factory=list)  # seen for the first time, or changed
    resync: list[tuple[str, str]] = field(default_factory=list)  # (table, why): TRUNCATE, or rows changed unseen


@dataclass(slots=True)
class Chunk:
    """One bounded part of a table, in the database's own key order, read in one transaction of the source."""

    schema: TableSchema
    rows: list[tuple[bytes, bytes]]  # (key, row) as in ChangeEvent
    cursor: Cursor | None  # where the next chunk starts; None: this was the last one
    commit: int  # it contains nothing that committed after this: hold it until Window.commit has come so far
    contains: Callable[[int], bool]  # whether it contains what a delivered transaction (by its id) did
    time: str
    rejected: list[Rejection] = field(default_factory=list)


class TablePhase(StrEnum):
    """Where a table stands on its way to being in sync."""

    SNAPSHOT = "snapshot"  # rows are being read, changes flow beside them
    SWEEP = "sweep"  # all rows are there, those that the source no longer has are being removed
    STREAM = "stream"  # only changes flow


@dataclass(frozen=True)
class TableProgress:
    """A table's part of the checkpoint."""

    phase: TablePhase
    resync: int = 0  # the resync that is, or was last, under way: the epoch that it began with
    opened: bool = False  # its opening markers are durable
    cursor: Cursor | None = None
    rows: int = 0  # read by this snapshot so far
    estimate: int | None = None  # rows in the table, by the source's statistics
    reason: str = ""  # why the resync was started
    wanted: str = ""  # why another one is to begin: saved with the position that made it necessary


@dataclass(frozen=True)
class Checkpoint:
    """All that a publisher needs to go on after a crash; saved in one atomic write."""

    epoch: int
    term: int
    position: Position | None = None
    commit: int = 0  # Window.commit at the position
    lanes: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # lane → last acknowledged (term, sequence)
    tables: Mapping[str, TableProgress] = field(default_factory=dict)
    schemas: Mapping[str, TableSchema] = field(default_factory=dict)  # as last published


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to save: one publisher of a pipeline has it at a time."""

    term: int
    holder: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that could not be delivered or applied, kept with its reason; can be replayed."""

    id: int
    table: str
    key: str
    version: str  # hex; empty where the event never got one
    reason: str
    time: str  # when it was put aside, ISO 8601 in UTC
    payload: bytes  # a packed record that holds just this event; empty: see envelope.letter_payload

    def identity(self, pipeline: str) -> bytes:
        """32 bytes, equal for letters about the same: those without a version are told apart by what they hold."""
        about = [pipeline, self.table, self.key, self.version]
        if not self.version:
            about.append(hashlib.sha256(self.payload).hexdigest())
        return hashlib.sha256(orjson.dumps(about)).digest()


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class LaneRecord(Generic[Item]):
    """One record of the stream: a lane's items in order, numbered without a gap within a term."""

    pipeline: str
    lane: int
    term: int
    seq: int
    after: tuple[int, int] | None  # on the first of a term: the last acknowledged (term, sequence) before it
    items: Sequence[Item]


@dataclass(frozen=True, slots=True)
class TableSelection:
    """Which tables, and which of their columns, leave the source. The first selection that matches a table counts.

    The pattern is one of tablepatterns.py; an empty schema is the source's default schema.
    """

    pattern: TableName
    columns: tuple[str, ...] | None = None  # only these; None: all
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check of the environment says about one thing."""

    level: Literal["pass", "warn", "fail"]
    code: str  # as in UpwellError: the key of `upwell explain`
    sentence: str
    remedy: str = ""  # the next step, ready to be pasted where it can be

    @classmethod
    def of_error(cls, error: UpwellError) -> Finding:
        """What stands in the way, in the error's words."""
        return cls("fail", error.code, error.message, error.remedy)

    @classmethod
    def of_check(cls, code: str, good: str, check: Callable[[], object]) -> Finding:
        """`good`, or what the check raised."""
        try:
            check()
        except UpwellError as error:
            return cls.of_error(error)
        return cls("pass", code, good)


@dataclass(frozen=True, slots=True)
class Inspected:
    """A table that a source has: its schema, or why it can't be published."""

    name: TableName
    schema: TableSchema | None
    rows: int | None  # about, by statistics
    problem: str = ""
