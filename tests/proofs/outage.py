"""What is away comes back: the Internet, credentials, name service, proxy, databases. Nobody has to lend a hand.

One pipeline under load, PostgreSQL → Kinesis → PostgreSQL; the publisher goes through a proxy that it knows by name.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil
import psycopg

from lab.faults import FaultProxy, Kind
from lab.messages import Asked
from lab.parts import PostgresCluster
from tests.acceptance.pipelines import Pipeline, Program, new_seed, through_kinesis
from tests.fake_aws import FakeProxy, fake_proxy
from tests.proofs import Figures, Servers, behind_faults
from tests.proofs.wire import KEYS, TABLE, UPSERT, awaited, head, is_published, snapshot_is_over

# Names that end so are nobody's (RFC 6761): the system's own resolver does not know them, with its own error.
PROXY_NAME: Final = "proxy.upwell.invalid"
# `upwell`, for which that name stands in a file of ours, as long as the file is there.
RESOLVING: Final = """
import pathlib, socket, sys
system, names = socket.getaddrinfo, pathlib.Path(sys.argv.pop(1))
def getaddrinfo(host, *others, **more):
    known = dict(line.split() for line in names.read_text().splitlines()) if names.exists() else {}
    return system(known.get(host, host), *others, **more)
socket.getaddrinfo = getaddrinfo
from upwell.app.cli import main
main()
"""
DRAIN_TIMES_MIN: Final = 5
TRANSACTIONS_PER_S: Final = 20
LONG_S: Final = 60
LOOK_EVERY_S: Final = 0.05
MB: Final = 1_000_000


@dataclass(frozen=True)
class Size:
    """How long, and under which load."""

    internet_s: float  # how long it is gone
    others_s: float  # how long each of the others is
    per_s: int  # events
    keys: int
    rss_mb: float  # what the publisher and the subscriber may have resident
    growth_mb: float  # by how much the publisher may grow in the second half of the Internet's absence
    within_s: float  # all must be well again


SMALL: Final = Size(internet_s=4, others_s=0.5, per_s=400, keys=1_000, rss_mb=150, growth_mb=10, within_s=60)
FULL: Final = Size(internet_s=600, others_s=30, per_s=1_000, keys=20_000, rss_mb=300, growth_mb=10, within_s=300)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """One trouble after the other, under one load."""
    seed = new_seed()
    with ExitStack() as stack:
        databases = stack.enter_context(PostgresCluster())
        source, target = map(databases.create_database, ("source", "target"))
        with psycopg.connect(source) as connection:
            connection.execute(TABLE)
        pipeline = through_kinesis(
            folder, source_url=source, target_url=target, kinesis_endpoint=servers.kinesis, keys=KEYS
        )
        world = World(
            pipeline,
            databases,
            wire=stack.enter_context(behind_faults(pipeline, servers.kinesis, seed)),
            kinesis=servers.kinesis,
            proxy=stack.enter_context(fake_proxy()),
            size=size,
        )
        world.start()
        with Load(source, seed, size) as load:
            world.await_well()
            figures = _without_internet(world, load)
            for what, trouble in TROUBLES.items():
                figures[f"well again after {what}"] = f"{_after(world, trouble):.1f} s"
        world.await_well()
        pipeline.assert_equal()
        pipeline.assert_no_dead_letters()
        pipeline.assert_no_holes()
        for program in world.programs:
            program.stop()
        figures["events lost, rows wrong"] = f"0 of {load.written:,}, 0"
        return figures


@dataclass
class World:
    """The pipeline and all that it depends on."""

    pipeline: Pipeline
    databases: PostgresCluster
    wire: FaultProxy  # the publisher's way
    kinesis: str  # the subscriber's
    proxy: FakeProxy
    size: Size
    programs: list[Program] = field(default_factory=list)

    @property
    def names(self) -> Path:
        return self.pipeline.folder / "hosts"

    def start(self) -> None:
        """Publisher and subscriber, each of which reaches Kinesis its own way. The table is empty."""
        self.pipeline.upwell = (sys.executable, "-c", RESOLVING, str(self.names))
        del self.pipeline.environ["AWS_ACCESS_KEY_ID"], self.pipeline.environ["AWS_SECRET_ACCESS_KEY"]
        self.pipeline.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(self.pipeline.folder / "credentials")
        self.write_keys("AKIDFIRST")
        self.write_name()
        self.pipeline.run("track")
        self.pipeline.lead_through(self.kinesis)
        subscriber = self.pipeline.start("subscribe")
        subscriber.await_words()
        port = self.proxy.url.rpartition(":")[2]
        self.pipeline.configuration["destination"]["proxy"] = f"http://{PROXY_NAME}:{port}"
        self.pipeline.lead_through(self.wire.url)
        self.programs = [self.pipeline.start("publish"), subscriber]
        awaited(partial(snapshot_is_over, self.pipeline), self.size.within_s, "the empty table was not read")

    def write_keys(self, key: str) -> None:
        lines = ("[default]", f"aws_access_key_id = {key}", "aws_secret_access_key = secret", "")
        (self.pipeline.folder / "credentials").write_text("\n".join(lines))

    def write_name(self) -> None:
        self.names.write_text(f"{PROXY_NAME} 127.0.0.1\n")

    def sever(self) -> None:
        """All connections end; new ones can be made, as far as the way there lets them."""
        self.wire.cut()
        self.wire.restore()

    def check(self) -> None:
        """Nothing has ended by itself."""
        for program in self.programs:
            assert program.running, f"{program.log.name} ended by itself"

    def states(self, url: str) -> dict[int, int]:
        """Each key's state."""
        with psycopg.connect(url) as database:
            try:
                return dict(database.execute("SELECT id, state FROM wire").fetchall())
            except psycopg.errors.UndefinedTable:
                return {}

    def behind(self, expected: Mapping[int, int]) -> int:
        """How many keys have not come as far as that in the target. States only rise."""
        there = self.states(self.pipeline.target_url)
        return sum(there.get(key, -1) < state for key, state in expected.items())

    def await_well(self) -> None:
        """What is in the source by now is in the target, by what runs."""
        expected = self.states(self.pipeline.source_url)
        awaited(partial(self._is_well, head(self.pipeline.source_url), expected), self.size.within_s, "not well again")

    def _is_well(self, position: str, expected: Mapping[int, int]) -> bool:
        self.check()
        return is_published(self.pipeline, position) and not self.behind(expected)


class Load:
    """A thread that writes rows all the time, also again after the source was away."""

    def __init__(self, url: str, seed: int, size: Size) -> None:
        self._url, self._size = url, size
        self._chance = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.written = 0  # events that were committed, for all that the writer knows
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(30)
        if error is None:
            assert self.error is None, f"the writer failed: {self.error!r}"
            assert not self._thread.is_alive(), "the writer hangs"

    def _run(self) -> None:
        numbers = count(1)  # each transaction's own, also where it is unknown whether it was committed
        try:
            while not self._stop.is_set():
                with suppress(psycopg.OperationalError):
                    self._write(numbers)
                self._stop.wait(LOOK_EVERY_S)
        except BaseException as error:
            self.error = error

    def _write(self, numbers: Iterator[int]) -> None:
        rows = self._size.per_s // TRANSACTIONS_PER_S
        due = time.monotonic()
        with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as source:
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                due = max(due, time.monotonic() - 1) + 1 / TRANSACTIONS_PER_S
                ids = self._chance.sample(range(self._size.keys), rows)
                source.execute(UPSERT, {"state": next(numbers), "ids": ids})
                self.written += rows


# --- the Internet ----------------------------------------------------------------------------------------------------


def _without_internet(world: World, load: Load) -> dict[str, str]:
    """Gone for long: memory stays flat, and afterwards what waited goes out faster than more comes in."""
    size, pipeline = world.size, world.pipeline
    world.wire.cut()
    before = load.written
    memory = [_resident_mb(world.programs)]
    deadline = time.monotonic() + size.internet_s
    while time.monotonic() < deadline or not _is_told(world):
        assert time.monotonic() < deadline + size.within_s, "neither log nor status say anything of it"
        time.sleep(0.2)
        world.check()
        memory.append(_resident_mb(world.programs))
    length_s = time.monotonic() - deadline + size.internet_s
    waiting = load.written - before
    assert waiting > size.per_s * size.internet_s / 2, f"the load was only {waiting} events"
    expected, behind = world.states(pipeline.source_url), 0
    behind = before_it = world.behind(expected)
    assert behind > size.keys / 4, f"only {behind} keys waited"
    world.wire.restore()
    restored = time.monotonic()
    began = 0.0
    while behind:
        assert time.monotonic() < restored + size.within_s, f"{behind} keys still wait after {size.within_s:.0f} s"
        behind = world.behind(expected)
        if behind < before_it and not began:
            began = time.monotonic()
        time.sleep(LOOK_EVERY_S)
    drained = time.monotonic()
    assert "the destination answers again" in world.programs[0].log.read_text()
    # The wait between two attempts, of up to 10 s, is most of it after a short absence, and little after a long one.
    since = began if length_s < LONG_S else restored
    rate = waiting / (drained - since + LOOK_EVERY_S)
    assert rate >= DRAIN_TIMES_MIN * size.per_s, f"drained at {rate:,.0f} events a second, {size.per_s} came in"
    publisher, subscriber = (max(each) for each in zip(*memory, strict=True))
    growth = memory[-1][0] - memory[len(memory) // 2][0]
    assert max(publisher, subscriber) <= size.rss_mb, f"{publisher:.0f} and {subscriber:.0f} MB resident"
    assert growth <= size.growth_mb, f"the publisher grew by {growth:.0f} MB in the second half"
    return {
        "Internet gone": f"{length_s:.0f} s at {size.per_s:,} events a second; {waiting:,} events waited",
        "first of them at the target": f"{began - restored:.1f} s after the Internet was back",
        "drained": f"{drained - restored:.1f} s after it was back; {rate:,.0f} events a second since "
        f"{'then' if since == restored else 'the first'}, {rate / size.per_s:.0f} times the input",
        "publisher's memory": f"{publisher:.0f} MB at most, {growth:+.1f} MB in the second half of it",
        "subscriber's memory": f"{subscriber:.0f} MB at most",
    }


def _is_told(world: World) -> bool:
    """In the log, once, and in the status as long as it lasts."""
    said = world.programs[0].log.read_text().count("Trying again until it works.")
    assert said <= 1, f"the log says {said} times that the way to Kinesis is broken"
    state = world.pipeline.state()
    status = state.status() or {}
    state.release()
    return said == 1 and bool(status.get("last_error"))


def _resident_mb(programs: list[Program]) -> tuple[float, ...]:
    return tuple(psutil.Process(program.pid).memory_info().rss / MB for program in programs)


# --- the other troubles ---------------------------------------------------------------------------------------------

Trouble = Callable[[World], "Iterator[None]"]


def _after(world: World, trouble: Trouble) -> float:
    """How long it takes until all is well again, in seconds, after the trouble has lasted for a while."""
    with contextmanager(trouble)(world):
        time.sleep(world.size.others_s)
        world.check()
    mended = time.monotonic()
    world.await_well()
    return time.monotonic() - mended


@contextmanager
def _nothing_arrives(world: World) -> Iterator[None]:
    """A trouble that nobody notices is none."""
    before = _newest(world.pipeline.source_url)
    yield
    assert _newest(world.pipeline.target_url) <= before, "rows arrive all the same"
    assert _newest(world.pipeline.source_url) > before, "nothing was written meanwhile"


def _newest(url: str) -> int:
    """Of the last transaction's rows: the load counts its transactions."""
    with psycopg.connect(url) as database:
        found = database.execute("SELECT max(state) FROM wire").fetchone()
    assert found is not None
    return int(found[0])


def _keys_expire(world: World) -> Iterator[None]:
    """Until new ones lie in the file."""

    def refuse_first(request: Asked) -> Kind | None:
        return "keys_expired" if "AKIDFIRST" in request.headers.get("authorization", "") else None

    world.wire.faults.rule = refuse_first
    with _nothing_arrives(world):
        yield
    assert world.wire.done["keys_expired"] > 0
    world.write_keys("AKIDSECOND")


def _name_is_unknown(world: World) -> Iterator[None]:
    world.names.unlink()
    world.sever()
    with _nothing_arrives(world):
        yield
    world.write_name()


def _proxy_refuses(world: World) -> Iterator[None]:
    world.proxy.status = 503
    world.sever()
    with _nothing_arrives(world):
        yield
    world.proxy.status = 200


def _databases_crash(world: World) -> Iterator[None]:
    """Source and target, the source within a transaction that nobody will ever see."""
    with closing(psycopg.connect(world.pipeline.source_url)) as source:
        source.execute("INSERT INTO wire SELECT -id, 1, 'never' FROM generate_series(1, 5000) AS id")
        world.databases.stop("immediate")
    yield
    world.databases.start()


def _target_is_read_only(world: World) -> Iterator[None]:
    """As after a failover, for who is still connected to the one that was the writer."""
    with world.databases.connect() as administrator:
        administrator.execute("ALTER DATABASE target SET default_transaction_read_only = on")
        administrator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'target'")
    with _nothing_arrives(world):
        yield
    with world.databases.connect() as administrator:
        administrator.execute("ALTER DATABASE target RESET default_transaction_read_only")


TROUBLES: Final[Mapping[str, Trouble]] = {
    "credentials that had expired": _keys_expire,
    "a name that could not be resolved": _name_is_unknown,
    "a proxy that refused": _proxy_refuses,
    "databases that crashed, within a transaction": _databases_crash,
    "a target that was read-only": _target_is_read_only,
}
