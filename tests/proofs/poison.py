"""Rows that the target refuses for what they hold, one in so many: every one a dead letter with its reason, the rest
never late, and replay that brings them once the cause is mended, and takes nothing back in time.

SQLite, which lets any column hold anything, by Kinesis to a table of the user's own in PostgreSQL: text with a NUL, a
number too large for its column, text in a column of numbers, what a CHECK constraint forbids.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from bench.poison import LOST_PERCENT_MAX, POISONS, measured
from tests.acceptance.compare import Watch
from tests.acceptance.pipelines import Pipeline, explained, new_seed, through_kinesis
from tests.proofs import Figures, Servers

KEYS = {"event": ("id",)}


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    rows: int
    one_in: int
    per_s: int
    late_s_max: float  # for a row that is not refused, from its commit to its arrival
    measured_events: int  # for the throughput, with and without poison; 0: not measured
    within_s: float


SMALL = Size(rows=3_000, one_in=100, per_s=600, late_s_max=20, measured_events=0, within_s=60)
FULL = Size(rows=200_000, one_in=1_000, per_s=2_000, late_s_max=5, measured_events=100_000, within_s=600)

# kind → (the row's columns that hold it, a word of the reason)
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "NUL in text": ({"note": "a\0b"}, "NUL"),
    "too large a number": ({"amount": 2**40}, "out of range"),
    "text for a number": ({"amount": "many"}, "invalid text"),
    "CHECK constraint": ({"rating": 99}, "rating_known"),
}


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """One pipeline, and what poison costs an applier."""
    figures: dict[str, str] = {}
    with servers.databases(1) as (url,):
        source = str(folder / "source.db")
        _create(source, url)
        pipeline = through_kinesis(
            folder, source_url=source, target_url=url, kinesis_endpoint=servers.kinesis, keys=KEYS
        )
        seed = new_seed()
        with closing(pipeline), explained(pipeline, seed):
            proof = _Proof(pipeline, size, random.Random(seed))
            pipeline.run("track")
            with pipeline.running(), Watch(pipeline.target, tuple(KEYS)):
                figures |= proof.written()
                figures |= proof.replayed()
    if size.measured_events:
        figures |= _throughput(servers, size)
    return figures


class _Proof:
    def __init__(self, pipeline: Pipeline, size: Size, chance: random.Random) -> None:
        self.pipeline = pipeline
        self.size = size
        self.chance = chance
        self.poison: dict[int, str] = {}  # id → kind

    def written(self) -> dict[str, str]:
        """All rows at a steady pace; what arrives, how late, and what is put aside."""
        chosen = [id_ for id_ in range(self.size.rows) if self.chance.randrange(self.size.one_in) == 0]
        self.poison = {id_: list(KINDS)[number % len(KINDS)] for number, id_ in enumerate(chosen)}
        with closing(sqlite3.connect(self.pipeline.source_url, timeout=30, isolation_level=None)) as source:
            began, written = time.monotonic(), 0
            while written < self.size.rows:
                due = min(self.size.rows, int((time.monotonic() - began) * self.size.per_s) + 1)
                source.execute("BEGIN IMMEDIATE")
                for id_ in range(written, due):
                    self._insert(source, id_)
                source.execute("COMMIT")
                written = due
                time.sleep(0.05)
        self._await_rows(self.size.rows - len(self.poison))
        letters = self._letters()
        assert letters.keys() == self.poison.keys(), f"{len(letters)} letters for {len(self.poison)} refused rows"
        for id_, kind in self.poison.items():
            assert KINDS[kind][1] in letters[id_], f"{kind}: {letters[id_]}"
        late = self._slowest_s()
        assert late <= self.size.late_s_max, f"a row that is not refused came {late:.1f} s after its commit"
        return {
            "rows": f"{self.size.rows:,} at {self.size.per_s:,}/s, {len(self.poison)} of them refused",
            "dead letters": f"{len(letters)}, each with its reason, of {len(KINDS)} kinds",
            "slowest row that is not refused": f"{late:.2f} s from commit to arrival",
        }

    def _insert(self, source: sqlite3.Connection, id_: int) -> None:
        row: dict[str, Any] = {"id": id_, "state": 1, "note": f"row {id_}", "amount": id_ % 1_000, "rating": id_ % 5}
        row |= KINDS[self.poison[id_]][0] if id_ in self.poison else {}
        source.execute(
            "INSERT INTO event VALUES (:id, :state, :note, :amount, :rating, :written)", row | {"written": time.time()}
        )

    def replayed(self) -> dict[str, str]:
        """Some refused rows have changed or gone since, then the causes are mended."""
        ids = sorted(self.poison)
        superseded, gone = ids[0::3], ids[1::6]
        with closing(sqlite3.connect(self.pipeline.source_url, timeout=30, isolation_level=None)) as source:
            for id_ in superseded:  # they arrive as they are now
                source.execute("UPDATE event SET state = 2, note = 'good', amount = 1, rating = 1 WHERE id = ?", (id_,))
            source.executemany("DELETE FROM event WHERE id = ?", [(id_,) for id_ in gone])
            self._await_rows(self.size.rows - len(ids) + len(superseded))
            # What the source can't keep so, and what the target shall hold from now on.
            source.execute("UPDATE event SET state = 3, note = 'no NUL' WHERE instr(note, char(0)) > 0")
            source.execute("UPDATE event SET state = 3, amount = 2 WHERE amount = 'many'")
        with psycopg.connect(self.pipeline.target_url) as target:
            target.execute("ALTER TABLE event DROP CONSTRAINT rating_known, ALTER amount TYPE bigint")
        before = self._written_by()
        listed = json.loads(self.pipeline.run("dead-letters", "list", "--json"))
        self.pipeline.run("dead-letters", "replay", *(letter["id"] for letter in listed))
        self._await_rows(self.size.rows - len(gone))
        assert not self._letters(), "letters are left when the cause is mended"
        self.pipeline.assert_no_holes()
        self._assert_equal()
        after = self._written_by()
        again = [id_ for id_, by in before.items() if after.get(id_) != by and id_ not in self.poison]
        assert not again, f"replay wrote {len(again)} rows that were as they should be, such as {again[0]}"
        return {
            "replay": f"{len(listed)} letters: {len(superseded)} rows had changed and {len(gone)} gone since, the "
            f"others arrived; {len(before):,} rows were left alone; no row went back in time",
        }

    # --- looking ---

    def _letters(self) -> dict[int, str]:
        """id → reason."""
        found = [letter.split(" ", 2) for letter in self.pipeline.dead_letters()]
        return {json.loads(key)[0]: reason for _, key, reason in found}

    def _await_rows(self, count: int) -> None:
        deadline = time.monotonic() + self.size.within_s
        while (there := self._one("SELECT count(*) FROM event")) != count:
            assert time.monotonic() < deadline, f"{there:,} rows of {count:,} after {self.size.within_s:.0f} s"
            time.sleep(0.2)

    def _slowest_s(self) -> float:
        return float(self._one("SELECT max(extract(epoch FROM arrived) - written) FROM event"))

    def _one(self, query: str) -> Any:
        with psycopg.connect(self.pipeline.target_url) as target:
            row = target.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def _written_by(self) -> dict[int, str]:
        """id → the transaction that last wrote the row."""
        with psycopg.connect(self.pipeline.target_url) as target:
            return dict(target.execute("SELECT id, xmin::text FROM event").fetchall())

    def _assert_equal(self) -> None:
        columns = "id, state, note, amount, rating, written"
        with closing(sqlite3.connect(self.pipeline.source_url)) as source:
            here = source.execute(f"SELECT {columns} FROM event ORDER BY id").fetchall()
        with psycopg.connect(self.pipeline.target_url) as target:
            there = target.execute(f"SELECT {columns} FROM event ORDER BY id".encode()).fetchall()
        wrong = [pair for pair in zip(here, there, strict=True) if pair[0] != pair[1]]
        assert not wrong, f"{len(wrong)} rows are wrong, such as {wrong[0]}"


def _create(source_path: str, target_url: str) -> None:
    with closing(sqlite3.connect(source_path)) as source:
        source.execute("PRAGMA journal_mode = WAL")
        source.execute(
            "CREATE TABLE event (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, note TEXT, amount INTEGER,"
            " rating INTEGER, written REAL)"
        )
    with psycopg.connect(target_url) as target:
        target.execute(
            "CREATE TABLE event (id bigint PRIMARY KEY, state bigint NOT NULL, note text, amount integer,"
            " rating bigint CONSTRAINT rating_known CHECK (rating BETWEEN 0 AND 5), written double precision,"
            " arrived timestamptz DEFAULT clock_timestamp())"
        )


def _throughput(servers: Servers, size: Size) -> dict[str, str]:
    """Of one applier, with and without one refused row in a thousand, in the same run."""
    figures: dict[str, str] = {}
    for poison in POISONS:
        said: list[str] = []
        with servers.databases(1) as (url,):
            lost = measured(poison, url, size.measured_events, said.append)
        assert lost <= LOST_PERCENT_MAX, said[0]
        figures[f"throughput with 1 in 1,000: {poison.what}"] = " ".join(said[0].partition(poison.what)[2].split())
    return figures
