"""SQL Server by Change Tracking: keys that changed, by version, joined with the rows as they are now.

What is read. Change Tracking gives every transaction that touched a tracked table one version at its commit, so
nothing can hide below a version that was seen. `CHANGETABLE(CHANGES t, since)` tells the net change of each key after
`since`; the row comes from a join. So a window's event says what the row is now, under the version that it last changed
at.

Windows. A round begins with CHANGE_TRACKING_CURRENT_VERSION() = `upto`, looks at what the server still has of each
table, reads a page of each, and looks at both again: no row is newer than the second version, and nothing was cleaned
up meanwhile. Where the database allows it, all but the first is one SNAPSHOT transaction. sqlserver_windows.py merges
the pages into windows by (version, table, key), so that a transaction of any size is read in parts and resumed in its
middle. A position holds the version up to which all is done, the place inside the next one, and of each table the ids
that tell whether its history is the same as before (sqlserver_place.py); idle tables move on with the others.

At the edges. Without SNAPSHOT the keys and the rows are read at different instants: a row that is gone though it was
not deleted is left out, for its delete follows; one that is there though it was deleted is published (also against the
server's fault KB4135113). A row that changes faster than we read would be beyond `upto` in every round; it goes out all
the same, under `upto`. An event's `transaction` is the version after its page was read, a chunk contains what committed
up to the version before it was read, and waits until the stream has passed the version after: see docs/delivery.md.

Keys. Under a collation without case an updated key ('b' to 'B') is one key to the server, and Change Tracking goes on
telling the first spelling; on the wire they are two. So the other spellings are deleted before the row is published,
and those that the target may have are remembered in the position.

Gaps. The minimum valid version tells when cleanup was faster. TRUNCATE, tracking off and on, and tables made anew show
in begin_version and object ids, also where the version has not moved. A restore, or a failover with loss, shows in the
version, the recovery fork or our own marker, whenever a connection is made: neither leaves one open.

Modules: _session (address, drivers, connection), _errors, _types (values), _catalog, _reading (statements of a table,
encoding), _database (what can be read now), _windows (merging), _place (positions; what is lost), _marker, _retention,
_setup (track, doctor). Everything was verified against the stand-in of lab/sqlserver only.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from upwell.errors import OperatorError, PositionLost, TransientError
from upwell.model import (
    DELETE,
    UPSERT,
    ChangeEvent,
    Chunk,
    Cursor,
    Operation,
    Position,
    Rejection,
    TableSchema,
    TableSelection,
    Window,
    pack_version,
)
from upwell.ports import Clock
from upwell.sources import sqlserver_marker as marker
from upwell.sources.sqlserver_catalog import (
    TableState,
    check_server,
    known_of,
    read_estimates,
    read_states,
    read_version,
)
from upwell.sources.sqlserver_database import Database, Wanted
from upwell.sources.sqlserver_place import SPELLINGS_MAX, History, Place, Server, settled, why_lost
from upwell.sources.sqlserver_reading import Found, TableReader
from upwell.sources.sqlserver_retention import health_of
from upwell.sources.sqlserver_session import Driver, Session
from upwell.sources.sqlserver_windows import Cut, Round, Taken, start_of

STATES_EVERY_S: Final = 1.0  # a TRUNCATE does not move the version: the tables are looked at now and then
MASKS_PER_WINDOW_MAX: Final = 50  # of those never seen before: each costs a query
MASKS_KNOWN_MAX: Final = 10_000  # of a table

_Spelled = dict[str, dict[str, str]]


class SqlServerSource:
    """Implements ports.Source. Tracking is turned on by `upwell track`."""

    def __init__(
        self, url: str, *, tables: Sequence[TableSelection], pipeline: str, clock: Clock, driver: Driver
    ) -> None:
        self._clock = clock
        self._pipeline = pipeline
        self._database = Database(url, driver=driver, tables=tables, clock=clock, on_connect=self._recognise)
        self._epoch = 0
        self._place: Place | None = None
        self._position = Position("")
        self._round: Round | None = None
        self._marker: int | None = None  # the last number that we wrote; None: we have none there
        self._told: set[tuple[str, History, int]] = set()  # raised as PositionLost: table, its history, the position's
        self._published: dict[str, TableSchema] = {}  # as windows have told, or will with the next
        self._unreported: dict[str, TableSchema] = {}
        self._resync: dict[str, str] = {}
        self._rejected: list[Rejection] = []
        self._spellings_read: set[str] = set()
        self._states_at = 0.0
        self._newest_at = ""  # by the server's clock: when the position was the newest there is
        self._newest_s = 0.0  # the same by ours, seconds since 1970

    def tables(self) -> Sequence[TableSchema]:
        """See ports.Source. What a pattern names counts only where it is tracked, once anything is."""
        with self._database.using() as session:
            current, _ = read_version(session)
            self._database.load(session, strict=True, need_tracking=current is not None)
            return [reader.table.schema for reader in self._database.readers.values()]

    def start(self, position: Position | None, epoch: int) -> tuple[Position, int]:
        """See ports.Source."""
        self._epoch, self._place, self._round = epoch, None, None
        place = None if position is None else Place.parse(position)
        with self._database.using() as session:
            check_server(self._database.server)
            states = self._database.load(session, strict=True)
            current, _ = self._database.version(session)
            self._marker = marker.read(session, self._pipeline)
            if place is None:
                place = Place(current, None, self._database.server.identity, "", 0, {})
            else:
                self._check(place, self._database.server, current)
            _check_coherent(states, current)
            place = self._settle(place, states, current)
        self._published = {name: reader.table.schema for name, reader in self._database.readers.items()}
        self._unreported, self._resync, self._rejected = dict(self._published), {}, []
        self._spellings_read = set()
        self._move(place)
        return self._position, place.done

    def changes(self, after: Position, limit: int, wait_s: float) -> Window:
        """See ports.Source."""
        if self._place is None or after != self._position:
            self._place, self._position, self._round = Place.parse(after), after, None
        deadline = self._clock.monotonic() + wait_s
        while True:
            last_look = self._clock.monotonic() >= deadline
            try:
                with self._database.using() as session:
                    window = self._window(session, limit)
            except BaseException:
                self._round, self._rejected = None, []  # both are read again
                raise
            if window is not None:
                return window
            if last_look:
                return Window(events=[], position=after, commit=self._place.done)
            self._clock.sleep(deadline - self._clock.monotonic())
            deadline = self._clock.monotonic()  # it may have returned early, since the program is to stop

    def head(self) -> int:
        """See ports.Source: the database's version."""
        with self._aside() as session:
            return self._database.version(session)[0]

    def start_chunks(self) -> None:
        """See ports.Source: nothing to do, since a chunk is read later than everything delivered before."""

    def chunk(self, schema: TableSchema, cursor: Cursor | None, limit: int) -> Chunk | None:
        """See ports.Source. None where the table has been altered and no window has told so yet."""
        with self._aside() as session:
            if not self._database.is_as_known(session, schema.table):
                self._states_at = 0.0
                return None
            self._read_spellings(session, self._database.readers[schema.table])
            return self._database.chunk(session, schema.table, cursor, limit)

    def estimate(self, table: str) -> int | None:
        """See ports.Source: from the catalog."""
        with self._aside() as session:
            reader = self._database.readers.get(table)
            if reader is None:
                return None
            return read_estimates(session, [reader.table.object_id]).get(reader.table.object_id)

    def confirm(self, position: Position) -> None:
        """See ports.Source: the server forgets by itself, when its retention is over."""

    def health(self) -> Mapping[str, Any]:
        """See ports.Source; docs/sqlserver.md lists the keys."""
        with self._aside() as session:
            states = read_states(session, [reader.table.object_id for reader in self._database.readers.values()])
            current, _ = self._database.version(session)
            done = current if self._place is None else self._place.done
            behind_s = self._clock.now() - self._newest_s if done < current and self._newest_s else 0.0
            found = health_of(session, states, done, behind_s)
        server = self._database.server
        return found | {
            "version": current,
            "read_version": done,
            "snapshot_isolation": server.snapshots,
            "marker": self._marker is not None,
            "untracked_tables": self._database.untracked,
        }

    def close(self) -> None:
        """See ports.Source."""
        self._database.close()

    @contextmanager
    def _aside(self) -> Iterator[Session]:
        """The connection, for what can't say that the position is lost: the next window finds the same, and says it."""
        try:
            with self._database.using() as session:
                yield session
        except PositionLost as lost:
            raise TransientError(lost.message, code=lost.code) from lost

    # --- where we are ---------------------------------------------------------------------------------------------

    def _recognise(self, session: Session, server: Server) -> None:
        """Of a connection made anew while we read: is that still the database that we were reading?"""
        if self._place is None:
            return
        try:
            check_server(server)
        except OperatorError as error:  # of one that fails over: the primary will answer soon, here or elsewhere
            raise TransientError(error.message, code=error.code, remedy=error.remedy) from error
        current, _ = read_version(session)
        self._marker = marker.read(session, self._pipeline)
        if current is not None:
            self._check(self._place, server, current)

    def _check(self, place: Place, server: Server, current: int) -> None:
        lost = why_lost(place, server, current, self._marker)
        if lost is not None:
            raise PositionLost(f"The source can't go on from the saved position: {lost}.", code="UW-MS-020")

    def _settle(self, place: Place, states: Mapping[str, TableState], current: int) -> Place:
        """The place as the tables allow it. Raises PositionLost, once, for those that have lost something."""
        found = settled(place, known_of(states), current)
        lost = {**found.unseen, **found.expired}
        marks = {(table, found.place.tables[table], place.done) for table in lost}
        if marks - self._told:
            self._told |= marks
            raise _lost(found.unseen, found.expired)
        return found.place

    def _move(self, place: Place) -> None:
        self._place, self._position = place, place.to_position()

    # --- windows --------------------------------------------------------------------------------------------------

    def _window(self, session: Session, limit: int) -> Window | None:
        """The next window; None where there is nothing to say."""
        if self._round is None and not self._begin(session):
            return None
        place, round_ = self._place, self._round
        assert place is not None, "it is read from a position"
        assert round_ is not None, "it has begun"
        while hungry := round_.hungry:
            wanted = [self._wanted(reader, cut[0] - 1, cut) for reader, cut in hungry]
            with self._database.transaction(session):
                round_.feed(self._database.pages(session, wanted, place.tables, self._rejected, held=round_.held))
            place = self._marked(session, place)
        taken = round_.take(limit)
        done, inside = round_.place_after(taken)
        spelled = {table: dict(keys) for table, keys in place.spelled.items()}
        events = self._events(session, taken, spelled)
        floors = {table: floor for table, floor in place.floors.items() if floor > done}
        more = round_.more
        whole = (place.done if place.whole is None else place.whole) if more else None
        place = replace(place, done=done, inside=inside, floors=floors, spelled=self._remembered(spelled), whole=whole)
        if not more:
            self._round = None
        said = events or self._rejected or self._unreported or self._resync
        if not said and place.to_position() == self._position:
            return None
        self._move(place)
        window = Window(
            events=events,
            position=self._position,
            commit=done,
            complete=inside is None,
            more=more,
            rejected=self._rejected,
            schemas=list(self._unreported.values()),
            resync=list(self._resync.items()),
        )
        self._rejected, self._unreported, self._resync = [], {}, {}
        return window

    def _begin(self, session: Session) -> bool:
        """Begin a round where there may be something to say."""
        place = self._place
        assert place is not None, "it is read from a position"
        # Before the transaction: nobody says whether the version is of the snapshot, and all up to it has to be there.
        upto, time = self._database.version(session)
        if upto < place.done:
            self._check(place, self._database.server, upto)
        if upto == place.done:
            self._newest_at, self._newest_s = time, self._clock.now()
            now = self._clock.monotonic()
            if now < self._states_at and not (self._unreported or self._resync):
                return False
            self._states_at = now + STATES_EVERY_S
        database = self._database
        with database.transaction(session):
            states = database.states(session)
            place = self._settle_running(place, states, upto)
            self._place = place  # even where nothing else happens: the next window says so
            starts = {table: start_of(table, place.done, place.inside, place.floors.get(table, 0)) for table in states}
            wanted = [
                self._wanted(database.readers[table], *start) for table, start in starts.items() if start[0] < upto
            ]
            pages = database.pages(session, wanted, place.tables, self._rejected, held=0)
        place = replace(place, fork=database.server.fork or place.fork, marker=self._marker or 0)
        self._place = self._marked(session, place) if upto > place.done else place
        self._round = Round(upto, pages)
        return True

    def _marked(self, session: Session, place: Place) -> Place:
        """The place with a new mark in the database, after what has been read: a restore that lacks that lacks it."""
        if self._marker is None:
            return place
        self._marker += 1
        marker.write(session, self._pipeline, self._marker)
        return replace(place, marker=self._marker)

    def _wanted(self, reader: TableReader, since: int, cut: Cut | None) -> Wanted:
        assert self._place is not None, "it is read from a position"
        return Wanted(reader, since, cut, masks=self._place.masks_tell_all(reader.table.schema.table, since))

    def _settle_running(self, place: Place, states: Mapping[str, TableState], upto: int) -> Place:
        """As at the start; but that a table was truncated goes with the window, as what happened to it."""
        for name, reader in self._database.readers.items():
            if reader.table.schema != self._published.get(name):
                self._unreported[name] = self._published[name] = reader.table.schema
        found = settled(place, known_of(states), upto)
        if found.expired:
            self._told |= {(table, found.place.tables[table], place.done) for table in found.expired}
            raise _lost({}, found.expired)
        self._resync.update(found.unseen)
        # What is gone may be back soon, another one by then: remembered as it was.
        gone = {table: history for table, history in place.tables.items() if table not in states}
        return replace(found.place, tables={**gone, **found.place.tables})

    # --- events ---------------------------------------------------------------------------------------------------

    def _events(self, session: Session, taken: Sequence[Taken], spelled: _Spelled) -> list[ChangeEvent]:
        if not taken:
            return []
        self._learn_masks(session, taken)
        times = self._database.times(session, taken[0].version, taken[-1].version)
        events: list[ChangeEvent] = []
        for version, table, found, page in taken:
            schema = page.reader.table.schema
            time = min(max(times.get(version, page.time), self._newest_at), page.time)
            packed = pack_version(self._epoch, version, 0)
            if schema.loose:
                others = _other_spellings(spelled.setdefault(table, {}), found)
                events += [ChangeEvent(schema, DELETE, packed, time, key, None, "delete", page.high) for key in others]
            operation: Operation = DELETE if found.row is None else UPSERT
            changed = page.reader.changed_columns.get(found.mask) if found.mask is not None and page.masks else None
            context = None if found.context is None else b64encode(found.context).decode()
            events.append(
                ChangeEvent(
                    schema, operation, packed, time, found.key, found.row, found.was, page.high, changed, context
                )
            )
        return events

    def _learn_masks(self, session: Session, taken: Sequence[Taken]) -> None:
        unknown = {
            (table, found.mask): page.reader
            for _, table, found, page in taken
            if page.masks and found.mask is not None and found.mask not in page.reader.changed_columns
        }
        for (_, mask), reader in list(unknown.items())[:MASKS_PER_WINDOW_MAX]:
            assert mask is not None, "those without are not asked for"
            if len(reader.changed_columns) >= MASKS_KNOWN_MAX:
                reader.changed_columns.clear()
            self._database.learn_mask(session, reader, mask)

    def _read_spellings(self, session: Session, reader: TableReader) -> None:
        """Before the first chunk: a row that is deleted later would be told by a spelling that no chunk had."""
        table = reader.table.schema.table
        if not reader.table.loose or table in self._spellings_read or self._place is None:
            return
        query = reader.spellings_query(SPELLINGS_MAX)
        rows = [] if query is None else session.all(*query)
        if rows:
            known = {**reader.spellings(rows), **self._place.spelled.get(table, {})}
            self._place = replace(self._place, spelled={**self._place.spelled, table: known})
            self._states_at = 0.0  # so that the next window has a position that says it: before the chunk is sent
        self._spellings_read.add(table)

    def _remembered(self, spelled: _Spelled) -> _Spelled:
        """The spellings to remember. Where they are too many, a resync finds what nobody can tell any more."""
        for table, keys in spelled.items():
            if len(keys) > SPELLINGS_MAX:
                self._resync[table] = f"more than {SPELLINGS_MAX} of its keys were written in another way"
        return {table: keys for table, keys in spelled.items() if 0 < len(keys) <= SPELLINGS_MAX}


def _other_spellings(spelled: dict[str, str], found: Found) -> list[bytes]:
    """The keys that the target may have for a row beside its own; remembers which one it will have now."""
    key = found.key.decode()
    known = spelled.pop(found.tracked, None)
    if found.row is not None and found.tracked != key:
        spelled[found.tracked] = key
    return [other.encode() for other in dict.fromkeys((found.tracked, known)) if other is not None and other != key]


def _check_coherent(states: Mapping[str, TableState], current: int) -> None:
    """`current` was read after the states. Raises OperatorError: a resync would find the same again, for ever."""
    for table, state in states.items():
        if state.min_valid is not None and state.min_valid > current:
            raise OperatorError(
                f"The server says that it is at version {current} of its changes, and of {table} that it has only what "
                f"is newer than {state.min_valid}: a secondary replica, or damage.",
                code="UW-MS-024",
                remedy="Connect to the primary. If this is it: ALTER TABLE … DISABLE CHANGE_TRACKING, then run: "
                "upwell track",
            )


def _lost(unseen: Mapping[str, str], expired: Mapping[str, str]) -> PositionLost:
    what = [f"{table}: {why}" for table, why in unseen.items()] + list(expired.values())
    code = "UW-MS-022" if expired else "UW-MS-023"
    return PositionLost(
        f"Changes of tables may have gone unseen: {'; '.join(what)}.", tables=sorted({**unseen, **expired}), code=code
    )
