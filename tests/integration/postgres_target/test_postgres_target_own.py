"""What upwell keeps in its own schema: the notes by which a resync sweeps, what was put aside, its version."""

import random
import string
from typing import Any

import psycopg
import pytest

from tests.contract.target_contract import PIPELINE, upsert
from tests.integration.postgres_target.schemas import table
from upwell.errors import OperatorError
from upwell.model import DeadLetter, Kind, Value
from upwell.ports import Request
from upwell.targets.postgres import PostgresTarget


def test_equal_keys_that_look_different_survive_a_sweep(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    schema = table("numbers", ("id", "numeric", Kind.DECIMAL), ("n", "integer", Kind.INT))
    upsert(target, schema, [["1.0", 1]])
    with target.begin() as txn:
        txn.upsert(schema, [["1.00", 2]])
        txn.note(PIPELINE, schema, 1, [["1.00"]])
        assert txn.sweep(PIPELINE, schema, 1) == 0
    assert sql.execute("SELECT id::text, n FROM numbers").fetchall() == [("1.00", 2)]


def test_long_and_composite_keys_are_noted(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    schema = table("docs", ("path", "text", Kind.TEXT), ("day", "date", Kind.DATE), key=("day", "path"))
    chance = random.Random(3)
    long = ["".join(chance.choices(string.ascii_letters, k=2400)) for _ in range(2)]
    rows: list[list[Value]] = [[path, "2026-01-31"] for path in (*long, "a,b", '"', "")]
    upsert(target, schema, rows)
    with target.begin() as txn:
        txn.note(PIPELINE, schema, 1, [[row[1], row[0]] for row in rows[1:]])
        assert txn.sweep(PIPELINE, schema, 1) == 1
    assert sql.execute("SELECT count(*) FROM docs WHERE path = %s", [long[0]]).fetchone() == (0,)


def test_dead_letters_repairs_and_status_can_be_read(target: PostgresTarget) -> None:
    letter = DeadLetter(0, "public.users", '["a\\u0000"]', "00ff", "refused \0 so", "2026-01-31T10:00:00Z", b"\0p")
    with target.begin() as txn:
        txn.add_dead_letters(PIPELINE, [letter, letter])
        txn.add_dead_letters("another", [letter])
        txn.ask_repair(PIPELINE, Request("holes-1", None, "why"))
        txn.lock_lanes(PIPELINE, [1, 2])
    (kept,) = target.dead_letters(PIPELINE)
    assert (kept.table, kept.key, kept.version, kept.payload) == ("public.users", '["a\\u0000"]', "00ff", b"")
    whole = target.dead_letter(kept.id)
    assert whole is not None
    assert whole.payload == b"\0p"
    assert target.pending_repairs(PIPELINE) == [Request("holes-1", None, "why")]
    status = target.status(PIPELINE)
    assert (status["lanes"], status["dead_letters"], status["repairs_pending"]) == (2, {"public.users": 1}, 1)
    target.repair_handed_over(PIPELINE, "holes-1")
    assert target.pending_repairs(PIPELINE) == []
    assert target.drop_dead_letter(kept.id)
    assert not target.drop_dead_letter(kept.id)
    assert target.dead_letter(kept.id) is None
    assert len(target.dead_letters("another")) == 1


def test_a_newer_upwell_is_respected(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    target.check()
    sql.execute("UPDATE upwell.version SET version = 1000")
    target.close()
    with pytest.raises(OperatorError, match="newer upwell"):
        target.check()
