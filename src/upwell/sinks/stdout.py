"""Events as lines of JSON: the CloudEvents form, for a look at what a pipeline would send, or for a pipe."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import BinaryIO, Final

from upwell.envelope import cloud_event
from upwell.errors import OperatorError, TransientError
from upwell.model import ChangeEvent, LaneItem, TableSchema, Version
from upwell.ports import Parcel

PARCEL_ITEMS_MAX: Final = 500


class StdoutSink:
    """A Sink that writes to a stream of bytes; durable means flushed. Markers are not written."""

    parcels_max = 64
    call_bytes_max = 4 * 1024 * 1024
    carries_markers = True

    def __init__(self, pipeline: str, stream: BinaryIO) -> None:
        self._pipeline = pipeline
        self._stream = stream
        self._writing = threading.Lock()

    def pack(self, lane: int, term: int, seq: int, after: tuple[int, int] | None, items: Sequence[LaneItem]) -> Parcel:
        """See ports.Sink."""
        offered = items[:PARCEL_ITEMS_MAX]
        lines = [cloud_event(self._pipeline, item) + b"\n" for item in offered if isinstance(item, ChangeEvent)]
        body = b"".join(lines)
        return Parcel(lane, term, seq, after, len(offered), body or None, len(body))

    def send(self, parcels: Sequence[Parcel]) -> Sequence[TransientError | None]:
        """See ports.Sink. What was written before a failure can't be taken back."""
        try:
            with self._writing:
                self._stream.write(b"".join(parcel.body for parcel in parcels if parcel.body is not None))
                self._stream.flush()
        except BrokenPipeError as error:
            raise OperatorError("Nobody reads the output any more.", code="UW-OUT-001") from error
        except OSError as error:
            raise TransientError(f"The output can't be written: {error.strerror}.", code="UW-OUT-002") from error
        return [None] * len(parcels)

    def prepare(self, schemas: Sequence[TableSchema]) -> None:
        """Nothing needs to be made."""

    def sweep(self, schema: TableSchema, before: Version) -> int:
        """Never called: what was written stays written."""
        raise NotImplementedError("an output has nothing to sweep: carries_markers")

    def close(self) -> None:
        """The stream belongs to whoever gave it."""
