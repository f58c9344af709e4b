"""How fast the PostgreSQL target writes, beside the limit: a plain COPY of the same bytes into the same table.

    python -m bench.postgres_target [--rows 100000]

One connection, 14 columns, batches of distinct keys, 30 % of them new. Rows are Python lists as they come out of the
decoded wire; everything from there to the answer to COMMIT counts, watermarks included.
"""

import argparse
import base64
import json
import random
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from lab.parts import PostgresCluster
from upwell.model import Column, Kind, TableSchema, Value, pack_version
from upwell.ports import LaneState
from upwell.targets.postgres import PostgresTarget
from upwell.targets.postgres_types import copy_data

ORDERS = TableSchema(
    "public.orders",
    (
        Column("id", "integer", Kind.INT),
        Column("customer", "bigint", Kind.INT),
        Column("status", "text", Kind.TEXT),
        Column("total", "numeric(12,2)", Kind.DECIMAL),
        Column("tax", "numeric(12,4)", Kind.DECIMAL),
        Column("weight", "double precision", Kind.FLOAT),
        Column("paid", "boolean", Kind.BOOL),
        Column("ordered", "date", Kind.DATE),
        Column("created", "timestamp with time zone", Kind.TIMESTAMPTZ),
        Column("updated", "timestamp without time zone", Kind.TIMESTAMP),
        Column("reference", "uuid", Kind.UUID),
        Column("signature", "bytea", Kind.BYTES),
        Column("address", "text", Kind.TEXT),
        Column("remark", "text", Kind.TEXT),
    ),
    ("id",),
    "postgresql",
)
TYPES = [column.type.split("(")[0] for column in ORDERS.columns]
Rows = list[list[Value]]


def row(chance: random.Random, number: int) -> list[Value]:
    words = ["north", "harbour", "lane", "with\ttab", "Zürich", "50", "floor"]
    return [
        number,
        chance.randrange(2**40),
        chance.choice(["new", "paid", "sent"]),
        f"{chance.randrange(10**7) / 100:.2f}",
        f"{chance.randrange(10**6) / 10000:.4f}",
        chance.random() * 50,
        chance.random() < 0.5,
        "2026-01-31",
        f"2026-01-31T10:{chance.randrange(60):02}:00.123456Z",
        f"2026-01-31T10:00:{chance.randrange(60):02}.123456",
        str(uuid.UUID(int=chance.getrandbits(128))),
        base64.b64encode(chance.randbytes(16)).decode(),
        " ".join(chance.choices(words, k=6)),
        None if chance.random() < 0.3 else " ".join(chance.choices(words, k=10)),
    ]


def batches(size: int, total: int, seed: int) -> Iterator[Rows]:
    """70 % of a batch are rows that exist when it comes, once there are some."""
    chance = random.Random(seed)
    known = 0
    for _ in range(0, total, size):
        old = chance.sample(range(known), min(known, size * 7 // 10))
        new = list(range(known, known + size - len(old)))
        known += len(new)
        yield [row(chance, number) for number in sorted(old + new)]


def measured(name: str, work: list[Rows], write: Callable[[Rows], None]) -> float:
    """Rows per second; prints that and the CPU of this process."""
    rows = sum(map(len, work))
    cpu, start = time.process_time(), time.perf_counter()
    for batch in work:
        write(batch)
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    print(f"  {name:34} {rows / wall:10,.0f} rows/s {used / rows * 1e6:7.1f} µs CPU a row here")
    return rows / wall


class Ways:
    """Each way to write a batch, on a fresh database."""

    def __init__(self, cluster: PostgresCluster) -> None:
        self._cluster = cluster
        self._numbers = iter(range(10**6))

    def target(self, work: list[Rows]) -> float:
        target = PostgresTarget(self._database(), create_tables=True, schema_changes="apply")
        seq = 0

        def write(batch: Rows) -> None:
            nonlocal seq
            seq += 1
            with target.begin() as txn:
                txn.lock_lanes("bench", range(16))
                txn.lock_resyncs("bench", ["public.orders"], [])
                txn.ensure_table(ORDERS)
                txn.upsert(ORDERS, batch)
                txn.save_lanes("bench", {lane: LaneState(pack_version(1, seq, 0)) for lane in range(16)})

        write([])
        rate = measured("upwell's target", work, write)
        target.close()
        return rate

    def plain_copy(self, work: list[Rows]) -> float:
        """The limit: bytes that are ready, a table that is empty, no key to look up."""
        with psycopg.connect(self._database(), autocommit=True) as connection:
            connection.execute(self._ddl().replace("PRIMARY KEY", ""))
            ready = {id(batch): copy_data(ORDERS.columns, TYPES, batch) for batch in work}

            def write(batch: Rows) -> None:
                with connection.cursor() as cursor, cursor.copy("COPY orders FROM STDIN") as copy:
                    copy.write(ready[id(batch)])

            return measured("plain COPY of ready bytes", work, write)

    def json_parameter(self, work: list[Rows]) -> float:
        """One JSON parameter instead of COPY and a temporary table: simpler, and what the choice was made against."""
        names = [column.name for column in ORDERS.columns]
        changes = ", ".join(f"{name} = EXCLUDED.{name}" for name in names[1:])
        statement = (
            f"INSERT INTO orders SELECT {', '.join(names[:11])}, decode(signature, 'base64'), address, remark"
            f" FROM json_to_recordset(%s) AS r ({', '.join(self._recordset())})"
            f" ON CONFLICT (id) DO UPDATE SET {changes}"
        )
        with psycopg.connect(self._database(), autocommit=True) as connection:
            connection.execute(self._ddl())

            def write(batch: Rows) -> None:
                connection.execute(statement, [json.dumps([dict(zip(names, row, strict=True)) for row in batch])])

            return measured("one JSON parameter, no watermarks", work, write)

    def encode_only(self, work: list[Rows]) -> float:
        def encode(batch: Rows) -> None:
            copy_data(ORDERS.columns, TYPES, batch)

        return measured("our encoding alone", work, encode)

    def _database(self) -> str:
        return self._cluster.create_database(f"bench_{next(self._numbers)}")

    @staticmethod
    def _recordset() -> list[str]:
        return [f"{c.name} {'text' if c.kind is Kind.BYTES else c.type}" for c in ORDERS.columns]

    @staticmethod
    def _ddl() -> str:
        columns = ", ".join(f"{column.name} {column.type}" for column in ORDERS.columns)
        return f"CREATE TABLE orders ({columns.replace('id integer', 'id integer PRIMARY KEY', 1)})"


def main() -> None:
    arguments: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    with PostgresCluster() as cluster:
        ways = Ways(cluster)
        for size in (100, 1000, 10_000):
            total = min(given.rows, size * 200)
            work = list(batches(size, total, seed=size))
            print(f"batches of {size:,}, {total:,} rows, {given.rounds} rounds")
            ratios = []
            for _ in range(given.rounds):
                limit = ways.plain_copy(work)
                ways.encode_only(work)
                ways.json_parameter(work)
                ratios.append(ways.target(work) / limit)
            print(f"  upwell's target reaches {statistics.median(ratios):.0%} of the limit (median)\n")


if __name__ == "__main__":
    main()
