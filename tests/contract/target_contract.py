"""What every ports.Target must do. A database's own test class inherits this and says how to look into its tables."""

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pytest

from upwell.errors import Rejected, UniqueConflict
from upwell.model import Column, DeadLetter, Kind, TableSchema, Value, pack_version
from upwell.ports import LaneState, Request, ResyncState, ShardCheckpoints, Target

PIPELINE = "shop"
END_S = 20.0
USERS = TableSchema(
    "public.users",
    (Column("id", "integer", Kind.INT), Column("email", "text", Kind.TEXT), Column("note", "text", Kind.TEXT)),
    ("id",),
    "postgresql",
)
NOTELESS = USERS.without(frozenset({"note"}))
MAILLESS = USERS.without(frozenset({"email"}))


class TargetContract(ABC):
    """`target` is a fixture of the class that inherits."""

    @abstractmethod
    def rows(self, database: str, table: str) -> list[tuple[Any, ...]]:
        """The rows of public.TABLE, in the order of their first column."""

    @abstractmethod
    def make_unique(self, database: str, table: str, column: str) -> None:
        """A unique index on the column."""

    @abstractmethod
    def letters(self, database: str) -> list[bytes]:
        """The payloads of all dead letters."""

    @abstractmethod
    def checkpoints(self, target: Target) -> ShardCheckpoints:
        """The target's checkpoints."""

    # ---- rows ----

    def test_an_upsert_inserts_changes_and_leaves_the_others(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[1, "a", None], [2, "b", "two"]])
        upsert(target, USERS, [[2, None, "new"], [3, "c", ""]])
        assert self.rows(database, "users") == [(1, "a", None), (2, None, "new"), (3, "c", "")]

    def test_the_same_rows_again_change_nothing(self, target: Target, database: str) -> None:
        for _ in range(2):
            upsert(target, USERS, [[1, "a", None]])
        assert self.rows(database, "users") == [(1, "a", None)]

    def test_a_delete_removes_and_forgives_what_is_not_there(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[1, "a", None], [2, "b", None]])
        with target.begin() as txn:
            txn.delete(USERS, [[1], [7]])
            txn.delete(USERS, [])
        assert self.rows(database, "users") == [(2, "b", None)]

    def test_a_partial_upsert_changes_what_exists_and_only_its_columns(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[1, "a", "kept"]])
        upsert(target, NOTELESS, [[1, "changed"], [2, "skipped"]])
        assert self.rows(database, "users") == [(1, "changed", "kept")]

    def test_several_writes_of_one_transaction_see_each_other(self, target: Target, database: str) -> None:
        with target.begin() as txn:
            txn.ensure_table(USERS)
            txn.upsert(USERS, [[1, "a", "one"], [2, "b", None]])
            txn.upsert(MAILLESS, [[1, "uno"]])
            txn.delete(USERS, [[2]])
            txn.upsert(USERS, [[3, "c", None]])
            txn.delete(USERS, [[4]])
        assert self.rows(database, "users") == [(1, "a", "uno"), (3, "c", None)]

    def test_an_error_in_the_block_undoes_all_of_it_tables_included(self, target: Target, database: str) -> None:
        def fail() -> None:
            with target.begin() as txn:
                txn.upsert(USERS, [[1, "a", None]])
                raise ZeroDivisionError

        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                fail()
        upsert(target, USERS, [[2, "b", None]])
        assert self.rows(database, "users") == [(2, "b", None)]

    def test_a_refused_write_is_undone_alone(self, target: Target, database: str) -> None:
        with target.begin() as txn:
            txn.upsert(USERS, [[1, "a", None]])
            unfit: list[list[Value]] = [[2, "b\0", None], ["no number", "c", None]]
            for row in unfit:
                with pytest.raises(Rejected) as raised:
                    txn.upsert(USERS, [row])
                assert "no number" not in str(raised.value)
                txn.upsert(USERS, [[3, "c", None]])
            with pytest.raises(Rejected):
                txn.delete(USERS, [["no number"], [1]])
        assert self.rows(database, "users") == [(1, "a", None), (3, "c", None)]

    def test_of_many_rows_those_refused_are_told_and_the_others_written_or_none_is(
        self, target: Target, database: str
    ) -> None:
        unfit: list[list[Value]] = [[2, "b\0", None], ["no number", "c", None]]
        with target.begin() as txn:
            for number, row in enumerate(unfit):
                try:
                    refused = txn.upsert(USERS, [[10 + number, "fine", None], row, [20 + number, "fine", None]])
                except Rejected:
                    refused = {}
                    txn.upsert(USERS, [[10 + number, "fine", None], [20 + number, "fine", None]])
                assert refused.keys() <= {1}
                assert "no number" not in "".join(map(str, refused.values()))
        assert self.rows(database, "users") == [(number, "fine", None) for number in (10, 11, 20, 21)]

    def test_a_row_of_another_length_is_refused(self, target: Target, database: str) -> None:
        with target.begin() as txn:
            txn.ensure_table(USERS)
            rows: list[list[Value]] = [[1, "a"], [1, "a", "b", "c"]]
            for row in rows:
                with pytest.raises(Rejected):
                    txn.upsert(USERS, [row])
        assert self.rows(database, "users") == []

    # ---- unique values ----

    def test_two_rows_swap_a_unique_value(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[1, "a", "x"], [2, "b", "y"]])
        self.make_unique(database, "users", "email")
        with target.begin() as txn:
            with pytest.raises(UniqueConflict):
                txn.upsert(USERS, [[1, "b", "x"], [2, "a", "y"]])
            txn.replace(USERS, [[1, "b", "x"], [2, "a", "y"]])
        assert self.rows(database, "users") == [(1, "b", "x"), (2, "a", "y")]

    def test_a_row_that_made_way_is_replaced_by_its_own_change(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[1, "a", "x"], [2, "b", "y"]])
        self.make_unique(database, "users", "email")
        put(target, USERS, [[1, "b", "x"]])
        assert self.rows(database, "users") == [(1, "b", "x")]
        put(target, USERS, [[2, "a", "new"]])
        assert self.rows(database, "users") == [(1, "b", "x"), (2, "a", "new")]

    def test_a_row_that_made_way_keeps_what_a_partial_change_lacks(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[1, "a", "x"], [2, "b", "y"]])
        self.make_unique(database, "users", "email")
        put(target, NOTELESS, [[1, "b"]])
        assert self.rows(database, "users") == [(1, "b", "x")]
        put(target, NOTELESS, [[2, "c"]])
        assert self.rows(database, "users") == [(1, "b", "x"), (2, "c", "y")]

    def test_a_row_that_made_way_and_is_then_deleted_stays_away(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[1, "a", "x"], [2, "b", "y"]])
        self.make_unique(database, "users", "email")
        put(target, USERS, [[1, "b", "x"]])
        with target.begin() as txn:
            txn.delete(USERS, [[2]])
        put(target, NOTELESS, [[2, "z"]])
        with target.begin() as txn:
            txn.delete(USERS, [[1]])
        assert self.rows(database, "users") == []

    def test_a_row_that_made_way_for_an_older_one_comes_back(self, target: Target, database: str) -> None:
        """The other lane lags: what it brings is overtaken by its own next change, not by one of the row's."""
        upsert(target, USERS, [[1, "a", "newest"]])
        self.make_unique(database, "users", "email")
        put(target, USERS, [[2, "a", "old"]])
        assert self.rows(database, "users") == [(2, "a", "old")]
        put(target, USERS, [[2, "b", "new"]])
        assert self.rows(database, "users") == [(1, "a", "newest"), (2, "b", "new")]
        put(target, USERS, [[3, "b", "older"]])
        with target.begin() as txn:
            txn.delete(USERS, [[3]])
        assert self.rows(database, "users") == [(1, "a", "newest"), (2, "b", "new")]

    def test_rows_of_one_batch_that_want_one_unique_value(self, target: Target, database: str) -> None:
        """Two lanes at different points of time: whichever row waits comes back when the other has moved on."""
        upsert(target, USERS, [[9, "z", None]])
        self.make_unique(database, "users", "email")
        put(target, USERS, [[1, "a", "x"], [2, "a", "y"]])
        assert len(self.rows(database, "users")) == 2
        put(target, USERS, [[1, "b", "x"]])
        assert self.rows(database, "users") == [(1, "b", "x"), (2, "a", "y"), (9, "z", None)]

    def test_random_swaps_over_lanes_end_as_the_source(self, target: Target, database: str) -> None:
        """10,000 unique swaps as net changes, each row's changes in order, rows in any order against each other."""
        chance = random.Random(7)
        source = {number: f"value {number}" for number in range(60)}
        upsert(target, USERS, [[number, value, f"note {number}"] for number, value in source.items()])
        self.make_unique(database, "users", "email")
        pending: list[list[list[Value]]] = [[] for _ in range(4)]  # by lane
        for _ in range(10_000):
            one, other = chance.sample(sorted(source), 2)
            source[one], source[other] = source[other], source[one]
            for number in (one, other):
                pending[number % 4].append([number, source[number]])
        while any(pending):
            lane = chance.choice([lane for lane in pending if lane])
            taken = chance.randint(1, 150)
            newest = {row[0]: row for row in lane[:taken]}
            del lane[:taken]
            batch = [newest[number] for number in sorted(newest, key=str)]
            if chance.random() < 0.5:
                put(target, USERS, [[*row, f"note {row[0]}"] for row in batch])
            else:
                put(target, NOTELESS, batch)
        assert self.rows(database, "users") == [
            (number, value, f"note {number}") for number, value in sorted(source.items())
        ]

    # ---- lanes ----

    def test_lanes_begin_at_nothing_and_keep_what_is_saved(self, target: Target, database: str) -> None:
        state = LaneState(pack_version(3, 2**63 + 5, 7), 1_700_000_000, 2**40, {'public."x"': 1_700_000_001})
        with target.begin() as txn:
            assert txn.lock_lanes(PIPELINE, [5, 3, 5]) == {3: LaneState(), 5: LaneState()}
            txn.save_lanes(PIPELINE, {3: state})
            txn.save_lanes(PIPELINE, {})
        with target.begin() as txn:
            assert txn.lock_lanes(PIPELINE, [3, 4, 5]) == {3: state, 4: LaneState(), 5: LaneState()}
            assert txn.lock_lanes("another", [3]) == {3: LaneState()}
            assert txn.lock_lanes(PIPELINE, []) == {}

    def test_a_locked_lane_is_seen_as_the_holder_left_it(self, target: Target, database: str) -> None:
        """Four threads add to the same lanes: as each sees what the one before left, no addition is lost."""

        def add() -> None:
            for _ in range(25):
                with target.begin() as txn:
                    states = txn.lock_lanes(PIPELINE, [2, 1])
                    for state in states.values():
                        state.seq += 1
                    txn.save_lanes(PIPELINE, states)

        in_threads(*[add] * 4)
        with target.begin() as txn:
            assert [state.seq for state in txn.lock_lanes(PIPELINE, [1, 2]).values()] == [100, 100]

    def test_a_refused_write_gives_up_no_lock_and_no_bookkeeping(self, target: Target, database: str) -> None:
        """Four threads count in a lane and in a resync, and write something that is refused before they save it."""
        upsert(target, USERS, [[0, None, None]])

        def add() -> None:
            for _ in range(10):
                with target.begin() as txn:
                    lanes = txn.lock_lanes(PIPELINE, [1])
                    resyncs = txn.lock_resyncs(PIPELINE, [], ["public.users"])
                    state = resyncs.get("public.users", ResyncState(1, True))
                    txn.save_resync(PIPELINE, "public.users", ResyncState(1, True, state.closed | {len(state.closed)}))
                    with pytest.raises(Rejected):
                        txn.upsert(USERS, [["no number", None, None]])
                    lanes[1].seq += 1
                    txn.save_lanes(PIPELINE, lanes)

        in_threads(*[add] * 4)
        with target.begin() as txn:
            assert txn.lock_lanes(PIPELINE, [1])[1].seq == 40
            assert txn.lock_resyncs(PIPELINE, ["public.users"], [])["public.users"].closed == set(range(40))

    # ---- resyncs ----

    def test_notes_count_where_the_first_one_was_refused(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[number, None, None] for number in range(3)])
        with target.begin() as txn:
            txn.note(PIPELINE, USERS, 5, [["no number"]])
            txn.note(PIPELINE, USERS, 5, [[1]])
        with target.begin(), target.begin() as other:  # what another connection notes counts as well
            other.note(PIPELINE, USERS, 5, [[2]])
        with target.begin() as txn:
            assert txn.sweep(PIPELINE, USERS, 5) == 1
        assert self.rows(database, "users") == [(1, None, None), (2, None, None)]

    def test_a_resync_is_kept(self, target: Target, database: str) -> None:
        with target.begin() as txn:
            assert txn.lock_resyncs(PIPELINE, ["public.a"], ["public.b"]) == {}
            txn.save_resync(PIPELINE, "public.b", ResyncState(1_700_000_000, True, {3, 1}))
        with target.begin() as txn:
            assert txn.lock_resyncs(PIPELINE, ["public.a", "public.b"], []) == {
                "public.b": ResyncState(1_700_000_000, True, {1, 3})
            }
            assert txn.lock_resyncs("another", [], ["public.b"]) == {}
            assert txn.lock_resyncs(PIPELINE, [], []) == {}

    def test_a_sweep_removes_what_was_not_noted(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[number, None, None] for number in range(6)])
        with target.begin() as txn:
            txn.note(PIPELINE, USERS, 5, [[1], [2]])
            txn.note(PIPELINE, USERS, 5, [[2], ["no number"], [4]])
            txn.note("another", USERS, 5, [[3]])
            txn.note(PIPELINE, USERS, 4, [[0]])
        with target.begin() as txn:
            assert txn.sweep(PIPELINE, USERS, 5) == 3
        assert self.rows(database, "users") == [(number, None, None) for number in (1, 2, 4)]
        with target.begin() as txn:
            assert txn.sweep(PIPELINE, USERS, 6) == 3

    def test_a_newer_resync_does_not_count_the_notes_of_an_older_one(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[1, None, None], [2, None, None]])
        with target.begin() as txn:
            txn.save_resync(PIPELINE, "public.users", ResyncState(5, True))
            txn.note(PIPELINE, USERS, 5, [[1]])
            txn.save_resync(PIPELINE, "public.users", ResyncState(6, True))
            txn.note(PIPELINE, USERS, 6, [[2]])
            assert txn.sweep(PIPELINE, USERS, 6) == 1
        assert self.rows(database, "users") == [(2, None, None)]

    def test_a_sweep_of_a_table_of_which_no_event_came_creates_it(self, target: Target, database: str) -> None:
        with target.begin() as txn:
            txn.ensure_table(USERS)
            assert txn.sweep(PIPELINE, USERS, 1) == 0
        assert self.rows(database, "users") == []

    def test_a_sweep_forgets_rows_that_made_way(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[1, "a", None], [2, "b", None], [3, "c", None]])
        self.make_unique(database, "users", "email")
        put(target, USERS, [[1, "b", None]])  # 2 makes way
        put(target, USERS, [[4, "c", None]])  # 3 makes way
        with target.begin() as txn:
            txn.note(PIPELINE, USERS, 1, [[3]])
            assert txn.sweep(PIPELINE, USERS, 1) == 2
        assert self.rows(database, "users") == [(3, "c", None)]

    def test_a_sweep_waits_for_a_note_under_way(self, target: Target, database: str) -> None:
        upsert(target, USERS, [[1, None, None]])
        with target.begin() as txn:
            txn.save_resync(PIPELINE, "public.users", ResyncState(1, True))
        noting, swept = threading.Event(), []

        def sweep() -> None:
            assert noting.wait(END_S)
            with target.begin() as txn:
                assert txn.lock_resyncs(PIPELINE, [], ["public.users"])
                swept.append(txn.sweep(PIPELINE, USERS, 1))

        def note() -> None:
            with target.begin() as txn:
                assert txn.lock_resyncs(PIPELINE, ["public.users"], [])
                with target.begin() as other:  # shared locks don't exclude each other
                    assert other.lock_resyncs(PIPELINE, ["public.users"], [])
                noting.set()
                txn.upsert(USERS, [[2, None, None]])
                txn.note(PIPELINE, USERS, 1, [[2]])
                assert not swept

        in_threads(sweep, note)
        assert swept == [1]
        assert self.rows(database, "users") == [(2, None, None)]

    # ---- what is put aside ----

    def test_equal_dead_letters_are_kept_once(self, target: Target, database: str) -> None:
        letter = DeadLetter(0, "public.users", '["a\\u0000"]', "00ff", "refused \0 so", "2026-01-31T10:00:00Z", b"\0p")
        with target.begin() as txn:
            txn.add_dead_letters(PIPELINE, [letter, letter])
        with target.begin() as txn:
            txn.add_dead_letters(PIPELINE, [letter])
            txn.ask_repair(PIPELINE, Request("holes-1", None, "why"))
            txn.ask_repair(PIPELINE, Request("holes-1", None, "why"))
        assert self.letters(database) == [b"\0p"]

    def test_records_that_can_not_be_read_are_all_kept(self, target: Target, database: str) -> None:
        """There is nothing to tell them apart by but what they hold."""
        with target.begin() as txn:
            txn.add_dead_letters(PIPELINE, [unreadable(b"one"), unreadable(b"two"), unreadable(b"one")])
        with target.begin() as txn:
            txn.add_dead_letters(PIPELINE, [unreadable(b"two"), unreadable(b"three")])
        assert sorted(self.letters(database)) == [b"one", b"three", b"two"]

    def test_shard_checkpoints_are_kept(self, target: Target, database: str) -> None:
        checkpoints = self.checkpoints(target)
        assert checkpoints.load("stream") == {}
        checkpoints.save("stream", "shard-1", "4957")
        checkpoints.save("stream", "shard-1", "4958")
        checkpoints.save("stream", "shard-2", None)
        checkpoints.save("other", "shard-1", "1")
        assert checkpoints.load("stream") == {"shard-1": "4958", "shard-2": None}


def unreadable(payload: bytes) -> DeadLetter:
    """A record that is none of ours, as the applier puts it aside."""
    return DeadLetter(0, "", "", "", "it can't be read", "2026-01-31T10:00:00Z", payload)


def upsert(target: Target, schema: TableSchema, rows: Sequence[Sequence[Value]]) -> None:
    with target.begin() as txn:
        txn.ensure_table(schema)
        txn.upsert(schema, rows)


def put(target: Target, schema: TableSchema, rows: Sequence[Sequence[Value]]) -> None:
    """As the applier does."""
    with target.begin() as txn:
        try:
            txn.upsert(schema, rows)
        except UniqueConflict:
            txn.replace(schema, rows)


def in_threads(*work: Any) -> None:
    """Run them at once; raises what the first of them raised."""
    errors: list[BaseException] = []

    def run(each: Any) -> None:
        try:
            each()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(END_S * 3)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
