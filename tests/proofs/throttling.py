"""A shard above its limits holds back its own lanes only; what is behind them in the memory's bounds comes later.

On our stand-in, which has AWS's limits for each shard. Rows that all belong to one shard are written several times
faster than it takes them, beside a trickle that belongs to the others; measured is how long each row of the trickle
takes from its commit in the source to its commit in the target, by the clock of the one PostgreSQL that holds both.
Then DynamoDB: items for one partition, more than it takes, and after them some for the others, on other lanes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Final
from zlib import crc32

import psycopg

from lab.parts import StandinDynamoDb, StandinKinesis
from tests.acceptance.pipelines import Pipeline, explained, into_dynamodb, new_seed, through_kinesis
from tests.proofs import Figures, Servers
from upwell.lanes import DEFAULT_LANES

KEYS: Final = {"hot": ("id",), "cold": ("id",)}
SHARDS: Final = 4
SHARD_BYTES_PER_S: Final = 1024 * 1024  # AWS's limit for writing
PARTITIONS: Final = 4  # of a new on-demand DynamoDB table
PARTITION_ITEMS_PER_S: Final = 1_000  # small ones
HOT_LANES: Final = 8
HOT_ROW_BYTES: Final = 50_000
HOT_ROWS: Final = 200  # of the one shard
COLD_ROWS: Final = 300  # of the others
COLD_ROWS_PER_S: Final = 100
ROUNDS: Final = 5
EVERY_S: Final = 0.1
# The trickle may take this much longer than before: the machine has more to do.
LONGER_S_MAX: Final = 1.5

TABLES: Final = """
CREATE TABLE hot (id bigint PRIMARY KEY, state bigint NOT NULL, load text);
CREATE TABLE cold (id bigint PRIMARY KEY, state bigint NOT NULL, at timestamptz NOT NULL);
"""
# In the target: when each row of the trickle arrived.
SEEN: Final = """
CREATE TABLE seen (at timestamptz NOT NULL, arrived timestamptz NOT NULL);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO public.seen VALUES (NEW.at, clock_timestamp()); RETURN NULL; END $$;
CREATE TRIGGER see AFTER INSERT OR UPDATE ON cold FOR EACH ROW EXECUTE FUNCTION see();
"""


@dataclass(frozen=True)
class Size:
    """How much."""

    limits: float  # AWS's limits times this
    calm_s: float  # the trickle alone, to compare with
    burst_bytes: int
    times: float  # how much faster than the shard's limit the burst is written
    items: int  # for one partition of a DynamoDB table
    item_limits: float  # DynamoDB's limits times this
    within_s: float


SMALL: Final = Size(limits=2, calm_s=3, burst_bytes=16 * 10**6, times=3, items=1_200, item_limits=0.1, within_s=90)
FULL: Final = Size(limits=1, calm_s=20, burst_bytes=45 * 10**6, times=4, items=50_000, item_limits=1, within_s=400)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Kinesis, then DynamoDB."""
    seed = new_seed()
    with servers.databases(2) as (source, target):
        for url, more in ((source, ""), (target, SEEN)):
            with psycopg.connect(url) as connection:
                connection.execute((TABLES + more).encode())
        places = [folder / name for name in ("kinesis", "dynamodb")]
        for place in places:
            place.mkdir()
        return _kinesis(places[0], size, seed, source, target) | _dynamodb(places[1], size, seed, source)


def _kinesis(folder: Path, size: Size, seed: int, source: str, target: str) -> dict[str, str]:
    with StandinKinesis(limits=size.limits) as standin:
        pipeline = through_kinesis(
            folder, source_url=source, target_url=target, kinesis_endpoint=standin.url, shards=SHARDS, keys=KEYS
        )
        with closing(pipeline), explained(pipeline, seed):
            pipeline.run("track")
            with pipeline.running():
                with trickle(source):
                    _await_first(target, size.within_s)
                    calm_at = time.time()
                    time.sleep(size.calm_s)
                    burst_at = time.time()
                    burst(source, size)
                    _await_equal(pipeline, "hot", size.within_s)
                    took_s = time.time() - burst_at
                pipeline.await_equal()
            pipeline.assert_no_dead_letters()
            pipeline.assert_no_holes()
            calm = latencies(target, calm_at, burst_at)
            busy = latencies(target, burst_at, burst_at + took_s)
    at_best_s = size.burst_bytes / (SHARD_BYTES_PER_S * size.limits)
    figures = {
        "Kinesis: written to one shard": f"{size.burst_bytes / 1e6:.0f} MB, {size.times:g} times faster than it takes",
        "Kinesis: until all of it was in the target": f"{took_s:.1f} s; at the shard's limit {at_best_s:.1f} s",
        "Kinesis: rows of other shards, before": _told(calm),
        "Kinesis: rows of other shards, meanwhile": _told(busy),
        "Kinesis: wrong rows, dead letters, holes": "0, 0, 0",
    }
    assert took_s > at_best_s * 0.8, f"nothing was throttled: {figures}"
    assert _at(busy, 0.95) < _at(calm, 0.95) + LONGER_S_MAX, f"the other shards' rows waited: {figures}"
    return figures


def _dynamodb(folder: Path, size: Size, seed: int, source: str) -> dict[str, str]:
    with StandinDynamoDb(limits=size.item_limits) as standin:
        pipeline = into_dynamodb(folder, source_url=source, dynamodb_endpoint=standin.url, keys={"cold": KEYS["cold"]})
        with closing(pipeline), explained(pipeline, seed):
            with psycopg.connect(source) as connection:
                connection.execute("TRUNCATE cold")
            pipeline.run("track")
            pipeline.once("publish")
            hot = items_of(range(HOT_LANES), [0], size.items)
            others = items_of(range(HOT_LANES, DEFAULT_LANES), range(1, PARTITIONS), COLD_ROWS)
            with pipeline.running():
                began = time.monotonic()
                _insert(source, hot)
                for start in range(0, COLD_ROWS, COLD_ROWS // ROUNDS):
                    _insert(source, others[start : start + COLD_ROWS // ROUNDS])
                    left = _await_items(pipeline, hot, others[: start + COLD_ROWS // ROUNDS], size.within_s)
                others_s = time.monotonic() - began
                pipeline.await_equal(size.within_s)
                took_s = time.monotonic() - began
            pipeline.assert_no_dead_letters()
    at_best_s = size.items / (PARTITION_ITEMS_PER_S * size.item_limits)
    figures = {
        "DynamoDB: items for one partition": f"{size.items:,} at once",
        "DynamoDB: until all were written": f"{took_s:.1f} s; at the partition's limit {at_best_s:.1f} s",
        "DynamoDB: items for the others": f"{ROUNDS} times {COLD_ROWS // ROUNDS}, each after the one "
        f"before had arrived, in {others_s:.1f} s, with {left:,} of those still to come",
        "DynamoDB: wrong items, dead letters": "0, 0",
    }
    assert took_s > at_best_s * 0.7, f"nothing was throttled: {figures}"
    assert left > size.items / 3, f"the others' items waited: {figures}"
    return figures


def items_of(lanes: Sequence[int], partitions: Sequence[int], rows: int) -> list[int]:
    """The first keys of the table `cold` on these lanes and in these partitions of our stand-in."""
    found = (key for key in count() if lane_of("cold", key) in lanes and crc32(b"%d" % key) >> 30 in partitions)
    return list(islice(found, rows))


def _insert(source: str, keys: Sequence[int]) -> None:
    with psycopg.connect(source) as connection:
        connection.execute("INSERT INTO cold SELECT id, 1, now() FROM unnest(%s::bigint[]) AS id", [keys])


def _await_items(pipeline: Pipeline, hot: Sequence[int], others: Sequence[int], within_s: float) -> int:
    """Returns when all the others are there: how many of the hot ones are not."""
    deadline = time.monotonic() + within_s
    while True:
        there = {int(key) for (key,) in pipeline.target.rows("cold")}
        if there.issuperset(others):
            return len(set(hot) - there)
        assert time.monotonic() < deadline, f"the other partitions' items are not there after {within_s:.0f} s"
        time.sleep(0.1)


def shard_of(table: str, key: int) -> int:
    """Which of the shards, all of one size, a row belongs to."""
    return lane_of(table, key) * SHARDS // DEFAULT_LANES


def lane_of(table: str, key: int) -> int:
    """As `upwell.lanes` has it, of a row with a single integer as its key."""
    return crc32(b"[%d]" % key, crc32(f"public.{table}".encode())) % DEFAULT_LANES


def keys_of(table: str, shards: Sequence[int], rows: int) -> list[int]:
    """The first keys of a table that belong to these shards."""
    return list(islice((key for key in count() if shard_of(table, key) in shards), rows))


def burst(source: str, size: Size) -> None:
    """Rows of the first shard, faster than it takes them."""
    per_s = SHARD_BYTES_PER_S * size.limits * size.times
    rows = max(1, round(per_s * EVERY_S / HOT_ROW_BYTES))
    keys = keys_of("hot", [0], HOT_ROWS)
    with psycopg.connect(source, autocommit=True) as connection:
        due = time.monotonic()
        for state in range(1, max(2, size.burst_bytes // (rows * HOT_ROW_BYTES))):
            chosen = [keys[(state * rows + number) % HOT_ROWS] for number in range(rows)]
            connection.execute(
                "INSERT INTO hot SELECT id, %s::bigint, repeat(md5(id::text || %s::bigint), %s::int)"
                " FROM unnest(%s::bigint[]) AS id"
                " ON CONFLICT (id) DO UPDATE SET state = excluded.state, load = excluded.load",
                (state, state, HOT_ROW_BYTES // 32, chosen),
            )
            due += EVERY_S
            time.sleep(max(0.0, due - time.monotonic()))


@contextmanager
def trickle(source: str) -> Iterator[None]:
    """Writes rows of the other shards during the block."""
    stop = threading.Event()
    keys = keys_of("cold", range(1, SHARDS), COLD_ROWS)
    errors: list[BaseException] = []

    def write() -> None:
        try:
            with psycopg.connect(source, autocommit=True) as connection:
                for state in count(1):
                    key = keys[state % COLD_ROWS]
                    connection.execute(
                        "INSERT INTO cold VALUES (%s, %s, clock_timestamp())"
                        " ON CONFLICT (id) DO UPDATE SET state = excluded.state, at = excluded.at",
                        (key, state),
                    )
                    if stop.wait(1 / COLD_ROWS_PER_S):
                        return
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=write, name="trickle", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not errors, f"the trickle failed: {errors[0]!r}"


def latencies(target: str, since: float, until: float) -> list[float]:
    """Of the rows of the trickle that were written in that time, in seconds, the smallest first."""
    with psycopg.connect(target) as connection:
        found = connection.execute(
            "SELECT extract(epoch FROM arrived - at)::float FROM seen"
            " WHERE at >= to_timestamp(%s) AND at < to_timestamp(%s) ORDER BY 1",
            (since, until),
        ).fetchall()
    assert len(found) > 50, "hardly a row of the trickle arrived"
    return [latency for (latency,) in found]


def _at(sorted_values: Sequence[float], share: float) -> float:
    return sorted_values[int(share * (len(sorted_values) - 1))]


def _told(values: Sequence[float]) -> str:
    shares = (0.5, 0.95, 0.99, 1.0)
    middle, most, nearly_all, slowest = (f"{_at(values, share):.2f}" for share in shares)
    return f"{len(values):,} rows; median {middle} s, 95 % within {most} s, 99 % within {nearly_all} s, all {slowest} s"


def _await_first(target: str, within_s: float) -> None:
    """Returns when a row of the trickle has gone the whole way: the programs have started."""
    deadline = time.monotonic() + within_s
    with psycopg.connect(target, autocommit=True) as connection:
        while connection.execute("SELECT FROM seen LIMIT 1").fetchone() is None:
            assert time.monotonic() < deadline, "nothing arrives"
            time.sleep(0.05)


def _await_equal(pipeline: Pipeline, table: str, within_s: float) -> None:
    """By sums, which a busy machine computes often enough."""
    statement = f"SELECT count(*), sum(state), md5(string_agg(load, '' ORDER BY id)) FROM {table}"
    with psycopg.connect(pipeline.source_url) as connection:
        wanted = connection.execute(statement).fetchone()
    deadline = time.monotonic() + within_s
    with psycopg.connect(pipeline.target_url, autocommit=True) as connection:
        while connection.execute(statement).fetchone() != wanted:
            assert time.monotonic() < deadline, f"{table} is not equal after {within_s:.0f} s"
            time.sleep(0.2)
