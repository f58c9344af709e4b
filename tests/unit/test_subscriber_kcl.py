"""What a shard's processor says to KCL, and when it must rather end."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from upwell.cloud import subscriber_kcl
from upwell.cloud.subscriber_kcl import ShardProcessor
from upwell.errors import OperatorError, TransientError
from upwell.pipeline.incoming import Applied
from upwell.ports import Request


class CheckpointError(Exception):
    """As amazon_kclpy has it."""

    def __init__(self, value: str) -> None:
        super().__init__(value)
        self.value = value


class Clock:
    """Waits for nothing, and counts it."""

    def __init__(self) -> None:
        self.sleeps = 0

    def now(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1


class Fleet:
    """A processor with a target that fails as told, and KCL's side of it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.applied: list[bytes] = []
        self.failures: list[BaseException] = []
        self.alarm = ""
        self.checkpoints = 0
        self.refusals: list[str] = []  # of checkpoints
        self.relayed = 0
        applying: Any = SimpleNamespace(applier=self, target=self, repairs=None)
        pipeline: Any = SimpleNamespace(name="shop")
        self.processor = ShardProcessor(pipeline, applying, self.clock, random.Random(0))

    def apply(self, data: Sequence[bytes]) -> Applied:
        if self.failures:
            raise self.failures.pop(0)
        self.applied += data
        return Applied(events=len(data), alarm=self.alarm)

    def pending_repairs(self, pipeline: str) -> list[Request]:
        self.relayed += 1
        return []

    def checkpoint(self) -> None:
        if self.refusals:
            raise CheckpointError(self.refusals.pop(0))
        self.checkpoints += 1

    def give(self, *data: bytes) -> None:
        records = [SimpleNamespace(sequence_number=str(n), binary_data=each) for n, each in enumerate(data)]
        self.processor.process_records(SimpleNamespace(records=records, checkpointer=self))


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    module: Any = ModuleType("amazon_kclpy.checkpoint_error")
    module.CheckpointError = CheckpointError
    monkeypatch.setitem(sys.modules, "amazon_kclpy", ModuleType("amazon_kclpy"))
    monkeypatch.setitem(sys.modules, "amazon_kclpy.checkpoint_error", module)
    return Fleet()


def test_the_checkpoint_follows_what_is_applied(fleet: Fleet) -> None:
    fleet.give(b"one", b"two")
    assert (fleet.applied, fleet.checkpoints) == ([b"one", b"two"], 1)


def test_it_tries_for_as_long_as_the_target_is_away(fleet: Fleet) -> None:
    fleet.failures = [TransientError("away") for _ in range(50)]
    fleet.give(b"one")
    assert (fleet.applied, fleet.checkpoints, fleet.clock.sleeps) == ([b"one"], 1, 50)


@pytest.mark.parametrize(("failure", "code"), [(OperatorError("no"), 3), (ZeroDivisionError("a bug"), 1)])
def test_it_ends_rather_than_let_kcl_go_on_without_the_records(
    fleet: Fleet, failure: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """KCL's Python takes an action that raised for one that was done."""
    fleet.failures = [failure]
    with pytest.raises(SystemExit) as end:
        fleet.give(b"one")
    assert (end.value.code, fleet.checkpoints) == (code, 0)
    assert capsys.readouterr().err


@pytest.mark.parametrize("refusal", [subscriber_kcl.LEASE_GONE, subscriber_kcl.TOO_SOON])
def test_a_checkpoint_that_is_refused_may_lag(fleet: Fleet, refusal: str) -> None:
    fleet.refusals = [refusal]
    fleet.give(b"one")
    fleet.give(b"two")
    assert (fleet.applied, fleet.checkpoints) == ([b"one", b"two"], 1)


def test_any_other_refusal_ends_it(fleet: Fleet) -> None:
    fleet.refusals = ["InvalidStateException"]
    with pytest.raises(SystemExit):
        fleet.give(b"one")


def test_the_end_of_a_shard_is_saved_before_its_children_may_begin(fleet: Fleet) -> None:
    fleet.refusals = [subscriber_kcl.TOO_SOON] * 3
    fleet.processor.shard_ended(SimpleNamespace(checkpointer=fleet))
    assert (fleet.checkpoints, fleet.clock.sleeps) == (1, 3)


def test_what_is_missing_is_asked_for(fleet: Fleet) -> None:
    """At the first records too: the process before may have died before it could ask."""
    fleet.give(b"one")
    fleet.give(b"two")
    assert fleet.relayed == 1
    fleet.alarm = "Lane 1: records are missing."
    fleet.give(b"three")
    assert fleet.relayed == 2


def test_nothing_is_done_in_good_order(fleet: Fleet) -> None:
    steps: list[Callable[[Any], None]] = [
        fleet.processor.initialize,
        fleet.processor.shutdown_requested,
        fleet.processor.lease_lost,
    ]
    for step in steps:
        step(SimpleNamespace(shard_id="shardId-000000000001", sequence_number="TRIM_HORIZON", checkpointer=fleet))
    assert (fleet.applied, fleet.checkpoints) == ([], 1)
