"""What no client can see of the stand-in for SQL Server: the last digit of a moment, and where statements end."""

import struct

import pytest

from lab.sqlserver.errors import SqlError
from lab.sqlserver.flow import Flow
from lab.sqlserver.values import Reader, SqlType, encoder, read_parameter, type_info
from lab.sqlserver.words import Script

DAY = 864_000_000_000


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("datetime2(7)", str(DAY + 1), "08" + "0100000000" + "010000"),
        ("datetime2(3)", str(DAY + 20_000), "07" + "02000000" + "010000"),
        ("time(7)", str(DAY - 1), "05" + (DAY - 1).to_bytes(5, "little").hex()),
        ("datetimeoffset(7)", f"({DAY + 1},-90)", "0a" + "0100000000" + "010000" + "a6ff"),
        ("datetime", str((693_595 + 1) * DAY + 33_333), "08" + "01000000" + "01000000"),
        ("decimal(5,2)", "-1.5", "05" + "00" + "96000000"),
        ("decimal(38,0)", str(2**100), "11" + "01" + (2**100).to_bytes(16, "little").hex()),
        ("money", "-0.0001", "08" + "ffffffff" + "ffffffff"),
        ("uniqueidentifier", "00112233-4455-6677-8899-aabbccddeeff", "10" + "33221100554477668899aabbccddeeff"),
        ("nvarchar(5)", "\u00e9", "0200" + "e900"),
        ("nvarchar(max)", "", "00" * 8 + "00" * 4),
        ("int", None, "00"),
        ("nvarchar(max)", None, "ff" * 8),
    ],
)
def test_bytes_of_a_value(kind: str, text: str | None, expected: str) -> None:
    assert encoder(SqlType.parse(kind))(None if text is None else text.encode()).hex() == expected


@pytest.mark.parametrize("scale", range(8))
def test_a_moment_as_a_parameter_is_what_was_sent(scale: int) -> None:
    kind = SqlType("datetime2", scale=scale)
    ticks = 738_000 * DAY + 123 * 10 ** (7 - scale)
    sent = type_info(kind) + encoder(kind)(str(ticks).encode())
    assert read_parameter(Reader(sent)) == (kind, f"'{ticks}'::tds.datetime2({scale + 1})")


def test_a_message_that_is_too_short_is_no_value() -> None:
    with pytest.raises(ValueError, match="shorter"):
        read_parameter(Reader(struct.pack("<BBB", 0x26, 8, 8)))


def run(text: str, holds: bool = True) -> list[str]:
    done: list[str] = []
    Flow(Script(text), lambda statement, _: done.append(statement), lambda _: holds).run()
    return done


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1; SELECT 2", ["SELECT 1", "SELECT 2"]),
        ("SET NOCOUNT ON SELECT ';' AS [a;b]", ["SET NOCOUNT ON", "SELECT ';' AS [a;b]"]),
        ("SELECT CASE WHEN 1 = 1 THEN 2 ELSE 3 END x", ["SELECT CASE WHEN 1 = 1 THEN 2 ELSE 3 END x"]),
        ("SELECT 1 UNION ALL SELECT 2", ["SELECT 1 UNION ALL SELECT 2"]),
        ("INSERT INTO t SELECT 1 SELECT 2", ["INSERT INTO t SELECT 1", "SELECT 2"]),
        ("INSERT t VALUES (1) SELECT 2", ["INSERT t VALUES (1)", "SELECT 2"]),
        ("WITH c AS (SELECT 1 AS x) SELECT x FROM c", ["WITH c AS (SELECT 1 AS x) SELECT x FROM c"]),
        ("UPDATE t SET a = 1 DELETE t", ["UPDATE t SET a = 1", "DELETE t"]),
        ("BEGIN TRAN UPDATE t SET a = 1 COMMIT", ["BEGIN TRAN", "UPDATE t SET a = 1", "COMMIT"]),
        ("IF 1 = 1 BEGIN SELECT 1 SELECT 2 END ELSE SELECT 3", ["SELECT 1", "SELECT 2"]),
        ("IF EXISTS (SELECT 1) SELECT 1 -- SELECT 9", ["SELECT 1"]),
    ],
)
def test_where_a_statement_ends(text: str, expected: list[str]) -> None:
    assert run(text) == expected


def test_what_a_false_condition_leaves() -> None:
    assert run("IF 1 = 0 SELECT 1 ELSE IF 2 = 0 SELECT 2 ELSE SELECT 3; SELECT 4", holds=False) == [
        "SELECT 3",
        "SELECT 4",
    ]


@pytest.mark.parametrize("text", ["SELECT 'open", "BEGIN SELECT 1", "END"])
def test_what_is_no_batch(text: str) -> None:
    with pytest.raises(SqlError):
        run(text)
