"""SQLite → DynamoDB: killed at every named place the publisher goes on, and both ends are equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from random import Random

import pytest

from tests.acceptance.killing import SELDOM, die_at, drop_triggers, forget_log
from tests.acceptance.pipelines import Pipeline, explained, into_dynamodb
from tests.acceptance.workload import Connection, Writing, connect, create_tables
from upwell.failpoints import NAMES

PUBLISHER = [name for name in NAMES if name.startswith(("publisher", "delivery"))]
WRITES_PER_S = 60
# Above what an item holds.
TOO_LARGE = 450_000


@pytest.fixture(scope="module")
def pipeline(dynamodb_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """All tests here share one, as kills share one in production."""
    folder = tmp_path_factory.mktemp("failpoints")
    source = str(folder / "source.db")
    create_tables(source)
    pipeline = into_dynamodb(folder, source_url=source, dynamodb_endpoint=dynamodb_endpoint)
    with closing(pipeline), explained(pipeline):
        pipeline.workload(0).fill(40, ledger_rows=20)
        pipeline.run("track")
        pipeline.once_through()
        yield pipeline


@pytest.mark.parametrize("place", PUBLISHER)
def test_a_publisher_that_dies(pipeline: Pipeline, place: str) -> None:
    with explained(pipeline), closing(connect(pipeline.source_url)) as source:
        if place == "publisher.start.position_taken":
            forget_log(source)
            pipeline.run("track")
        pipeline.ask_for_resync("main.person")
        delete_unseen(source)
        if place == "publisher.dead_letters.kept":
            source.execute("INSERT INTO ledger VALUES (0, 1, ?)", ("x" * TOO_LARGE,))
        with Writing(pipeline.workloads[0], WRITES_PER_S):
            die_at(pipeline, "publish", place, passage=1 if place in SELDOM else Random(place).randint(1, 3))
        source.execute("DELETE FROM ledger WHERE entry = 0")
        pipeline.once_through()
        pipeline.assert_equal()
        letters = pipeline.dead_letters()
        assert all("main.ledger [0]" in letter and "bytes" in letter for letter in letters), letters
        assert len(letters) <= 1


@pytest.mark.parametrize("place", ["publisher.acknowledged", "publisher.checkpoint.saved", "publisher.confirmed"])
def test_a_gap_is_not_forgotten(pipeline: Pipeline, place: str) -> None:
    with explained(pipeline), closing(connect(pipeline.source_url)) as source:
        delete_unseen(source)
        pipeline.workloads[0].transaction()
        die_at(pipeline, "publish", place)
        pipeline.once_through()
        pipeline.assert_equal()


def delete_unseen(source: Connection) -> None:
    """Rows come and go while no trigger is there to see it."""
    drop_triggers(source, "ledger")
    (last,) = source.execute("SELECT coalesce(max(entry), 0) FROM ledger WHERE entry < 1000000").fetchone()
    source.execute("DELETE FROM ledger WHERE entry <= ?", (last,))
    for number in range(last + 1, last + 6):
        source.execute("INSERT INTO ledger VALUES (?, 1, 'unseen')", (number,))
