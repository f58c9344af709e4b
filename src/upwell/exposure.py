"""What of the tables the read API shows: the file that is its contract, and keys as they stand in a URL. Pure.

The file is made from the source by `upwell api --learn`, so that the API needs neither the source nor a look into its
own database to know columns, types and keys. It is kept in version control, where a change of it can be seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from upwell.errors import ConfigError
from upwell.items import attribute_type
from upwell.mapping import DEFAULT_SCHEMAS
from upwell.model import Column, Kind, TableName, TableSchema, Value
from upwell.ports import ReadIndex
from upwell.tablepatterns import folded

FORMAT: Final = 1
# What else a list takes; no column by which callers search may have such a name.
RESERVED: Final = frozenset({"index", "limit", "cursor"})
_EXACT_MAX: Final = 2**53
_TENANT_KINDS: Final = frozenset({Kind.TEXT, Kind.INT, Kind.UUID, Kind.OTHER})
_KEY_KINDS: Final = frozenset({"S", "N", "B"})
# Of the kinds of which not every text is one: what callers may write. Also in the API's description.
PATTERNS: Final[Mapping[Kind, str]] = {
    Kind.BOOL: r"true|false",
    Kind.INT: r"0|-?[1-9][0-9]{0,38}",
    Kind.DECIMAL: r"-?(0|[1-9][0-9]{0,130})(\.[0-9]{1,130})?",
    Kind.FLOAT: r"-?(0|[1-9][0-9]{0,16})(\.[0-9]{1,17})?([eE][-+]?[0-9]{1,3})?|NaN|-?Infinity",
    Kind.UUID: r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the configuration exposes of a table."""

    table: str  # the source's
    columns: tuple[str, ...]
    tenant: str | None
    indexes: Mapping[str, ReadIndex]


@dataclass(frozen=True, slots=True)
class ExposedTable:
    """A table as the API knows it."""

    name: str  # in the URL
    schema: TableSchema  # the columns that are read: those shown, then those of key, tenant and indexes
    shown: int  # so many of them, from the front, are shown
    tenant: str | None
    indexes: Mapping[str, ReadIndex]
    items: str | None = None  # the DynamoDB table without its prefix

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those that are shown."""
        return self.schema.columns[: self.shown]

    def column(self, name: str) -> Column:
        """One of those that are read."""
        return next(column for column in self.schema.columns if column.name == name)

    @property
    def key(self) -> tuple[Column, ...]:
        """The key's columns in the key's order."""
        return tuple(self.schema.columns[index] for index in self.schema.key_indexes)


def is_named(schema: TableSchema, wanted: str) -> bool:
    """Whether the configuration means this table; without a schema, the one in the source's default schema."""
    own, other = TableName.parse(schema.table), TableName.parse(wanted)
    default = DEFAULT_SCHEMAS.get(schema.dialect, "")
    return all(
        folded(ours, schema.dialect) == folded(theirs, schema.dialect)
        for ours, theirs in ((own.schema, other.schema or default), (own.name, other.name))
    )


def expose(name: str, wanted: Wanted, schema: TableSchema, items: str | None = None) -> ExposedTable:
    """The table with what it needs of its columns. Raises ConfigError where one is missing or of an unfit type."""
    known = {column.name: column for column in schema.columns}
    searched = [column for i in wanted.indexes.values() for column in (i.partition_key, i.sort_key) if column]
    tenant = [wanted.tenant] if wanted.tenant is not None else []
    names = list(dict.fromkeys([*wanted.columns, *schema.key, *tenant, *searched]))
    for column in names:
        if column not in known:
            raise _unfit(name, f"{wanted.table} has no column {column} at the destination", _has(known))
    for column in searched:
        if attribute_type(known[column]) not in _KEY_KINDS:
            raise _unfit(name, f"nothing can be found by {column}, which holds {known[column].kind.value}", _OTHER)
    for index in wanted.indexes.values():
        if index.partition_key in RESERVED:
            raise _unfit(name, f"a column called {index.partition_key} can't be searched by", "Give it another name.")
    if wanted.tenant is not None and known[wanted.tenant].kind not in _TENANT_KINDS:
        raise _unfit(name, f"{wanted.tenant} can't name a tenant: it holds {known[wanted.tenant].kind.value}", _OTHER)
    read = TableSchema(schema.table, tuple(known[each] for each in names), schema.key, schema.dialect, schema.target)
    return ExposedTable(name, read, len(dict.fromkeys(wanted.columns)), wanted.tenant, wanted.indexes, items)


_OTHER: Final = "Name another column, of text or a number."


def _has(known: Iterable[str]) -> str:
    return f"It has {', '.join(known)}."


def _unfit(name: str, what: str, remedy: str) -> ConfigError:
    return ConfigError(f"api.tables.{name}: {what}.", code="UW-AP-002", remedy=remedy)


# --- the file -----------------------------------------------------------------------------------------------------


def contract(tables: Iterable[ExposedTable]) -> bytes:
    """The file's content: the same for the same tables, a line for each column."""
    content = {"upwell-api": FORMAT, "tables": {table.name: _written(table) for table in tables}}
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _written(table: ExposedTable) -> dict[str, Any]:
    schema = table.schema
    written: dict[str, Any] = {"table": schema.table, "dialect": schema.dialect}
    if schema.target is not None:
        written["to"] = schema.target
    if table.items is not None:
        written["items"] = table.items
    texts = {column.name: f"{column.kind.value} {column.type}" for column in schema.columns}
    written["key"] = list(schema.key)
    written["columns"] = {column.name: texts[column.name] for column in table.columns}
    unshown = schema.columns[table.shown :]
    if unshown:
        written["unshown"] = {column.name: texts[column.name] for column in unshown}
    return written


def exposed(content: bytes, wanted: Mapping[str, Wanted], file: str) -> list[ExposedTable]:
    """The tables of the configuration with what the file knows of them. Raises ConfigError where it does not fit."""
    try:
        document = orjson.loads(content)
        known = {name: _read(table) for name, table in document["tables"].items()}
        fits = document["upwell-api"] == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _stale(file, "is not a file that `upwell api --learn` wrote") from error
    if not fits:
        raise _stale(file, "is of another version")
    tables = []
    for name, wants in wanted.items():
        if name not in known or not is_named(known[name][0], wants.table):
            raise _stale(file, f"knows no table {name} that is {wants.table}")
        schema, columns, items = known[name]
        if columns != wants.columns:
            raise _stale(file, f"knows other columns of {name} than api.tables.{name}.columns")
        try:
            tables.append(expose(name, wants, schema, items))
        except ConfigError as error:
            raise _stale(file, f"does not fit: {error.message}") from error
    return tables


def _read(table: Mapping[str, Any]) -> tuple[TableSchema, tuple[str, ...], str | None]:
    columns = []
    for name, text in {**table["columns"], **table.get("unshown", {})}.items():
        kind, _, type_ = text.partition(" ")
        columns.append(Column(name, type_, Kind(kind)))
    schema = TableSchema(table["table"], tuple(columns), tuple(table["key"]), table["dialect"], table.get("to"))
    return schema, tuple(table["columns"]), table.get("items")


def _stale(file: str, what: str) -> ConfigError:
    return ConfigError(
        f"The API's schema file {file} {what}.",
        code="UW-AP-001",
        remedy="Write it anew where the source can be reached: upwell api --learn",
    )


# --- keys in a URL ------------------------------------------------------------------------------------------------

_ESCAPED: Final = re.compile(rb"~([0-9A-Fa-f]{2})|~")


def key_of(text: str, columns: Sequence[Column]) -> list[Value]:
    """The values of a key as it stands in a URL: its parts joined by commas, `~XX` for a byte of UTF-8.

    Raises ValueError, a sentence, where it can't be one of these columns.
    """
    parts = text.split(",")
    if len(parts) != len(columns):
        names = ",".join(column.name for column in columns)
        raise ValueError(f"the key has {len(parts)} parts; it is written {names}, a comma within a part as ~2C")
    return [value_of(column, _unescaped(part)) for column, part in zip(columns, parts, strict=True)]


def _unescaped(part: str) -> str:
    if "~" not in part:
        return part
    try:
        return _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), part.encode()).decode()
    except (UnicodeDecodeError, TypeError) as error:
        raise ValueError("in a key, ~ and two hexadecimal digits stand for a byte of UTF-8; ~ itself is ~7E") from error


def value_of(column: Column, text: str) -> Value:
    """A value as callers write it. Raises ValueError, a sentence that does not quote it."""
    pattern = PATTERNS.get(column.kind)
    if pattern is not None and re.fullmatch(pattern, text) is None:
        raise ValueError(f"{column.name} takes another form of {column.kind.value}; see /openapi.json")
    if column.kind is Kind.BOOL:
        return text == "true"
    if column.kind is Kind.INT:
        return int(text) if abs(int(text)) <= _EXACT_MAX else text
    if column.kind is Kind.FLOAT and text[-1].isdigit():
        return float(text)
    return text.lower() if column.kind is Kind.UUID else text


def tenant_of(column: Column, tenant: str) -> str | None:
    """A caller's tenant as rows have it; None where no row can be of it."""
    try:
        return str(value_of(column, tenant))
    except ValueError:
        return None
