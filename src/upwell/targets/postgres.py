# ruff: noqa: S608 - names are quoted by ident(), texts by literal(), rows travel by COPY
"""A PostgreSQL target: rows, watermarks, dead letters and resync notes in one transaction.

Each write is one COPY into a temporary table and one statement from there. A savepoint always stands before the
next write, set in the same round trip that ended the one before, so that a refusal costs a round trip and a success
costs none.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal

import orjson

from upwell.errors import OperatorError, Rejected, TransientError, UniqueConflict, UpwellError
from upwell.model import DeadLetter, Finding, TableName, TableSchema, Value
from upwell.pgtext import wire_value
from upwell.ports import LaneState, Request, ResyncState
from upwell.targets import postgres_checkup as checkup
from upwell.targets import postgres_own as own
from upwell.targets.postgres_refusals import Suspicions, filled_without
from upwell.targets.postgres_session import STATEMENT_TIMEOUT_S, AlreadyMade, Locked, Pool, Refused, Session, ident
from upwell.targets.postgres_tables import (
    TargetTable,
    Writer,
    add_statement,
    check_indexes,
    create_statements,
    read_table,
    target_name,
)
from upwell.targets.postgres_types import copy_data, copy_lines, key_text

SWEEP_TIMEOUT_S: Final = 3600
# A table whose rows had to make way for each other is written by one transaction at a time, for so many of them.
ALONE_FOR: Final = 100
_DEADLOCK: Final = "40P01"
STAGES_MAX: Final = 100  # temporary tables of a connection; each costs a little at every commit
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED; SET CONSTRAINTS ALL IMMEDIATE; SAVEPOINT upwell"
_KEPT: Final = "; RELEASE SAVEPOINT upwell; SAVEPOINT upwell"
_LONG: Final = f"SET LOCAL statement_timeout TO '{SWEEP_TIMEOUT_S}s'"
_USUAL: Final = f"SET LOCAL statement_timeout TO '{STATEMENT_TIMEOUT_S}s'"
_UNDO: Final = "ROLLBACK TO SAVEPOINT upwell"


class PostgresTarget:
    """Where a subscriber applies; see ports.Target. Sessions are READ COMMITTED, in UTC."""

    def __init__(
        self,
        url: str,
        *,
        create_tables: bool,
        schema_changes: Literal["apply", "halt"],
        connections_max: int = 4,
        password: Callable[[str, str, str], str] | None = None,
    ) -> None:
        """Connects to nothing yet. `url` as libpq takes it; `password` makes one for each connection: see Session."""
        self._pool = Pool(url, connections_max, password)
        self._create_tables = create_tables
        self._schema_changes = schema_changes
        self._crowded: dict[TableName, int] = {}  # where rows had to make way of late → how long to remember it
        self._suspicions = Suspicions()

    def check(self) -> None:
        """Connect and make the schema upwell; raises OperatorError also for what may pass, as at a first start."""
        with self._pool.session(first=True) as session:
            _ready(session)

    @contextmanager
    def begin(self) -> Iterator[PostgresTransaction]:
        """A transaction; see ports.Target."""
        with self.session() as session:
            session.run(_BEGIN)
            transaction = PostgresTransaction(
                session, self._create_tables, self._schema_changes, self._crowded, self._suspicions
            )
            try:
                yield transaction
                session.commit()
            except BaseException as error:
                transaction.forget(error)
                _roll_back(session)
                if isinstance(error, Locked):
                    session.end_hanging()
                raise

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A connection on which each statement is a transaction."""
        with self._pool.session() as session:
            _ready(session)
            yield session

    def close(self) -> None:
        """Free connections; never raises."""
        self._pool.close()

    # ---- the command line's part ----

    def findings(self, schemas: Sequence[TableSchema]) -> list[Finding]:
        """All that applying will need, and what may surprise; changes nothing."""
        try:
            with self._pool.session(first=True) as session:
                return list(
                    checkup.findings(
                        session, schemas, create_tables=self._create_tables, schema_changes=self._schema_changes
                    )
                )
        except UpwellError as error:
            return [Finding.of_error(error)]

    def rows(self, schema: TableSchema, after_key: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` rows after a key, in the database's key order, as (key, row) of a ChangeEvent.

        For rows that came over the wire these are the bytes that came, as far as the target's types hold them. Raises
        OperatorError where the table or one of its columns is missing.
        """
        with self.session() as session:
            table = read_table(session, target_name(schema))
            missing = [] if table is None else [c.name for c in schema.columns if c.name not in table.columns]
            if table is None or missing:
                lacking = (
                    f" columns of {schema.table}: {', '.join(missing)}" if missing else f" table for {schema.table}"
                )
                raise OperatorError(f"The target lacks{lacking}.", code="UW-PT-038", remedy="Run `upwell subscribe`.")
            after = [] if after_key is None else _key_texts(schema, after_key)
            found = session.query(Writer(schema, table).read(after=after_key is not None), [*after, limit])
        kinds = [column.kind for column in schema.columns]
        decoded = ([wire_value(kind, text) for kind, text in zip(kinds, row, strict=True)] for row in found)
        return [(orjson.dumps([row[i] for i in schema.key_indexes]), orjson.dumps(row)) for row in decoded]

    def status(self, pipeline: str) -> dict[str, Any]:
        """What the target knows of a pipeline; keys are documented in docs/operations.md."""
        with self.session() as session:
            return own.status(session, pipeline)

    def dead_letters(self, pipeline: str) -> list[DeadLetter]:
        """All that are kept, the oldest first, without their payloads."""
        with self.session() as session:
            rows = session.query(
                "SELECT id, \"table\", key, version, reason, time, ''::bytea FROM upwell.dead_letter"
                " WHERE pipeline = %s ORDER BY id",
                [pipeline],
            )
        return [DeadLetter(*row) for row in rows]

    def dead_letter(self, id_: int) -> DeadLetter | None:
        """One of them, with its payload; None where there is none of that id."""
        with self.session() as session:
            rows = session.query(
                'SELECT id, "table", key, version, reason, time, payload FROM upwell.dead_letter WHERE id = %s', [id_]
            )
        return DeadLetter(*rows[0]) if rows else None

    def drop_dead_letter(self, id_: int) -> bool:
        """Forget one; whether there was one."""
        with self.session() as session:
            return bool(session.query("DELETE FROM upwell.dead_letter WHERE id = %s RETURNING id", [id_]))

    def pending_repairs(self, pipeline: str) -> list[Request]:
        """What was asked and not yet handed to the control channel."""
        with self.session() as session:
            rows = session.query(
                'SELECT id, "table", reason FROM upwell.repair_request WHERE pipeline = %s AND NOT handed_over'
                " ORDER BY id",
                [pipeline],
            )
        return [Request(*row) for row in rows]

    def repair_handed_over(self, pipeline: str, id_: str) -> None:
        """The control channel has it."""
        with self.session() as session:
            session.query(
                "UPDATE upwell.repair_request SET handed_over = true WHERE pipeline = %s AND id = %s", [pipeline, id_]
            )


def _ready(session: Session) -> None:
    """At each new connection: a restored or replaced database may lack our tables."""
    if "installed" not in session.cache:
        own.install(session)
        session.cache["installed"] = True


def _roll_back(session: Session) -> None:
    with suppress(UpwellError):
        session.run("ROLLBACK")
        return
    session.moved = True


class PostgresTransaction:
    """See ports.TargetTransaction."""

    def __init__(
        self,
        session: Session,
        create_tables: bool,
        schema_changes: str,
        crowded: dict[TableName, int],
        suspicions: Suspicions,
    ) -> None:
        self._session = session
        self._create_tables = create_tables
        self._schema_changes = schema_changes
        self._crowded = crowded
        self._suspicions = suspicions
        self._held: dict[TableName, bool] = {}  # the tables locked here → whether nobody else writes them meanwhile
        self._learned: list[Any] = []  # cache entries that a rollback makes untrue
        self._filled: set[str] = set()  # stages that hold rows of this transaction
        self._unkept = False  # locks were taken, or something was kept by `_note_down`, after the savepoint

    # ---- lanes and resyncs ----

    def lock_lanes(self, pipeline: str, lanes: Sequence[int]) -> dict[int, LaneState]:
        wanted = sorted(set(lanes))
        states = self._locked(pipeline, wanted)
        if len(states) < len(wanted):
            missing = [lane for lane in wanted if lane not in states]
            self._note_down(
                "INSERT INTO upwell.watermark SELECT %s, lane, %s, 0, 0, '{}' FROM unnest(%s::int[]) AS lane"
                " ORDER BY lane ON CONFLICT DO NOTHING",
                [pipeline, bytes(16), missing],
            )
            states = self._locked(pipeline, wanted)
        return states

    def _locked(self, pipeline: str, lanes: list[int]) -> dict[int, LaneState]:
        rows = self._note_down(
            "SELECT lane, version, term, seq, resyncs FROM upwell.watermark"
            " WHERE pipeline = %s AND lane = ANY(%s) ORDER BY lane FOR UPDATE",
            [pipeline, lanes],
        )
        return {lane: LaneState(bytes(version), term, seq, resyncs) for lane, version, term, seq, resyncs in rows}

    def save_lanes(self, pipeline: str, states: Mapping[int, LaneState]) -> None:
        if not states:
            return
        lanes = sorted(states)
        self._note_down(
            "UPDATE upwell.watermark w SET version = n.version, term = n.term, seq = n.seq, resyncs = n.resyncs::jsonb"
            " FROM unnest(%s::int[], %s::bytea[], %s::bigint[], %s::bigint[], %s::text[])"
            " AS n (lane, version, term, seq, resyncs) WHERE w.pipeline = %s AND w.lane = n.lane",
            [
                lanes,
                [states[lane].version for lane in lanes],
                [states[lane].term for lane in lanes],
                [states[lane].seq for lane in lanes],
                [orjson.dumps(states[lane].resyncs).decode() for lane in lanes],
                pipeline,
            ],
        )

    def lock_resyncs(self, pipeline: str, shared: Sequence[str], exclusive: Sequence[str]) -> dict[str, ResyncState]:
        """A table that never had a resync is locked too, and absent from the answer."""
        alone = {_lock_number(pipeline, table) for table in exclusive}
        together = {_lock_number(pipeline, table) for table in shared} - alone
        if not alone and not together:
            return {}
        locks = [
            own.lock_statement("" if number in alone else "_shared", number) for number in sorted(alone | together)
        ]
        self._session.run("; ".join(locks) + _KEPT)
        self._unkept = False
        # A statement of its own: what it sees is what was committed before the locks were given.
        rows = self._session.query(
            'SELECT "table", resync, active, closed FROM upwell.resync WHERE pipeline = %s AND "table" = ANY(%s)',
            [pipeline, [*shared, *exclusive]],
        )
        return {table: ResyncState(resync, active, set(closed)) for table, resync, active, closed in rows}

    def save_resync(self, pipeline: str, table: str, state: ResyncState) -> None:
        self._note_down(
            'INSERT INTO upwell.resync VALUES (%s, %s, %s, %s, %s) ON CONFLICT (pipeline, "table") DO UPDATE'
            " SET resync = EXCLUDED.resync, active = EXCLUDED.active, closed = EXCLUDED.closed",
            [pipeline, table, state.resync, state.active, sorted(state.closed)],
        )
        number = self._source_table(pipeline, table)
        self._session.run(
            f"{_LONG}; DELETE FROM upwell.note WHERE source_table = {number} AND resync < {state.resync}; {_USUAL}"
        )

    # ---- tables ----

    def ensure_table(self, schema: TableSchema) -> None:
        self._writer(schema)

    def _writer(self, schema: TableSchema) -> Writer:
        cached = self._session.cache.get(schema.hash)
        if cached is not None:
            assert isinstance(cached, Writer)
            self._hold(cached.table.name)
            return cached
        name = target_name(schema)
        self._hold(name)
        table = read_table(self._session, name)
        if table is None:
            table = self._created(schema, name)
        missing = [i for i, column in enumerate(schema.columns) if column.name not in table.columns]
        if missing:
            table = self._widened(schema, name, missing)
        check_indexes(schema, table)
        writer = Writer(schema, table)
        self._learn(schema.hash, writer)
        return writer

    def _hold(self, name: TableName) -> None:
        """Until the end of the transaction nobody moves rows of this table that are not their own to make way."""
        if name in self._held:
            return
        left = self._crowded.get(name, 0)
        if left:
            self._crowded[name] = left - 1
        self._session.run(own.table_lock_statement(name, alone=left > 0))
        self._held[name], self._unkept = left > 0, True

    def _hold_alone(self, name: TableName) -> None:
        """Before rows of other lanes are moved. Beside other writers one could come back that was just deleted."""
        self._crowded[name] = ALONE_FOR
        if not self._held[name]:
            if not self._session.run(own.table_lock_statement(name, alone=True, wait=False))[0][0]:
                raise TransientError(f"Rows of {name} make way for each other: once more, alone.", code="UW-PT-008")
            self._held[name], self._unkept = True, True

    def _created(self, schema: TableSchema, name: TableName) -> TargetTable:
        statements = create_statements(self._session, schema, name)
        if not self._create_tables:
            raise OperatorError(
                f"The target has no table {name}, and create_tables is off.",
                code="UW-PT-033",
                remedy="; ".join(statements) + ";",
            )
        for statement in statements:
            self._define(statement)
        table = read_table(self._session, name)
        assert table is not None
        return table

    def _define(self, statement: str) -> None:
        """DDL. IF NOT EXISTS does not see what another transaction is making: it waits, then fails, then sees it."""
        self._keep()
        try:
            self._session.run(statement + _KEPT)
        except (AlreadyMade, UniqueConflict):  # the latter from an index of the system's catalogs
            self._session.run(_UNDO)
            self._session.run(statement + _KEPT)

    def _widened(self, schema: TableSchema, name: TableName, missing: list[int]) -> TargetTable:
        statement = add_statement(self._session, schema, name, missing)
        if self._schema_changes != "apply":
            columns = ", ".join(schema.columns[index].name for index in missing)
            raise OperatorError(
                f"The target's table {name} lacks columns ({columns}), and schema_changes is halt.",
                code="UW-PT-034",
                remedy=statement + ";",
            )
        self._define(statement)
        table = read_table(self._session, name)
        assert table is not None
        for key in [key for key, writer in self._session.cache.items() if _writes_into(writer, name)]:
            del self._session.cache[key]
        return table

    # ---- rows ----

    def upsert(self, schema: TableSchema, rows: Sequence[Sequence[Value]]) -> Mapping[int, Rejected]:
        if not rows:
            return {}
        writer = self._writer(schema)

        def write() -> bool:
            if not schema.partial:
                return bool(self._session.run(f"{writer.upsert}{_KEPT}; {writer.any_evicted}"))
            waiting = bool(self._session.run(f"{writer.update}; {writer.any_evicted}"))
            if waiting:
                self._hold_alone(writer.table.name)
            self._session.run((self._seen_anew(writer).restore if waiting else "SELECT") + _KEPT)
            return waiting

        refused, waiting = self._written(writer, rows, write)
        if waiting:
            self._bring_back(writer, inserted=not schema.partial)
        return refused

    def replace(self, schema: TableSchema, rows: Sequence[Sequence[Value]]) -> Mapping[int, Rejected]:
        """As the port says; a row that made way comes back by itself as soon as nothing keeps it out.

        That matters where the other row was the older one: its lane lags, and no change of the row that made way is
        still to come. When all lanes have caught up, nothing is left evicted, since the source had no conflict.
        """
        if not rows:
            return {}
        writer = self._seen_anew(self._writer(schema))
        self._hold_alone(writer.table.name)
        key = set(schema.key)
        others = [index for index in writer.table.uniques if set(index.columns) != key and not index.exclusion]
        script = [*writer.park, *map(writer.make_way, others), writer.unpark]
        refused, waiting = self._written(
            writer, rows, lambda: bool(self._session.run(f"{'; '.join(script)}{_KEPT}; {writer.any_evicted}"))
        )
        if waiting:
            self._bring_back(writer)
        return refused

    def _written(
        self, writer: Writer, rows: Sequence[Sequence[Value]], write: Callable[[], bool]
    ) -> tuple[dict[int, Rejected], bool]:
        """Fill the stage and write from there, without the rows that are known to be refused; what `write` says.

        The first refusal of a kind makes a suspicion, and another attempt; one that says nothing new is raised.
        """
        if len(writer.indexes) < len(writer.schema.columns):
            rows = [[row[index] for index in writer.indexes] for row in rows]
        lines, unfit = copy_lines(writer.columns, writer.types, rows)
        while True:
            asked = self._suspicions.about(writer)
            try:
                with self._undone_if_refused():
                    self._empty(writer, writer.row_stage)
                    known, confirmed = filled_without(self._session, writer, rows, lines, unfit, asked, _UNDO)
                    self._suspicions.confirm(self._session, writer, asked, confirmed)
                    refused = unfit | known
                    if len(rows) == 1 and refused:
                        raise refused[0]
                    waiting = len(refused) < len(rows) and write()
            except Refused as error:
                if not self._suspicions.add(self._session, writer, error, _UNDO):
                    raise
            else:
                return refused, waiting

    def delete(self, schema: TableSchema, keys: Sequence[Sequence[Value]]) -> None:
        if not keys:
            return
        writer = self._writer(schema)
        with self._undone_if_refused():
            self._fill_keys(writer, keys)
            waiting = self._session.run(f"{writer.delete}{_KEPT}; {writer.any_evicted}")
        if waiting:
            self._hold_alone(writer.table.name)
            self._session.run(writer.forget_evicted(writer.key_stage) + _KEPT)
            self._bring_back(writer)

    def _seen_anew(self, writer: Writer) -> Writer:
        """Whole rows are moved with all their columns and unique indexes, also those added since the first look."""
        table = read_table(self._session, writer.table.name)
        if table is None:
            self._session.moved = True
            raise TransientError(f"The target's table {writer.table.name} has gone.", code="UW-PT-003")
        return Writer(writer.schema, table)

    def _bring_back(self, writer: Writer, *, inserted: bool = False) -> None:
        """What the table refuses of them is no fault of the rows that were just written: they go on waiting."""
        self._hold_alone(writer.table.name)
        self._keep()
        try:
            writer = self._seen_anew(writer)
            self._session.run("; ".join([*(writer.complete if inserted else []), *writer.bring_back]) + _KEPT)
        except Rejected:
            self._session.run(_UNDO)

    def note(self, pipeline: str, schema: TableSchema, resync: int, keys: Sequence[Sequence[Value]]) -> None:
        """A key that the target's types can't hold is in no row of it: it needs no note."""
        if not keys:
            return
        writer = self._writer(schema)
        statement = writer.note(self._source_table(pipeline, schema.table), resync)
        try:
            with self._undone_if_refused():
                self._fill_keys(writer, keys)
                self._session.run(statement + _KEPT)
        except Rejected:
            if len(keys) > 1:
                middle = len(keys) // 2
                self.note(pipeline, schema, resync, keys[:middle])
                self.note(pipeline, schema, resync, keys[middle:])

    def sweep(self, pipeline: str, schema: TableSchema, resync: int) -> int:
        writer = self._writer(schema)
        number = self._source_table(pipeline, schema.table)
        self._session.run(_LONG)
        try:
            swept = self._session.run("; ".join(writer.sweep(number, resync)))[0][0]
        except Rejected as error:
            raise OperatorError(
                f"Rows of {writer.table.name} that the source no longer has can't be removed: {error.message}",
                code="UW-PT-037",
                remedy="Drop the constraint: the target gets each row's changes in order, not each transaction's.",
            ) from error
        self._session.run(
            f"DELETE FROM upwell.note WHERE source_table = {number} AND resync <= {resync}{_KEPT}; {_USUAL}"
        )
        if self._session.run(writer.any_evicted):
            self._bring_back(writer)
        return int(swept)

    def _note_down(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """A statement of our own bookkeeping, or one that takes locks: what a write refuses must not undo it."""
        self._unkept = True
        return self._session.query(statement, parameters)

    def _keep(self) -> None:
        """Before what may be undone: going back to a savepoint gives up the locks taken since, too."""
        if self._unkept:
            self._session.run(_KEPT.removeprefix("; "))
            self._unkept = False

    @contextmanager
    def _undone_if_refused(self) -> Iterator[None]:
        self._keep()
        try:
            yield
        except Rejected:
            self._session.run(_UNDO)
            raise

    def _fill_keys(self, writer: Writer, keys: Sequence[Sequence[Value]]) -> None:
        encoded = copy_data(writer.key_columns, writer.key_types, keys)
        self._empty(writer, writer.key_stage)
        self._session.copy(f"COPY pg_temp.{ident(writer.key_stage)} FROM STDIN", encoded)

    def _empty(self, writer: Writer, stage: str) -> None:
        """The stage is there and holds nothing."""
        stages: dict[str, None] = self._session.cache.setdefault("stages", {})
        if stage not in stages:
            self._make_stage(writer, stage, stages)
        elif stage in self._filled:
            self._session.run(f"DELETE FROM pg_temp.{ident(stage)}")
        self._filled.add(stage)

    def _make_stage(self, writer: Writer, stage: str, stages: dict[str, None]) -> None:
        if len(stages) >= STAGES_MAX:
            for old in stages:
                self._session.run(f"DROP TABLE IF EXISTS pg_temp.{ident(old)}")
            stages.clear()
        self._session.run(f"DROP TABLE IF EXISTS pg_temp.{ident(stage)}; {writer.create_stage(stage)}{_KEPT}")
        stages[stage] = None

    # ---- dead letters and repairs ----

    def add_dead_letters(self, pipeline: str, letters: Sequence[DeadLetter]) -> None:
        if letters:
            self._note_down(*own.keeping_letters(pipeline, letters))

    def ask_repair(self, pipeline: str, request: Request) -> None:
        self._note_down(
            "INSERT INTO upwell.repair_request VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [pipeline, request.id, request.table, own.storable(request.reason)],
        )

    # ---- what this transaction has learned ----

    def forget(self, error: BaseException) -> None:
        """The transaction is rolled back: tables and stages that it made are gone."""
        if getattr(error.__cause__, "sqlstate", None) == _DEADLOCK:  # it takes the server a second to notice another
            self._crowded.update(dict.fromkeys(self._held, ALONE_FOR))
        for key in self._learned:
            self._session.cache.pop(key, None)
        self._session.cache.pop("stages", None)

    def _learn(self, key: Any, value: Any) -> None:
        self._session.cache[key] = value
        self._learned.append(key)

    def _source_table(self, pipeline: str, table: str) -> int:
        """The small number that notes have instead of the table's name."""
        key = ("source_table", pipeline, table)
        number: int | None = self._session.cache.get(key)
        while number is None:
            rows = self._note_down(
                'INSERT INTO upwell.source_table (pipeline, "table") VALUES (%s, %s) ON CONFLICT DO NOTHING'
                " RETURNING id",
                [pipeline, table],
            ) or self._session.query(
                'SELECT id FROM upwell.source_table WHERE pipeline = %s AND "table" = %s', [pipeline, table]
            )
            if rows:
                number = int(rows[0][0])
                self._learn(key, number)
        return number


def _writes_into(cached: Any, name: TableName) -> bool:
    return isinstance(cached, Writer) and cached.table.name == name


def _key_texts(schema: TableSchema, key: bytes) -> list[str]:
    """The key's values as the target's types read them."""
    columns = [schema.columns[index] for index in schema.key_indexes]
    return [key_text(column, value) for column, value in zip(columns, orjson.loads(key), strict=True)]


def _lock_number(pipeline: str, table: str) -> int:
    """A signed 32-bit number; tables that share one only wait for each other more than they must."""
    return zlib.crc32(orjson.dumps([pipeline, table])) - 2**31
