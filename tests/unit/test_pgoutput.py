"""The pgoutput decoder against a plain encoder and a plain idea of what the messages mean."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.model import Column, Kind, TableSchema, unpack_version
from upwell.sources.pgoutput import (
    Decoder,
    Relation,
    RelationColumn,
    Table,
    Values,
    format_lsn,
    iso_time,
    parse_lsn,
    parse_relation,
)

EPOCH = 7
ITEM, IGNORED = 11, 12
ITEMS = TableSchema(
    "public.item",
    (Column("id", "integer", Kind.INT), Column("name", "text", Kind.TEXT), Column("big", "text", Kind.TEXT)),
    ("id",),
    "postgresql",
)

Cell = str | None  # what a column prints; None: NULL
TOAST = "\x00unchanged"  # stands for a value that the message does not repeat


# --- the messages, as the documentation has them


def xlog(body: bytes) -> bytes:
    return b"w" + bytes(24) + body


def begin(commit: int, xid: int, micros: int = 0) -> bytes:
    return xlog(b"B" + struct.pack(">QqI", commit, micros, xid))


def commit(end: int) -> bytes:
    return xlog(b"C" + struct.pack(">BQQq", 0, end - 8, end, 0))


def keepalive(end: int, reply: bool = False) -> bytes:
    return b"k" + struct.pack(">QqB", end, 0, reply)


def relation(oid: int = ITEM, name: str = "item", identity: str = "d") -> bytes:
    columns = b"".join(
        struct.pack(">B", key) + column.encode() + b"\0" + struct.pack(">Ii", 25, -1)
        for column, key in (("id", 1), ("name", 0), ("secret", 0), ("big", 0))
    )
    head = b"R" + struct.pack(">I", oid) + b"public\0" + name.encode() + b"\0" + identity.encode()
    return xlog(head + struct.pack(">H", 4) + columns)


def row(cells: Sequence[Cell]) -> bytes:
    out = struct.pack(">H", len(cells))
    for cell in cells:
        if cell is None:
            out += b"n"
        elif cell == TOAST:
            out += b"u"
        else:
            text = cell.encode()
            out += b"t" + struct.pack(">I", len(text)) + text
    return out


def insert(cells: Sequence[Cell], oid: int = ITEM) -> bytes:
    return xlog(b"I" + struct.pack(">I", oid) + b"N" + row(cells))


def update(old: tuple[bytes, Sequence[Cell]] | None, new: Sequence[Cell], oid: int = ITEM) -> bytes:
    before = b"" if old is None else old[0] + row(old[1])
    return xlog(b"U" + struct.pack(">I", oid) + before + b"N" + row(new))


def delete(cells: Sequence[Cell], oid: int = ITEM) -> bytes:
    return xlog(b"D" + struct.pack(">I", oid) + b"K" + row(cells))


def truncate(*oids: int) -> bytes:
    return xlog(b"T" + struct.pack(f">IB{len(oids)}I", len(oids), 0, *oids))


# --- a decoder of one table, whose column `secret` is not wanted


@dataclass
class Reader:
    returned: tuple[int, int] = (0, 0)
    fetched: list[tuple[list[str], list[str], int]] = field(default_factory=list)
    found: Values | None = None

    def __post_init__(self) -> None:
        self.decoder = Decoder(EPOCH, 0, self._resolve, self._fetch, known={}, returned=self.returned)
        self.feed(relation(), relation(IGNORED, "ignored"))

    def _resolve(self, relation: Relation) -> Table | None:
        return Table(ITEMS, [int, bytes.decode, None, bytes.decode]) if relation.oid == ITEM else None

    def _fetch(self, table: Table, key: Sequence[str], names: Sequence[str], xid: int) -> Values | None:
        self.fetched.append((list(key), list(names), xid))
        return self.found

    def feed(self, *messages: bytes) -> "Reader":
        for message in messages:
            assert not self.decoder.feed(message)
        return self

    def brief(self) -> list[tuple[Any, ...]]:
        """(operation, key, row, columns, ordinal) of each event."""
        return [
            (
                event.operation,
                event.key.decode(),
                event.row and event.row.decode(),
                "".join(column.name[0] for column in event.schema.columns),
                unpack_version(event.version)[2],
            )
            for event in self.decoder.take().events
        ]


CELLS = st.tuples(
    st.integers(-(2**31), 2**31 - 1).map(str),
    st.none() | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    st.none() | st.text("xyz", max_size=3),
    st.none() | st.text(max_size=3).filter(lambda text: "\x00" not in text and text.isprintable()),
)


def plain(cells: Sequence[Cell]) -> str:
    """The row on the wire, written the slow way."""
    id_, name, _, big = cells
    assert id_ is not None
    return orjson.dumps([int(id_), name, big]).decode()


@given(st.lists(st.lists(CELLS, max_size=4), max_size=4))
def test_inserts_of_any_text_in_any_transactions(transactions: list[list[tuple[Cell, ...]]]) -> None:
    reader = Reader()
    expected = []
    for number, rows in enumerate(transactions, 1):
        reader.feed(begin(number * 100, number), *(insert(cells) for cells in rows), commit(number * 100 + 50))
        expected += [
            ("u", f"[{cells[0]}]".replace("[-0]", "[0]"), plain(cells), "inb", ordinal)
            for ordinal, cells in enumerate(rows, 1)
        ]
        assert reader.decoder.position == number * 100 + 50
    assert reader.brief() == expected


def test_versions_and_times_come_from_begin() -> None:
    reader = Reader().feed(begin(0x1_0000_0001, 99, 1_000_001), insert(("1", None, None, None)))
    (event,) = reader.decoder.take().events
    assert unpack_version(event.version) == (EPOCH, 0x1_0000_0001, 1)
    assert event.time == "2000-01-01T00:00:01.000001Z"
    assert event.transaction == 99
    assert event.was == "insert"


def test_tables_that_are_not_wanted_count() -> None:
    """Else an event's version would depend on the configuration of the moment."""
    reader = Reader().feed(begin(100, 1))
    reader.feed(insert(("1", None, None, None), IGNORED))
    reader.feed(update((b"K", ("1", None, None, None)), ("2", None, None, None), IGNORED))
    reader.feed(delete(("2", None, None, None), IGNORED), insert(("9", "x", "s", "b")))
    assert reader.brief() == [("u", "[9]", '[9,"x","b"]', "inb", 5)]


def test_the_old_row_counts_whether_or_not_the_key_changed() -> None:
    reader = Reader().feed(begin(100, 1))
    reader.feed(update((b"O", ("1", "a", None, "b")), ("1", "A", None, "b")))
    reader.feed(update((b"K", ("1", None, None, None)), ("2", "A", None, "b")))
    assert reader.brief() == [
        ("u", "[1]", '[1,"A","b"]', "inb", 2),
        ("d", "[1]", None, "inb", 3),
        ("u", "[2]", '[2,"A","b"]', "inb", 4),
    ]


def test_unchanged_values_make_a_partial_row_or_come_from_the_old_one() -> None:
    reader = Reader().feed(begin(100, 1))
    reader.feed(update(None, ("1", "a", "s", TOAST)), update(None, ("1", "a", TOAST, "b")))
    reader.feed(update((b"O", ("1", "a", "s", "old")), ("1", "A", TOAST, TOAST)))
    assert reader.brief() == [
        ("u", "[1]", '[1,"a"]', "in", 1),
        ("u", "[1]", '[1,"a","b"]', "inb", 2),
        ("u", "[1]", '[1,"A","old"]', "inb", 4),
    ]


def test_the_same_columns_missing_are_the_same_schema() -> None:
    reader = Reader().feed(begin(100, 1), *[update(None, ("1", "a", "s", TOAST))] * 2)
    first, second = reader.decoder.take().events
    assert first.schema is second.schema
    assert first.schema.partial


@pytest.mark.parametrize("found", [["fetched"], None])
def test_a_moved_row_is_completed_or_left_to_its_delete(found: Values | None) -> None:
    reader = Reader(found=found).feed(begin(100, 42))
    reader.feed(update((b"K", ("1", None, None, None)), ("2", "a", TOAST, TOAST)))
    assert reader.fetched == [(["2"], ["big"], 42)]
    moved = [("u", "[2]", '[2,"a","fetched"]', "inb", 2)] if found else []
    assert reader.brief() == [("d", "[1]", None, "inb", 1), *moved]


def test_what_changed_is_known_where_the_whole_old_row_is() -> None:
    reader = Reader().feed(begin(100, 1))
    reader.feed(update((b"O", ("1", "a", "s", None)), ("1", "a", "t", "b")), update(None, ("1", "z", "t", "b")))
    assert [event.changed for event in reader.decoder.take().events] == [("big",), None]


def test_rows_that_can_not_be_read_are_set_aside_without_their_values() -> None:
    reader = Reader().feed(begin(100, 1))
    broken = insert(("7", "x", None, None)).replace(b"\x00\x00\x00\x01x", b"\x00\x00\x00\x01\xff")
    reader.feed(broken, insert(("seven", "x", None, None)), insert(("8", "x", None, None)), delete((None,) * 4))
    taken = reader.decoder.take()
    assert [event.key for event in taken.events] == [b"[8]"]
    assert [(each.table, each.key, each.reason) for each in taken.rejected] == [
        ("public.item", "[7]", "column name holds bytes that are not UTF-8"),
        ("public.item", "[null]", "column id is not of its type"),
        ("public.item", "[null]", "the log does not hold the row's key; see REPLICA IDENTITY"),
    ]


def test_the_old_row_of_an_update_may_be_the_one_that_can_not_be_read() -> None:
    reader = Reader().feed(begin(100, 1))
    reader.feed(update((b"O", ("x", "a", "s", "b")), ("1", "a", "s", "b")))
    reader.feed(update((b"O", ("1", "a", "s", "b")), ("x", "a", "s", "b")))
    assert [each.reason for each in reader.decoder.take().rejected] == ["column id is not of its type"] * 2


@given(st.integers(0, 12))
def test_what_was_returned_of_an_unfinished_transaction_does_not_come_again(returned: int) -> None:
    messages = [
        insert(("1", "a", None, "b")),
        update((b"K", ("1", None, None, None)), ("2", "a", None, "b")),
        update((b"O", ("2", "a", None, "b")), ("2", "b", None, "b")),
        insert(("3", None, None, None), IGNORED),
        update(None, ("2", "c", None, TOAST)),
        delete(("2", None, None, None)),
        insert(("4", "\udcff".encode("utf-8", "surrogatepass").decode("latin-1"), None, None)),
    ]
    whole = Reader().feed(begin(100, 1), *messages, commit(200), begin(300, 2), *messages).brief()
    again = Reader(returned=(100, returned)).feed(begin(100, 1), *messages, commit(200), begin(300, 2), *messages)
    first = [event for event in whole[: len(whole) // 2] if event[4] > returned]
    # Both halves of a moved row have been returned, or neither: windows end between messages.
    if returned != 2:
        assert again.brief() == first + whole[len(whole) // 2 :]


def test_keepalives_move_the_position_between_transactions_only() -> None:
    reader = Reader().feed(keepalive(50))
    assert reader.decoder.position == 50
    reader.feed(begin(100, 1), keepalive(90), insert(("1", None, None, None)), keepalive(95))
    assert reader.decoder.position == 50
    reader.feed(commit(120), keepalive(110))
    assert reader.decoder.position == 120
    assert reader.decoder.feed(keepalive(130, reply=True))
    assert reader.decoder.position == 130


def test_truncate_names_the_tables_that_are_wanted() -> None:
    reader = Reader().feed(begin(100, 1), truncate(IGNORED, ITEM))
    assert reader.decoder.take().resync == [("public.item", "TRUNCATE")]


def test_schemas_are_told_when_they_are_new() -> None:
    reader = Reader()
    assert reader.decoder.take().schemas == [ITEMS]
    reader.feed(relation())
    assert reader.decoder.take().schemas == []


def test_messages_of_no_interest_and_of_no_known_kind() -> None:
    reader = Reader().feed(begin(100, 1), xlog(b"M" + bytes(20)), xlog(b"O" + bytes(9)), xlog(b"Y" + bytes(9)))
    assert reader.brief() == []
    with pytest.raises(ValueError, match="unknown replication message"):
        reader.decoder.feed(b"z")


@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**30), min_size=1))
def test_the_newest_transaction_id_wherever_the_circle_turns(start: int, ages: list[int]) -> None:
    reader = Reader()
    for number, age in enumerate(ages, 1):
        reader.feed(begin(number * 100, (start + age) % 2**32), commit(number * 100 + 50))
    assert reader.decoder.newest_xid == (start + max(ages)) % 2**32


def test_relations() -> None:
    assert parse_relation(relation(5, "ü", "i")[26:], 0) == Relation(
        5,
        "public",
        "ü",
        "i",
        (
            RelationColumn("id", 25, -1, True),
            RelationColumn("name", 25, -1, False),
            RelationColumn("secret", 25, -1, False),
            RelationColumn("big", 25, -1, False),
        ),
    )


@given(st.integers(0, 2**64 - 1))
def test_lsn_round_trip(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


def test_times() -> None:
    assert iso_time(0) == "2000-01-01T00:00:00.000000Z"
    assert iso_time(-1) == "1999-12-31T23:59:59.999999Z"
