"""Which rows of a chunk go out: those that say what the stream has said so far."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.model import UPSERT, ChangeEvent, Chunk, Column, Kind, TableSchema, pack_version
from upwell.pipeline import snapshot
from upwell.pipeline.snapshot import DeliveredKeys, rows_to_send

SCHEMA = TableSchema("main.t", (Column("id", "int", Kind.INT), Column("v", "int", Kind.INT)), ("id",), "sqlite")
OTHER = TableSchema("main.other", SCHEMA.columns, ("id",), "sqlite")
PARTIAL = SCHEMA.without(frozenset({"v"}))
TABLES = frozenset({"main.t"})


def event(id_: int, transaction: int, schema: TableSchema = SCHEMA) -> ChangeEvent:
    key = b"[%d]" % id_
    return ChangeEvent(schema, UPSERT, pack_version(1, transaction, 0), "", key, key, "update", transaction)


def chunk(ids: list[int], seen: set[int]) -> Chunk:
    return Chunk(SCHEMA, [(b"[%d]" % id_, b"row") for id_ in ids], None, 1, seen.__contains__, "")


def ids(rows: object) -> list[int] | None:
    return None if rows is None else [int(key[1:-1]) for key, _ in rows]  # type: ignore[attr-defined]


def test_keys_that_a_delivered_transaction_touched_unseen_by_the_chunk_are_left_out() -> None:
    delivered = DeliveredKeys()
    delivered.remember([event(1, 10), event(2, 11), event(3, 11, OTHER)], TABLES)
    assert ids(rows_to_send(chunk([1, 2, 3], {10}), delivered)) == [1, 3]
    assert ids(rows_to_send(chunk([1, 2, 3], {10, 11}), delivered)) == [1, 2, 3]


def test_a_partial_event_can_not_stand_for_the_row() -> None:
    delivered = DeliveredKeys()
    delivered.remember([event(1, 10, PARTIAL)], TABLES)
    assert rows_to_send(chunk([1, 2], set()), delivered) is None
    assert ids(rows_to_send(chunk([2], set()), delivered)) == [2]
    assert ids(rows_to_send(chunk([1, 2], {10}), delivered)) == [1, 2]


def test_a_whole_row_after_a_partial_event_stands_for_it() -> None:
    delivered = DeliveredKeys()
    delivered.remember([event(1, 10, PARTIAL), event(1, 11)], TABLES)
    assert ids(rows_to_send(chunk([1, 2], set()), delivered)) == [2]


def test_what_a_chunk_contains_is_forgotten() -> None:
    delivered = DeliveredKeys()
    delivered.remember([event(1, 10), event(1, 11)], TABLES)
    delivered.forget_contained(chunk([], {10}))
    assert delivered.newer_than(chunk([], set())) == {b"[1]": False}
    delivered.forget_contained(chunk([], {11}))
    assert delivered.newer_than(chunk([], set())) == {}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "TOUCHED_KEYS_MAX", 2)
    delivered = DeliveredKeys()
    delivered.remember([event(1, 10)] * 100, TABLES)
    assert delivered._count == 1, "a key counts once in a transaction"
    delivered.remember([event(2, 10), event(3, 10)], TABLES)
    assert delivered.overflowed
    delivered.clear()
    delivered.remember([event(1, 10)], TABLES)
    assert delivered.newer_than(chunk([], set())) == {b"[1]": False}


def test_long_keys_fill_the_memory_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "TOUCHED_BYTES_MAX", 10)
    delivered = DeliveredKeys()
    found = []
    delivered.remember([event(1_000_000, 10)] * 3, TABLES)  # 9 bytes
    found.append(delivered.overflowed)
    delivered.remember([event(1, 11)], TABLES)
    found.append(delivered.overflowed)
    delivered.forget_contained(chunk([], {10}))
    found.append(delivered.overflowed)
    assert found == [False, True, False]


@given(st.randoms(use_true_random=False))
def test_counting_follows_what_is_remembered(rng: random.Random) -> None:
    delivered = DeliveredKeys()
    kept: dict[int, set[int]] = {}
    for _ in range(50):
        if rng.random() < 0.7:
            id_, transaction = rng.randrange(5), rng.randrange(5)
            delivered.remember([event(id_, transaction)], TABLES)
            kept.setdefault(transaction, set()).add(id_)
        else:
            seen = {rng.randrange(5) for _ in range(2)}
            delivered.forget_contained(chunk([], seen))
            kept = {transaction: keys for transaction, keys in kept.items() if transaction not in seen}
        newer = {b"[%d]" % id_ for keys in kept.values() for id_ in keys}
        assert delivered.newer_than(chunk([], set())).keys() == newer
        assert delivered._count == sum(map(len, kept.values()))
