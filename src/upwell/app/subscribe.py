"""`upwell subscribe`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from upwell.app import build
from upwell.app.running import dump_nothing, give_memory_back, spare_collector, told_to_stop
from upwell.config import Pipeline
from upwell.pipeline.subscriber import Subscriber

log = logging.getLogger("upwell.subscriber")

LOG_EVERY_S: Final = 10.0


def subscribe(pipeline: Pipeline, *, once: bool) -> None:
    """Until told to stop; with `once` until the stream's end as of now. Raises UpwellError."""
    give_memory_back()
    dump_nothing()
    with told_to_stop() as stop, build.subscriber(pipeline, stop) as subscriber:
        spare_collector()
        log.info("subscribing as %s", pipeline.name)
        with _reporting(subscriber):
            subscriber.run(once=once)
        log.info("%s; %s", "done" if once else "stopped", _text(subscriber))


@contextmanager
def _reporting(subscriber: Subscriber) -> Iterator[None]:
    """A line now and then, where something has happened."""
    over = threading.Event()

    def report() -> None:
        said = ""
        while not over.wait(LOG_EVERY_S):
            now = _text(subscriber)
            if now != said:
                log.info("%s", now)
                said = now

    thread = threading.Thread(target=report, name="report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _text(subscriber: Subscriber) -> str:
    """Numbers that are not zero, and what is wrong at the moment."""
    totals, trouble = subscriber.totals, subscriber.troubles.last
    named = {
        "applied before": totals.skipped,
        "dead letters": totals.dead_letters,
        "rows removed by resyncs": totals.swept,
        "holes in the stream": totals.holes,
        "records of other pipelines": totals.foreign,
    }
    text = f"{totals.events} events received" + "".join(f", {n} {what}" for what, n in named.items() if n)
    return f"{text}; {trouble}" if trouble else text
