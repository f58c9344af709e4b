"""The subscriber on a fleet: Amazon's Kinesis Client Library says which shards are whose, this program applies one.

KCL's daemon starts it for each shard whose lease its worker holds, and speaks with it in lines of JSON over standard
input and output. Leases, their balance, parents before children: all KCL's. What of it goes wrong does no harm: two
that apply one shard for a moment are told apart by the watermarks.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Final, TypeVar

from upwell.app import build_cloud, logs
from upwell.app.build_cloud import Applying
from upwell.app.running import dump_nothing, give_memory_back, spare_collector
from upwell.clock import SystemClock
from upwell.cloud.configured import configured
from upwell.config import Pipeline
from upwell.errors import TransientError, UpwellError
from upwell.pipeline.incoming import batches
from upwell.pipeline.subscriber import BACKOFF_FIRST_S, BACKOFF_MAX_S
from upwell.pipeline.troubles import Troubles
from upwell.ports import Clock

log = logging.getLogger("upwell.subscriber")

# What KCL answers to a checkpoint that another worker's lease forbids, and to one that comes too soon after the last.
LEASE_GONE: Final = "ShutdownException"
TOO_SOON: Final = "ThrottlingException"

T = TypeVar("T")
Step = Callable[["ShardProcessor", T], None]


def _or_end(step: Step[T]) -> Step[T]:
    """KCL takes an action that raised for one that was done, and goes on with the next records: the process must end.

    Its daemon then ends too, and whoever started it starts it anew, from the last checkpoint.
    """

    @wraps(step)
    def careful(self: ShardProcessor, given: T) -> None:
        try:
            step(self, given)
        except UpwellError as error:
            logs.failed(error)
            sys.exit(error.exit_code)
        except Exception:
            logs.crashed()
            sys.exit(1)

    return careful


class ShardProcessor:
    """One shard, as amazon_kclpy's record processors of version 3 have it."""

    version = 3

    def __init__(self, pipeline: Pipeline, applying: Applying, clock: Clock, rng: random.Random) -> None:
        self._pipeline = pipeline
        self._applying = applying
        self._clock = clock
        self._rng = rng
        self._shard = ""
        self._damaged = True  # a repair may have been left unasked by the process before
        self._troubles = Troubles(log, clock, "the trouble is over")

    @_or_end
    def initialize(self, given: Any) -> None:
        """The worker has this shard's lease."""
        self._shard = given.shard_id
        log.info("%s: begins after %s", self._shard, given.sequence_number)

    @_or_end
    def process_records(self, given: Any) -> None:
        """Apply them all, however long the target is away; then move the shard's checkpoint."""
        for batch in batches([(record.sequence_number, record.binary_data) for record in given.records]):
            self._until_done(partial(self._apply, [data for _, data in batch]))
        if self._damaged:
            self._until_done(self._relay)
        self._checkpoint(given.checkpointer)

    @_or_end
    def lease_lost(self, given: Any) -> None:
        """Another worker goes on from the checkpoint."""
        log.info("%s: another worker has it", self._shard)

    @_or_end
    def shard_ended(self, given: Any) -> None:
        """All of it is applied: only this lets its children begin."""
        while not self._checkpoint(given.checkpointer):
            self._clock.sleep(BACKOFF_FIRST_S)
        log.info("%s: applied to its end", self._shard)

    @_or_end
    def shutdown_requested(self, given: Any) -> None:
        """What was given is applied, and its checkpoint saved, before this is called."""
        self._checkpoint(given.checkpointer)

    def _apply(self, data: list[bytes]) -> None:
        applied = self._applying.applier.apply(data)
        if applied.alarm:
            log.warning("%s All tables are to be read again; the publisher is asked to.", applied.alarm)
            self._damaged = True

    def _relay(self) -> None:
        build_cloud.relay_repairs(self._pipeline, self._applying.target, self._applying.repairs)
        self._damaged = False

    def _until_done(self, work: Callable[[], None]) -> None:
        failures = 0
        while True:
            try:
                work()
            except TransientError as error:
                self._troubles.met(self._shard, error)
                self._clock.sleep(self._rng.random() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures, 30)))
                failures += 1
            else:
                self._troubles.over(self._shard)
                return

    def _checkpoint(self, checkpointer: Any) -> bool:
        """False: not saved for now. It may lag what was applied; the next one makes up for it."""
        from amazon_kclpy.checkpoint_error import CheckpointError

        try:
            checkpointer.checkpoint()
        except CheckpointError as error:
            if error.value == LEASE_GONE:
                return True  # who has the lease now will save it
            if error.value == TOO_SOON:
                return False
            raise
        return True


def main() -> None:
    """What KCL's daemon starts: until it closes standard input."""
    from amazon_kclpy.kcl import KCLProcess

    # Standard output is KCL's; what anything else prints must not get between its lines.
    lines, sys.stdout = sys.stdout, sys.stderr
    logs.set_up("text")
    logs.catch_crashes()
    give_memory_back()
    dump_nothing()
    clock, rng = SystemClock(), random.Random()  # noqa: S311 - it spreads retries, it keeps no secret
    try:
        pipeline = configured(["destination", "subscriber"])
        with build_cloud.applying(pipeline, clock, rng, connections_max=1) as applying:
            applying.target.check()
            spare_collector()
            KCLProcess(ShardProcessor(pipeline, applying, clock, rng), output_file=lines).run()
    except UpwellError as error:
        logs.failed(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
