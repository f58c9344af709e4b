"""The statements that read a table of SQL Server, and what becomes of their rows."""

from dataclasses import replace

import pytest

from upwell.errors import OperatorError
from upwell.model import Column, Cursor, Kind, Rejection, TableName, TableSchema
from upwell.sources.sqlserver_catalog import ServerColumn, Table
from upwell.sources.sqlserver_reading import Rows, TableReader
from upwell.sources.sqlserver_session import PARAMETER
from upwell.sources.sqlserver_types import ServerType

DOC = ServerColumn(2, "doc", ServerType("int", 4, 10, 0), computed=False, fills=False)
LINE = ServerColumn(1, "line]", ServerType("uniqueidentifier", 16, 0, 0), computed=False, fills=False)
NOTE = ServerColumn(3, "note", ServerType("nvarchar", 20, 0, 0), computed=False, fills=False)
TABLE = Table(
    name=TableName("dbo", "order"),
    object_id=1,
    columns=(LINE, DOC, NOTE),
    key=(DOC, LINE),
    descending=(False, True),
    schema=TableSchema(
        "dbo.order",
        (
            Column("line]", "uniqueidentifier", Kind.UUID),
            Column("doc", "int", Kind.INT),
            Column("note", "x", Kind.TEXT),
        ),
        ("doc", "line]"),
        "sqlserver",
    ),
    altered=("", 1),
)
READER = TableReader(TABLE)
ID = "0e984725-c51c-4bf4-9960-e1c80e27aba0"


def shown(statement: str) -> str:
    return statement.replace(PARAMETER, "?")


def test_a_chunk_follows_the_keys_index_in_its_order_and_its_direction() -> None:
    sql, parameters = READER.chunk_query(None, 5)
    assert shown(sql) == (
        "SELECT TOP (5) LOWER(CONVERT(varchar(36), t.[line]]])), t.[doc], t.[note] FROM [dbo].[order] AS t "
        "ORDER BY t.[doc], t.[line]]] DESC"
    )
    assert parameters == ()
    sql, parameters = READER.chunk_query(Cursor(f'[7,"{ID}"]'), 5)
    doc, line = "CONVERT(int, ?)", "CONVERT(uniqueidentifier, ?)"
    assert shown(sql).partition(" WHERE ")[2] == (
        f"(t.[doc] >= {doc} AND ((t.[doc] > {doc}) OR (t.[doc] = {doc} AND t.[line]]] < {line}))) "
        "ORDER BY t.[doc], t.[line]]] DESC"
    )
    assert parameters == (7, 7, 7, ID)


def test_the_first_columns_bound_goes_the_way_of_its_index() -> None:
    table = replace(TABLE, key=(DOC,), descending=(True,), schema=replace(TABLE.schema, key=("doc",)))
    sql, parameters = TableReader(table).chunk_query(Cursor("[7]"), 5)
    assert " WHERE (t.[doc] < CONVERT(int, ?)) ORDER BY t.[doc] DESC" in shown(sql)
    assert parameters == (7,)


def test_a_page_is_ordered_by_version_and_key_and_goes_on_inside_a_version() -> None:
    sql, parameters = READER.page_query(41, None, seek=True)
    assert "CHANGETABLE(CHANGES [dbo].[order], ?, FORCESEEK) AS ct LEFT JOIN [dbo].[order] AS t ON" in shown(sql)
    assert sql.endswith("ORDER BY ct.SYS_CHANGE_VERSION, ct.[doc], ct.[line]]]")
    assert parameters == (41,)
    sql, parameters = READER.page_query(41, (42, f'[7,"{ID}"]'), seek=False)
    assert "ct.SYS_CHANGE_VERSION > ? OR (ct.SYS_CHANGE_VERSION = ? AND (ct.[doc] >= CONVERT(int, ?)" in shown(sql)
    assert "FORCESEEK" not in sql
    assert parameters == (41, 42, 42, 7, 7, 7, ID)


def test_rows_become_changes() -> None:
    rejected: list[Rejection] = []
    rows: Rows = [
        (5, 5, "I", None, None, 1, ID, ID, 1, "there"),
        (6, None, "U", b"\0\0\0\0\3\0\0\0", b"\1", 2, ID, ID, 2, "there"),
        (7, None, "D", None, None, 3, ID, None, None, None),
        (7, None, "U", None, None, 4, ID, None, None, None),
        (8, None, "D", None, None, 5, ID, ID, 5, "back"),
        (9, None, "U", None, None, 6, ID, ID, 6, "half \ud83d"),
    ]
    found = READER.found(rows, rejected)
    assert [(each.version, each.was, each.row is None) for each in found] == [
        (5, "insert", False),
        (6, "update", False),
        (7, "delete", True),
        (8, "update", False),
    ], "of a row that is gone and was not deleted, the delete follows"
    assert found[1].mask == b"\0\0\0\0\3\0\0\0"
    assert found[0].row == b'["%s",1,"there"]' % ID.encode()
    assert found[0].key == b'[1,"%s"]' % ID.encode()
    assert [(each.table, "Unicode" in each.reason) for each in rejected] == [("dbo.order", True)]
    assert "half" not in rejected[0].reason


def test_a_key_that_is_no_unicode_can_not_be_gone_on_from() -> None:
    table = replace(TABLE, key=(NOTE,), descending=(False,), schema=replace(TABLE.schema, key=("note",)))
    with pytest.raises(OperatorError) as error:
        TableReader(table).cursor_after((ID, 1, "half \ud83d"))
    assert error.value.code == "UW-MS-046"
