"""Time as an argument, so that tests and the simulation own it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime


class SystemClock:
    """The machine's clock. `stop` ends a sleep early: a person pressed Ctrl-C."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self._stop = stop or threading.Event()

    def now(self) -> float:
        """Seconds since 1970, UTC; may jump."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never goes back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait, or return at once when stopping."""
        self._stop.wait(seconds)


def iso_time(seconds: float) -> str:
    """ISO 8601 in UTC with microseconds: 2026-01-31T10:00:00.123456Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
