"""Commits reach the log before anybody sees them, while the tables are read again and again through the whole path.

A commit that waits for a synchronous standby is in the log, and its rows are still the old ones for whoever reads.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from lab.parts import PostgresCluster, PostgresServer
from tests.acceptance.compare import Watch
from tests.acceptance.pipelines import explained, new_seed, through_kinesis
from tests.acceptance.workload import Writing, create_tables

RESYNCS = 8
WRITES_PER_S = 100


@contextmanager
def commits_that_wait(cluster: PostgresServer, chance: random.Random) -> Iterator[list[int]]:
    """Commits wait for a standby that there is not, for a moment, over and over. Collects how many waited each time."""
    stop = threading.Event()
    waited: list[int] = []

    def run() -> None:
        with closing(cluster.connect()) as admin:
            while not stop.is_set():
                admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
                admin.execute("SELECT pg_reload_conf()")
                stop.wait(chance.uniform(0.02, 0.25))
                query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                waited.append(int((admin.execute(query).fetchone() or (0,))[0]))
                admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
                admin.execute("SELECT pg_reload_conf()")
                stop.wait(chance.uniform(0.0, 0.05))

    thread = threading.Thread(target=run, name="standby", daemon=True)
    thread.start()
    try:
        yield waited
    finally:
        stop.set()
        thread.join(30)


def test_commits_that_are_delivered_before_they_are_seen(
    new_database: Callable[[], str], kinesis_endpoint: str, tmp_path: Path
) -> None:
    seed = new_seed()
    with PostgresCluster({"synchronous_commit": "local"}) as cluster:
        source, target = cluster.create_database("source"), new_database()
        create_tables(source)
        create_tables(target)
        pipeline = through_kinesis(tmp_path, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint)
        with closing(pipeline), explained(pipeline, seed):
            writers = [pipeline.workload(seed) for _ in range(3)]
            for writer in writers:
                writer.fill(20)
                writer.wait_for_standbys()
            pipeline.run("track")
            with pipeline.running(), Watch(pipeline.target, making_way=("person",)) as watch:
                pipeline.await_equal()
                with (
                    Writing(writers[0], WRITES_PER_S),
                    Writing(writers[1], WRITES_PER_S),
                    Writing(writers[2], WRITES_PER_S),
                    commits_that_wait(cluster, random.Random(seed)) as waited,
                ):
                    for _ in range(RESYNCS):
                        before = pipeline.resyncs()
                        pipeline.ask_for_resync()
                        pipeline.await_resyncs(before)
                pipeline.await_equal()
            pipeline.once_through()
            pipeline.assert_equal()
            pipeline.assert_no_dead_letters()
            pipeline.assert_no_holes()
        assert sum(waited) > RESYNCS, "hardly any commit waited"
        assert watch.changes_seen > 100, "the target hardly changed while it was watched"
