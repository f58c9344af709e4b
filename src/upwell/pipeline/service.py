"""The publisher as a service: steps until told to stop, waits where waiting is due, reports how it is."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from upwell.errors import LeaseLost, TransientError
from upwell.pipeline.delivery import DeliveryThreads
from upwell.pipeline.publisher import Publisher
from upwell.pipeline.troubles import forget_frames
from upwell.ports import Clock, Sink

log = logging.getLogger("upwell.publisher")

SENDERS = 4
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
REPORT_EVERY_S = 1.0
# What stopping may take: the calls in flight end, the checkpoint is saved.
STOP_WITHIN_S = 8.0


@dataclass(slots=True)
class SourceHealth:
    """How reading the source goes."""

    last_error: str = ""
    failures: int = 0


def run_publisher(
    publisher: Publisher,
    sink: Sink,
    clock: Clock,
    *,
    stop: threading.Event,
    rng: random.Random,
    report: Callable[[SourceHealth], None],
    once: bool = False,
) -> None:
    """Publish until `stop` is set; with `once` until everything committed by now is durable at the destination.

    `report` is called about once a second. Raises OperatorError, LeaseLost; a TransientError only where the source
    or the destination was out of reach when it started.
    """
    if publisher.fresh:
        # An epoch is a second: where the state file of a moment ago was lost, it must not be had a second time.
        clock.sleep(1.0 - clock.now() % 1.0)
        if stop.is_set():
            return
    publisher.open()
    until = publisher.head() if once else None
    threads = DeliveryThreads(publisher.delivery, sink, clock, SENDERS)
    health = SourceHealth()
    report_at = 0.0
    lost = False
    try:
        while not stop.is_set() and not (until is not None and publisher.reached(until)):
            _step(publisher, clock, rng, health)
            threads.check()
            if clock.monotonic() >= report_at:
                report_at = clock.monotonic() + REPORT_EVERY_S
                report(health)
    except LeaseLost:
        lost = True
        raise
    finally:
        threads.stop(STOP_WITHIN_S)
        if lost:
            publisher.stand_by()
        else:
            _close(publisher)
            report(health)


def _step(publisher: Publisher, clock: Clock, rng: random.Random, health: SourceHealth) -> None:
    try:
        if not publisher.step():
            with publisher.delivery.changed:
                publisher.delivery.changed.wait(0.1)
        if health.failures:
            log.info("the source answers again")
        health.failures, health.last_error = 0, ""
    except TransientError as error:
        if health.failures == 0:
            log.warning("%s Trying again until it works.", error)
        health.last_error = str(error)
        forget_frames(error)
        clock.sleep(rng.random() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(health.failures, 30)))
        health.failures += 1


def _close(publisher: Publisher) -> None:
    try:
        publisher.close()
    except (LeaseLost, TransientError) as error:
        log.warning("The last checkpoint was not saved: %s", error)
