"""A publisher's state in a file of its own: an SQLite database beside the publisher.

Every write is one transaction, on the disk when it returns. The publisher holds a lock on a second file (`….lock`)
that the operating system lets go of when the process ends, however it ends; other processes may read status and dead
letters and put requests meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import orjson

from upwell.errors import LeaseLost, OperatorError, TransientError, UpwellError
from upwell.model import Checkpoint, DeadLetter, Lease
from upwell.ports import Request
from upwell.state.checkpoint_json import CheckpointEncoder, decode_checkpoint
from upwell.state.witness import Witness, WitnessDamaged, sync_folder

BUSY_TIMEOUT_S = 5.0
TERM_PER_S: Final = 1_000_000  # below 2^53 until the year 2255: any reader of JSON can hold it

_APPLICATION_ID: Final = 0x5570776C  # "Upwl": tells the file from every other SQLite database
_LAYOUT: Final = 1  # the file's layout, kept as its user_version
_TABLES: Final = (
    "CREATE TABLE pipeline (name TEXT PRIMARY KEY) STRICT",
    # One row each, as the CHECK says: what is written replaces what was.
    "CREATE TABLE lease (one INTEGER PRIMARY KEY CHECK (one = 1), term INTEGER, holder TEXT, since REAL) STRICT",
    "CREATE TABLE checkpoint (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB, sha256 TEXT) STRICT",
    "CREATE TABLE status (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB) STRICT",
    "CREATE TABLE request (id TEXT PRIMARY KEY, tbl TEXT, reason TEXT, n INTEGER) STRICT",
    "CREATE TABLE dead_letter (id INTEGER PRIMARY KEY AUTOINCREMENT, tbl TEXT, key TEXT, version TEXT, reason TEXT, "
    "time TEXT, payload BLOB, UNIQUE (tbl, key, version)) STRICT",
)
_GONE_BACK: Final = "the state file is older than the last one that was saved: it was restored, or damaged"
# What our own statements, which never change, can only meet in a file that was damaged.
_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,  # a table or a column is not there
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_TOOBIG,
    }
)
_UNREADABLE: Final = (sqlite3.OperationalError, sqlite3.DataError)  # raised by Python: text that is no UTF-8
_LETTER: Final = "SELECT id, tbl, key, version, reason, time, {} FROM dead_letter"  # the payload, or x'' in its place


class SqliteState:
    """A `StateStore`, and what the command line asks of it while a publisher runs."""

    def __init__(self, path: str, pipeline: str) -> None:
        self._path = path
        self._pipeline = pipeline
        self._mutex = threading.RLock()
        self._open: sqlite3.Connection | None = None
        self._lock: sqlite3.Connection | None = None
        self._lease: Lease | None = None
        self._encoder = CheckpointEncoder()
        self._witness = Witness(f"{path}.epoch")

    # --- the publisher's part: see `StateStore` ------------------------------------------------------------------

    def acquire(self, now: float) -> Lease:
        """See `StateStore`. Raises OperatorError where the file is another pipeline's, or not ours at all."""
        with self._mutex:
            self._take_lock()
            holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
            try:
                self._check_pages()
                with self._writing() as connection:
                    known = connection.execute("SELECT term FROM lease").fetchone()
                    term = _next_term(0 if known is None else known[0], now)
                    connection.execute("REPLACE INTO lease VALUES (1, ?, ?, ?)", (term, holder, now))
            except BaseException:
                self.release()
                raise
            self._lease = Lease(term, holder)
            return self._lease

    def renew(self, lease: Lease) -> None:
        """See `StateStore`. Only a person can bring it about, by removing the lock file of one that still lives."""
        with self._reading() as connection:
            self._check_lease(connection, lease)

    def load(self) -> Checkpoint | None:
        """See `StateStore`."""
        with self._reading() as connection:
            row = None if connection is None else connection.execute("SELECT body, sha256 FROM checkpoint").fetchone()
        if row is None:
            return None
        body, checksum = row
        try:
            if hashlib.sha256(body).hexdigest() != checksum:
                raise ValueError("the checksum differs")
            checkpoint = decode_checkpoint(body)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged() from error
        return self._unless_gone_back(checkpoint)

    def save(self, checkpoint: Checkpoint, lease: Lease) -> None:
        """See `StateStore`."""
        body = self._encoder.encode(checkpoint)
        with self._writing() as connection:
            self._check_lease(connection, lease)
            self._note(checkpoint.epoch)
            checksum = hashlib.sha256(body).hexdigest()
            connection.execute("REPLACE INTO checkpoint VALUES (1, ?, ?)", (body, checksum))

    def add_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        """See `StateStore`."""
        rows = [
            (letter.table, letter.key, letter.version, letter.reason, letter.time, letter.payload) for letter in letters
        ]
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO dead_letter (tbl, key, version, reason, time, payload) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (tbl, key, version) DO UPDATE SET reason = excluded.reason",
                rows,
            )

    def requests(self) -> Sequence[Request]:
        """See `StateStore`: in the order in which they were made."""
        with self._reading() as connection:
            if connection is None:
                return []
            rows = connection.execute("SELECT id, tbl, reason FROM request ORDER BY n").fetchall()
        return [Request(*row) for row in rows]

    def finish(self, request: Request) -> None:
        """See `StateStore`."""
        with self._writing() as connection:
            connection.execute("DELETE FROM request WHERE id = ?", (request.id,))

    def put_status(self, status: Mapping[str, Any]) -> None:
        """See `StateStore`."""
        with self._writing() as connection:
            if self._lease is not None:
                self._check_lease(connection, self._lease)
            connection.execute("REPLACE INTO status VALUES (1, ?)", (orjson.dumps(status),))

    def release(self) -> None:
        """See `StateStore`."""
        with self._mutex, suppress(sqlite3.Error):
            self._close()
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    # --- the command line's part, from any process ----------------------------------------------------------------

    def add_request(self, table: str | None, reason: str) -> Request:
        """Ask the publisher, running or not, to resync a table; None: all of them."""
        request = Request(uuid.uuid4().hex, table, reason)
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO request SELECT ?, ?, ?, coalesce(max(n), 0) + 1 FROM request",
                (request.id, table, reason),
            )
        return request

    def status(self) -> Mapping[str, Any] | None:
        """What the publisher last put there; None where none ever did."""
        with self._reading() as connection:
            row = None if connection is None else connection.execute("SELECT body FROM status").fetchone()
        if row is None:
            return None
        try:
            status: dict[str, Any] = orjson.loads(row[0])
        except ValueError as error:
            raise self._damaged() from error
        return status

    def dead_letters(self) -> Sequence[DeadLetter]:
        """All that are kept, the oldest first, without their payloads."""
        return self._letters(_LETTER.format("x''") + " ORDER BY id")

    def dead_letter(self, id_: int) -> DeadLetter | None:
        """One of them, with its payload; None where there is none of that id."""
        letters = self._letters(_LETTER.format("payload") + " WHERE id = ?", id_)
        return letters[0] if letters else None

    def drop_dead_letter(self, id_: int) -> bool:
        """Forget one; whether there was one."""
        with self._writing() as connection:
            return connection.execute("DELETE FROM dead_letter WHERE id = ?", (id_,)).rowcount > 0

    # --- the files ------------------------------------------------------------------------------------------------

    def _check_pages(self) -> None:
        """Damage that a checkpoint's own checksum does not show. Raises OperatorError."""
        with self._reading() as connection:
            if connection is not None and connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise self._damaged()

    def _unless_gone_back(self, checkpoint: Checkpoint) -> Checkpoint:
        """Where a newer epoch than the checkpoint's was ever saved, all tables are to be read again."""
        try:
            newest = self._witness.epoch()
        except WitnessDamaged:
            newest = checkpoint.epoch + 1
        except OSError as error:
            raise self._not_accessible(error) from error
        if newest <= checkpoint.epoch:
            return checkpoint
        tables = {name: replace(table, wanted=_GONE_BACK) for name, table in checkpoint.tables.items()}
        return replace(checkpoint, epoch=newest, tables=tables)

    def _note(self, epoch: int) -> None:
        """Before the epoch is saved: what is saved can then be found out to be older."""
        try:
            self._witness.note(epoch)
        except OSError as error:
            raise TransientError(
                f"The disk that holds the state file {self._path} can't be written just now: {error.strerror}.",
                code="UW-ST-008",
            ) from error

    def _letters(self, sql: str, *parameters: int) -> list[DeadLetter]:
        with self._reading() as connection:
            rows = [] if connection is None else connection.execute(sql, parameters).fetchall()
        return [DeadLetter(*row) for row in rows]

    def _check_lease(self, connection: sqlite3.Connection | None, lease: Lease) -> None:
        """Raises LeaseLost where the file names another holder, or is gone."""
        known = None if connection is None else connection.execute("SELECT term, holder FROM lease").fetchone()
        if known != (lease.term, lease.holder):
            raise LeaseLost(
                f"Another publisher has taken over the state file {self._path}: this one ends and saves nothing.",
                code="UW-ST-002",
            )

    def _take_lock(self) -> None:
        """Hold the lock file, or raise LeaseLost."""
        if self._lock is not None:
            return
        path = f"{self._path}.lock"
        try:
            self._create(path)
            lock = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise self._translated(error) from error
            raise LeaseLost(
                f"Another publisher runs with the state file {self._path}: it holds {path}.", code="UW-ST-003"
            ) from error
        self._lock = lock

    def _create(self, path: str) -> None:
        """Make the file, or make sure that only its owner may read it: dead letters hold rows."""
        try:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                sync_folder(path)
                return
            with open(path, "r+b", buffering=0) as file:
                if hasattr(os, "fchmod") and os.fstat(file.fileno()).st_mode & 0o077:  # restored from a backup
                    os.fchmod(file.fileno(), 0o600)
        except OSError as error:
            raise self._not_accessible(error) from error

    def _not_accessible(self, error: OSError) -> OperatorError:
        return OperatorError(
            f"The state file {self._path} can't be read or written: {error.strerror}.",
            code="UW-ST-004",
            remedy="Give this user the right to write it and its folder, or name another file under `state`.",
        )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """The connection; None where there is no file yet."""
        with self._mutex, self._translating():
            yield self._connected() if self._open is not None or Path(self._path).exists() else None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk when the block has ended."""
        with self._mutex, self._translating():
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _connected(self) -> sqlite3.Connection:
        if self._open is None:
            self._create(self._path)
            connection = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._open = connection
        return self._open

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Check that the file is this pipeline's, and make it so where it is new."""
        if self._header(connection) == (0, 0, 0):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN EXCLUSIVE")
            if self._header(connection) == (0, 0, 0):  # and no other process was quicker
                for statement in _TABLES:
                    connection.execute(statement)
                connection.execute("INSERT INTO pipeline VALUES (?)", (self._pipeline,))
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {_LAYOUT}")
            connection.execute("COMMIT")
        connection.execute("PRAGMA synchronous = FULL")
        self._check_ours(connection)

    def _header(self, connection: sqlite3.Connection) -> tuple[int, int, int]:
        """(application_id, user_version, how many tables)."""
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        layout = connection.execute("PRAGMA user_version").fetchone()[0]
        return application, layout, connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]

    def _check_ours(self, connection: sqlite3.Connection) -> None:
        application, layout, _ = self._header(connection)
        if application != _APPLICATION_ID:
            raise OperatorError(
                f"The file {self._path} is an SQLite database, but not a state file of upwell.",
                code="UW-ST-005",
                remedy="Name another file under `state`.",
            )
        if layout != _LAYOUT:
            raise OperatorError(
                f"The state file {self._path} was written by another version of upwell (layout {layout}).",
                code="UW-ST-006",
                remedy="Use that version, or name another file under `state`: all tables are then read anew.",
            )
        names = connection.execute("SELECT name FROM pipeline").fetchall()
        if len(names) != 1:
            raise self._damaged()
        ((pipeline,),) = names
        if pipeline != self._pipeline:
            raise OperatorError(
                f"The state file {self._path} belongs to the pipeline {pipeline}, not to {self._pipeline}.",
                code="UW-ST-001",
                remedy=f"Name another file under `state`, or name the pipeline {pipeline} again.",
            )

    def _close(self) -> None:
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """SQLite's errors as upwell's; the connection is made anew afterwards."""
        try:
            yield
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._close()
            raise self._translated(error) from error
        except UnicodeDecodeError as error:  # a message of SQLite's own that quotes what it can't read
            with suppress(sqlite3.Error):
                self._close()
            raise self._damaged() from error

    def _translated(self, error: sqlite3.Error) -> UpwellError | sqlite3.Error:
        match _code(error):
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return TransientError(f"The state file {self._path} is locked by another program.", code="UW-ST-007")
            case sqlite3.SQLITE_FULL:
                return TransientError(f"The disk that holds the state file {self._path} is full.", code="UW-ST-008")
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOMEM | sqlite3.SQLITE_PROTOCOL:
                return TransientError(
                    f"The state file {self._path} can't be written just now: {error}.", code="UW-ST-008"
                )
            case code if code in _DAMAGE or (not code and isinstance(error, _UNREADABLE)):
                return self._damaged()
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_AUTH:
                return OperatorError(
                    f"The state file {self._path} can't be opened for writing.",
                    code="UW-ST-004",
                    remedy="Give this user the right to write it and its folder, or name another file under `state`.",
                )
        return error

    def _damaged(self) -> OperatorError:
        return OperatorError(
            f"The state file {self._path} can't be trusted: it is damaged, or no state file at all.",
            code="UW-ST-009",
            remedy="Restore it, or move it away and start again: all tables are then read anew, and nothing is lost.",
        )


def _next_term(previous: int, now: float) -> int:
    """The clock's microsecond: above the previous term even where the file that had it was lost. Behind a clock that
    was set back, above the previous one by chance: publishers with the file and with a copy of it never come to the
    same term.
    """
    micros = int(now * TERM_PER_S)
    return micros if micros > previous else previous + 1 + secrets.randbelow(TERM_PER_S)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 where the error is Python's own."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
