"""Lanes: a key has one lane, wherever it is computed, and a lane one place in the stream."""

import io
import random
from collections import Counter

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.lanes import DEFAULT_LANES, LANES_MAX, explicit_hash_key, lane_of, partition_key
from upwell.model import UPSERT, ChangeEvent, Column, Kind, TableSchema, pack_version
from upwell.pipeline.delivery import Delivery
from upwell.sinks.stdout import StdoutSink


def event(table: str, key: str) -> ChangeEvent:
    schema = TableSchema(table, (Column("id", "TEXT", Kind.TEXT),), ("id",), "sqlite")
    row = orjson.dumps([key])
    return ChangeEvent(schema, UPSERT, pack_version(1, 1, 0), "2026-01-31T10:00:00.000000Z", row, row, "insert")


@given(st.lists(st.tuples(st.sampled_from(["main.a", "main.b"]), st.text())), st.integers(1, LANES_MAX))
def test_delivery_sends_an_event_by_the_lane_of_its_key(keys: list[tuple[str, str]], lanes: int) -> None:
    events = [event(*key) for key in keys]
    sink = StdoutSink("shop", io.BytesIO())
    delivery: Delivery[int] = Delivery(
        sink, term=1, lanes=lanes, acknowledged={}, pending_bytes_max=2**30, rng=random.Random(0)
    )
    delivery.offer(events, 1)
    sent: dict[int, int] = {}
    while parcels := delivery.take(0.0):
        sent |= {parcel.lane: parcel.taken for parcel in parcels}
    assert sent == Counter(lane_of(each, lanes) for each in events)


@given(st.text(), st.text(), st.integers())
def test_what_may_be_written_in_several_ways_does_not_count(one: str, other: str, number: int) -> None:
    """A delete of the old look and an upsert of the new one stay in order."""
    columns = (Column("c", "citext", Kind.TEXT), Column("n", "bigint", Kind.INT))
    schema = TableSchema("public.t", columns, ("c", "n"), "postgresql", loose=frozenset({"c"}))
    keys = [orjson.dumps([text, str(number)]) for text in (one, other)]
    events = [event("x", "")._replace(schema=schema, key=key, row=key) for key in keys]
    assert lane_of(events[0], LANES_MAX) == lane_of(events[1], LANES_MAX)
    sink = StdoutSink("shop", io.BytesIO())
    delivery: Delivery[int] = Delivery(
        sink, term=1, lanes=64, acknowledged={}, pending_bytes_max=2**30, rng=random.Random(0)
    )
    delivery.offer(events, 1)
    assert [(parcel.lane, parcel.taken) for parcel in delivery.take(0.0)] == [(lane_of(events[0], 64), 2)]


def test_lanes_stay_what_they_were() -> None:
    """Another formula would give keys other lanes while events of theirs are on their way."""
    assert [lane_of(event("main.a", key), 64) for key in ("1", "2", "x")] == [52, 45, 59]
    assert lane_of(event("main.b", "1"), 64) == 26


@pytest.mark.parametrize("lanes", [1, 2, 3, DEFAULT_LANES, LANES_MAX])
def test_each_lane_stands_in_the_middle_of_its_share_of_the_stream(lanes: int) -> None:
    share = 2**128 / lanes
    for lane in range(lanes):
        assert int(explicit_hash_key(lane, lanes)) == pytest.approx((lane + 0.5) * share)
    assert len({partition_key(lane) for lane in range(lanes)}) == lanes
