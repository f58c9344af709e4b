"""Three clients of SQL Server with one face, for the suite of what upwell relies on.

`UPWELL_TEST_SQLSERVER_URL=mssql://sa:PASSWORD@host:1433/master` names a true SQL Server; else the stand-in serves.
"""

import gc
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TRUE_SERVER: Final = "UPWELL_TEST_SQLSERVER_URL" in os.environ
CLIENTS: Final = ("mssql-python", "python-tds", "pymssql")

# Asks for what no client of a true SQL Server can ask for. What it shows is shown of the stand-in alone.
needs_hooks = pytest.mark.skipif(TRUE_SERVER, reason="needs a hook of the stand-in: NOT shown of a true SQL Server")


class Refused(Exception):
    """The server's error; `number` is None where the client does not tell it."""

    def __init__(self, number: int | None, text: str) -> None:
        super().__init__(f"{number}: {text}")
        self.number, self.text = number, text


@dataclass
class Client:
    """A connection on which each statement is a transaction, unless it says BEGIN. Parameters are written `?`."""

    name: str
    connection: Any
    placeholder: str
    number_of: Callable[[Exception], int | None]
    errors: tuple[type[Exception], ...]
    binary: Callable[[bytes], object] = bytes
    _cursor: Any = field(default=None)

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of one statement."""
        self._execute(sql, values)
        try:
            while self._cursor.description is None and self._cursor.nextset():
                pass  # what was done before the rows
            return [tuple(row) for row in self._cursor.fetchall()]
        except self.errors as error:
            raise Refused(self.number_of(error), str(error)) from error

    def value(self, sql: str, *values: object) -> Any:
        ((value,),) = self.rows(sql, *values)
        return value

    def run(self, sql: str, *values: object) -> int:
        """How many rows were changed."""
        self._execute(sql, values)
        return int(self._cursor.rowcount)

    def refusal(self, sql: str, *values: object) -> int | None:
        """The number of the error that comes of it."""
        try:
            self.rows(sql, *values)
        except Refused as refused:
            return refused.number
        except self.errors as error:  # of the client, such as that there are no rows
            pytest.fail(f"not refused: {error}")
        pytest.fail("not refused")

    def new_cursor(self) -> Any:
        """Another than that of `rows` and `run`, which begin anew after it."""
        self._cursor = None
        return self.connection.cursor()

    @property
    def names(self) -> list[str]:
        """Of the columns of the last result."""
        return [column[0] for column in self._cursor.description]

    def close(self) -> None:
        self.connection.close()

    def abandon(self) -> None:
        """Closes what may be gone already."""
        with suppress(*self.errors):
            self.connection.close()

    def _execute(self, sql: str, values: tuple[object, ...]) -> None:
        if self._cursor is None:
            self._cursor = self.connection.cursor()
        text = sql.replace("?", self.placeholder)
        values = tuple(self.binary(value) if isinstance(value, bytes) else value for value in values)
        try:
            if values:
                self._cursor.execute(text, values)
            else:
                self._cursor.execute(text)
        except self.errors as error:
            raise Refused(self.number_of(error), str(error)) from error


def connect(
    name: str, url: str, database: str = "", *, user: str = "", password: str = "", encrypted: bool = True
) -> Client:
    """`encrypted` false: the login alone is."""
    at = urlsplit(url)
    place: dict[str, Any] = {
        "host": str(at.hostname),
        "port": int(at.port or 1433),
        "user": user or unquote(at.username or ""),
        "password": password or unquote(at.password or ""),
        "database": database or at.path.strip("/") or "master",
        "ca": parse_qs(at.query).get("ca", [None])[0],
    }
    return {"mssql-python": _mssql_python, "python-tds": _python_tds, "pymssql": _pymssql}[name](place, encrypted)


def _mssql_python(place: dict[str, Any], encrypted: bool) -> Client:
    import mssql_python

    text = (
        f"Server={place['host']},{place['port']};Database={place['database']};UID={place['user']};"
        f"PWD={{{place['password']}}};Encrypt={'yes' if encrypted else 'no'};TrustServerCertificate=yes;"
        "ConnectRetryCount=0"
    )
    try:
        connection = mssql_python.connect(text, autocommit=True)
    except mssql_python.Error as error:
        raise Refused(None, str(error)) from error
    return Client("mssql-python", connection, "?", lambda _: None, (mssql_python.Error, RuntimeError))


def _python_tds(place: dict[str, Any], encrypted: bool) -> Client:
    import pytds

    tls: dict[str, Any] = {"cafile": place["ca"], "validate_host": True} if place["ca"] else {}
    if place["ca"] and not encrypted:
        tls["enc_login_only"] = True
    try:
        connection = pytds.connect(
            place["host"], place["database"], place["user"], place["password"], port=place["port"], autocommit=True,
            login_timeout=5, timeout=60, **tls,
        )  # fmt: skip
    except (pytds.Error, TimeoutError) as error:  # it tries again for a while what is refused
        cause = error.__cause__
        refused = cause if isinstance(cause, Exception) else error
        raise Refused(_attribute(refused), str(refused)) from None
    finally:
        _collect()
    return Client("python-tds", connection, "%s", _attribute, (pytds.Error,), pytds.Binary)


def _collect() -> None:
    """python-tds leaves the sockets of refused logins to chance; not to the chance of another test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _attribute(error: Exception) -> int | None:
    number = getattr(error, "number", None)
    return number if isinstance(number, int) and number else None


def _pymssql(place: dict[str, Any], encrypted: bool) -> Client:
    import pymssql

    try:
        connection = pymssql.connect(
            server=place["host"], port=str(place["port"]), user=place["user"], password=place["password"],
            database=place["database"], autocommit=True, login_timeout=20, timeout=60,
            encryption="require" if encrypted else "request",
        )  # fmt: skip
    except pymssql.Error as error:
        raise Refused(_first_number(error), str(error)) from error
    return Client("pymssql", connection, "%s", _first_number, (pymssql.Error,))


def _first_number(error: Exception) -> int | None:
    first = error.args[0] if error.args else None
    return first[0] if isinstance(first, tuple) else first if isinstance(first, int) else None


@contextmanager
def new_database(client: Client, *, tracking: bool = True, snapshots: bool = False) -> Iterator[str]:
    """The name of a database that goes afterwards."""
    name = f"upwell_test_{uuid.uuid4().hex[:12]}"
    client.run(f"CREATE DATABASE [{name}]")
    try:
        if tracking:
            client.run(
                f"ALTER DATABASE [{name}] SET CHANGE_TRACKING = ON (CHANGE_RETENTION = 2 DAYS, AUTO_CLEANUP = OFF)"
            )
        if snapshots:
            client.run(f"ALTER DATABASE [{name}] SET ALLOW_SNAPSHOT_ISOLATION ON")
        yield name
    finally:
        client.run("USE master")
        client.run(f"ALTER DATABASE [{name}] SET SINGLE_USER WITH ROLLBACK IMMEDIATE")
        client.run(f"DROP DATABASE [{name}]")


@dataclass
class Tracked:
    """A tracked table; versions are told from where it began, so that other tests do not matter."""

    client: Client
    name: str
    base: int

    def version(self) -> int:
        return int(self.client.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()")) - self.base

    def net(self, since: int | None, key: str = "id") -> dict[object, str]:
        """Key → `operation version/creation`, as of the versions after `since`."""
        start = "NULL" if since is None else str(self.base + since)
        rows = self.client.rows(
            f"SELECT CT.[{key}], CT.SYS_CHANGE_OPERATION, CT.SYS_CHANGE_VERSION, CT.SYS_CHANGE_CREATION_VERSION"
            f" FROM CHANGETABLE(CHANGES [{self.name}], {start}) AS CT ORDER BY CT.[{key}]"
        )
        assert len({row[0] for row in rows}) == len(rows), "fact 11: one row for each key"
        return {k: f"{op.strip()} {v - self.base}/{'-' if c is None else c - self.base}" for k, op, v, c in rows}

    def one(self, column: str, since: int, key: int = 1) -> Any:
        """A column of CHANGETABLE, for one key."""
        return self.client.value(
            f"SELECT CT.{column} FROM CHANGETABLE(CHANGES [{self.name}], {self.base + since}) AS CT WHERE CT.id = {key}"
        )

    def run(self, sql: str, *values: object) -> int:
        """`{t}` is the table."""
        return self.client.run(sql.replace("{t}", f"[{self.name}]"), *values)

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self.client.rows(sql.replace("{t}", f"[{self.name}]"), *values)

    def refusal(self, sql: str) -> int | None:
        return self.client.refusal(sql.replace("{t}", f"[{self.name}]"))


def tracked(
    client: Client, columns: str = "id int NOT NULL PRIMARY KEY, a int NULL, b nvarchar(20) NULL", *,
    masks: bool = True, rows: str = "(1, 1, N'a'), (2, 2, N'b'), (3, 3, N'c')",
) -> Tracked:  # fmt: skip
    """A new tracked table; with rows they come at its version 1."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    client.run(f"CREATE TABLE [{name}] ({columns})")
    option = " WITH (TRACK_COLUMNS_UPDATED = ON)" if masks else ""
    client.run(f"ALTER TABLE [{name}] ENABLE CHANGE_TRACKING{option}")
    table = Tracked(client, name, int(client.value("SELECT CHANGE_TRACKING_CURRENT_VERSION()")))
    if rows:
        client.run(f"INSERT INTO [{name}] VALUES {rows}")
    return table


def is_number(found: int | None, *expected: int) -> bool:
    """Whether it is one of these; a client that tells no numbers is believed."""
    return found is None or found in expected
