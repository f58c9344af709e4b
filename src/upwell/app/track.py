"""`upwell track`: let the source keep track of what changes, and undo that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from upwell.app import build
from upwell.clock import SystemClock
from upwell.config import Pipeline
from upwell.errors import LeaseLost, OperatorError


def track(pipeline: Pipeline, *, undo: bool, dry_run: bool) -> list[str]:
    """What was executed; of a dry run, what would be. Raises UpwellError."""
    parts = build.source_parts(pipeline)
    if not undo:
        return parts.track_sql() if dry_run else parts.track()
    if dry_run:
        return parts.untrack_sql()
    with _without_publisher(pipeline):
        return parts.untrack()


@contextmanager
def _without_publisher(pipeline: Pipeline) -> Iterator[None]:
    """Hold the publisher's place meanwhile: one that runs would put back triggers, or read on from what is gone."""
    if not pipeline.state.exists():  # then none runs here, and asking would make the file
        yield
        return
    kept = build.state(pipeline)
    try:
        kept.acquire(SystemClock().now())
        yield
    except LeaseLost as error:
        raise OperatorError(
            f"The publisher of {pipeline.name} is running.", code="UW-CL-018", remedy="Stop it, then run this again."
        ) from error
    finally:
        kept.release()
