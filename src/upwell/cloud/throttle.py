"""How much a caller may ask for: a bucket of tokens for each, in this process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from upwell.cloud.answers import Problem
from upwell.ports import Clock

CALLERS_MAX: Final = 10_000  # the ones that were seen last; who was forgotten begins with a full bucket
BURST_S: Final = 2.0


class Throttle:
    """Threads share it."""

    def __init__(self, per_s: float, clock: Clock) -> None:
        self._per_s = per_s
        self._most = per_s * BURST_S
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller → tokens, as of when

    def take(self, caller: str) -> None:
        """Raises Problem 429 where the caller has asked too often."""
        now = self._clock.monotonic()
        with self._lock:
            tokens, then = self._buckets.pop(caller, (self._most, now))
            tokens = min(self._most, tokens + (now - then) * self._per_s)
            self._buckets[caller] = (tokens - 1 if tokens >= 1 else tokens, now)
            if len(self._buckets) > CALLERS_MAX:
                self._buckets.popitem(last=False)
        if tokens < 1:
            raise Problem(429, f"More than {self._per_s:g} requests a second; wait a moment.", retry_after="1")
