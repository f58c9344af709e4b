"""A fleet of subscribers by Amazon's Kinesis Client Library: two workers, one killed, shards split and merged: 0 wrong.

KCL's own daemon, with its leases in DynamoDB Local and our stand-in for Kinesis behind HAProxy, since it speaks HTTP/2.
The target is watched: no row goes back in time, whoever has a shard.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import psycopg

from lab import kcl
from lab.haproxy import HaProxy
from lab.parts import DynamoDbLocal, StandinKinesis
from tests.acceptance.compare import Watch, kinesis_client
from tests.acceptance.pipelines import Pipeline, Program, explained, new_seed, through_kinesis
from tests.acceptance.workload import KEYS, TABLES, SteadyWriting, Writing, create_tables
from tests.proofs import Figures, Servers
from tests.proofs.resharding import CHANGE_S, FEW_SHARDS, Stream

WRITES_PER_S: Final = 20
# KCL waits up to half a minute before it makes the first leases, so that two workers don't, and looks again at what
# nobody has, or somebody dead, every 20 s.
STARTS_WITHIN_S: Final = 300.0


@dataclass(frozen=True)
class Size:
    """How much."""

    events_per_s: int
    keys: int
    kills: int
    within_s: float


SMALL: Final = Size(events_per_s=50, keys=200, kills=1, within_s=400)
FULL: Final = Size(events_per_s=1_000, keys=5_000, kills=5, within_s=300)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Raises PartMissing where KCL could not be fetched."""
    library = str(kcl.folder())
    seed = new_seed()
    with (
        StandinKinesis(limits=1, change_s=CHANGE_S) as kinesis,
        HaProxy([kinesis.url], http2=True) as http2,
        DynamoDbLocal() as dynamodb,  # KCL waits for an index, which comes late where tables are many
        servers.databases(2) as (source, target),
    ):
        for url in (source, target):
            create_tables(url)
            with psycopg.connect(url) as connection:
                connection.execute(SteadyWriting.TABLE)
        pipeline = through_kinesis(
            folder,
            source_url=source,
            target_url=target,
            kinesis_endpoint=kinesis.url,
            shards=FEW_SHARDS,
            keys={**KEYS, **SteadyWriting.KEYS},
        )
        pipeline.environ |= {
            "PYTHONPATH": os.pathsep.join((library, os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep),
            "AWS_ENDPOINT_URL_DYNAMODB": dynamodb.url,
            "JAVA_TOOL_OPTIONS": "-Daws.cborEnabled=false",  # the stand-in knows JSON only
        }
        with closing(pipeline), explained(pipeline, seed):
            return _run(pipeline, source, kinesis.url, http2.url, seed, size)


def _run(pipeline: Pipeline, source: str, kinesis: str, http2: str, seed: int, size: Size) -> Figures:
    chance = random.Random(seed)
    workload = pipeline.workload(seed)
    workload.fill(40)
    pipeline.run("track")
    pipeline.start("publish").await_words()
    pipeline.lead_through(http2)
    workers = [pipeline.start("subscribe", "--fleet") for _ in range(2)]
    watched = (*TABLES, *SteadyWriting.KEYS)
    with closing(kinesis_client(kinesis)) as client, Watch(pipeline.target, watched, ("person",), 0.05):
        stream = Stream(client, pipeline.name, chance, at_once=False)
        began = time.monotonic()
        pipeline.await_equal(STARTS_WITHIN_S)
        started_s = time.monotonic() - began
        with Writing(workload, WRITES_PER_S), SteadyWriting(source, size.events_per_s, size.keys, seed) as steady:
            for _ in range(size.kills):
                stream.grow()
                _kill(workers.pop(0))
                workers.append(pipeline.start("subscribe", "--fleet"))
                stream.shrink()
                _await_applied(source, pipeline.target_url, size.within_s)
        pipeline.await_equal(size.within_s)
        closed = len(stream.closed())
    for program in pipeline.programs:
        if program.running:
            program.stop()
    pipeline.assert_equal()
    pipeline.assert_no_dead_letters()
    pipeline.assert_no_holes()
    assert closed >= 2 * size.kills, "the stream was not resharded"
    return {
        "events": f"{steady.events:,}, and {workload.transactions:,} random transactions",
        "equal after the first start": f"{started_s:.0f} s",
        "workers killed, shards split or merged": f"{size.kills}, {closed}",
        "wrong rows, dead letters, holes": "0, 0, 0",
    }


def _kill(worker: Program) -> None:
    """All its processes at once, as the end of a machine would."""
    processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    assert len(processes) > 1, "the worker has started nothing"
    for process in processes:
        process.suspend()
    for process in processes[1:]:
        process.kill()
    worker.kill()


def _await_applied(source: str, target: str, within_s: float) -> None:
    """Returns when what is in the source now has arrived, on all lanes: somebody has each shard, the new ones too."""
    deadline = time.monotonic() + within_s
    with psycopg.connect(source, autocommit=True) as ours, psycopg.connect(target, autocommit=True) as theirs:
        written = _states(ours)
        while True:
            applied, now = _states(theirs), _states(ours)
            waiting = [id_ for id_, state in written.items() if applied.get(id_, 0) < state and id_ in now]
            if not waiting:
                return
            assert time.monotonic() < deadline, f"{len(waiting)} rows have not arrived after {within_s:.0f} s"
            time.sleep(0.2)


def _states(connection: psycopg.Connection[tuple[int, int]]) -> dict[int, int]:
    return dict(connection.execute("SELECT id, state FROM steady").fetchall())
