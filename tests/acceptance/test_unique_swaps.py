"""Rows swap the values of a unique column, over and over, and travel in different lanes and shards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg

from tests.acceptance.compare import Watch
from tests.acceptance.pipelines import explained, new_seed, through_kinesis

SWAPS = 10_000
ROUNDS = 20
# Few rows, so that a row's swaps follow each other closely.
ROWS = 500

TABLE = "CREATE TABLE seat (id int PRIMARY KEY, state bigint NOT NULL, holder text NOT NULL UNIQUE)"
FILL = f"INSERT INTO seat SELECT n, 0, 'holder ' || n FROM generate_series(1, {ROWS}) AS n"
# Each swap is a transaction of its own.
SWAP = """
DO $$
DECLARE a int; b int; of_a text; of_b text;
BEGIN
  PERFORM setseed({seed});
  FOR number IN {first}..{last} LOOP
    a := 1 + floor(random() * {rows}); b := 1 + (a + floor(random() * ({rows} - 1))::int) % {rows};
    SELECT holder INTO of_a FROM seat WHERE id = a;
    SELECT holder INTO of_b FROM seat WHERE id = b;
    UPDATE seat SET holder = 'nobody', state = 2 * number WHERE id = a;
    UPDATE seat SET holder = of_a, state = 2 * number + 1 WHERE id = b;
    UPDATE seat SET holder = of_b, state = 2 * number + 1 WHERE id = a;
    COMMIT;
  END LOOP;
END $$
"""


def swap(url: str, seed: int) -> None:
    size = SWAPS // ROUNDS
    with closing(psycopg.connect(url, autocommit=True)) as source:
        for number in range(ROUNDS):
            chance = ((seed + number) % 1000) / 1000
            numbers = {"first": 1 + number * size, "last": (number + 1) * size}
            source.execute(SWAP.format(seed=chance, rows=ROWS, **numbers).encode())


def test_rows_that_swap_unique_values(new_database: Callable[[], str], kinesis_endpoint: str, tmp_path: Path) -> None:
    seed = new_seed()
    source, target = new_database(), new_database()
    for url in (source, target):
        with psycopg.connect(url) as connection:
            connection.execute(TABLE)
    with psycopg.connect(source) as connection:
        connection.execute(FILL.encode())
    pipeline = through_kinesis(
        tmp_path, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint, keys={"seat": ("id",)}
    )
    with closing(pipeline), explained(pipeline, seed):
        pipeline.run("track")
        with pipeline.running():
            pipeline.await_equal()
            with Watch(pipeline.target, ("seat",), making_way=("seat",)):
                swap(source, seed)
                pipeline.await_equal()
        pipeline.assert_no_dead_letters()
        pipeline.assert_no_holes()
        pipeline.once_through()
        pipeline.assert_equal()
        waiting, made_way = rows_that_made_way(target)
        assert waiting == 0, "rows made way and never came back"
        assert made_way > SWAPS / 100, "hardly any swap crossed lanes: this test shows nothing"


def rows_that_made_way(target: str) -> tuple[int, int]:
    """How many still wait to come back, and how many ever did make way."""
    with psycopg.connect(target) as connection:
        (waiting,) = connection.execute("SELECT count(*) FROM upwell.evicted").fetchone() or (0,)
        (ever,) = connection.execute(
            "SELECT n_tup_ins FROM pg_stat_user_tables WHERE schemaname = 'upwell' AND relname = 'evicted'"
        ).fetchone() or (0,)
    return int(waiting), int(ever)
