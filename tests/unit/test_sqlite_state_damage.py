"""A state file that was damaged or replaced: refused in a sentence, or an older state that is known to be one."""

import random
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from upwell.errors import OperatorError, TransientError, UpwellError
from upwell.model import Checkpoint, Column, DeadLetter, Kind, Position, TablePhase, TableProgress, TableSchema
from upwell.state.sqlite import SqliteState
from upwell.state.witness import Witness, WitnessDamaged

NOW = 1_800_000_000.0
SCHEMA = TableSchema("main.item", (Column("id", "int", Kind.INT), Column("name", "text", Kind.TEXT)), ("id",), "sqlite")
TABLES = {name: TableProgress(TablePhase.STREAM, resync=7) for name in ("main.item", "main.other")}
FLIPS = 400


def history(state: SqliteState, epoch: int) -> list[Checkpoint]:
    """What a publisher saves: many positions, three epochs from the first on, dead letters, requests, a status."""
    lease = state.acquire(NOW)
    saved = []
    for number in range(60):
        lanes = dict.fromkeys(range(64), (lease.term, number))
        schemas = {"main.item": SCHEMA}
        position = Position(f"{number}")
        checkpoint = Checkpoint(epoch + number // 20, lease.term, position, number, lanes, TABLES, schemas)
        state.save(checkpoint, lease)
        saved.append(checkpoint)
        state.put_status({"events": number, "tables": {}})
        if number % 10 == 0:
            state.add_dead_letters([DeadLetter(0, "main.item", f"[{number}]", "00", "too large", "2026", b"p" * 300)])
            state.add_request("main.item", "asked")
    return saved


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Checkpoint]]:
    """The files as a killed publisher leaves them, with the log that was not yet merged into the database."""
    folder = tmp_path_factory.mktemp("state")
    (folder / "live").mkdir()
    state = SqliteState(str(folder / "live" / "state.db"), "shop")
    saved = history(state, epoch=10)
    state.release()  # merges the log: what follows is in the log alone
    saved += history(state, epoch=20)
    shutil.copytree(folder / "live", folder / "crashed")
    state.release()
    return folder / "crashed", saved


def opened(folder: Path) -> Checkpoint | None:
    """What the next publisher finds; it looks at everything else too. Raises UpwellError."""
    state = SqliteState(str(folder / "state.db"), "shop")
    try:
        state.acquire(NOW)
        found = state.load()
        state.requests()
        state.status()
        state.dead_letters()
        return found
    finally:
        state.release()


def check(folder: Path, saved: list[Checkpoint]) -> str:
    """What became of it: refused, nothing, as it was, older, or known to be older."""
    try:
        found = opened(folder)
    except UpwellError as error:
        return "refused" if isinstance(error, OperatorError) and "\n" not in error.message else f"wrong: {error!r}"
    if found is None:
        return "nothing"
    if found in saved:
        assert found.epoch == saved[-1].epoch, "a state of an earlier epoch passed for the newest"
        return "as it was" if found == saved[-1] else "older"
    wanted = {name: replace(table, wanted="") for name, table in found.tables.items()}
    assert all(table.wanted for table in found.tables.values())
    assert found.epoch >= saved[-1].epoch
    assert any(replace(found, tables=wanted, epoch=each.epoch) == each for each in saved), "nobody saved this"
    return "known to be older"


def test_flipped_bits_never_make_another_state(crashed: tuple[Path, list[Checkpoint]], tmp_path: Path) -> None:
    folder, saved = crashed
    outcomes: dict[str, int] = {}
    for seed in range(FLIPS):
        chance = random.Random(seed)
        copy = tmp_path / str(seed)
        shutil.copytree(folder, copy)
        file = copy / chance.choice(("state.db", "state.db-wal", "state.db-wal", "state.db.epoch"))
        data = bytearray(file.read_bytes())
        for _ in range(chance.choice((1, 1, 8))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
        try:
            outcome = check(copy, saved)
            assert not outcome.startswith("wrong"), outcome
        except BaseException as error:
            error.add_note(f"seed {seed}, {file.name}")
            raise
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        shutil.rmtree(copy)
    assert outcomes.keys() >= {"refused", "as it was", "known to be older"}, outcomes


@pytest.mark.parametrize("name", ["state.db", "state.db-wal", "state.db.epoch"])
def test_cut_off_files_never_make_another_state(
    crashed: tuple[Path, list[Checkpoint]], tmp_path: Path, name: str
) -> None:
    folder, saved = crashed
    size = (folder / name).stat().st_size
    for number, length in enumerate(sorted({0, 1, 100, 4096, *(size * n // 23 for n in range(24))})):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        with (copy / name).open("r+b") as file:
            file.truncate(length)
        assert not check(copy, saved).startswith("wrong")


def test_a_file_from_a_backup_is_known_to_be_older(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    state = SqliteState(str(path), "shop")
    lease = state.acquire(NOW)
    old = Checkpoint(10, lease.term, Position("old"), tables=TABLES)
    state.save(old, lease)
    state.release()
    shutil.copy(path, tmp_path / "backup")
    lease = state.acquire(NOW)
    state.save(replace(old, epoch=11), lease)
    state.release()
    shutil.copy(tmp_path / "backup", path)
    found = opened(tmp_path)
    assert found is not None
    assert (found.epoch, found.position) == (11, "old")
    assert all("older than the last one" in table.wanted for table in found.tables.values())


def test_a_file_of_the_same_epoch_goes_on_where_it_was(tmp_path: Path) -> None:
    """Whether the source still has what follows is for the source to say."""
    state = SqliteState(str(tmp_path / "state.db"), "shop")
    lease = state.acquire(NOW)
    checkpoint = Checkpoint(10, lease.term, Position("old"), tables=TABLES)
    state.save(checkpoint, lease)
    state.release()
    assert opened(tmp_path) == checkpoint
    (tmp_path / "state.db.epoch").unlink()  # of a version that wrote none
    assert opened(tmp_path) == checkpoint


def test_the_witness_remembers_and_can_be_trusted(tmp_path: Path) -> None:
    path = tmp_path / "state.db.epoch"
    witness = Witness(str(path))
    assert witness.epoch() == 0
    for epoch in (5, 5, 6):
        witness.note(epoch)
        assert Witness(str(path)).epoch() == epoch
    path.unlink()
    witness.note(6)
    assert Witness(str(path)).epoch() == 6
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    path.write_bytes(path.read_bytes().replace(b"6", b"7", 1))
    with pytest.raises(WitnessDamaged):
        Witness(str(path)).epoch()


def test_a_witness_that_can_not_be_written_stops_nothing_but_the_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SqliteState(str(tmp_path / "state.db"), "shop")
    lease = state.acquire(NOW)
    state.save(Checkpoint(10, lease.term), lease)

    def full(self: Witness, epoch: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Witness, "note", full)
    with pytest.raises(TransientError, match="No space left on device"):
        state.save(Checkpoint(11, lease.term), lease)
    monkeypatch.undo()
    assert state.load() == Checkpoint(10, lease.term)
    state.save(Checkpoint(11, lease.term), lease)
    assert state.load() == Checkpoint(11, lease.term)
    state.release()


def test_a_restored_file_is_made_private_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    state = SqliteState(str(path), "shop")
    state.acquire(NOW)
    state.release()
    path.chmod(0o644)
    opened(tmp_path)
    assert oct(path.stat().st_mode & 0o777) == "0o600"


def test_tables_that_were_renamed_in_the_file_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    history(SqliteState(str(path), "shop"), epoch=10)
    for statement in ("ALTER TABLE checkpoint RENAME COLUMN body TO bodz", "ALTER TABLE lease RENAME TO leash"):
        copy = tmp_path / statement[12:17]
        copy.mkdir()
        with sqlite3.connect(path) as source, sqlite3.connect(copy / "state.db") as damaged:
            source.backup(damaged)
            damaged.execute(statement)
        damaged.close()
        source.close()
        with pytest.raises(OperatorError, match="can't be trusted"):
            opened(copy)
