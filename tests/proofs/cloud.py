"""The relational way to its end: callers behind a load balancer don't notice who dies, nor that on-premises is gone.

PostgreSQL → Kinesis → the subscriber's function, by AWS's rules for an event source mapping → PostgreSQL → two read
APIs behind HAProxy. Under load one API is killed; then all of on-premises, publisher and database: every request is
answered, and says how old the data is.
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
import psycopg

from lab.haproxy import HaProxy
from lab.part import LOOPBACK, free_port
from lab.parts import REGION, PostgresCluster
from tests.acceptance.pipelines import Pipeline, Program, explained, new_seed, through_kinesis
from tests.acceptance.workload import SteadyWriting
from tests.esm import EventSourceMapping, Settings
from tests.esm_environment import Process
from tests.proofs import Figures, Servers

API_KEY: Final = "a-key-that-only-this-proof-knows"
HEADERS: Final = {"Authorization": f"Bearer {API_KEY}"}
HEALTH_EVERY_MS: Final = 500
CALLERS: Final = 3
BY_THEN_S: Final = 60.0


@dataclass(frozen=True)
class Size:
    """How much."""

    events_per_s: int
    keys: int
    phase_s: float  # both APIs; one killed, and back; on-premises gone


SMALL: Final = Size(events_per_s=100, keys=100, phase_s=4)
FULL: Final = Size(events_per_s=500, keys=5_000, phase_s=60)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """With a database of its own on-premises, which is stopped."""
    seed = new_seed()
    with PostgresCluster() as premises, servers.databases(1) as (target,):
        source = premises.create_database("shop")
        with psycopg.connect(source) as connection:
            connection.execute(SteadyWriting.TABLE)
        pipeline = through_kinesis(
            folder,
            source_url=source,
            target_url=target,
            kinesis_endpoint=servers.kinesis,
            shards=2,
            keys=SteadyWriting.KEYS,
        )
        pipeline.configuration["api"] = _api()
        pipeline.write_configuration()
        with closing(pipeline), explained(pipeline, seed), _mapped(pipeline, servers.kinesis):
            return _run(pipeline, premises, source, seed, size)


def _api() -> dict[str, Any]:
    known = {"sha256": hashlib.sha256(API_KEY.encode()).hexdigest()}
    return {
        "cursor_key": "c" * 32,
        "heartbeat": "1s",
        "authorization": {"api_keys": {"proof": known}},
        "tables": {"steady": {"table": "public.steady", "columns": ["id", "state"]}},
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


def _run(pipeline: Pipeline, premises: PostgresCluster, source: str, seed: int, size: Size) -> Figures:
    figures: dict[str, str] = {}
    with ExitStack() as steps:
        with SteadyWriting(source, size.events_per_s, size.keys, seed) as steady:
            _await(lambda: steady.events > size.keys, "the source has no rows")
            pipeline.run("track")
            pipeline.run("api", "--learn")
            publisher = pipeline.start("publish")
            ports = [free_port() for _ in range(2)]
            apis = [_start_api(pipeline, port) for port in ports]
            urls = [f"http://{LOOPBACK}:{port}" for port in ports]
            balancer = steps.enter_context(HaProxy(urls, health="/healthz", every_ms=HEALTH_EVERY_MS))
            for port in ports:  # each looks by itself, once a second
                _await(partial(_is_complete, port), "the table is not complete at the other end")
            callers = steps.enter_context(Callers(balancer.port, size.keys, seed))
            time.sleep(size.phase_s)
            apis[0].kill()
            time.sleep(size.phase_s)
            apis[0] = _start_api(pipeline, ports[0])
            time.sleep(size.phase_s)
            figures["age while changes flow, at the end"] = f"{_freshness(balancer.port)['age_s']:.1f} s"
        publisher.kill()
        premises.stop("immediate")
        gone = time.monotonic()
        before = callers.answered
        time.sleep(size.phase_s)
        last = _freshness(balancer.port)
        gone_s = time.monotonic() - gone
        assert callers.answered > before, "nobody asked while on-premises was gone"
    assert last["age_s"] >= gone_s - 1.5, f"on-premises has been gone for {gone_s:.1f} s, and the data is {last}"
    assert last["complete"], "the data is no less complete for that"
    assert not callers.failures, f"{callers.failures.total()} of {callers.answered} requests failed: {callers.failures}"
    return figures | {
        "requests, of which failed": f"{callers.answered:,}, {callers.failures.total()}",
        "slowest answer": f"{callers.slowest_s * 1000:.0f} ms",
        "age told after on-premises was gone": f"{last['age_s']:.1f} s, gone for {gone_s:.1f} s",
        "events at the source": f"{steady.events:,}",
    }


def _start_api(pipeline: Pipeline, port: int) -> Program:
    log = pipeline.folder / f"{len(pipeline.programs):02}-api.log"
    command = [*pipeline.upwell, "api", "-c", str(pipeline.file), "--port", str(port)]
    program = Program(command, log, {**os.environ, **pipeline.environ})
    pipeline.programs.append(program)
    _await(lambda: b"answering at" in log.read_bytes(), f"{log.name} does not answer")
    return program


def _freshness(port: int) -> dict[str, Any]:
    """What callers are told of the table, and how old it is."""
    with closing(http.client.HTTPConnection(LOOPBACK, port, timeout=30)) as connection:
        connection.request("GET", "/v1/_freshness", headers=HEADERS)
        answer = orjson.loads(connection.getresponse().read())
    return {"age_s": answer["age_s"], **answer["tables"]["steady"]}


def _is_complete(port: int) -> bool:
    return bool(_freshness(port)["complete"])


def _await(holds: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + BY_THEN_S
    while not holds():
        assert time.monotonic() < deadline, f"{otherwise} after {BY_THEN_S:.0f} s"
        time.sleep(0.1)


class Callers:
    """Threads that read rows, one after the other, over connections that they keep."""

    def __init__(self, port: int, keys: int, seed: int) -> None:
        self._port = port
        self._keys = keys
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed} {n}"),), daemon=True)
            for n in range(CALLERS)
        ]
        self.answered = 0
        self.failures: Counter[str] = Counter()
        self.slowest_s = 0.0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, chance: random.Random) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=30)
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                connection.request("GET", f"/v1/steady/{chance.randrange(self._keys)}", headers=HEADERS)
                answer = connection.getresponse()
                answer.read()
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
                if failure:
                    self.failures[failure] += 1
        connection.close()
