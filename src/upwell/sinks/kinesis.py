"""Events into a Kinesis stream: one record per parcel, one PutRecords per call.

Limits: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import orjson

from upwell.aws import JsonService
from upwell.aws_errors import ResourceMissing, ServiceRefusal, no_such_stream, passes_by_itself, throttles
from upwell.claims import Claims, Upload
from upwell.envelope import Compression, cloud_event, cloud_row, pack_claimed, pack_record, row_content
from upwell.errors import OperatorError, Rejected, TransientError, UpwellError
from upwell.lanes import explicit_hash_key, partition_key
from upwell.model import ChangeEvent, LaneItem, Marker, Rejection, TableSchema, Version
from upwell.ports import Parcel

CALL_RECORDS_MAX: Final = 500
CALL_BYTES_MAX: Final = 5 * 1024 * 1024  # data and partition keys; AWS takes 10 MiB by now, stand-ins do not
RECORD_BYTES_MAX: Final = 1024 * 1024  # data and partition key

Format = Literal["packed", "cloudevents"]


class _Claimed(NamedTuple):
    """A parcel's body whose row must be in S3 before its record may be sent."""

    upload: Upload
    record: bytes  # in the form of any other body


class KinesisSink:
    """A Sink that writes packed records for our own subscriber, or a CloudEvent per record for anybody's."""

    parcels_max = CALL_RECORDS_MAX
    call_bytes_max = CALL_BYTES_MAX
    carries_markers = True

    def __init__(
        self,
        pipeline: str,
        stream: str,
        lanes: int,
        service: JsonService,
        *,
        format: Format = "packed",  # noqa: A002 - the configuration's word
        compression: Compression = "none",
        claims: Claims | None = None,
    ) -> None:
        """`claims`: by which way rows go that are too large for a record; without it they are rejected."""
        self._pipeline = pipeline
        self._stream = stream
        self._service = service
        self._format = format
        self._compression: Compression = compression
        self._claims = claims
        self._prefix = b'{"StreamName":%b,"Records":[' % orjson.dumps(stream)
        self._suffixes = [
            f'","PartitionKey":"{partition_key(lane)}","ExplicitHashKey":"{explicit_hash_key(lane, lanes)}"}}'.encode()
            for lane in range(lanes)
        ]
        self._checked = False

    def pack(self, lane: int, term: int, seq: int, after: tuple[int, int] | None, items: Sequence[LaneItem]) -> Parcel:
        """See ports.Sink. A packed parcel is one record, of up to 256 KiB; a cloudevents parcel is one event."""
        rejected: list[Rejection] = []
        taken = 0
        data: bytes | None
        while taken < len(items):
            if self._format == "packed":
                data, count = pack_record(
                    self._pipeline, lane, term, seq, after, items[taken:], compression=self._compression
                )
            else:
                data, count = self._one_event(items[taken])
            taken += count
            if data is None:  # a marker, which other readers have no use for
                continue
            if _fits(data, lane):
                size = len(data) + len(partition_key(lane))
                return Parcel(lane, term, seq, after, taken, self._body(lane, data), size, rejected)
            event = items[taken - 1]
            assert isinstance(event, ChangeEvent), "a marker is never large"
            claimed = self._claimed(lane, term, seq, after, event, len(data) + len(partition_key(lane)))
            if isinstance(claimed, _Claimed):
                return Parcel(lane, term, seq, after, taken, claimed, len(claimed.record), rejected, detour=True)
            rejected.append(Rejection(event.schema.table, event.key.decode(), claimed, event))
        return Parcel(lane, term, seq, after, taken, rejected=rejected)

    def _body(self, lane: int, data: bytes) -> bytes:
        return b'{"Data":"' + binascii.b2a_base64(data, newline=False) + self._suffixes[lane]

    def _claimed(
        self, lane: int, term: int, seq: int, after: tuple[int, int] | None, event: ChangeEvent, size: int
    ) -> _Claimed | str:
        """The large event's record without its row, and the row; or why it can never go."""
        reason = f"its record would have {size:,} bytes; a Kinesis record holds at most {RECORD_BYTES_MAX:,}"
        if event.row is None:
            return f"{reason}; a key can't go by way of the claim check"
        if self._claims is None:
            return f"{reason}; with destination.kinesis.claim_check it would go by way of S3"
        try:
            if self._format == "packed":
                upload = self._claims.upload(event, row_content(event, self._compression))
                record = pack_claimed(self._pipeline, lane, term, seq, after, event, upload.claim)
            else:
                upload = self._claims.upload(event, cloud_row(event))
                record = cloud_event(self._pipeline, event, upload.claim)
        except Rejected as error:
            return f"{reason}, and {error.message}"
        if not _fits(record, lane):
            return f"{reason}; a key can't go by way of the claim check"
        return _Claimed(upload, self._body(lane, record))

    def _one_event(self, item: LaneItem) -> tuple[bytes | None, int]:
        return (None if isinstance(item, Marker) else cloud_event(self._pipeline, item)), 1

    def send(self, parcels: Sequence[Parcel]) -> Sequence[TransientError | None]:
        """See ports.Sink. One PutRecords; the service takes or refuses each record by itself."""
        waiting = {parcel.lane: error for parcel in parcels if (error := self._uploaded(parcel)) is not None}
        if waiting:
            rest = [parcel for parcel in parcels if parcel.lane not in waiting]
            answers = dict(zip((parcel.lane for parcel in rest), self.send(rest), strict=True))
            return [waiting.get(parcel.lane) or answers[parcel.lane] for parcel in parcels]
        bodies = [parcel.body for parcel in parcels if parcel.body is not None]
        if not bodies:
            return [None] * len(parcels)
        try:
            answer = self._service.call("PutRecords", self._request(bodies))
        except UpwellError as error:
            raise explained(error, self._stream, self._service.region) from error
        if answer.get("FailedRecordCount", 0) == 0:
            return [None] * len(parcels)
        results = iter(answer["Records"])
        return [None if parcel.body is None else self._outcome(next(results)) for parcel in parcels]

    def _uploaded(self, parcel: Parcel) -> TransientError | None:
        """The row of a claimed event is in S3, and its parcel is like any other; or why it is not yet."""
        if not isinstance(parcel.body, _Claimed):
            return None
        assert self._claims is not None, "it made the claim"
        try:
            self._claims.put(parcel.body.upload)
        except TransientError as error:
            return error
        parcel.body, parcel.detour = parcel.body.record, False
        return None

    def _request(self, bodies: Sequence[bytes]) -> bytes:
        """The call's JSON, of up to 7 MB, copied once."""
        parts = [part for body in bodies for part in (b",", body)]
        return b"".join([self._prefix, *parts[1:], b"]}"])

    def _outcome(self, result: Mapping[str, Any]) -> TransientError | None:
        reason = result.get("ErrorCode")
        if not reason:
            return None
        if not passes_by_itself(reason):
            raise OperatorError(
                f"Kinesis refuses a record of the stream {self._stream}: {reason}.",
                code="UW-KS-004",
                remedy=f"aws kinesis describe-stream-summary --stream-name {self._stream}",
            )
        if throttles(reason):
            message = f"A shard of the stream {self._stream} takes no more at the moment."
            return TransientError(message, throttled=True, code="UW-KS-003")
        return TransientError(f"Kinesis could not store a record ({reason}).", code="UW-KS-005")

    def prepare(self, schemas: Sequence[TableSchema]) -> None:
        """Once: the stream is there and takes records. Who may not ask finds out by sending."""
        if self._checked:
            return
        try:
            status = stream_status(self._service, self._stream)
        except OperatorError as error:
            if error.code != "UW-AWS-004":
                raise
            status = "ACTIVE"
        if status == "CREATING":
            raise TransientError(f"The Kinesis stream {self._stream} is still being created.", code="UW-KS-002")
        if status == "DELETING":
            raise no_such_stream(self._stream, self._service.region)
        self._checked = True

    def sweep(self, schema: TableSchema, before: Version) -> int:
        """Never called: resyncs are opened and closed in the stream."""
        raise NotImplementedError("a stream has nothing to sweep: carries_markers")

    def close(self) -> None:
        """Free connections; never raises."""
        self._service.close()
        if self._claims is not None:
            self._claims.close()


def stream_status(service: JsonService, stream: str) -> str:
    """CREATING, ACTIVE, UPDATING or DELETING. Raises OperatorError, with how to create it, where there is none."""
    try:
        return _status(service, stream)
    except UpwellError as error:
        raise explained(error, stream, service.region) from error


def _status(service: JsonService, stream: str) -> str:
    try:
        answer = service.call("DescribeStreamSummary", {"StreamName": stream})
        return str(answer["StreamDescriptionSummary"]["StreamStatus"])
    except ServiceRefusal as refusal:
        if refusal.reason != "UnknownOperationException":
            raise
    answer = service.call("DescribeStream", {"StreamName": stream, "Limit": 1})  # stand-ins know only this one
    return str(answer["StreamDescription"]["StreamStatus"])


def explained(error: UpwellError, stream: str, region: str) -> UpwellError:
    """The error with what is known here: the stream's name, and that a refusal of the request stops everything."""
    if isinstance(error, ResourceMissing):
        return no_such_stream(stream, region)
    if isinstance(error, ServiceRefusal):
        return OperatorError(
            f"Kinesis refuses the request for the stream {stream}: {error.message}",
            code="UW-KS-004",
            remedy=f"aws kinesis describe-stream-summary --stream-name {stream} --region {region}",
        )
    return error


def _fits(data: bytes, lane: int) -> bool:
    return len(data) + len(partition_key(lane)) <= RECORD_BYTES_MAX
