"""The world with a target that has no transactions: the same source, publishers and stream, and the real ItemApplier.

Here a subscriber may hang between any two of its calls while everything else goes on, other subscribers of the same
shard included.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

from tests.simulation.dice import SimClock
from tests.simulation.direct import Items
from tests.simulation.item_target import SimItemSink, SimLanes, Wire
from tests.simulation.stream import Shard
from tests.simulation.world import PIPELINE, World
from upwell.pipeline import item_applier
from upwell.pipeline.incoming import Applied
from upwell.pipeline.item_applier import ItemApplier

# What this target and its subscribers have to stand more often than in other runs.
OFTEN: Final = {"crash.subscriber": 0.03, "target.away": 0.03, "target.answer_lost": 0.05, "poison.refused": 0.15}


class _PatientClock:
    """The world's clock, for one who waits now and then."""

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock
        self.now = clock.now
        self.monotonic = clock.monotonic

    def sleep(self, seconds: float) -> None:
        self._clock.time += seconds


class _Appliers:
    """An ItemApplier for each subscriber that is at work at the same time, and what they were ever given."""

    def __init__(self, make: Callable[[], ItemApplier]) -> None:
        self._make = make
        self._idle: list[ItemApplier] = []
        self.given: set[bytes] = set()

    def apply(self, data: Sequence[bytes]) -> Applied:
        self.given.update(data)
        applier = self._idle.pop() if self._idle else self._make()
        try:
            return applier.apply(data)
        finally:
            self._idle.append(applier)


class ItemWorld(World):
    """One run."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        super().__init__(seed, trace=trace)
        self.direct = False
        self.there = Items(self.checks.seen)
        self._hangs = self.rng.choice((0.0, 0.005, 0.05))
        for fault, rate in OFTEN.items():
            if self.rng.random() < 0.5:
                self.dice.rates[fault] = max(rate, self.dice.rates[fault])
        self._hanging = False
        wire = Wire(self.dice, self.late, self._elsewhere)
        lanes = SimLanes(wire)
        sink = SimItemSink(self.there, wire, self.dice, self.late)
        rng, clock = random.Random(self.rng.random()), _PatientClock(self.clock)
        sweep_s = self.rng.choice((None, 0.0, 0.5))
        self.appliers = _Appliers(lambda: ItemApplier(PIPELINE, sink, lanes, clock, rng, sweep_s=sweep_s))
        self.applier: Any = self.appliers
        self.target: Any = lanes

    @contextmanager
    def _patched(self) -> Iterator[None]:
        with super()._patched(), mock.patch.object(item_applier, "failpoint", self._passage("crash.subscriber")):
            yield

    def _calm(self) -> None:
        self.often["subscribers"] = 5  # heartbeats never end: who reads must be quicker than they come
        super()._calm()

    def _elsewhere(self) -> None:
        """A subscriber hangs, and the world goes on: whoever reads the same shard meanwhile, too."""
        if self._hanging or self.dice.calm or self.rng.random() >= self._hangs:
            return
        self._hanging = True
        moments = self.rng.choice((1, 5, 40))
        self.note("a subscriber hangs for", moments, "moments")
        for _ in range(moments):
            self.moment()
        self.note("it goes on")
        self._hanging = False

    def _unread(self) -> list[tuple[Shard, int]]:
        """What one subscriber has read is not lost to it: it may hang with that, and write it any time later."""
        return [(shard, at) for shard, at in super()._unread() if shard.records[at] not in self.appliers.given]

    def _compare(self) -> None:
        self.target.tables.rows = {table: self.there.rows(table) for table in self._tables}
        super()._compare()
