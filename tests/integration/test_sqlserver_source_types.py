"""Every type of SQL Server on its way, with both drivers: full precision, and the same bytes from chunk and window."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.contract.source_contract import EPOCH, Replica, wait_for_chunk
from tests.integration.sqlserver_shop import Shop, open_shop, selections
from upwell.sources.sqlserver_session import Driver
from upwell.sources.sqlserver_setup import track

# type → values as T-SQL has them, and as the wire does
TYPES: dict[str, list[tuple[str, Any]]] = {
    "bit": [("0", False), ("1", True)],
    "tinyint": [("0", 0), ("255", 255)],
    "smallint": [("-32768", -32768)],
    "int": [("-2147483648", -(2**31)), ("2147483647", 2**31 - 1)],
    "bigint": [("9007199254740992", 2**53), ("9007199254740993", "9007199254740993"),
               ("-9223372036854775808", "-9223372036854775808")],
    "decimal(38,10)": [("1234567890123456789012345678.0123456789", "1234567890123456789012345678.0123456789"),
                       ("-0.0000000001", "-0.0000000001"), ("0", "0.0000000000")],
    "decimal(38,0)": [("99999999999999999999999999999999999999", "99999999999999999999999999999999999999")],
    "numeric(5,2)": [("12.5", "12.50")],
    "money": [("922337203685477.5807", "922337203685477.5807"), ("-0.0001", "-0.0001"), ("1234.5", "1234.5000")],
    "smallmoney": [("-214748.3648", "-214748.3648")],
    "float": [("0.1", 0.1), ("1.7976931348623157E308", 1.7976931348623157e308), ("5E-324", 5e-324), ("1e16", 1e16)],
    "real": [("0.1", 0.1), ("3.4028235E38", 3.4028235e38), ("16777216", 16777216.0)],
    "char(5)": [("'ab'", "ab   ")],
    "varchar(20)": [("'it''s'", "it's"), ("''", "")],
    "nchar(4)": [("N'ä'", "ä   ")],
    "nvarchar(40)": [("N'日本 🙂 \"\\/'", '日本 🙂 "\\/'), ("N'trailing  '", "trailing  ")],
    "nvarchar(max)": [("REPLICATE(CONVERT(nvarchar(max), N'ä🙂'), 20000)", "ä🙂" * 20000)],
    "binary(4)": [("0x01FF", "Af8AAA==")],
    "varbinary(20)": [("0x", ""), ("0x00FF10", "AP8Q")],
    "varbinary(max)": [("CONVERT(varbinary(max), 0x010203)", "AQID")],
    "date": [("'0001-01-01'", "0001-01-01"), ("'9999-12-31'", "9999-12-31")],
    "time(7)": [("'23:59:59.9999999'", "23:59:59.9999999"), ("'10:00'", "10:00:00.0000000")],
    "time(0)": [("'10:00:01'", "10:00:01")],
    "smalldatetime": [("'2026-01-31 10:01'", "2026-01-31T10:01:00")],
    "datetime": [("'2026-01-31 10:00:00.123'", "2026-01-31T10:00:00.123")],
    "datetime2(7)": [("'0001-01-01 00:00:00.0000001'", "0001-01-01T00:00:00.0000001"),
                     ("'9999-12-31 23:59:59.9999999'", "9999-12-31T23:59:59.9999999"),
                     ("'2026-01-31 10:00:00'", "2026-01-31T10:00:00.0000000")],
    "datetime2(3)": [("'2026-01-31 10:00:00.120'", "2026-01-31T10:00:00.120")],
    "datetime2(0)": [("'2026-01-31 10:00:00'", "2026-01-31T10:00:00")],
    "datetimeoffset(7)": [("'2026-01-31 10:00:00.1234567 +02:00'", "2026-01-31T10:00:00.1234567+02:00"),
                          ("'2026-01-31 10:00:00.1234567 -11:30'", "2026-01-31T10:00:00.1234567-11:30"),
                          ("'2026-01-31 10:00:00 +00:00'", "2026-01-31T10:00:00.0000000Z")],
    "uniqueidentifier": [("'0E984725-C51C-4BF4-9960-E1C80E27ABA0'", "0e984725-c51c-4bf4-9960-e1c80e27aba0")],
    "xml": [("N'<a b=\"1\">ä</a>'", '<a b="1">ä</a>')],
}  # fmt: skip


@pytest.fixture(params=["mssql-python", "python-tds"])
def shop(sqlserver: str, request: pytest.FixtureRequest) -> Iterator[Shop]:
    driver: Driver = request.param
    with open_shop(sqlserver, driver) as shop:
        yield shop


def test_every_type_travels_with_all_its_digits_and_the_same_by_both_ways(shop: Shop) -> None:
    columns = ", ".join(f"c{n} {type_} NULL" for n, type_ in enumerate(TYPES))
    shop.tracked("every", create=f"CREATE TABLE {{}} (id int NOT NULL PRIMARY KEY, {columns})")
    replica = shop.replica("every")
    rounds = max(map(len, TYPES.values()))
    for n in range(rounds):
        values = ", ".join(known[n % len(known)][0] for known in TYPES.values())
        shop.run(f"INSERT INTO every VALUES ({n}, {values})")
    shop.run("INSERT INTO every (id) VALUES (99)")
    replica.take_window()
    streamed = {event.key: event.row for window in replica.windows for event in window.events}
    for n in range(rounds):
        row = orjson.loads(streamed[b"[%d]" % n] or b"")
        wrong = {
            type_: (found, known[n % len(known)][1])
            for (type_, known), found in zip(TYPES.items(), row[1:], strict=True)
            if orjson.dumps(found) != orjson.dumps(known[n % len(known)][1])
        }
        assert not wrong
    assert orjson.loads(streamed[b"[99]"] or b"")[1:] == [None] * len(TYPES)
    chunk = wait_for_chunk(replica, replica.windows[0].schemas[0])
    assert dict(chunk.rows) == streamed


# type → keys in the order of their literals, not of the server
KEYS = {
    "int": ["3", "-1", "2147483647", "0"],
    "bigint": ["9223372036854775807", "-9223372036854775808", "0"],
    "decimal(20,5)": ["1.50000", "-7", "1.49999"],
    "money": ["1.0001", "-3"],
    "float": ["0.1", "1e300", "-5e-324"],
    "nvarchar(30)": ["N'b'", "N'a'", "N'ä'", "N'z'", "N'it''s ?'", "N'日本'"],
    "varchar(30)": ["'b'", "'a'", "'z'"],
    "varbinary(8)": ["0x01", "0xFF00", "0x0002"],
    "date": ["'2026-01-31'", "'0001-01-01'"],
    "time(7)": ["'10:00:00.1234567'", "'10:00:00.1234566'"],
    "datetime": ["'2026-01-31 10:00:00.123'", "'2026-01-31 10:00:00.127'"],
    "datetime2(7)": ["'2026-01-31 10:00:00.1234567'", "'2026-01-31 10:00:00.1234566'"],
    "datetimeoffset(7)": ["'2026-01-31 10:00:00.1234567 +02:00'", "'2026-01-31 10:00:00.1234567 +01:00'"],
    "uniqueidentifier": ["'00000000-0000-0000-0000-010000000000'", "'01000000-0000-0000-0000-000000000000'",
                         "'00000000-0000-0000-0100-000000000000'", "'FFFFFFFF-FFFF-FFFF-0000-000000000000'"],
}  # fmt: skip


def test_keys_of_every_type_are_read_in_the_servers_own_order(shop: Shop) -> None:
    """A row at a time: what comes after a key is asked of the server with that key as a parameter."""
    for n, (type_, keys) in enumerate(KEYS.items()):
        shop.run(f"CREATE TABLE k{n} (v int, k {type_} NOT NULL, PRIMARY KEY (k))")
        shop.run(f"INSERT INTO k{n} (v, k) VALUES " + ", ".join(f"({i}, {key})" for i, key in enumerate(keys)))
    names = [f"k{n}" for n in range(len(KEYS))]
    track(shop.url, selections(*names), shop.driver)
    source = shop.source(*names)
    replica = Replica(source, *source.start(None, EPOCH), 0.0)
    replica.take_window()
    for n, (type_, keys) in enumerate(KEYS.items()):
        expected = [row[0] for row in shop.sql.all(f"SELECT v FROM k{n} ORDER BY k")]
        schema = next(schema for schema in source.tables() if schema.table == f"dbo.k{n}")
        found, cursor = [], None
        for _ in keys:
            chunk = source.chunk(schema, cursor, 1)
            assert chunk is not None
            found += [orjson.loads(row)[0] for _, row in chunk.rows]
            cursor = chunk.cursor
        assert found == expected, type_
        shop.run(f"UPDATE k{n} SET v = v + 100")
        seen = [orjson.loads(event.row or b"")[0] for _ in keys for event in replica.take_window(limit=1).events]
        assert sorted(seen) == [100 + i for i in range(len(keys))], type_
        replica.take_all()
