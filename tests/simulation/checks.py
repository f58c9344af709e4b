"""The invariants, looked at while the simulation runs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import orjson

from tests.simulation.direct import Items
from tests.simulation.source import Address, Change, Database, Row
from tests.simulation.state import SimState
from upwell.heartbeat import HEARTBEAT_TABLE, freshness
from upwell.model import (
    ChangeEvent,
    Checkpoint,
    LaneItem,
    Marker,
    Position,
    TablePhase,
    Value,
    Version,
    pack_version,
    unpack_version,
)

# How a resync's reason begins → what must have happened to justify it.
CAUSES: Final = {
    "truncated": "truncate",
    "column": "add_column",
    "The log has gone": "log_lost",
    "The database is not": "restore",
    "The changes of": "table_lost",
    "asked": "request",
    "Lane": "hole",
    "a row may have entered the filter": "filter",
    "A publisher without the lease": "takeover",
}


class Violation(AssertionError):
    """An invariant does not hold."""


class Checks:
    """Told of everything that happens, raises Violation."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.state: SimState
        self.items: Items
        self.happened: set[str] = set()  # what may be the cause of a resync
        self.exact = True  # False once changes were lost: a partial event may then meet a row that is too old
        # Where a publisher reads on that has a successor, and that one has begun a new epoch or does so, it sends what
        # the first delivered once more, as news: readers see rows go back for a moment.
        self.overlap = False
        self._unordered = False
        self._epoch_sent = 0
        self._rows: dict[Address, Row | None] = {}  # the rows that a reader sees
        self._beats: dict[tuple[Value, ...], Row] = {}  # the heartbeat rows that a reader sees
        self._at: dict[Address, int] = {}  # where in its history a reader of the target last saw a row
        self._incarnations: dict[int, int] = {}  # epoch → the database's incarnation
        self._verified: dict[int, int] = {}  # incarnation → everything up to this commit is known to be durable
        self._durable: set[tuple[str, bytes, int, int, int]] = set()
        self._sequences: dict[tuple[int, int], int] = {}  # (lane, term) → the highest sequence landed
        self._newest: dict[tuple[int, str, bytes], Version] = {}
        self._landed: set[tuple[int, str, bytes, Version]] = set()
        self._contents: dict[tuple[str, bytes, Version, str], bytes | None] = {}

    @property
    def _saved(self) -> Checkpoint:
        assert self.state.checkpoint is not None, "a publisher saves before it does anything else"
        return self.state.checkpoint

    # --- what a reader of the target sees ---------------------------------------------------------------------------

    def seen(self, table: str, key: tuple[Value, ...], row: Row | None) -> None:
        """A row of the target has a new state: one that the source had too, later than those seen before."""
        if table == HEARTBEAT_TABLE:
            self._check_freshness(key, row)
            return
        id_ = key[0]
        assert isinstance(id_, int)
        address = table, id_
        self._rows[address] = row
        history = self.database.history.get(address, [None])
        if address in self.database.poisoned and row is None:
            return
        for place in range(0 if self._unordered else self._at.get(address, 0), len(history)):
            if self._same(address, row, history[place]):
                self._at[address] = place
                return
        was = history[self._at.get(address, 0)]
        raise Violation(f"{table} {id_} went back in time, or to a state that never was: {row} after {was}")

    def _same(self, address: Address, row: Row | None, state: Row | None) -> bool:
        if row is None or state is None:
            return row is state
        if not self.exact or address in self.database.poisoned:
            return row.get("n") == state["n"]
        return all(row.get(name) == value for name, value in state.items())

    def _check_freshness(self, key: tuple[Value, ...], beat: Row | None) -> None:
        """A reader is told how old the data is: what the source had then, or something newer, is there."""
        assert beat is not None, "nobody deletes them"
        self._beats[key] = beat
        said = freshness(list(self._beats.values()))
        if said is None:
            return
        as_of = datetime.fromisoformat(said.as_of).timestamp()
        for address, since in self.database.since.items():
            table, id_ = address
            if not said.complete(table) or table not in self._saved.tables or address in self.database.poisoned:
                continue
            row, then = self._rows.get(address), bisect_left(since, as_of) - 1  # the state at that time
            if not any(self._same(address, row, state) for state in self.database.history[address][then:]):
                raise Violation(f"{table} {id_}: said to be as of {said.as_of}, but {row} is older")

    # --- what the publisher sends -----------------------------------------------------------------------------------

    def sending(self, lane: int, term: int, seq: int, items: Sequence[LaneItem]) -> None:
        """A request leaves the publisher."""
        for item in items:
            epoch = item.resync if isinstance(item, Marker) else unpack_version(item.version)[0]
            if epoch > self._saved.epoch:
                raise Violation(f"lane {lane}: traffic of epoch {epoch}, which is not saved")
            self._epoch_sent = max(self._epoch_sent, epoch)
            if isinstance(item, ChangeEvent):
                self._check_content(item)

    def _check_content(self, event: ChangeEvent) -> None:
        if event.schema.table == HEARTBEAT_TABLE:
            return  # time goes on while nothing is committed; an older one that lands late is still true
        identity = event.schema.table, event.key, event.version, event.schema.hash
        if self._contents.setdefault(identity, event.row) != event.row:
            raise Violation(f"{event.schema.table} {event.key!r}: one version, two contents")

    def landed(self, lane: int, term: int, seq: int, items: Sequence[LaneItem]) -> None:
        """A record is in the stream, for the first time or again."""
        highest = self._sequences.get((lane, term), 0)
        if seq > highest + 1:
            raise Violation(f"lane {lane}: sequence {seq} of term {term} landed before {highest + 1}")
        self._sequences[lane, term] = max(seq, highest)
        for item in items:
            if isinstance(item, ChangeEvent):
                self._check_order(term, item)
                self.durable(item)

    def _check_order(self, term: int, event: ChangeEvent) -> None:
        """A reader without any guard, who takes what comes first, sees each key's versions in order."""
        table, key, version = event.schema.table, event.key, event.version
        if (term, table, key, version) in self._landed:
            return
        self._landed.add((term, table, key, version))
        if version < self._newest.get((term, table, key), version):
            raise Violation(f"{table} {key!r}: {version.hex()} first delivered after a newer version")
        self._newest[term, table, key] = version

    def durable(self, event: ChangeEvent) -> None:
        """The destination has the event."""
        if event.was != "read":
            epoch, commit, ordinal = unpack_version(event.version)
            incarnation = self._incarnations[epoch]
            self._durable.add((event.schema.table, event.key, incarnation, commit, ordinal))

    def reads_on(self, epoch: int) -> None:
        """Against all locks, a publisher with this epoch reads on though it has a successor."""
        self.overlap = True
        self._unordered = self._unordered or epoch < self._saved.epoch

    # --- what the publisher saves and confirms ----------------------------------------------------------------------

    def started(self, position: Position, epoch: int, *, fresh: bool) -> None:
        """The source was told to read on from the position, or (fresh) from now."""
        incarnation, lsn = parsed(position)
        self._incarnations[epoch] = incarnation
        if fresh or incarnation not in self._verified:
            self._verified[incarnation] = lsn

    def saving(self, before: Checkpoint | None, after: Checkpoint) -> None:
        """A checkpoint is about to be saved."""
        if after.epoch < self._epoch_sent:
            raise Violation(f"epoch {after.epoch} is saved after {self._epoch_sent} was sent")
        if before is not None and after.epoch > before.epoch:
            self._check_causes(before, after)
            self._unordered = self._unordered or self.overlap
        for table, progress in after.tables.items():
            known = before.tables.get(table) if before is not None else None
            if known is not None and (known.phase, progress.phase) == (TablePhase.SWEEP, TablePhase.STREAM):
                self._check_swept(table, pack_version(progress.resync, 0, 0))
        if after.position is not None:
            self._check_durable(after.position)

    def _check_causes(self, before: Checkpoint, after: Checkpoint) -> None:
        for table, progress in after.tables.items():
            known = before.tables.get(table)
            if progress.phase != TablePhase.SNAPSHOT or (known is not None and known.resync == progress.resync):
                continue
            if progress.reason == "first snapshot":
                if known is not None and known.resync and known.phase == TablePhase.STREAM:
                    raise Violation(f"{table}: a second first snapshot")
                continue
            cause = next((cause for begin, cause in CAUSES.items() if progress.reason.startswith(begin)), None)
            if cause not in self.happened:
                raise Violation(f"{table}: a resync without a cause, {progress.reason!r}")

    def _check_swept(self, table: str, resync: Version) -> None:
        for (name, key), item in self.items.items.items():
            if name == table and item.row is not None and item.version < resync:
                raise Violation(f"{table} {key[0]}: the resync has ended, and its item is older")

    def _check_durable(self, position: Position) -> None:
        incarnation, lsn = parsed(position)
        if incarnation != self.database.incarnation:
            return
        after = self._verified.get(incarnation)
        assert after is not None, "a position that no source gave"
        for transaction in self.database.log:
            if after < transaction.commit <= lsn:
                for ordinal, change in enumerate(transaction.changes):
                    self._check_change(change, transaction.commit, ordinal)
        self._verified[incarnation] = max(after, lsn)

    def _check_change(self, change: Change, commit: int, ordinal: int) -> None:
        table, id_ = change.table, change.id
        if table not in self._saved.tables:
            return  # not of this pipeline yet
        if change.row is not None and not self.database.leaves(table, change.row):
            return
        if any(name == table and commit <= lsn for name, lsn in self.database.tables_lost):
            return
        key = orjson.dumps([id_])
        if (table, key, self.database.incarnation, commit, ordinal) in self._durable:
            return
        if any(letter[:2] == (table, key.decode()) for letter in self.state.letters):
            return
        raise Violation(f"{table} {id_}: the checkpoint passed commit {commit}, which is not durable")

    def confirmed(self, position: Position) -> None:
        """The source may free its log up to the position."""
        saved = self._saved.position
        if saved is None or parsed(saved) < parsed(position):
            raise Violation(f"confirmed {position}, saved {saved}")


def parsed(position: Position) -> tuple[int, int]:
    """(incarnation, lsn)"""
    incarnation, lsn = position.split("/")
    return int(incarnation), int(lsn)
