"""Chance, time and the faults of one run: all of it follows from the seed."""

from __future__ import annotations

import random
from typing import Any, Final, NamedTuple

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
    "chaos.takeover": 0.15,  # the rates of chaos are for each moment of trouble, see World
    "chaos.hole": 0.2,
    "chaos.snapshot_hole": 0.1,
    "chaos.reshard": 0.15,
    "chaos.reread": 0.2,
    "chaos.truncate": 0.05,
    "chaos.add_column": 0.04,
    "chaos.log_lost": 0.03,
    "chaos.table_lost": 0.04,
    "chaos.restore": 0.04,
    "chaos.replace_server": 0.03,
    "chaos.request": 0.04,
    "chaos.new_table": 0.1,
    "poison.unreadable": 0.04,
    "poison.too_large": 0.04,
    "poison.refused": 0.04,
}

# How a run is made. The first theme leaves all to chance; the others bring together what makes trouble together.
SETTINGS: Final[dict[str, tuple[Any, ...]]] = {
    "direct": (True, False, False),  # to a direct destination; else through a stream to a relational target
    "filtered": (True, False, False),  # whether only some rows of a table leave the source
    "lanes": (1, 2, 4, 8),
    "ids": (4, 8, 12),
    "moments": (200, 600, 2000),
    "readers": (1, 1, 2),
    "window_events_max": (1, 3, 10),
    "chunk_rows_max": (1, 5, 20),
    "pending_bytes_max": (2_000, 100_000),
    "checkpoint_every_s": (0.5, 3.0, 20.0),
    "late_s": (3.0, 30.0),  # how late a request may be carried out
    "subscribers": (0.7, 2, 5),  # how often they do something
    "background": (0.02, 0.3, 2),  # how often something in the background is done
    "errands": (0.02, 0.5),  # how often repairs are asked for
    "remembered": (4, 1000),  # how many keys of delivered transactions
    "shown": (0.05, 0.5),  # how soon a commit that only the log tells of is seen by all
    "heartbeat_s": (None, 25.0, 100.0),
    "haste": (0.2, 1, 5),  # of a publisher that has a successor
}


class Theme(NamedTuple):
    """Faults that strike often, and settings that let them meet."""

    faults: tuple[str, ...] = ()
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed


THEMES: Final = (
    Theme(),
    Theme(),
    Theme(
        ("chaos.snapshot_hole", "chaos.request"),
        {"direct": False, "moments": 2000, "subscribers": 0.7, "errands": 0.02, "chunk_rows_max": 5, "lanes": 2},
    ),
    Theme(("chaos.hole", "chaos.reshard", "chaos.reread"), {"direct": False, "subscribers": 0.7, "moments": 600}),
    Theme(
        ("source.slow_commit", "chaos.new_table"),
        {"shown": 0.2, "chunk_rows_max": 5, "ids": 12, "moments": 300, "remembered": 1000},
    ),
    Theme(("source.slow_commit", "source.slow_log", "source.away", "crash.publisher", "chaos.truncate")),
    Theme(("chaos.request", "chaos.truncate", "chaos.add_column", "crash.publisher")),
    Theme(
        ("chaos.request", "chaos.truncate", "chaos.log_lost"),
        {"direct": True, "moments": 2000, "background": 0.02, "late_s": 3.0, "chunk_rows_max": 20},
    ),
    Theme(
        ("chaos.reread", "chaos.truncate", "chaos.table_lost"),
        {"direct": False, "moments": 600, "chunk_rows_max": 20, "lanes": 8},
    ),
    Theme(("chaos.takeover", "chaos.request", "call.answer_lost")),
    Theme(("call.late", "call.half", "record.half", "crash.publisher", "chaos.restore")),
    Theme(("state.away", "state.answer_lost", "poison.too_large", "poison.unreadable")),
    Theme(("target.away", "target.answer_lost", "crash.subscriber", "poison.refused", "chaos.reread")),
    Theme(("chaos.log_lost", "chaos.table_lost", "chaos.replace_server", "call.refused")),
)


class Dice:
    """The run's chance. `calm` ends all faults."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._theme = self.rng.choice(THEMES)
        trouble = self.rng.choice((0.15, 0.4, 0.6, 1.0))
        self.rates = {fault: rate if self.rng.random() < trouble else 0.0 for fault, rate in RATES.items()}
        for fault in self._theme.faults:
            self.rates[fault] = min(0.6, 4 * RATES[fault])
        self.calm = False

    def setting(self, name: str) -> Any:
        """How this run has it."""
        value = self.rng.choice(SETTINGS[name])
        return self._theme.settings.get(name, value)

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
