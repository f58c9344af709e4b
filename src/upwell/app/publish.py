"""`upwell publish`."""

from __future__ import annotations

import logging

from upwell.app import build
from upwell.app.bars import snapshot_bars
from upwell.app.report import CountingMapping, Reporter
from upwell.app.running import dump_nothing, give_memory_back, told_to_stop
from upwell.config import Pipeline
from upwell.errors import UpwellError
from upwell.pipeline.service import run_publisher

log = logging.getLogger("upwell.publisher")


def publish(pipeline: Pipeline, *, once: bool) -> None:
    """Until told to stop; with `once` until what is there now is at the destination. Raises UpwellError."""
    give_memory_back()
    dump_nothing()
    mapping = CountingMapping(pipeline.rules, dialect=pipeline.dialect, mask_key=pipeline.mask_key)
    with told_to_stop() as stop, build.publisher(pipeline, stop, mapping) as parts, snapshot_bars() as bars:
        report = Reporter(parts, mapping, pipeline.name, bars)
        log.info("publishing %s to %s", pipeline.name, pipeline.destination().kind)
        try:
            run_publisher(parts.publisher, parts.sink, parts.clock, stop=stop, rng=parts.rng, report=report, once=once)
        except UpwellError as error:
            report.ended(error)
            raise
        report.ended(None)
        log.info("stopped" if stop.is_set() else "done: everything committed until now is at the destination")
