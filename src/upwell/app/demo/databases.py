"""The databases that branches of the demo's shop work with, and all in which they differ: SQLite and SQL Server."""

from __future__ import annotations

import secrets
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from upwell.app.demo.processes import DemoFailed
from upwell.errors import UpwellError
from upwell.sources.sqlserver_session import PARAMETER, connect, quoted

# table → the statement that makes it. Types as they grew: money is decimal, weight is real.
TABLES: Final = {  # of SQLite, where moments are text
    "customers": """CREATE TABLE customers (
        id INTEGER PRIMARY KEY, email VARCHAR(120) NOT NULL UNIQUE, name VARCHAR(80) NOT NULL, street TEXT, city TEXT,
        credit DECIMAL(10,2) NOT NULL DEFAULT 0, notes TEXT, changed_at TEXT NOT NULL)""",
    "products": """CREATE TABLE products (
        sku VARCHAR(20) PRIMARY KEY NOT NULL, name TEXT NOT NULL, price DECIMAL(10,2) NOT NULL, weight_kg REAL,
        stock INTEGER NOT NULL, picture BLOB, changed_at TEXT NOT NULL)""",
    "orders": """CREATE TABLE orders (
        id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers (id), status VARCHAR(12) NOT NULL,
        total DECIMAL(10,2) NOT NULL, changed_at TEXT NOT NULL)""",
    "order_lines": """CREATE TABLE order_lines (
        order_id INTEGER NOT NULL REFERENCES orders (id), line_no INTEGER NOT NULL, sku VARCHAR(20) NOT NULL,
        quantity INTEGER NOT NULL, price DECIMAL(10,2) NOT NULL, changed_at TEXT NOT NULL,
        PRIMARY KEY (order_id, line_no))""",
}
_SQLSERVER_TABLES: Final = {
    "customers": """CREATE TABLE customers (
        id int PRIMARY KEY, email varchar(120) NOT NULL UNIQUE, name nvarchar(80) NOT NULL, street nvarchar(200),
        city nvarchar(80), credit decimal(10,2) NOT NULL DEFAULT 0, notes nvarchar(max),
        changed_at datetime2(3) NOT NULL)""",
    "products": """CREATE TABLE products (
        sku varchar(20) PRIMARY KEY, name nvarchar(100) NOT NULL, price decimal(10,2) NOT NULL, weight_kg float,
        stock int NOT NULL, picture varbinary(max), changed_at datetime2(3) NOT NULL)""",
    "orders": """CREATE TABLE orders (
        id int PRIMARY KEY, customer_id int NOT NULL REFERENCES customers (id), status varchar(12) NOT NULL,
        total decimal(10,2) NOT NULL, changed_at datetime2(3) NOT NULL)""",
    "order_lines": """CREATE TABLE order_lines (
        order_id int NOT NULL REFERENCES orders (id), line_no int NOT NULL, sku varchar(20) NOT NULL,
        quantity int NOT NULL, price decimal(10,2) NOT NULL, changed_at datetime2(3) NOT NULL,
        PRIMARY KEY (order_id, line_no))""",
}

_BUSY_TIMEOUT_S: Final = 10.0
_INSERTED_AT_ONCE_MAX: Final = 100  # SQL Server takes 2,100 parameters
_DRIVER: Final = "mssql-python"
_IN_THE_WAY: Final = ("UW-MS-011", "UW-MS-013")  # a deadlock, a lock that took too long


class Clash(Exception):
    """Two people got in each other's way, or had the same idea: the transaction can only be rolled back."""


class Connection(ABC):
    """What people's programs do with a database. In statements `?` stand for values.

    Each statement is a transaction of its own, but within `transaction`.
    """

    _BEGIN: ClassVar[str]
    _BEGIN_READING: ClassVar[str]
    _COMMIT: ClassVar[str]
    _ROLL_BACK: ClassVar[str]

    @abstractmethod
    def rows(self, query: str, *values: object) -> list[Sequence[Any]]:
        """What a query finds."""

    @abstractmethod
    def change(self, statement: str, *values: object) -> int:
        """Do it; how many rows it changed. Raises Clash."""

    @abstractmethod
    def some(self, columns: str, table: str, count: int = 1) -> list[Sequence[Any]]:
        """Of any rows."""

    @abstractmethod
    def replace(self, table: str, key: str, row: Sequence[object]) -> int:
        """A row, with its key in front, in the place of the one that may be there; how many came, which is one."""

    @abstractmethod
    def close(self) -> None: ...

    def insert(self, table: str, rows: Sequence[Sequence[object]]) -> int:
        """Rows with all their columns; how many. Raises Clash."""
        for first in range(0, len(rows), _INSERTED_AT_ONCE_MAX):
            some = rows[first : first + _INSERTED_AT_ONCE_MAX]
            marks = ", ".join(f"({', '.join('?' * len(row))})" for row in some)
            self.change(f"INSERT INTO {table} VALUES {marks}", *(value for row in some for value in row))
        return len(rows)

    @contextmanager
    def transaction(self, *, reading: bool = False) -> Iterator[None]:
        """`reading`: nothing is changed, and all is read as it was at one moment."""
        self.change(self._BEGIN_READING if reading else self._BEGIN)
        try:
            yield
        except BaseException:
            self.change(self._ROLL_BACK)
            raise
        self.change(self._COMMIT)


class Database(ABC):
    """A branch's database, made with its tables, empty; `close` removes it."""

    maker: ClassVar[str]  # what people call such a database

    def __init__(self, branch: str, url: str) -> None:
        """`url`: for `source.url` in a configuration in the demo's folder. It may hold a password."""
        self.branch = branch
        self.url = url

    @abstractmethod
    def connect(self) -> Connection: ...

    @abstractmethod
    def close(self) -> None: ...


def new_database(source: str | None, branch: str, folder: Path) -> Database:
    """On the SQL Server that `source` names, where it names one; else a file in the folder. Raises UpwellError."""
    return SqliteDatabase(branch, folder) if source is None else SqlServerDatabase(branch, source)


# --- SQLite -----------------------------------------------------------------------------------------------------


class SqliteDatabase(Database):
    """A file."""

    maker = "SQLite"

    def __init__(self, branch: str, folder: Path) -> None:
        super().__init__(branch, f"sqlite:///{branch}.db")
        self._path = folder / f"{branch}.db"
        with closing(self.connect()) as connection:
            connection.change("PRAGMA journal_mode = WAL")
            for statement in TABLES.values():
                connection.change(statement)

    def connect(self) -> Connection:
        return _SqliteConnection(self._path)

    def close(self) -> None:
        """It goes with its folder."""


class _SqliteConnection(Connection):
    _BEGIN = "BEGIN IMMEDIATE"
    _BEGIN_READING = "BEGIN"
    _COMMIT = "COMMIT"
    _ROLL_BACK = "ROLLBACK"

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)

    def rows(self, query: str, *values: object) -> list[Sequence[Any]]:
        return self._execute(query, values).fetchall()

    def change(self, statement: str, *values: object) -> int:
        try:
            return self._execute(statement, values).rowcount
        except sqlite3.IntegrityError as error:
            raise Clash from error

    def some(self, columns: str, table: str, count: int = 1) -> list[Sequence[Any]]:
        return self.rows(f"SELECT {columns} FROM {table} ORDER BY random() LIMIT {count}")

    def replace(self, table: str, key: str, row: Sequence[object]) -> int:
        """As old programs do it, which leaves no trace of the row that goes."""
        return self.change(f"REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", *row)

    def close(self) -> None:
        self._connection.close()

    def _execute(self, sql: str, values: Sequence[object]) -> sqlite3.Cursor:
        return self._connection.execute(sql, [_moment_of_sqlite(value) for value in values])


def _moment_of_sqlite(value: object) -> object:
    return value.isoformat(timespec="milliseconds") + "Z" if isinstance(value, datetime) else value


# --- SQL Server -------------------------------------------------------------------------------------------------


class SqlServerDatabase(Database):
    """A database of the demo's own, which it drops in the end."""

    maker = "SQL Server"

    def __init__(self, branch: str, server: str) -> None:
        """`server`: its URL, as a login that may make databases."""
        self._server = server
        self._name = f"upwell_demo_{branch}_{secrets.token_hex(4)}"
        super().__init__(branch, urlsplit(server)._replace(path=f"/{self._name}").geturl())
        self._run(f"CREATE DATABASE {quoted(self._name)}")
        try:
            self._make_tables()
        except BaseException:
            self.close()
            raise

    def _make_tables(self) -> None:
        # Whoever reads waits for nobody: people at work would end up in deadlocks, and the view in their locks.
        for setting in ("ALLOW_SNAPSHOT_ISOLATION", "READ_COMMITTED_SNAPSHOT"):
            self._run(f"ALTER DATABASE {quoted(self._name)} SET {setting} ON")
        with closing(self.connect()) as connection:
            for statement in _SQLSERVER_TABLES.values():
                connection.change(statement)

    def connect(self) -> Connection:
        return _SqlServerConnection(self.url)

    def close(self) -> None:
        """Drop it with all its sessions. Raises DemoFailed."""
        drop = f"DROP DATABASE {quoted(self._name)}"
        try:
            self._run(f"ALTER DATABASE {quoted(self._name)} SET SINGLE_USER WITH ROLLBACK IMMEDIATE", drop)
        except UpwellError as error:
            raise DemoFailed(
                f"The demo's database {self._name} is still there: {error.message}",
                code="UW-DM-007",
                remedy=f"{drop};",
            ) from error

    def _run(self, *statements: str) -> None:
        with closing(connect(self._server, _DRIVER)) as session:
            for statement in statements:
                session.run(statement)


class _SqlServerConnection(Connection):
    _BEGIN = "BEGIN TRANSACTION"
    _BEGIN_READING = "SET TRANSACTION ISOLATION LEVEL SNAPSHOT; BEGIN TRANSACTION"
    _COMMIT = "COMMIT TRANSACTION"
    _ROLL_BACK = "IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION"  # a deadlock's victim has been rolled back already

    def __init__(self, url: str) -> None:
        self._session = connect(url, _DRIVER)

    def rows(self, query: str, *values: object) -> list[Sequence[Any]]:
        with _clashes():
            return self._session.all(*_as_sqlserver_has_it(query, values))

    def change(self, statement: str, *values: object) -> int:
        with _clashes():
            return self._session.run(*_as_sqlserver_has_it(statement, values))

    def some(self, columns: str, table: str, count: int = 1) -> list[Sequence[Any]]:
        return self.rows(f"SELECT TOP ({count}) {columns} FROM {table} ORDER BY NEWID()")

    def replace(self, table: str, key: str, row: Sequence[object]) -> int:
        """The row goes and comes back in the same transaction."""
        self.change(f"DELETE FROM {table} WHERE {key} = ?", row[0])
        return self.insert(table, [row])

    def close(self) -> None:
        self._session.close()


@contextmanager
def _clashes() -> Iterator[None]:
    """The session is as good as before, but for the transaction."""
    try:
        yield
    except UpwellError as error:
        # PEP 249's name for it, whichever driver it is.
        if error.code in _IN_THE_WAY or type(error.__cause__).__name__ == "IntegrityError":
            raise Clash from error
        raise


def _as_sqlserver_has_it(sql: str, values: Sequence[object]) -> tuple[str, list[str | int | bytes]]:
    """Text converts to each type there, but NULL as text not to bytes: a NULL is written."""
    parts = sql.split("?")
    marks = ("NULL" if value is None else PARAMETER for value in values)
    text = parts[0] + "".join(mark + part for mark, part in zip(marks, parts[1:], strict=True))
    return text, [_parameter(value) for value in values if value is not None]


def _parameter(value: object) -> str | int | bytes:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return value if isinstance(value, (str, int, bytes)) else str(value)
