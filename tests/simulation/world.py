"""The world of one seed: writers, publishers, senders, a network, subscribers, and trouble; then calm, and the truth.

Each moment one of them, picked by chance, does one bounded thing. Concurrency is what the order of these things is.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from unittest import mock

import orjson

from tests.simulation.checks import Checks, Violation
from tests.simulation.dice import RATES, Dice, SimClock
from tests.simulation.direct import DirectSink, Items
from tests.simulation.source import FILTER, FILTERED, STILL, Database, Row, SimSource, poison
from tests.simulation.state import SimControl, SimState
from tests.simulation.stream import LateRequests, Shard, Stream, StreamSink
from tests.simulation.target import SimTarget
from upwell.errors import LeaseLost, TransientError, UpwellError
from upwell.mapping import Mapping, TableRule
from upwell.model import TableName
from upwell.pipeline import applier, delivery, publisher, snapshot
from upwell.pipeline.applier import Applier
from upwell.pipeline.publisher import Publisher, PublisherSettings
from upwell.ports import Parcel, Request
from upwell.where import Where

PIPELINE: Final = "sim"
TABLES: Final = ("public.items", "public.idle", STILL)
NEW_TABLE: Final = "public.new"
MOMENTS_MAX = 20_000  # of calm: beyond this it never comes to rest


class Crash(BaseException):
    """The process is gone, between two instructions."""


@dataclass(eq=False)
class Process:
    """A publisher, with its requests in flight."""

    name: str
    sink: Any
    publisher: Publisher = field(init=False)
    calls: list[list[Parcel]] = field(default_factory=list)
    open: bool = False


@dataclass
class Reader:
    """A subscriber: how far it has read each shard, and how far it knows that it has applied."""

    name: str
    at: dict[str, int] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)


class World:
    """One run."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.dice = dice = Dice(seed)
        self.rng = dice.rng
        self.clock = SimClock()
        self.trace: list[str] | None = [] if trace else None
        self.direct: bool = dice.setting("direct")
        self.lanes: int = dice.setting("lanes")
        self.ids: int = dice.setting("ids")
        self.moments: int = dice.setting("moments")
        self.database = Database(dice, self.clock, TABLES, self.ids, filtered=dice.setting("filtered"))
        self.checks = checks = Checks(self.database)
        self.state = checks.state = SimState(dice, checks.saving)
        self.control = SimControl(dice)
        self.stream = Stream(self.lanes)
        self.items = checks.items = Items(checks.seen)
        self.target = SimTarget(dice, checks.seen)
        self.applier = Applier(PIPELINE, self.target, self.clock)
        self.late_s: float = dice.setting("late_s")
        self.late = LateRequests(self.clock, self.late_s)
        self.background: list[tuple[Process, Callable[[], Any], Future[Any]]] = []
        self.processes: list[Process] = []
        self.readers = [Reader(f"subscriber {n}") for n in range(dice.setting("readers"))]
        self.settings = PublisherSettings(
            pipeline=PIPELINE,
            lanes=self.lanes,
            window_events_max=dice.setting("window_events_max"),
            chunk_rows_max=dice.setting("chunk_rows_max"),
            pending_bytes_max=dice.setting("pending_bytes_max"),
            checkpoint_every_s=dice.setting("checkpoint_every_s"),
            heartbeat_s=dice.setting("heartbeat_s"),
        )
        self.often: dict[str, float] = {
            name: dice.setting(name) for name in ("subscribers", "background", "errands", "shown", "haste")
        }
        self.rules = []
        if self.database.filtered:
            self.rules = [TableRule(TableName.parse(FILTERED), where=Where(FILTER))]
            checks.happened.add("filter")
        self._number = 0
        self._tables = list(TABLES)

    def note(self, sentence: str, *details: Any) -> None:
        """A line of the trace."""
        if self.trace is not None:
            self.trace.append(f"{self.clock.time:9.2f} {sentence} {' '.join(map(str, details))}".rstrip())

    # --- the run ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises Violation."""
        with self._patched():
            for id_ in range(1, self.rng.randrange(self.ids)):
                for table in TABLES:
                    self.database.touch(table, [id_])
            for _ in range(self.moments):
                self.moment()
            self._calm()
        self._compare()

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Failpoints that crash, and limits so small that they are met."""
        with (
            mock.patch.object(publisher, "failpoint", self._passage("crash.publisher")),
            mock.patch.object(delivery, "failpoint", self._passage("crash.publisher")),
            mock.patch.object(applier, "failpoint", self._passage("crash.subscriber")),
            mock.patch.object(publisher, "SWEEP_AFTER_START_S", self.late_s + 1.0),
            mock.patch.object(snapshot, "TOUCHED_KEYS_MAX", self.dice.setting("remembered")),
            mock.patch("upwell.envelope.PACKED_BYTES_MAX", self.rng.choice((900, 2_000))),
        ):
            yield

    def _passage(self, fault: str) -> Callable[[str], None]:
        def failpoint(name: str) -> None:
            if self.dice.hit(fault):
                self.note("CRASH at", name)
                raise Crash(name)

        return failpoint

    def moment(self) -> None:
        """Somebody does something."""
        self.clock.time += self.rng.random() * self.rng.choice((0.02, 0.1, 0.5))
        self.late.land_overdue()
        actor = self.rng.choices(
            (self.write, self.publish, self.send, self.land, self.work, self.subscribe, self.relay, self.trouble),
            (
                4,
                5,
                5,
                1,
                self.often["background"],
                0 if self.direct else self.often["subscribers"],
                self.often["errands"],
                0 if self.dice.calm else 1,
            ),
        )[0]
        actor()

    def _calm(self) -> None:
        """The faults end, everything that is under way arrives, and every lane has something to say."""
        self.note("CALM")
        self.dice.calm = True
        self.often |= {"background": 2, "errands": 0.5, "subscribers": 5}
        self.database.settle()
        self.processes = self.processes[-1:]
        self._until_quiet()
        for table in self._tables:
            self.database.touch(table, self._an_id_per_lane(table))
        self._until_quiet()

    def _an_id_per_lane(self, table: str) -> list[int]:
        schema = self.database.schemas[table]
        ids: dict[int, int] = {}
        id_ = 1000
        while len(ids) < self.lanes:
            ids.setdefault(zlib.crc32(orjson.dumps([id_]), schema.lane_seed) % self.lanes, id_)
            id_ += 1
        return sorted(ids.values())

    def _until_quiet(self) -> None:
        for moment in range(MOMENTS_MAX):
            self.moment()
            if moment % 20 == 0 and self._quiet():
                return
        raise Violation("it never comes to rest")

    def _quiet(self) -> bool:
        process = self.processes[0] if self.processes else None
        return (
            process is not None
            and process.open
            and process.publisher.caught_up
            and process.publisher.reached(self.database.lsn)
            and not self.late
            and not self.background
            and not self.state.asked
            and not self.control.asked
            and self.target.tables.repairs.keys() <= self.target.handed_over
            and (self.direct or all(self._at_end(reader) for reader in self.readers))
        )

    def _at_end(self, reader: Reader) -> bool:
        return all(reader.at.get(shard.id, 0) == len(shard.records) for shard in self.stream.shards.values())

    # --- writers ------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """A writer begins, commits, or becomes visible."""
        database = self.database
        if self.dice.calm:
            return
        if database.unseen and self.rng.random() < self.often["shown"]:
            database.show(self.rng.choice(database.unseen))
        elif database.open and self.rng.random() < 0.7:
            transaction = self.rng.choice(database.open)
            database.commit(transaction)
            self.note(
                "commit",
                transaction.commit,
                *((c.table, c.id, c.row, "partial" * c.partial) for c in transaction.changes),
            )
        else:
            database.begin()

    # --- publishers ---------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """A publisher takes a step."""
        if not self.processes:
            self.processes.append(self._process())
        process = self._turn(self.processes)
        with self._living(process):
            if not process.open:
                process.publisher.open()
                process.open = True
                self.checks.overlap = False
                self.note(process.name, "is open")
            if process is not self.processes[-1] and self.processes[-1].open:
                self.checks.reads_on(process.publisher.checkpoint.epoch)
            process.publisher.step()
            self._check_memory(process)

    def _turn(self, processes: list[Process]) -> Process:
        """Whose turn it is; where there are two, one may be slow."""
        return self.rng.choices((processes[0], processes[-1]), (self.often["haste"], 1))[0]

    def _process(self) -> Process:
        self._number += 1
        source = SimSource(self.database, self.dice, self._tables, self._started, self.checks.confirmed)
        sink: Any = (
            DirectSink(self.items, self.dice, self.checks, self.late)
            if self.direct
            else StreamSink(self.stream, self.dice, self.checks, self.late)
        )
        process = Process(f"publisher {self._number}", sink)
        process.publisher = Publisher(
            self.settings,
            source=source,
            sink=sink,
            state=self.state,
            mapping=Mapping(self.rules, dialect="postgresql"),
            clock=self.clock,
            rng=random.Random(self.rng.random()),
            background=lambda work: self._in_background(process, work),
            control=None if self.direct else self.control,
        )
        self.note(process.name, "starts")
        return process

    def _started(self, position: Any, epoch: int, *, fresh: bool) -> None:
        self.note("source starts at", position, "epoch", epoch, "fresh" * fresh)
        self.checks.started(position, epoch, fresh=fresh)

    @contextmanager
    def _living(self, process: Process) -> Iterator[None]:
        """What the process does until it ends, one way or the other."""
        try:
            yield
        except TransientError as error:
            self.note(process.name, "tries again:", error)
            if not process.open:
                self._end(process)  # the service manager starts another one
        except (Crash, LeaseLost) as error:
            self.note(process.name, "ends:", type(error).__name__)
            self._end(process)

    def _end(self, process: Process) -> None:
        """Its requests in flight arrive now, later, or never."""
        if process in self.processes:
            self.processes.remove(process)
        for parcels in process.calls:
            if self.rng.random() < 0.7:
                self.late.add(partial(self._abandoned, process, parcels))

    def _abandoned(self, process: Process, parcels: list[Parcel]) -> None:
        sendable = [parcel for parcel in parcels if parcel.body is not None]
        if sendable:
            self._attempt(process, sendable)

    def _attempt(self, process: Process, sendable: list[Parcel]) -> Any:
        try:
            return process.sink.send(sendable)
        except UpwellError as error:
            return error

    def _check_memory(self, process: Process) -> None:
        settings = self.settings
        markers = self.lanes * (2 * len(self._tables) + 1)  # and a heartbeat
        bound = settings.pending_bytes_max + (settings.window_events_max + settings.chunk_rows_max + markers) * 500
        if process.publisher.delivery.pending_bytes > bound:
            raise Violation(f"{process.publisher.delivery.pending_bytes} bytes pending, {bound} allowed")

    def send(self) -> None:
        """A sender takes parcels, or the service answers for some."""
        living = [process for process in self.processes if process.open]
        if not living:
            return
        process = self._turn(living)
        with self._living(process):
            if process.calls and self.rng.random() < 0.6:
                self._answer(process, process.calls.pop(self.rng.randrange(len(process.calls))))
            elif len(process.calls) < 3:
                parcels = process.publisher.delivery.take(self.clock.time)
                if parcels:
                    process.calls.append(parcels)

    def _answer(self, process: Process, parcels: list[Parcel]) -> None:
        sendable = [parcel for parcel in parcels if parcel.body is not None]
        answers = self._attempt(process, sendable) if sendable else []
        about = [(p.lane, p.term, p.seq) for p in parcels]
        if isinstance(answers, UpwellError):
            self.note(process.name, "call failed", about, answers)
            process.publisher.delivery.fail(parcels, answers, self.clock.time)
            return
        self.note(process.name, "call", about, ["failed" if a else "ok" for a in answers])
        left = iter(answers)
        given = [None if parcel not in sendable else next(left) for parcel in parcels]
        process.publisher.delivery.settle(parcels, given, self.clock.time)

    def land(self) -> None:
        """A request that was given up is carried out."""
        if self.late:
            self.late.land(self.rng.randrange(len(self.late)))
            self.note("something landed late")

    def _in_background(self, process: Process, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.background.append((process, work, future))
        return future

    def work(self) -> None:
        """Something in the background is done."""
        if not self.background:
            return
        process, work, future = self.background.pop(self.rng.randrange(len(self.background)))
        if process not in self.processes:
            return
        try:
            future.set_result(work())
        except UpwellError as error:
            future.set_exception(error)

    # --- subscribers --------------------------------------------------------------------------------------------

    def subscribe(self) -> None:
        """A subscriber reads a shard and applies what it got."""
        reader = self.rng.choice(self.readers)
        shards = [shard for shard in self.stream.shards.values() if self._readable(reader, shard)]
        if not shards:
            return
        shard = self.rng.choice(shards)
        start = reader.at.get(shard.id, 0)
        end = min(len(shard.records), start + self.rng.choice((1, 3, 10)))
        data = [record for record in shard.records[start:end] if record is not None]
        try:
            applied = self.applier.apply(data) if data else None
        except TransientError as error:
            self.note(reader.name, "tries again:", error)
            return
        except Crash:
            reader.at = dict(reader.saved)
            return
        self.note(reader.name, shard.id, f"{start}..{end}", applied)
        reader.at[shard.id] = end
        if self.rng.random() < 0.7:
            reader.saved[shard.id] = end

    def _readable(self, reader: Reader, shard: Shard) -> bool:
        """There is something to read, and the parents were read to their end."""
        return self._parents_done(reader, shard) and reader.at.get(shard.id, 0) < len(shard.records)

    def _parents_done(self, reader: Reader, shard: Shard) -> bool:
        parents = [self.stream.shards[parent] for parent in shard.parents]
        return all(reader.at.get(p.id, 0) == len(p.records) and self._parents_done(reader, p) for p in parents)

    def relay(self) -> None:
        """A subscriber hands requests for repair to the control channel."""
        for request in list(self.target.tables.repairs.values()):
            if request.id not in self.target.handed_over:
                try:
                    self.control.ask(PIPELINE, request)
                except TransientError:
                    return
                self.note("repair asked:", request)
                self.target.handed_over.add(request.id)

    # --- trouble ------------------------------------------------------------------------------------------------

    def trouble(self) -> None:
        """Now and then something goes wrong that is more than an error."""
        for fault in RATES:
            kind, _, name = fault.partition(".")
            if kind == "chaos" and self.dice.hit(fault):
                getattr(self, f"_{name}")()
        if self.dice.one_in(10):
            self.database.back_up()

    def _happened(self, cause: str, *details: Any) -> None:
        self.note("TROUBLE:", cause, *details)
        self.checks.happened.add(cause)

    def _takeover(self) -> None:
        """A second publisher starts while the first one still runs."""
        if len(self.processes) < 2:
            self._happened("takeover")
            self.processes.append(self._process())

    def _hole(self) -> None:
        """Records are gone from the stream before anybody has read them."""
        kind = self.rng.choice(("all", "one shard's", "one"))
        if kind == "all":
            self._shut_down()  # nobody is there for a long time
        unread = self._unread()
        if kind == "one shard's":
            chosen = self.rng.choice(list(self.stream.shards.values()))
            unread = [(shard, place) for shard, place in unread if shard is chosen]
        elif kind == "one":
            unread = unread and [self.rng.choice(unread)]
        self._delete(unread)

    def _snapshot_hole(self) -> None:
        """A record with rows of a snapshot is gone."""
        of_a_snapshot = [
            (shard, place) for shard, place in self._unread() if b'"read"' in (shard.records[place] or b"")
        ]
        if of_a_snapshot:
            self._delete([self.rng.choice(of_a_snapshot)])

    def _unread(self) -> list[tuple[Shard, int]]:
        return [
            (shard, place)
            for shard in self.stream.shards.values()
            for place in range(max(reader.at.get(shard.id, 0) for reader in self.readers), len(shard.records))
            if shard.records[place] is not None
        ]

    def _delete(self, records: list[tuple[Shard, int]]) -> None:
        if records:
            self._happened("hole", *((shard.id, place) for shard, place in records))
            self.checks.exact = False
        for shard, place in records:
            shard.records[place] = None

    def _shut_down(self) -> None:
        """The publisher is stopped as it should be."""
        for process in list(self.processes):
            with self._living(process):
                if process.open:
                    process.publisher.close()
            self._end(process)

    def _reshard(self) -> None:
        open_ = [shard for shard in self.stream.shards.values() if not shard.closed]
        one = self.rng.choice(open_)
        neighbours = [other for other in open_ if other.low == one.high]
        self._happened("reshard")
        if neighbours and self.rng.random() < 0.5:
            self.stream.merge(one, neighbours[0])
        else:
            self.stream.split(one)

    def _reread(self) -> None:
        """A shard's checkpoint goes back."""
        reader = self.rng.choice(self.readers)
        if reader.at:
            shard = self.rng.choice(list(reader.at))
            reader.at[shard] = reader.saved[shard] = self.rng.randrange(reader.at[shard] + 1)
            self._happened("reread", reader.name, shard, reader.at[shard])

    def _truncate(self) -> None:
        table = self.rng.choice(self._tables)
        self._happened("truncate", table)
        if self.database.filtered:
            # A row that came anew and did not pass says nothing: until the sweep, what passes of it then finds the old.
            self.checks.exact = False
        self.database.truncate(table)

    def _add_column(self) -> None:
        table = self.rng.choice(self._tables)
        default = self.rng.random() < 0.5
        self._happened("add_column" if default else "add_column_without_default", table)
        self.database.add_column(table, default=default)

    def _log_lost(self) -> None:
        self._happened("log_lost")
        self.checks.exact = False
        self.database.lose_log()

    def _table_lost(self) -> None:
        table = self.rng.choice(self._tables)
        self._happened("table_lost", table)
        self.checks.exact = False
        self.database.lose_table(table)

    def _restore(self) -> None:
        if self.database.restore():
            self._happened("restore", self.database.lsn)
            self.checks.exact = False

    def _replace_server(self) -> None:
        self._happened("restore", "on another server")
        self.checks.exact = False
        self.database.replace_server()

    def _request(self) -> None:
        table = self.rng.choice((None, *self._tables))
        self._happened("request", table)
        self.state.asked.append(Request(f"request-{self.rng.random()}", table, "asked for by a person"))

    def _new_table(self) -> None:
        """A table is added to the configuration, and the publisher restarted."""
        if NEW_TABLE not in self._tables:
            self._happened("new_table")
            self.database.add_table(NEW_TABLE)
            self._tables.append(NEW_TABLE)
            for process in list(self.processes):
                self._end(process)

    # --- the truth ----------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        for table in self._tables:
            newest = self.database.newest[table].items()
            expected = {id_: row for id_, row in newest if self.database.leaves(table, row)}
            rows = self.items.rows(table) if self.direct else self.target.tables.rows.get(table, {})
            found: dict[Any, Row] = {key[0]: row for key, row in rows.items()}
            for id_ in sorted(expected.keys() | found.keys()):
                self._compare_row(table, id_, expected.get(id_), found.get(id_))

    def _compare_row(self, table: str, id_: Any, expected: Row | None, found: Row | None) -> None:
        if expected is found or (expected is not None and found is not None and _same(expected, found)):
            return
        if poison(expected):
            key = orjson.dumps([id_]).decode()
            if any(letter[:2] == (table, key) for letter in (*self.state.letters, *self.target.tables.letters)):
                return
        if expected is not None and self._kept_out(table, (id_,), expected):
            return
        raise Violation(f"{table} {id_}: the source has {expected}, the target {found}")

    def _kept_out(self, table: str, key: tuple[Any, ...], row: Row) -> bool:
        """A row may have to wait as long as a poisoned row keeps the unique value that it had before."""
        holders = [k for k, r in self.target.tables.rows.get(table, {}).items() if r["u"] == row["u"]]
        waiting = self.target.tables.evicted.get(table, {}).get(key)
        return (
            waiting is not None
            and _same(row, waiting)
            and bool(holders)
            and all((table, holder[0]) in self.database.poisoned for holder in holders)
        )


def _same(expected: Row, found: Row) -> bool:
    """Whether a row of the target is the source's; the target keeps columns that the source has no more."""
    return all(found.get(name) == value for name, value in expected.items())
