"""Random statements against real tables; whatever is read when, the replica ends as the database is."""

import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import orjson
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.contract.source_contract import EPOCH, Replica
from upwell.clock import SystemClock
from upwell.model import Chunk, Cursor, Kind, TableName, TableSelection
from upwell.sources import sqlite
from upwell.sources.sqlite_rows import wire_value
from upwell.sources.sqlite_setup import track

TABLES = {
    "plain": "(id INTEGER PRIMARY KEY, u TEXT UNIQUE, v)",
    "nocase": "(a TEXT COLLATE NOCASE, b INT, u TEXT, v, PRIMARY KEY (a, b), UNIQUE (u COLLATE NOCASE)) WITHOUT ROWID",
    "untyped": "(k PRIMARY KEY NOT NULL, u INT, v, w AS (u * 2), UNIQUE (u, v))",
    'we"ird 🙂': "(k REAL PRIMARY KEY NOT NULL, u INT, v ANY, UNIQUE (v)) STRICT",
    "select": "(b INT NOT NULL, a INT NOT NULL, u INT UNIQUE, v TEXT, PRIMARY KEY (a DESC, b))",
    "parent": "(id INTEGER PRIMARY KEY, u INT UNIQUE, v)",
    "child": "(id INTEGER PRIMARY KEY, u INT REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, v)",
    "part": "(id INTEGER PRIMARY KEY, u INT, v)",
}
INDEXES = (
    "CREATE UNIQUE INDEX part_u ON part (u) WHERE v IS NOT NULL AND v <> 'a ) WHERE b'",
    "CREATE UNIQUE INDEX part_e ON part (abs(v), id / 3)",
)
KEYS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "plain": {"id": st.integers(-1, 4)},
    "nocase": {"a": st.sampled_from(["a", "A", "ä", "Ä", "b"]), "b": st.integers(1, 2)},
    "untyped": {"k": st.sampled_from([1, 1.0, "1", "a", "A", 2**60, -0.5])},
    'we"ird 🙂': {"k": st.sampled_from([0.0, 1, -1.5, 1e300])},
    "select": {"a": st.integers(1, 2), "b": st.integers(1, 3)},
    "parent": {"id": st.integers(1, 4)},
    "child": {"id": st.integers(1, 4)},
    "part": {"id": st.integers(1, 6)},
}
U = {
    "plain": st.sampled_from(["x", "y", "z", None]),
    "nocase": st.sampled_from(["x", "X", "y", None]),
}
V = st.sampled_from(["v", "w", 3, -3, 2.5, None, "a ) WHERE b"])
NAMES = sorted(TABLES)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@st.composite
def statements(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """A statement and its parameters; many violate a constraint."""
    table = draw(st.sampled_from(NAMES))
    name, key = quoted(table), KEYS[table]
    u, values = draw(U.get(table, st.integers(1, 4))), [draw(v) for v in key.values()]
    if table == "nocase":
        v: Any = draw(st.sampled_from(["v", "w", None]))
    else:
        v = draw(V)
    policy = draw(st.sampled_from(["", "OR REPLACE", "OR REPLACE", "OR IGNORE", "OR FAIL"]))
    where = " AND ".join(f"{column} = ?" for column in key)
    columns = [*key, "u", "v"]
    match draw(st.sampled_from(["insert", "insert", "insert", "upsert", "update", "key", "swap", "delete", "all"])):
        case "insert":
            sql = f"INSERT {policy} INTO {name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
            return sql, [*values, u, v]
        case "upsert":
            sql = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
            return f"{sql} ON CONFLICT ({', '.join(key)}) DO UPDATE SET v = excluded.v", [*values, u, v]
        case "update":
            return f"UPDATE {policy} {name} SET u = ?, v = ? WHERE {where}", [u, v, *values]
        case "key":
            new = [draw(v) for v in key.values()]
            return f"UPDATE {policy} {name} SET {', '.join(f'{c} = ?' for c in key)} WHERE {where}", [*new, *values]
        case "swap":
            return f"UPDATE {policy} {name} SET u = (SELECT max(u) FROM {name}) WHERE {where}", values
        case "delete":
            return f"DELETE FROM {name} WHERE {where}", values
        case _:
            return f"DELETE FROM {name}", []


class RandomWrites(RuleBasedStateMachine):
    """Writes, windows, chunks, restarts and confirmations in any order."""

    @initialize(
        before=st.lists(statements(), max_size=10), recursive=st.booleans(), mode=st.sampled_from(["wal", "delete"])
    )
    def begin(self, before: list[tuple[str, list[Any]]], recursive: bool, mode: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = str(Path(self.folder.name) / "shop.db")
        self.writer = sqlite3.connect(self.path, isolation_level=None)
        self.writer.execute(f"PRAGMA journal_mode = {mode}")
        self.writer.execute("PRAGMA synchronous = OFF")
        self.writer.execute("PRAGMA foreign_keys = ON")
        self.writer.execute(f"PRAGMA recursive_triggers = {recursive}")
        for name, body in TABLES.items():
            self.writer.execute(f"CREATE TABLE {quoted(name)} {body}")
        for index in INDEXES:
            self.writer.execute(index)
        self.write(before, roll_back=False)
        self.selections = [TableSelection(TableName("", "*"))]
        track(self.path, self.selections)
        self.source = self.new_source()
        self.replica = Replica(self.source, *self.source.start(None, EPOCH), settle_s=0.0)
        self.schemas = {schema.table: schema for schema in self.source.tables()}
        self.source.start_chunks()
        self.cursors: dict[str, Cursor | None] = dict.fromkeys(self.schemas)
        self.held: Chunk | None = None
        self.replica.take_window()

    def new_source(self) -> sqlite.SqliteSource:
        return sqlite.SqliteSource(self.path, tables=self.selections, clock=SystemClock())

    def write(self, batch: list[tuple[str, list[Any]]], *, roll_back: bool) -> None:
        self.writer.execute("BEGIN")
        for sql, values in batch:
            try:
                self.writer.execute(sql, values)
            except sqlite3.IntegrityError:
                continue
        self.writer.execute("ROLLBACK" if roll_back else "COMMIT")

    @rule(batch=st.lists(statements(), min_size=1, max_size=6), roll_back=st.sampled_from([False] * 5 + [True]))
    def transaction(self, batch: list[tuple[str, list[Any]]], roll_back: bool) -> None:
        self.write(batch, roll_back=roll_back)

    @rule(limit=st.sampled_from([1, 2, 5, 1000]))
    def window(self, limit: int) -> None:
        assert self.replica.take_window(limit).rejected == []

    @precondition(lambda self: self.held is None)
    @rule(table=st.sampled_from(NAMES), limit=st.sampled_from([1, 2, 100]))
    def read_chunk(self, table: str, limit: int) -> None:
        name = str(TableName("main", table))
        if name in self.cursors:
            self.held = self.source.chunk(self.schemas[name], self.cursors[name], limit)
            assert self.held is not None
            assert self.held.rejected == []

    @precondition(lambda self: self.held is not None)
    @rule(limit=st.sampled_from([1, 1000]))
    def release_chunk(self, limit: int) -> None:
        chunk, self.held = self.held, None
        assert chunk is not None
        self.replica.apply_chunk(chunk, limit)
        if chunk.cursor is None:
            del self.cursors[chunk.schema.table]
        else:
            self.cursors[chunk.schema.table] = chunk.cursor

    @rule()
    def restart(self) -> None:
        self.source.close()
        self.source = self.replica.source = self.new_source()
        assert self.source.start(self.replica.position, EPOCH)[1] == self.replica.commit
        self.held = None
        self.replica.take_window(limit=1)

    @rule()
    def confirm(self) -> None:
        self.source._next_trim = 0.0  # it would wait a second between two
        self.source.confirm(self.replica.position)

    def teardown(self) -> None:
        try:
            if hasattr(self, "cursors"):
                self.finish()
        finally:
            for thing in ("source", "writer"):
                if hasattr(self, thing):
                    getattr(self, thing).close()
            if hasattr(self, "folder"):
                self.folder.cleanup()

    def finish(self) -> None:
        self.replica.take_all(limit=3)
        for name in list(self.cursors):
            while name in self.cursors:
                self.held = self.source.chunk(self.schemas[name], self.cursors[name], 3)
                self.release_chunk(3)
        self.replica.take_all()
        for table in NAMES:
            self.compare(table)

    def compare(self, table: str) -> None:
        schema = self.schemas[str(TableName("main", table))]
        kinds: list[Kind] = [column.kind for column in schema.columns]
        columns = ", ".join(quoted(column.name) for column in schema.columns)
        stored = self.writer.execute(f"SELECT {columns} FROM {quoted(table)}").fetchall()
        rows = [[wire_value(kind, value) for kind, value in zip(kinds, row, strict=True)] for row in stored]
        replica = self.replica.rows.get(schema.table, {})
        assert sorted(orjson.dumps(row) for row in rows) == sorted(orjson.dumps(row) for row in replica.values())


TestRandomWrites = RandomWrites.TestCase
TestRandomWrites.settings = settings(max_examples=40, stateful_step_count=40)
