"""Publisher and subscriber are killed over and over while the source changes: source and target end up equal."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from tests.acceptance.compare import Watch
from tests.acceptance.pipelines import Pipeline, Role, explained, into_dynamodb, new_seed, through_kinesis
from tests.acceptance.workload import Writing, create_tables

KILLS = 20
WRITES_PER_S = 60


def kill_over_and_over(pipeline: Pipeline, chance: random.Random) -> None:
    """Each of the pipeline's programs is killed KILLS times, alone or together, and at once started anew."""
    roles: list[Role] = ["publish", "subscribe"] if pipeline.subscribed else ["publish"]
    running = {role: pipeline.start(role) for role in roles}
    left = dict.fromkeys(roles, KILLS)
    while any(left.values()):
        time.sleep(chance.choice((0.1, 0.8, 1.6)) * chance.random() + 0.2)
        killed = chance.sample(roles, chance.randint(1, len(roles)))
        for role in killed:
            running[role].kill()
            left[role] = max(0, left[role] - 1)
        for role in killed:
            running[role] = pipeline.start(role)


def survive(pipeline: Pipeline, making_way: tuple[str, ...], seed: int) -> None:
    with Watch(pipeline.target, making_way=making_way) as watch:
        with ExitStack() as writing:
            for workload in pipeline.workloads:
                writing.enter_context(Writing(workload, WRITES_PER_S / len(pipeline.workloads)))
            kill_over_and_over(pipeline, random.Random(seed))
        pipeline.await_equal()
        for program in pipeline.programs[-2:] if pipeline.subscribed else pipeline.programs[-1:]:
            if program.running:
                program.stop()
    assert watch.changes_seen > 100, "the target hardly changed while it was watched"
    pipeline.once_through()
    pipeline.assert_equal()
    pipeline.assert_no_dead_letters()
    pipeline.assert_no_holes()


def test_postgresql_through_kinesis_to_postgresql(
    new_database: Callable[[], str], kinesis_endpoint: str, tmp_path: Path
) -> None:
    seed = new_seed()
    source, target = new_database(), new_database()
    create_tables(source)
    create_tables(target)
    pipeline = through_kinesis(tmp_path, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint)
    with closing(pipeline), explained(pipeline, seed):
        pipeline.workload(seed).fill(40, ledger_rows=11_000)
        pipeline.workload(seed).fill(20)
        pipeline.run("track")
        survive(pipeline, ("person",), seed)


def test_sqlite_to_dynamodb(dynamodb_endpoint: str, tmp_path: Path) -> None:
    seed = new_seed()
    source = str(tmp_path / "source.db")
    create_tables(source)
    pipeline = into_dynamodb(tmp_path, source_url=source, dynamodb_endpoint=dynamodb_endpoint)
    with closing(pipeline), explained(pipeline, seed):
        pipeline.workload(seed).fill(40, ledger_rows=300)
        pipeline.run("track")
        survive(pipeline, (), seed)
