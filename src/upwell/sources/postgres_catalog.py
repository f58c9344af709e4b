"""What PostgreSQL's catalog says of tables, as schemas of ours. Works from PostgreSQL 12 on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from upwell.errors import ConfigError, OperatorError
from upwell.model import Column, TableName, TableSchema, TableSelection
from upwell.sources.pgoutput import Relation
from upwell.sources.postgres_session import quote_ident
from upwell.sources.postgres_types import ColumnType, Decode, column_type, is_exact
from upwell.tablepatterns import part_matches

if TYPE_CHECKING:
    import psycopg

DIALECT: Final = "postgresql"
DEFAULT_SCHEMA: Final = "public"
# Partitioned tables can be published, under their own name, from this version on.
PARTITION_ROOTS: Final = 130000
COLUMN_LISTS: Final = 150000
GENERATED_COLUMNS: Final = 180000


class CatalogColumn(NamedTuple):
    """A row of pg_attribute."""

    name: str
    type: int
    typmod: int
    declared: str  # as SQL casts to it, a domain as such
    has_default: bool  # adding it gives the rows that are there a value other than NULL
    generated: bool
    may_toast: bool  # values may be stored out of line
    deterministic: bool  # its collation holds no two different texts for equal


@dataclass(frozen=True)
class CatalogTable:
    """A row of pg_class, with what belongs to it."""

    oid: int
    name: TableName
    partitioned: bool
    unlogged: bool
    identity: str  # pg_class.relreplident: d, n, f or i
    primary_key: tuple[str, ...]
    identity_index: tuple[str, ...]  # of REPLICA IDENTITY USING INDEX
    candidates: tuple[str, ...]  # unique indexes that could be the replica identity
    rows: int | None  # by statistics
    columns: tuple[CatalogColumn, ...]
    published: frozenset[str] | None  # the columns that the publication has of it; None: it has not the table
    filtered: bool  # the publication leaves rows out

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row in every message of the log; () where none do."""
        if self.identity == "n":
            return ()
        if self.identity == "i" and not set(self.primary_key or ("",)) <= set(self.identity_index):
            return self.identity_index  # a delete tells no more than these
        return self.primary_key

    @property
    def only(self) -> str:
        """The table in a FROM clause, without the tables that inherit from it: those have rows of their own."""
        name = f"{quote_ident(self.name.schema)}.{quote_ident(self.name.name)}"
        return name if self.partitioned else f"ONLY {name}"


class Catalog:
    """Looks things up over an ordinary connection. What the driver raises is for the caller to translate."""

    def __init__(
        self, connection: psycopg.Connection[tuple[Any, ...]], selections: Sequence[TableSelection], publication: str
    ) -> None:
        self._connection = connection
        self._selections = tuple(selections)
        self._publication = publication
        self._types: dict[tuple[int, int], _BaseType] = {}

    @property
    def selections(self) -> tuple[TableSelection, ...]:
        """As configured."""
        return self._selections

    @property
    def server_version(self) -> int:
        """150004 for 15.4."""
        return self._connection.info.server_version

    @property
    def publishes_roots(self) -> bool:
        """Whether a partitioned table can be published, under its own name."""
        return self.server_version >= PARTITION_ROOTS

    def wants(self, name: TableName, column: str) -> bool:
        """Whether the configuration selects the column."""
        selection = self.selection(name)
        return selection is not None and _is_selected(selection, column)

    def selected(self) -> list[CatalogTable]:
        """The tables that the configuration names, in the order of their names."""
        return [table for table in self.all_tables() if self.selection(table.name) is not None]

    def all_tables(self) -> list[CatalogTable]:
        """Every table that could be read; partitions only where their root can't be published."""
        partitions = "AND NOT c.relispartition" if self.publishes_roots else ""
        return self._tables(f"{_USER_TABLES} {partitions}", [])

    def table(self, oid: int) -> CatalogTable | None:
        """The table as it is now; None where it is no more."""
        return next(iter(self._tables("c.oid = %s", [oid])), None)

    def named(self, name: TableName) -> CatalogTable | None:
        """The table as it is now; None where there is none of that name."""
        return next(iter(self._tables("n.nspname = %s AND c.relname = %s", [name.schema, name.name])), None)

    def selection(self, name: TableName) -> TableSelection | None:
        """The first selection that matches."""
        return next((selection for selection in self._selections if matches(selection.pattern, name)), None)

    def schema(self, table: CatalogTable) -> TableSchema:
        """The schema of the table's rows in stream and snapshot. Raises OperatorError, ConfigError."""
        check_key(table)
        published = [column for column in table.columns if self._is_published(table, column)]
        return self._make(table, [(c.name, c.type, c.typmod) for c in published])[0]

    def decoders(self, table: CatalogTable, schema: TableSchema) -> list[Decode]:
        """How to read each of the schema's columns."""
        columns = {column.name: (column.type, column.typmod) for column in table.columns}
        wanted = [columns[column.name] for column in schema.columns]
        types = self._column_types([(c.name, *t) for c, t in zip(schema.columns, wanted, strict=True)], schema.key)
        return [type_.decode for type_ in types]

    def operator_schemas(self, table: CatalogTable, schema: TableSchema) -> list[str]:
        """Where the operators of the key's types are, beside pg_catalog: an extension has its type's with the type.

        Without them in search_path, comparing two citext compares two text, in another order than ORDER BY has.
        """
        key = {(column.type, column.typmod) for column in table.columns if column.name in schema.key}
        self._look_up_types(key - self._types.keys())
        return sorted({self._types[type_].schema for type_ in key} - {"pg_catalog"})

    def relation(self, relation: Relation) -> tuple[TableSchema, list[Decode | None]] | None:
        """How to read the rows of a relation of the stream; None where they are not wanted.

        The catalog tells of now, the message of then: columns and types are the message's.
        """
        name = TableName(relation.schema, relation.name)
        if self.selection(name) is None:
            return None
        table = self.table(relation.oid)
        if table is None:
            return None  # dropped since, and its rows with it
        key = _key_then(relation, table)
        if not key:
            check_key(table)
            return None
        then = [(column.name, column.type, column.typmod) for column in relation.columns]
        schema, wanted = self._make(table, then, name=name, key=key)
        types = self._column_types([column for column in then if column[0] in wanted], key)
        decoders = dict(zip(wanted, (type_.decode for type_ in types), strict=True))
        return schema, [decoders.get(column.name) for column in relation.columns]

    def _make(
        self,
        table: CatalogTable,
        columns: Sequence[tuple[str, int, int]],
        *,
        name: TableName | None = None,
        key: tuple[str, ...] | None = None,
    ) -> tuple[TableSchema, list[str]]:
        name, key = name or table.name, key or table.key
        selection = self.selection(name)
        wanted = [column for column in columns if selection is None or _is_selected(selection, column[0])]
        names = [column[0] for column in wanted]
        left_out = [column for column in key if column not in names]
        if left_out:
            raise ConfigError(
                f"The key of {name} is {', '.join(key)}, but the configuration leaves out {', '.join(left_out)}.",
                code="UW-PG-043",
                remedy=f"Add {', '.join(left_out)} to the columns of {name}.",
            )
        defaults = {column.name: column.has_default for column in table.columns}
        types = self._column_types(wanted, key)
        made = tuple(
            Column(column[0], type_.name, type_.kind, defaults.get(column[0], False))
            for column, type_ in zip(wanted, types, strict=True)
        )
        return TableSchema(str(name), made, key, DIALECT, loose=self._loose(table, wanted, key)), names

    def _loose(
        self, table: CatalogTable, columns: Sequence[tuple[str, int, int]], key: Sequence[str]
    ) -> frozenset[str]:
        """The key's columns whose values may be equal though their texts differ, see TableSchema."""
        deterministic = {column.name: column.deterministic for column in table.columns}
        exact = {
            name
            for name, type_, typmod in columns
            if is_exact(self._types[type_, typmod].name, self._types[type_, typmod].typtype, typmod=typmod)
        }
        return frozenset(name for name in key if name not in exact or not deterministic.get(name, True))

    def _is_published(self, table: CatalogTable, column: CatalogColumn) -> bool:
        if table.published is not None and column.name not in table.published:
            return False
        # Before PostgreSQL 18 the stream has no generated columns; from then on it has those that are published.
        return not column.generated or (self.server_version >= GENERATED_COLUMNS and table.published is not None)

    def _column_types(self, columns: Iterable[tuple[str, int, int]], key: Sequence[str]) -> list[ColumnType]:
        columns = list(columns)
        self._look_up_types({(type_, typmod) for _, type_, typmod in columns} - self._types.keys())
        found = []
        for name, type_, typmod in columns:
            base = self._types[type_, typmod]
            found.append(
                column_type(
                    base.formatted,
                    base.name,
                    built_in=base.built_in,
                    typtype=base.typtype,
                    has_typmod=base.typmod >= 0,
                    in_key=name in key,
                )
            )
        return found

    def _look_up_types(self, types: set[tuple[int, int]]) -> None:
        if not types:
            return
        oids, typmods = zip(*sorted(types), strict=True)
        for oid, typmod, *base in self._connection.execute(_BASE_TYPES, [list(oids), list(typmods)]):
            self._types[oid, typmod] = _BaseType(*base)
        for missing in types - self._types.keys():
            self._types[missing] = _BaseType(
                "text", "pg_catalog", "", -1, "b", False
            )  # dropped since the log was written

    def _tables(self, where: str, parameters: Sequence[Any]) -> list[CatalogTable]:
        rows = self._connection.execute(_TABLES.format(where=where), parameters).fetchall()
        oids = [row[0] for row in rows]
        columns: dict[int, list[CatalogColumn]] = {oid: [] for oid in oids}
        if oids:
            for oid, *column in self._connection.execute(_COLUMNS, [oids]):
                columns[oid].append(CatalogColumn(*column))
        published = self._published(oids)
        return [
            CatalogTable(
                oid=row[0],
                name=TableName(row[1], row[2]),
                partitioned=row[3] == "p",
                unlogged=row[4] == "u",
                identity=row[5],
                primary_key=tuple(row[6] or ()),
                identity_index=tuple(row[7] or ()),
                candidates=tuple(row[8] or ()),
                rows=row[9],
                columns=tuple(columns[row[0]]),
                published=published.get(row[0], (None, False))[0],
                filtered=published.get(row[0], (None, False))[1],
            )
            for row in rows
        ]

    def _published(self, oids: list[int]) -> dict[int, tuple[frozenset[str] | None, bool]]:
        """The tables that the publication has, each with its columns, and whether rows are left out."""
        if not oids:
            return {}
        query = _PUBLISHED if self.server_version >= COLUMN_LISTS else _PUBLISHED_WITHOUT_LISTS
        rows = self._connection.execute(query, [self._publication, oids])
        return {oid: (frozenset(names), filtered) for oid, names, filtered in rows}


class _BaseType(NamedTuple):
    formatted: str
    schema: str
    name: str
    typmod: int
    typtype: str
    built_in: bool


def _key_then(relation: Relation, table: CatalogTable) -> tuple[str, ...]:
    """The key's columns: as the catalog has them now, unless the messages of then identify rows by others."""
    names = {column.name for column in relation.columns}
    told = tuple(column.name for column in relation.columns if column.in_identity)
    if relation.identity == "f" or not told:
        return table.key if set(table.key) <= names else ()
    return table.key if table.key and set(table.key) <= set(told) else told


def check_key(table: CatalogTable) -> None:
    """Raises OperatorError where changes of the table's rows can't be told apart."""
    if table.key:
        return
    name = quote_ident(table.name.schema) + "." + quote_ident(table.name.name)
    if table.identity == "n":
        remedy = f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"
        raise OperatorError(f"{table.name} has REPLICA IDENTITY NOTHING.", code="UW-PG-041", remedy=remedy)
    if table.candidates:
        remedy = f"ALTER TABLE {name} REPLICA IDENTITY USING INDEX {quote_ident(table.candidates[0])};"
    else:
        remedy = f"ALTER TABLE {name} ADD PRIMARY KEY (the columns that identify a row);"
    raise OperatorError(f"{table.name} has no primary key.", code="UW-PG-040", remedy=remedy)


def matches(pattern: TableName, name: TableName) -> bool:
    """Whether a selection's pattern names the table."""
    parts = zip((pattern.schema or DEFAULT_SCHEMA, pattern.name), name, strict=True)
    return all(part_matches(wanted, part, DIALECT) for wanted, part in parts)


def _is_selected(selection: TableSelection, column: str) -> bool:
    return (selection.columns is None or column in selection.columns) and column not in selection.exclude


# A partitioned table has no rows of its own; 14 and later say -1, before 0 pages, where nothing was counted.
_ROWS = """
    (SELECT CASE WHEN bool_or(l.reltuples < 0 OR l.relpages = 0 AND l.reltuples = 0) THEN NULL
                 ELSE sum(l.reltuples)::bigint END
       FROM pg_class l
      WHERE l.oid = c.oid AND c.relkind = 'r'
         OR c.relkind = 'p' AND l.oid IN (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf))"""

_INDEX_COLUMNS = """
    (SELECT array_agg(a.attname ORDER BY k.place)
       FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place), pg_attribute a
      WHERE i.indrelid = c.oid AND {which} AND k.place <= i.indnkeyatts
        AND a.attrelid = c.oid AND a.attnum = k.attnum)"""

_CANDIDATES = """
    (SELECT array_agg(x.relname ORDER BY i.indnkeyatts, x.relname)
       FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
      WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
        AND i.indpred IS NULL AND i.indexprs IS NULL
        AND NOT EXISTS (SELECT 1 FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place), pg_attribute a
                         WHERE k.place <= i.indnkeyatts AND a.attrelid = c.oid AND a.attnum = k.attnum
                           AND NOT a.attnotnull))"""

_TABLES: Final = (
    """
SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,"""
    + _INDEX_COLUMNS.format(which="i.indisprimary")
    + ","
    + _INDEX_COLUMNS.format(which="i.indisreplident")
    + ","
    + _CANDIDATES
    + ","
    + _ROWS
    + """
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {where}
 ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C\""""
)

_USER_TABLES: Final = "n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND n.nspname <> 'upwell'"

_COLUMNS: Final = """
SELECT a.attrelid, a.attname, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod),
       a.atthasdef OR a.atthasmissing OR a.attidentity <> '', a.attgenerated <> '',
       a.attlen = -1 AND a.attstorage <> 'p',
       coalesce((SELECT l.collisdeterministic FROM pg_collation l WHERE l.oid = a.attcollation), true)
  FROM pg_attribute a
 WHERE a.attrelid = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum"""

# A domain's base type may be a domain again; the modifier is that of the outermost that has one.
_BASE_TYPES: Final = """
WITH RECURSIVE base AS (
    SELECT w.type AS asked_type, w.typmod AS asked_typmod, w.type, w.typmod
      FROM unnest(%s::oid[], %s::int[]) AS w(type, typmod)
    UNION ALL
    SELECT b.asked_type, b.asked_typmod, t.typbasetype, CASE WHEN b.typmod >= 0 THEN b.typmod ELSE t.typtypmod END
      FROM base b JOIN pg_type t ON t.oid = b.type
     WHERE t.typtype = 'd')
SELECT b.asked_type, b.asked_typmod, format_type(t.oid, b.typmod), n.nspname, t.typname, b.typmod, t.typtype::text,
       t.typnamespace = 'pg_catalog'::regnamespace
       AND coalesce((SELECT e.typnamespace = 'pg_catalog'::regnamespace FROM pg_type e WHERE e.oid = t.typelem), true)
  FROM base b JOIN pg_type t ON t.oid = b.type JOIN pg_namespace n ON n.oid = t.typnamespace
 WHERE t.typtype <> 'd'"""

_PUBLISHED: Final = """
SELECT c.oid, p.attnames::text[], p.rowfilter IS NOT NULL
  FROM pg_publication_tables p
  JOIN pg_namespace n ON n.nspname = p.schemaname
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
 WHERE p.pubname = %s AND c.oid = ANY(%s)"""

_PUBLISHED_WITHOUT_LISTS: Final = """
SELECT c.oid, (SELECT array_agg(a.attname::text) FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), false
  FROM pg_publication_tables p
  JOIN pg_namespace n ON n.nspname = p.schemaname
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
 WHERE p.pubname = %s AND c.oid = ANY(%s)"""
