"""What every ports.StateStore must do. A store's own test class inherits this and says how to make one."""

from abc import ABC, abstractmethod
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upwell.errors import LeaseLost
from upwell.model import (
    Checkpoint,
    Column,
    DeadLetter,
    Kind,
    Lease,
    Position,
    TablePhase,
    TableProgress,
    TableSchema,
)
from upwell.ports import StateStore

NOW = 1_800_000_000.0

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(0, 2**63 - 1)
SCHEMAS = st.builds(
    TableSchema,
    table=TEXTS,
    columns=st.lists(
        st.builds(Column, TEXTS, TEXTS, st.sampled_from(list(Kind)), st.booleans()), min_size=1, max_size=4
    ).map(tuple),
    key=st.lists(TEXTS, max_size=3).map(tuple),
    dialect=st.sampled_from(["sqlite", "postgresql"]),
    target=st.none() | TEXTS,
    partial=st.booleans(),
)
PROGRESS = st.builds(
    TableProgress,
    phase=st.sampled_from(list(TablePhase)),
    resync=NUMBERS,
    opened=st.booleans(),
    cursor=st.none() | TEXTS,
    rows=NUMBERS,
    estimate=st.none() | NUMBERS,
    reason=TEXTS,
    wanted=TEXTS,
)
CHECKPOINTS = st.builds(
    Checkpoint,
    epoch=st.integers(0, 2**32 - 1),
    term=NUMBERS,
    position=st.none() | TEXTS,
    commit=st.integers(0, 2**64 - 1),
    lanes=st.dictionaries(st.integers(0, 1023), st.tuples(NUMBERS, NUMBERS), max_size=5),
    tables=st.dictionaries(TEXTS, PROGRESS, max_size=3),
    schemas=st.dictionaries(TEXTS, SCHEMAS, max_size=3),
)

LETTER = DeadLetter(0, "main.item", "[1]", "0" * 32, "too large", "2026-01-31T10:00:00.000000Z", b"payload\x00\xff")


class StateContract(ABC):
    """`make` gives a store of the same place each time; what it made is closed after the test."""

    @abstractmethod
    def make(self) -> StateStore:
        """A store of the pipeline's state, as another process would make it."""

    def test_at_first_there_is_nothing(self) -> None:
        store = self.make()
        store.acquire(NOW)
        assert store.load() is None
        assert list(store.requests()) == []

    # The store is the same for all examples: what was saved before must not shine through.
    @settings(max_examples=50)
    @given(checkpoints=st.lists(CHECKPOINTS, min_size=1, max_size=3))
    def test_a_checkpoint_comes_back_without_loss(self, checkpoints: list[Checkpoint]) -> None:
        store = self.make()
        lease = store.acquire(NOW)
        for checkpoint in checkpoints:
            store.save(checkpoint, lease)
            assert store.load() == checkpoint
        store.release()
        assert self.make().load() == checkpoints[-1]

    def test_terms_rise_with_each_start(self) -> None:
        terms = []
        for _ in range(3):
            store = self.make()
            terms.append(store.acquire(NOW).term)
            store.release()
        assert terms == sorted(set(terms))

    def test_terms_are_never_below_the_clock_nor_below_earlier_ones(self) -> None:
        """A lost or restored state can't bring back a term that was used."""
        terms = []
        for now in (NOW, NOW + 100, NOW - 5000):
            store = self.make()
            terms.append(store.acquire(now).term)
            store.release()
        assert terms == sorted(set(terms))
        assert terms[0] >= NOW * 1_000_000
        assert terms[1] >= (NOW + 100) * 1_000_000
        assert max(terms) < 2**53, "a reader of JSON can't hold it"

    def test_there_is_one_publisher_at_a_time(self) -> None:
        first, second = self.make(), self.make()
        lease = first.acquire(NOW)
        with pytest.raises(LeaseLost):
            second.acquire(NOW)
        first.save(Checkpoint(1, lease.term), lease)
        first.release()
        assert second.acquire(NOW).term > lease.term

    def test_who_has_lost_the_lease_saves_nothing(self) -> None:
        first, second = self.make(), self.make()
        old = first.acquire(NOW)
        first.save(Checkpoint(1, old.term, Position("old")), old)
        first.release()
        new = second.acquire(NOW)
        with pytest.raises(LeaseLost):
            first.save(Checkpoint(2, old.term, Position("zombie")), old)
        with pytest.raises(LeaseLost):
            second.save(Checkpoint(2, old.term, Position("zombie")), Lease(old.term, new.holder))
        kept = second.load()
        assert kept is not None
        assert kept.position == "old"

    def test_what_was_saved_is_seen_by_the_next(self) -> None:
        first = self.make()
        lease = first.acquire(NOW)
        first.save(Checkpoint(7, lease.term, Position("p")), lease)
        first.add_dead_letters([LETTER])
        first.put_status({"phase": "stream", "lag_s": 0.5})
        first.release()
        second = self.make()
        second.acquire(NOW)
        kept = second.load()
        assert kept is not None
        assert kept.position == "p"

    def test_equal_dead_letters_are_kept_once(self) -> None:
        store = self.make()
        store.acquire(NOW)
        store.add_dead_letters([LETTER, LETTER])
        store.add_dead_letters([replace(LETTER, reason="again"), replace(LETTER, key="[2]")])
        store.add_dead_letters([])
        assert self.count_dead_letters(store) == 2

    @abstractmethod
    def count_dead_letters(self, store: StateStore) -> int:
        """How many are kept."""

    def test_releasing_twice_is_no_error(self) -> None:
        store = self.make()
        store.release()
        store.acquire(NOW)
        store.release()
        store.release()
