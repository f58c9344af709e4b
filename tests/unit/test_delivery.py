"""Delivery: lanes in order, one parcel of a lane under way, marks only when everything before them is durable."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.errors import OperatorError, TransientError
from upwell.model import UPSERT, ChangeEvent, Column, Kind, LaneItem, Marker, Rejection, TableSchema, pack_version
from upwell.pipeline.delivery import BACKOFF_LANE_MAX_S, DETOURS_MAX, LANE_REST_BYTES_MAX, LANE_REST_S, Delivery
from upwell.ports import Parcel

SCHEMA = TableSchema("main.t", (Column("id", "int", Kind.INT),), ("id",), "sqlite")
AWAY = TransientError("away")


class Sink:
    """Packs up to two items; refuses keys above 900."""

    carries_markers = True
    parcels_max = 3
    call_bytes_max = 100

    def pack(self, lane: int, term: int, seq: int, after: tuple[int, int] | None, items: Sequence[LaneItem]) -> Parcel:
        taken = list(items[:2])
        good = [item for item in taken if isinstance(item, Marker) or int(item.key[1:-1]) < 900]
        rejected = [Rejection("main.t", "", "too large") for _ in range(len(taken) - len(good))]
        return Parcel(lane, term, seq, after, len(taken), body=good or None, size=10 * len(good), rejected=rejected)

    send = prepare = sweep = close = None  # Delivery itself does no I/O


def event(id_: int) -> ChangeEvent:
    row = b"[%d]" % id_
    return ChangeEvent(SCHEMA, UPSERT, pack_version(1, id_, 0), "", row, row, "insert")


def marker(lane: int) -> Marker:
    return Marker(SCHEMA, 1, "open", 4, lane)


def delivery(
    lanes: int = 4, acknowledged: dict[int, tuple[int, int]] | None = None, pending_bytes_max: int = 10_000
) -> Delivery[str]:
    return Delivery(
        Sink(),  # type: ignore[arg-type] # it has what Delivery uses
        term=7,
        lanes=lanes,
        acknowledged=acknowledged or {},
        pending_bytes_max=pending_bytes_max,
        rng=random.Random(1),
    )


def test_a_mark_comes_back_when_all_before_it_is_durable() -> None:
    it = delivery()
    it.offer([marker(0), marker(1)], "first")
    it.offer([], "second")
    it.offer([marker(2)], "third")
    by_lane = {parcel.lane: parcel for parcel in it.take(0.0)}
    it.settle([by_lane[1], by_lane[2]], [None, None], 0.0)
    assert it.collect() == (None, [])
    it.settle([by_lane[0]], [None], 0.0)
    assert it.collect() == ("third", [])
    assert it.collect() == (None, [])
    assert it.idle


def test_a_lane_has_one_parcel_under_way_and_keeps_it_until_it_is_durable() -> None:
    it = delivery()
    it.offer([marker(0)] * 5, "mark")
    [first] = it.take(0.0)
    assert it.take(1000.0) == []
    it.settle([first], [AWAY], 0.0)
    [again] = it.take(1000.0)
    assert again is first
    it.settle([again], [None], 1000.0)
    [second] = it.take(2000.0)
    assert (first.seq, first.after, second.seq, second.after) == (1, (0, 0), 2, None)


def test_the_first_record_of_a_term_names_the_last_acknowledged_before_it() -> None:
    it = delivery(acknowledged={0: (6, 12)})
    it.offer([marker(0)], "mark")
    [parcel] = it.take(0.0)
    assert (parcel.term, parcel.seq, parcel.after) == (7, 1, (6, 12))
    assert it.acknowledged() == {0: (6, 12)}
    it.settle([parcel], [None], 0.0)
    assert it.acknowledged() == {0: (7, 1)}


def test_what_is_refused_uses_no_sequence_number_and_is_told_with_its_mark() -> None:
    it = delivery(lanes=1)
    it.offer([event(901), event(902), event(1)], "mark")
    [refused] = it.take(0.0)
    assert refused.body is None
    it.settle([refused], [None], 0.0)
    mark, rejected = it.collect()
    assert (mark, len(rejected)) == (None, 2)
    [parcel] = it.take(1.0)
    assert parcel.seq == 1
    it.settle([parcel], [None], 1.0)
    assert it.collect() == ("mark", [])


def test_failed_lanes_back_off_by_themselves_and_a_failed_call_all_of_them() -> None:
    it = delivery()
    it.offer([marker(0), marker(1)], "mark")
    parcels = it.take(0.0)
    it.settle(parcels, [AWAY if p.lane == 0 else None for p in parcels], 0.0)
    it.offer([marker(1)], "more")
    waits = []
    now = 0.0
    for _ in range(12):
        wake_at = it.wake_at(now)
        assert wake_at is not None
        waits.append(wake_at - now)
        now = wake_at
        parcels = it.take(now)
        it.settle(parcels, [AWAY if p.lane == 0 else None for p in parcels], now)
    assert max(waits) <= BACKOFF_LANE_MAX_S
    assert it.last_error is AWAY
    it.fail(it.take(now + BACKOFF_LANE_MAX_S), AWAY, now + BACKOFF_LANE_MAX_S)
    wake_at = it.wake_at(now + BACKOFF_LANE_MAX_S)
    assert wake_at is not None
    assert wake_at > now + BACKOFF_LANE_MAX_S


def test_calls_that_fail_together_are_one_failure() -> None:
    """Else a moment without the Internet would cost as many doublings of the wait as there are calls under way."""
    longest = {}
    for calls in (1, 3):
        it = delivery(lanes=4)
        it.offer([marker(lane) for lane in range(calls)], "mark")
        now, waits = 0.0, []
        for _ in range(6):
            parcels = it.take(now)
            assert len(parcels) == calls
            for parcel in parcels:
                it.fail([parcel], AWAY, now)
            wake_at = it.wake_at(now)
            assert wake_at is not None
            waits.append(wake_at - now)
            now = wake_at
        longest[calls] = waits
    assert longest[3] == longest[1]


def test_a_lane_of_which_a_part_gets_through_waits_no_longer_each_time() -> None:
    """So that a throttled lane is not left alone for half a minute with a few writes left."""
    longest = {}
    for progress in (0, 1):
        it = delivery(lanes=1)
        it.offer([marker(0)] * 2, "mark")
        now = 0.0
        waits = []
        for _ in range(40):
            [parcel] = it.take(now)
            parcel.size = parcel.size - progress or 100
            it.settle([parcel], [TransientError("too fast", throttled=True)], now)
            wake_at = it.wake_at(now)
            assert wake_at is not None
            waits.append(wake_at - now)
            now = wake_at
        assert it.last_error is not None
        longest[progress] = max(waits[20:])
    assert longest[0] > BACKOFF_LANE_MAX_S / 2
    assert longest[1] <= 0.2


def test_a_lane_rests_unless_it_fills_records_by_itself() -> None:
    it = delivery(lanes=1)
    it.offer([event(1)], "one")
    it.settle(it.take(0.0), [None], 0.0)
    it.offer([event(2)], "two")
    assert it.take(LANE_REST_S / 2) == []
    assert it.wake_at(0.0) == LANE_REST_S
    it.offer([event(id_) for id_ in range(LANE_REST_BYTES_MAX // 300)], "many")
    assert it.wake_at(0.0) == 0.0
    assert len(it.take(LANE_REST_S / 2)) == 1


def test_a_call_keeps_the_sinks_limits() -> None:
    it = delivery(lanes=8)
    it.offer([marker(lane) for lane in range(8)], "mark")
    assert [len(it.take(0.0)) for _ in range(4)] == [3, 3, 2, 0]


def test_an_error_for_a_person_ends_the_sending_and_is_raised() -> None:
    it = delivery()
    it.offer([marker(0), marker(1)], "mark")
    it.fail(it.take(0.0), OperatorError("no rights"), 0.0)
    assert it.take(1000.0) == []
    with pytest.raises(OperatorError):
        it.collect()


def test_memory_is_counted_until_it_is_durable() -> None:
    it = delivery(lanes=2, pending_bytes_max=1600)
    it.offer([marker(0), marker(1)], "mark")
    assert it.full
    parcels = it.take(0.0)
    it.settle(parcels[:1], [None], 0.0)
    assert (it.full, it.pending_bytes) == (False, 1300)
    it.settle(parcels[1:], [None], 0.0)
    assert it.collect() == ("mark", [])
    assert it.pending_bytes == 0


def test_windows_of_a_single_event_fill_the_memory_too() -> None:
    it = delivery(pending_bytes_max=1_000_000)
    offered = 0
    while not it.full:
        it.offer([event(offered)], str(offered))
        offered += 1
    assert offered < 1_000


def test_a_source_that_moves_on_without_events_fills_no_memory() -> None:
    it = delivery()
    it.offer([marker(0)], "events")
    before = it.pending_bytes
    for number in range(1000):
        it.offer([], str(number))
    assert it.pending_bytes == before
    it.settle(it.take(0.0), [None], 0.0)
    assert it.collect() == ("999", [])
    assert (it.idle, it.pending_bytes) == (True, 0)


@given(st.lists(st.lists(st.integers(0, 999), max_size=6), max_size=12), st.randoms(use_true_random=False))
def test_whatever_fails_each_lane_arrives_in_order_and_marks_are_honest(
    windows: list[list[int]], rng: random.Random
) -> None:
    it = delivery(lanes=3)
    arrived: dict[int, list[int]] = {lane: [] for lane in range(3)}
    refused = 0
    seen, now = 0, 0.0
    todo = list(enumerate(windows, 1))
    while todo or not it.idle:
        now += 40.0
        if todo:
            number, ids = todo.pop(0)
            it.offer([event(id_) for id_ in ids], str(number))
        parcels = it.take(now)
        if parcels and rng.random() < 0.2:
            it.fail(parcels, AWAY, now)
            continue
        answers = [AWAY if rng.random() < 0.3 else None for _ in parcels]
        for parcel, answer in zip(parcels, answers, strict=True):
            if answer is None:
                arrived[parcel.lane] += [int(item.key[1:-1]) for item in parcel.body or []]
        it.settle(parcels, answers, now)
        mark, rejected = it.collect()
        refused += len(rejected)
        if mark is not None:
            assert int(mark) > seen
            seen = int(mark)
            durable = sum(map(len, arrived.values())) + refused
            assert durable >= sum(map(len, windows[:seen]))
    assert seen == len(windows)
    everything = [id_ for ids in windows for id_ in ids]
    for lane, ids in arrived.items():
        assert ids == [id_ for id_ in everything if id_ < 900 and id_ in ids], lane
    assert sum(map(len, arrived.values())) + refused == len(everything)


def detouring(lanes: int = 6) -> Delivery[str]:
    """A delivery whose even lanes have a parcel that goes to another service first."""
    it = delivery(lanes)
    pack = Sink().pack

    def packed(lane: int, *rest: Any) -> Parcel:
        parcel = pack(lane, *rest)
        parcel.detour = lane % 2 == 0
        return parcel

    it._sink.pack = packed  # type: ignore[method-assign,assignment]
    it.offer([marker(lane) for lane in range(lanes)], "mark")
    return it


def test_nothing_waits_for_a_detour_and_few_are_made_at_a_time() -> None:
    it = detouring()
    calls = [[parcel.lane for parcel in it.take(0.0)] for _ in range(5)]
    alone = [call for call in calls if call and call[0] % 2 == 0]
    assert [len(call) for call in alone] == [1] * DETOURS_MAX
    assert sorted(lane for call in calls for lane in call if lane % 2) == [1, 3, 5]
    assert it.wake_at(0.0) is None  # the detour that is left waits for one of those under way, not for the time


def test_a_detour_that_ends_makes_room_for_the_next_however_it_ends() -> None:
    it = detouring()
    detours = [parcel for _ in range(4) for parcel in it.take(0.0) if parcel.detour]
    it.settle(detours[:1], [AWAY], 0.0)
    [third] = it.take(0.0)
    assert third.lane not in [parcel.lane for parcel in detours]
    detours[1].detour = False  # the other service has it, and the sink's own then failed
    it.fail(detours[1:], AWAY, 0.0)
    seen = {parcel.lane for _ in range(4) for parcel in it.take(1000.0)}
    assert seen == {parcel.lane for parcel in detours}


def test_another_service_says_nothing_about_the_sinks() -> None:
    it = detouring()
    calls = [it.take(0.0) for _ in range(3)]
    [detour] = next(call for call in calls if call[0].detour)
    it.fail(next(call for call in calls if not call[0].detour), AWAY, 0.0)
    it._service_ready_at = 5.0
    it.settle([detour], [AWAY], 1.0)
    assert it.take(4.9) == []
    assert it.take(5.0)
