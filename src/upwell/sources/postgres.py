"""PostgreSQL 12 to 18 as a source: logical decoding with pgoutput, chunks by COPY beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from upwell.errors import LeaseLost, OperatorError, PositionLost, TransientError, UpwellError
from upwell.model import Chunk, Cursor, Position, TableName, TableSchema, TableSelection, Window
from upwell.ports import Clock
from upwell.sources.pgoutput import Decoder, Relation, Table, Values, format_lsn
from upwell.sources.postgres_catalog import Catalog, CatalogTable
from upwell.sources.postgres_chunks import RowReader, begin, moment, next_xid, read_cursor, whole_xid, write_cursor
from upwell.sources.postgres_place import Place, Server, Slot, why_lost
from upwell.sources.postgres_requirements import check_requirements, create_slot, drop_slot, find_slot
from upwell.sources.postgres_session import ReplicationConnection, connect, quote_ident, translated

if TYPE_CHECKING:
    import psycopg

WINDOW_BYTES_MAX: Final = 8 * 2**20  # of row messages; a window of very long rows ends early
FEEDBACK_S: Final = 10.0  # wal_sender_timeout is 60 s by default
CONFIRM_S: Final = 1.0  # how long a confirmed position may wait to be told to the server
ANSWER_S: Final = 0.1  # how long an answer may take that the server asks for
ASKING_S: Final = 1.0  # otherwise than in a shutdown it asks twice in a minute
SHUTDOWN_S: Final = 10.0  # how long we hold up a shutdown of the server
TICK_S: Final = 0.001  # while changes keep coming: waking up for each one costs both sides more
HOT_S: Final = 0.1
MESSAGES_PER_LOOK: Final = 1024  # how many messages between two looks at the clock
RELEASE_S: Final = 10.0  # how long the server may take to notice that a connection was closed
VISIBLE_S: Final = 5.0  # how long a commit may wait for a synchronous standby before we try again later
RATE_S: Final = 600.0  # over how long the log's growth is measured


class PostgresSource:
    """Implements ports.Source. `slot` and `publication` are made by `upwell track`; the slot also by `start`.

    Positions are places in the log (postgres_place.py); an event's commit number is where its commit record starts.
    """

    def __init__(
        self, url: str, *, tables: Sequence[TableSelection], slot: str, publication: str, clock: Clock
    ) -> None:
        self._url = url
        self._selections = tuple(tables)
        self._slot, self._publication = slot, publication
        self._clock = clock
        self._sql: psycopg.Connection[tuple[Any, ...]] | None = None
        self._catalog: Catalog | None = None
        self._stream: ReplicationConnection | None = None
        self._pids: set[int] = set()  # of the server's processes that may still read the slot for us
        self._reached = 0  # how far we have read since we were made or closed
        self._decoder: Decoder | None = None
        self._place: Place | None = None
        self._near_xid = 0  # tells which circle of 32-bit ids the transactions are in
        self._position = Position("")  # of the window returned last
        self._unfinished = (0, 0)  # (commit, ordinal) up to which it returned a transaction that goes on
        self._known: dict[str, TableSchema] = {}
        self._published: set[str] | None = None  # the tables, as `tables` told them last
        self._epoch = 0
        self._confirmed = 0
        self._fed_back_at = 0.0
        self._asked_at = self._asking_since = 0.0
        self._hot_until = 0.0
        self._barrier = 0  # chunks are to see all transactions with lower ids
        self._awaited = 0  # where the caller waits for the stream to come: a chunk, the end of the log
        self._nudged = True
        self._growth: deque[tuple[float, int]] = deque()

    def tables(self) -> Sequence[TableSchema]:
        """The selected tables that the publication has; the others could be read, but their changes not seen."""
        with self._session() as (sql, catalog):
            published = [table for table in catalog.selected() if table.published is not None]
            schemas = [catalog.schema(table) for table in published]
            names = {schema.table for schema in schemas}
            if self._published is not None and names - self._published:
                # What was running when a table was added may have changed it unseen: chunks must contain that.
                self._barrier = max(self._barrier, next_xid(sql))
            self._published = names
            return schemas

    def start(self, position: Position | None, epoch: int) -> tuple[Position, int]:
        """See ports.Source. Creates the slot where there is none and nothing has been read yet."""
        self._close_stream()
        self._epoch = epoch
        self._known = {}
        self._unfinished = (0, 0)
        self._confirmed = 0
        self._barrier = 0
        self._awaited, self._nudged = 0, True
        with self._session() as (sql, catalog):
            check_requirements(sql, catalog, self._publication)
            place = Place.parse(position) if position is not None else self._first_place(sql)
        position = position or place.to_position()
        self._resume(place, position)
        return position, place.lsn - 1

    def changes(self, after: Position, limit: int, wait_s: float) -> Window:
        """See ports.Source."""
        if self._stream is None or after != self._position:
            if after != self._position:
                self._unfinished = (0, 0)
            self._resume(Place.parse(after), after)
        decoder = self._decoder
        assert decoder is not None
        with self._streaming():
            more = self._read(decoder, limit, wait_s)
            return self._window(decoder, more)

    def head(self) -> int:
        """See ports.Source."""
        with self._session() as (sql, _):
            lsn = moment(sql).lsn
        self._await(lsn)
        return lsn - 1

    def start_chunks(self) -> None:
        """See ports.Source: chunks wait until all that was running now has ended."""
        with self._session() as (sql, _):
            self._barrier = max(next_xid(sql), self._place.next_xid if self._place else 0)

    def chunk(self, schema: TableSchema, cursor: Cursor | None, limit: int) -> Chunk | None:
        """See ports.Source. The chunk's schema is the table's as it is now."""
        with self._session() as (sql, catalog):
            name = TableName.parse(schema.table)
            lock = f"ONLY {quote_ident(name.schema)}.{quote_ident(name.name)}"
            seen = begin(sql, lock)
            try:
                if seen.snapshot.xmin < self._barrier:
                    return None
                table = catalog.named(name)
                assert table is not None, "it is locked"
                current = replace(catalog.schema(table), target=schema.target)
                rows = _reader(catalog, table, current).after(sql, read_cursor(current, cursor), limit)
            finally:
                with suppress(Exception):  # what happened matters, not that the connection broke
                    sql.execute("ROLLBACK")
            self._await(seen.lsn)
            return Chunk(
                current,
                rows.rows,
                None if rows.ended else write_cursor(current, rows.last),
                seen.lsn - 1,
                seen.snapshot.contains,
                seen.time,
                rows.rejected,
            )

    def estimate(self, table: str) -> int | None:
        """From the statistics that ANALYZE and autovacuum keep."""
        with self._session() as (_, catalog):
            found = catalog.named(TableName.parse(table))
            return found.rows if found else None

    def confirm(self, position: Position) -> None:
        """See ports.Source. The server is told within a second, or at `close`."""
        self._confirmed = max(self._confirmed, Place.parse(position).lsn)
        # Where the connection has broken, the next read finds out, and the next connection begins with telling this.
        if self._stream is not None:
            with suppress(TransientError), self._streaming():
                self._feed_back(CONFIRM_S)

    def health(self) -> Mapping[str, Any]:
        """The slot as the server sees it. `runway_hours` is None where the slot may retain the log without limit."""
        with self._session() as (sql, catalog):
            slot = find_slot(sql, self._slot)
            lsn = moment(sql).lsn
            untracked = [str(table.name) for table in catalog.selected() if table.published is None]
        if self._stream is not None:
            with self._streaming():
                self._feed_back(FEEDBACK_S)
        self._growth.append((self._clock.monotonic(), lsn))
        while self._growth[0][0] < self._clock.monotonic() - RATE_S:
            self._growth.popleft()
        health: dict[str, Any] = {"slot": self._slot, "slot_exists": slot is not None, "untracked_tables": untracked}
        if slot is not None:
            health |= {
                "slot_active": slot.active_pid is not None,
                "slot_invalid": slot.invalid,
                "wal_status": slot.wal_status,
                "retained_bytes": lsn - slot.restart if slot.restart is not None else None,
                "safe_wal_bytes": slot.safe_wal_size,
                "runway_hours": self._runway_hours(slot.safe_wal_size),
                "lag_bytes": max(0, lsn - self._place.lsn) if self._place else None,
                "restart_lsn": format_lsn(slot.restart) if slot.restart is not None else None,
                "confirmed_lsn": format_lsn(slot.confirmed),
            }
        return health

    def close(self) -> None:
        """See ports.Source."""
        if self._stream is not None:
            with suppress(Exception):
                self._stream.feedback(self._confirmed, self._clock.now())
        self._close_stream()
        self._close_sql()
        self._reached = 0

    # The log: find the place, read on.

    def _first_place(self, sql: psycopg.Connection[tuple[Any, ...]]) -> Place:
        """Where the slot stands; of a slot that is of no use a new one takes the place."""
        slot = find_slot(sql, self._slot)
        with closing(ReplicationConnection(self._url)) as stream:
            server = self._server(sql, stream)
        if slot is not None and (slot.invalid or slot.confirmed > server.lsn):
            drop_slot(sql, slot)
            slot = None
        if slot is None:
            create_slot(sql, self._slot)
            slot = find_slot(sql, self._slot)
        if slot is None:
            raise TransientError(f"The new replication slot {self._slot} has gone again.", code="UW-PG-011")
        return Place(slot.confirmed, server.system, server.timeline, server.database, self._slot, 0)

    def _resume(self, place: Place, position: Position) -> None:
        """Connect and stream from the place. Raises PositionLost where the server hasn't all that follows."""
        self._close_stream()
        with self._session() as (sql, _), self._streaming():
            slot = self._free_slot(sql)
            stream = self._stream = ReplicationConnection(self._url)
            server = self._server(sql, stream)
            self._check_successor(slot, place, server)
            if place.slot != self._slot:
                raise PositionLost(
                    f"The saved position belongs to the replication slot {place.slot}, not {self._slot}.",
                    code="UW-PG-020",
                )
            lost = why_lost(place, server, slot, lambda: stream.timeline_history(server.timeline))
            if lost is not None:
                raise PositionLost(f"The source can't go on from the saved position: {lost}.", code="UW-PG-020")
            self._pids.add(stream.pid)
            stream.start(self._slot, place.lsn, self._publication)
            self._pids, self._reached = {stream.pid}, max(self._reached, place.lsn)
            stream.feedback(self._confirmed, self._clock.now())
            self._fed_back_at = self._clock.monotonic()
        self._place = replace(place, timeline=server.timeline)
        self._near_xid = server.next_xid
        self._position = position
        self._decoder = Decoder(
            self._epoch, place.lsn, self._table, self._fetch, known=self._known, returned=self._unfinished
        )

    def _free_slot(self, sql: psycopg.Connection[tuple[Any, ...]]) -> Slot | None:
        """The slot, once the server has noticed that our connections before are closed."""
        deadline = self._clock.monotonic() + RELEASE_S
        while True:
            slot = find_slot(sql, self._slot)
            if slot is None or slot.active_pid is None or slot.active_pid not in self._pids:
                return slot
            if self._clock.monotonic() > deadline:
                raise TransientError(f"The replication slot {self._slot} is not free yet.", code="UW-PG-011")
            self._clock.sleep(0.01)

    def _check_successor(self, slot: Slot | None, place: Place, server: Server) -> None:
        """Who lost the connection, and finds that the slot has been read by others since, is no longer the publisher.

        At the start nobody can tell that from a state file that was restored: then it is a gap.
        """
        if not self._reached or slot is None or slot.invalid:
            return
        same_log = (server.system, server.timeline, server.database) == (place.system, place.timeline, place.database)
        if slot.active_pid is not None:
            what = f"the server's process {slot.active_pid} reads it"
        elif slot.confirmed > self._reached and same_log:
            what = f"it was read up to {format_lsn(slot.confirmed)}"
        else:
            return
        raise LeaseLost(
            f"Another publisher has taken over the replication slot {self._slot} ({what}): this one ends.",
            code="UW-PG-016",
        )

    def _server(self, sql: psycopg.Connection[tuple[Any, ...]], stream: ReplicationConnection) -> Server:
        """The server that answers now."""
        system, timeline = stream.identify()
        row = sql.execute(
            "SELECT oid, pg_is_in_recovery() FROM pg_database WHERE datname = current_database()"
        ).fetchone()
        assert row is not None
        return Server(system, timeline, row[0], moment(sql).lsn, next_xid(sql), row[1])

    def _read(self, decoder: Decoder, limit: int, wait_s: float) -> bool:
        """Feed the decoder until the window is full (True) or there is no more for now (False)."""
        stream, clock = self._stream, self._clock
        assert stream is not None
        deadline = clock.monotonic() + wait_s
        receive, feed, taken = stream.receive, decoder.feed, decoder.taken
        events, rejected = taken.events, taken.rejected
        messages = 0
        while True:
            message = receive()
            if message is not None:
                if feed(message):
                    self._answer()
                full = len(events) + len(rejected) >= limit or taken.size >= WINDOW_BYTES_MAX
                # The row that fills the window may be the transaction's last: one more message tells.
                if full and (
                    decoder.transaction is None or len(events) + len(rejected) > limit or taken.size > WINDOW_BYTES_MAX
                ):
                    return True
                messages += 1
                if messages % MESSAGES_PER_LOOK or clock.monotonic() < deadline:
                    continue
                self._feed_back(FEEDBACK_S)
                if decoder.transaction is None:
                    return True
                continue
            asked = self._asked_at > self._fed_back_at
            self._feed_back(ANSWER_S if asked else CONFIRM_S if self._confirmed else FEEDBACK_S)
            self._nudge(decoder)
            remaining = deadline - clock.monotonic()
            if remaining <= 0 or (decoder.transaction is None and self._has_something(decoder)):
                return False
            stream.wait(min(remaining, ANSWER_S) if asked else remaining)
            if clock.monotonic() < self._hot_until:
                clock.sleep(TICK_S)

    def _has_something(self, decoder: Decoder) -> bool:
        """Whether there is reason to return before the time is over."""
        taken = decoder.taken
        return bool(taken.events or taken.rejected or taken.resync or taken.schemas) or (
            0 < self._awaited <= decoder.position
        )

    def _window(self, decoder: Decoder, more: bool) -> Window:
        taken = decoder.take()
        if taken.events:
            self._hot_until = self._clock.monotonic() + HOT_S
        complete = decoder.transaction is None
        self._unfinished = (0, 0) if decoder.transaction is None else (decoder.transaction.commit, decoder.ordinal)
        if complete and decoder.position >= self._awaited:
            self._awaited = 0
        assert self._place is not None
        if decoder.position != self._place.lsn:
            self._place = replace(self._place, lsn=decoder.position, next_xid=self._next_xid(decoder))
            self._position = self._place.to_position()
            self._reached = max(self._reached, decoder.position)
        return Window(
            taken.events,
            self._position,
            decoder.position - 1,
            complete,
            more or not complete,
            taken.rejected,
            taken.schemas,
            taken.resync,
        )

    def _next_xid(self, decoder: Decoder) -> int:
        assert self._place is not None
        if decoder.newest_xid is None:
            return self._place.next_xid
        newest = whole_xid(decoder.newest_xid, self._near_xid)
        return max(self._place.next_xid, newest + 1)

    def _feed_back(self, interval_s: float) -> None:
        """Tell the server the confirmed position, and that we live, unless we did within the interval."""
        now = self._clock.monotonic()
        if self._stream is not None and now - self._fed_back_at >= interval_s:
            self._stream.feedback(self._confirmed, self._clock.now())
            self._fed_back_at = now

    def _await(self, lsn: int) -> None:
        self._awaited, self._nudged = max(self._awaited, lsn), False

    def _answer(self) -> None:
        """The server wants to hear from us: now and then, or, when it shuts down, over and over again.

        Then it waits until we have confirmed everything, which may take long if the destination is out of reach.
        """
        now = self._clock.monotonic()
        if now - self._asked_at > ASKING_S:
            self._asking_since = now
        self._asked_at = now
        if now - self._asking_since > SHUTDOWN_S:
            raise TransientError("The source is shutting down.", code="UW-PG-012")
        self._feed_back(ANSWER_S)

    def _nudge(self, decoder: Decoder) -> None:
        """The stream is awaited at a place of the log, on a server that may be idle: write something beyond it.

        A commit, even one of nothing, flushes the log, and the server tells how far it has come.
        """
        if self._nudged or decoder.position >= self._awaited:
            return
        self._nudged = True
        try:
            with self._session() as (sql, _):
                sql.execute("SELECT pg_logical_emit_message(true, 'upwell', '')")
        except OperatorError:
            pass  # a standby, or no right to: its next transaction or checkpoint does the same

    # What the decoder asks for.

    def _table(self, relation: Relation) -> Table | None:
        with self._session() as (_, catalog):
            found = catalog.relation(relation)
            return Table(*found) if found else None

    def _fetch(self, table: Table, key: Sequence[str], names: Sequence[str], xid: int) -> Values | None:
        """Columns of the row with this key, as soon as what the transaction did can be seen."""
        deadline = self._clock.monotonic() + VISIBLE_S
        while True:
            with self._session() as (sql, catalog):
                seen = begin(sql)
                try:
                    if seen.snapshot.contains(xid):
                        return self._row(sql, catalog, table, key, names)
                finally:
                    with suppress(Exception):
                        sql.execute("ROLLBACK")
            if self._clock.monotonic() > deadline:
                raise TransientError("A commit waits for a synchronous standby.", code="UW-PG-013")
            self._clock.sleep(0.01)
            self._feed_back(FEEDBACK_S)

    def _row(
        self,
        sql: psycopg.Connection[tuple[Any, ...]],
        catalog: Catalog,
        table: Table,
        key: Sequence[str],
        names: Sequence[str],
    ) -> Values | None:
        now = catalog.named(TableName.parse(table.schema.table))
        if now is None or not set(names) <= {column.name for column in now.columns}:
            return None  # the table or the column has gone, which comes as a change of its own
        schema = catalog.schema(now)
        values = _reader(catalog, now, schema).one(sql, key)
        if values is None:
            return None
        places = {column.name: index for index, column in enumerate(schema.columns)}
        return [values[places[name]] for name in names]

    # Connections: made when needed, given up when they fail.

    @contextmanager
    def _session(self) -> Iterator[tuple[psycopg.Connection[tuple[Any, ...]], Catalog]]:
        if self._sql is None or self._catalog is None:
            self._sql = connect(self._url)
            self._catalog = Catalog(self._sql, self._selections, self._publication)
        try:
            with translated(self._url):
                yield self._sql, self._catalog
        except UpwellError:
            self._close_sql()
            raise

    @contextmanager
    def _streaming(self) -> Iterator[None]:
        try:
            with translated(self._url):
                yield
        except BaseException:
            # What it had under way comes again. The other connection broke most likely too.
            self._close_stream()
            self._close_sql()
            raise

    def _close_stream(self) -> None:
        stream, self._stream, self._decoder = self._stream, None, None
        if stream is not None:
            stream.close()

    def _close_sql(self) -> None:
        sql, self._sql, self._catalog = self._sql, None, None
        if sql is not None:
            with suppress(Exception):
                sql.close()

    def _runway_hours(self, safe_wal_size: int | None) -> float | None:
        """How long until the server gives up the slot, if the log grows on as of late."""
        if safe_wal_size is None or len(self._growth) < 2:
            return None
        (from_s, from_lsn), (to_s, to_lsn) = self._growth[0], self._growth[-1]
        if to_lsn <= from_lsn or to_s <= from_s:
            return None
        return max(0, safe_wal_size) / (to_lsn - from_lsn) * (to_s - from_s) / 3600


def _reader(catalog: Catalog, table: CatalogTable, schema: TableSchema) -> RowReader:
    return RowReader(table, schema, catalog.decoders(table, schema), catalog.operator_schemas(table, schema))
