"""PostgreSQL → Kinesis → DynamoDB: a subscriber killed at every named place goes on, and both ends are equal.

Between any two writes it can die: no transaction holds a batch together here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from tests.acceptance.compare import Watch
from tests.acceptance.killing import die_at
from tests.acceptance.pipelines import Pipeline, Program, Role, explained, new_seed, through_kinesis_into_dynamodb
from tests.acceptance.workload import Writing, connect, create_tables
from upwell.failpoints import NAMES

ITEMS = [name for name in NAMES if name.startswith("items")]
WRITES_PER_S = 60
KILLS = 10


@pytest.fixture(scope="module")
def pipeline(
    new_database: Callable[[], str],
    kinesis_endpoint: str,
    dynamodb_endpoint: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pipeline]:
    """All tests here share one, as kills share one in production."""
    source = new_database()
    create_tables(source)
    pipeline = through_kinesis_into_dynamodb(
        tmp_path_factory.mktemp("items"),
        source_url=source,
        kinesis_endpoint=kinesis_endpoint,
        dynamodb_endpoint=dynamodb_endpoint,
    )
    with closing(pipeline), explained(pipeline):
        pipeline.workload(0).fill(40, ledger_rows=20)
        pipeline.run("track")
        pipeline.once_through()
        yield pipeline


@pytest.mark.parametrize("place", ITEMS)
def test_a_subscriber_that_dies(pipeline: Pipeline, place: str) -> None:
    with explained(pipeline), closing(connect(pipeline.source_url)) as source:
        if place == "items.letters_kept":
            # DynamoDB's items hold 400 KB, a record of Kinesis 1 MiB.
            source.execute("INSERT INTO ledger VALUES (0, 1, repeat('x', 500000))")
        source.execute("DELETE FROM ledger WHERE entry = 1")
        pipeline.ask_for_resync()
        for _ in range(20):
            pipeline.workloads[0].transaction()
        pipeline.once("publish")
        seldom = place in ("items.letters_kept", "items.swept")
        die_at(pipeline, "subscribe", place, passage=1 if seldom else Random(place).randint(1, 3))
        source.execute("DELETE FROM ledger WHERE entry = 0")
        pipeline.once_through()
        pipeline.assert_equal()
        pipeline.assert_no_holes()
        letters = pipeline.dead_letters()
        assert all("public.ledger [0]" in letter and "bytes" in letter for letter in letters), letters
        assert bool(letters) == (
            place == "items.letters_kept" or ITEMS.index(place) > ITEMS.index("items.letters_kept")
        )


def test_kills_at_any_instruction(
    new_database: Callable[[], str], kinesis_endpoint: str, dynamodb_endpoint: str, tmp_path: Path
) -> None:
    """Both programs, over and over, while it is written and a resync goes on; readers see no row go back in time."""
    seed = new_seed()
    chance = random.Random(seed)
    source = new_database()
    create_tables(source)
    pipeline = through_kinesis_into_dynamodb(
        tmp_path, source_url=source, kinesis_endpoint=kinesis_endpoint, dynamodb_endpoint=dynamodb_endpoint
    )
    with closing(pipeline), explained(pipeline, seed):
        pipeline.workload(seed).fill(40, ledger_rows=300)
        pipeline.run("track")
        roles: list[Role] = ["publish", "subscribe"]
        running: dict[Role, Program] = {role: pipeline.start(role) for role in roles}
        with Writing(pipeline.workloads[0], WRITES_PER_S), Watch(pipeline.target) as watch:
            for kill in range(KILLS):
                if kill % 3 == 0:
                    for program in running.values():
                        program.await_words()
                    pipeline.ask_for_resync()
                time.sleep(chance.choice((0.3, 1.0, 2.0)))
                role: Role = "subscribe" if chance.random() < 0.7 else "publish"
                running[role].kill()
                running[role] = pipeline.start(role)
        pipeline.await_equal(120)
        for program in running.values():
            program.stop()
        pipeline.once_through()
        pipeline.assert_equal()
        pipeline.assert_no_dead_letters()
        pipeline.assert_no_holes()
        assert watch.changes_seen > 100, "the target hardly changed while it was watched"
