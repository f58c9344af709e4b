"""The way to AWS at its worst, for both destinations: nothing is lost, nothing is out of order, little comes twice.

Shards throttle, records fail, requests are carried out and their answers lost, or land seconds later, or twice;
connections are reset, and what answers is not always AWS.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import orjson
import psycopg

from lab.faults import FaultProxy, Kind
from lab.parts import StandinDynamoDb
from tests.acceptance.compare import StreamRecord, Watch, stream_records
from tests.acceptance.pipelines import Pipeline, into_dynamodb, new_seed, through_kinesis
from tests.proofs import Figures, Servers, behind_faults
from upwell.config import identifier
from upwell.model import TablePhase

KEYS: Final = {"wire": ("id",)}
TABLE: Final = "CREATE TABLE wire (id bigint PRIMARY KEY, state bigint NOT NULL, note text)"
UPSERT: Final = """
    INSERT INTO wire SELECT id, %(state)s, md5(id::text || %(state)s) FROM unnest(%(ids)s::bigint[]) AS id
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, note = excluded.note
"""
TRANSACTION_ROWS: Final = (1, 400)
# The share of a call's fate, or of a shard's time, or of all records.
RATES: Final[dict[Kind, float]] = {
    "shard_throttled": 0.05,
    "record_failed": 0.01,
    "answer_lost": 0.02,
    "landed_late": 0.005,
    "landed_twice": 0.002,
    "failed_before": 0.005,
    "failed_after": 0.002,
    "reset_before": 0.005,
    "reset_after": 0.005,
    "slow": 0.001,
    "too_long": 0.001,
    "not_json": 0.001,
}
# Carried out though the client can't know it, so that it sends once more.
DONE_AGAIN: Final[tuple[Kind, ...]] = (
    *("answer_lost", "answer_withheld", "landed_late", "landed_twice"),
    *("failed_after", "reset_after", "too_long", "not_json"),
)


@dataclass(frozen=True)
class Size:
    """How much, and how bad."""

    events: int  # through Kinesis
    items: int  # events to DynamoDB, a call for each
    standin: bool  # for DynamoDB: our own one, which is faster than Amazon's
    per_s: int  # events: a backlog would go in few large calls, and so meet few faults
    keys: int
    times: float  # how much more often than in `RATES` things go wrong
    withheld: int  # answers that never come, each of which costs the client its 15 s
    apart: int  # calls between the faults that are sure to come, one of each kind
    twice_max: float  # of the events, that may come more than once
    within_s: float


SMALL: Final = Size(
    events=20_000,
    items=3_000,
    standin=False,
    per_s=4_000,
    keys=1_000,
    times=2,
    withheld=0,
    apart=8,
    twice_max=0.3,
    within_s=60,
)
FULL: Final = Size(
    events=1_000_000,
    items=1_000_000,
    standin=True,
    per_s=5_000,
    keys=20_000,
    times=1,
    withheld=5,
    apart=20,
    twice_max=0.05,
    within_s=1_200,
)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Both destinations, one after the other."""
    seed = new_seed()
    with servers.databases(2) as (source, target):
        with psycopg.connect(source) as connection:
            connection.execute(TABLE)
        for kind in ("kinesis", "dynamodb"):
            (folder / kind).mkdir()
        through = _kinesis(servers, folder / "kinesis", size, seed, source, target)
        return through | _dynamodb(servers, folder / "dynamodb", size, seed, source)


def _kinesis(servers: Servers, folder: Path, size: Size, seed: int, source: str, target: str) -> dict[str, str]:
    pipeline = through_kinesis(
        folder, source_url=source, target_url=target, kinesis_endpoint=servers.kinesis, keys=KEYS
    )
    with behind_faults(pipeline, servers.kinesis, seed) as wire:
        took_s, written = _carried(pipeline, wire, size, size.events, seed)
        pipeline.assert_no_holes()
        stream = pipeline.configuration["destination"]["kinesis"]["stream"]
        come = examined(stream_records(servers.kinesis, stream))
        assert come.events == written, f"{written} events were written, {come.events} are in the stream"
        again = come.again / come.events
        assert again <= size.twice_max, f"{again:.1%} of the events came twice"
    return {
        "Kinesis: events": f"{written:,} of {size.keys:,} keys in {took_s:.0f} s, {written / took_s:,.0f} a second",
        "Kinesis: wrong rows, lane holes, inversions": "0, 0, 0",
        "Kinesis: events that came twice": f"{again:.2%}",
        "Kinesis: faults": _told(wire),
    }


def _dynamodb(servers: Servers, folder: Path, size: Size, seed: int, source: str) -> dict[str, str]:
    with ExitStack() as stack:
        server = stack.enter_context(StandinDynamoDb()).url if size.standin else servers.dynamodb
        pipeline = into_dynamodb(folder, source_url=source, dynamodb_endpoint=server, keys=KEYS)
        with psycopg.connect(source) as connection:
            connection.execute("TRUNCATE wire")
        wire = stack.enter_context(behind_faults(pipeline, server, seed))
        took_s, written = _carried(pipeline, wire, size, size.items, seed)
    writes = sum(wire.requests[action] for action in ("PutItem", "UpdateItem", "DeleteItem"))
    again = sum(wire.done[kind] for kind in DONE_AGAIN) / writes
    assert again <= size.twice_max, f"{again:.1%} of the writes were carried out twice"
    return {
        "DynamoDB: events": f"{written:,} of {size.keys:,} keys in {took_s:.0f} s, {written / took_s:,.0f} a second",
        "DynamoDB: wrong items": "0",
        "DynamoDB: writes that were carried out twice": f"{again:.2%}",
        "DynamoDB: faults": _told(wire),
    }


def _carried(pipeline: Pipeline, wire: FaultProxy, size: Size, events: int, seed: int) -> tuple[float, int]:
    """Writes while the pipeline runs, until target and source are equal: the seconds it took, and the events."""
    action = "PutRecords" if pipeline.subscribed else "PutItem"
    kinds: list[Kind] = [kind for kind in RATES if pipeline.subscribed or kind != "record_failed"]
    pipeline.run("track")
    with pipeline.running() as programs, Watch(pipeline.target, tuple(KEYS), pause_s=size.within_s / 200):
        awaited(partial(snapshot_is_over, pipeline), size.within_s, "the empty table was not read")
        wire.faults.rates = {kind: rate * size.times for kind, rate in RATES.items()}
        kinds += ["answer_withheld"] * size.withheld
        for kind in kinds:
            wire.faults.then(kind, action)  # each of them at least once, whatever chance does
            wire.faults.then(None, action, size.apart)
        began = time.monotonic()
        written = write(pipeline.source_url, seed, events, size, lambda: all(wire.done[kind] for kind in kinds))
        awaited(partial(is_published, pipeline, head(pipeline.source_url)), size.within_s, "not all was published")
        awaited(partial(has_arrived, pipeline), size.within_s, "not all that was published arrived")
        took_s = time.monotonic() - began
        wire.settle()
        assert all(program.running for program in programs), "a program ended by itself"
    wire.faults.stop()
    pipeline.once_through()  # what landed late is read too
    pipeline.assert_equal()
    pipeline.assert_no_dead_letters()
    return took_s, written


# --- the source ------------------------------------------------------------------------------------------------------


def write(url: str, seed: int, events: int, size: Size, is_enough: Callable[[], bool]) -> int:
    """Transactions of inserts, updates and deletes at the size's pace; how many events they are.

    So many, and on until it is enough. Their number is each row's state, so that of one key states only rise.
    """
    chance = random.Random(seed)
    written, began = 0, time.monotonic()
    with psycopg.connect(url, autocommit=True) as source:
        for number in count(1):
            chosen = chance.sample(range(size.keys), chance.randint(*TRANSACTION_ROWS))
            if chance.random() < 0.05:
                done = source.execute("DELETE FROM wire WHERE id = ANY(%s)", (chosen,))
            else:
                done = source.execute(UPSERT, {"state": number, "ids": chosen})
            written += done.rowcount
            if written >= events and is_enough():
                return written
            assert time.monotonic() < began + size.within_s, f"not enough with {written} events"
            time.sleep(max(0.0, began + written / size.per_s - time.monotonic()))
    raise AssertionError("count ends")


def head(url: str) -> str:
    """The end of the source's log."""
    with psycopg.connect(url) as source:
        found = source.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
    assert found is not None
    return str(found[0])


def is_published(pipeline: Pipeline, position: str) -> bool:
    """Whether the publisher has confirmed everything up to the position: it is durable at the destination."""
    with psycopg.connect(pipeline.source_url) as source:
        found = source.execute(
            "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s",
            (position, identifier(pipeline.name)),
        ).fetchone()
    return found is not None and bool(found[0])


def snapshot_is_over(pipeline: Pipeline) -> bool:
    """What comes from now on are changes."""
    state = pipeline.state()
    checkpoint = state.load()
    state.release()
    return checkpoint is not None and all(
        table.phase is TablePhase.STREAM and not table.wanted for table in checkpoint.tables.values()
    )


def has_arrived(pipeline: Pipeline) -> bool:
    """Whether source and target have equal sums: cheaper to ask again and again than whether they are equal."""
    sums = [_sums(url) for url in (pipeline.source_url, pipeline.target_url) if url]
    return sums[0] == sums[-1]


def _sums(url: str) -> tuple[object, ...] | None:
    with psycopg.connect(url) as database:
        try:
            return database.execute("SELECT count(*), sum(state), sum(state * id) FROM wire").fetchone()
        except psycopg.errors.UndefinedTable:
            return None


def awaited(condition: Callable[[], bool], within_s: float, otherwise: str) -> None:
    """Returns when the condition holds. Raises AssertionError after too long."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{otherwise} within {within_s:.0f} s"
        time.sleep(0.1)


# --- the raw stream --------------------------------------------------------------------------------------------------


class Come(NamedTuple):
    """What lies in a stream."""

    events: int  # different ones
    again: int  # repeats of them


def examined(records: Iterable[StreamRecord]) -> Come:
    """Raises AssertionError where a first delivery comes after a newer one of its key, or a lane has a hole."""
    seen: defaultdict[int, set[str]] = defaultdict(set)
    newest: dict[int, str] = {}
    places: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
    again = 0
    for record in records:
        places[record.lane].add((record.term, record.seq))
        for line in record.events:
            _, _, version, _, (key, *_), *_ = orjson.loads(line)  # versions compare as their hexadecimal digits do
            if version in seen[key]:
                again += 1
                continue
            assert newest.get(key, "") < version, f"key {key}: version {version} comes after {newest[key]}"
            newest[key] = version
            seen[key].add(version)
    for lane, there in places.items():
        holes = {(term, seq - 1) for term, seq in there if seq > 1} - there
        assert not holes, f"lane {lane} lacks {sorted(holes)}"
    return Come(sum(map(len, seen.values())), again)


def _told(wire: FaultProxy) -> str:
    done = ", ".join(f"{times:,} {kind}" for kind, times in sorted(wire.done.items()))
    return f"{done}; of {wire.requests.total():,} calls"
