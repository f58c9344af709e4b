"""Tables are made and widened, or a person is told how; what a role may not do, and what will fail, is told too."""

import threading
from typing import Any

import psycopg
import pytest

from tests.contract.target_contract import USERS, in_threads, upsert
from tests.integration.postgres_target.schemas import table
from upwell.errors import OperatorError, TransientError
from upwell.model import Kind
from upwell.targets.postgres import PostgresTarget

# ---- tables ----


def test_columns_are_added_when_they_come_and_never_dropped(
    target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    wider = table("users", *((c.name, c.type, c.kind) for c in USERS.columns), ("age", "smallint", Kind.INT))
    upsert(target, USERS, [[1, "a", "x"]])
    upsert(target, wider, [[2, "b", None, 40]])
    upsert(target, USERS, [[3, "c", None], [2, "changed", None]])
    assert sql.execute("SELECT * FROM users ORDER BY id").fetchall() == [
        (1, "a", "x", None),
        (2, "changed", None, 40),
        (3, "c", None, None),
    ]


def test_halt_shows_the_statements_that_help(url: str, sql: psycopg.Connection[Any]) -> None:
    target = PostgresTarget(url, create_tables=False, schema_changes="halt")
    narrow = table("users", ("id", "integer", Kind.INT))
    for schema in (narrow, USERS):
        with target.begin() as txn, pytest.raises(OperatorError) as refused:
            txn.ensure_table(schema)
        sql.execute(refused.value.remedy.encode())
        upsert(target, schema, [[1, None, None][: len(schema.columns)]])
    target.close()


def test_a_table_without_an_index_on_the_key_is_refused_until_it_has_one(
    target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("CREATE TABLE users (id integer, email text, note text)")
    sql.execute("CREATE UNIQUE INDEX ON users (id) WHERE email IS NULL")
    sql.execute("CREATE UNIQUE INDEX ON users (id, email)")
    with target.begin() as txn, pytest.raises(OperatorError, match="no unique index on its key") as refused:
        txn.ensure_table(USERS)
    sql.execute(refused.value.remedy.encode())
    upsert(target, USERS, [[1, None, None]])


def test_deferrable_constraints_are_refused(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    sql.execute("CREATE TABLE users (id integer PRIMARY KEY DEFERRABLE, email text, note text)")
    with target.begin() as txn, pytest.raises(OperatorError, match="deferrable"):
        txn.ensure_table(USERS)


def test_a_view_is_refused(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    sql.execute("CREATE VIEW users AS SELECT 1 AS id, '' AS email, '' AS note")
    with target.begin() as txn, pytest.raises(OperatorError, match="not a table"):
        txn.ensure_table(USERS)


def test_several_create_the_same_tables_at_once(url: str, sql: psycopg.Connection[Any]) -> None:
    """A first connection's schema upwell, and a first event's table."""
    barrier = threading.Barrier(6)

    def create(number: int) -> None:
        target = PostgresTarget(url, create_tables=True, schema_changes="apply")
        barrier.wait()
        upsert(target, USERS, [[number, None, None]])
        target.close()

    in_threads(*(lambda number=number: create(number) for number in range(6)))
    assert sql.execute("SELECT count(*) FROM users").fetchone() == (6,)


def test_a_table_that_somebody_changes_is_looked_at_anew(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    upsert(target, USERS, [[1, "a", None]])
    sql.execute("DROP TABLE users")
    with pytest.raises(TransientError):
        upsert(target, USERS, [[2, "b", None]])
    upsert(target, USERS, [[2, "b", None]])
    sql.execute("ALTER TABLE users DROP COLUMN note")
    with pytest.raises(TransientError):
        upsert(target, USERS, [[3, "c", "x"]])
    upsert(target, USERS, [[3, "c", "x"]])
    assert sql.execute("SELECT id, email, note FROM users ORDER BY id").fetchall() == [(2, "b", None), (3, "c", "x")]


# ---- rights and findings ----


def test_following_the_remedies_leads_to_a_role_that_can_work(
    url: str, sql: psycopg.Connection[Any], database: str
) -> None:
    """A role that may do nothing: each refusal names the next right, until rows are written."""
    role = f"role_{database}"
    sql.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw'")
    sql.execute(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC; CREATE TABLE users (id integer PRIMARY KEY)")
    sql.execute("ALTER TABLE users ADD email text, ADD note text; REVOKE ALL ON SCHEMA public FROM PUBLIC")
    at = url.index("@")
    target = PostgresTarget(f"postgresql://{role}:pw{url[at:]}", create_tables=True, schema_changes="apply")
    other = table("others", ("id", "integer", Kind.INT))
    remedies: list[str] = []
    try:
        while len(remedies) < 12:
            try:
                upsert(target, USERS, [[1, "a", None]])
                upsert(target, other, [[1]])
                break
            except OperatorError as error:
                remedies.append(error.remedy)
                sql.execute(error.remedy.encode())
        assert sql.execute("SELECT * FROM users").fetchall() == [(1, "a", None)]
        assert not [finding for finding in target.findings([USERS, other]) if finding.level == "fail"]
    finally:
        target.close()
        sql.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
    assert 3 <= len(remedies) == len(set(remedies))


def test_findings_of_an_empty_database_change_nothing(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    assert {finding.level for finding in target.findings([USERS])} == {"pass"}
    assert sql.execute("SELECT to_regclass('users'), to_regnamespace('upwell')").fetchone() == (None, None)


def test_findings_name_what_will_fail(url: str, sql: psycopg.Connection[Any]) -> None:
    sql.execute(
        "CREATE TABLE parents (id integer PRIMARY KEY);"
        " CREATE TABLE users (id integer REFERENCES parents, email integer, must text NOT NULL, UNIQUE (email));"
        " CREATE TABLE orders (id integer PRIMARY KEY); INSERT INTO orders VALUES (1)"
    )
    target = PostgresTarget(url, create_tables=False, schema_changes="halt")
    found = target.findings([USERS, table("orders", ("id", "integer", Kind.INT)), table("no", ("id", "int", Kind.INT))])
    bad = {(finding.level, finding.code) for finding in found if finding.level != "pass"}
    assert bad == {
        ("fail", "UW-PT-034"),  # columns are missing
        ("fail", "UW-PT-035"),  # no key
        ("fail", "UW-PT-108"),  # must not be null
        ("warn", "UW-PT-109"),  # another type
        ("fail", "UW-PT-110"),  # foreign key
        ("warn", "UW-PT-112"),  # rows of others
        ("fail", "UW-PT-033"),  # no table
    }
    for finding in found:
        if finding.level == "fail":
            sql.execute(finding.remedy.encode())
    assert not [finding for finding in target.findings([USERS]) if finding.level == "fail"]
    target.close()
