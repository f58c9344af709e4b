"""Connections that break, hang, wait for each other or are refused, and a writer that became read-only."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from lab.part import LOOPBACK, free_port
from tests.contract.target_contract import PIPELINE, USERS, in_threads, upsert
from upwell.errors import OperatorError, TransientError
from upwell.ports import TargetTransaction
from upwell.targets import postgres_session
from upwell.targets.postgres import PostgresTarget


def test_a_terminated_connection_is_replaced(target: PostgresTarget, sql: psycopg.Connection[Any]) -> None:
    upsert(target, USERS, [[1, "a", None]])

    def cut_off(write: Callable[[TargetTransaction], object]) -> None:
        with target.begin() as txn:
            txn.upsert(USERS, [[2, "b", None]])
            txn.lock_lanes(PIPELINE, [1])
            sql.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'upwell.watermark'::regclass")
            write(txn)

    many = [[number, "b" * 1000, None] for number in range(2, 5000)]
    for write in (
        lambda txn: txn.lock_lanes(PIPELINE, [2]),
        lambda txn: txn.upsert(USERS, many),
        lambda txn: None,  # it ends at the commit
    ):
        with pytest.raises(TransientError):
            cut_off(write)
        assert sql.execute("SELECT id FROM users").fetchall() == [(1,)]
    upsert(target, USERS, [[2, "b", None]])


def test_an_error_swallowed_without_undoing_never_looks_like_a_commit(target: PostgresTarget) -> None:
    with pytest.raises(RuntimeError), target.begin() as txn, suppress(Exception):
        txn._session.run("SELECT 1 / 0")
    upsert(target, USERS, [[1, None, None]])


def test_a_writer_that_became_read_only_is_left(
    target: PostgresTarget, sql: psycopg.Connection[Any], database: str
) -> None:
    """As after a failover: the old writer answers and refuses, a new connection finds the new writer."""
    upsert(target, USERS, [[1, "a", None]])
    sql.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with psycopg.connect(sql.info.dsn, password=sql.info.password, autocommit=True):
        target._pool.close()
        for _ in range(2):
            with pytest.raises(TransientError, match="read only"):
                upsert(target, USERS, [[2, "b", None]])
        assert [f.code for f in target.findings([]) if f.level == "fail"] == ["UW-PT-102"]
        target._pool.close()
    sql.execute("SET default_transaction_read_only = off")
    sql.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")
    upsert(target, USERS, [[2, "b", None]])


def test_waiting_for_a_lock_has_an_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_session, "_SETTINGS", postgres_session._SETTINGS.replace("'60s'", "'50ms'"))
    target = PostgresTarget(url, create_tables=True, schema_changes="apply")
    with target.begin() as txn:
        txn.lock_lanes(PIPELINE, [1])
    with target.begin() as holder:
        holder.lock_lanes(PIPELINE, [1])
        with pytest.raises(TransientError, match="lock not available"), target.begin() as waiter:
            waiter.lock_lanes(PIPELINE, [1])
    target.close()


def test_who_hangs_in_the_middle_of_a_copy_is_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL has no timeout for that: neither is the transaction idle, nor can the statement be cancelled."""
    monkeypatch.setattr(postgres_session, "_SETTINGS", postgres_session._SETTINGS.replace("'60s'", "'50ms'"))
    target = PostgresTarget(url, create_tables=True, schema_changes="apply")
    with target.begin() as txn:
        txn.lock_lanes(PIPELINE, [1])
    hanging = psycopg.connect(url, application_name="upwell")
    hanging.execute("SELECT 1 FROM upwell.watermark FOR UPDATE")
    hanging.execute("SET statement_timeout TO 20")
    hanging.pgconn.send_query(b"COPY upwell.watermark FROM STDIN")
    for patience_s in (3600, 0):
        monkeypatch.setattr(postgres_session, "IDLE_IN_TRANSACTION_S", patience_s)
        with pytest.raises(TransientError, match="lock not available"), target.begin() as waiter:
            waiter.lock_lanes(PIPELINE, [1])
    with pytest.raises(psycopg.OperationalError):
        listen_to_the_end(hanging)
    hanging.close()
    with target.begin() as txn:
        txn.lock_lanes(PIPELINE, [1])
    target.close()


def listen_to_the_end(connection: psycopg.Connection[Any]) -> None:
    while True:
        connection.pgconn.consume_input()


def test_of_two_in_a_deadlock_one_goes_on(target: PostgresTarget) -> None:
    with target.begin() as txn:
        txn.lock_lanes(PIPELINE, [1, 2])
    both = threading.Barrier(2)
    failed: list[TransientError] = []

    def lock(first: int, second: int) -> None:
        try:
            with target.begin() as txn:
                txn.lock_lanes(PIPELINE, [first])
                both.wait()
                txn.lock_lanes(PIPELINE, [second])
        except TransientError as error:
            failed.append(error)

    in_threads(lambda: lock(1, 2), lambda: lock(2, 1))
    assert [error.code for error in failed] == ["UW-PT-002"]


def test_connections_are_bounded(url: str, monkeypatch: pytest.MonkeyPatch, sql: psycopg.Connection[Any]) -> None:
    monkeypatch.setattr(postgres_session, "POOL_WAIT_S", 0.05)
    target = PostgresTarget(url, create_tables=True, schema_changes="apply", connections_max=1)
    with target.begin(), pytest.raises(TransientError, match="in use"), target.begin():
        pass
    for _ in range(3):
        target.check()
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert sql.execute(count).fetchone() == (1,)
    target.close()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda url, name: url.replace("upwell:", "upwell:wrong"), "UW-PT-021"),
        (lambda url, name: url.replace("upwell:", "nobody_such:"), "UW-PT-021"),
        (lambda url, name: url.replace(name, "no_such_database"), "UW-PT-023"),
        (lambda url, name: url.replace(LOOPBACK, "no-such-host.invalid"), "UW-PT-024"),
        (lambda url, name: url + "?sslmode=require", "UW-PT-025"),
        (lambda url, name: f"postgresql://upwell:secret@{LOOPBACK}:{free_port()}/x", "UW-PT-026"),
        (lambda url, name: url + "?no_such_option=1", "UW-PT-027"),
    ],
)
def test_a_first_connection_says_what_is_wrong(change: Any, code: str, url: str, database: str) -> None:
    password = url.split(":")[2].split("@")[0]
    target = PostgresTarget(change(url, database), create_tables=True, schema_changes="apply")
    with pytest.raises(OperatorError) as refused:
        target.check()
    assert refused.value.code == code
    assert refused.value.remedy
    assert password not in str(refused.value)
    (finding,) = target.findings([USERS])
    assert (finding.level, finding.code) == ("fail", code)
    later = OperatorError if code in ("UW-PT-021", "UW-PT-027") else TransientError
    with pytest.raises(later), target.begin():
        pass
