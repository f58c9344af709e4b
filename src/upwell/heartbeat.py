"""Heartbeat rows: how the other end learns how old its data is, also when nothing changes or nobody sends any more.

They are rows of a table of our own and travel as all rows do. A row that has arrived says: all that the source had
committed at `as_of`, of the lane in which this row came, has been applied. What carries lanes to its end in order gets
a row in each lane; what is durable as soon as it is acknowledged gets a single one, after all that it speaks of.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

import orjson

from upwell.model import UPSERT, ChangeEvent, Column, Kind, TableSchema, Value, Version

# The name is its own in both worlds: a schema of ours in a database, a table beside the user's in DynamoDB.
HEARTBEAT_TABLE: Final = "upwell.upwell_heartbeat"
HEARTBEAT: Final = TableSchema(
    HEARTBEAT_TABLE,
    (
        Column("pipeline", "text", Kind.TEXT),
        Column("beat", "bigint", Kind.INT),  # no more than a number whose key lies in the lane that is meant
        Column("beats", "bigint", Kind.INT),  # how many rows, all with this number here, make a whole
        Column("as_of", "timestamptz", Kind.TIMESTAMPTZ),
        # JSON list of the source's tables whose rows may not all be there; null: a resync begins, of which more to come
        Column("resyncing", "text", Kind.TEXT),
        Column("oldest_resync", "bigint", Kind.INT),  # of the tables' newest resyncs, begun or ended; 0: there was none
        Column("newest_resync", "bigint", Kind.INT),
    ),
    ("pipeline", "beat"),
    "postgresql",
)


class Beat(NamedTuple):
    """What a heartbeat says; see the columns of HEARTBEAT."""

    as_of: str  # ISO 8601 in UTC
    resyncing: Collection[str]
    oldest_resync: int
    newest_resync: int


def heartbeat(pipeline: str, lanes: int, version: Version, beat: Beat, *, every_lane: bool) -> list[ChangeEvent]:
    """The rows of one heartbeat: one in each lane, or a single one."""
    numbers = _numbers(pipeline, lanes) if every_lane else (0,)
    resyncing = orjson.dumps(sorted(beat.resyncing)).decode()
    said = [len(numbers), beat.as_of, resyncing, beat.oldest_resync, beat.newest_resync]
    return [
        ChangeEvent(
            HEARTBEAT,
            UPSERT,
            version,
            beat.as_of,
            _key(pipeline, number),
            orjson.dumps([pipeline, number, *said]),
            "read",
        )
        for number in numbers
    ]


def withdrawal(pipeline: str, lanes: int, version: Version, time: str) -> list[ChangeEvent]:
    """Before a resync opens, in each lane: what the last heartbeat said of tables there is no longer known to be true.

    The resync may put an end to an earlier one, which will then never remove what is too much.
    """
    return [
        ChangeEvent(_WITHDRAWAL, UPSERT, version, time, _key(pipeline, number), _withdrawn(pipeline, number), "read")
        for number in _numbers(pipeline, lanes)
    ]


_WITHDRAWAL: Final = HEARTBEAT.without(frozenset({"beats", "as_of", "oldest_resync", "newest_resync"}))


def _withdrawn(pipeline: str, number: int) -> bytes:
    return orjson.dumps([pipeline, number, "null"])


@cache
def _numbers(pipeline: str, lanes: int) -> tuple[int, ...]:
    """For each lane the first number whose key lies in it."""
    found: dict[int, int] = {}
    number = 0
    while len(found) < lanes:
        found.setdefault(zlib.crc32(_key(pipeline, number), HEARTBEAT.lane_seed) % lanes, number)
        number += 1
    return tuple(found.values())


def _key(pipeline: str, number: int) -> bytes:
    return orjson.dumps([pipeline, number])


@dataclass(frozen=True)
class Freshness:
    """What the heartbeat rows at the other end say."""

    as_of: str  # all that the source had committed at this time is there; ISO 8601 in UTC
    resyncing: frozenset[str] | None  # the source's tables of which that is not so, or not yet; None: perhaps of all

    def complete(self, table: str) -> bool:
        """Whether it is so of this table."""
        return self.resyncing is not None and table not in self.resyncing


def freshness(rows: Sequence[Mapping[str, Any]]) -> Freshness | None:
    """Of all heartbeat rows of one pipeline, as column → value; None: no whole heartbeat has arrived yet.

    Rows of an earlier number of lanes stay behind and count no more.
    """
    if not rows:
        return None
    beats = max(rows, key=lambda row: str(row["as_of"]))["beats"]
    whole = [row for row in rows if row["beats"] == beats]
    if len(whole) < beats:
        return None
    as_of = min(str(row["as_of"]) for row in whole)
    resyncing = [orjson.loads(row["resyncing"]) for row in whole]
    if None in resyncing or len({row["newest_resync"] for row in whole}) > 1:
        # Some lanes have yet to come through a resync that others have come upon, of we don't know which tables.
        return Freshness(as_of, None)
    return Freshness(as_of, frozenset(table for tables in resyncing for table in tables))


def vouches(schema: TableSchema, row: Sequence[Value], damaged: int) -> bool:
    """Whether what a heartbeat row says is true in a lane that may have lost records of the epochs up to `damaged`:
    only once every table has begun to be read anew since. What withdraws is always true.
    """
    if schema.partial:
        return True
    oldest_resync = row[-2]
    return not damaged or (isinstance(oldest_resync, int) and oldest_resync > damaged)
