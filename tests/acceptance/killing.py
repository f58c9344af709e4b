"""Programs that die at a named place (`UPWELL_FAILPOINT` of upwell.failpoints), and sources that forget."""

from __future__ import annotations

import signal
import time

import psycopg

from tests.acceptance.pipelines import Pipeline, Program, Role
from tests.acceptance.workload import Connection
from upwell.config import identifier

# A service with work to do passes every place within moments; one that is not reached by then never is.
REACHED_S = 30.0
# What is passed once in a resync, or for one event, and not again and again.
SELDOM = (
    "publisher.start.epoch_saved",
    "publisher.requests.finished",
    "publisher.start.position_taken",
    "publisher.dead_letters.kept",
    "publisher.chunk.read",
    "publisher.chunk.offered",
    "publisher.swept",
    "applier.swept",
    "subscriber.shard.finished",
)


def die_at(pipeline: Pipeline, role: Role, place: str, *options: str, passage: int = 1) -> Program:
    """Runs the program until it kills itself at the place; fails where it never comes there."""
    program = pipeline.start(role, *options, failpoint=f"{place}:{passage}")
    try:
        code = program.wait(REACHED_S)
    except AssertionError as error:
        raise AssertionError(f"{place} was never reached: the program goes on") from error
    assert code == -signal.SIGKILL, f"{place} was never reached: the program ended with {code}"
    return program


def drop_slot(source: Connection, pipeline: Pipeline) -> None:
    """The source forgets what was to be published. Waits until the server has noticed that the publisher is gone."""
    slot = identifier(pipeline.name)
    deadline = time.monotonic() + REACHED_S
    while True:
        try:
            source.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
            return
        except psycopg.errors.ObjectInUse:
            assert time.monotonic() < deadline, f"the slot {slot} is still in use"
            time.sleep(0.05)


def drop_triggers(source: Connection, table: str = "*") -> None:
    """An SQLite table changes unseen from now on; all of them where none is named."""
    names = source.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name GLOB ?", (table,))
    for (name,) in names.fetchall():
        source.execute(f'DROP TRIGGER "{name}"')


def forget_log(source: Connection) -> None:
    """An SQLite database's change log goes, and what was not published yet goes with it."""
    drop_triggers(source)
    for table in ("_upwell_log", "_upwell_meta", "_upwell_tables"):
        source.execute(f"DROP TABLE {table}")
