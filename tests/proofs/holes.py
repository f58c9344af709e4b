"""Records are lost between publisher and subscriber, wherever it hurts most: at the next record of the lane that shows,
is said, and is repaired; what loses nothing raises no alarm.

A fault proxy deletes the records: Kinesis said that it has them, and has them no more.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, LiteralString, NamedTuple

import orjson
import psycopg

from lab.faults import FaultProxy, Kind
from tests.acceptance.compare import Watch, dynamodb_client, kinesis_client
from tests.acceptance.pipelines import Pipeline, Program, new_seed, through_kinesis, with_changes
from tests.acceptance.workload import TABLES, Writing, create_tables
from tests.proofs import Figures, Servers, behind_faults
from tests.proofs.resharding import Stream
from upwell.lanes import DEFAULT_LANES

WRITES_PER_S: Final = 60
DEADLINE_S: Final = 60.0
QUIET_S: Final = 1.0
LOGGED: Final = "records are missing"
# It loses nothing, so it must raise no alarm.
LOSSLESS: Final[dict[Kind, float]] = {
    "shard_throttled": 0.05,
    "record_failed": 0.02,
    "failed_before": 0.02,
    "failed_after": 0.02,
    "answer_lost": 0.05,
    "landed_late": 0.02,
    "landed_twice": 0.02,
    "reset_before": 0.01,
    "reset_after": 0.01,
    "slow": 0.02,
}
# What the workload does not write to.
LONELY: Final = "INSERT INTO ledger VALUES (-1, %(state)s) ON CONFLICT (entry) DO UPDATE SET state = excluded.state"
# The publisher looks into the control table more often than every ten seconds: the test need not last so long. And a
# small table has several chunks: rows go into other records than the marker that closes the lane.
CHANGES: Final = (
    "from dataclasses import replace; from upwell.app import build; from upwell.pipeline import publisher; "
    "publisher.REPAIRS_EVERY_S = 1.0; usual = build.publisher_settings; "
    "build.publisher_settings = lambda pipeline: replace(usual(pipeline), chunk_rows_max=80)"
)


@dataclass(frozen=True)
class Size:
    """How much, and how soon."""

    rounds: int  # how often each loss
    ledger_rows: int  # for snapshots
    restarts: int  # of both, while the wire loses nothing
    through_table: bool  # whether each loss is also told through the control table, or only one
    alarm_s: float  # from the next record of the lane to the alarm; a busy machine takes longer


SMALL: Final = Size(rounds=1, ledger_rows=200, restarts=1, through_table=False, alarm_s=8.0)
FULL: Final = Size(rounds=4, ledger_rows=6_000, restarts=12, through_table=True, alarm_s=2.0)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Two pipelines: one asks for repairs through the state file, the other through the control table."""
    seed = new_seed()
    with _running(servers, folder, seed, size, control_table=False) as here:
        here.no_false_alarms()
        for _ in range(size.rounds):
            here.all_losses()
    with _running(servers, folder, seed, size, control_table=True) as there:
        for _ in range(size.rounds if size.through_table else 0):
            there.all_losses()
        there.one_record()
        asked = _asked_in_table(servers, there.pipeline)
        assert len(asked) >= there.losses, f"{there.losses} losses, {len(asked)} requests in the control table"
        assert all("finished" in request for request in asked), asked
    alarms = sorted(here.alarms_s + there.alarms_s)
    return {
        "losses, each found, told and repaired": str(here.losses + there.losses),
        "records lost": str(here.records + there.records),
        "of them told through the control table": str(there.losses),
        "from the lane's next record to the alarm": f"{alarms[len(alarms) // 2]:.2f} s, at most {alarms[-1]:.2f} s",
        "restarts of both with resharding and faults that lose nothing": f"{size.restarts}, no alarm",
        "wrong rows, rows back in time, dead letters": "0, 0, 0",
    }


# --- who takes records away ---------------------------------------------------------------------------------------


class Head(NamedTuple):
    """What is known of a record when it comes by."""

    lane: int
    term: int
    seq: int
    opens: bool  # a resync
    closes: bool
    reads: bool  # rows of a snapshot
    deletes: bool


Wanted = Callable[[Head], bool]


@dataclass
class Thief:
    """Takes records that are `wanted`, and knows when the next of their lanes came by.

    One that was taken stays away, however often it is sent. The proxy's thread asks.
    """

    wanted: Wanted
    left: int  # how many may still be taken
    taken: set[tuple[int, int, int]] = field(default_factory=set)
    followed: dict[int, float] = field(default_factory=dict)  # lane → when, in seconds since 1970

    def __call__(self, data: bytes) -> bool:
        head = _head(data)
        if head[:3] in self.taken:
            return True
        if self.left > 0 and self.wanted(head):
            self.left -= 1
            self.taken.add(head[:3])
            self.followed.pop(head.lane, None)  # the one before it was taken too
            return True
        if any(lane == head.lane and (term, seq) < head[1:3] for lane, term, seq in self.taken):
            self.followed.setdefault(head.lane, time.time())
        return False

    @property
    def lanes(self) -> set[int]:
        """From which it took something."""
        return {lane for lane, _, _ in self.taken}


def _head(data: bytes) -> Head:
    header, *lines = data.splitlines()
    known = orjson.loads(header)
    marks = [orjson.loads(line)[2] for line in lines if line.startswith(b'["m"')]
    return Head(
        known["lane"],
        known["term"],
        known["seq"],
        opens="open" in marks,
        closes="close" in marks,
        reads=any(line.endswith(b'{"was":"read"}]') for line in lines),
        deletes=any(line.startswith(b'["d"') for line in lines),
    )


# --- the losses ---------------------------------------------------------------------------------------------------


@dataclass
class Proof:
    """A pipeline that runs, and what was found so far."""

    pipeline: Pipeline
    wire: FaultProxy
    size: Size
    chance: random.Random
    target: psycopg.Connection[tuple[Any, ...]]
    publisher: Program = field(init=False)
    subscriber: Program = field(init=False)
    thief: Thief = field(init=False)
    alarms_s: list[float] = field(default_factory=list)
    losses: int = 0
    records: int = 0

    def start(self) -> None:
        """Both programs."""
        self.publisher, self.subscriber = self.pipeline.start("publish"), self.pipeline.start("subscribe")

    def no_false_alarms(self) -> None:
        """Faults that lose nothing, kills, restarts and resharding."""
        with closing(kinesis_client(self.wire.url)) as client, self._writing():
            stream = Stream(client, self.pipeline.name, self.chance, at_once=False)
            self.wire.faults.rates = LOSSLESS
            for number in range(self.size.restarts):
                time.sleep(self.chance.uniform(0.5, 1.5))
                for program in (self.publisher, self.subscriber):
                    program.await_words()  # before, nobody has told it what a signal means
                    program.kill() if number % 2 else program.stop()
                (stream.grow if number % 2 else stream.shrink)()
                self.start()
        self.wire.faults.stop()
        self.wire.settle()
        self.pipeline.await_equal()
        self.pipeline.assert_no_holes()

    def all_losses(self) -> None:
        """One after the other."""
        self._lose("a delete", lambda head: head.deletes)
        few = self.chance.sample(range(DEFAULT_LANES), 4)
        self._lose("several records of several lanes", lambda head: head.lane in few, count=8)
        self._first_of_a_term()
        self._last_of_a_lane()
        self._lose_of_a_resync("rows of a snapshot", lambda head: head.reads and not head.closes)
        self._lose_of_a_resync("an opening and a closing marker", self._marker_of_each_kind, count=2)
        self._all_that_the_stream_has()

    def one_record(self) -> None:
        """Somewhere."""
        self._lose("one record", lambda head: True)

    def _marker_of_each_kind(self, head: Head) -> bool:
        return head.lane not in self.thief.lanes and (head.closes if self.thief.taken else head.opens)

    def _lose(self, what: str, wanted: Wanted, *, count: int = 1) -> None:
        """Beside a writer."""
        with self._repaired(what), self._writing():
            self._steal(wanted, count)
            self._await_followed(count)

    def _lose_of_a_resync(self, what: str, wanted: Wanted, count: int = 1) -> None:
        """The subscriber reads all of the resync at once, its end too, before any repair could come in between."""
        with self._repaired(what), self._writing():
            before = self.pipeline.resyncs()
            self.subscriber.send(signal.SIGSTOP)
            self._steal(wanted, count)
            self.pipeline.ask_for_resync()
            self._await_followed(count)
            self.pipeline.await_resyncs(before)
            self.subscriber.send(signal.SIGCONT)
            self.thief.followed = dict.fromkeys(self.thief.lanes, time.time())

    def _first_of_a_term(self) -> None:
        """The publisher has just begun anew, and what it says first is lost."""
        with self._repaired("the first records of a term"):
            self.publisher.stop()
            self._steal(lambda head: head.seq == 1, 3)
            self.publisher = self.pipeline.start("publish")
            with self._writing():
                self._await_followed(3)

    def _last_of_a_lane(self) -> None:
        """Nothing follows, so nothing can show. Then something does, and as nobody repairs it, the alarm stands."""
        with self._repaired("the last record of a lane"), psycopg.connect(self.pipeline.source_url) as source:
            before = self._requests()
            self._steal(lambda head: True, 1)
            self._write_alone(source)
            _await(lambda: bool(self.thief.taken), "nothing was sent")
            time.sleep(QUIET_S)
            assert self._requests() == before, "an alarm before anything could be known"
            self._write_alone(source)
            self._await_followed(1)
            self.publisher.send(signal.SIGSTOP)
            _await(lambda: self._requests() > before, "no repair was asked for")
            holes = self._holes()
            text = self.pipeline.run("status")
            self.publisher.send(signal.SIGCONT)
            assert len(holes) == 1, holes
            assert f"Lane {min(self.thief.lanes)}: {LOGGED}" in holes[0]
            assert holes[0] in text, text

    def _all_that_the_stream_has(self) -> None:
        """Retention ran out before the subscriber came back."""
        with self._repaired("all records while the subscriber was away"):
            self.subscriber.stop()
            self._steal(lambda head: True, 10**9)
            with self._writing():
                _await(lambda: len(self.thief.lanes) > 20, "hardly anything was sent")
            self.publisher.stop()  # so that all of it has been sent
            self.thief.left = 0
            self.start()
            with self._writing():
                _await(lambda: bool(self.thief.followed), "nothing followed")

    # --- what they have in common ---------------------------------------------------------------------------------

    @contextmanager
    def _repaired(self, what: str) -> Iterator[None]:
        """What is lost inside is found in time, told everywhere, and repaired."""
        requests, logged = self._requests(), len(self._logged())
        try:
            yield
            _await(lambda: self._requests() > requests, "no repair was asked for")
            _await(lambda: len(self._logged()) > logged, "nothing is in the log")
            took_s = self._logged()[logged] - min(self.thief.followed.values())
            assert took_s <= self.size.alarm_s, f"the alarm came {took_s:.1f} s after the next record of the lane"
            _await(self._all_read_again, "the tables were not read again")
            self.pipeline.await_equal()
        except AssertionError as error:
            error.add_note(f"lost: {what}, {sorted(self.thief.taken)[:5]}")
            raise
        self.wire.faults.stop()
        self.alarms_s.append(took_s)
        self.losses += 1
        self.records += len(self.thief.taken)

    def _steal(self, wanted: Wanted, count: int) -> None:
        self.thief = Thief(wanted, count)
        self.wire.faults.deletes = self.thief

    def _await_followed(self, count: int) -> None:
        _await(lambda: len(self.thief.taken) == count, f"only {len(self.thief.taken)} of {count} records were sent")
        _await(lambda: self.thief.lanes <= self.thief.followed.keys(), "nothing followed in some lane")

    def _writing(self) -> Writing:
        return Writing(self.pipeline.workloads[0], WRITES_PER_S)

    @staticmethod
    def _write_alone(source: psycopg.Connection[tuple[object, ...]]) -> None:
        source.execute(LONELY, {"state": time.monotonic_ns()})
        source.commit()

    def _requests(self) -> int:
        """How many repairs the target has asked for."""
        return len(self._of_target("SELECT id FROM upwell.repair_request"))

    def _all_read_again(self) -> bool:
        """Whether every table has had a resync since the newest loss, and it is over."""
        ((newest,),) = self._of_target("SELECT max(split_part(id, '-', 3)::bigint) FROM upwell.repair_request")
        tables = self._of_target("SELECT resync, active FROM upwell.resync")
        return all(resync > newest and not active for resync, active in tables)

    def _of_target(self, query: LiteralString) -> list[tuple[Any, ...]]:
        return self.target.execute(query).fetchall()

    def _logged(self) -> list[float]:
        """When a subscriber wrote of missing records into its log: seconds since 1970."""
        lines = [line for program in self.pipeline.programs for line in program.log.read_text().splitlines()]
        return sorted(datetime.fromisoformat(line.split()[0]).timestamp() for line in lines if LOGGED in line)

    def _holes(self) -> list[str]:
        """What `upwell status` says is missing."""
        found: list[str] = orjson.loads(self.pipeline.run("status", "--json"))["subscriber"]["holes"]
        return found

    def end(self) -> None:
        """Nothing is left to be told."""
        holes = self._holes()
        assert not holes, f"all was repaired, and status still says: {holes}"
        for program in (self.publisher, self.subscriber):
            program.stop()
        self.pipeline.once_through()
        self.pipeline.assert_equal()
        self.pipeline.assert_no_dead_letters()


@contextmanager
def _running(servers: Servers, folder: Path, seed: int, size: Size, *, control_table: bool) -> Iterator[Proof]:
    """A pipeline, watched, whose first snapshot is over."""
    place = folder / f"control-{control_table}"
    place.mkdir()
    with ExitStack() as stack:
        source, target = stack.enter_context(servers.databases(2))
        for url in (source, target):
            create_tables(url)
        pipeline = through_kinesis(place, source_url=source, target_url=target, kinesis_endpoint=servers.kinesis)
        pipeline.upwell = with_changes(CHANGES)
        if control_table:
            pipeline.configuration["destination"]["kinesis"]["control_table"] = f"{pipeline.name}-control"
            pipeline.environ["AWS_ENDPOINT_URL_DYNAMODB"] = servers.dynamodb
        wire = stack.enter_context(behind_faults(pipeline, servers.kinesis, seed))
        connection = stack.enter_context(psycopg.connect(pipeline.target_url, autocommit=True))
        pipeline.workload(seed).fill(40, ledger_rows=size.ledger_rows)
        pipeline.run("track")
        proof = Proof(pipeline, wire, size, random.Random(seed), connection)
        proof.start()
        pipeline.await_equal()
        with Watch(pipeline.target, (*TABLES, "ledger"), making_way=("person",), pause_s=0.1):
            yield proof
            proof.end()


def _asked_in_table(servers: Servers, pipeline: Pipeline) -> list[Mapping[str, Any]]:
    """The items of the control table."""
    with closing(dynamodb_client(servers.dynamodb)) as client:
        items: list[Mapping[str, Any]] = client.scan(TableName=f"{pipeline.name}-control")["Items"]
        return items


def _await(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{otherwise} within {DEADLINE_S:.0f} s"
        time.sleep(0.05)
