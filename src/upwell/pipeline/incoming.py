"""What comes in, for whatever target: the bytes of a batch become records, in parts whose claimed rows fit the memory,
and what can't be read or applied becomes a dead letter.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import orjson

from upwell.claims import Claim, Claims
from upwell.clock import iso_time
from upwell.envelope import ReceivedEvent, letter_payload, redeemed, unpack_record, unpacked_size
from upwell.errors import OperatorError, Rejected
from upwell.model import DELETE, ChangeEvent, DeadLetter, LaneRecord, Marker
from upwell.ports import Clock

# What the claims of one part's rows may come to, a single row apart.
CLAIMED_BYTES_MAX: Final = 16 * 1024 * 1024
# What is applied at once, uncompressed; one record may be larger.
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
RECORD_OVERHEAD_BYTES: Final = 300

Record = LaneRecord[ReceivedEvent | Marker]


@dataclass(slots=True)
class Applied:
    """What a batch did."""

    events: int = 0  # received
    skipped: int = 0  # below the watermark, or of an earlier term: applied before, or to come again
    dead_letters: int = 0
    swept: int = 0  # rows that a resync removed
    holes: int = 0  # records in which a loss showed
    foreign: int = 0  # records of other pipelines
    alarm: str = ""  # where holes showed: a sentence about the newest


class Incoming:
    """Reads the records of one pipeline. Threads may share it."""

    def __init__(self, pipeline: str, clock: Clock, claims: Claims | None) -> None:
        """`claims`: where rows wait that were too large for the stream."""
        self._pipeline = pipeline
        self._clock = clock
        self._claims = claims
        self._large = threading.Lock()  # one part at a time has claimed rows in memory

    def decoded(self, data: Sequence[bytes], applied: Applied) -> tuple[list[Record], list[DeadLetter]]:
        """The records of this pipeline, and what is no record; counted in `applied`."""
        records: list[Record] = []
        unreadable: list[DeadLetter] = []
        for each in data:
            try:
                record = unpack_record(each)
            except Rejected as error:
                now = iso_time(self._clock.now())
                unreadable.append(DeadLetter(0, "", "", "", error.message, now, each))
                continue
            if record.pipeline == self._pipeline:
                records.append(record)
                applied.events += len(record.items)
            else:
                applied.foreign += 1
        return records, unreadable

    @contextmanager
    def with_rows(self, part: Sequence[Record]) -> Iterator[tuple[Sequence[Record], dict[str, str]]]:
        """The records with the rows that were claimed; those that can never be had stay claims: object → why.

        Raises TransientError, or OperatorError where it is not configured where they are.
        """
        lost: dict[str, str] = {}
        if not any(isinstance(item, ReceivedEvent) and item.claim for record in part for item in record.items):
            yield part, lost
            return
        with self._large:
            yield (
                [replace(record, items=[self._with_row(item, lost) for item in record.items]) for record in part],
                lost,
            )

    def _with_row(self, item: ReceivedEvent | Marker, lost: dict[str, str]) -> ReceivedEvent | Marker:
        if isinstance(item, Marker) or item.claim is None:
            return item
        if self._claims is None:
            raise OperatorError(
                "A row too large for the stream waits in S3, and the configuration does not say in which bucket.",
                code="UW-CC-004",
                remedy="Set destination.kinesis.claim_check here as it is set for the publisher.",
            )
        try:
            return redeemed(item, self._claims.content(item.claim))
        except Rejected as error:
            lost[item.claim.object] = error.message
            return item

    def letter(self, event: ChangeEvent, reason: str, claim: Claim | None = None) -> DeadLetter:
        """The event, put aside."""
        payload = letter_payload(self._pipeline, event, claim)
        now = iso_time(self._clock.now())
        return DeadLetter(0, event.schema.table, event.key.decode(), event.version.hex(), reason, now, payload)

    def lost_letters(self, events: Sequence[ReceivedEvent], lost: dict[str, str]) -> list[DeadLetter]:
        """Of events whose claimed rows can't be had, and why not."""
        return [self.letter(as_sent(event), lost[event.claim.object], event.claim) for event in events if event.claim]


def as_sent(event: ReceivedEvent) -> ChangeEvent:
    """The event as the publisher had it, but for what the source called it."""
    row = None if event.operation == DELETE else orjson.dumps(event.values)
    return ChangeEvent(event.schema, event.operation, event.version, event.time, orjson.dumps(event.key), row, "update")


def parts(records: Sequence[Record]) -> Iterator[list[Record]]:
    """The records in order, cut so that the claims of a part are at most CLAIMED_BYTES_MAX, a single record apart."""
    part: list[Record] = []
    size = 0
    for record in records:
        claimed = sum(item.claim.bytes for item in record.items if isinstance(item, ReceivedEvent) and item.claim)
        if part and claimed and size + claimed > CLAIMED_BYTES_MAX:
            yield part
            part, size = [], 0
        part.append(record)
        size += claimed
    if part:
        yield part


def batches(records: Sequence[tuple[str, bytes]]) -> list[list[tuple[str, bytes]]]:
    """(sequence number, data) in order, cut so that no batch is above BATCH_BYTES_MAX, single records apart."""
    found: list[list[tuple[str, bytes]]] = []
    size = 0
    for record in records:
        size += bytes_in_memory(record[1])
        if not found or size > BATCH_BYTES_MAX:
            found.append([])
            size = bytes_in_memory(record[1])
        found[-1].append(record)
    return found


def bytes_in_memory(data: bytes) -> int:
    """Of a record; even an empty one takes some."""
    return RECORD_OVERHEAD_BYTES + unpacked_size(data)
