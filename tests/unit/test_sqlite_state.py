"""The state file: its lock, its rights, damage, a full disk, a kill in the middle of saving, other processes."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from upwell.errors import LeaseLost, OperatorError, TransientError
from upwell.model import Checkpoint, Column, DeadLetter, Kind, Position, TableSchema
from upwell.state.sqlite import SqliteState

NOW = 1_800_000_000.0
LETTER = DeadLetter(0, "main.item", "[1]", "0" * 32, "too large", "2026-01-31T10:00:00.000000Z", b"\x00")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def state(path: Path) -> Iterator[SqliteState]:
    state = SqliteState(str(path), "shop")
    yield state
    state.release()


def test_only_the_owner_may_read_it(state: SqliteState, path: Path) -> None:
    old = os.umask(0)
    try:
        lease = state.acquire(NOW)
        state.save(Checkpoint(1, lease.term), lease)
    finally:
        os.umask(old)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()}
    assert set(modes) >= {"state.db", "state.db.lock"}
    assert set(modes.values()) == {"0o600"}


def test_asking_creates_no_file(state: SqliteState, path: Path) -> None:
    assert (state.status(), state.load(), state.dead_letters(), state.requests()) == (None, None, [], [])
    assert not path.exists()


def test_the_file_of_another_pipeline_is_left_alone(state: SqliteState, path: Path) -> None:
    state.acquire(NOW)
    state.release()
    with pytest.raises(OperatorError, match="belongs to the pipeline shop, not to other") as caught:
        SqliteState(str(path), "other").acquire(NOW)
    assert caught.value.code == "UW-ST-001"
    state.acquire(NOW)  # and the failed attempt holds no lock


def test_a_second_publisher_is_told_which_file(state: SqliteState, path: Path) -> None:
    state.acquire(NOW)
    with pytest.raises(LeaseLost, match=r"state\.db\.lock"):
        SqliteState(str(path), "shop").acquire(NOW)


def test_another_database_is_left_alone(state: SqliteState, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE precious (id INTEGER)")
    connection.close()
    with pytest.raises(OperatorError, match="not a state file"):
        state.acquire(NOW)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("precious",)]
    connection.close()


def test_what_is_no_database_is_left_alone(state: SqliteState, path: Path) -> None:
    path.write_text("pipeline: shop\n" * 1000)
    with pytest.raises(OperatorError, match="can't be trusted"):
        state.acquire(NOW)
    assert path.read_text().startswith("pipeline: shop")


@pytest.mark.parametrize(
    "damage",
    ["UPDATE checkpoint SET body = replace(CAST(body AS TEXT), 'abc', 'abd')", "UPDATE checkpoint SET sha256 = ''"],
)
def test_a_checkpoint_that_was_changed_is_not_trusted(state: SqliteState, path: Path, damage: str) -> None:
    lease = state.acquire(NOW)
    state.save(Checkpoint(1, lease.term, Position("abc")), lease)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(damage.replace("replace(", "CAST(replace(").replace("'abd')", "'abd') AS BLOB)"))
    connection.close()
    with pytest.raises(OperatorError, match="can't be trusted") as caught:
        state.load()
    assert "read anew" in caught.value.remedy


def test_a_layout_of_another_version_is_left_alone(state: SqliteState, path: Path) -> None:
    state.acquire(NOW)
    state.release()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(OperatorError, match="another version of upwell"):
        state.acquire(NOW)


def test_a_full_disk_is_waited_for(state: SqliteState) -> None:
    lease = state.acquire(NOW)
    state.save(Checkpoint(1, lease.term, Position("kept")), lease)
    assert state._open is not None
    (pages,) = state._open.execute("PRAGMA page_count").fetchone()
    state._open.execute(f"PRAGMA max_page_count = {pages}")  # as if there were no room for more
    schemas = {
        str(n): TableSchema(str(n), (Column("c" * 500, "text", Kind.TEXT),), ("c",), "sqlite") for n in range(500)
    }
    with pytest.raises(TransientError, match="full"):
        state.save(Checkpoint(2, lease.term, schemas=schemas), lease)
    state.save(Checkpoint(2, lease.term, schemas=schemas), lease)  # the disk has room again
    kept = state.load()
    assert kept is not None
    assert kept.schemas == schemas


def test_a_file_that_may_not_be_written_is_the_operators(state: SqliteState, path: Path) -> None:
    path.mkdir()
    with pytest.raises(OperatorError, match="can't be"):
        state.acquire(NOW)


def test_requests_come_from_other_processes_in_order(state: SqliteState, path: Path) -> None:
    state.acquire(NOW)
    other = SqliteState(str(path), "shop")
    first, second = other.add_request("main.item", "asked"), other.add_request(None, "all")
    assert list(state.requests()) == [first, second]
    state.finish(first)
    state.finish(first)
    assert list(other.requests()) == [second]
    other.release()


def test_status_is_seen_from_other_processes(state: SqliteState, path: Path) -> None:
    state.acquire(NOW)
    other = SqliteState(str(path), "shop")
    assert other.status() is None
    for n in range(3):
        state.put_status({"tables": {"main.item": {"rows": n}}, "lag_s": None})
        assert other.status() == {"tables": {"main.item": {"rows": n}}, "lag_s": None}
    other.release()


def test_dead_letters_are_shown_and_dropped(state: SqliteState, path: Path) -> None:
    state.acquire(NOW)
    state.add_dead_letters([replace(LETTER, key=f"[{n}]") for n in range(3)])
    other = SqliteState(str(path), "shop")
    one, two, three = other.dead_letters()
    assert other.dead_letter(two.id) == replace(LETTER, key="[1]", id=two.id)
    assert two == replace(LETTER, key="[1]", id=two.id, payload=b""), "a list of many is no place for their rows"
    assert other.dead_letter(99) is None
    assert (other.drop_dead_letter(one.id), other.drop_dead_letter(one.id)) == (True, False)
    assert list(state.dead_letters()) == [two, three]
    other.release()


def test_what_is_refused_again_is_one_letter_with_the_newest_reason(state: SqliteState) -> None:
    state.acquire(NOW)
    state.add_dead_letters([LETTER])
    (letter,) = state.dead_letters()
    state.add_dead_letters([replace(LETTER, reason="still too large")])
    assert list(state.dead_letters()) == [replace(letter, reason="still too large")]


SAVER = textwrap.dedent(
    """
    import sys
    from upwell.model import Checkpoint, Position
    from upwell.state.sqlite import SqliteState
    state = SqliteState(sys.argv[1], "shop")
    lease = state.acquire(float(sys.argv[2]))
    n = 0 if (kept := state.load()) is None else kept.commit
    while True:
        n += 1
        state.save(Checkpoint(1, lease.term, Position("x" * (n % 50_000)), n), lease)
        print(n, flush=True)
    """
)


def test_a_kill_while_saving_damages_nothing(state: SqliteState, path: Path) -> None:
    """What was said to be saved is there, whole, and the lock is free, whenever the process is killed."""
    saved = 0
    for round_ in range(8):
        with subprocess.Popen([sys.executable, "-c", SAVER, str(path), str(NOW)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(3 + 5 * round_):
                saved = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            saved = max([saved, *(int(line) for line in process.stdout.read().split(b"\n")[:-1])])
        lease = state.acquire(NOW)
        kept = state.load()
        assert kept is not None
        assert kept.commit in (saved, saved + 1)
        assert kept.position == "x" * (kept.commit % 50_000)
        assert kept.term < lease.term
        state.release()


def test_who_lost_its_lock_file_learns_that_it_has_a_successor(state: SqliteState, path: Path) -> None:
    """As after the take-over of a publisher that hangs: a person removes its lock file."""
    old = state.acquire(NOW)
    state.renew(old)
    state.put_status({"running": True, "of": "the old one"})
    path.with_name(path.name + ".lock").unlink()
    successor = SqliteState(str(path), "shop")
    new = successor.acquire(NOW)
    successor.put_status({"of": "the new one"})
    successor.renew(new)
    works: list[Callable[[], None]] = [
        lambda: state.renew(old),
        lambda: state.put_status({"of": "the old one"}),
        lambda: state.save(Checkpoint(2, old.term), old),
    ]
    for work in works:
        with pytest.raises(LeaseLost, match="has taken over the state file") as caught:
            work()
        assert caught.value.code == "UW-ST-002"
    assert successor.status() == {"of": "the new one"}
    successor.release()


def test_a_copy_never_comes_to_the_same_term(state: SqliteState, path: Path, tmp_path: Path) -> None:
    """Started in the same second, as after a power cut on both machines, by clocks that have been set back."""
    state.acquire(NOW)
    state.release()
    copy = tmp_path / "copy" / path.name
    copy.parent.mkdir()
    shutil.copy(path, copy)
    other = SqliteState(str(copy), "shop")
    assert state.acquire(NOW - 60).term != other.acquire(NOW - 60).term
    other.release()


def test_a_term_is_above_that_of_a_file_lost_a_moment_ago(path: Path) -> None:
    terms = []
    for moment in range(20):
        fresh = SqliteState(str(path.with_name(f"{moment}.db")), "shop")
        terms.append(fresh.acquire(NOW + moment / 1000).term)
        fresh.release()
    assert terms == sorted(set(terms))
