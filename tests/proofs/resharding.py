"""Shards are split and merged under load, on kinesalite and on our stand-in: 0 wrong rows, 0 dead letters, 0 holes.

Two shards become four and two again, over and over; on kinesalite at random places of the hash keys, on the stand-in
by UpdateShardCount and with AWS's limits; with two subscribers, one of them started by mistake, and with none, so that
parents and children wait with much to read. The target is watched: no row goes back in time.
"""

from __future__ import annotations

import random
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from lab.parts import StandinKinesis
from tests.acceptance.compare import Watch, kinesis_client
from tests.acceptance.pipelines import Pipeline, explained, new_seed, through_kinesis
from tests.acceptance.workload import KEYS, TABLES, SteadyWriting, Writing, create_tables
from tests.proofs import Figures, Servers

# Random transactions of every kind, beside the steady load.
WRITES_PER_S: Final = 40
FEW_SHARDS: Final = 2
MANY_SHARDS: Final = 4
# Kinesis goes on to take records by the old shards while it makes new ones. AWS needs half a minute.
CHANGE_S: Final = 0.5
ACTIVE_S: Final = 30.0


@dataclass(frozen=True)
class Size:
    """How much."""

    events_per_s: int
    keys: int
    rounds: int  # from two shards to four and back, twice
    pause_s: float  # between changes
    watch_every_s: float
    within_s: float


SMALL: Final = Size(events_per_s=400, keys=500, rounds=1, pause_s=0.7, watch_every_s=0.02, within_s=60)
FULL: Final = Size(events_per_s=5_000, keys=20_000, rounds=2, pause_s=8, watch_every_s=1, within_s=300)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """One service after the other, each with databases of its own."""
    figures: dict[str, str] = {}
    with StandinKinesis(limits=1, change_s=CHANGE_S) as standin:
        for name, endpoint in (("kinesalite", servers.kinesis), ("stand-in", standin.url)):
            place = folder / name
            place.mkdir()
            seed = new_seed()
            with servers.databases(2) as (source, target):
                figures |= _resharded(name, place, endpoint, source, target, seed, size)
    return figures


def _resharded(
    name: str, folder: Path, endpoint: str, source: str, target: str, seed: int, size: Size
) -> dict[str, str]:
    for url in (source, target):
        create_tables(url)
        with psycopg.connect(url) as connection:
            connection.execute(SteadyWriting.TABLE)
    pipeline = through_kinesis(
        folder,
        source_url=source,
        target_url=target,
        kinesis_endpoint=endpoint,
        shards=FEW_SHARDS,
        keys={**KEYS, **SteadyWriting.KEYS},
    )
    watched = (*TABLES, *SteadyWriting.KEYS)
    with closing(pipeline), explained(pipeline, seed), closing(kinesis_client(endpoint)) as client:
        workload = pipeline.workload(seed)
        workload.fill(40)
        pipeline.run("track")
        stream = Stream(client, pipeline.name, random.Random(seed), at_once=name == "stand-in")
        pipeline.start("publish")
        pipeline.start("subscribe")
        with Watch(pipeline.target, watched, ("person",), size.watch_every_s):
            pipeline.await_equal()
            began = time.monotonic()
            with Writing(workload, WRITES_PER_S), SteadyWriting(source, size.events_per_s, size.keys, seed) as steady:
                for _ in range(size.rounds):
                    _round(pipeline, stream, size)
                took_s = time.monotonic() - began
            ended = time.monotonic()
            pipeline.await_equal(size.within_s)
            lag_s = time.monotonic() - ended
            closed = stream.closed()
            _await_finished(target, closed)
        for program in pipeline.programs:
            if program.running:
                program.stop()
        pipeline.assert_equal()
        pipeline.assert_no_dead_letters()
        pipeline.assert_no_holes()
    return {
        f"{name}: events": f"{steady.events:,} in {took_s:.0f} s, {steady.events / took_s:,.0f} a second; "
        f"and {workload.transactions:,} random transactions",
        f"{name}: shards split or merged": f"{len(closed)}",
        f"{name}: wrong rows, dead letters, holes": "0, 0, 0",
        f"{name}: equal after the last write": f"{lag_s:.1f} s",
    }


def _round(pipeline: Pipeline, stream: Stream, size: Size) -> None:
    """Few shards become many and few again, twice: with two subscribers, and with none until it is over."""
    by_mistake = pipeline.start("subscribe")
    by_mistake.await_words()
    for change in (stream.grow, stream.shrink):
        time.sleep(size.pause_s)
        change()
    by_mistake.stop()
    subscribers = [program for program in pipeline.programs[1:] if program.running]
    for program in subscribers:
        program.kill()
    for change in (stream.grow, stream.shrink):
        time.sleep(size.pause_s)
        change()
    time.sleep(size.pause_s)
    # Three generations of shards hold what it has not read: parents first, or rows go back in time.
    pipeline.start("subscribe")


class Stream:
    """A stream whose shards come and go."""

    def __init__(self, client: Any, name: str, chance: random.Random, *, at_once: bool) -> None:
        """`at_once`: by UpdateShardCount, to shards of one size; else one by one, of any size."""
        self._client = client
        self._name = name
        self._chance = chance
        self._at_once = at_once

    def grow(self) -> None:
        """To many shards."""
        if self._at_once:
            self._resize(MANY_SHARDS)
        while len(shards := self._open()) < MANY_SHARDS:
            shard = self._chance.choice(shards)
            first, last = (int(shard["HashKeyRange"][f"{end}HashKey"]) for end in ("Starting", "Ending"))
            # Anywhere: a lane is never torn, wherever the cut is.
            at = str(self._chance.randrange(first + 1, last))
            self._client.split_shard(StreamName=self._name, ShardToSplit=shard["ShardId"], NewStartingHashKey=at)
            self._await_active()

    def shrink(self) -> None:
        """To few shards."""
        if self._at_once:
            self._resize(FEW_SHARDS)
        while len(shards := self._open()) > FEW_SHARDS:
            first = self._chance.randrange(len(shards) - 1)
            one, other = shards[first]["ShardId"], shards[first + 1]["ShardId"]
            self._client.merge_shards(StreamName=self._name, ShardToMerge=one, AdjacentShardToMerge=other)
            self._await_active()

    def closed(self) -> set[str]:
        """The shards that take no more records."""
        return {shard["ShardId"] for shard in self._all() if "EndingSequenceNumber" in shard["SequenceNumberRange"]}

    def _resize(self, shards: int) -> None:
        self._client.update_shard_count(StreamName=self._name, TargetShardCount=shards, ScalingType="UNIFORM_SCALING")
        self._await_active()

    def _open(self) -> list[Any]:
        """By hash key."""
        found = [shard for shard in self._all() if "EndingSequenceNumber" not in shard["SequenceNumberRange"]]
        return sorted(found, key=lambda shard: int(shard["HashKeyRange"]["StartingHashKey"]))

    def _all(self) -> list[Any]:
        shards: list[Any] = self._client.list_shards(StreamName=self._name)["Shards"]
        return shards

    def _await_active(self) -> None:
        deadline = time.monotonic() + ACTIVE_S
        while self._client.describe_stream(StreamName=self._name)["StreamDescription"]["StreamStatus"] != "ACTIVE":
            assert time.monotonic() < deadline, "the stream is not active again"
            time.sleep(0.01)


def _await_finished(target: str, closed: set[str]) -> None:
    """Returns when the subscriber has read exactly these shards to their end."""
    deadline = time.monotonic() + ACTIVE_S
    with psycopg.connect(target, autocommit=True) as connection:
        while True:
            ended = connection.execute("SELECT shard FROM upwell.shard WHERE sequence IS NULL").fetchall()
            if {shard for (shard,) in ended} == closed:
                return
            assert time.monotonic() < deadline, f"closed are {sorted(closed)}, read to their end {sorted(ended)}"
            time.sleep(0.05)
