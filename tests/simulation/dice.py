"""Chance, time and the faults of one run: all of it follows from the seed."""

from __future__ import annotations

import random
from typing import Final

# fault → how often it strikes where it is switched on; each run switches on about half of them.
RATES: Final = {
    "source.away": 0.03,  # the connection breaks before or during a call
    "source.slow_log": 0.3,  # the log is delivered later than it is committed
    "source.slow_commit": 0.4,  # the log is delivered before other sessions see the commit
    "state.away": 0.03,
    "state.answer_lost": 0.03,  # saved, but the publisher does not learn it
    "call.refused": 0.08,
    "call.answer_lost": 0.08,
    "call.late": 0.08,  # answered with an error, executed later
    "call.half": 0.08,  # some now, some later, some never; answered with an error
    "record.throttled": 0.15,
    "record.half": 0.15,  # of a direct sink: a parcel's writes succeed one by one
    "target.away": 0.03,
    "target.answer_lost": 0.05,
    "control.away": 0.1,
    "crash.publisher": 0.004,  # at each passage of a failpoint
    "crash.subscriber": 0.01,
    "chaos.takeover": 0.3,  # the rates of chaos are for each moment of trouble, see World
    "chaos.hole": 0.3,
    "chaos.reshard": 0.15,
    "chaos.reread": 0.2,
    "chaos.truncate": 0.1,
    "chaos.add_column": 0.08,
    "chaos.log_lost": 0.06,
    "chaos.table_lost": 0.08,
    "chaos.restore": 0.06,
    "chaos.replace_server": 0.04,
    "chaos.request": 0.1,
    "chaos.new_table": 0.1,
    "poison.unreadable": 0.04,
    "poison.too_large": 0.04,
    "poison.refused": 0.04,
}


class Dice:
    """The run's chance. `calm` ends all faults."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        trouble = self.rng.choice((0.15, 0.4, 0.6, 1.0))
        self.rates = {fault: rate if self.rng.random() < trouble else 0.0 for fault, rate in RATES.items()}
        for fault in self.rng.sample(list(RATES), self.rng.choice((0, 2, 5))):
            self.rates[fault] = min(0.5, 5 * RATES[fault])  # what this run is about
        self.calm = False

    def hit(self, fault: str) -> bool:
        """Whether the fault strikes now."""
        rate = self.rates[fault]
        return rate > 0.0 and not self.calm and self.rng.random() < rate

    def one_in(self, count: int) -> bool:
        """True once in about `count` times."""
        return self.rng.random() * count < 1.0


class SimClock:
    """Time that moves when the world says so."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        """Seconds since 1970, UTC."""
        return 1_800_000_000.0 + self.time

    def monotonic(self) -> float:
        """Seconds."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Nothing in the cores waits."""
        raise AssertionError("the cores never sleep")
