"""Random transactions against a source database: what applications do to tables, and worse.

Every write gives its row a `state` that was never given before by the same writer, and writers have keys of their
own. So of one key a reader may only ever see rising states, also across a delete and an insert of the same key.
"""

from __future__ import annotations

import queue
import random
import sqlite3
import string
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, ClassVar, Literal, LiteralString, Protocol

import psycopg

from tests.acceptance import sqlserver_client
from tests.acceptance.sqlserver_client import SqlServerConnection

Dialect = Literal["postgresql", "sqlite", "sqlserver"]
Key = tuple[Any, ...]

# table → the columns of its key, which come first
KEYS = {"item": ("id",), "stock": ("warehouse", "product"), "person": ("login",), "ledger": ("entry",)}
# Those that are written all the time; the ledger is for long snapshots.
TABLES = ("item", "stock", "person")
# How many keys of a table a writer uses over and over: few, so that events of one key follow each other closely.
KEYS_MAX = 60
LARGE_TRANSACTION_ROWS = 40
# PostgreSQL moves values out of the row, and does not repeat them in its log, above about 2 kB.
BIG_TEXT = range(2_500, 6_000)
_WAREHOUSES = ("north", "süd", "o'st", 'we"st', " ")

_SCHEMA = {
    "postgresql": """
        CREATE TABLE item (
          id bigint PRIMARY KEY, state bigint NOT NULL, name text, amount numeric(12,2), ratio double precision,
          at timestamptz, raw bytea, big text);
        ALTER TABLE item ALTER big SET STORAGE EXTERNAL;
        CREATE TABLE stock (
          warehouse text, product int, state bigint NOT NULL, quantity int, note text,
          PRIMARY KEY (warehouse, product));
        ALTER TABLE stock REPLICA IDENTITY FULL;
        CREATE TABLE person (login text PRIMARY KEY, state bigint NOT NULL, email text UNIQUE, bio text);
        ALTER TABLE person ALTER bio SET STORAGE EXTERNAL;
        CREATE TABLE ledger (entry int PRIMARY KEY, state bigint NOT NULL, note text);
    """,
    "sqlite": """
        CREATE TABLE item (
          id INTEGER PRIMARY KEY, state INTEGER NOT NULL, name TEXT, amount NUMERIC, ratio REAL, at TEXT, raw BLOB,
          big TEXT);
        CREATE TABLE stock (
          warehouse TEXT NOT NULL, product INTEGER NOT NULL, state INTEGER NOT NULL, quantity INTEGER, note TEXT,
          PRIMARY KEY (warehouse, product));
        CREATE TABLE person (login TEXT PRIMARY KEY NOT NULL, state INTEGER NOT NULL, email TEXT UNIQUE, bio TEXT);
        CREATE TABLE ledger (entry INTEGER PRIMARY KEY, state INTEGER NOT NULL, note TEXT);
    """,
    # To a UNIQUE of SQL Server two NULLs are equal.
    "sqlserver": """
        CREATE TABLE item (
          id bigint PRIMARY KEY, state bigint NOT NULL, name nvarchar(40), amount decimal(12,2), ratio float,
          at datetimeoffset(6), raw varbinary(100), big nvarchar(max));
        CREATE TABLE stock (
          warehouse nvarchar(20) NOT NULL, product int NOT NULL, state bigint NOT NULL, quantity int, note nvarchar(40),
          PRIMARY KEY (warehouse, product));
        CREATE TABLE person (
          login nvarchar(40) PRIMARY KEY, state bigint NOT NULL, email varchar(80), bio nvarchar(max));
        CREATE UNIQUE INDEX person_email ON person (email) WHERE email IS NOT NULL;
        CREATE TABLE ledger (entry int PRIMARY KEY, state bigint NOT NULL, note nvarchar(40));
    """,
}
# SQL Server has no floats between 0 and 2.23E-308.
_SMALLEST = {"postgresql": 5e-324, "sqlite": 5e-324, "sqlserver": 2.3e-308}
_INSERTED_AT_ONCE_MAX = 1_000  # by SQL Server
# What a writer gets where its server has gone away.
LOST = (psycopg.OperationalError, *sqlserver_client.LOST)


class Connection(Protocol):
    """What of a driver's connection is used: each statement is a transaction unless BEGIN opened one."""

    def execute(self, sql: str, values: Any = (), /) -> Any: ...
    def close(self) -> None: ...


def connect(url: str) -> Connection:
    """A connection to the source, `postgresql://…`, `mssql://…` or the path of an SQLite file."""
    if url.startswith("postgresql://"):
        return psycopg.connect(url, autocommit=True)
    if url.startswith("mssql://"):
        return SqlServerConnection(url)
    return sqlite3.connect(url, timeout=30, isolation_level=None, check_same_thread=False)


def dialect_of(url: str) -> Dialect:
    """Which of them it is."""
    if url.startswith("mssql://"):
        return "sqlserver"
    return "postgresql" if url.startswith("postgresql://") else "sqlite"


def create_tables(url: str) -> None:
    """The workload's tables, empty. In a target they keep it to the source's unique constraints."""
    with closing(connect(url)) as connection:
        if dialect_of(url) == "sqlite":
            connection.execute("PRAGMA journal_mode = WAL")
        for statement in _SCHEMA[dialect_of(url)].split(";"):
            if statement.strip():
                connection.execute(statement)


class Workload:
    """One writer. Equal seeds do the same; writers with different numbers never touch the same keys."""

    def __init__(self, url: str, seed: int, writer: int = 0) -> None:
        self._url = url
        self._connection = connect(url)
        self._dialect = dialect_of(url)
        self._random = random.Random(f"{seed}/{writer}")
        self._writer = writer
        self._state = self._emails = 0
        self._keeps_ledger = False
        self._keys: dict[str, set[Key]] = {table: set() for table in KEYS}
        self.floor = 0  # raised by who restores a backup: states that were lost with it must not come again
        self.transactions = 0

    def close(self) -> None:
        self._connection.close()

    def recover(self) -> None:
        """After the server went away, perhaps in the middle of a commit: connects and looks which rows there are."""
        self._connection.close()
        self._connection = connect(self._url)
        for table, key in KEYS.items():
            found = self._connection.execute(f"SELECT {', '.join(key)} FROM {table}").fetchall()
            self._keys[table] = {tuple(row) for row in found if self._owns(table, tuple(row))}

    def wait_for_standbys(self) -> None:
        """From now on each commit waits until PostgreSQL's synchronous standby has it."""
        self._connection.execute("SET synchronous_commit = on")

    def fill(self, rows: int, ledger_rows: int = 0) -> None:
        """That many rows in each table, as a database has before anybody thinks of publishing it."""
        self._connection.execute("BEGIN")
        for table in TABLES:
            for _ in range(min(rows, KEYS_MAX)):
                self._insert(table)
        numbers = range(1, ledger_rows + 1)
        for first in numbers[::_INSERTED_AT_ONCE_MAX]:
            some = range(first, min(first + _INSERTED_AT_ONCE_MAX, ledger_rows + 1))
            marks = ", ".join(f"({number}, {self._writer}, 'row {number}')" for number in some)
            self._connection.execute(f"INSERT INTO ledger VALUES {marks}")
        self._keys["ledger"] = {(number,) for number in numbers}
        self._keeps_ledger = ledger_rows > 0
        self._connection.execute("COMMIT")

    def transaction(self) -> None:
        """One transaction of one to a few changes, or of many, or one that comes to nothing."""
        large = self._random.random() < 0.05
        known = {table: set(keys) for table, keys in self._keys.items()}
        # Who reads before he writes gets no turn in SQLite where somebody else, such as upwell, wrote in between.
        self._connection.execute("BEGIN IMMEDIATE" if self._dialect == "sqlite" else "BEGIN")
        for _ in range(LARGE_TRANSACTION_ROWS if large else self._random.randint(1, 4)):
            self._change()
        if self._random.random() < 0.08:
            self._connection.execute("ROLLBACK")
            self._keys = known
        else:
            self._connection.execute("COMMIT")
        self.transactions += 1

    def _change(self) -> None:
        if self._keys["ledger"] and self._random.random() < 0.1:
            self._random.choice((self._update, self._update, self._delete, self._renew, self._move_key))("ledger")
            return
        table = self._random.choice(TABLES)
        change = self._random.choices(
            (
                self._insert,
                self._update,
                self._update_small,
                self._update_often,
                self._move_key,
                self._swap_keys,
                self._delete,
                self._renew,
                self._swap_emails,
                self._inherit_email,
                self._undo_part,
            ),
            (18, 18, 18, 3, 6, 3, 10, 8, 10, 3, 3),
        )[0]
        change(table)

    def change_the_ledger(self) -> None:
        """One transaction that changes every row of the ledger."""
        changes = {**self._state_of_its_own(), **self._values("ledger")}
        self._run(f"UPDATE ledger SET {', '.join(f'{name} = ?' for name in changes)}", *changes.values())
        self.transactions += 1

    # --- the changes ----------------------------------------------------------------------------------------------

    def _insert(self, table: str) -> None:
        key = self._unused(table)
        if key is None:
            return
        values = {**self._state_of_its_own(), **self._values(table)}
        names = [*KEYS[table], *values]
        marks = ", ".join("?" * len(names))
        self._run(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", *key, *values.values())
        self._keys[table].add(key)

    def _update(self, table: str) -> None:
        key = self._known(table)
        if key is not None:
            self._set(table, key, self._values(table))

    def _update_small(self, table: str) -> None:
        """Leaves the big values as they are: PostgreSQL does not repeat them."""
        key = self._known(table)
        if key is None:
            return
        values = self._values(table)
        name = self._random.choice([name for name in values if name not in ("big", "bio")])
        self._set(table, key, {name: values[name]})

    def _update_often(self, table: str) -> None:
        key = self._known(table)
        if key is not None:
            for _ in range(self._random.randint(2, 6)):
                self._set(table, key, self._values(table) if self._random.random() < 0.5 else {})

    def _move_key(self, table: str) -> None:
        old, new = self._known(table), self._unused(table)
        if old is None or new is None:
            return
        values = self._values(table) if self._random.random() < 0.5 else {}
        self._set(table, old, {**dict(zip(KEYS[table], new, strict=True)), **values})
        self._keys[table].remove(old)
        self._keys[table].add(new)

    def _swap_keys(self, table: str) -> None:
        first, second, spare = self._known(table), self._known(table), self._unused(table)
        if first is None or second is None or spare is None or first == second:
            return
        for old, new in ((first, spare), (second, first), (spare, second)):
            self._set(table, old, dict(zip(KEYS[table], new, strict=True)))

    def _delete(self, table: str) -> None:
        key = self._known(table)
        if key is not None:
            where = " AND ".join(f"{name} = ?" for name in KEYS[table])
            self._run(f"DELETE FROM {table} WHERE {where}", *key)
            self._keys[table].remove(key)

    def _renew(self, table: str) -> None:
        """Delete and insert of one key in one transaction."""
        key = self._known(table)
        if key is None:
            return
        where = " AND ".join(f"{name} = ?" for name in KEYS[table])
        self._run(f"DELETE FROM {table} WHERE {where}", *key)
        values = {**self._state_of_its_own(), **self._values(table)}
        names = [*KEYS[table], *values]
        marks = ", ".join("?" * len(names))
        self._run(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", *key, *values.values())

    def _swap_emails(self, table: str) -> None:
        """Rows pass the values of a unique column around."""
        people = sorted(self._keys["person"])
        if len(people) < 3:
            return
        ring = self._random.sample(people, self._random.choice((2, 2, 3)))
        emails = [self._email(login) for login in ring]
        self._set("person", ring[0], {"email": None})
        for login, email in zip(ring[1:], emails, strict=False):
            self._set("person", login, {"email": None})
            self._set("person", login, {"email": email})
        self._set("person", ring[0], {"email": emails[-1]})

    def _inherit_email(self, table: str) -> None:
        """A row goes, and another takes its unique value."""
        people = sorted(self._keys["person"])
        if len(people) < 3:
            return
        gone, heir = self._random.sample(people, 2)
        email = self._email(gone)
        self._run("DELETE FROM person WHERE login = ?", *gone)
        self._keys["person"].remove(gone)
        self._set("person", heir, {"email": email})

    def _undo_part(self, table: str) -> None:
        """Part of the transaction is rolled back: what it did must never be seen."""
        known = {table: set(keys) for table, keys in self._keys.items()}
        self._connection.execute("SAVEPOINT part")
        for change in (self._insert, self._update, self._move_key, self._delete):
            change(table)
        if self._random.random() < 0.7:
            self._connection.execute("ROLLBACK TO SAVEPOINT part")
            self._keys = known
        self._connection.execute("RELEASE SAVEPOINT part")

    # --- keys and values ------------------------------------------------------------------------------------------

    def _set(self, table: str, key: Key, values: dict[str, Any]) -> None:
        values = {**self._state_of_its_own(), **values}
        changes = ", ".join(f"{name} = ?" for name in values)
        where = " AND ".join(f"{name} = ?" for name in KEYS[table])
        self._run(f"UPDATE {table} SET {changes} WHERE {where}", *values.values(), *key)

    def _run(self, sql: str, *values: Any) -> Any:
        return self._connection.execute(sql if self._dialect == "sqlite" else sql.replace("?", "%s"), values)

    def _email(self, login: Key) -> str | None:
        email: str | None = self._run("SELECT email FROM person WHERE login = ?", *login).fetchone()[0]
        return email

    def _known(self, table: str) -> Key | None:
        keys = self._keys[table]
        if len(keys) > 1000:  # sorted only to repeat a run, which takes long for many
            return next(iter(keys))
        return self._random.choice(sorted(keys)) if keys else None

    def _unused(self, table: str) -> Key | None:
        for _ in range(3):
            key = self._key(table, self._random.randrange(KEYS_MAX))
            if key not in self._keys[table]:
                return key
        return None

    def _key(self, table: str, number: int) -> Key:
        if table == "item":
            return (self._writer * 2**40 + number - 5,)
        if table == "ledger":
            return (10**6 + number,)
        if table == "stock":
            product = self._writer * 1000 + number // len(_WAREHOUSES)
            return (_WAREHOUSES[number % len(_WAREHOUSES)], product)
        return (f"{'Ää Ω'[number % 4]}{self._writer}-{number}",)

    def _owns(self, table: str, key: Key) -> bool:
        """Whether `_key` or `fill` gave this key to this writer."""
        if table == "item":
            return bool((key[0] + 5) // 2**40 == self._writer)
        if table == "ledger":
            return self._keeps_ledger and 0 < key[0] < 10**6 + KEYS_MAX
        if table == "stock":
            return bool(key[1] // 1000 == self._writer)
        return bool(key[0].rpartition("-")[0].lstrip("Ää Ω") == str(self._writer))

    def _state_of_its_own(self) -> dict[str, Any]:
        self._state += 1
        return {"state": self.floor + self._state}

    def _values(self, table: str) -> dict[str, Any]:
        chance = self._random
        if table == "stock":
            return {"quantity": self._or_null(chance.randint(-(10**6), 10**6)), "note": self._or_null(self._text(20))}
        if table == "ledger":
            return {"note": self._or_null(self._text(10))}
        if table == "person":
            self._emails += 1
            email = f"{self._emails}.{self._writer}@example.com"
            return {"email": self._or_null(email), "bio": self._or_null(self._text(chance.choice(BIG_TEXT)))}
        smallest = _SMALLEST[self._dialect]
        return {
            "name": self._or_null(self._text(12)),
            "amount": self._or_null(chance.randint(-(10**8), 10**8) / 4),
            "ratio": self._or_null(chance.choice((0.1, -1e300, smallest, 123456789.123456789, chance.random()))),
            "at": self._or_null(
                f"2026-0{chance.randint(1, 9)}-1{chance.randint(0, 9)} 10:00:00.{chance.randint(1, 9):06}+00:00"
            ),
            "raw": self._or_null(chance.randbytes(chance.randint(0, 30))),
            "big": self._or_null(self._text(chance.choice(BIG_TEXT))),
        }

    def _or_null(self, value: Any) -> Any:
        return None if self._random.random() < 0.1 else value

    def _text(self, length: int) -> str:
        # Random, so that no compression makes it small; the ends hold what needs escaping.
        body = "".join(self._random.choices(string.ascii_letters, k=max(0, length - 6)))
        return f"\t\\'{body}ü\n\""


class Writing:
    """A thread that runs a workload until told to stop, at about `per_s` transactions a second."""

    def __init__(self, workload: Workload, per_s: float, *, patient: bool = False) -> None:
        """`patient`: the server may go away, and comes back."""
        self._workload = workload
        self._patient = patient
        self._pause_s = 1 / per_s
        self._stop = threading.Event()
        self._due: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def also(self, work: Callable[[], None]) -> None:
        """Done by the same thread between two transactions; returns when it is."""
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        self._due.put(run)
        while not done.wait(0.1):
            if self._error is not None:
                raise self._error

    def stop(self) -> None:
        """Waits for the transaction under way. Raises what ended the writer early."""
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the writer hangs"
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._stop.is_set():
                while not self._due.empty():
                    self._due.get()()
                self._transaction()
                due = max(due + self._pause_s, time.monotonic() - 1)
                self._stop.wait(max(0.0, due - time.monotonic()))
        except BaseException as error:
            self._error = error

    def _transaction(self) -> None:
        try:
            self._workload.transaction()
            return
        except LOST:
            if not self._patient:
                raise
        while not self._stop.wait(0.1):
            with suppress(*LOST):
                self._workload.recover()
                return


class SteadyWriting:
    """A thread that changes so many rows of the table `steady` a second, each with a higher state than before.

    Twenty transactions a second of one statement each, in PostgreSQL: nine in ten insert or update, one deletes.
    """

    TABLE = "CREATE TABLE steady (id bigint PRIMARY KEY, state bigint NOT NULL, note text)"
    KEYS: ClassVar[Mapping[str, Sequence[str]]] = {"steady": ("id",)}
    _EVERY_S = 0.05

    def __init__(self, url: str, rows_per_s: int, keys: int, seed: int) -> None:
        self._url = url
        self._rows = max(1, round(rows_per_s * self._EVERY_S))
        self._keys = keys
        self._random = random.Random(f"steady {seed}")
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="steady writer", daemon=True)
        self.events = 0
        self.late_s = 0.0  # by how much the database could not keep the pace, at most

    def __enter__(self) -> SteadyWriting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the writer hangs"
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                due = time.monotonic()
                state = 0
                while not self._stop.is_set():
                    state += 1
                    self.events += connection.execute(*self._change(state)).rowcount
                    due += self._EVERY_S
                    self.late_s = max(self.late_s, time.monotonic() - due)
                    self._stop.wait(max(0.0, due - time.monotonic()))
        except BaseException as error:
            self._error = error

    def _change(self, state: int) -> tuple[LiteralString, tuple[int, ...]]:
        """Rows that lie side by side, somewhere: on all lanes, because a lane is a hash of the key."""
        first = self._random.randrange(self._keys)
        if state % 10 == 0:
            return "DELETE FROM steady WHERE id BETWEEN %s AND %s", (first, first + self._rows - 1)
        return (
            "INSERT INTO steady SELECT id %% %s::bigint, %s::bigint, 'state ' || %s::bigint || repeat('.', 60)"
            " FROM generate_series(%s::bigint, %s::bigint) AS id"
            " ON CONFLICT (id) DO UPDATE SET state = excluded.state, note = excluded.note",
            (self._keys, state, state, first, first + self._rows - 1),
        )
