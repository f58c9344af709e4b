"""A Kinesis stream as a subscriber reads it: shards with their parents, iterators, records.

Limits: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html (5 reads a second and 2 MiB a
second from a shard, an iterator lives for five minutes).
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from upwell.aws import JsonService
from upwell.aws_errors import ResourceMissing, ServiceRefusal, no_such_stream
from upwell.errors import OperatorError, TransientError, UpwellError

READ_RECORDS_MAX: Final = 10_000
ITERATOR_EXPIRED: Final = "UW-KS-010"  # TransientError.code: take a new iterator after the last sequence number
SHARD_GONE: Final = "UW-KS-011"  # TransientError.code: list the shards again
_LIST_PAGES_MAX = 100  # of 1,000 shards


class Shard(NamedTuple):
    """A shard. It may be read only after its parents were read to their end; a parent that is not listed is gone."""

    id: str
    parents: tuple[str, ...]  # one after a split, two after a merge
    closed: bool  # it was split or merged: it takes no more records, and reading it comes to an end


class Read(NamedTuple):
    """What one GetRecords gave."""

    records: list[tuple[str, bytes]]  # (sequence number, data), in order
    next_iterator: str | None  # None: the shard is closed and read to its end
    behind_ms: int  # how far behind the shard's tip, as Kinesis says; kinesalite always says 0
    arrived: float | None  # when the last of the records came in, in seconds since 1970 by Kinesis' clock

    @property
    def at_tip(self) -> bool:
        """There was nothing to read when asked; of a closed shard only `next_iterator` None is the end.

        Kinesis gives empty answers before the tip too, but then says how far behind they are; kinesalite never says,
        but gives an empty answer only at the tip.
        """
        return self.next_iterator is None or (not self.records and self.behind_ms == 0)


class KinesisStream:
    """Reads one stream. Threads may share it."""

    def __init__(self, service: JsonService, stream: str) -> None:
        self._service = service
        self._stream = stream

    def shards(self) -> list[Shard]:
        """All shards that still hold records or take them, parents before children."""
        found: list[Shard] = []
        request: dict[str, Any] = {"StreamName": self._stream, "MaxResults": 1000}
        for _ in range(_LIST_PAGES_MAX):
            answer = self._call("ListShards", request)
            found.extend(map(_shard, answer["Shards"]))
            token = answer.get("NextToken")
            if not token:
                break
            request = {"NextToken": token, "MaxResults": 1000}  # the stream's name is not allowed beside a token
        # Shards are numbered as they are made, so a parent's number is below its children's.
        return sorted(found, key=lambda shard: shard.id)

    def iterator(self, shard: str, after: str | None) -> str:
        """Where to read on after a sequence number; None: from the oldest record that the stream still has."""
        start = (
            {"ShardIteratorType": "TRIM_HORIZON"}
            if after is None
            else {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": after}
        )
        answer = self._call("GetShardIterator", {"StreamName": self._stream, "ShardId": shard, **start})
        return str(answer["ShardIterator"])

    def records(self, iterator: str, limit: int = READ_RECORDS_MAX) -> Read:
        """Up to `limit` records, or none. Raises TransientError: ITERATOR_EXPIRED, or throttled."""
        answer = self._call("GetRecords", {"ShardIterator": iterator, "Limit": limit})
        records = answer["Records"]
        return Read(
            records=[(record["SequenceNumber"], binascii.a2b_base64(record["Data"])) for record in records],
            next_iterator=answer.get("NextShardIterator"),
            behind_ms=answer.get("MillisBehindLatest", 0),
            arrived=records[-1].get("ApproximateArrivalTimestamp") if records else None,
        )

    def close(self) -> None:
        """Free connections; never raises."""
        self._service.close()

    def _call(self, action: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._service.call(action, request)
        except UpwellError as error:
            raise self._explained(error) from error

    def _explained(self, error: UpwellError) -> UpwellError:
        stream, region = self._stream, self._service.region
        if isinstance(error, ResourceMissing):
            if "Shard " in error.message:  # "Shard shardId-… in stream … under account … does not exist"
                return TransientError(f"A shard of the stream {stream} is no longer there.", code=SHARD_GONE)
            return no_such_stream(stream, region)
        if error.code == "UW-AWS-023":
            return TransientError(error.message, code=ITERATOR_EXPIRED)
        if isinstance(error, ServiceRefusal):
            return OperatorError(
                f"Kinesis refuses to read the stream {stream}: {error.message}",
                code="UW-KS-012",
                remedy="If the stream was deleted and created anew, the saved positions belong to the old one.",
            )
        return error


def _shard(wire: Mapping[str, Any]) -> Shard:
    parents = [wire.get("ParentShardId"), wire.get("AdjacentParentShardId")]
    return Shard(
        id=wire["ShardId"],
        parents=tuple(parent for parent in parents if parent),
        closed=wire["SequenceNumberRange"].get("EndingSequenceNumber") is not None,
    )
