"""Where reading a SQL Server's changes resumes, and whether the server still has what follows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from upwell.errors import OperatorError
from upwell.model import Position

# Where a table's history stands: (object id, begin version, id of the side table; 0 where it can't be seen). Another
# one than before means that changes may have gone unseen: TRUNCATE, tracking off and on, a table made anew.
History = tuple[int, int, int]

# How many keys may be remembered whose spelling is not the one that change tracking tells.
SPELLINGS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Inside:
    """A place in the middle of a version: what comes before it has been returned."""

    table: str  # of the tables, which are read in the order of their names
    key: str  # JSON of the last key that was returned, as change tracking spells it


@dataclass(frozen=True, slots=True)
class Place:
    """A position: everything up to version `done` has been returned, and of the next one what is before `inside`."""

    done: int
    inside: Inside | None
    database: str  # which one it is, see Server.identity
    fork: str  # of the database's history; empty where we may not see it
    marker: int  # what we have written into the database before this was returned; 0: nothing
    tables: Mapping[str, History]
    floors: Mapping[str, int] = field(default_factory=dict)  # table → nothing up to this version is wanted of it
    # table → key as change tracking spells it → as the row had it when it was published: 'b' was updated to 'B'
    spelled: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # Where the last round ended; None: at `done`. Of a key whose newest change is beyond `done`, those after this one
    # have not been told: a mask that is relative to `done` may lack some of them.
    whole: int | None = None

    def masks_tell_all(self, table: str, since: int) -> bool:
        """Whether the mask of a change after version `since` has every column that changed since it was last told."""
        return since <= max(self.done if self.whole is None else self.whole, self.floors.get(table, 0))

    def to_position(self) -> Position:
        """As the checkpoint keeps it."""
        saved: dict[str, Any] = {
            "done": self.done,
            "database": self.database,
            "fork": self.fork,
            "marker": self.marker,
            "tables": dict(self.tables),
        }
        if self.inside is not None:
            saved["inside"] = [self.inside.table, self.inside.key]
        if self.floors:
            saved["floors"] = dict(self.floors)
        if any(self.spelled.values()):
            saved["spelled"] = {table: dict(keys) for table, keys in self.spelled.items() if keys}
        if self.whole is not None:
            saved["whole"] = self.whole
        return Position(orjson.dumps(saved).decode())

    @classmethod
    def parse(cls, position: Position) -> Place:
        """Raises OperatorError where it is not one of SQL Server's."""
        try:
            saved = orjson.loads(position)
            inside = saved.get("inside")
            return cls(
                done=saved["done"],
                inside=None if inside is None else Inside(*inside),
                database=saved["database"],
                fork=saved["fork"],
                marker=saved["marker"],
                tables={table: (h[0], h[1], h[2]) for table, h in saved["tables"].items()},
                floors=saved.get("floors", {}),
                spelled=saved.get("spelled", {}),
                whole=saved.get("whole"),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OperatorError(
                "The saved position is not one of SQL Server's.",
                code="UW-MS-021",
                remedy="Give this pipeline a name or a state file of its own.",
            ) from error


@dataclass(frozen=True, slots=True)
class Server:
    """The server and its database as they answer now."""

    name: str
    version: str  # 16.0.4135.4
    edition: int  # SERVERPROPERTY('EngineEdition'); 5 is Azure SQL Database
    database: str
    created: str
    broker: str  # service_broker_guid: a restored database keeps it, one made anew has another
    guid: str  # database_guid; empty where we may not see it
    fork: str  # recovery_fork_guid; empty where we may not see it
    writable: bool
    snapshots: bool  # ALLOW_SNAPSHOT_ISOLATION is ON
    versioned: bool  # READ_COMMITTED_SNAPSHOT is ON: reading waits for nobody
    level: int  # compatibility_level

    @property
    def identity(self) -> str:
        """Which database this is, wherever it runs: a failover keeps it, a database made anew has another.

        Of a database that was made from a backup elsewhere it is the same, but for the fork of its history.
        """
        return self.broker or f"{self.database} {self.created}"


def why_lost(place: Place, server: Server, current: int, marker: int | None) -> str | None:
    """Why the server can't be proven to have all that follows the place; None where it can.

    `current` is the database's version now; `marker` what stands in our marker there, None where there is none.
    """
    if server.identity != place.database:
        return "another database answers at the source's address"
    if current < place.done:
        return (
            f"the database was restored, or failed over with loss: it is at version {current} of its changes, and "
            f"{place.done} had been read"
        )
    if place.marker and marker is not None and marker < place.marker:
        return "the database was restored, or failed over with loss: it lacks what upwell had written there"
    if place.fork and server.fork and server.fork != place.fork and not (place.marker and marker is not None):
        return (
            "the database was restored or failed over since (its recovery fork is another one), and nothing there "
            "proves that no change was lost"
        )
    return None


def changed_history(before: History, now: History) -> str | None:
    """Why changes of a table may have gone unseen between two looks at its history; None where none have."""
    if before[0] != now[0]:
        return "the table was created anew"
    if before[1] != now[1] or (before[2] and now[2] and before[2] != now[2]):
        return "the table was truncated, or its change tracking was off for a while"
    return None


@dataclass(frozen=True, slots=True)
class Settled:
    """A place, brought in line with what the server still has of each table."""

    place: Place
    unseen: Mapping[str, str]  # table → why rows of it may have changed unseen: TRUNCATE, tracking off and on
    expired: Mapping[str, str]  # table → why the changes that follow the place are gone


def settled(place: Place, now: Mapping[str, tuple[History, int]], current: int) -> Settled:
    """`now`: table → (its history, its minimum valid version); `current`: the database's version.

    What is lost of a table, or was never wanted since the table is new, is behind it: it is read from `current` on,
    and its snapshot, which is still to come, contains what was before.
    """
    tables: dict[str, History] = {}
    floors: dict[str, int] = {}
    unseen: dict[str, str] = {}
    expired: dict[str, str] = {}
    for table, (history, min_valid) in now.items():
        before = place.tables.get(table)
        floor = place.floors.get(table, 0)
        since = max(place.done, floor)
        why = None if before is None else changed_history(before, history)
        if why is not None:
            unseen[table] = why
        elif before is not None and min_valid > since:
            expired[table] = (
                f"{table} was last read at version {since} of its changes, and the server has only kept what is newer "
                f"than {min_valid}"
            )
        if before is None or why is not None or table in expired:
            floor = current
        tables[table] = history
        if floor > place.done:
            floors[table] = floor
    return Settled(replace(place, tables=tables, floors=floors), unseen, expired)
