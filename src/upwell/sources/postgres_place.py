"""Where reading PostgreSQL's log resumes, and whether the server still has what follows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from upwell.errors import OperatorError
from upwell.model import Position
from upwell.sources.pgoutput import format_lsn, parse_lsn


@dataclass(frozen=True, slots=True)
class Place:
    """A position: everything that committed before `lsn` has been read. The rest proves that the log is the same."""

    lsn: int
    system: str  # the cluster's identifier, given by initdb
    timeline: int
    database: int  # pg_database.oid
    slot: str
    next_xid: int  # above the id of every transaction that has been read; 0: none has

    def to_position(self) -> Position:
        """As the checkpoint keeps it."""
        return Position(
            f'{{"lsn":"{format_lsn(self.lsn)}","system":"{self.system}","timeline":{self.timeline},'
            f'"database":{self.database},"slot":"{self.slot}","next_xid":{self.next_xid}}}'
        )

    @classmethod
    def parse(cls, position: Position) -> Place:
        """Raises OperatorError where it is not one of PostgreSQL's."""
        try:
            saved = orjson.loads(position)
            return cls(
                parse_lsn(saved["lsn"]),
                saved["system"],
                saved["timeline"],
                saved["database"],
                saved["slot"],
                saved["next_xid"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise OperatorError(
                "The saved position is not one of PostgreSQL's.",
                code="UW-PG-021",
                remedy="Give this pipeline a name or a state file of its own.",
            ) from error


@dataclass(frozen=True, slots=True)
class Server:
    """The server as it is now."""

    system: str
    timeline: int
    database: int
    lsn: int  # where its log ends
    next_xid: int  # above the id of every transaction that has begun
    standby: bool


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot as pg_replication_slots has it."""

    name: str
    plugin: str
    database: str
    confirmed: int  # it gives no transaction that committed before
    restart: int | None
    active_pid: int | None
    wal_status: str | None  # from PostgreSQL 13 on
    safe_wal_size: int | None  # bytes until it is lost; None: it can't be, or it is older than PostgreSQL 13
    invalid: str  # why it can't be used any more; empty: it can

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Slot:
        """Reads the view's row, whose columns differ between versions."""
        restart, confirmed = row.get("restart_lsn"), row.get("confirmed_flush_lsn")
        invalid = row.get("invalidation_reason") or ("conflict" if row.get("conflicting") else "")
        if row.get("wal_status") == "lost" or restart is None:
            invalid = invalid or "wal_removed"
        return cls(
            name=row["slot_name"],
            plugin=row["plugin"] or "",
            database=row["database"] or "",
            confirmed=parse_lsn(confirmed) if confirmed else 0,
            restart=parse_lsn(restart) if restart else None,
            active_pid=row.get("active_pid"),
            wal_status=row.get("wal_status"),
            safe_wal_size=row.get("safe_wal_size"),
            invalid=invalid,
        )


def why_lost(
    place: Place, server: Server, slot: Slot | None, history: Callable[[], Sequence[tuple[int, int]]]
) -> str | None:
    """Why the server can't prove that it still has all that follows the place; None where it can.

    history: the server's earlier timelines, each with the LSN at which it was left.
    """
    if server.system != place.system:
        return "another server answers at the source's address (its system identifier differs)"
    if server.database != place.database:
        return "the source's database was created anew (its oid differs)"
    if server.timeline != place.timeline and not any(
        timeline == place.timeline and left_at >= place.lsn for timeline, left_at in history()
    ):
        return (
            f"the server was restored or failed over (timeline {place.timeline} became {server.timeline}) and does "
            f"not have all that was read"
        )
    if server.lsn < place.lsn and not server.standby:
        return f"the server was restored: its log ends at {format_lsn(server.lsn)}, before what was read already"
    if server.next_xid < place.next_xid and not server.standby:
        return "the server was restored: it gives out transaction ids anew that were read already"
    if slot is None:
        return f"the replication slot {place.slot} is gone"
    if slot.invalid:
        return f"the server gave up the replication slot {place.slot} ({slot.invalid})"
    if slot.confirmed > place.lsn:
        return (
            f"the replication slot {place.slot} stands at {format_lsn(slot.confirmed)}, beyond the saved position: "
            f"it was created anew, or somebody else read from it"
        )
    return None
