"""A SQL Server database as the source reads it: the connection, the tables that are read, pages and chunks of them.

It knows nothing of where the source is, only what is there now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from upwell.errors import OperatorError, TransientError
from upwell.model import Chunk, Cursor, Rejection, TableSelection
from upwell.ports import Clock
from upwell.sources.sqlserver_catalog import (
    TableState,
    check_tracked,
    known_of,
    may_see_times,
    missing,
    read_server,
    read_states,
    read_tables,
    read_times,
    read_version,
    select,
    tracking_is_off,
)
from upwell.sources.sqlserver_place import History, Server
from upwell.sources.sqlserver_reading import PAGE_ROWS_MAX, ROW_OVERHEAD_BYTES, Found, Rows, TableReader, take_portions
from upwell.sources.sqlserver_session import Address, Driver, DriverPort, Session, load_driver
from upwell.sources.sqlserver_windows import Cut, Page
from upwell.tablepatterns import has_wildcard

# What has been read and not yet returned: half of what is left is the next table's.
ROUND_BYTES_MAX: Final = 48 * 2**20
PAGE_BYTES_MIN: Final = 256 * 1024
CHUNK_BYTES_MAX: Final = 8 * 2**20  # a chunk may exceed it by one row
CATALOG_EVERY_S: Final = 30.0  # new tables that a pattern names
TIMES_MAX: Final = 100_000  # versions, asked for at once


class Wanted(NamedTuple):
    """A page that is wanted."""

    reader: TableReader
    since: int  # what changed after this version
    cut: Cut | None  # and only what follows this place
    masks: bool  # whether they tell all: see Place.masks_tell_all


class Database:
    """One connection at a time, made anew after whatever went wrong."""

    def __init__(
        self,
        url: str,
        *,
        driver: Driver,
        tables: Sequence[TableSelection],
        clock: Clock,
        on_connect: Callable[[Session, Server], None],
    ) -> None:
        """`on_connect` looks at every new connection, and may raise: it can be another server's."""
        self.address = Address.parse(url)
        self.readers: dict[str, TableReader] = {}  # by the name of their table, in this order
        self.untracked: list[str] = []  # that a pattern names, and nobody has turned tracking on for
        self._selections = tuple(tables)
        self._clock = clock
        self._on_connect = on_connect
        self._driver_name = driver
        self._driver: DriverPort | None = None
        self._session: Session | None = None
        self._server: Server | None = None
        self._was_connected = False
        self._seeks = False  # CHANGETABLE takes FORCESEEK
        self._sees_times = False
        self._catalog_at = 0.0
        self._patterns = any(has_wildcard(selection.pattern) for selection in tables)

    @property
    def server(self) -> Server:
        """As of the last connection."""
        assert self._server is not None, "something was read from it"
        return self._server

    @contextmanager
    def using(self) -> Iterator[Session]:
        """The connection; whatever is raised ends it."""
        try:
            yield self._session or self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> Session:
        self._driver = self._driver or load_driver(self._driver_name)
        try:
            session = self._session = Session.connect(self._driver, self.address)
        except OperatorError as error:
            if error.code == "UW-MS-003" and self._was_connected:  # while it fails over, or recovers
                raise TransientError(error.message, code=error.code) from error
            raise
        self._server = read_server(session)
        self._on_connect(session, self._server)
        self._sees_times = may_see_times(session)
        self._seeks = self._may_seek(session)
        if self._server.snapshots:
            session.run("SET TRANSACTION ISOLATION LEVEL SNAPSHOT")
        self._was_connected = True
        return session

    def _may_seek(self, session: Session) -> bool:
        """FORCESEEK came with SQL Server 2016 SP2 CU16, 2017 CU24, 2019 CU11; before it is a syntax error."""
        if not self.readers:
            return False
        table = next(iter(self.readers.values())).table.sql
        try:
            session.all(
                f"SELECT TOP (0) ct.SYS_CHANGE_VERSION FROM CHANGETABLE(CHANGES {table}, 0, FORCESEEK) AS ct"  # noqa: S608 - quoted
            )
        except OperatorError:
            return False
        return True

    def close(self) -> None:
        """Never raises."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    @contextmanager
    def transaction(self, session: Session) -> Iterator[None]:
        """One state of the database where it allows SNAPSHOT; else nothing: each statement sees what is committed."""
        if not self.server.snapshots:
            yield
            return
        session.run("BEGIN TRANSACTION")
        yield
        session.run("COMMIT TRANSACTION")  # where something was raised, the connection is closed

    def version(self, session: Session) -> tuple[int, str]:
        """The database's version, the server's time. Raises OperatorError where tracking is off."""
        version, time = read_version(session)
        if version is None:
            raise tracking_is_off(self.server)
        return version, time

    # --- the catalog ----------------------------------------------------------------------------------------------

    def load(self, session: Session, *, strict: bool, need_tracking: bool = True) -> dict[str, TableState]:
        """Read the tables anew; table → its state.

        `strict`: raises OperatorError or ConfigError for a table that is named and can't be read; otherwise only where
        it is not tracked any more: it may be gone for a moment while it is made anew.
        """
        states = read_states(session)
        chosen, self.untracked = [], []
        for state, selection in select(states, self._selections):
            if state.tracked or not need_tracking:
                chosen.append((state, selection))
            elif has_wildcard(selection.pattern):
                self.untracked.append(str(state.name))
            else:
                check_tracked(session, state)
        tables, unusable = read_tables(session, chosen)
        for each in [*missing(states, self._selections), *unusable] if strict else []:
            if each.explicit:
                raise each.error
        known = self.readers
        self.readers = {
            table.schema.table: known[table.schema.table]
            if table.schema.table in known and known[table.schema.table].table == table
            else TableReader(table)
            for table in sorted(tables, key=lambda table: table.schema.table)
        }
        self._catalog_at = self._clock.monotonic() + CATALOG_EVERY_S
        if not self._seeks:
            self._seeks = self._may_seek(session)
        return {str(state.name): state for state, _ in chosen if str(state.name) in self.readers}

    def states(self, session: Session) -> dict[str, TableState]:
        """table → its state now; reads the catalog anew where a table was altered, or a pattern may name new ones."""
        if self._patterns and self._clock.monotonic() >= self._catalog_at:
            return self.load(session, strict=False)
        found = self._known_states(session)
        if any(
            table not in found or found[table].altered != reader.table.altered or not found[table].tracked
            for table, reader in self.readers.items()
        ):
            return self.load(session, strict=False)
        return found

    def _known_states(self, session: Session) -> dict[str, TableState]:
        by_id = {reader.table.object_id: table for table, reader in self.readers.items()}
        return {by_id[state.object_id]: state for state in read_states(session, by_id)}

    def is_as_known(self, session: Session, table: str) -> bool:
        """Whether the table has not been altered since the catalog was read."""
        reader = self.readers.get(table)
        if reader is None:
            return False
        states = read_states(session, [reader.table.object_id])
        return bool(states) and states[0].altered == reader.table.altered

    # --- pages ----------------------------------------------------------------------------------------------------

    def pages(
        self,
        session: Session,
        wanted: Sequence[Wanted],
        histories: Mapping[str, History],
        rejected: list[Rejection],
        *,
        held: int,
    ) -> list[Page]:
        """These pages, proven to be whole: their tables' histories are `histories`, and nothing was cleaned up.

        Within a `transaction`; `held`: how many bytes of the round wait already. Raises TransientError where something
        came in between: look again.
        """
        if not wanted:
            return []
        parts = []
        left = ROUND_BYTES_MAX - held
        for each in wanted:
            found, cut, size = self._page(session, each, max(PAGE_BYTES_MIN, left // 2), rejected)
            parts.append((each, found, cut))
            left -= size
        high, time = self.version(session)
        now = known_of(self._known_states(session))
        for reader, since, *_ in wanted:
            table = reader.table.schema.table
            history, min_valid = now.get(table, (None, 0))
            if history != histories[table] or min_valid > since:
                raise TransientError(
                    f"The changes of {table} were cleaned up, or its tracking turned off, while they were read.",
                    code="UW-MS-018",
                )
        return [Page(each.reader, found, cut, high, time, each.masks) for each, found, cut in parts]

    def _page(
        self, session: Session, wanted: Wanted, bytes_max: int, rejected: list[Rejection]
    ) -> tuple[list[Found], Cut | None, int]:
        reader, since, cut, _ = wanted
        found: list[Found] = []
        last: Sequence[Any] = ()
        count = size = 0

        def take(rows: Rows) -> int:
            nonlocal last, count, size
            new = reader.found(rows, rejected)
            found.extend(new)
            last, count = rows[-1], count + len(rows)
            taken = sum(len(each.row or b"") for each in new) + len(rows) * ROW_OVERHEAD_BYTES
            size += taken
            return taken

        rows = session.rows(*reader.page_query(since, cut, seek=self._seeks and cut is None))
        ended = take_portions(rows, take, bytes_max) and count < PAGE_ROWS_MAX
        rows.close()
        return found, None if ended else reader.place_of(last), size

    def learn_mask(self, session: Session, reader: TableReader, mask: bytes) -> None:
        """Which columns this mask is about. What is computed has no place in a mask, and may change too."""
        row = session.one(*reader.mask_query(mask))
        assert row is not None, "a SELECT without FROM has a row"
        columns = zip(reader.table.columns, row, strict=True)
        reader.changed_columns[mask] = tuple(column.name for column, is_in in columns if is_in or column.computed)

    def times(self, session: Session, first: int, last: int) -> dict[int, str]:
        """version → when it was committed, where we may see that."""
        return read_times(session, first, last) if self._sees_times and last - first < TIMES_MAX else {}

    # --- chunks ---------------------------------------------------------------------------------------------------

    def chunk(self, session: Session, table: str, cursor: Cursor | None, limit: int) -> Chunk:
        """Rows after the cursor: it holds all up to the version before it was read, nothing beyond the one after."""
        reader = self.readers[table]
        rejected: list[Rejection] = []
        keyed: list[tuple[bytes, bytes]] = []
        last: Sequence[Any] = ()
        count = 0

        def take(rows: Rows) -> int:
            nonlocal last, count
            before, last, count = len(keyed), rows[-1], count + len(rows)
            keyed.extend(reader.keyed(rows, rejected))
            return sum(len(row) for _, row in keyed[before:]) + len(rows) * ROW_OVERHEAD_BYTES

        low, _ = self.version(session)  # before the transaction, which then has all up to it
        with self.transaction(session):
            rows = session.rows(*reader.chunk_query(cursor, limit))
            ended = take_portions(rows, take, CHUNK_BYTES_MAX) and count < limit
            rows.close()
            high, time = self.version(session)
        after = None if ended else reader.cursor_after(last)
        return Chunk(reader.table.schema, keyed, after, high, low.__ge__, time, rejected)
