"""Applying records of which one row in a thousand is refused: python -m bench.poison [EVENTS].

The same rows without any that is refused go into the same table in turn with them: what poison costs is the ratio.
Every refused row must be a dead letter, and no other.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
ROUNDS = 6


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


class Cost(NamedTuple):
    """Of an event."""

    wall_us: float
    cpu_us: float  # ours and the server's


class Subscriber(NamedTuple):
    """What applies, by one connection."""

    target: PostgresTarget
    applier: Applier

    def applied(self, data: list[bytes]) -> int:
        """How many of the events became dead letters."""
        while True:
            try:
                return self.applier.apply(data).dead_letters
            except TransientError:  # somebody has changed the table: once more, with a new look at it
                continue

    def cpu_s(self) -> float:
        """Of this process and of the server's process that serves it; where that can't be seen, of this one."""
        with self.target.session() as session:
            pid = session.run("SELECT pg_backend_pid()")[0][0]
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.process_time()
        return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Measured:
    """Rows that are applied to a table again and again, each time as newer ones.

    With poison and without, into the same table: two tables of one kind differ by more than what is measured here.
    """

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._count = count
        self._term = 0

    def subscriber(self) -> Subscriber:
        """One that has not been refused anything so far."""
        target = PostgresTarget(self._url, create_tables=True, schema_changes="apply", connections_max=1)
        return Subscriber(target, Applier("bench", target, SystemClock()))

    def cost(self, subscriber: Subscriber, poison: Poison | None) -> Cost:
        """Of applying all rows once."""
        self._term += 1
        shift = self._term * self._count
        data = list(records([poisoned(number, shift + number, poison) for number in range(self._count)], self._term))
        refused = 0
        gc.collect()
        gc.freeze()  # what this bench itself holds is not looked through meanwhile
        cpu_s, began = subscriber.cpu_s(), time.perf_counter()
        for start in range(0, len(data), BATCH_RECORDS):
            refused += subscriber.applied(data[start : start + BATCH_RECORDS])
        took = time.perf_counter() - began
        assert refused == (0 if poison is None else self._count // ONE_IN), f"{refused} dead letters"
        return Cost(1e6 * took / self._count, 1e6 * (subscriber.cpu_s() - cpu_s) / self._count)


def measured(poison: Poison, url: str, count: int, say: Callable[[str], None]) -> float:
    """What of the throughput is lost, in per cent of CPU time: what else the machine does hardly touches that."""
    table = Measured(url, count)
    spared, struck = table.subscriber(), table.subscriber()
    table.cost(spared, None)  # makes the table
    if poison.constraint:
        with psycopg.connect(url, autocommit=True) as sql:
            sql.execute(f"ALTER TABLE customers {poison.constraint}".encode())
    table.cost(spared, None)
    table.cost(struck, poison)  # what was known of the table is looked at anew
    rounds = [(table.cost(spared, None), table.cost(struck, poison)) for _ in range(ROUNDS)]
    spared.target.close()
    struck.target.close()
    # The best of each: the rest is what else went on.
    without = Cost(min(each.wall_us for each, _ in rounds), min(each.cpu_us for each, _ in rounds))
    with_it = Cost(min(each.wall_us for _, each in rounds), min(each.cpu_us for _, each in rounds))
    lost = 100 * (1 - without.cpu_us / with_it.cpu_us)
    by_clock = 100 * (1 - without.wall_us / with_it.wall_us)
    rates = f"{1e6 / without.wall_us:,.0f} and {1e6 / with_it.wall_us:,.0f} events/s"
    say(
        f"{poison.what:20} {lost:5.1f} % lost: {without.cpu_us:.1f} CPU us an event without, {with_it.cpu_us:.1f} with;"
        f" by the clock {by_clock:.1f} % ({rates})"
    )
    return lost


def run(count: int) -> float:
    """Returns the most that any poison costs, in per cent."""
    worst = 0.0
    with PostgresCluster() as cluster:
        for number, poison in enumerate(POISONS):
            worst = max(worst, measured(poison, cluster.create_database(f"poison_{number}"), count, print))
    return worst


if __name__ == "__main__":
    lost = run(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    sys.exit(f"{lost:.1f} % lost, over {LOST_PERCENT_MAX} %" if lost > LOST_PERCENT_MAX else 0)
