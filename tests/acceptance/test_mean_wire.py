"""Everything that can befall a request to Kinesis at once, both ways, while applications change their tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from lab.faults import KINDS, FaultProxy, Kind
from tests.acceptance.compare import Watch
from tests.acceptance.pipelines import explained, new_seed, through_kinesis
from tests.acceptance.workload import Writing, create_tables

WRITES_PER_S = 80
# As long as the workload goes on.
CALLS = 250
DEADLINE_S = 60.0
RATES: Final[dict[Kind, float]] = {
    "answer_lost": 0.08,
    "landed_late": 0.08,
    "landed_twice": 0.05,
    "slow": 0.05,
    "shard_throttled": 0.1,
    "record_failed": 0.05,
    "throttled": 0.03,
    "failed_before": 0.02,
    "failed_after": 0.02,
    "reset_before": 0.02,
    "reset_after": 0.02,
    "keys_expired": 0.02,
    "too_long": 0.02,
    "too_large": 0.02,
    "not_json": 0.02,
    "not_http": 0.02,
}
# The first two cost the client its 15 s each, the third needs a clock that is wrong: tests/integration/test_faults.py.
# A record that is gone is a loss, which calls for a repair: tests/acceptance/test_lost_records.py.
NOT_HERE: Final = {"answer_withheld", "swallowed", "clock_skewed", "record_deleted"}


def test_a_mean_wire(new_database: Callable[[], str], kinesis_endpoint: str, tmp_path: Path) -> None:
    assert RATES.keys() == KINDS.keys() - NOT_HERE
    seed = new_seed()
    source, target = new_database(), new_database()
    create_tables(source)
    create_tables(target)
    pipeline = through_kinesis(tmp_path, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint)
    with closing(pipeline), explained(pipeline, seed), FaultProxy(kinesis_endpoint, seed=seed, rates=RATES) as wire:
        pipeline.workload(seed).fill(40)
        pipeline.run("track")
        pipeline.lead_through(wire.url)
        with pipeline.running(), Watch(pipeline.target, making_way=("person",)):
            with Writing(pipeline.workloads[0], WRITES_PER_S):
                deadline = time.monotonic() + DEADLINE_S
                while wire.requests["PutRecords"] < CALLS:
                    assert time.monotonic() < deadline, f"too few calls: {wire.requests}"
                    time.sleep(0.05)
            wire.faults.stop()
            wire.settle()
            pipeline.await_equal()
        pipeline.once_through()
        pipeline.assert_equal()
        pipeline.assert_no_dead_letters()
        pipeline.assert_no_holes()
        assert wire.done.keys() == RATES.keys()
