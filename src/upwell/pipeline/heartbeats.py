"""When a heartbeat is due, and when what it says is true."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from upwell.clock import iso_time
from upwell.heartbeat import Beat, heartbeat, withdrawal
from upwell.model import HIGHEST_ORDINAL, ChangeEvent, TablePhase, pack_version
from upwell.pipeline.progress import Progress
from upwell.ports import Clock


@dataclass(slots=True)
class _Asked:
    """A heartbeat on its way: what it will say, and what must have happened before."""

    as_of: float
    commit: int  # the source's head at that time
    number: int | None = None  # all that it speaks of has been offered, this (Progress.number) was the last of it


class Heartbeats:
    """Asks the source where it stands, and speaks when everything before that is on its way, or durable."""

    def __init__(self, pipeline: str, lanes: int, every_s: float, clock: Clock, *, every_lane: bool) -> None:
        """`every_lane`: what is acknowledged is not yet applied, but each lane's order holds all the way."""
        self._pipeline = pipeline
        self._lanes = lanes
        self._every_s = every_s
        self._clock = clock
        self._every_lane = every_lane
        self._asked: _Asked | None = None
        self._due_at = 0.0
        self._told: frozenset[str] | None = None  # the tables named in the last one

    @property
    def waiting(self) -> bool:
        """One is on its way."""
        return self._asked is not None

    def forget(self) -> None:
        """The source's clock may have begun anew: what was asked can't be compared any more."""
        self._asked = self._told = None

    def withdrawal(self, frontier: Progress) -> list[ChangeEvent]:
        """What must go before the markers that open resyncs."""
        # Older than all else of the epoch: a publisher before this one may have come further in it.
        version, now = pack_version(frontier.epoch, 0, 0), iso_time(self._clock.now())
        return withdrawal(self._pipeline, self._lanes, version, now) if self._every_lane else []

    def due(
        self, head: Callable[[], int], frontier: Progress, done: Progress | None, published: AbstractSet[str]
    ) -> list[ChangeEvent]:
        """What is to be offered now, as the next thing; nothing most of the time.

        To be called where nothing of a transaction is offered whose rest is still to come. `done`: all up to it is
        durable. `published`: the source's tables; others were published once, and what is there of them is old.
        Raises what `head` does.
        """
        resyncing = frozenset(
            name for name, table in frontier.tables.items() if table.wanted or table.phase != TablePhase.STREAM
        ) | (frontier.schemas.keys() - published)
        if self._asked is None:
            now = self._clock.monotonic()
            if now < self._due_at and resyncing == self._told:
                return []
            as_of = self._clock.now()  # before it is asked: what commits meanwhile is none of its business
            self._asked = _Asked(as_of, head())
            self._due_at = now + self._every_s
        if not self._is_true(self._asked, frontier, done):
            return []
        # A table of which no snapshot is wanted never has a resync: what is lost of it stays lost.
        resyncs = [table.resync for table in frontier.tables.values() if table.resync] or [0]
        beat = Beat(iso_time(self._asked.as_of), resyncing, min(resyncs), max(resyncs))
        self._asked, self._told = None, resyncing
        version = pack_version(frontier.epoch, frontier.commit, HIGHEST_ORDINAL)
        return heartbeat(self._pipeline, self._lanes, version, beat, every_lane=self._every_lane)

    def _is_true(self, asked: _Asked, frontier: Progress, done: Progress | None) -> bool:
        """Whether what comes next comes behind all that the source had when it was asked."""
        if asked.number is None:
            if frontier.commit < asked.commit:
                return False
            asked.number = frontier.number
        return self._every_lane or (done is not None and done.number >= asked.number)
