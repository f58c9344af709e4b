"""What upwell relies on between a client and SQL Server: logins, exact values, the order of keys, ends in mid-way."""

import datetime
import threading
import time
import uuid
from decimal import Decimal

import pytest

from tests.contract.sqlserver_clients import Client, Refused, Tracked, connect, is_number, needs_hooks, tracked

AT_10_01 = datetime.datetime.fromisoformat("2026-01-31T10:01:00")
# (type, literal of T-SQL, what CONVERT says of it, what the client makes of it or None where clients differ)
VALUES: list[tuple[str, str, str, object]] = [
    ("tinyint", "255", "255", 255),
    ("smallint", "-32768", "-32768", -32768),
    ("int", "-2147483648", "-2147483648", -2147483648),
    ("bigint", "9223372036854775807", "9223372036854775807", 9223372036854775807),
    ("bit", "1", "1", True),
    ("decimal(38,10)", "1234567890123456789012345678.0123456789", "1234567890123456789012345678.0123456789",
     Decimal("1234567890123456789012345678.0123456789")),
    ("decimal(38,0)", "-99999999999999999999999999999999999999", "-99999999999999999999999999999999999999",
     Decimal("-99999999999999999999999999999999999999")),
    ("numeric(5,5)", "0.00001", "0.00001", Decimal("0.00001")),
    ("money", "-922337203685477.5808", "-922337203685477.5808", Decimal("-922337203685477.5808")),
    ("smallmoney", "214748.3647", "214748.3647", Decimal("214748.3647")),
    ("float", "1.7976931348623157E+308", "", 1.7976931348623157e308),
    ("real", "0.5", "", 0.5),
    ("date", "'0001-01-01'", "0001-01-01", datetime.date(1, 1, 1)),
    ("date", "'9999-12-31'", "9999-12-31", datetime.date(9999, 12, 31)),
    ("time(7)", "'23:59:59.9999999'", "23:59:59.9999999", None),
    ("time(0)", "'10:00:00'", "10:00:00", datetime.time(10)),
    ("datetime2(7)", "'0001-01-01T00:00:00.0000001'", "0001-01-01 00:00:00.0000001", None),
    ("datetime2(7)", "'9999-12-31T23:59:59.9999999'", "9999-12-31 23:59:59.9999999", None),
    ("datetime2(3)", "'2026-01-31T10:00:00.1235'", "2026-01-31 10:00:00.124",
     datetime.datetime.fromisoformat("2026-01-31T10:00:00.124")),
    ("datetime", "'2026-01-31T10:00:00.125'", "2026-01-31 10:00:00.127", None),
    ("smalldatetime", "'2026-01-31T10:00:31'", "2026-01-31 10:01:00", AT_10_01),
    ("datetimeoffset(7)", "'2026-01-31T10:00:00.1234567+02:30'", "2026-01-31 10:00:00.1234567 +02:30", None),
    ("datetimeoffset(0)", "'2026-01-31T01:00:00-14:00'", "2026-01-31 01:00:00 -14:00", None),
    ("uniqueidentifier", "'6F9619FF-8B86-D011-B42D-00C04FC964FF'", "6F9619FF-8B86-D011-B42D-00C04FC964FF",
     uuid.UUID("6F9619FF-8B86-D011-B42D-00C04FC964FF")),
    ("char(5)", "'ab'", "ab   ", "ab   "),
    ("varchar(10)", "'caf\u00e9'", "caf\u00e9", "caf\u00e9"),
    ("nvarchar(20)", "N'h\u00e9 \U0001f600 \u4e2d'", "h\u00e9 \U0001f600 \u4e2d", "h\u00e9 \U0001f600 \u4e2d"),
    ("nvarchar(max)", "N'x'", "x", "x"),
    ("varchar(max)", "''", "", ""),
    ("binary(4)", "0xAB", "", b"\xab\x00\x00\x00"),
    ("varbinary(10)", "0x", "", b""),
    ("varbinary(max)", "0xDEADBEEF", "", b"\xde\xad\xbe\xef"),
    ("xml", "N'<a>\u00e9</a>'", "<a>\u00e9</a>", "<a>\u00e9</a>"),
]  # fmt: skip
STYLES = {"money": 2, "smallmoney": 2, "date": 23, "smalldatetime": 120}


def identity(value: tuple[str, str, str, object]) -> str:
    return f"{value[0]} {value[2][:12].encode('ascii', 'replace').decode()}"


# --- who comes in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [True, False], ids=["all encrypted", "the login encrypted"])
def test_a_client_logs_in(client_name: str, sqlserver: str, encrypted: bool) -> None:
    client = connect(client_name, sqlserver, encrypted=encrypted)
    assert client.value("SELECT N'\u00e9' + N'x'") == "\u00e9x"
    client.close()


def test_a_wrong_password_is_refused(client_name: str, sqlserver: str) -> None:
    with pytest.raises(Refused) as refused:
        connect(client_name, sqlserver, password="wrong")
    assert is_number(refused.value.number, 18456) or "18456" in refused.value.text


def test_an_unknown_database_is_refused(client_name: str, sqlserver: str) -> None:
    with pytest.raises(Refused) as refused:
        connect(client_name, sqlserver, "no_such_database")
    assert is_number(refused.value.number, 4060, 18456) or "4060" in refused.value.text


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", VALUES, ids=identity)
def test_a_value_comes_back_as_it_went(mssql: Client, value: tuple[str, str, str, object]) -> None:
    kind, literal, text, expected = value
    name = f"v_{uuid.uuid4().hex[:10]}"
    mssql.run(f"CREATE TABLE [{name}] (id int NOT NULL PRIMARY KEY, v {kind} NULL)")
    mssql.run(f"INSERT INTO [{name}] VALUES (1, {literal}), (2, NULL)")
    style = STYLES.get(kind, 121)
    if text:
        with_style = f", {style}" if kind not in {"xml", "bit"} and "char" not in kind else ""
        converted = mssql.rows(f"SELECT CONVERT(nvarchar(max), v{with_style}) FROM [{name}] ORDER BY id")
        assert converted == [(text,), (None,)]
    found = mssql.rows(f"SELECT v FROM [{name}] ORDER BY id")
    assert found[1] == (None,)
    if expected is not None:
        assert (bytes(found[0][0]) if isinstance(expected, bytes) else found[0][0]) == expected


def test_a_long_text_and_many_rows(mssql: Client) -> None:
    long = "x\u00e9" * 40_000
    assert mssql.value("SELECT CONVERT(nvarchar(max), ?)", long) == long
    name = f"v_{uuid.uuid4().hex[:10]}"
    mssql.run(f"CREATE TABLE [{name}] (id int NOT NULL PRIMARY KEY, v nvarchar(100) NOT NULL)")
    for start in range(0, 5000, 1000):
        rows = ", ".join(f"({n}, N'{'v' * (n % 100)}')" for n in range(start, start + 1000))
        mssql.run(f"INSERT INTO [{name}] VALUES {rows}")
    assert mssql.rows(f"SELECT id, v FROM [{name}] ORDER BY id") == [(n, "v" * (n % 100)) for n in range(5000)]


@pytest.mark.parametrize("value", ["it's", "\u00e9 \u4e2d", "", "%s ? @p", "a" * 5000])
def test_texts_as_parameters(mssql: Client, value: str) -> None:
    assert mssql.rows("SELECT CONVERT(nvarchar(max), ?)", value) == [(value,)]


def test_numbers_and_bytes_as_parameters(mssql: Client) -> None:
    assert mssql.rows("SELECT CONVERT(bigint, ?), CONVERT(int, ?)", 2**53 + 1, -7) == [(2**53 + 1, -7)]
    ((found,),) = mssql.rows("SELECT CONVERT(varbinary(8), ?)", b"\x00\xff\x01")
    assert bytes(found) == b"\x00\xff\x01"


def test_methods_of_types(mssql: Client) -> None:
    name = f"v_{uuid.uuid4().hex[:10]}"
    mssql.run(
        f"CREATE TABLE [{name}] (id int NOT NULL PRIMARY KEY, h hierarchyid NULL, g geography NULL, p geometry NULL)"
    )
    mssql.run(
        f"INSERT INTO [{name}] VALUES (1, hierarchyid::Parse('/1/2/'), geography::Point(47.5, 8.5, 4326),"
        " geometry::STGeomFromText('POINT (1 2)', 0))"
    )
    ((path, there, point),) = mssql.rows(
        f"SELECT t.h.ToString(), t.g.STAsBinary(), t.p.STAsBinary() FROM [{name}] AS t"
    )
    assert path == "/1/2/"
    assert bytes(there).hex() == "0101000000" + "0000000000002140" + "0000000000c04740"
    assert bytes(point).hex() == "0101000000" + "000000000000f03f" + "0000000000000040"


def test_a_sql_variant_says_what_it_is(mssql: Client) -> None:
    name = f"v_{uuid.uuid4().hex[:10]}"
    mssql.run(f"CREATE TABLE [{name}] (id int NOT NULL PRIMARY KEY, v sql_variant NULL)")
    values = "(1, CAST(5 AS bigint)), (2, N'text'), (3, CAST('2026-01-31' AS date)), (4, NULL)"
    mssql.run(f"INSERT INTO [{name}] VALUES {values}")
    found = mssql.rows(
        "SELECT CONVERT(nvarchar(128), SQL_VARIANT_PROPERTY(v, 'BaseType')), CONVERT(nvarchar(4000), v)"
        f" FROM [{name}] ORDER BY id"
    )
    assert [base for base, _ in found] == ["bigint", "nvarchar", "date", None]
    assert [text for _, text in found[:2]] == ["5", "text"]


# --- the order of keys --------------------------------------------------------------------------------------------


def test_uniqueidentifiers_sort_as_sql_server_sorts_them(mssql: Client) -> None:
    """The last six bytes weigh most; then groups from right to left, those that are numbers by their bytes turned."""
    places = ["0-0-0-0-1", "0-0-0-1-0", "0-0-1-0-0", "0-1-0-0-0", "1-0-0-0-0"]
    widths = (8, 4, 4, 4, 12)
    keys = [
        "-".join(part.rjust(width, "0") for part, width in zip(key.split("-"), widths, strict=True)) for key in places
    ]
    keys += ["00000100-0000-0000-0000-000000000000"]
    name = f"v_{uuid.uuid4().hex[:10]}"
    mssql.run(f"CREATE TABLE [{name}] (k uniqueidentifier NOT NULL PRIMARY KEY)")
    mssql.run(f"INSERT INTO [{name}] VALUES " + ", ".join(f"('{key}')" for key in keys))
    found = [row[0] for row in mssql.rows(f"SELECT LOWER(CONVERT(varchar(36), k)) FROM [{name}] ORDER BY k DESC")]
    assert found == [keys[0], keys[1], keys[2], keys[3], keys[4], keys[5]]
    for at, key in enumerate(found):
        below = mssql.rows(f"SELECT COUNT(*) FROM [{name}] WHERE k < CONVERT(uniqueidentifier, ?)", key)
        assert below == [(len(found) - 1 - at,)]


def test_case_does_not_tell_keys_apart_unless_the_collation_does(mssql: Client) -> None:
    name = f"v_{uuid.uuid4().hex[:10]}"
    mssql.run(
        f"CREATE TABLE [{name}] (i nvarchar(10) COLLATE Latin1_General_CI_AS NOT NULL PRIMARY KEY,"
        " s nvarchar(10) COLLATE Latin1_General_BIN2 NOT NULL)"
    )
    mssql.run(f"INSERT INTO [{name}] VALUES (N'Abc', N'Abc')")
    assert is_number(mssql.refusal(f"INSERT INTO [{name}] VALUES (N'aBC', N'x')"), 2627)
    assert mssql.rows(f"SELECT i FROM [{name}] WHERE i = N'ABC'") == [("Abc",)]
    assert mssql.rows(f"SELECT s FROM [{name}] WHERE s = N'ABC'") == []


def test_names_are_found_in_any_case(mssql: Client) -> None:
    name = f"Mixed_{uuid.uuid4().hex[:10]}"
    mssql.run(f"CREATE TABLE [{name}] ([Key] int NOT NULL PRIMARY KEY, [a ] b'\"c] int NULL)".replace("a ] b", "a b"))
    mssql.run(f"INSERT INTO [{name.upper()}] ([KEY]) VALUES (1)")
    assert mssql.rows(f"SELECT [key], [A b'\"C] FROM [{name.lower()}]") == [(1, None)]
    asked = f"SELECT name FROM sys.columns WHERE object_id = OBJECT_ID(N'[dbo].[{name.lower()}]') ORDER BY column_id"
    assert mssql.rows(asked) == [("Key",), ("a b'\"c",)]


# --- statements, and what ends them in mid-way --------------------------------------------------------------------


def test_rows_are_counted(mssql: Client, tracked_table: Tracked) -> None:
    assert tracked_table.run("UPDATE {t} SET a = 9 WHERE id < 3") == 2
    assert tracked_table.run("UPDATE {t} SET a = ? WHERE id = ?", 5, 99) == 0
    assert tracked_table.run("DELETE FROM {t} WHERE id = ?", 1) == 1
    assert tracked_table.run("INSERT INTO {t} (id) VALUES (10)") == 1


def test_a_failed_statement_leaves_the_transaction(mssql: Client, tracked_table: Tracked) -> None:
    mssql.run("BEGIN TRANSACTION")
    tracked_table.run("UPDATE {t} SET a = 9 WHERE id = 1")
    assert is_number(tracked_table.refusal("INSERT INTO {t} VALUES (1, 1, N'twice')"), 2627)
    assert mssql.value("SELECT @@TRANCOUNT") == 1
    mssql.run("COMMIT TRANSACTION")
    assert tracked_table.rows("SELECT a FROM {t} WHERE id = 1") == [(9,)]


def test_conditions_and_variables(mssql: Client, tracked_table: Tracked) -> None:
    mssql.run("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION")
    name = tracked_table.name
    assert mssql.rows(f"IF EXISTS (SELECT 1 FROM [{name}] WHERE id = 99) SELECT 1 AS x ELSE SELECT 2 AS x") == [(2,)]
    assert mssql.rows(f"DECLARE @n int; SELECT @n = MAX(id) FROM [{name}]; SELECT @n + 1 AS x") == [(4,)]
    assert is_number(mssql.refusal("SELECT @nope"), 137)


def test_a_result_that_is_not_read_to_its_end(client_name: str, mssql: Client) -> None:
    """The connection serves the next statement."""
    one = tracked(mssql, "id int NOT NULL PRIMARY KEY, v nvarchar(200) NULL", rows="")
    one.run("INSERT INTO {t} SELECT value, REPLICATE(N'x', 200) FROM GENERATE_SERIES(0, 19999)")
    cursor = mssql.new_cursor()
    cursor.execute(f"SELECT id, v FROM [{one.name}] ORDER BY id")
    assert cursor.fetchone()[0] == 0
    cursor.close()
    assert mssql.value(f"SELECT COUNT(*) FROM [{one.name}]") == 20_000


def test_a_connection_that_is_killed_leaves_nothing(mssql: Client, client_name: str, sqlserver: str) -> None:
    one = tracked(mssql)
    other = connect(client_name, sqlserver, mssql.value("SELECT DB_NAME()"))
    other.run("BEGIN TRANSACTION")
    other.run(f"UPDATE [{one.name}] SET a = 77")
    other.close()
    mssql.run("SET LOCK_TIMEOUT 10000")
    assert one.run("UPDATE {t} SET b = N'free' WHERE id = 1") == 1
    assert one.rows("SELECT a FROM {t} WHERE id = 2") == [(2,)]


def test_a_database_in_use_is_dropped_by_its_single_user_alone(client_name: str, sqlserver: str) -> None:
    owner, name = connect(client_name, sqlserver), f"upwell_test_{uuid.uuid4().hex[:12]}"
    owner.run(f"CREATE DATABASE [{name}]")
    user = connect(client_name, sqlserver, name)
    assert is_number(owner.refusal(f"DROP DATABASE [{name}]"), 3702)
    owner.run(f"ALTER DATABASE [{name}] SET SINGLE_USER WITH ROLLBACK IMMEDIATE")
    with pytest.raises(Refused):
        user.value("SELECT 1")
    owner.run(f"DROP DATABASE [{name}]")
    user.abandon()
    owner.close()


@needs_hooks
def test_a_connection_dropped_after_n_packets(fresh: Client, client_name: str, sqlserver: str) -> None:
    victim = connect(client_name, sqlserver, fresh.value("SELECT DB_NAME()"))
    fresh.run("EXEC lab.drop_after @packets = 3")
    victim.value("SELECT 1")
    victim.value("SELECT 1")
    with pytest.raises(Refused):
        victim.value("SELECT 1")
    victim.abandon()
    assert fresh.value("SELECT 1") == 1


def test_two_connections_work_at_the_same_time(mssql: Client, mssql_other: Client) -> None:
    began = time.monotonic()
    thread = threading.Thread(target=mssql_other.run, args=("WAITFOR DELAY '00:00:02'",))
    thread.start()
    assert mssql.value("SELECT 1") == 1
    assert time.monotonic() - began < 1.9
    thread.join()


@needs_hooks
def test_what_it_does_not_know_it_refuses(mssql: Client, tracked_table: Tracked) -> None:
    for text in ("DBCC CHECKDB", "SELECT * FROM {t} FOR JSON PATH", "CREATE TABLE #t (id int)", "EXEC sp_who"):
        with pytest.raises(Refused):
            tracked_table.rows(text)
