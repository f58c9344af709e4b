"""What of a batch is new: watermarks, folds, lost records, resyncs. And how a refused row is found."""

from typing import Any

import orjson
import pytest

from tests.simulation.dice import Dice, SimClock
from tests.simulation.target import SimTarget, Tables
from upwell.claims import Claims
from upwell.envelope import ReceivedEvent, pack_claimed, pack_record, unpack_record
from upwell.errors import OperatorError, TransientError
from upwell.model import (
    DELETE,
    HIGHEST_ORDINAL,
    UPSERT,
    ChangeEvent,
    Column,
    Kind,
    LaneRecord,
    Marker,
    Operation,
    TableSchema,
    pack_version,
)
from upwell.pipeline import incoming as incoming_module
from upwell.pipeline.applier import DAMAGED, Applier, Plan, plan, repaired
from upwell.pipeline.incoming import Record
from upwell.ports import LaneState, ResyncState

COLUMNS = tuple(Column(name, "text", Kind.TEXT) for name in ("id", "n", "u", "big"))
SCHEMA = TableSchema("public.t", COLUMNS, ("id",), "postgresql")
OTHER = TableSchema("public.other", COLUMNS, ("id",), "postgresql")
PARTIAL = SCHEMA.without(frozenset({"big"}))
WIDER = TableSchema("public.t", (*COLUMNS, Column("new", "text", Kind.TEXT)), ("id",), "postgresql")


def upsert(
    id_: int, commit: int, *values: Any, schema: TableSchema = SCHEMA, epoch: int = 5, ordinal: int = 0
) -> ReceivedEvent:
    row = [id_, *values][: len(schema.columns)] + [None] * (len(schema.columns) - 1 - len(values))
    return ReceivedEvent(schema, UPSERT, pack_version(epoch, commit, ordinal), "", (id_,), row)


def read(id_: int, commit: int, *, epoch: int = 5) -> ReceivedEvent:
    return upsert(id_, commit, epoch=epoch, ordinal=HIGHEST_ORDINAL)


def delete(id_: int, commit: int) -> ReceivedEvent:
    return ReceivedEvent(SCHEMA, DELETE, pack_version(5, commit, 0), "", (id_,), [id_])


def record(
    seq: int, *items: ReceivedEvent | Marker, term: int = 1, lane: int = 0, after: tuple[int, int] | None = None
) -> Record:
    return LaneRecord("p", lane, term, seq, after, items)


def opening(resync: int, schema: TableSchema = SCHEMA, lane: int = 0) -> Marker:
    return Marker(schema, resync, "open", 2, lane)


def closing(resync: int, schema: TableSchema = SCHEMA, lane: int = 0) -> Marker:
    return Marker(schema, resync, "close", 2, lane)


def planned(*records: Record, state: LaneState | None = None) -> Plan:
    lanes = {each.lane for each in records}
    return plan(records, {lane: state or LaneState() for lane in lanes})


def rows(work: Plan) -> list[list[tuple[Operation, list[Any]]]]:
    return [[(event.operation, event.values) for event in fold.events.values()] for fold in work.folds]


# --- watermark and fold ---------------------------------------------------------------------------------------------


def test_what_is_below_the_watermark_is_skipped_what_equals_it_is_not() -> None:
    state = LaneState(pack_version(5, 10, 1), 1, 1)
    work = planned(record(2, upsert(1, 9), upsert(2, 10), upsert(3, 10, ordinal=1), upsert(4, 11)), state=state)
    assert [event.key for event in work.folds[0].events.values()] == [(3,), (4,)]
    assert work.skipped == 2
    assert work.states[0] == LaneState(pack_version(5, 11, 0), 1, 2)
    assert state == LaneState(pack_version(5, 10, 1), 1, 1), "a plan changes nothing"


def test_the_newest_event_of_a_key_is_written() -> None:
    work = planned(record(1, upsert(1, 1, "a"), delete(2, 2), upsert(1, 3, "b"), delete(1, 4), upsert(2, 5, "c")))
    assert rows(work) == [[("d", [1]), ("u", [2, "c", None, None])]]


def test_a_partial_event_changes_what_came_before_it_in_the_batch() -> None:
    work = planned(record(1, upsert(1, 1, "a", "b", "large"), upsert(1, 2, "c", "d", schema=PARTIAL)))
    assert rows(work) == [[("u", [1, "c", "d", "large"])]]
    assert next(iter(work.folds[0].events.values())).schema == SCHEMA


def test_a_partial_event_of_a_deleted_row_changes_nothing() -> None:
    assert rows(planned(record(1, delete(1, 1), upsert(1, 2, "x", schema=PARTIAL)))) == [[("d", [1])]]


def test_a_row_of_a_partial_schema_that_left_its_filter_is_deleted() -> None:
    gone = delete(1, 2)._replace(schema=PARTIAL)
    assert rows(planned(record(1, upsert(1, 1, "a", "b", "large"), gone))) == [[("d", [1])]]


def test_a_partial_event_with_columns_that_the_row_before_lacks_is_written_after_it() -> None:
    wider = WIDER.without(frozenset({"big"}))
    work = planned(record(1, upsert(1, 1, "a", "b", "large"), upsert(1, 2, "c", "d", "new", schema=wider)))
    assert rows(work) == [[("u", [1, "a", "b", "large"])], [("u", [1, "c", "d", "new"])]]


# --- lost records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "now", "after", "lost"),
    [
        ((1, 4), (1, 5), None, False),
        ((1, 4), (1, 6), None, True),
        ((1, 4), (1, 4), None, False),  # sent again
        ((1, 4), (1, 2), None, False),  # landed late
        ((0, 0), (1, 1), (0, 0), False),
        ((0, 0), (1, 2), None, True),  # a new subscriber, a stream that has lost its beginning
        ((0, 0), (2, 1), (1, 4), True),
        ((1, 4), (2, 1), (1, 4), False),
        ((1, 4), (2, 1), (1, 3), False),  # the rest is sent again
        ((1, 4), (2, 1), (1, 5), True),
        ((1, 4), (2, 2), None, True),
        ((1, 4), (3, 1), (2, 1), True),  # a whole term
        ((1, 4), (3, 1), (1, 4), False),  # a term that acknowledged nothing
        ((1, 4), (9, 1), (0, 0), False),  # the publisher lost its state; it reads all again by itself
    ],
)
def test_lost_records_show_in_the_count(
    seen: tuple[int, int], now: tuple[int, int], after: tuple[int, int] | None, lost: bool
) -> None:
    work = planned(record(now[1], upsert(1, 1), term=now[0], after=after), state=LaneState(bytes(16), *seen))
    assert bool(work.losses) is lost
    assert (work.states[0].term, work.states[0].seq) == max(seen, now)


def test_an_earlier_term_says_nothing_once_a_later_one_was_heard() -> None:
    state = LaneState(bytes(16), 2, 1, {"public.t": 5})
    work = planned(record(8, upsert(1, 99), closing(5), term=1), state=state)
    assert (work.folds[0].events, work.closed, work.losses, work.skipped) == ({}, [], [], 2)
    assert work.states[0] == state


def test_rows_of_a_snapshot_that_come_too_late_are_missed_unless_they_came_before() -> None:
    state = LaneState(pack_version(5, 20, 0), 1, 3, {"public.t": 5})
    [(epoch, sentence)] = planned(record(4, read(1, 10), closing(5)), state=state).losses
    assert epoch == 5
    assert "without the lease" in sentence
    assert planned(record(3, read(1, 10)), state=state).losses == []
    assert planned(record(4, upsert(1, 10)), state=state).losses == []


# --- resyncs --------------------------------------------------------------------------------------------------------


def test_an_opening_marker_moves_the_watermark_and_what_follows_is_noted() -> None:
    work = planned(record(1, upsert(1, 3, epoch=4), opening(5), upsert(2, 9), upsert(3, 9), delete(3, 10)))
    assert work.noting == {("public.t", (2,)): 5}
    assert work.opened == {"public.t": 5}
    assert planned(record(1, opening(5))).states[0].version == pack_version(5, 0, 0)
    again = planned(record(1, upsert(1, 3, epoch=4)), state=work.states[0])
    assert (again.skipped, again.noting) == (1, {})


def test_an_older_opening_marker_that_lands_late_changes_nothing() -> None:
    state = LaneState(pack_version(7, 1, 0), 1, 9, {"public.t": 7})
    work = planned(record(2, opening(5)), state=state)
    assert (work.opened, work.states[0]) == ({}, state)


@pytest.mark.parametrize(
    ("resyncs", "counts"),
    [({"public.t": 5}, True), ({}, False), ({"public.t": 6}, False), ({"public.t": 5, DAMAGED: 5}, False)],
)
def test_only_a_resync_that_lost_nothing_in_the_lane_ends(resyncs: dict[str, int], counts: bool) -> None:
    work = planned(record(2, closing(5)), state=LaneState(bytes(16), 1, 1, resyncs))
    assert bool(work.closed) is counts


def test_a_hole_damages_the_resyncs_of_all_tables_and_is_reported_once_for_each_that_answers() -> None:
    state = LaneState(pack_version(5, 1, 0), 1, 1, {"public.t": 5, "public.other": 4})
    work = planned(record(3, closing(5), closing(4, OTHER)), state=state)
    assert work.closed == []
    assert [epoch for epoch, _ in work.losses] == [5]
    later = planned(record(4, opening(8), closing(8)), state=work.states[0])
    assert later.closed == [closing(8)]
    # It took the opening marker of the resync that answers the first: that is another loss.
    [(epoch, _)] = planned(record(6, closing(8)), state=work.states[0]).losses
    assert epoch == 8


# --- applied to a target --------------------------------------------------------------------------------------------


def packed(seq: int, *items: ReceivedEvent | Marker, lane: int = 0, pipeline: str = "p") -> bytes:
    sent = [
        item
        if isinstance(item, Marker)
        else ChangeEvent(
            item.schema,
            item.operation,
            item.version,
            item.time,
            orjson.dumps(item.key),
            None if item.operation == DELETE else orjson.dumps(item.values),
            "update",
        )
        for item in items
    ]
    data, count = pack_record(pipeline, lane, 1, seq, (0, 0) if seq == 1 else None, sent)
    assert count == len(items)
    return data


@pytest.fixture
def target() -> SimTarget:
    dice = Dice(0)
    dice.calm = True
    return SimTarget(dice, lambda table, key, row: None)


def test_what_one_row_holds_is_put_aside_alone(target: SimTarget) -> None:
    applier = Applier("p", target, SimClock())
    items = [upsert(id_, 1, "n", f"u{id_}", "refused" if id_ in (3, 7) else "fine") for id_ in range(10)]
    applied = applier.apply([packed(1, *items), b"rubbish", packed(1, upsert(1, 1), pipeline="another")])
    assert (applied.events, applied.dead_letters, applied.foreign) == (10, 3, 1)
    assert sorted(target.tables.rows["public.t"]) == [(id_,) for id_ in range(10) if id_ not in (3, 7)]
    letters = {letter.key: letter for letter in target.tables.letters.values()}
    assert letters.keys() == {"[3]", "[7]", ""}
    [again] = unpack_record(letters["[3]"].payload).items
    assert again == items[3]
    assert letters[""].payload == b"rubbish"


def test_two_rows_swap_a_unique_value(target: SimTarget) -> None:
    applier = Applier("p", target, SimClock())
    applier.apply([packed(1, upsert(1, 1, "n", "a"), upsert(2, 1, "n", "b"))])
    applied = applier.apply([packed(2, upsert(1, 2, "n", "b"), upsert(2, 2, "n", "a"))])
    assert applied.dead_letters == 0
    assert {key: row["u"] for key, row in target.tables.rows["public.t"].items()} == {(1,): "b", (2,): "a"}


def test_a_resync_removes_what_it_did_not_find_when_the_last_lane_is_closed(target: SimTarget) -> None:
    applier = Applier("p", target, SimClock())
    applier.apply([packed(1, upsert(1, 1), upsert(2, 1)), packed(1, upsert(3, 1), upsert(4, 1), lane=1)])
    applier.apply([packed(2, opening(6), read(1, 5, epoch=6), closing(6))])
    assert len(target.tables.rows["public.t"]) == 4
    applied = applier.apply([packed(2, opening(6, lane=1), read(3, 5, epoch=6), closing(6, lane=1), lane=1)])
    assert applied.swept == 2
    assert sorted(target.tables.rows["public.t"]) == [(1,), (3,)]
    assert applier.apply([packed(2, opening(6, lane=1), closing(6, lane=1), lane=1)]).swept == 0


def test_holes_ask_for_one_repair(target: SimTarget) -> None:
    applier = Applier("p", target, SimClock())
    applied = applier.apply([packed(2, upsert(1, 1)), packed(4, upsert(1, 2)), packed(9, upsert(3, 1), lane=1)])
    assert applied.holes == 3
    assert list(target.tables.repairs) == ["holes-after-5"]
    assert target.tables.repairs["holes-after-5"].table is None
    assert applied.alarm == target.tables.repairs["holes-after-5"].reason
    assert "Lane 1" in applied.alarm


def test_a_hole_is_repaired_by_a_newer_resync_of_every_table() -> None:
    older, newer, under_way = ResyncState(5, False), ResyncState(6, False), ResyncState(7, True)
    assert repaired("holes-after-5", [newer, newer])
    for resyncs in ([], [older], [newer, older], [newer, under_way]):
        assert not repaired("holes-after-5", resyncs), resyncs


def test_a_failure_leaves_nothing_behind(target: SimTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise TransientError("away")

    monkeypatch.setattr("tests.simulation.target.SimTransaction.save_lanes", away)
    with pytest.raises(TransientError):
        Applier("p", target, SimClock()).apply([packed(1, upsert(1, 1))])
    assert target.tables.rows == {}


# --- rows that were too large for the stream ------------------------------------------------------------------------


class Store:
    """See ports.ObjectStore: objects in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.away = False
        self.got: list[str] = []

    def put(self, key: str, content: bytes) -> None:
        self.objects[key] = content

    def get(self, key: str) -> bytes | None:
        if self.away:
            raise TransientError("away")
        self.got.append(key)
        return self.objects.get(key)

    def close(self) -> None:
        pass


@pytest.fixture
def store() -> Store:
    return Store()


def large(seq: int, item: ReceivedEvent, store: Store, lane: int = 0) -> bytes:
    """The record of an event whose row goes by way of the store."""
    row = orjson.dumps(item.values)
    event = ChangeEvent(item.schema, UPSERT, item.version, item.time, orjson.dumps(item.key), row, "update")
    upload = Claims(store, "", "p").upload(event, row)
    store.put(upload.claim.object, upload.content)
    return pack_claimed("p", lane, 1, seq, (0, 0) if seq == 1 else None, event, upload.claim)


def with_claims(target: SimTarget, store: Store) -> Applier:
    return Applier("p", target, SimClock(), Claims(store, "", "p"))


def test_a_claimed_row_is_one_like_any_other(target: SimTarget, store: Store) -> None:
    applier = with_claims(target, store)
    applied = applier.apply(
        [
            large(1, upsert(1, 1, "a", "u", "large"), store),
            packed(2, upsert(2, 2, "b"), upsert(1, 3, "c", "u", schema=PARTIAL)),
            large(3, upsert(3, 4, "d", "v", "large"), store),
            packed(4, delete(3, 5)),
        ]
    )
    assert (applied.events, applied.dead_letters, applied.holes) == (5, 0, 0)
    assert {key: row["n"] for key, row in target.tables.rows["public.t"].items()} == {(1,): "c", (2,): "b"}
    assert target.tables.rows["public.t"][1,]["big"] == "large"


def test_a_claimed_row_that_can_not_be_had_is_put_aside_and_the_rest_flows_on(target: SimTarget, store: Store) -> None:
    applier = with_claims(target, store)
    applier.apply([packed(1, upsert(1, 1, "old"))])
    data = large(2, upsert(1, 2, "new"), store)
    store.objects.clear()
    applied = applier.apply([data, packed(3, upsert(2, 3, "b"), upsert(1, 4, "newest", schema=PARTIAL))])
    assert (applied.events, applied.dead_letters, applied.holes) == (3, 1, 0)
    assert {key: row["n"] for key, row in target.tables.rows["public.t"].items()} == {(1,): "newest", (2,): "b"}
    [letter] = target.tables.letters.values()
    assert letter.key == "[1]"
    assert "not in the bucket any more" in letter.reason
    [event] = unpack_record(letter.payload).items
    assert isinstance(event, ReceivedEvent)
    assert event.claim is not None


def test_a_resync_keeps_the_row_whose_claim_can_not_be_had(target: SimTarget, store: Store) -> None:
    applier = with_claims(target, store)
    applier.apply([packed(1, upsert(1, 1, "old"), upsert(2, 1, "old"))])
    data = large(3, read(1, 5, epoch=6), store)
    store.objects.clear()
    applied = applier.apply([packed(2, opening(6)), data, packed(4, closing(6))])
    applied = applier.apply([packed(1, opening(6, lane=1), closing(6, lane=1), lane=1)])
    assert applied.swept == 1
    assert {key: row["n"] for key, row in target.tables.rows["public.t"].items()} == {(1,): "old"}


def test_nothing_is_put_aside_that_is_below_the_watermark(target: SimTarget, store: Store) -> None:
    """A shard that is read again may name objects that have expired since."""
    applier = with_claims(target, store)
    data = [large(1, upsert(1, 1, "a"), store), packed(2, upsert(1, 2, "b"))]
    applier.apply(data)
    store.objects.clear()
    applied = applier.apply(data)
    assert (applied.skipped, applied.dead_letters) == (1, 0)


def test_a_store_that_is_away_applies_nothing_and_loses_nothing(target: SimTarget, store: Store) -> None:
    applier = with_claims(target, store)
    data = [packed(1, upsert(2, 1, "b")), large(2, upsert(1, 2, "a"), store)]
    store.away = True
    with pytest.raises(TransientError):
        applier.apply(data)
    assert target.tables.rows == {}
    store.away = False
    assert applier.apply(data).dead_letters == 0
    assert sorted(target.tables.rows["public.t"]) == [(1,), (2,)]


def test_without_a_bucket_a_person_must_name_it(target: SimTarget, store: Store) -> None:
    with pytest.raises(OperatorError) as error:
        Applier("p", target, SimClock()).apply([large(1, upsert(1, 1), store)])
    assert error.value.code == "UW-CC-004"
    assert target.tables.lanes == {}


def test_claimed_rows_are_written_a_few_at_a_time(
    target: SimTarget, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    applier = with_claims(target, store)
    monkeypatch.setattr(incoming_module, "CLAIMED_BYTES_MAX", 250)
    held: list[int] = []
    commit = target._commit

    def counted(after: Tables) -> None:
        held.append(len(store.got))
        commit(after)

    monkeypatch.setattr(target, "_commit", counted)
    data = [large(seq, upsert(seq, seq, "x" * 80), store) for seq in range(1, 6)] + [packed(6, upsert(6, 6))]
    assert applier.apply(data).events == 6
    assert held == [2, 4, 5]
    assert len(target.tables.rows["public.t"]) == 6
