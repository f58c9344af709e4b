"""The relational way to its end: callers behind a load balancer don't notice who dies, nor that on-premises is gone.

PostgreSQL or SQL Server → Kinesis → the subscriber's function, by AWS's rules for an event source mapping → PostgreSQL
→ two read APIs behind HAProxy. Under load one API is killed; then all of on-premises, publisher and database: every
request is answered, and says how old the data is.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import orjson

from lab.haproxy import HaProxy
from lab.part import LOOPBACK, Part, free_port
from lab.parts import REGION, PostgresCluster, StandinSqlServer
from tests.acceptance.pipelines import Pipeline, Program, explained, new_seed, through_kinesis
from tests.acceptance.workload import Writing, create_tables
from tests.esm import EventSourceMapping, Settings
from tests.esm_environment import Process
from tests.proofs import Figures, Servers
from tests.proofs.sqlserver import new_database

API_KEY: Final = "a-key-that-only-this-proof-knows"
HEADERS: Final = {"Authorization": f"Bearer {API_KEY}"}
HEALTH_EVERY_MS: Final = 500
WRITES_PER_S: Final = 40
ITEMS: Final = "/v1/items?limit=50"
CALLERS: Final = 3
BY_THEN_S: Final = 60.0


@dataclass(frozen=True)
class Size:
    """How much."""

    sources: tuple[str, ...]
    phase_s: float  # both APIs; one killed, and back; on-premises gone


SMALL: Final = Size(("PostgreSQL",), phase_s=4)
FULL: Final = Size(("PostgreSQL", "SQL Server"), phase_s=60)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Each source with a server of its own on-premises, which is killed."""
    figures: dict[str, str] = {}
    for name in size.sources:
        place = folder / name.replace(" ", "-")
        place.mkdir()
        found = _through(name, servers, place, size)
        figures |= {f"{name}: {what}": figure for what, figure in found.items()}
    return figures


def _through(name: str, servers: Servers, folder: Path, size: Size) -> dict[str, str]:
    seed = new_seed()
    with _premises(name) as (premises, source), servers.databases(1) as (target,):
        create_tables(source)
        create_tables(target)
        pipeline = through_kinesis(
            folder, source_url=source, target_url=target, kinesis_endpoint=servers.kinesis, shards=2
        )
        pipeline.configuration["api"] = _api()
        pipeline.write_configuration()
        with closing(pipeline), explained(pipeline, seed), _mapped(pipeline, servers.kinesis):
            return _run(pipeline, premises, seed, size)


@contextmanager
def _premises(name: str) -> Iterator[tuple[Part, str]]:
    """A server, and the URL of a new database there."""
    if name == "PostgreSQL":
        with PostgresCluster() as cluster:
            yield cluster, cluster.create_database("shop")
    else:
        with StandinSqlServer() as server:
            yield server, new_database(server.url, "shop")


def _api() -> dict[str, Any]:
    known = {"sha256": hashlib.sha256(API_KEY.encode()).hexdigest()}
    return {
        "cursor_key": "c" * 32,
        "heartbeat": "1s",
        "authorization": {"api_keys": {"proof": known}},
        "tables": {
            "items": {"table": "item", "columns": ["id", "state", "amount"]},
            "stock": {"table": "stock", "columns": ["warehouse", "product", "state"]},
        },
        "limits": {"requests_per_second": 100_000},
    }


@contextmanager
def _mapped(pipeline: Pipeline, kinesis: str) -> Iterator[EventSourceMapping]:
    environ = {
        **pipeline.environ,
        "UPWELL_CONFIG": str(pipeline.file),
        "AWS_LAMBDA_FUNCTION_NAME": "subscriber",
        "AWS_REGION": REGION,
    }
    numbers = itertools.count()

    def start() -> Process:
        return Process(environ, pipeline.folder / f"environment-{next(numbers):03}.log")

    with EventSourceMapping(kinesis, pipeline.name, start, Settings(parallelization=2)) as mapping:
        yield mapping


def _run(pipeline: Pipeline, premises: Part, seed: int, size: Size) -> dict[str, str]:
    figures: dict[str, str] = {}
    with ExitStack() as steps:
        workload = pipeline.workload(seed)
        workload.fill(40)
        pipeline.run("track")
        with Writing(workload, WRITES_PER_S):
            pipeline.run("api", "--learn")
            publisher = pipeline.start("publish")
            ports = [free_port() for _ in range(2)]
            apis = [_start_api(pipeline, port) for port in ports]
            urls = [f"http://{LOOPBACK}:{port}" for port in ports]
            balancer = steps.enter_context(HaProxy(urls, health="/healthz", every_ms=HEALTH_EVERY_MS))
            for port in ports:  # each looks by itself, once a second
                _await(partial(_is_complete, port), "the table is not complete at the other end")
            callers = steps.enter_context(Callers(balancer.port, seed))
            time.sleep(size.phase_s)
            with callers.excused():
                apis[0].kill()
                time.sleep(HEALTH_EVERY_MS / 1000)
            time.sleep(size.phase_s)
            apis[0] = _start_api(pipeline, ports[0])
            time.sleep(size.phase_s)
            figures["age while changes flow, at the end"] = f"{_asked(balancer.port)['age_s']:.1f} s"
        publisher.kill()
        premises.kill()
        gone = time.monotonic()
        before = callers.answered
        time.sleep(size.phase_s)
        last = _asked(balancer.port)
        gone_s = time.monotonic() - gone
        assert callers.answered > before, "nobody asked while on-premises was gone"
        assert _is_complete(balancer.port), "the data is no less complete for that"
    assert last["age_s"] >= gone_s - 1.5, f"on-premises has been gone for {gone_s:.1f} s, and the data is {last}"
    assert not callers.failures, f"{callers.failures.total()} of {callers.answered} requests failed: {callers.failures}"
    return figures | {
        "requests, of which failed": f"{callers.answered:,}, {callers.failures.total()}",
        "cut off within the health check's interval": f"{callers.cut_off}",
        "slowest answer": f"{callers.slowest_s * 1000:.0f} ms",
        "age told after on-premises was gone": f"{last['age_s']:.1f} s, gone for {gone_s:.1f} s",
        "transactions at the source": f"{workload.transactions:,}",
    }


def _start_api(pipeline: Pipeline, port: int) -> Program:
    log = pipeline.folder / f"{len(pipeline.programs):02}-api.log"
    command = [*pipeline.upwell, "api", "-c", str(pipeline.file), "--port", str(port)]
    program = Program(command, log, {**os.environ, **pipeline.environ})
    pipeline.programs.append(program)
    _await(lambda: b"answering at" in log.read_bytes(), f"{log.name} does not answer")
    return program


def _asked(port: int) -> dict[str, Any]:
    """What callers are told of how old the data is."""
    with closing(http.client.HTTPConnection(LOOPBACK, port, timeout=30)) as connection:
        connection.request("GET", "/v1/_freshness", headers=HEADERS)
        answer: dict[str, Any] = orjson.loads(connection.getresponse().read())
        return answer


def _is_complete(port: int) -> bool:
    told = _asked(port)
    return told["age_s"] is not None and all(table["complete"] for table in told["tables"].values())


def _await(holds: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + BY_THEN_S
    while not holds():
        assert time.monotonic() < deadline, f"{otherwise} after {BY_THEN_S:.0f} s"
        time.sleep(0.1)


class Callers:
    """Threads that read rows, one after the other, over connections that they keep."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed} {n}"),), daemon=True)
            for n in range(CALLERS)
        ]
        self.answered = 0
        self.failures: Counter[str] = Counter()
        self.cut_off = 0  # while that was excused
        self._excused = False
        self.slowest_s = 0.0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    @contextmanager
    def excused(self) -> Iterator[None]:
        """An answer that is cut off in its middle can't be asked for anew by a load balancer."""
        self._excused = True
        yield
        self._excused = False

    def _run(self, chance: random.Random) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=30)
        paths: list[str] = []
        while not self._stop.is_set():
            path = paths.pop() if paths else ITEMS
            started = time.monotonic()
            try:
                connection.request("GET", path, headers=HEADERS)
                answer = connection.getresponse()
                body = orjson.loads(answer.read())
                if path == ITEMS and answer.status == 200:
                    paths = [f"/v1/items/{row['id']}" for row in body["items"]] + ["/v1/stock?limit=20"]
                    chance.shuffle(paths)
                # A row may be deleted at the moment.
                failure = "" if answer.status in (200, 404) else f"status {answer.status}"
                if answer.status == 200 and "X-Data-As-Of" not in answer.headers:
                    failure = "no word of its age"
            except (OSError, http.client.HTTPException) as error:
                failure = type(error).__name__
                connection.close()
            with self._lock:
                self.answered += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)
                if failure and self._excused:
                    self.cut_off += 1
                elif failure:
                    self.failures[failure] += 1
        connection.close()
