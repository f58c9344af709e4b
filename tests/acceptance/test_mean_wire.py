"""The way to Kinesis loses answers, throttles, refuses parts of a call, and lets requests land late and twice.

No stand-in does this by itself, and AWS does: the publisher goes through a service of our own that passes on, or not.
"""

from __future__ import annotations

import random
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import orjson

from tests.acceptance.compare import Watch
from tests.acceptance.pipelines import explained, new_seed, through_kinesis
from tests.acceptance.workload import Writing, create_tables
from tests.fake_aws import CLOSE, Request, fake_service, http, ok, refused

WRITES_PER_S = 80
# As long as the workload goes on.
CALLS = 250
LATE_S = (0.05, 1.5)
DEADLINE_S = 60.0


class MeanWire:
    """Passes requests on to Kinesis as chance decides; `done` counts what was done to them."""

    def __init__(self, url: str, chance: random.Random) -> None:
        self._url = url
        self._chance = chance
        self._mutex = threading.Lock()
        self._late: list[threading.Timer] = []
        self.mean = True
        self.done: Counter[str] = Counter()
        self.enough = threading.Event()

    def answer(self, request: Request) -> bytes:
        if request.action != "PutRecords" or not self.mean:
            return self._passed(request)
        with self._mutex:
            kinds = ("pass", "lose the answer", "late", "twice", "throttle", "refuse a part")
            kind = self._chance.choices(kinds, (60, 10, 10, 5, 5, 10))[0]
            late_s = self._chance.uniform(*LATE_S)
            self.done[kind] += 1
            if self.done.total() >= CALLS:
                self.enough.set()
        if kind == "throttle":
            return refused("ProvisionedThroughputExceededException", "too fast")
        if kind == "refuse a part":
            return self._in_part(request)
        if kind in ("late", "twice"):
            timer = threading.Timer(late_s, self._passed, [request])
            self._late.append(timer)
            timer.start()
        if kind == "late":
            return CLOSE
        answer = self._passed(request)
        return CLOSE if kind == "lose the answer" else answer

    def settle(self) -> None:
        """Everything that is to land late has landed."""
        self.mean = False
        for timer in self._late:
            timer.join(DEADLINE_S)

    def _in_part(self, request: Request) -> bytes:
        """Every other record is refused, the others are stored."""
        records = request.payload["Records"]
        taken = records[::2]
        stored = self._call(request, orjson.dumps({**request.payload, "Records": taken}))
        answers: list[Any] = [
            {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "too fast"} for _ in records
        ]
        answers[::2] = stored["Records"]
        return ok({"FailedRecordCount": len(records) - len(taken), "Records": answers})

    def _passed(self, request: Request) -> bytes:
        try:
            return ok(self._call(request, request.body))
        except urllib.error.HTTPError as error:
            with error:
                return http(error.read(), error.code)

    def _call(self, request: Request, body: bytes) -> Any:
        names = ("x-amz-target", "content-type", "authorization", "x-amz-date")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        passed_on = urllib.request.Request(self._url, body, headers)  # noqa: S310 - our own http URL
        with urllib.request.urlopen(passed_on, timeout=DEADLINE_S) as answer:  # noqa: S310 - as above
            said = answer.read()
            return orjson.loads(said) if said else {}


@contextmanager
def mean_wire(url: str, chance: random.Random) -> Iterator[tuple[MeanWire, str]]:
    made = MeanWire(url, chance)
    with fake_service(made.answer) as service:
        try:
            yield made, service.url
        finally:
            made.settle()


def test_a_mean_wire(new_database: Callable[[], str], kinesis_endpoint: str, tmp_path: Path) -> None:
    seed = new_seed()
    source, target = new_database(), new_database()
    create_tables(source)
    create_tables(target)
    pipeline = through_kinesis(tmp_path, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint)
    kinesis = pipeline.configuration["destination"]["kinesis"]
    with (
        closing(pipeline),
        explained(pipeline, seed),
        mean_wire(kinesis_endpoint, random.Random(seed)) as (wire, url),
    ):
        pipeline.workload(seed).fill(40)
        pipeline.run("track")
        subscriber = pipeline.start("subscribe")
        subscriber.await_words()
        kinesis["endpoint_url"] = url
        pipeline.write_configuration()
        publisher = pipeline.start("publish")
        with Watch(pipeline.target, making_way=("person",)):
            with Writing(pipeline.workloads[0], WRITES_PER_S):
                assert wire.enough.wait(DEADLINE_S), f"too few calls: {wire.done}"
            wire.settle()
            pipeline.await_equal()
        publisher.stop()
        subscriber.stop()
        kinesis["endpoint_url"] = kinesis_endpoint
        pipeline.write_configuration()
        pipeline.once_through()
        pipeline.assert_equal()
        pipeline.assert_no_dead_letters()
        pipeline.assert_no_holes()
        assert min(wire.done.values()) > 3, wire.done
