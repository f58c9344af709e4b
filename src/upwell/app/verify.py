"""`upwell verify`: is the destination what the source is? Reads both in chunks, in memory that does not grow with them.

First pass: a sum of the rows' hashes for each of some thousand groups of keys. Second: the keys of the groups whose
sums differ. Changes are on their way all the time, so what differs is looked at again after a pause: a key is told
only if it still differs and the destination has not changed it meanwhile.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from upwell.app import build, build_cloud
from upwell.app.resync import chosen
from upwell.clock import SystemClock
from upwell.config import Pipeline
from upwell.errors import ConfigError, Rejected, TransientError
from upwell.mapping import Mapping
from upwell.model import Chunk, Cursor, Kind, TableSchema, Value
from upwell.ports import Clock, Source

if TYPE_CHECKING:
    from upwell.sinks.dynamodb import DynamoDbSink

GROUPS: Final = 4096
CHUNK_ROWS: Final = 5_000
LOOKS: Final = 3  # in all, with a pause between them in which what is on its way arrives
CHUNK_WAIT_S: Final = 60.0  # for transactions that were running when we began
KEYS_SHOWN_MAX: Final = 100  # of each kind of difference
KEYS_MAX: Final = 200_000  # of the groups that differ, held at a time

Digest = bytes
Row = tuple[str, Digest]  # the key as JSON, a digest of the whole row
Read = Callable[[], Iterator[Row]]
Canonical = Callable[[list[Value]], list[Value]]


class Destination(Protocol):
    """Where the rows of a table can be read."""

    def canonical(self, schema: TableSchema) -> Canonical:
        """A source's row in the form in which it comes back from here. The function may raise Rejected."""

    def rows(self, schema: TableSchema) -> Iterator[list[Value]]:
        """All of them, in that form."""


@dataclass
class Comparison:
    """A table on both sides."""

    table: str
    rows: int = 0  # at the source, of those that the destination should have
    missing: list[str] = field(default_factory=list)  # keys as JSON
    superfluous: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    refused: int = 0  # rows that the destination can't hold: they are dead letters
    complete: bool = True  # False: there are more differences than were looked at

    @property
    def equal(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.missing or self.superfluous or self.different)


# --- comparing two readings ---------------------------------------------------------------------------------------


@dataclass
class Sums:
    """Of each group of keys: how many rows, and a sum of their digests, in which no two errors cancel out."""

    counts: list[int] = field(default_factory=lambda: [0] * GROUPS)
    sums: list[int] = field(default_factory=lambda: [0] * GROUPS)

    def add(self, row: Row) -> None:
        """Count a row."""
        group = group_of(row[0])
        self.counts[group] += 1
        self.sums[group] = (self.sums[group] + int.from_bytes(row[1], "big")) % 2**128


def group_of(key: str) -> int:
    """The group that a key belongs to."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % GROUPS


def sums(read: Read) -> Sums:
    """Of one reading."""
    found = Sums()
    for row in read():
        found.add(row)
    return found


# key → (the source's digest, the destination's); None where the row is not there
Differences = dict[str, tuple[Digest | None, Digest | None]]


def differences(source: Read, destination: Read) -> tuple[Differences, int, bool]:
    """What differs, how many rows the source has, and whether that is all that differs."""
    here, there = sums(source), sums(destination)
    wrong: set[int] = set()
    size = 0
    complete = True
    for group in range(GROUPS):
        if (here.counts[group], here.sums[group]) == (there.counts[group], there.sums[group]):
            continue
        size += here.counts[group] + there.counts[group]
        if wrong and size > KEYS_MAX:
            complete = False
            break
        wrong.add(group)
    if not wrong:
        return {}, sum(here.counts), True
    ours, theirs = _of_groups(source, wrong), _of_groups(destination, wrong)
    found = {key: (ours.get(key), theirs.get(key)) for key in ours.keys() | theirs.keys()}
    return {key: pair for key, pair in found.items() if pair[0] != pair[1]}, sum(here.counts), complete


def _of_groups(read: Read, groups: set[int]) -> dict[str, Digest]:
    return {key: digest for key, digest in read() if group_of(key) in groups}


def compare(table: str, source: Read, destination: Read, pause: Callable[[], None]) -> Comparison:
    """Look until nothing differs, or LOOKS times; `pause` waits in between."""
    found, rows, complete = differences(source, destination)
    for _ in range(LOOKS - 1):
        if not found:
            break
        pause()
        again, rows, complete = differences(source, destination)
        # A row that the destination has changed meanwhile is on its way: it differed because it was behind.
        found = {key: pair for key, pair in again.items() if key in found and found[key][1] == pair[1]}
    result = Comparison(table, rows, complete=complete)
    for key, (ours, theirs) in sorted(found.items()):
        if theirs is None:
            result.missing.append(key)
        elif ours is None:
            result.superfluous.append(key)
        else:
            result.different.append(key)
    return result


def digest(values: Sequence[Value]) -> Digest:
    """Of a row in canonical form."""
    return hashlib.blake2b(orjson.dumps(values), digest_size=16).digest()


# --- reading both sides -------------------------------------------------------------------------------------------


class SourceRows:
    """The rows of one table as they leave the source, in the destination's form."""

    def __init__(
        self, source: Source, mapping: Mapping, table: TableSchema, canonical: Canonical, clock: Clock
    ) -> None:
        self._source = source
        self._mapping = mapping
        self._table = table
        self._canonical = canonical
        self._clock = clock
        self.refused = 0

    def __call__(self) -> Iterator[Row]:
        self.refused = 0
        self._source.start_chunks()
        cursor: Cursor | None = None
        while True:
            chunk = self._chunk(cursor)
            indexes = self._mapping.schema(chunk.schema).key_indexes
            for _, row in self._mapping.rows(chunk.schema, chunk.rows):
                try:
                    values = self._canonical(orjson.loads(row))
                except Rejected:
                    self.refused += 1
                    continue
                yield orjson.dumps([values[index] for index in indexes]).decode(), digest(values)
            cursor = chunk.cursor
            if cursor is None:
                return

    def _chunk(self, cursor: Cursor | None) -> Chunk:
        deadline = self._clock.monotonic() + CHUNK_WAIT_S
        while True:
            chunk = self._source.chunk(self._table, cursor, CHUNK_ROWS)
            if chunk is not None:
                return chunk
            if self._clock.monotonic() > deadline:
                raise TransientError(
                    f"A transaction that was running when the comparison of {self._table.table} began still is.",
                    code="UW-CL-015",
                    remedy="Try again when it has ended.",
                )
            self._clock.sleep(0.2)


def destination_rows(destination: Destination, schema: TableSchema) -> Read:
    """The rows of one table at the destination."""

    def read() -> Iterator[Row]:
        for values in destination.rows(schema):
            key = orjson.dumps([values[index] for index in schema.key_indexes]).decode()
            yield key, digest(values)

    return read


class _DynamoDb:
    def __init__(self, sink: DynamoDbSink, tables: Sequence[TableSchema]) -> None:
        self._sink = sink
        self._sink.learn(tables)

    def canonical(self, schema: TableSchema) -> Canonical:
        return self._sink.canonical(schema)

    def rows(self, schema: TableSchema) -> Iterator[list[Value]]:
        return self._sink.rows(schema)

    def close(self) -> None:
        self._sink.close()


class _Postgres:
    def __init__(self, pipeline: Pipeline) -> None:
        self._target = build_cloud.relational(pipeline)

    def canonical(self, schema: TableSchema) -> Canonical:
        kinds = [column.kind for column in schema.columns]
        return lambda values: [canonical_value(kind, value) for kind, value in zip(kinds, values, strict=True)]

    def rows(self, schema: TableSchema) -> Iterator[list[Value]]:
        canonical = self.canonical(schema)
        after: bytes | None = None
        while True:
            rows = self._target.rows(schema, after, CHUNK_ROWS)
            for _, row in rows:
                yield canonical(orjson.loads(row))
            if len(rows) < CHUNK_ROWS:
                return
            after = rows[-1][0]

    def close(self) -> None:
        self._target.close()


_NUMBERS: Final = (Kind.INT, Kind.DECIMAL, Kind.FLOAT)
_SHORT_INTEGER: Final = 15  # digits and sign that any JSON number holds
_MOMENTS: Final = (Kind.TIME, Kind.TIMESTAMP, Kind.TIMESTAMPTZ)
# One with more digits of a second than six, or with an offset: no other source writes such.
_FINE_MOMENT: Final = re.compile(
    r"(\d{4}-\d\d-\d\dT)?(\d\d:\d\d:\d\d)(?=\.\d{7}|(?:\.\d+)?[+-])(?:\.(\d+))?(Z|[+-]\d\d:\d\d)?"
)


def canonical_value(kind: Kind, value: Value) -> Value:
    """One form for what is the same in any database: numbers without trailing zeros, seconds without either."""
    if value is None:
        return None
    if kind in _NUMBERS:
        return _number(value)
    if kind is Kind.BOOL:
        return bool(value)
    if kind in _MOMENTS and isinstance(value, str):
        value = _rounded(kind, value)
        zone = "Z" if value.endswith("Z") else ""
        return value.removesuffix("Z").rstrip("0").rstrip(".") + zone if "." in value else value
    return value


def _rounded(kind: Kind, text: str) -> str:
    """A moment of SQL Server's as PostgreSQL keeps it: in UTC, with six digits of a second."""
    found = _FINE_MOMENT.fullmatch(text)
    if found is None:
        return text
    date, clock, fraction, offset = found.groups()
    micros = round(float(f"0.{fraction or 0}") * 1_000_000)  # as PostgreSQL reads it
    if kind is Kind.TIME and clock == "23:59:59" and micros == 1_000_000:
        return "24:00:00"
    zone = "" if offset is None else offset.replace("Z", "+00:00")
    try:
        moment = datetime.fromisoformat(f"{date or '2000-01-01T'}{clock}{zone}") + timedelta(microseconds=micros)
        moment = moment.astimezone(UTC) if zone else moment
    except OverflowError:
        return text  # beyond the year 9999
    whole = moment.replace(tzinfo=None).isoformat(timespec="microseconds") + ("Z" if zone else "")
    return whole if date else whole.partition("T")[2]


def _number(value: Value) -> Value:
    try:
        number = Decimal(repr(value) if isinstance(value, float) else str(value))
    except InvalidOperation:
        return value
    if not number.is_finite():
        return str(value)
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    if text == "-0":
        return 0
    return int(text) if "." not in text and len(text) <= _SHORT_INTEGER else text


# --- the command --------------------------------------------------------------------------------------------------


def verify(pipeline: Pipeline, names: Sequence[str], clock: Clock, pause_s: float) -> Iterator[Comparison]:
    """Compare tables, one after the other; all where none is named. Raises UpwellError."""
    mapping = build.mapping(pipeline)
    with ExitStack() as closing_up:
        source = build.source_parts(pipeline).open(clock)
        closing_up.callback(source.close)
        tables = {table.table: table for table in source.tables()}
        leaving = {name: mapping.schema(table) for name, table in tables.items()}
        destination = _destination(pipeline, list(leaving.values()))
        closing_up.callback(destination.close)
        wanted = chosen(names, sorted(tables), pipeline.dialect) if names else sorted(tables)
        for name in wanted:
            if not mapping.snapshot(name):
                continue  # what existed before was never sent
            here = SourceRows(source, mapping, tables[name], destination.canonical(leaving[name]), clock)
            there = destination_rows(destination, leaving[name])
            result = compare(name, here, there, lambda: clock.sleep(pause_s))
            result.refused = here.refused
            yield result


def _destination(pipeline: Pipeline, tables: Sequence[TableSchema]) -> Any:
    kind = pipeline.destination().kind
    if kind == "dynamodb":
        return _DynamoDb(build.dynamodb_sink(pipeline, SystemClock()), tables)
    if kind == "kinesis" and pipeline.config.subscriber is not None:
        if pipeline.subscriber().kind == "dynamodb":
            return _DynamoDb(build_cloud.item_sink(pipeline, SystemClock()), tables)
        return _Postgres(pipeline)
    raise ConfigError(
        f"{pipeline.file} names no destination whose rows can be read from here.",
        code="UW-CL-016",
        remedy="Run it where `subscriber.target` is configured and can be reached.",
    )


def sentences(result: Comparison, shown_max: int) -> Iterator[str]:
    """The result in lines."""
    refused = f" ({result.refused} rows can't be stored there: see `upwell dead-letters`)" if result.refused else ""
    if result.equal:
        yield f"{result.table}: {result.rows} rows, equal{refused}"
        return
    count = len(result.missing) + len(result.superfluous) + len(result.different)
    least = "" if result.complete else "at least "
    yield f"{result.table}: {result.rows} rows, {least}{count} differ{refused}"
    for what, keys in (
        ("missing at the destination", result.missing),
        ("not in the source any more", result.superfluous),
        ("with other values", result.different),
    ):
        yield from (f"  {key} {what}" for key in keys[:shown_max])
        if len(keys) > shown_max:
            yield f"  … and {len(keys) - shown_max} more {what}"
