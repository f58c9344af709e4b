"""The subscriber's reading: every shard has its turn, few at a time, and no read takes more than was wanted."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.unit.test_delivery import marker
from upwell.clock import SystemClock
from upwell.envelope import pack_record, unpacked_size
from upwell.errors import TransientError
from upwell.pipeline import incoming
from upwell.pipeline import subscriber as module
from upwell.pipeline.incoming import Applied
from upwell.pipeline.subscriber import READ_BYTES, READ_RECORDS_FIRST, READ_RECORDS_MAX, Subscriber
from upwell.streams.kinesis import Read, Shard


@dataclass
class Stream:
    """Closed shards; an iterator is the number of the record that comes next."""

    shards_: dict[str, list[bytes]]
    answer_bytes_max: int = 2**62  # a larger answer can't be read
    limits: list[int] = field(default_factory=list)

    def shards(self) -> list[Shard]:
        return [Shard(name, (), closed=True) for name in self.shards_]

    def iterator(self, shard: str, after: str | None) -> str:
        return f"{shard} {0 if after is None else int(after) + 1}"

    def records(self, iterator: str, limit: int) -> Read:
        self.limits.append(limit)
        shard, start = iterator.split()
        first = int(start)
        taken = self.shards_[shard][first : first + limit]
        if sum(map(len, taken)) > self.answer_bytes_max:
            raise TransientError("The answer is too large.")
        following = first + len(taken)
        more = f"{shard} {following}" if following < len(self.shards_[shard]) else None
        return Read([(str(first + n), data) for n, data in enumerate(taken)], more, 0, None)


@dataclass
class Applier:
    """Counts how many apply at once, and waits until as many as may have come together."""

    together: threading.Barrier | None = None
    applied: list[bytes] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def apply(self, data: Sequence[bytes]) -> Applied:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        if self.together is not None:
            self.together.wait(10)
        with self.lock:
            self.now -= 1
            self.applied += data
            self.batches.append(sum(map(len, data)))
        return Applied(events=len(data))


class Checkpoints:
    def load(self, stream: str) -> dict[str, str | None]:
        return {}

    def save(self, stream: str, shard: str, sequence: str | None) -> None:
        pass


@pytest.fixture
def run() -> Callable[..., None]:
    def run(stream: Any, applier: Any, **settings: Any) -> None:
        stop = threading.Event()
        Subscriber(
            "shop",
            stream=stream,
            applier=applier,
            checkpoints=Checkpoints(),
            relay_repairs=lambda: None,
            clock=SystemClock(stop),
            rng=random.Random(1),
            stop=stop,
            read_every_s=0.0,
            **settings,
        ).run(once=True)

    return run


def test_few_shards_are_in_work_at_once_and_all_get_their_turn(run: Callable[..., None]) -> None:
    stream = Stream({f"shard-{n:02}": [b"%d" % n] for n in range(12)})
    applier = Applier(together=threading.Barrier(3))
    run(stream, applier, working_shards=3)
    assert applier.most == 3
    assert sorted(applier.applied) == sorted(b"%d" % n for n in range(12))


def test_a_shard_that_waits_for_what_is_away_keeps_no_other_from_its_turn(run: Callable[..., None]) -> None:
    class Waiting(Applier):
        def apply(self, data: Sequence[bytes]) -> Applied:
            if b"large" in data and self.applied != [b"other"]:
                raise TransientError("S3 does not answer.")
            return super().apply(data)

    applier = Waiting()
    run(Stream({"shard-1": [b"large"], "shard-2": [b"other"]}), applier, working_shards=1)
    assert applier.applied == [b"other", b"large"]


def test_what_was_applied_before_a_failure_is_not_applied_again(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Applier):
        failures = 3

        def apply(self, data: Sequence[bytes]) -> Applied:
            if data[0] == b"5" and self.failures:
                self.failures -= 1
                raise TransientError("The target does not answer.")
            return super().apply(data)

    monkeypatch.setattr(incoming, "BATCH_BYTES_MAX", 1)
    applier = Failing()
    run(Stream({"shard": [b"%d" % n for n in range(10)]}), applier)
    assert applier.applied == [b"%d" % n for n in range(10)]


@pytest.mark.parametrize("size", [10, 5_000, 300_000, 3_000_000])
def test_reads_ask_for_about_as_many_bytes_as_are_wanted(run: Callable[..., None], size: int) -> None:
    count = min(3_000, 60_000_000 // size)
    stream, applier = Stream({"shard": [bytes(size)] * count}), Applier()
    run(stream, applier)
    assert len(applier.applied) == count
    assert stream.limits[0] == READ_RECORDS_FIRST
    assert max(stream.limits[1:]) * size <= READ_BYTES + size
    assert max(stream.limits) == READ_RECORDS_MAX or stream.limits[-1] * size > READ_BYTES - size


def test_an_answer_that_is_too_large_is_asked_for_in_parts(run: Callable[..., None]) -> None:
    stream, applier = Stream({"shard": [bytes(1_000)] * 300}, answer_bytes_max=20_000), Applier()
    run(stream, applier)
    assert len(applier.applied) == 300


def test_a_batch_is_bounded_by_what_its_records_unpack_to(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "BATCH_BYTES_MAX", 5_000)
    items = [marker(0)] * 100
    plain, _ = pack_record("shop", 0, 1, 1, None, items)
    packed, _ = pack_record("shop", 0, 1, 1, None, items, compression="zstd")
    assert len(packed) < 1_000 < 3_000 < len(plain) == unpacked_size(plain) == unpacked_size(packed)
    applier = Applier()
    run(Stream({"shard": [packed] * 10}), applier)
    assert applier.batches == [len(packed)] * 10


def test_a_hole_is_logged_and_the_repair_is_handed_over_at_once(caplog: pytest.LogCaptureFixture) -> None:
    class Damaged(Applier):
        def apply(self, data: Sequence[bytes]) -> Applied:
            asked.append(True)
            return Applied(holes=1, alarm="Lane 3: records are missing.")

    class Open(Stream):
        def records(self, iterator: str, limit: int) -> Read:
            return super().records(iterator, limit)._replace(next_iterator=iterator)

    asked: list[bool] = []
    stop = threading.Event()
    relayed: list[bool] = []

    def relay() -> None:
        relayed.append(bool(asked))
        if asked:
            stop.set()

    subscriber = Subscriber(
        "shop",
        stream=Open({"shard": [b"x"]}),
        applier=Damaged(),
        checkpoints=Checkpoints(),
        relay_repairs=relay,
        clock=SystemClock(stop),
        rng=random.Random(1),
        stop=stop,
        read_every_s=0.01,
    )
    began = time.monotonic()
    subscriber.run()
    assert relayed[-1]
    assert time.monotonic() - began < module.REPAIRS_EVERY_S
    assert "Lane 3: records are missing. All tables are to be read again" in caplog.text
    assert subscriber.totals.holes >= 1


def test_a_run_that_ends_hands_its_repairs_over_first() -> None:
    class Damaged(Applier):
        def apply(self, data: Sequence[bytes]) -> Applied:
            super().apply(data)
            return Applied(holes=1, alarm="Lane 3: records are missing.")

    applier = Damaged()
    relayed: list[int] = []
    stop = threading.Event()
    Subscriber(
        "shop",
        stream=Stream({"shard": [b"x"]}),
        applier=applier,
        checkpoints=Checkpoints(),
        relay_repairs=lambda: relayed.append(len(applier.applied)),
        clock=SystemClock(stop),
        rng=random.Random(1),
        stop=stop,
        read_every_s=0.0,
    ).run(once=True)
    assert relayed[-1] == 1


def test_the_size_of_what_is_no_record_is_its_own() -> None:
    assert unpacked_size(b"\x28\xb5\x2f\xfd") == 4
    assert unpacked_size(b"") == 0
