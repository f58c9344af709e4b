"""Applying records of which one row in a thousand is refused: python -m bench.poison [EVENTS].

The same rows without any that is refused in turn with them, in the same database, on one connection: what poison
costs is the ratio. Every refused row must be a dead letter, and no other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import psycopg

from bench.apply import BATCH_RECORDS, records
from bench.rows import SCHEMA, event
from lab.parts import PostgresCluster
from upwell.clock import SystemClock
from upwell.errors import TransientError
from upwell.model import ChangeEvent, Value
from upwell.pipeline.applier import Applier
from upwell.targets.postgres import PostgresTarget

ONE_IN = 1_000
LOST_PERCENT_MAX = 10
ROUNDS = 4


@dataclass(frozen=True)
class Poison:
    """Rows that a target refuses."""

    what: str
    column: str
    value: Value
    constraint: str = ""  # what the user has done to the target's table


POISONS = (
    Poison("CHECK constraint", "visits", -1, "ADD CONSTRAINT visits_ok CHECK (visits >= 0 AND length(city) > 0)"),
    Poison("NUL in text", "city", "Castrop\0Rauxel"),
    Poison("number out of range", "visits", 2**40, "ALTER visits TYPE smallint"),
    Poison("text too long", "city", "x" * 200, "ALTER city TYPE varchar(100)"),
    Poison("not null", "city", None, "ALTER city SET NOT NULL"),
)


def poisoned(number: int, commit: int, poison: Poison | None) -> ChangeEvent:
    """The row of this number, changed by this commit; one in a thousand holds the poison."""
    made = event(number, commit)
    row = made.values()
    row[-1] = f"changed by {commit}"
    if poison is not None and number % ONE_IN == ONE_IN // 2:
        row[[column.name for column in SCHEMA.columns].index(poison.column)] = poison.value
    return made._replace(row=orjson.dumps(row))


class Measured:
    """One target table, to which the same rows are applied again and again, each time as newer ones."""

    def __init__(self, url: str, count: int) -> None:
        self.target = PostgresTarget(url, create_tables=True, schema_changes="apply")
        self._applier = Applier("bench", self.target, SystemClock())
        self._count = count
        self._term = 0

    def rate(self, poison: Poison | None) -> float:
        """Events per second."""
        self._term += 1
        events = [poisoned(number, self._term * self._count + number, poison) for number in range(self._count)]
        data = list(records(events, self._term))
        refused = 0
        began = time.perf_counter()
        for start in range(0, len(data), BATCH_RECORDS):
            refused += self._applied(data[start : start + BATCH_RECORDS])
        took = time.perf_counter() - began
        assert refused == (0 if poison is None else self._count // ONE_IN), f"{refused} dead letters"
        return self._count / took

    def _applied(self, data: list[bytes]) -> int:
        while True:
            try:
                return self._applier.apply(data).dead_letters
            except TransientError:  # somebody has changed the table: once more, with a new look at it
                continue


def measured(poison: Poison, url: str, count: int, say: Callable[[str], None]) -> float:
    """What of the throughput is lost, in per cent."""
    it = Measured(url, count)
    it.rate(None)  # makes the table
    with psycopg.connect(url, autocommit=True) as sql:
        if poison.constraint:
            sql.execute(f"ALTER TABLE customers {poison.constraint}".encode())
    it.rate(poison)  # what was known of the table is looked at anew
    rounds = [(it.rate(None), it.rate(poison)) for _ in range(ROUNDS)]
    it.target.close()
    # The best of each: what else the machine does takes from both, now here, now there.
    clean, with_poison = max(each for each, _ in rounds), max(each for _, each in rounds)
    lost = 100 * (1 - with_poison / clean)
    say(f"{poison.what:20} {clean:>9,.0f} events/s without, {with_poison:>9,.0f} with: {lost:5.1f} % lost")
    return lost


def run(count: int) -> float:
    """Returns the most that any poison costs, in per cent."""
    worst = 0.0
    with PostgresCluster() as cluster:
        for number, poison in enumerate(POISONS):
            url = cluster.create_database(f"bench_{number}")
            worst = max(worst, measured(poison, url, count, print))
    return worst


if __name__ == "__main__":
    lost = run(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    sys.exit(f"{lost:.1f} % lost, over {LOST_PERCENT_MAX} %" if lost > LOST_PERCENT_MAX else 0)
