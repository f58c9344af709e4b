"""How far a publisher has come, as plain data, and the decisions about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from upwell.model import Checkpoint, Position, TablePhase, TableProgress, TableSchema


@dataclass(frozen=True)
class Progress:
    """What is true when a window, or a chunk, and all before it are durable."""

    epoch: int
    position: Position
    commit: int
    tables: Mapping[str, TableProgress]
    schemas: Mapping[str, TableSchema]
    number: int = 0  # counts what was offered, in order
    events: int = 0  # events offered since the publisher started
    time: str = ""  # when the source committed the newest change of them, ISO 8601
    seen_at: float = 0.0  # all that was committed before this has been read; seconds since 1970


def initial_tables(wanted: Mapping[str, bool], known: Mapping[str, TableProgress]) -> dict[str, TableProgress]:
    """The tables of this run: those known go on as they were, new ones want a snapshot.

    `wanted`: table → whether the rows that exist already are wanted (`snapshot`).
    """
    new = TableProgress(TablePhase.STREAM, wanted="first snapshot")
    tables = {name: known.get(name, new) for name in wanted}
    return {name: table if wanted[name] else replace(table, wanted="") for name, table in tables.items()}


def resync_reason(old: TableSchema, new: TableSchema) -> str | None:
    """Why rows may have changed without an event between these schemas; None where they have not.

    Only a new column without a default leaves the rows as they were. A column that went together with one that came
    may be one that was renamed.
    """
    if old.key != new.key:
        return "its key changed"
    before = {column.name: column for column in old.columns}
    after = {column.name: column for column in new.columns}
    for name in before.keys() & after.keys():
        if before[name].type != after[name].type:
            return f"column {name} changed its type from {before[name].type} to {after[name].type}"
    added = [column for column in new.columns if column.name not in before]
    if added and before.keys() - after.keys():
        return f"column {added[0].name} may be one that was renamed"
    for column in added:
        if column.has_default:
            return f"column {column.name} was added with a default"
    return None


def begun(table: TableProgress, epoch: int, reason: str) -> TableProgress:
    """The table at the start of a resync, which has the epoch as its id."""
    return TableProgress(TablePhase.SNAPSHOT, resync=epoch, reason=reason, estimate=table.estimate)


def next_epoch(previous: int, now: float) -> int:
    """Above every epoch there ever was, even one whose state file was lost or restored: time is part of it."""
    return max(previous + 1, int(now))


def advanced(checkpoint: Checkpoint, progress: Progress, lanes: Mapping[int, tuple[int, int]]) -> Checkpoint:
    """The checkpoint after everything up to `progress` was acknowledged."""
    return Checkpoint(
        epoch=progress.epoch,
        term=checkpoint.term,
        position=progress.position,
        commit=progress.commit,
        lanes=lanes,
        tables=progress.tables,
        schemas=progress.schemas,
    )
