"""Unique values that rows swap, take over and leave, in one transaction and in several at once."""

import random
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from tests.contract.target_contract import PIPELINE, USERS, in_threads, put, upsert
from upwell.errors import TransientError, UniqueConflict
from upwell.model import Value
from upwell.targets.postgres import PostgresTarget

UNIQUES = {
    "plain": "CREATE UNIQUE INDEX ON users (email)",
    "constraint over two columns": "ALTER TABLE users ADD UNIQUE (email, note)",
    "expression": "CREATE UNIQUE INDEX ON users (lower(email), (id > 0))",
    "partial": "CREATE UNIQUE INDEX ON users (email) WHERE note IS NOT NULL",
    "including": "CREATE UNIQUE INDEX ON users (email) INCLUDE (note)",
    "two indexes": "CREATE UNIQUE INDEX ON users (email); CREATE UNIQUE INDEX ON users (upper(email) text_pattern_ops)",
    "generated": "ALTER TABLE users ADD shout text GENERATED ALWAYS AS (upper(email)) STORED UNIQUE",
    "collation": 'CREATE UNIQUE INDEX ON users (email COLLATE "POSIX")',
    "extra columns": "ALTER TABLE users ADD UNIQUE (email), ADD made timestamptz NOT NULL DEFAULT now(),"
    " ADD serial integer GENERATED ALWAYS AS IDENTITY, ADD kept text DEFAULT 'none'",
    "trigger that changes the value": "CREATE UNIQUE INDEX ON users (email);"
    " CREATE FUNCTION trimmed() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN NEW.email := NEW.email || '!'; RETURN NEW; END $$;"
    " CREATE TRIGGER trimmed BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION trimmed()",
}


@pytest.mark.parametrize("unique", UNIQUES.values(), ids=UNIQUES.keys())
def test_swaps_under_every_sort_of_unique_index(
    unique: str, target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    chance = random.Random(11)
    source = {number: f"value {number}" for number in range(12)}
    upsert(target, USERS, [[number, value, "same"] for number, value in source.items()])
    marked = "!" if "trimmed" in unique else ""
    sql.execute(f"UPDATE users SET email = email || '{marked}'")
    sql.execute(unique.encode())
    if "kept" in unique:
        sql.execute("UPDATE users SET kept = 'kept ' || id")
    for _ in range(60):
        one, other = chance.sample(sorted(source), 2)
        source[one], source[other] = source[other], source[one]
        changed: list[list[Value]] = [[number, source[number], "same"] for number in (one, other)]
        if chance.random() < 0.5:
            put(target, USERS, changed)
        else:
            for row in changed:
                put(target, USERS, [row])
    rows = sql.execute("SELECT id, email FROM users ORDER BY id").fetchall()
    if marked:  # a restored row passes the trigger once more: the target's own doing
        rows = [(number, email.rstrip(marked)) for number, email in rows]
    assert rows == sorted(source.items())
    if "kept" in unique:
        assert sql.execute("SELECT count(*) FROM users WHERE kept <> 'kept ' || id").fetchone() == (0,)
    assert sql.execute("SELECT count(*) FROM upwell.evicted").fetchone() == (0,)


def test_nulls_that_are_not_distinct_make_way_too(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    upsert(target, USERS, [[1, "a", None], [2, None, None]])
    sql.execute("CREATE UNIQUE INDEX ON users (email) NULLS NOT DISTINCT")
    put(target, USERS, [[1, None, None]])
    put(target, USERS, [[2, "a", None]])
    assert sql.execute("SELECT id, email FROM users ORDER BY id").fetchall() == [(1, None), (2, "a")]


def test_swaps_by_threads_end_as_the_source(url: str, sql: psycopg.Connection[Any]) -> None:
    """Four lanes at once: deadlocks are retried, no row is refused, none is lost."""
    impatient = f"{url}?options=-c%20deadlock_timeout%3D20ms"
    target = PostgresTarget(impatient, create_tables=True, schema_changes="apply")
    chance = random.Random(5)
    source = {number: f"value {number}" for number in range(24)}
    upsert(target, USERS, [[number, value, None] for number, value in source.items()])
    sql.execute("CREATE UNIQUE INDEX ON users (email)")
    lanes: list[list[list[Value]]] = [[] for _ in range(4)]
    for _ in range(300):
        one, other = chance.sample(sorted(source), 2)
        source[one], source[other] = source[other], source[one]
        for number in (one, other):
            lanes[number % 4].append([number, source[number], None])

    def apply(lane: int) -> None:
        changes, own = lanes[lane], random.Random(lane)
        while changes:
            taken = own.randint(1, 12)
            newest = {row[0]: row for row in changes[:taken]}
            with suppress(TransientError):
                put(target, USERS, [newest[number] for number in sorted(newest, key=str)])
                del changes[:taken]

    in_threads(*(lambda lane=lane: apply(lane) for lane in range(4)))
    target.close()
    assert dict(sql.execute("SELECT id, email FROM users").fetchall()) == source
    assert sql.execute("SELECT count(*) FROM upwell.evicted").fetchone() == (0,)


def test_rows_that_go_while_others_make_way_stay_gone(url: str, sql: psycopg.Connection[Any]) -> None:
    """As above, with rows that are deleted, leave their value to another one and come anew."""
    target = PostgresTarget(f"{url}?options=-c%20deadlock_timeout%3D20ms", create_tables=True, schema_changes="apply")
    chance = random.Random(6)
    source: dict[int, str] = {}
    lanes: list[list[tuple[int, str | None]]] = [[] for _ in range(4)]

    def write(number: int, value: str | None) -> None:
        lanes[number % 4].append((number, value))
        source.pop(number, None)
        if value is not None:
            source[number] = value

    upsert(target, USERS, [[0, "value 0", None]])
    sql.execute("CREATE UNIQUE INDEX ON users (email)")
    write(0, None)
    for _ in range(3_000):
        one, other = chance.sample(range(80), 2)
        before = source.get(one)
        write(one, source.get(other))
        write(other, before or (f"value {chance.randrange(80)}" if chance.random() < 0.5 else None))
        if len(set(source.values())) < len(source):  # the value was taken: the source would have refused it
            write(other, None)

    def apply(lane: int) -> None:
        changes, own = lanes[lane], random.Random(lane)
        while changes:
            taken = own.randint(1, 120)
            newest = dict(changes[:taken])
            with suppress(TransientError):
                with target.begin() as txn:
                    txn.ensure_table(USERS)
                    txn.delete(USERS, [[number] for number, value in sorted(newest.items()) if value is None])
                    rows: list[list[Value]] = [
                        [number, value, None] for number, value in sorted(newest.items()) if value
                    ]
                    try:
                        txn.upsert(USERS, rows)
                    except UniqueConflict:
                        txn.replace(USERS, rows)
                del changes[:taken]

    in_threads(*(lambda lane=lane: apply(lane) for lane in range(4)))
    target.close()
    assert dict(sql.execute("SELECT id, email FROM users").fetchall()) == source
    assert sql.execute("SELECT count(*) FROM upwell.evicted").fetchone() == (0,)


def test_a_waiting_row_that_the_target_refuses_harms_no_other(
    target: PostgresTarget, sql: psycopg.Connection[Any]
) -> None:
    upsert(target, USERS, [[1, "a", None], [2, "b", None]])
    sql.execute("CREATE UNIQUE INDEX ON users (email)")
    put(target, USERS, [[1, "b", None]])
    sql.execute("ALTER TABLE users ADD CHECK (id <> 2)")
    put(target, USERS, [[1, "c", None]])
    assert sql.execute("SELECT id, email FROM users").fetchall() == [(1, "c")]
    assert target.status(PIPELINE)["evicted"] == {"public.users": 1}
