"""What every ports.Source must do. A database's own test class inherits this and says how to write to its tables.

`replica` consumes windows and chunks by the rule of docs/delivery.md, as the publisher does, into a dict.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from upwell.model import (
    HIGHEST_ORDINAL,
    Chunk,
    Cursor,
    Position,
    TableSchema,
    Version,
    Window,
    pack_version,
    unpack_version,
)
from upwell.ports import Source

EPOCH = 1_700_000_000

CREATE_ITEMS = "CREATE TABLE item (id integer PRIMARY KEY, name text, qty integer)"
CREATE_PAIRS = "CREATE TABLE pair (a text NOT NULL, b integer NOT NULL, note text, PRIMARY KEY (a, b))"

Rows = dict[bytes, list[Any]]


@dataclass
class Replica:
    """A target in a dict: what a reader of it would see, and whether a row ever went back in time."""

    source: Source
    position: Position
    commit: int
    settle_s: float  # a window that waited so long for an event and has none: there is none
    rows: dict[str, Rows] = field(default_factory=dict)
    versions: dict[tuple[str, bytes], Version] = field(default_factory=dict)
    delivered: list[tuple[int, str, bytes]] = field(default_factory=list)
    last: Version = b""
    windows: list[Window] = field(default_factory=list)

    def take_window(self, limit: int = 1000, wait_s: float = 0.0) -> Window:
        """Read a window and apply it."""
        window = self.source.changes(self.position, limit, wait_s)
        assert window.commit >= self.commit
        for event in window.events:
            assert event.version >= self.last, "versions never decrease"
            commit = unpack_version(event.version)[1]
            assert self.commit <= commit
            assert commit <= window.commit or not window.complete
            self.last = event.version
            self._apply(event.schema, event.key, event.row, event.version)
            self.delivered.append((event.transaction, event.schema.table, event.key))
        self.position, self.commit = window.position, window.commit
        self.windows.append(window)
        return window

    def take_all(self, limit: int = 1000) -> None:
        """Read windows until the source has nothing more to say."""
        for _ in range(10_000):
            window = self.take_window(limit, wait_s=self.settle_s)
            if not window.more and not window.events:
                return
        raise AssertionError("the source never ends")

    def apply_chunk(self, chunk: Chunk, limit: int = 1000) -> None:
        """Hold the chunk until the stream has come so far, drop what the stream has said newer, stamp the rest."""
        while not (self.commit >= chunk.commit and (not self.windows or self.windows[-1].complete)):
            self.take_window(limit, wait_s=self.settle_s)
        table = chunk.schema.table
        newer = {key for transaction, name, key in self.delivered if name == table and not chunk.contains(transaction)}
        version = pack_version(EPOCH, self.commit, HIGHEST_ORDINAL)
        for key, row in chunk.rows:
            if key not in newer:
                self._apply(chunk.schema, key, row, version)

    def snapshot(self, table: str, limit: int = 100) -> None:
        """Read all chunks of a table."""
        self.source.start_chunks()
        schema = next(s for s in self.source.tables() if s.table == table)
        cursor: Cursor | None = None
        for _ in range(10_000):
            chunk = self.source.chunk(schema, cursor, limit)
            if chunk is None:
                self.take_window(wait_s=self.settle_s)
                continue
            self.apply_chunk(chunk)
            cursor = chunk.cursor
            if cursor is None:
                return
        raise AssertionError("the snapshot never ends")

    def _apply(self, schema: TableSchema, key: bytes, row: bytes | None, version: Version) -> None:
        rows = self.rows.setdefault(schema.table, {})
        assert version >= self.versions.get((schema.table, key), b""), "a row went back in time"
        self.versions[schema.table, key] = version
        if row is None:
            rows.pop(key, None)
        else:
            values = orjson.loads(row)
            assert orjson.dumps([values[i] for i in schema.key_indexes]) == key
            rows[key] = values

    def of(self, table: str) -> list[list[Any]]:
        """The replica's rows of a table, by key."""
        rows = self.rows.get(table, {})
        return [rows[key] for key in sorted(rows)]


class SourceContract(ABC):
    """A database's test class gives `execute`, `make` and `name_of`, and closes after the test what it made."""

    settle_s = 0.2

    def replica(self, source: Source, position: Position | None = None) -> Replica:
        """Reads from the position, or from now on."""
        return Replica(source, *source.start(position, EPOCH), self.settle_s)

    @abstractmethod
    def execute(self, *statements: str) -> None:
        """Run them in one transaction and commit it."""

    @abstractmethod
    def execute_and_roll_back(self, *statements: str) -> None:
        """Run them in one transaction and roll it back."""

    @abstractmethod
    def make(self, *tables: str) -> Source:
        """A new source of these tables, with capture on; a later one reads the same database."""

    @abstractmethod
    def name_of(self, table: str) -> str:
        """The table as TableSchema.table has it."""

    @pytest.fixture
    def items(self) -> str:
        """The table `item`, empty."""
        self.execute(CREATE_ITEMS)
        return self.name_of("item")

    def test_tables_tell_columns_and_key(self, items: str) -> None:
        self.execute(CREATE_PAIRS)
        source = self.make("item", "pair")
        schemas = {schema.table: schema for schema in source.tables()}
        assert set(schemas) == {items, self.name_of("pair")}
        assert [c.name for c in schemas[items].columns] == ["id", "name", "qty"]
        assert [c.kind.value for c in schemas[items].columns] == ["int", "text", "int"]
        assert schemas[items].key == ("id",)
        assert schemas[self.name_of("pair")].key == ("a", "b")
        assert [s.table for s in source.tables()] == [s.table for s in source.tables()]

    def test_starts_from_now(self, items: str) -> None:
        self.execute("INSERT INTO item VALUES (1, 'before', 1)")
        replica = self.replica(self.make("item"))
        replica.take_all()
        assert replica.of(items) == []

    def test_inserts_updates_deletes_arrive(self, items: str) -> None:
        replica = self.replica(self.make("item"))
        self.execute("INSERT INTO item VALUES (1, 'a', 1), (2, 'b', NULL), (3, NULL, 3)")
        replica.take_all()
        assert replica.of(items) == [[1, "a", 1], [2, "b", None], [3, None, 3]]
        self.execute("UPDATE item SET name = 'B' WHERE id = 2", "DELETE FROM item WHERE id = 3")
        replica.take_all()
        assert replica.of(items) == [[1, "a", 1], [2, "B", None]]

    def test_a_changed_key_is_a_delete_and_an_upsert(self, items: str) -> None:
        replica = self.replica(self.make("item"))
        self.execute("INSERT INTO item VALUES (1, 'a', 1)")
        replica.take_all()
        self.execute("UPDATE item SET id = 7 WHERE id = 1")
        replica.take_all()
        assert replica.of(items) == [[7, "a", 1]]

    def test_deleted_and_inserted_again(self, items: str) -> None:
        replica = self.replica(self.make("item"))
        self.execute("INSERT INTO item VALUES (1, 'a', 1)")
        self.execute("DELETE FROM item", "INSERT INTO item VALUES (1, 'new', 2)")
        replica.take_all()
        assert replica.of(items) == [[1, "new", 2]]

    def test_what_rolls_back_never_arrives(self, items: str) -> None:
        replica = self.replica(self.make("item"))
        self.execute_and_roll_back("INSERT INTO item VALUES (1, 'never', 1)")
        self.execute("INSERT INTO item VALUES (2, 'b', 2)")
        replica.take_all()
        assert replica.of(items) == [[2, "b", 2]]
        assert all(event.key == b"[2]" for window in replica.windows for event in window.events)

    def test_a_window_of_nothing_ends_in_time(self, items: str) -> None:
        replica = self.replica(self.make("item"))
        replica.take_all()
        window = replica.take_window(wait_s=0.05)
        assert window.events == []
        assert window.complete

    def test_reads_on_from_any_position(self, items: str) -> None:
        replica = self.replica(self.make("item"))
        for n in range(30):
            self.execute(f"INSERT INTO item VALUES ({n}, 'x', {n})")
        replica.take_all(limit=4)
        assert len(replica.of(items)) == 30
        for window in replica.windows:
            again = self.replica(self.make("item"), window.position)
            again.take_all()
            seen = {event.key for event in window.events} | set(again.rows.get(items, {}))
            assert replica.rows[items].keys() >= seen
            missed = [w for w in replica.windows if w.commit > window.commit]
            assert {event.key for w in missed for event in w.events} <= set(again.rows.get(items, {}))

    def test_an_event_has_the_same_version_when_read_again(self, items: str) -> None:
        source = self.make("item")
        replica = self.replica(source)
        began = replica.position
        for n in range(20):
            self.execute(f"INSERT INTO item VALUES ({n}, 'x', {n})")
        replica.take_all(limit=7)
        again = self.replica(self.make("item"), began)
        again.take_all(limit=3)
        assert again.versions == replica.versions

    def test_small_windows_say_that_there_is_more(self, items: str) -> None:
        replica = self.replica(self.make("item"))
        replica.take_all()
        for n in range(10):
            self.execute(f"INSERT INTO item VALUES ({n}, 'x', {n})")
        seen = 0
        while replica.take_window(limit=3, wait_s=5.0).more:
            seen += 1
            assert seen < 50
        replica.take_all()
        assert len(replica.of(items)) == 10

    def test_head_is_reached_by_the_windows(self, items: str) -> None:
        source = self.make("item")
        replica = self.replica(source)
        self.execute("INSERT INTO item VALUES (1, 'a', 1)")
        head = source.head()
        assert head >= replica.commit
        for _ in range(50):
            if replica.commit >= head:
                break
            replica.take_window(limit=1, wait_s=0.2)
        assert replica.commit >= head
        assert replica.of(items) == [[1, "a", 1]]

    def test_only_configured_tables_are_read(self, items: str) -> None:
        self.execute(CREATE_PAIRS)
        replica = self.replica(self.make("item"))
        self.execute("INSERT INTO pair VALUES ('a', 1, 'x')", "INSERT INTO item VALUES (1, 'a', 1)")
        replica.take_all()
        assert set(replica.rows) == {items}

    @pytest.mark.parametrize("limit", [1, 3, 100])
    def test_a_snapshot_reads_every_row_once(self, items: str, limit: int) -> None:
        self.execute("INSERT INTO item VALUES " + ", ".join(f"({n * 3 - 10}, 'x{n}', {n})" for n in range(7)))
        replica = self.replica(self.make("item"))
        replica.snapshot(items, limit)
        assert sorted(row[0] for row in replica.of(items)) == [n * 3 - 10 for n in range(7)]

    def test_a_snapshot_of_composite_text_keys(self, items: str) -> None:
        self.execute(CREATE_PAIRS)
        keys = [(a, b) for a in ("", "A", "a", "b", "Ä", "ä", "z z", "日本", "🙂", "''") for b in (-1, 0, 9_000_000)]
        values = ", ".join("('{}', {}, 'n')".format(a.replace("'", "''"), b) for a, b in keys)
        self.execute(f"INSERT INTO pair VALUES {values}")
        replica = self.replica(self.make("pair"))
        replica.snapshot(self.name_of("pair"), 4)
        assert {(row[0], row[1]) for row in replica.of(self.name_of("pair"))} == set(keys)

    def test_snapshot_and_stream_give_the_same_bytes(self, items: str) -> None:
        source = self.make("item")
        replica = self.replica(source)
        self.execute("INSERT INTO item VALUES (1, 'ä\"\\/\n🙂', -5), (2, '', NULL), (3, '\u2028', 2147483647)")
        replica.take_all()
        streamed = {e.key: e.row for w in replica.windows for e in w.events}
        chunk = wait_for_chunk(replica, source.tables()[0])
        assert dict(chunk.rows) == streamed

    def test_changes_beside_a_snapshot(self, items: str) -> None:
        """The chunk is read before, between and after changes that have been delivered, or not yet."""
        self.execute("INSERT INTO item VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)")
        source = self.make("item")
        replica = self.replica(source)
        source.start_chunks()
        self.execute("UPDATE item SET qty = 10 WHERE id = 1")
        chunk = wait_for_chunk(replica, source.tables()[0])
        self.execute("UPDATE item SET qty = 20 WHERE id = 1", "DELETE FROM item WHERE id = 2")
        replica.take_all(limit=1)  # beyond the chunk: what it says of 1 and 2 is old
        replica.apply_chunk(chunk)
        replica.take_all()
        assert replica.of(items) == [[1, "a", 20], [3, "c", 3]]

    def test_a_row_never_goes_back_in_time(self, items: str) -> None:
        """The row's number only rises; the replica must never see it fall, whatever is read when."""
        self.execute("INSERT INTO item VALUES (1, 'a', 0)")
        source = self.make("item")
        replica = self.replica(source)
        source.start_chunks()
        seen: list[int] = []
        for n in range(1, 13):
            self.execute(f"UPDATE item SET qty = {3 * n} WHERE id = 1")
            chunk = wait_for_chunk(replica, source.tables()[0]) if n % 3 == 0 else None
            self.execute(f"UPDATE item SET qty = {3 * n + 1} WHERE id = 1")
            replica.take_window(limit=1, wait_s=0.05)
            seen += [row[2] for row in replica.of(items)]
            if chunk is not None:
                replica.apply_chunk(chunk, limit=1)
                seen += [row[2] for row in replica.of(items)]
        replica.take_all()
        seen += [row[2] for row in replica.of(items)]
        assert seen == sorted(seen)
        assert seen[-1] == 37

    def test_confirm_and_go_on(self, items: str) -> None:
        source = self.make("item")
        replica = self.replica(source)
        for n in range(5):
            self.execute(f"INSERT INTO item VALUES ({n}, 'x', {n})")
            replica.take_all()
            source.confirm(replica.position)
        again = self.replica(self.make("item"), replica.position)
        self.execute("INSERT INTO item VALUES (100, 'y', 1)")
        again.take_all()
        assert [100, "y", 1] in again.of(items)

    def test_a_new_column_is_told_before_its_values(self, items: str) -> None:
        replica = self.replica(self.make("item"))
        self.execute("INSERT INTO item VALUES (1, 'a', 1)")
        replica.take_all()
        self.execute("ALTER TABLE item ADD COLUMN extra text")
        self.execute("INSERT INTO item VALUES (2, 'b', 2, 'new')")
        replica.take_all()
        told = [s for w in replica.windows for s in w.schemas if s.table == items]
        assert [c.name for c in told[-1].columns] == ["id", "name", "qty", "extra"]
        assert replica.rows[items][b"[2]"] == [2, "b", 2, "new"]

    def test_estimate_and_health_are_cheap_facts(self, items: str) -> None:
        source = self.make("item")
        self.replica(source)
        estimate = source.estimate(items)
        assert estimate is None or estimate >= 0
        assert orjson.dumps(dict(source.health()))

    def test_closing_twice_is_no_error(self, items: str) -> None:
        source = self.make("item")
        self.replica(source)
        source.close()
        source.close()


def wait_for_chunk(replica: Replica, schema: TableSchema) -> Chunk:
    """The table's first chunk, as soon as the source can read it."""
    for _ in range(200):
        chunk = replica.source.chunk(schema, None, 1000)
        if chunk is not None:
            return chunk
        replica.take_window(wait_s=replica.settle_s)
    raise AssertionError("the source never reads a chunk")
