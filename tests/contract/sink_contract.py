"""What every ports.Sink must do. A sink's own test class inherits this and says how to read what arrived."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pytest

from upwell.errors import TransientError
from upwell.lanes import lane_of
from upwell.model import ChangeEvent, Column, Kind, LaneItem, Marker, TableSchema, pack_version
from upwell.ports import Parcel, Sink

LANES = 8
TIME = "2026-01-31T10:00:00.123456Z"
USERS = TableSchema(
    "public.users",
    (Column("id", "integer", Kind.INT), Column("email", "text", Kind.TEXT), Column("note", "text", Kind.TEXT)),
    ("id",),
    "postgresql",
)

# id → (email, note); a row that is not there is not in it.
State = dict[int, tuple[str | None, str | None]]


def upsert(number: int, commit: int, email: str | None = "a@example.com", note: str | None = None) -> ChangeEvent:
    row = orjson.dumps([number, email, note])
    return ChangeEvent(USERS, "u", pack_version(1, commit, 0), TIME, orjson.dumps([number]), row, "update")


def delete(number: int, commit: int) -> ChangeEvent:
    return ChangeEvent(USERS, "d", pack_version(1, commit, 0), TIME, orjson.dumps([number]), None, "delete")


def state_after(events: Sequence[ChangeEvent]) -> State:
    """What the events, in order, come to."""
    state: State = {}
    for event in events:
        if event.row is None:
            state.pop(orjson.loads(event.key)[0], None)
        else:
            number, email, note = orjson.loads(event.row)
            state[number] = (email, note)
    return state


def random_events(seed: int, count: int) -> list[ChangeEvent]:
    chance = random.Random(seed)
    return [
        delete(chance.randrange(40), commit)
        if chance.random() < 0.2
        else upsert(
            chance.randrange(40), commit, chance.choice([None, "", "ü@example.com"]), "n" * chance.randrange(300)
        )
        for commit in range(1, count + 1)
    ]


class SinkContract(ABC):
    """`sink` and `unreachable` are fixtures of the class that inherits."""

    @abstractmethod
    def arrived(self, sink: Sink) -> State:
        """What a reader of the destination makes of all that came."""

    def parcels(self, sink: Sink, items: Sequence[LaneItem]) -> Iterator[list[Parcel]]:
        """One lane's parcel after the other; lanes side by side, as the publisher sends them."""
        queues: dict[int, list[LaneItem]] = {}
        for item in items:
            lane = lane_of(item, LANES) if isinstance(item, ChangeEvent) else item.lane
            queues.setdefault(lane, []).append(item)
        seq = 0
        while queues:
            seq += 1
            packed = [sink.pack(lane, 5, seq, (4, 17) if seq == 1 else None, queue) for lane, queue in queues.items()]
            for parcel in packed:
                assert 1 <= parcel.taken <= len(queues[parcel.lane])
                del queues[parcel.lane][: parcel.taken]
            queues = {lane: queue for lane, queue in queues.items() if queue}
            yield packed

    def deliver(self, sink: Sink, items: Sequence[LaneItem]) -> list[Any]:
        """Everything sent; returns what was rejected."""
        rejected = []
        for packed in self.parcels(sink, items):
            for start in range(0, len(packed), sink.parcels_max):
                some = packed[start : start + sink.parcels_max]
                assert list(sink.send(some)) == [None] * len(some)
            rejected += [rejection for parcel in packed for rejection in parcel.rejected]
        return rejected

    @pytest.mark.parametrize("seed", range(3))
    def test_what_was_sent_is_there(self, sink: Sink, seed: int) -> None:
        sink.prepare([USERS])
        events = random_events(seed, 400)
        assert self.deliver(sink, events) == []
        assert self.arrived(sink) == state_after(events)

    def test_a_parcel_says_what_it_is(self, sink: Sink) -> None:
        sink.prepare([USERS])
        parcel = sink.pack(3, 5, 9, (4, 17), [upsert(1, 1), upsert(1, 2)])
        assert (parcel.lane, parcel.term, parcel.seq, parcel.after) == (3, 5, 9, (4, 17))
        assert parcel.size > 0

    def test_a_parcel_sent_again_changes_nothing(self, sink: Sink) -> None:
        sink.prepare([USERS])
        for packed in self.parcels(sink, [upsert(1, 1), delete(2, 2), upsert(3, 3)]):
            bodies = [parcel.body for parcel in packed]
            for _ in range(2):
                for parcel, body in zip(packed, bodies, strict=True):
                    parcel.body = body
                assert not any(sink.send(packed))
        assert self.arrived(sink).keys() == {1, 3}

    def test_markers_leave_the_rows_alone(self, sink: Sink) -> None:
        sink.prepare([USERS])
        opened = [Marker(USERS, 1, "open", LANES, lane) for lane in range(LANES)]
        closed = [Marker(USERS, 1, "close", LANES, lane) for lane in range(LANES)]
        assert self.deliver(sink, [*opened, upsert(1, 1), *closed, *opened, *closed, upsert(2, 2)]) == []
        assert self.arrived(sink).keys() == {1, 2}

    def test_nothing_to_send_is_no_call(self, unreachable: Sink) -> None:
        assert not unreachable.send([])
        assert not any(unreachable.send([Parcel(0, 1, 1, None, taken=1)]))

    def test_preparing_twice_is_harmless(self, sink: Sink) -> None:
        for _ in range(2):
            sink.prepare([USERS])
        assert self.deliver(sink, [upsert(1, 1)]) == []

    def test_out_of_reach_it_packs_and_says_that_sending_may_be_tried_again(self, unreachable: Sink) -> None:
        parcel = unreachable.pack(0, 1, 1, None, [upsert(1, 1)])
        for _ in range(2):
            with pytest.raises(TransientError):
                unreachable.send([parcel])
            assert parcel.body
            assert parcel.rejected == []

    def test_closing_twice_is_harmless(self, sink: Sink) -> None:
        for _ in range(2):
            sink.close()


class LimitedSinkContract(SinkContract):
    """Of sinks whose service has a limit to an event's size: `too_large` is a fixture."""

    def test_what_can_never_go_is_rejected_and_the_rest_flows_on(self, sink: Sink, too_large: ChangeEvent) -> None:
        sink.prepare([USERS])
        events = [upsert(number, number + 1) for number in range(20)]
        rejected = self.deliver(sink, [*events[:10], too_large, *events[10:]])
        assert [rejection.event for rejection in rejected] == [too_large]
        assert rejected[0].table == "public.users"
        assert rejected[0].key == too_large.key.decode()
        assert rejected[0].reason
        assert self.arrived(sink) == state_after(events)

    def test_a_parcel_of_nothing_but_rejections_has_no_body(self, sink: Sink, too_large: ChangeEvent) -> None:
        sink.prepare([USERS])
        parcel = sink.pack(0, 1, 1, None, [too_large])
        assert (parcel.taken, parcel.body, len(parcel.rejected)) == (1, None, 1)
