"""What a running publisher reports about itself: for `upwell status` through the state file, and as log lines."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from upwell.app.bars import SnapshotBars
from upwell.app.build import PublisherParts
from upwell.clock import iso_time
from upwell.errors import LeaseLost, TransientError, UpwellError
from upwell.mapping import Mapping as RowMapping
from upwell.model import ChangeEvent, TablePhase, TableProgress
from upwell.pipeline.service import SourceHealth

log = logging.getLogger("upwell.publisher")

HEALTH_EVERY_S: Final = 10.0  # asking the source costs it a query or two
LOG_EVERY_S: Final = 10.0
RATE_OVER_S: Final = 10.0


class CountingMapping(RowMapping):
    """A mapping that counts the events of each table as they pass."""

    counts: Counter[str]

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.counts = Counter()

    def events(self, events: list[ChangeEvent]) -> list[ChangeEvent]:
        self.counts.update([event.schema.table for event in events])
        return super().events(events)


class Rates:
    """How fast numbers have grown of late."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Mapping[str, int]]] = deque()

    def note(self, now: float, numbers: Mapping[str, int]) -> None:
        """What they are at this moment (monotonic seconds)."""
        self._seen.append((now, dict(numbers)))
        while len(self._seen) > 2 and self._seen[1][0] <= now - RATE_OVER_S:
            self._seen.popleft()

    def per_second(self, name: str) -> float:
        """Over the last ten seconds; 0 before there are two moments."""
        if len(self._seen) < 2:
            return 0.0
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        if last_at <= first_at:
            return 0.0
        return max(0, last.get(name, 0) - first.get(name, 0)) / (last_at - first_at)


class Reporter:
    """Called about once a second by the running publisher, from its own thread."""

    def __init__(
        self, parts: PublisherParts, mapping: CountingMapping, pipeline: str, bars: SnapshotBars | None = None
    ) -> None:
        self._parts = parts
        self._mapping = mapping
        self._pipeline = pipeline
        self._bars = bars
        self._events, self._rows = Rates(), Rates()
        self._started_at = parts.clock.now()
        self._source: Mapping[str, Any] = {}
        self._source_at = self._log_at = 0.0
        self._logged: object = None
        self._opened = False

    def __call__(self, health: SourceHealth) -> None:
        """Write the status; log how it goes where that has changed."""
        self._opened = True
        now = self._parts.clock.monotonic()
        if now >= self._source_at and not health.failures:
            self._source_at = now + HEALTH_EVERY_S
            try:
                self._source = self._parts.source.health()
            except UpwellError:
                self._source = {}  # the next step meets the same, and says so
        status = self.status(health, running=True)
        with suppress(TransientError):  # a full disk is the next checkpoint's trouble, with all its retries
            self._parts.state.put_status(status)
        if self._bars is not None:
            self._bars.update(status["tables"])
        if now >= self._log_at and not (self._bars is not None and self._bars.shown):
            self._log_at = now + LOG_EVERY_S
            self._log(status)

    def ended(self, error: UpwellError | None) -> None:
        """The last status: why it ended. Of a publisher that never got the lease, the status is another's."""
        if isinstance(error, LeaseLost):
            return
        with suppress(UpwellError):  # that it ended is known by its silence too
            last = self.status(SourceHealth(), running=False) if self._opened else self._parts.state.status() or {}
            ended = {"at": iso_time(self._parts.clock.now()), "running": False}
            self._parts.state.put_status({**last, **ended, "last_error": "" if error is None else str(error)})

    def status(self, health: SourceHealth, *, running: bool) -> dict[str, Any]:
        """As `upwell status --json` prints it; docs/operations.md describes it."""
        publisher, clock = self._parts.publisher, self._parts.clock
        done, now = publisher.done, clock.monotonic()
        tables = publisher.checkpoint.tables
        self._events.note(now, self._mapping.counts | Counter({"": self._mapping.counts.total()}))
        self._rows.note(now, {name: table.rows for name, table in tables.items()})
        lag = None
        if done is not None:
            seen = max(done.seen_at, _seconds(done.time))
            lag = None if not seen else max(0.0, clock.now() - seen)
        sending = publisher.delivery.last_error
        return {
            "pipeline": self._pipeline,
            "at": iso_time(clock.now()),
            "started_at": iso_time(self._started_at),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "running": running,
            "caught_up": publisher.caught_up,
            "lag_seconds": lag if lag is None else round(lag, 3),
            "runway_hours": self._source.get("runway_hours"),
            "events": self._mapping.counts.total(),
            "events_per_second": round(self._events.per_second(""), 1),
            "pending_bytes": publisher.delivery.pending_bytes,
            "epoch": publisher.checkpoint.epoch,
            "term": publisher.checkpoint.term,
            "last_error": health.last_error or ("" if sending is None else str(sending)),
            "last_gap": publisher.last_gap,
            "source": self._source,
            "tables": {name: self._table(name, table) for name, table in tables.items()},
        }

    def _table(self, name: str, table: TableProgress) -> dict[str, Any]:
        rate = self._rows.per_second(name)
        left = None if table.estimate is None else max(0, table.estimate - table.rows)
        reading = table.phase is TablePhase.SNAPSHOT
        return {
            "phase": table.phase.value,
            "reason": table.reason,
            "rows": table.rows,
            "estimate": table.estimate,
            "rows_per_second": round(rate, 1),
            "eta_seconds": round(left / rate) if reading and left is not None and rate else None,
            "events_per_second": round(self._events.per_second(name), 1),
        }

    def _log(self, status: Mapping[str, Any]) -> None:
        phases = [(name, table["phase"], table["rows"]) for name, table in status["tables"].items()]
        now = status["events"], phases, status["caught_up"]
        if now == self._logged:
            return
        self._logged = now
        text = f"{status['events']} events read, {status['events_per_second']:.0f}/s"
        text += f", {status['lag_seconds']:.1f} s behind" if status["lag_seconds"] is not None else ""
        log.info("%s%s", text, "".join(map(_progress, status["tables"].items())))


def _progress(item: tuple[str, Mapping[str, Any]]) -> str:
    name, table = item
    if table["phase"] == "stream":
        return ""
    if table["phase"] == "sweep":
        return f"; {name}: removing what the source no longer has"
    share = f" of about {table['estimate']}" if table["estimate"] else ""
    eta = f", {table['eta_seconds']} s left" if table["eta_seconds"] is not None else ""
    return f"; {name}: {table['rows']}{share} rows read{eta}"


def _seconds(time: str) -> float:
    """Of an ISO 8601 time; 0 where there is none."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0.0
