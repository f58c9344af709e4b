"""The PostgreSQL reader where the database is not as one would wish."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from lab.parts import PostgresServer
from upwell.errors import OperatorError, TransientError
from upwell.model import Column, Kind, TableName, TableSchema
from upwell.ports import Listing, ReadIndex
from upwell.readers import postgres
from upwell.readers.postgres import PostgresReader

ODD = 'odd "%s" %'
SCHEMA = TableSchema(
    "dbo.odd",
    (
        Column("id", "int", Kind.INT),
        Column(ODD, "text", Kind.TEXT),
        Column("tenant", "char(5)", Kind.TEXT),
    ),
    ("id", ODD),
    "postgresql",
)
NAME = TableName("public", 'table "of" 100%')
ROW = [1, "x", "a    "]


@pytest.fixture
def sql(postgres_cluster: PostgresServer, database: str) -> Iterator[psycopg.Connection[Any]]:
    quoted, table = TableName("", ODD).sql, NAME.sql
    with postgres_cluster.connect(database) as connection:
        connection.execute(f"CREATE TABLE {table} (id int, {quoted} text, tenant char(5), PRIMARY KEY (id, {quoted}))")
        connection.execute(f"INSERT INTO {table} VALUES (1, 'x', 'a')")
        yield connection


Make = Callable[..., PostgresReader]


@pytest.fixture
def make(sql: psycopg.Connection[Any], postgres_cluster: PostgresServer, database: str) -> Iterator[Make]:
    made: list[PostgresReader] = []

    def make(**settings: Any) -> PostgresReader:
        made.append(PostgresReader(postgres_cluster.url(database), {SCHEMA.table: NAME}, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def everything(reader: PostgresReader, index: ReadIndex | None = None, partition: str | None = None) -> list[Any]:
    return [found.row for found in reader.page(Listing(SCHEMA, None, index, partition, None, 10)).found]


def test_names_may_hold_anything(make: Make) -> None:
    reader = make()
    assert reader.get(SCHEMA, [1, "x"], None) == ROW
    assert everything(reader) == [ROW]
    assert everything(reader, ReadIndex("i", ODD, "tenant"), "x") == [ROW]
    page = reader.page(Listing(SCHEMA, ("tenant", "a"), None, None, ["0", "%s"], 10))
    assert [found.row for found in page.found] == [ROW]


def test_what_a_type_takes_for_equal_is_not_the_same_tenant(make: Make) -> None:
    """To a char(5), blanks at the end make no difference."""
    reader = make()
    for tenant in ("a ", "a    ", "a\t"):
        assert reader.get(SCHEMA, [1, "x"], ("tenant", tenant)) is None
        assert reader.page(Listing(SCHEMA, ("tenant", tenant), None, None, None, 10)).found == []
    assert reader.get(SCHEMA, [1, "x"], ("tenant", "a")) == ROW


def test_sessions_can_not_write(make: Make) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        make()._pool.run(lambda session: session._connection.execute("CREATE TABLE mine (id int)"))


def test_what_is_missing_is_told(make: Make, sql: psycopg.Connection[Any]) -> None:
    reader = make()
    assert everything(reader) == [ROW]
    table = NAME.sql
    for statement in ("ALTER TABLE {} RENAME COLUMN tenant TO other", "DROP TABLE {}"):
        sql.execute(statement.format(table))
        with pytest.raises(OperatorError) as error:
            everything(reader)
        assert error.value.code == "UW-AP-012"
        assert "api --learn" in error.value.remedy


def test_a_right_that_is_missing_is_told(
    make: Make, sql: psycopg.Connection[Any], postgres_cluster: PostgresServer, database: str
) -> None:
    sql.execute(f"CREATE ROLE reader_{database} LOGIN PASSWORD 'x'")
    url = postgres_cluster.url(database)
    host = url.rpartition("@")[2]
    reader = PostgresReader(f"postgresql://reader_{database}:x@{host}", {SCHEMA.table: NAME})
    with pytest.raises(OperatorError) as error:
        everything(reader)
    assert error.value.code == "UW-AP-013"
    assert "GRANT" in error.value.remedy
    reader.close()
    sql.execute(f"DROP ROLE reader_{database}")


def test_a_table_that_changes_under_a_prepared_statement(make: Make, sql: psycopg.Connection[Any]) -> None:
    reader = make()
    for _ in range(8):  # from the sixth on it is prepared
        assert everything(reader) == [ROW]
    sql.execute(f"ALTER TABLE {NAME.sql} ALTER tenant TYPE varchar(20)")
    assert [row[:2] for row in everything(reader)] == [ROW[:2]]


def test_connections_that_were_ended_are_replaced_unseen(make: Make, sql: psycopg.Connection[Any]) -> None:
    reader = make()
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            gate = threading.Barrier(4)

            def read(gate: threading.Barrier = gate) -> Any:
                gate.wait()
                return everything(reader)

            assert [each.result() for each in [threads.submit(read) for _ in range(4)]] == [[ROW]] * 4
            sql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'upwell-api'")


def test_a_read_that_takes_too_long_is_given_up(
    make: Make, sql: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_SETTINGS", postgres._SETTINGS + ";SET statement_timeout TO '200ms'")
    sql.execute("BEGIN")
    sql.execute(f"LOCK TABLE {NAME.sql} IN ACCESS EXCLUSIVE MODE")
    with pytest.raises(TransientError) as error:
        everything(make())
    assert error.value.code == "UW-AP-011"
    sql.execute("ROLLBACK")


def test_who_finds_all_connections_in_use_is_told_soon(
    make: Make, sql: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "POOL_WAIT_S", 0.2)
    reader = make(connections_max=1)
    sql.execute("BEGIN")
    sql.execute(f"LOCK TABLE {NAME.sql} IN ACCESS EXCLUSIVE MODE")
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(everything, reader)
        deadline = time.monotonic() + 10
        waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'upwell-api' AND wait_event_type = 'Lock'"
        while not sql.execute(waiting).fetchone():
            sql.execute("SELECT pg_stat_clear_snapshot()")  # within a transaction it stays as it was first seen
            assert time.monotonic() < deadline
        with pytest.raises(TransientError) as error:
            everything(reader)
        assert error.value.code == "UW-AP-014"
        sql.execute("ROLLBACK")
        assert first.result() == [ROW]
    assert everything(reader) == [ROW]


def test_a_database_that_can_not_be_reached(postgres_cluster: PostgresServer) -> None:
    reader = PostgresReader("postgresql://nobody:secret-word@127.0.0.1:1/none", {SCHEMA.table: NAME})
    with pytest.raises(TransientError) as error:
        everything(reader)
    assert error.value.code == "UW-AP-010"
    assert "secret-word" not in str(error.value)


def test_a_password_can_be_made_for_each_connection(postgres_cluster: PostgresServer, database: str) -> None:
    asked: list[tuple[str, str, str]] = []

    def password(host: str, port: str, user: str) -> str:
        asked.append((host, port, user))
        return "made"

    reader = PostgresReader("postgresql://ann@db.invalid:5433/x", {SCHEMA.table: NAME}, password=password)
    with pytest.raises(TransientError):
        everything(reader)
    assert asked == [("db.invalid", "5433", "ann")]
