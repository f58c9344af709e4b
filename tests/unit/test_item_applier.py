"""ItemApplier: whichever of its calls fails, the batch comes again and ends the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
import pytest

from tests.simulation.dice import Dice, SimClock
from tests.simulation.direct import Items
from tests.simulation.item_target import SimItemSink, SimLanes
from tests.simulation.source import REFUSED
from tests.simulation.stream import LateRequests
from upwell.envelope import pack_record
from upwell.errors import TransientError
from upwell.model import (
    HIGHEST_ORDINAL,
    ChangeEvent,
    Column,
    Kind,
    LaneItem,
    Marker,
    TableSchema,
    pack_version,
)
from upwell.pipeline.item_applier import SENDS_MAX, SENDS_S, ItemApplier

T = TypeVar("T")
COLUMNS = (Column("id", "int", Kind.INT), Column("n", "text", Kind.TEXT), Column("big", "text", Kind.TEXT))
SCHEMA = TableSchema("public.t", COLUMNS, ("id",), "postgresql")
PARTIAL = SCHEMA.without(frozenset({"big"}))


class Script:
    """The wire of the target: the call of this number fails, before it is done or after, and all of its repeats in a
    row, as many as one batch tries.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.fail_at: int | None = None
        self.after = False
        self._failures = 0

    def call(self, work: Callable[[], T], *, writes: bool = True) -> T:
        self.calls += 1
        failing = self.fail_at is not None and self.calls >= self.fail_at and self._failures < SENDS_MAX
        if not failing:
            return work()
        self._failures += 1
        if self.after:
            work()
        raise TransientError("The target is away.")


class PatientClock(SimClock):
    def sleep(self, seconds: float) -> None:
        self.time += seconds


class HastyClock(PatientClock):
    step_s = 1.0

    def monotonic(self) -> float:
        self.time += self.step_s
        return self.time


class Target:
    """All that a batch may leave behind."""

    def __init__(self) -> None:
        self.script = Script()
        wire: Any = self.script
        dice = Dice(0)
        self.items = Items(lambda *_: None)
        self.lanes = SimLanes(wire)
        sink = SimItemSink(self.items, wire, dice, LateRequests(SimClock(), 1.0))
        self.applier = ItemApplier("p", sink, self.lanes, PatientClock(), random.Random(0))

    def left(self) -> tuple[Any, ...]:
        tables = self.lanes.tables
        letters = sorted(tables.letters)
        resyncs = {table: (state.active, state.closed) for table, state in tables.resyncs.items()}
        return self.items.items, tables.lanes, letters, sorted(tables.repairs), resyncs


def upsert(id_: int, commit: int, *row: Any, schema: TableSchema = SCHEMA, epoch: int = 5) -> ChangeEvent:
    values = orjson.dumps([id_, *row])
    return ChangeEvent(schema, "u", pack_version(epoch, commit, 0), "", orjson.dumps([id_]), values, "update")


def read(id_: int, commit: int, *row: Any, epoch: int = 6) -> ChangeEvent:
    event = upsert(id_, commit, *row, epoch=epoch)
    return event._replace(version=pack_version(epoch, commit, HIGHEST_ORDINAL), was="read")


def delete(id_: int, commit: int, epoch: int = 5) -> ChangeEvent:
    return ChangeEvent(SCHEMA, "d", pack_version(epoch, commit, 0), "", orjson.dumps([id_]), None, "delete")


def packed(lane: int, seq: int, *items: LaneItem) -> bytes:
    return pack_record("p", lane, 1, seq, None, items)[0]


def marker(phase: Any, lane: int, resync: int = 6) -> Marker:
    return Marker(SCHEMA, resync, phase, 2, lane)


BATCHES = [
    [
        packed(0, 1, upsert(1, 1, "a", "x"), upsert(2, 1, "a", "x"), upsert(9, 1, "gone", "x")),
        packed(1, 1, upsert(3, 1, "a", "x"), upsert(4, 2, "b", REFUSED + "4")),
        b"no record",
    ],
    [packed(0, 2, upsert(1, 3, "b", schema=PARTIAL), delete(2, 4)), packed(1, 3, upsert(3, 5, "c", "x"))],  # a hole
    [
        packed(0, 3, marker("open", 0), read(1, 9, "b", "x"), marker("close", 0)),
        packed(1, 4, marker("open", 1, 7), read(3, 9, "c", "x", epoch=7), marker("close", 1, 7)),
    ],
    [
        packed(0, 4, marker("open", 0, 7), read(1, 9, "b", "x", epoch=7), marker("close", 0, 7)),
        packed(0, 5, upsert(5, 11, "new", "x", epoch=7)),
    ],
]


def undisturbed() -> Target:
    target = Target()
    for batch in BATCHES:
        target.applier.apply(batch)
    return target


def test_what_it_leaves_behind() -> None:
    target = undisturbed()
    rows = target.items.rows("public.t")
    assert {key[0]: row["n"] for key, row in rows.items()} == {1: "b", 3: "c", 5: "new"}
    tables = target.lanes.tables
    assert {(table, key) for table, key, _ in tables.letters} == {("", ""), ("public.t", "[4]")}
    assert list(tables.repairs) == ["holes-after-5"]
    assert not tables.resyncs["7/public.t"].active
    assert (tables.lanes[0].term, tables.lanes[0].seq) == (1, 5)


def test_whichever_call_fails_the_batch_comes_again_and_all_is_the_same() -> None:
    wanted = undisturbed()
    for after in (False, True):
        for number in range(1, wanted.script.calls + 1):
            target = Target()
            target.script.fail_at, target.script.after = number, after
            for batch in BATCHES:
                for _ in range(SENDS_MAX + 1):
                    try:
                        target.applier.apply(batch)
                    except TransientError:
                        continue
                    break
                else:
                    pytest.fail("it never succeeded")
            assert target.left() == wanted.left(), f"call {number} failed, {'after' if after else 'before'} it was done"


def test_all_of_it_again_in_any_order_changes_nothing() -> None:
    target, wanted = undisturbed(), undisturbed()
    chance = random.Random(1)
    for _ in range(50):
        target.applier.apply(chance.choice(BATCHES))
    assert target.left() == wanted.left()


def test_two_at_once_leave_what_one_does() -> None:
    """The one hangs between any two of its calls, while the other applies everything."""
    wanted = undisturbed()
    for number in range(1, wanted.script.calls + 1):
        target = Target()
        other = ItemApplier("p", *_shared(target), PatientClock(), random.Random(0))
        call, begun = target.script.call, [False]

        def hanging(work: Callable[[], Any], *, writes: bool = True) -> Any:
            if target.script.calls + 1 == number and not begun[0]:  # noqa: B023 - used up within the turn
                begun[0] = True  # noqa: B023
                for batch in BATCHES:
                    other.apply(batch)  # noqa: B023
            return call(work, writes=writes)  # noqa: B023

        target.script.call = hanging  # type: ignore[method-assign]
        for batch in BATCHES:
            target.applier.apply(batch)
        assert target.left() == wanted.left(), f"it hung before call {number}"


def _shared(target: Target) -> tuple[Any, Any]:
    return target.applier._sink, target.applier._lanes


def test_what_one_call_left_over_is_sent_again_alone() -> None:
    target = Target()
    target.applier.apply([packed(0, 1, *(upsert(id_, 1, "a", "x") for id_ in range(1, 9)))])
    once = target.script.calls
    target = Target()
    target.script.fail_at = 3  # the first row's
    target.script._failures = SENDS_MAX - 1  # and only that one
    target.applier.apply([packed(0, 1, *(upsert(id_, 1, "a", "x") for id_ in range(1, 9)))])
    assert target.script.calls == once + 1


def test_a_table_that_takes_little_at_a_time_takes_all_in_the_end() -> None:
    """Sent anew from its beginning, a batch of more rows than the table takes in its time would never be done."""
    target = Target()
    call, writes = target.script.call, [0]

    def throttled(work: Callable[[], Any], **_: Any) -> Any:
        if getattr(work, "func", None) == target.items.write:
            writes[0] += 1
            if writes[0] % 5:
                raise TransientError("Too fast.", throttled=True)
        return call(work)

    target.script.call = throttled  # type: ignore[method-assign]
    target.applier.apply([packed(0, 1, *(upsert(id_, 1, "a", "x") for id_ in range(1, 25)))])
    assert len(target.items.rows("public.t")) == 24


def test_what_takes_long_is_not_tried_over_and_over() -> None:
    target = Target()
    target.applier._clock = clock = HastyClock()
    target.script.fail_at = 3
    clock.step_s = SENDS_S
    with pytest.raises(TransientError):
        target.applier.apply([packed(0, 1, upsert(1, 1, "a", "x"))])
    assert target.script.calls == 4, "two sends"


def test_a_sweep_that_takes_too_long_goes_on_with_the_next_batch() -> None:
    target = Target()
    target.applier._sweep_s = 0.0
    target.applier._clock = HastyClock()
    target.applier.apply([packed(0, 1, *(upsert(id_, 1, "old", "x") for id_ in range(1, 9)))])
    target.applier.apply([packed(1, 1, marker("open", 1), marker("close", 1))])
    last = [packed(0, 2, marker("open", 0), marker("close", 0))]
    for left in (5, 2):
        with pytest.raises(TransientError, match="still being removed"):
            target.applier.apply(last)
        assert len(target.items.rows("public.t")) == left
    assert target.applier.apply(last).swept == 2
    assert not target.items.rows("public.t")
