"""How old the data is, as the heartbeat rows say, read about once a second at most."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from upwell.errors import UpwellError
from upwell.exposure import ExposedTable
from upwell.heartbeat import Freshness, freshness
from upwell.ports import Clock, Reader

log = logging.getLogger("upwell.api")

LOOK_EVERY_S: Final = 1.0
LOOK_AGAIN_S: Final = 5.0  # where the database did not answer: each try may take as long as a request


class Age:
    """Threads share it; one of them looks at a time, the others take what was seen last."""

    def __init__(self, reader: Reader, pipeline: str, clock: Clock) -> None:
        self._reader = reader
        self._pipeline = pipeline
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: Freshness | None = None
        self._due_at = float("-inf")
        self._told = ""  # the code of the trouble that is in the log

    def last(self) -> Freshness | None:
        """What is known; None: nothing. To be asked before the data is read: then it is true of that."""
        first = self._due_at == float("-inf")  # then there is nothing to take from others
        if self._is_due() and self._lock.acquire(blocking=first):
            try:
                if self._is_due():
                    self._look()
            finally:
                self._lock.release()
        return self._seen

    def _is_due(self) -> bool:
        return self._clock.monotonic() > self._due_at

    def _look(self) -> None:
        pause_s = LOOK_AGAIN_S
        try:
            self._seen = freshness(self._reader.heartbeats(self._pipeline))
            pause_s, self._told = LOOK_EVERY_S, ""
        except UpwellError as error:  # what was seen stays true: data does not become older than it was
            self._tell(error)
        finally:
            self._due_at = self._clock.monotonic() + pause_s

    def _tell(self, error: UpwellError) -> None:
        if error.code != self._told:
            self._told = error.code
            extra = {"code": error.code, "remedy": error.remedy}
            log.warning("how old the data is can't be read: %s", error.message, extra=extra)

    def of(self, table: ExposedTable) -> str | None:
        """All that the source's table held at this time is there; None: not known, or not so."""
        seen = self.last()
        return seen.as_of if seen is not None and seen.complete(table.schema.table) else None

    def told(self, tables: Sequence[ExposedTable]) -> dict[str, Any]:
        """The answer of /v1/_freshness."""
        seen = self.last()
        if seen is None:
            nothing = {"as_of": None, "complete": None}
            return {"as_of": None, "age_s": None, "tables": {table.name: nothing for table in tables}}
        then = datetime.fromisoformat(seen.as_of)
        age_s = (datetime.fromtimestamp(self._clock.now(), UTC) - then).total_seconds()
        complete = {table.name: seen.complete(table.schema.table) for table in tables}
        return {
            "as_of": seen.as_of,
            "age_s": round(max(0.0, age_s), 1),
            "tables": {
                name: {"as_of": seen.as_of if whole else None, "complete": whole} for name, whole in complete.items()
            },
        }
