"""The publisher as a service: what it does before the publisher has anything to publish."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from upwell.errors import TransientError
from upwell.pipeline.service import run_publisher


class Clock:
    """Stands at a quarter of a second, and goes on while somebody sleeps."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.time = 1_800_000_000.25
        self._stop = stop

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        if self._stop is None:
            self.time += seconds
        else:
            self._stop.set()


class Opened(TransientError):
    """Ends the run."""


class Publisher:
    """Notes when it is opened."""

    def __init__(self, clock: Clock, *, fresh: bool) -> None:
        self.fresh = fresh
        self.opened_at: float | None = None
        self._clock = clock

    def open(self) -> None:
        self.opened_at = self._clock.now()
        raise Opened("opened", code="UW-ST-001")


def run(publisher: Any, clock: Clock, stop: threading.Event) -> None:
    sink: Any = None
    run_publisher(publisher, sink, clock, stop=stop, rng=random.Random(0), report=lambda health: None)


@pytest.mark.parametrize(("fresh", "at"), [(True, 1_800_000_001.0), (False, 1_800_000_000.25)])
def test_a_fresh_start_chooses_its_epoch_in_a_new_second(fresh: bool, at: float) -> None:
    """The second of its start may be the epoch of a publisher whose state was lost a moment ago."""
    clock = Clock()
    publisher = Publisher(clock, fresh=fresh)
    with pytest.raises(Opened):
        run(publisher, clock, threading.Event())
    assert publisher.opened_at == pytest.approx(at)


def test_stopped_before_its_second_has_begun_it_opens_nothing() -> None:
    stop = threading.Event()
    clock = Clock(stop)
    publisher = Publisher(clock, fresh=True)
    run(publisher, clock, stop)
    assert publisher.opened_at is None
