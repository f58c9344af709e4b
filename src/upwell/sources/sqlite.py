"""SQLite: a log of changed keys that triggers keep, and the rows as they are now.

A window reads the log `(since, upto]` and the rows of the keys found there in one read transaction, and folds what
happened to a key into one event: the row as it is, or a delete where there is none. The event's commit is the id of
the key's newest log entry in the window, which is the same whenever the entry is read again. The row may be newer
than that entry, since changes beyond `upto` may have been made; they come again in a later window. So an event's
`transaction` is the newest id of the whole log at the time of reading: a chunk that was read before that may hold an
older row.

One publisher reads a database: it trims the log as it confirms. Each signs in with a number, and ends when it finds
a higher one.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from upwell.clock import iso_time
from upwell.errors import LeaseLost, OperatorError, PositionLost, TransientError, UpwellError
from upwell.model import (
    DELETE,
    UPSERT,
    ChangeEvent,
    Chunk,
    Cursor,
    Position,
    TableSchema,
    TableSelection,
    Was,
    Window,
    pack_version,
)
from upwell.ports import Clock
from upwell.sources.sqlite_catalog import Table, read_catalog
from upwell.sources.sqlite_reading import TableReader, fetch
from upwell.sources.sqlite_triggers import (
    Reader,
    become_reader,
    has_successor,
    is_tracked,
    log_state,
    note_epoch,
    read_generations,
    track_statements,
)

WINDOW_BYTES_MAX: Final = 8 * 2**20  # of values; a window of very long rows ends early, with one row at least
CHUNK_BYTES_MAX: Final = 8 * 2**20  # likewise; a chunk may exceed it by one row
BUSY_TIMEOUT_S = 5.0
POLL_INTERVAL_S = 0.02
TRIM_INTERVAL_S = 1.0
TRIM_ENTRIES_MAX = 2_000  # in one transaction: the user's writers wait for it
TRIM_TRANSACTIONS_MAX = 25  # in one call of `confirm`
TRIM_BUSY_TIMEOUT_MS = 50  # what can't be trimmed now is trimmed later

_OLDEST_SQLITE: Final = (3, 37, 0)  # the first with pragma_table_list
_WAS: Final[dict[str, Was]] = {"i": "insert", "u": "update", "d": "update"}  # a row that is there was not deleted

_GAP: Final = "The change log's triggers were missing or not as they should be, so changes may have gone unseen"


class _Place(NamedTuple):
    """A position, taken apart."""

    id: int  # of the last log entry that was read
    confirmed: int  # the database is known to have stored that this was confirmed
    file: str  # which log this is
    mark: str  # a checksum of the entry `id`: a copy that went its own way has another one
    generation: int  # of the newest triggers whose gap, if there was one, has been reported

    @classmethod
    def parse(cls, position: Position) -> _Place:
        try:
            return cls(**orjson.loads(position))
        except (ValueError, TypeError) as error:
            raise PositionLost("The saved position is not one of an SQLite database.", code="UW-SL-010") from error

    def to_position(self) -> Position:
        return Position(orjson.dumps(self._asdict()).decode())


class SqliteSource:
    """A `Source` that reads an SQLite database file."""

    def __init__(self, path: str, *, tables: Sequence[TableSelection], clock: Clock) -> None:
        self._path = path
        self._selections = tuple(tables)
        self._clock = clock
        self._open: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._schema_version = -1
        self._readers: dict[str, TableReader] = {}  # by the table's name in the database
        self._epoch = 0
        self._reader: Reader | None = None  # we are, since the first `start`
        self._generation = 0  # of the newest triggers in place: what came before them is reported, or reached
        self._raised = 0  # as far as that, `start` has raised PositionLost
        self._confirmed = 0
        self._published: dict[str, TableSchema] = {}  # as windows have told, or will with the next
        self._unreported: dict[str, TableSchema] = {}  # for the next window
        self._resync: dict[str, str] = {}  # for the next window: table → why
        self._next_trim = 0.0
        self._entries_fit = 2**31  # how many log entries a window may have, as long as rows are as long as of late

    def tables(self) -> Sequence[TableSchema]:
        """See `Source`. Raises OperatorError for a table that can't be read."""
        with self._reading() as connection:
            self._load_catalog(connection)
        return [reader.table.schema for reader in self._readers.values()]

    def start(self, position: Position | None, epoch: int) -> tuple[Position, int]:
        """See `Source`. Puts triggers in place that are missing, once the database is tracked at all."""
        self._epoch = epoch
        with self._reading() as connection:
            if not is_tracked(connection):
                raise _not_tracked(self._path)
            self._load_catalog(connection)
        self._mend_triggers()
        newest_epoch = self._take_over(epoch)
        if position is not None and newest_epoch > epoch:
            raise PositionLost(
                f"The change log of {self._path} was read in a later epoch than the checkpoint's: the state is an "
                "older one.",
                code="UW-SL-010",
            )
        with self._reading() as connection:
            newest = self._newest(connection)
            place = newest if position is None else _Place.parse(position)
            if position is not None:
                self._check(connection, place)
                gaps = self._gaps(connection, place)
                self._raised = newest.generation
                if gaps:
                    raise PositionLost(f"{_GAP}: {', '.join(gaps)}.", tables=gaps, code="UW-SL-011")
        self._published = {name: reader.table.schema for name, reader in self._readers.items()}
        self._unreported, self._resync = dict(self._published), {}
        self._generation, self._confirmed = newest.generation, newest.confirmed
        place = place._replace(confirmed=newest.confirmed, generation=newest.generation)
        return place.to_position(), place.id

    def changes(self, after: Position, limit: int, wait_s: float) -> Window:
        """See `Source`. Every window is complete: each log entry is its own commit."""
        deadline = self._clock.monotonic() + wait_s
        place = _Place.parse(after)
        while True:
            seen = self._data_version()
            window = self._window(place, limit)
            if window is not None:
                return window
            if not self._wait_for_change(seen, deadline):
                return Window(events=[], position=after, commit=place.id)

    def head(self) -> int:
        """See `Source`: the newest id of the log."""
        with self._reading() as connection:
            return _newest_id(connection)

    def start_chunks(self) -> None:
        """See `Source`: nothing to do, since a chunk is read later than everything delivered before."""

    def chunk(self, schema: TableSchema, cursor: Cursor | None, limit: int) -> Chunk | None:
        """See `Source`. None where the table's schema has changed and no window has told so yet."""
        with self._reading() as connection:
            self._check_reader(connection)
            if self._schema_changed(connection):
                return None
            reader = next((r for r in self._readers.values() if r.table.schema.table == schema.table), None)
            if reader is None:
                return None  # it is gone, perhaps only while it is being rebuilt
            newest = _newest_id(connection)
            rows, whole = fetch(connection, *reader.chunk_query(cursor, limit), CHUNK_BYTES_MAX)
        keyed, rejected = reader.encode_chunk(rows)
        return Chunk(
            schema=reader.table.schema,
            rows=keyed,
            cursor=None if whole and len(rows) < limit else reader.cursor_after(rows[-1]),
            commit=newest,
            contains=newest.__ge__,
            time=iso_time(self._clock.now()),
            rejected=rejected,
        )

    def estimate(self, table: str) -> int | None:
        """See `Source`: from ANALYZE's statistics, else from the range of rowids."""
        with self._reading() as connection:
            reader = next((r for r in self._readers.values() if r.table.schema.table == table), None)
            return None if reader is None else reader.estimate(connection)

    def confirm(self, position: Position) -> None:
        """See `Source`. Frees the log now and then; a database that is locked is tried again at a later call."""
        now = self._clock.monotonic()
        if now < self._next_trim:
            return
        self._next_trim = now + TRIM_INTERVAL_S
        try:
            with self._translated():
                self._trim(self._connected(), _Place.parse(position).id)
        except TransientError:
            return  # nothing is lost by a log that stays longer

    def health(self) -> Mapping[str, Any]:
        """See `Source`: how much log is kept, since when, and the file's size and journal mode."""
        with self._reading() as connection:
            entries, oldest = connection.execute(
                "SELECT coalesce(max(id) - min(id) + 1, 0), "
                "(SELECT strftime('%s', at) FROM _upwell_log WHERE id > ? LIMIT 1) FROM _upwell_log",
                (self._confirmed,),
            ).fetchone()
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            (size,) = connection.execute("PRAGMA page_size").fetchone()
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        return {
            "log_entries": entries,
            "oldest_unconfirmed_s": None if oldest is None else max(0.0, self._clock.now() - float(oldest)),
            "file_bytes": pages * size,
            "journal_mode": mode,
        }

    def close(self) -> None:
        """See `Source`."""
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    # --- windows ------------------------------------------------------------------------------------------------

    def _window(self, place: _Place, limit: int) -> Window | None:
        """The next window; None where there is nothing to say."""
        while True:
            with self._reading() as connection:
                if not self._schema_changed(connection):
                    newest, upto, mark, found = self._read(connection, place, limit)
                    break
            self._follow_schema()
        if upto == place.id and not self._resync and not self._unreported:
            return None
        window = Window(
            events=[],
            position=_Place(upto, self._confirmed, place.file, mark, self._generation).to_position(),
            commit=upto,
            more=upto < newest,
            schemas=list(self._unreported.values()),
            resync=list(self._resync.items()),
        )
        for reader, rows in found:
            self._add_events(window, reader, rows, newest)
        window.events.sort(key=attrgetter("version"))
        self._unreported, self._resync = {}, {}
        return window

    def _read(
        self, connection: sqlite3.Connection, place: _Place, limit: int
    ) -> tuple[int, int, str, list[tuple[TableReader, list[Any]]]]:
        """(newest log id, last log id of the window, its entry's mark, the rows of each table that is concerned)."""
        self._check_reader(connection)
        self._check(connection, place)
        newest = _newest_id(connection)
        limit = min(limit, self._entries_fit)
        while True:
            upto = _last_of(connection, place.id, limit)
            if upto is None:
                return newest, place.id, place.mark, []
            found = self._rows(connection, (place.id, upto), None if limit == 1 else WINDOW_BYTES_MAX)
            if found is not None:
                self._entries_fit = 2 * limit
                return newest, upto, _mark(connection, upto), found
            limit = max(1, limit // 4)

    def _rows(
        self, connection: sqlite3.Connection, span: tuple[int, int], bytes_max: int | None
    ) -> list[tuple[TableReader, list[Any]]] | None:
        """The rows that the log entries after the first id, up to the second, tell of; None: they have more bytes."""
        touched = connection.execute("SELECT DISTINCT tbl FROM _upwell_log WHERE id > ? AND id <= ?", span).fetchall()
        found = []
        for reader in [self._readers[name] for (name,) in touched if name in self._readers]:
            rows, whole = fetch(connection, reader.window_query, (*span, reader.table.name), bytes_max)
            if not whole:
                return None
            found.append((reader, rows))
        return found

    def _add_events(self, window: Window, reader: TableReader, rows: list[Any], newest: int) -> None:
        schema, epoch, add = reader.table.schema, self._epoch, window.events.append
        for id_, operation, time, key, row in reader.encode_window(rows, window.rejected):
            version = pack_version(epoch, id_, 0)
            if row is None:
                add(ChangeEvent(schema, DELETE, version, time, key, None, "delete", newest))
            else:
                add(ChangeEvent(schema, UPSERT, version, time, key, row, _WAS[operation], newest))

    def _data_version(self) -> int:
        """A number that changes when another connection has committed."""
        with self._translated():
            return int(self._connected().execute("PRAGMA data_version").fetchone()[0])

    def _wait_for_change(self, seen: int, deadline: float) -> bool:
        """Wait for a commit that came after `seen`; False where none did in time, or the program is to stop."""
        while (now := self._clock.monotonic()) < deadline:
            pause = min(POLL_INTERVAL_S, deadline - now)
            self._clock.sleep(pause)
            if self._data_version() != seen:
                return True
            if self._clock.monotonic() - now < pause / 2:
                return False
        return False

    # --- schema and triggers --------------------------------------------------------------------------------------

    def _schema_changed(self, connection: sqlite3.Connection) -> bool:
        return bool(connection.execute("PRAGMA schema_version").fetchone()[0] != self._schema_version)

    def _load_catalog(self, connection: sqlite3.Connection, *, running: bool = False) -> None:
        """Read the tables' schemas anew. Raises OperatorError for a table that can't be read.

        While running, that is so only for one that could be read before: a table may be gone for a moment while it
        is rebuilt, and a new one that can't be read does not stop the others.
        """
        tables, unusable = read_catalog(connection, self._selections)
        for table in unusable:
            if not running or (table.exists and table.name in self._published):
                raise table.error
        known = {name: reader.table for name, reader in self._readers.items()}
        self._readers = {
            table.name: self._readers[table.name] if known.get(table.name) == table else TableReader(table)
            for table in tables
        }
        self._schema_version = connection.execute("PRAGMA schema_version").fetchone()[0]

    def _mend_triggers(self) -> None:
        """Create the triggers that are missing or not as they should be, in a transaction of its own."""
        with self._reading() as connection:
            if not track_statements(connection, self._tables()):
                return
        with self._writing() as connection:
            self._load_catalog(connection, running=True)
            for statement in track_statements(connection, self._tables()):
                connection.execute(statement)
            self._schema_version = connection.execute("PRAGMA schema_version").fetchone()[0]

    def _tables(self) -> list[Table]:
        return [reader.table for reader in self._readers.values()]

    def _follow_schema(self) -> None:
        """After DDL: learn the new schemas, mend the triggers, note what changed and what may have been missed."""
        with self._reading() as connection:
            if not is_tracked(connection):
                raise _not_tracked(self._path)
            self._load_catalog(connection, running=True)
        self._mend_triggers()
        with self._reading() as connection:
            generations = read_generations(connection)
        for name, reader in self._readers.items():
            schema = reader.table.schema
            if schema != self._published.get(name):
                self._unreported[name] = self._published[name] = schema
            first, generation = generations[name]
            if first <= self._generation < generation:  # a table that is new is told of by its schema
                self._resync[schema.table] = _GAP
        self._generation = max((generation for _, generation in generations.values()), default=0)

    def _gaps(self, connection: sqlite3.Connection, place: _Place) -> list[str]:
        """The tables whose triggers were put in place after the position, though they were tracked before it."""
        reported = max(place.generation, self._raised)
        return [
            self._readers[name].table.schema.table
            for name, (first, generation) in read_generations(connection).items()
            if name in self._readers and first <= place.generation and generation > reported
        ]

    # --- the log ----------------------------------------------------------------------------------------------------

    def _take_over(self, epoch: int) -> int:
        """Become the log's reader: the one before us ends at its next read. Only once, or what was stopped for a while
        and has a successor would take over from it. Returns the newest epoch in which the log was read before.
        """
        with self._writing() as connection:
            self._reader = become_reader(connection, self._reader, self._clock.now())
            self._check_reader(connection)
            return note_epoch(connection, epoch)

    def _check_reader(self, connection: sqlite3.Connection) -> None:
        if self._reader is not None and has_successor(connection, self._reader):
            raise LeaseLost(
                f"Another publisher has taken over the change log of {self._path}: this one ends.", code="UW-SL-018"
            )

    def _newest(self, connection: sqlite3.Connection) -> _Place:
        """The end of the log."""
        file, confirmed, newest = log_state(connection)
        generation = max((now for _, now in read_generations(connection).values()), default=0)
        return _Place(newest, confirmed, file, _mark(connection, newest), generation)

    def _check(self, connection: sqlite3.Connection, place: _Place) -> None:
        """Raises PositionLost where the log does not hold all that followed the position."""
        file, confirmed, newest = log_state(connection)
        if file != place.file:
            why = "is another one than before, or was untracked meanwhile"
        elif confirmed < place.confirmed or newest < place.id:
            why = "was replaced by an older copy"
        elif confirmed > place.id:
            why = "has no more of its change log than what follows a later position"
        elif _mark(connection, place.id) != place.mark:
            why = "has another history than what was read: it was restored, or its change log was edited"
        else:
            return
        raise PositionLost(f"The database file {self._path} {why}.", code="UW-SL-010")

    def _trim(self, connection: sqlite3.Connection, confirmed: int) -> None:
        """Free the log below the confirmed entry, which stays as the witness of the position."""
        connection.execute(f"PRAGMA busy_timeout = {TRIM_BUSY_TIMEOUT_MS}")
        try:
            for _ in range(TRIM_TRANSACTIONS_MAX):
                (first,) = connection.execute("SELECT min(id) FROM _upwell_log").fetchone()
                if self._confirmed >= confirmed and (first is None or first >= confirmed):
                    return
                upto = confirmed if first is None else min(first + TRIM_ENTRIES_MAX, confirmed)
                with _transaction(connection):
                    self._check_reader(connection)
                    connection.execute(
                        "UPDATE _upwell_meta SET value = max(value, ?) WHERE name = 'confirmed'", (confirmed,)
                    )
                    connection.execute("DELETE FROM _upwell_log WHERE id < ?", (upto,))
                self._confirmed = confirmed
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")

    # --- the connection ---------------------------------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        """The connection to the file that has the path now: another file may have been moved there."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            if self._inode is not None:
                raise TransientError(f"The database file {self._path} can't be reached.", code="UW-SL-001") from error
            raise _no_file(self._path) from error
        inode = (status.st_dev, status.st_ino)
        if self._open is None or inode != self._inode:
            self.close()
            self._open, self._inode, self._schema_version = connect(self._path), inode, -1
        return self._open

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: one state of the database. Kept short: in rollback mode writers wait for its end."""
        with self._translated():
            connection = self._connected()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes."""
        with self._translated():
            connection = self._connected()
            with _transaction(connection):
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors as upwell's; the connection is made anew afterwards."""
        try:
            yield
        except sqlite3.Error as error:
            self.close()
            raise translated(error, self._path) from error


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def connect(path: str) -> sqlite3.Connection:
    """A connection to an existing file, without implicit transactions. Raises OperatorError, sqlite3.Error."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise OperatorError(
            f"This Python has SQLite {sqlite3.sqlite_version}; upwell needs 3.37 or newer.",
            code="UW-SL-007",
            remedy="Use a Python build with a newer SQLite library.",
        )
    if not Path(path).is_file():
        raise _no_file(path)
    return sqlite3.connect(
        Path(path).absolute().as_uri() + "?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


def translated(error: sqlite3.Error, path: str) -> UpwellError | sqlite3.Error:
    """What the flow does about an error of SQLite; the error itself where that is a bug."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return TransientError(f"The database file {path} is locked by another program.", code="UW-SL-009")
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOMEM | sqlite3.SQLITE_PROTOCOL:
            return TransientError(
                f"The database file {path} can't be read or written just now: {error}.", code="UW-SL-009"
            )
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return OperatorError(
                f"The file {path} is not an SQLite database, or it is damaged.",
                code="UW-SL-002",
                remedy=f"Look at it with: sqlite3 {path} 'PRAGMA integrity_check'",
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_AUTH:
            return OperatorError(
                f"The database file {path} can't be opened for writing; upwell keeps its change log there.",
                code="UW-SL-008",
                remedy="Give this user the right to write the file and its folder.",
            )
    return error


def _no_file(path: str) -> OperatorError:
    return OperatorError(
        f"There is no database file {path}, or it can't be reached.",
        code="UW-SL-001",
        remedy="Correct `source.url`: sqlite:///relative/path.db or sqlite:////absolute/path.db.",
    )


def _not_tracked(path: str) -> OperatorError:
    return OperatorError(
        f"The database file {path} keeps no change log yet.",
        code="UW-SL-003",
        remedy="Run `upwell track` (with `--dry-run` it only shows the SQL).",
    )


def _newest_id(connection: sqlite3.Connection) -> int:
    return log_state(connection)[2]


def _last_of(connection: sqlite3.Connection, since: int, limit: int) -> int | None:
    """The id of the last of at most `limit` entries after `since`; None where there is none."""
    sql = "SELECT max(id) FROM (SELECT id FROM _upwell_log WHERE id > ? ORDER BY id LIMIT ?)"
    (last,) = connection.execute(sql, (since, limit)).fetchone()
    return None if last is None else int(last)


def _mark(connection: sqlite3.Connection, id_: int) -> str:
    """A checksum of an entry of the log; empty where there is none, as at the log's very beginning."""
    entry, _ = fetch(connection, "SELECT * FROM _upwell_log WHERE id = ?", (id_,))
    if not entry:
        return ""
    values = list(entry[0])
    while values[-1] is None:  # columns that were added later, for a table with a longer key
        values.pop()
    return f"{zlib.crc32(repr(values).encode('utf-8', 'surrogateescape')):08x}"
