"""Events to bytes and back: the only wire format. docs/wire.md describes it for other readers.

A packed record is UTF-8 JSON Lines: a header, then one line for each event or marker of one lane, in order. It is
self-describing: the header carries the schema of every table that its lines refer to. With zstd the whole record
is one zstd frame, known by its magic number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import orjson
import zstandard

from upwell.claims import CONTENT_BYTES_MAX, Claim
from upwell.errors import Rejected
from upwell.model import (
    DELETE,
    UPSERT,
    ChangeEvent,
    LaneItem,
    LaneRecord,
    Marker,
    Operation,
    TableSchema,
    Value,
    Version,
)

FORMAT_VERSION = 1
# Packed records are not built beyond this; only one event that is larger by itself makes a larger record.
PACKED_BYTES_MAX = 256 * 1024
LETTER_BYTES_MAX = 1024 * 1024
# What a record may unpack to: a guard against a small record that unpacks to all of the memory.
UNPACKED_BYTES_MAX = 64 * 1024 * 1024
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_HEADER_ROOM = 256  # bytes of a header without its schemas, about

Compression = Literal["none", "zstd"]

_WAS_HINT = {was: b',{"was":"' + was.encode() + b'"}]' for was in ("insert", "update", "read")}


class ReceivedEvent(NamedTuple):
    """A change event as a subscriber sees it: its values are decoded."""

    schema: TableSchema
    operation: Operation
    version: Version
    time: str
    key: tuple[Value, ...]
    values: list[Value]  # the row in the order of the schema's columns; of a delete the key; of a claimed row nothing
    claim: Claim | None = None  # where the row waits that was too large for the stream


def event_line(item: LaneItem) -> bytes:
    """The item's line in a packed record, without the line's end."""
    if isinstance(item, Marker):
        return orjson.dumps(["m", item.schema.hash, item.phase, item.resync, item.lanes])
    head = b'["%b","%b","%b","%b",' % (
        item.operation.encode(),
        item.schema.hash.encode(),
        item.version.hex().encode(),
        item.time.encode(),
    )
    if item.row is None:
        return head + item.key + b"]"
    return head + item.row + _hints(item)


def _hints(event: ChangeEvent) -> bytes:
    """The rest of an upsert's line."""
    if event.changed is not None or event.context is not None:
        hints = {"was": event.was, "changed": event.changed, "context": event.context}
        return b"," + orjson.dumps({name: hint for name, hint in hints.items() if hint is not None}) + b"]"
    return _WAS_HINT[event.was]


def row_content(event: ChangeEvent, compression: Compression = "none") -> bytes:
    """What of an upsert's row goes to S3 where it is too large for a record: the row's JSON array."""
    assert event.row is not None, "a delete has no row"
    return _compressed(event.row) if compression == "zstd" else event.row


def pack_record(
    pipeline: str,
    lane: int,
    term: int,
    seq: int,
    after: tuple[int, int] | None,
    items: Sequence[LaneItem],
    compression: Compression = "none",
) -> tuple[bytes, int]:
    """The record of as many of `items`, from the front, as fit PACKED_BYTES_MAX uncompressed, at least one; and how
    many those are.
    """
    schemas: dict[str, TableSchema] = {}
    lines: list[bytes] = []
    size = _HEADER_ROOM
    for item in items:
        line = event_line(item)
        size += len(line) + 1
        schema = item.schema
        if schema.hash not in schemas:
            size += _schema_size(schema)
        if lines and size > PACKED_BYTES_MAX:
            break
        schemas[schema.hash] = schema
        lines.append(line)
    data = b"\n".join([_header(pipeline, lane, term, seq, after, schemas.values()), *lines, b""])
    if compression == "zstd":
        data = _compressed(data)
    return data, len(lines)


def pack_claimed(
    pipeline: str, lane: int, term: int, seq: int, after: tuple[int, int] | None, event: ChangeEvent, claim: Claim
) -> bytes:
    """The record of one upsert whose row waits in S3."""
    where = b'{"key":%b,%b' % (event.key, orjson.dumps(claim._asdict())[1:])
    line = event_line(event._replace(row=where))
    return b"\n".join([_header(pipeline, lane, term, seq, after, [event.schema]), line, b""])


def _compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data)


def letter_payload(pipeline: str, event: ChangeEvent, claim: Claim | None = None) -> bytes:
    """What is kept of an event that is put aside: a packed record of its own; nothing where that would be very large.

    The source has the row, and what is replayed is read from there.
    """
    if claim is not None:
        return pack_claimed(pipeline, 0, 0, 0, None, event, claim)
    data, _ = pack_record(pipeline, 0, 0, 0, None, [event])
    return data if len(data) <= LETTER_BYTES_MAX else b""


def _schema_size(schema: TableSchema) -> int:
    return 32 + 64 * len(schema.columns) + len(schema.table)


def _header(
    pipeline: str, lane: int, term: int, seq: int, after: tuple[int, int] | None, schemas: Iterable[TableSchema]
) -> bytes:
    header: dict[str, Any] = {"upwell": FORMAT_VERSION, "pipeline": pipeline, "lane": lane, "term": term, "seq": seq}
    if after is not None:
        header["after"] = after
    header["schemas"] = {schema.hash: schema.to_wire() for schema in schemas}
    return orjson.dumps(header)


def unpack_record(data: bytes) -> LaneRecord[ReceivedEvent | Marker]:
    """Reads `pack_record`. Raises Rejected for anything else: such bytes can never be applied."""
    try:
        header_line, *lines = _unpacked(data).split(b"\n")
        header = orjson.loads(header_line)
        if header["upwell"] != FORMAT_VERSION:
            raise Rejected(f"The record has format version {header['upwell']}; this subscriber reads {FORMAT_VERSION}.")
        schemas = {name: TableSchema.from_wire(wire) for name, wire in header["schemas"].items()}
        after = header.get("after")
        return LaneRecord(
            pipeline=header["pipeline"],
            lane=header["lane"],
            term=header["term"],
            seq=header["seq"],
            after=None if after is None else (after[0], after[1]),
            items=[_received(orjson.loads(line), schemas, header["lane"]) for line in lines if line],
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, zstandard.ZstdError) as error:
        raise Rejected(f"The record is not a packed upwell record ({type(error).__name__}).") from error


def unpacked_size(data: bytes) -> int:
    """How many bytes the record has uncompressed, without doing that; as it is where that can't be known."""
    if not data.startswith(_ZSTD_MAGIC):
        return len(data)
    try:
        return max(len(data), zstandard.frame_content_size(data))  # -1: the frame does not say
    except zstandard.ZstdError:
        return len(data)


def redeemed(event: ReceivedEvent, content: bytes) -> ReceivedEvent:
    """A claimed event with its row, of what `row_content` gave. Raises Rejected where it is not this event's row."""
    try:
        values = orjson.loads(_unpacked(content, CONTENT_BYTES_MAX))
        if len(values) == len(event.schema.columns):
            key = tuple([values[index] for index in event.schema.key_indexes])
            if key == event.key:
                return event._replace(values=values, claim=None)
    except (ValueError, TypeError, KeyError, zstandard.ZstdError):
        pass
    raise Rejected("what the claim check holds for it is not its row")


def _unpacked(data: bytes, bytes_max: int = UNPACKED_BYTES_MAX) -> bytes:
    if not data.startswith(_ZSTD_MAGIC):
        return data
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=bytes_max)


def _received(line: list[Any], schemas: dict[str, TableSchema], lane: int) -> ReceivedEvent | Marker:
    operation = line[0]
    schema = schemas[line[1]]
    if operation == UPSERT:
        values = line[4]
        if isinstance(values, dict):
            key, claim = tuple(values["key"]), Claim.from_wire(values)
            if len(key) != len(schema.key):
                raise ValueError("a key has another number of values than its schema says")
            return ReceivedEvent(schema, UPSERT, bytes.fromhex(line[2]), line[3], key, [], claim)
        if len(values) != len(schema.columns):
            raise ValueError("a row has another number of values than its schema has columns")
        key = tuple([values[index] for index in schema.key_indexes])
        return ReceivedEvent(schema, UPSERT, bytes.fromhex(line[2]), line[3], key, values)
    if operation == DELETE:
        values = line[4]
        if len(values) != len(schema.key):
            raise ValueError("a key has another number of values than its schema says")
        return ReceivedEvent(schema, DELETE, bytes.fromhex(line[2]), line[3], tuple(values), values)
    if operation == "m":
        return Marker(schema, line[3], line[2], line[4], lane)
    raise ValueError("unknown kind of line")


def cloud_event(pipeline: str, event: ChangeEvent, claim: Claim | None = None) -> bytes:
    """The event as one CloudEvents 1.0 JSON document. A partial row has only the columns that it holds; one that
    waits in S3, as `cloud_row` gives it, has a claim in its place.
    """
    schema = event.schema
    key: list[Value] = orjson.loads(event.key)
    subject = "/".join([schema.table, *(quote(_key_text(value), safe="") for value in key)])
    version = event.version.hex()
    data: dict[str, Any] = {"version": version, "was": event.was, "key": dict(zip(schema.key, key, strict=True))}
    if claim is not None:
        data["claim"] = claim._asdict()
    elif event.row is not None:
        data["row"] = _named(event)
    if event.changed is not None:
        data["changed"] = event.changed
    if event.context is not None:
        data["context"] = event.context
    return orjson.dumps(
        {
            "specversion": "1.0",
            "id": f"{pipeline}/{version}/{subject}",
            "source": f"upwell:{pipeline}",
            "type": "upwell.upsert" if event.operation == UPSERT else "upwell.delete",
            "subject": subject,
            "time": event.time,
            "data": data,
        }
    )


def cloud_row(event: ChangeEvent) -> bytes:
    """What of an upsert's row goes to S3 where it is too large for a record of CloudEvents: a JSON object."""
    return orjson.dumps(_named(event))


def _named(event: ChangeEvent) -> dict[str, Value]:
    return dict(zip((column.name for column in event.schema.columns), event.values(), strict=True))


def _key_text(value: Value) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
