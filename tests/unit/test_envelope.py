"""The wire format: golden files, so that what was published yesterday can be read tomorrow, and round trips."""

from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from upwell import envelope
from upwell.claims import Claim
from upwell.envelope import (
    Compression,
    ReceivedEvent,
    cloud_event,
    event_line,
    letter_payload,
    pack_claimed,
    pack_record,
    redeemed,
    row_content,
    unpack_record,
)
from upwell.errors import Rejected
from upwell.model import (
    DELETE,
    UPSERT,
    ChangeEvent,
    Column,
    Kind,
    LaneItem,
    LaneRecord,
    Marker,
    TableSchema,
    pack_version,
    unpack_version,
)

GOLDEN = Path(__file__).parent / "golden"
USERS = TableSchema(
    "dbo.users",
    (
        Column("id", "int", Kind.INT),
        Column("email", "nvarchar(200)", Kind.TEXT),
        Column("balance", "decimal(12,2)", Kind.DECIMAL),
    ),
    ("id",),
    "sqlserver",
)
ORDER_LINES = TableSchema(
    'sales."order lines"',
    (Column("line", "int", Kind.INT), Column("order", "varchar(20)", Kind.TEXT), Column("note", "text", Kind.TEXT)),
    ("order", "line"),
    "sqlserver",
    target="sales.lines",
)
TIME = "2026-01-31T10:00:00.1234567Z"
UPDATED = ChangeEvent(
    USERS, UPSERT, pack_version(1, 42, 1), TIME, b"[7]", b'[7,"a@example.com","12.50"]', "update", 99, ("balance",)
)
ITEMS: list[LaneItem] = [
    Marker(USERS, 1, "open", 64, 17),
    UPDATED,
    ChangeEvent(USERS, DELETE, pack_version(1, 43, 1), TIME, b"[8]", None, "delete", 99),
    ChangeEvent(
        ORDER_LINES.without(frozenset({"note"})),
        UPSERT,
        pack_version(1, 44, 2**32 - 1),
        TIME,
        '["Größe/1",2]'.encode(),
        '[2,"Größe/1"]'.encode(),
        "read",
    ),
    ChangeEvent(
        ORDER_LINES, UPSERT, pack_version(2**32 - 1, 2**64 - 1, 0), TIME, b'["o",1]', b'[1,"o",null]', "insert"
    ),
    Marker(USERS, 1, "close", 64, 17),
]
RECORD = LaneRecord("legacy-shop", 17, 4, 1, (3, 911), ITEMS)


def received(item: LaneItem) -> ReceivedEvent | Marker:
    """What a subscriber sees of it."""
    if isinstance(item, Marker):
        return item
    key = tuple(orjson.loads(item.key))
    return ReceivedEvent(item.schema, item.operation, item.version, item.time, key, item.values())


def test_a_packed_record_is_as_it_always_was() -> None:
    data, count = pack_record("legacy-shop", 17, 4, 1, (3, 911), ITEMS)
    assert count == len(ITEMS)
    assert data.decode() == (GOLDEN / "packed.jsonl").read_text("utf-8")


def test_what_was_packed_long_ago_is_read() -> None:
    record = unpack_record((GOLDEN / "packed.jsonl").read_bytes())
    assert record == LaneRecord("legacy-shop", 17, 4, 1, (3, 911), [received(item) for item in ITEMS])


def test_cloud_events_are_as_they_always_were() -> None:
    lines = [cloud_event("legacy-shop", item).decode() for item in ITEMS if isinstance(item, ChangeEvent)]
    assert "\n".join(lines) + "\n" == (GOLDEN / "cloudevents.jsonl").read_text("utf-8")


CLAIMED = Claim(
    "upwell/legacy-shop/00000001/00000001000000000000002a00000001/" + "5a" * 16 + "-" + "0f" * 8, "0f" * 32, 3_145_728
)


def test_a_claimed_row_is_as_it_always_was() -> None:
    data = pack_claimed("legacy-shop", 17, 4, 2, None, UPDATED, CLAIMED)
    assert data.decode() == (GOLDEN / "claimed.jsonl").read_text("utf-8")
    [event] = unpack_record((GOLDEN / "claimed.jsonl").read_bytes()).items
    assert event == ReceivedEvent(USERS, UPSERT, UPDATED.version, TIME, (7,), [], CLAIMED)
    cloud = cloud_event("legacy-shop", UPDATED, CLAIMED)
    assert cloud.decode() + "\n" == (GOLDEN / "claimed-cloudevent.jsonl").read_text("utf-8")


values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
names = st.text(min_size=1).filter(lambda name: name.isprintable())


@st.composite
def events(draw: st.DrawFn) -> ChangeEvent:
    columns = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    key = tuple(draw(st.permutations(columns))[: draw(st.integers(1, len(columns)))])
    schema = TableSchema(
        draw(names),
        tuple(Column(name, draw(names), draw(st.sampled_from(Kind))) for name in columns),
        key,
        "postgresql",
        draw(st.none() | names),
        draw(st.booleans()),
    )
    row = [draw(values) for _ in columns]
    key_json = orjson.dumps([row[index] for index in schema.key_indexes])
    version = pack_version(*(draw(st.integers(0, 2**bits - 1)) for bits in (32, 64, 32)))
    if draw(st.booleans()):
        return ChangeEvent(schema, DELETE, version, TIME, key_json, None, "delete")
    changed = draw(st.none() | st.just(tuple(columns)))
    was = draw(st.sampled_from(("insert", "update", "read")))
    return ChangeEvent(schema, UPSERT, version, TIME, key_json, orjson.dumps(row), was, 1, changed)  # type: ignore[arg-type]


@given(
    st.lists(events(), min_size=1, max_size=8),
    st.integers(0, 1023),
    st.none() | st.tuples(st.integers(0, 2**53), st.integers(0, 2**53)),
    st.sampled_from(("none", "zstd")),
)
def test_what_is_packed_is_unpacked(
    items: list[ChangeEvent], lane: int, after: tuple[int, int] | None, compression: Compression
) -> None:
    data, count = pack_record("pipe", lane, 3, 9, after, items, compression)
    assert count == len(items)
    assert unpack_record(data) == LaneRecord("pipe", lane, 3, 9, after, [received(item) for item in items])


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=30))
def test_records_are_cut_at_the_limit_and_nothing_falls_between_them(sizes: list[int]) -> None:
    schema = TableSchema("t", (Column("id", "text", Kind.TEXT),), ("id",), "sqlite")
    rows = [orjson.dumps(["x" * size]) for size in sizes]
    items = [ChangeEvent(schema, UPSERT, pack_version(1, 1, 0), TIME, row, row, "insert") for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelope, "PACKED_BYTES_MAX", 5000)
        seen: list[bytes] = []
        while len(seen) < len(items):
            data, count = pack_record("p", 0, 1, 1, None, items[len(seen) :])
            assert len(data) <= 5000 or count == 1
            seen += [orjson.dumps(item.values) for item in unpack_record(data).items if isinstance(item, ReceivedEvent)]
    assert seen == rows


def claimed(event: ChangeEvent) -> ReceivedEvent:
    [item] = unpack_record(pack_claimed("p", 0, 1, 1, None, event, CLAIMED)).items
    assert isinstance(item, ReceivedEvent)
    return item


@given(events().filter(lambda event: event.row is not None), st.sampled_from(("none", "zstd")))
def test_a_claimed_row_is_what_it_was(event: ChangeEvent, compression: Compression) -> None:
    item = claimed(event)
    assert item.claim == CLAIMED
    assert redeemed(item, row_content(event, compression)) == received(event)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"null", b"[7]", b'[8,"a@example.com","12.50"]', zstandard.compress(b"[1]")[:-3]]
)
def test_what_is_not_the_claimed_row_is_rejected(content: bytes) -> None:
    with pytest.raises(Rejected):
        redeemed(claimed(UPDATED), content)


def test_a_very_large_row_is_not_kept_with_its_dead_letter() -> None:
    small, large = (
        ChangeEvent(USERS, UPSERT, pack_version(1, 1, 1), TIME, b"[7]", orjson.dumps([7, "x" * size, "1"]), "insert")
        for size in (1_000, envelope.LETTER_BYTES_MAX)
    )
    assert len(unpack_record(letter_payload("p", small)).items) == 1
    assert letter_payload("p", large) == b""
    assert len(unpack_record(letter_payload("p", large, CLAIMED)).items) == 1


HEADER = '{"upwell":1,"pipeline":"p","lane":0,"term":1,"seq":1,"schemas":{"s":{"table":"t","key":["id"],"columns":[["id","int"]],"kinds":["int"],"dialect":"sqlite"}}}'  # noqa: E501 - one line of the format


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"[]",
        b"not JSON",
        HEADER.replace('"upwell":1', '"upwell":2').encode(),
        HEADER.replace('"lane":0,', "").encode(),
        HEADER.replace('["id","int"]', '["id"]').encode(),
        f'{HEADER}\n["u","s","{"0" * 32}","",[1,2]]'.encode(),
        f'{HEADER}\n["d","s","{"0" * 32}","",[1,2]]'.encode(),
        f'{HEADER}\n["u","s","{"0" * 32}","",{{"key":[1]}}]'.encode(),
        f'{HEADER}\n["u","s","{"0" * 32}","",{{"key":[1],"object":"o","sha256":"https://x","bytes":1}}]'.encode(),
        f'{HEADER}\n["u","s","{"0" * 32}","",{{"key":[1,2],"object":"o","sha256":"{"0" * 64}","bytes":1}}]'.encode(),
        f'{HEADER}\n["u","unknown","{"0" * 32}","",[1]]'.encode(),
        f'{HEADER}\n["u","s","xyz","",[1]]'.encode(),
        f'{HEADER}\n["?","s"]'.encode(),
        f'{HEADER}\n["u","s"'.encode(),
        zstandard.compress(b"{}") + b"rest",
        zstandard.compress(b"{}")[:-3],
        b"\x28\xb5\x2f\xfd" + b"rubbish",
    ],
)
def test_what_is_no_record_is_rejected(data: bytes) -> None:
    with pytest.raises(Rejected):
        unpack_record(data)


def test_a_small_record_can_not_fill_the_memory() -> None:
    bomb = zstandard.compress(bytes(envelope.UNPACKED_BYTES_MAX + 1))
    assert len(bomb) < 10_000
    with pytest.raises(Rejected):
        unpack_record(bomb)


@given(*[st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)) for _ in range(2)])
def test_versions_compare_as_their_parts(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert unpack_version(pack_version(*one)) == one
    assert (pack_version(*one) < pack_version(*other)) == (one < other)
    assert (pack_version(*one).hex() < pack_version(*other).hex()) == (one < other)


def test_what_a_writer_said_of_itself_is_a_hint_in_both_formats() -> None:
    event = UPDATED._replace(context="AQI=")
    assert event_line(event).endswith(b',{"was":"update","changed":["balance"],"context":"AQI="}]')
    assert event_line(event._replace(changed=None)).endswith(b',{"was":"update","context":"AQI="}]')
    assert orjson.loads(cloud_event("legacy-shop", event))["data"]["context"] == "AQI="
