"""The state file is lost, damaged, restored, another's, or can't be written: refused or recovered, never wrong.

After each the source equals the target; or the program refuses with one sentence, a next step and exit code 3, and does
as promised once the next step was taken. The disk is full by RLIMIT_FSIZE on the running process: it fails writes in
the middle as a full disk does, needs no rights and can be lifted.
"""

from __future__ import annotations

import random
import resource
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from tests.acceptance.pipelines import COMMAND_S, EQUAL_S, Pipeline, Program, explained, into_dynamodb, through_kinesis
from tests.acceptance.workload import Writing, create_tables
from tests.proofs import Figures, Servers

WRITES_PER_S = 40
CHANGES = 20  # transactions between a damage and the next start
SOME = 4  # of the damages, the first ones
# Above what a log of the program comes to, below every page of the state file but the first.
FULL_AT_BYTES = 4096


@dataclass(frozen=True)
class Size:
    """How much of what is random."""

    flips: int  # damages by flipped bits, on both ways together
    rows: int
    all: bool  # each damage on both ways; else some of them, on one way each


SMALL = Size(1, 20, all=False)
FULL = Size(16, 60, all=True)


@dataclass
class Outcomes:
    """What became of the damages."""

    refused: int = 0
    recovered: int = 0
    damages: list[str] = field(default_factory=list)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Both ways through all of it."""
    figures: dict[str, str] = {}
    for number, (name, way) in enumerate(_WAYS.items()):
        place = folder / str(number)
        place.mkdir()
        outcomes = Outcomes()
        with way(servers, place, size) as pipeline:
            for damage in _DAMAGES if size.all else _DAMAGES[number:SOME:2]:
                damage(pipeline, outcomes)
            for seed in range(size.flips):
                if seed % len(_WAYS) != number:
                    _flipped_bits(pipeline, outcomes, seed)
            pipeline.assert_no_dead_letters()
        figures[f"{name}: damages"] = ", ".join(outcomes.damages)
        figures[f"{name}: recovered by itself, rows equal"] = str(outcomes.recovered)
        figures[f"{name}: refused with exit code 3, rows equal after the next step"] = str(outcomes.refused)
    return figures


# --- damages while nothing runs -----------------------------------------------------------------------------------


def _deleted(pipeline: Pipeline, outcomes: Outcomes) -> None:
    with _survived(pipeline, outcomes, "deleted"):
        _forget(pipeline)


def _emptied(pipeline: Pipeline, outcomes: Outcomes) -> None:
    with _survived(pipeline, outcomes, "emptied"):
        pipeline.state_file.write_bytes(b"")


def _cut_off(pipeline: Pipeline, outcomes: Outcomes) -> None:
    with _survived(pipeline, outcomes, "cut off"), pipeline.state_file.open("r+b") as file:
        file.truncate(pipeline.state_file.stat().st_size // 2)


def _restored(pipeline: Pipeline, outcomes: Outcomes) -> None:
    """From yesterday, while source and target have moved on."""
    backup = _copied(pipeline)
    _change(pipeline)
    pipeline.once_through()
    with _survived(pipeline, outcomes, "restored"):
        _put_back(pipeline, backup)


def _restored_over_a_resync(pipeline: Pipeline, outcomes: Outcomes) -> None:
    """The epoch has risen since, and nothing else has happened: the position by itself seems to be right."""
    backup = _copied(pipeline)
    pipeline.ask_for_resync()
    pipeline.once_through()
    with _survived(pipeline, outcomes, "restored over a resync"):
        _put_back(pipeline, backup)


def _file_restored_over_a_resync(pipeline: Pipeline, outcomes: Outcomes) -> None:
    """The same, but what stands beside the state file stays."""
    backup = _copied(pipeline)
    pipeline.ask_for_resync()
    pipeline.once_through()
    with _survived(pipeline, outcomes, "file alone restored over a resync"):
        for suffix in ("-wal", "-shm"):
            pipeline.state_file.with_name(pipeline.state_file.name + suffix).unlink(missing_ok=True)
        shutil.copy(backup / pipeline.state_file.name, pipeline.state_file)


def _flipped_bits(pipeline: Pipeline, outcomes: Outcomes, seed: int) -> None:
    """In what a killed publisher leaves behind."""
    publisher = pipeline.start("publish")
    publisher.await_words()
    pipeline.ask_for_resync()
    with Writing(pipeline.workloads[0], WRITES_PER_S):
        _await(lambda: _events(pipeline, publisher.pid) > CHANGES, "a publisher at work")
    publisher.kill()
    with _survived(pipeline, outcomes, f"flipped bits, seed {seed}"):
        chance = random.Random(seed)
        files = [file for file in _files(pipeline) if file.suffix != ".lock" and file.stat().st_size]
        for _ in range(chance.choice((1, 1, 20))):
            file = chance.choice(files)
            data = bytearray(file.read_bytes())
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            file.write_bytes(data)


@contextmanager
def _survived(pipeline: Pipeline, outcomes: Outcomes, damage: str) -> Iterator[None]:
    """What the block does to the state; then the source changes, and the pipeline goes on."""
    outcomes.damages.append(damage)
    try:
        yield
        _change(pipeline)
        publisher = pipeline.start("publish", "--once")
        code = publisher.wait(COMMAND_S)
        if code == 3:
            _check_refusal(publisher.log.read_text())
            _forget(pipeline)  # as the next step says
            pipeline.once("publish")
            outcomes.refused += 1
        else:
            assert code == 0, f"upwell publish --once ended with {code}"
            outcomes.recovered += 1
        if pipeline.subscribed:
            pipeline.once("subscribe")
        pipeline.assert_equal()
        pipeline.assert_no_holes()
    except BaseException as error:
        error.add_note(f"the damage: {damage}")
        raise


def _check_refusal(log: str) -> None:
    assert "Traceback" not in log, log
    said = [line for line in log.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, log
    assert "state file" in said[0], said[0]
    assert "  to do: " in log, log


# --- trouble while it runs, or before -----------------------------------------------------------------------------


def _no_room(pipeline: Pipeline, outcomes: Outcomes) -> None:
    """The disk is full while it runs, has room again, and is full again."""
    outcomes.damages.append("full, room, full, room")
    with pipeline.running() as programs, Writing(pipeline.workloads[0], WRITES_PER_S):
        publisher = programs[0]
        _await(lambda: _events(pipeline, publisher.pid) > 0, "a publisher at work")
        unlimited = resource.prlimit(publisher.pid, resource.RLIMIT_FSIZE)
        for times in (1, 2):
            resource.prlimit(publisher.pid, resource.RLIMIT_FSIZE, (FULL_AT_BYTES, unlimited[1]))
            _await(partial(_has_complained, publisher, times), "a word about the full disk")
            resource.prlimit(publisher.pid, resource.RLIMIT_FSIZE, unlimited)
            before = _events(pipeline, publisher.pid)
            _await(partial(_has_gone_on, pipeline, publisher, before), "going on")
    pipeline.once_through()
    pipeline.assert_equal()


def _has_complained(publisher: Program, times: int) -> bool:
    log = publisher.log.read_text()
    return log.count("can't be written just now") + log.count("is full") >= times


def _has_gone_on(pipeline: Pipeline, publisher: Program, events: int) -> bool:
    return _events(pipeline, publisher.pid) > events


def _no_folder(pipeline: Pipeline, outcomes: Outcomes) -> None:
    """The state's folder is not there, can't be written, or goes away while the publisher runs."""
    outcomes.damages.append("no folder")
    for state in ("nowhere/state.db", "/proc/upwell/state.db"):
        _refuses(pipeline, {"state": state})
    folder = pipeline.folder / "apart"
    folder.mkdir()
    pipeline.configuration["state"] = "apart/state.db"
    pipeline.write_configuration()
    publisher = pipeline.start("publish")
    publisher.await_words()
    _await((folder / "state.db-wal").exists, "a state in the folder apart")
    shutil.rmtree(folder)
    _change(pipeline)
    if publisher.running:
        publisher.send(signal.SIGTERM)
    publisher.wait(COMMAND_S)
    assert "Traceback" not in publisher.log.read_text(), publisher.log.read_text()
    folder.mkdir()
    pipeline.once_through()
    pipeline.assert_equal()
    del pipeline.configuration["state"]
    pipeline.write_configuration()
    pipeline.once_through()  # with the state that it had before, which is of an earlier epoch by now
    pipeline.assert_equal()


def _of_another(pipeline: Pipeline, outcomes: Outcomes) -> None:
    outcomes.damages.append("of another pipeline")
    _refuses(pipeline, {"pipeline": "another"})
    _change(pipeline)
    pipeline.once_through()
    pipeline.assert_equal()


def _refuses(pipeline: Pipeline, settings: dict[str, str]) -> None:
    """To start with these settings."""
    before = dict(pipeline.configuration)
    pipeline.configuration |= settings
    pipeline.write_configuration()
    publisher = pipeline.start("publish", "--once")
    code = publisher.wait(COMMAND_S)
    assert code == 3, f"upwell publish with {settings} ended with {code}"
    _check_refusal(publisher.log.read_text())
    pipeline.configuration |= before
    if "state" not in before:
        pipeline.configuration.pop("state", None)
    pipeline.write_configuration()


# --- the pipelines ------------------------------------------------------------------------------------------------


@contextmanager
def _to_postgres(servers: Servers, folder: Path, size: Size) -> Iterator[Pipeline]:
    source, target = (servers.postgres.create_database(f"disk_{uuid.uuid4().hex[:10]}") for _ in range(2))
    create_tables(source)
    create_tables(target)
    try:
        pipeline = through_kinesis(folder, source_url=source, target_url=target, kinesis_endpoint=servers.kinesis)
        with _ready(pipeline, size):
            yield pipeline
    finally:
        for url in (source, target):
            servers.postgres.drop_database(urlsplit(url).path.strip("/"))


@contextmanager
def _to_dynamodb(servers: Servers, folder: Path, size: Size) -> Iterator[Pipeline]:
    source = str(folder / "source.db")
    create_tables(source)
    with _ready(into_dynamodb(folder, source_url=source, dynamodb_endpoint=servers.dynamodb), size) as pipeline:
        yield pipeline


_WAYS = {"PostgreSQL to PostgreSQL": _to_postgres, "SQLite to DynamoDB": _to_dynamodb}
_DAMAGES: tuple[Callable[[Pipeline, Outcomes], None], ...] = (
    _restored_over_a_resync,
    _file_restored_over_a_resync,
    _no_room,
    _cut_off,
    _restored,
    _deleted,
    _no_folder,
    _of_another,
    _emptied,
)


@contextmanager
def _ready(pipeline: Pipeline, size: Size) -> Iterator[Pipeline]:
    with closing(pipeline), explained(pipeline):
        pipeline.workload(0).fill(size.rows, ledger_rows=size.rows)
        pipeline.run("track")
        pipeline.once_through()
        pipeline.assert_equal()
        yield pipeline


def _change(pipeline: Pipeline) -> None:
    for _ in range(CHANGES):
        pipeline.workloads[0].transaction()


def _files(pipeline: Pipeline) -> list[Path]:
    """The state and what stands beside it."""
    return sorted(pipeline.folder.glob(f"{pipeline.state_file.name}*"))


def _forget(pipeline: Pipeline) -> None:
    for file in _files(pipeline):
        file.unlink()


def _copied(pipeline: Pipeline) -> Path:
    """A backup, made while nothing runs."""
    backup = pipeline.folder / f"backup-{uuid.uuid4().hex[:6]}"
    backup.mkdir()
    for file in _files(pipeline):
        shutil.copy(file, backup)
    return backup


def _put_back(pipeline: Pipeline, backup: Path) -> None:
    _forget(pipeline)
    for file in backup.iterdir():
        shutil.copy(file, pipeline.folder)


def _events(pipeline: Pipeline, pid: int) -> int:
    """How many the running publisher has read, as it says; 0 before it has said anything."""
    state = pipeline.state()
    try:
        status = state.status() or {}
    finally:
        state.release()
    return int(status.get("events", 0)) if status.get("process") == pid else 0


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + EQUAL_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not there after {EQUAL_S:.0f} s"
        time.sleep(0.1)
