"""Applying packed records to PostgreSQL, decode included, on one connection: python -m bench.apply [EVENTS].

The plain limit beside it: COPY of the same rows into a table with the same key, which decides nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import orjson
import psycopg

from bench.publish import measured
from bench.rows import event
from lab.parts import PostgresCluster
from upwell.clock import SystemClock
from upwell.envelope import pack_record
from upwell.lanes import lane_of
from upwell.model import ChangeEvent
from upwell.pipeline.applier import Applier
from upwell.targets.postgres import PostgresTarget

LANES = 64
BATCH_RECORDS = 64


def records(events: list[ChangeEvent], term: int) -> Iterator[bytes]:
    """The events as packed records, lane by lane in turn, as a stream holds them."""
    queues: dict[int, list[ChangeEvent]] = {}
    for each in events:
        queues.setdefault(lane_of(each, LANES), []).append(each)
    seq = 0
    while queues:
        seq += 1
        for lane, queue in list(queues.items()):
            data, taken = pack_record("bench", lane, term, seq, (term - 1, 0) if seq == 1 else None, queue[:200])
            del queue[:taken]
            if not queue:
                del queues[lane]
            yield data


def run(count: int) -> None:
    """Inserts, then updates of the same rows, beside COPY."""
    inserts = [event(number, number + 1) for number in range(count)]
    with PostgresCluster() as cluster:
        database = cluster.create_database("bench")
        with psycopg.connect(database, autocommit=True) as sql:
            sql.execute(
                "create table plain (id bigint primary key, email text, name text, street text, city text, "
                "country char(2), balance numeric, score float8, active bool, visits int, born date, "
                "updated_at timestamptz, note text)"
            )
            rows = [orjson.loads(each.row or b"") for each in inserts]
            with measured("COPY, the limit", count), sql.cursor().copy("copy plain from stdin") as copy:
                for row in rows:
                    copy.write_row(row)
        target = PostgresTarget(database, create_tables=True, schema_changes="apply")
        applier = Applier("bench", target, SystemClock())
        for what, term, shift in (("apply inserts", 1, 0), ("apply updates", 2, count)):
            data = list(records([event(number, number + 1 + shift) for number in range(count)], term))
            with measured(what, count):
                for start in range(0, len(data), BATCH_RECORDS):
                    applied = applier.apply(data[start : start + BATCH_RECORDS])
                    assert not applied.dead_letters
                    assert not applied.skipped
        target.close()


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
