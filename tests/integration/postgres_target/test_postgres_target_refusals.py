"""Rows that are refused for what they hold: each of them is found, with its reason, and no other."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from tests.contract.target_contract import USERS, upsert
from tests.integration.postgres_target.schemas import table
from upwell.errors import Rejected, TransientError, UniqueConflict
from upwell.model import Kind, TableName, TableSchema, Value
from upwell.targets.postgres import PostgresTarget
from upwell.targets.postgres_refusals import SUSPECTED_FOR


@pytest.mark.parametrize(
    ("refusing", "word"),
    [
        ("ALTER TABLE users ADD CHECK (note <> 'secret value')", "check violation"),
        ("ALTER TABLE users ALTER note TYPE varchar(5)", "string data right truncation"),
        ("ALTER TABLE users ADD EXCLUDE USING btree (note WITH =)", "exclusion violation"),
        (
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF NEW.note = 'secret value' THEN RAISE EXCEPTION 'no %', NEW.note; END IF; RETURN NEW; END $$;"
            " CREATE TRIGGER refuse BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION refuse()",
            "raise exception",
        ),
        (
            "CREATE TABLE parents (id integer PRIMARY KEY, note text UNIQUE); INSERT INTO parents VALUES (1, 'y');"
            " ALTER TABLE users ADD FOREIGN KEY (note) REFERENCES parents (note) DEFERRABLE INITIALLY DEFERRED",
            "foreign key violation",
        ),
    ],
)
def test_a_refusal_names_its_reason_and_no_value(
    refusing: str, word: str, target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    upsert(target, USERS, [[1, "a", "y"]])
    if "EXCLUDE" in refusing:
        upsert(target, USERS, [[9, "a", "secret value"]])
    sql.execute(refusing.encode())
    with suppress(TransientError), target.begin() as txn, suppress(Rejected):
        txn.upsert(USERS, [[2, "b", "secret value"]])  # it may see here that the table is another
    with target.begin() as txn:
        with pytest.raises(Rejected) as refused:
            txn.upsert(USERS, [[2, "b", "secret value"]])
        txn.upsert(USERS, [[3, "c", None]])
    assert word in str(refused.value)
    assert not isinstance(refused.value, UniqueConflict)
    assert "secret" not in str(refused.value)
    assert sql.execute("SELECT id FROM users WHERE id < 9 ORDER BY id").fetchall() == [(1,), (3,)]


def test_keys_that_only_the_target_holds_equal_are_refused_so_that_bisection_parts_them(
    target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    schema = table("numbers", ("id", "numeric", Kind.DECIMAL), ("n", "integer", Kind.INT))
    with target.begin() as txn:
        with pytest.raises(Rejected):
            txn.upsert(schema, [["1", 1], ["1.0", 2]])
        txn.upsert(schema, [["1", 1]])
        txn.upsert(schema, [["1.0", 2]])
    assert sql.execute("SELECT id::text, n FROM numbers").fetchall() == [("1.0", 2)]


def refused_of(target: PostgresTarget, schema: TableSchema, rows: list[list[Value]]) -> dict[int, str]:
    """What of a bulk write is refused, and why; halved where the target can't tell."""
    with target.begin() as txn:

        def written(part: list[list[Value]], first: int) -> dict[int, str]:
            try:
                return {first + place: str(error) for place, error in txn.upsert(schema, part).items()}
            except Rejected as error:
                if len(part) == 1:
                    return {first: str(error)}
                middle = len(part) // 2
                return written(part[:middle], first) | written(part[middle:], first + middle)

        return written(rows, 0)


POISON: dict[str, tuple[str, Callable[[int], list[Value]]]] = {
    "23514": ("ADD CONSTRAINT c CHECK (length(email) < 10 AND note <> email)", lambda n: [n, "x" * 20, "y"]),
    "23502": ("ALTER note SET NOT NULL", lambda n: [n, "x", None]),
    "22001": ("ALTER email TYPE varchar(10)", lambda n: [n, "x" * 20, "y"]),
    "22003": ("ALTER id TYPE int", lambda n: [2**40 + n, "x", "y"]),
    "22P02": ("ALTER note TYPE uuid USING null", lambda n: [n, "x", "no uuid"]),
    "NUL": ("ADD more int", lambda n: [n, "x\0y", "y"]),
    "P0001": (
        "ADD CHECK (true); CREATE FUNCTION angry() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
        "IF length(NEW.email) > 10 THEN RAISE 'angry'; END IF; RETURN NEW; END$$; "
        "CREATE TRIGGER angry BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION angry()",
        lambda n: [n, "x" * 20, "y"],
    ),
}


@pytest.mark.parametrize("word", POISON)
def test_every_refused_row_is_found_and_no_other(
    word: str, target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    upsert(target, USERS, [[1, "a", None]])
    sql.execute("DELETE FROM users")
    statement, unfit = POISON[word]
    sql.execute(f"ALTER TABLE users {statement}".encode())
    with suppress(TransientError):  # somebody has changed the table: once more
        refused_of(target, USERS, [[1, "x", None if word == "22P02" else "y"], unfit(2), unfit(3)])
    note = None if word == "22P02" else "y"
    for batch in range(3):  # the first learns, the others know
        wrong = {3, 4, 40, 99 - batch}
        rows: list[list[Value]] = [unfit(n) if n in wrong else [n, f"x{batch}", note] for n in range(100)]
        refused = refused_of(target, USERS, rows)
        assert refused.keys() == wrong
        assert all(word in reason for reason in refused.values())
        found = sql.execute("SELECT id, email FROM users WHERE email = %s ORDER BY id", (f"x{batch}",)).fetchall()
        assert found == [(n, f"x{batch}") for n in range(100) if n not in wrong]


@pytest.mark.parametrize("word", ["23514", "23502", "22001", "22P02"])
def test_what_was_refused_is_taken_as_soon_as_the_table_is_mended(
    word: str, target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    statement, unfit = POISON[word]
    mend = {
        "23514": "DROP CONSTRAINT c",
        "23502": "ALTER note DROP NOT NULL",
        "22001": "ALTER email TYPE text",
        "22P02": "ALTER note TYPE text",
    }
    upsert(target, USERS, [[1, "a", None]])
    sql.execute("DELETE FROM users")
    sql.execute(f"ALTER TABLE users {statement}".encode())
    rows: list[list[Value]] = [[1, "x", None], unfit(2), unfit(3)]
    if word == "23502":
        rows[0][2] = "y"

    def again() -> dict[int, str]:
        """As the subscriber does it."""
        for _ in range(3):
            with suppress(TransientError):
                return refused_of(target, USERS, rows)
        raise AssertionError("the table is never seen as it is")

    assert again().keys() == again().keys() == {1, 2}
    sql.execute(f"ALTER TABLE users {mend[word]}".encode())
    assert again() == {}
    assert sql.execute("SELECT count(*) FROM users").fetchone() == (3,)


def test_a_check_that_can_not_be_asked_apart_from_the_table_is_no_trap(
    target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    """Such as one about the row as a whole, one that divides by zero, one about a column that is not ours."""
    upsert(target, USERS, [[1, "a", None]])
    sql.execute("DELETE FROM users")
    sql.execute("ALTER TABLE users ADD theirs int DEFAULT 1, ADD CHECK (users IS NOT NULL OR id <> 3)")
    sql.execute("ALTER TABLE users ADD CHECK (length(email) > theirs), ADD CHECK (100 / (id - 7) < 100)")
    rows: list[list[Value]] = [[n, "" if n == 5 else "xx", None] for n in range(10)]
    for _ in range(3):
        with suppress(TransientError):
            refused = refused_of(target, USERS, rows)
    assert refused.keys() == {3, 5, 7, 8}


def test_a_suspicion_that_nothing_confirms_is_given_up(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    upsert(target, USERS, [[1, "a", None]])
    sql.execute("ALTER TABLE users ADD CONSTRAINT c CHECK (length(email) < 10)")
    assert refused_of(target, USERS, [[1, "x" * 20, None], [2, "x", None]]).keys() == {0}
    suspicions = target._suspicions._of[TableName("public", "users")]
    assert len(suspicions) == 1
    for number in range(SUSPECTED_FOR):
        upsert(target, USERS, [[number, "x", None]])
    assert not target._suspicions._of[TableName("public", "users")]
