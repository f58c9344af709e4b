# ruff: noqa: S608 - names are quoted by ident(), texts by literal(), rows travel by COPY
"""A table of the target as its catalog describes it, and the SQL that writes into it.

Rows come by COPY into a temporary table of the connection's own (the stage) and from there in one statement into
the table. Rows that had to make way for another row's unique value wait in upwell.evicted, as the text of each
column: that is exact for every type and survives columns being added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from upwell.errors import OperatorError
from upwell.heartbeat import HEARTBEAT_TABLE
from upwell.model import TableName, TableSchema
from upwell.targets.postgres_session import Session, ident, literal
from upwell.targets.postgres_types import target_type

NAME_BYTES_MAX: Final = 63  # NAMEDATALEN - 1; the server cuts longer names off without an error
NOTED_LENGTH_MAX: Final = 120  # a longer key is noted as its SHA-256: an index entry may not exceed 2,700 bytes
_DEFAULT_SCHEMAS: Final = {"postgresql": "public", "sqlite": "main", "sqlserver": "dbo"}
OWN_SCHEMA: Final = "upwell"
# Names that PostgreSQL keeps for the columns which each table has by itself.
_NOT_COLUMNS: Final = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})
# Types whose text has a small bound, so that a key of them needs no hash.
_SHORT: Final = ("smallint", "integer", "bigint", "uuid", "date", "time", "boolean", "oid")


def target_name(schema: TableSchema) -> TableName:
    """Where rows of the schema go. Raises OperatorError for a name that PostgreSQL can't have, or cuts off."""
    if schema.target is not None:
        named = TableName.parse(schema.target)
        name = named if named.schema else TableName("public", named.name)
    else:
        source = TableName.parse(schema.table)
        default = source.schema in ("", _DEFAULT_SCHEMAS.get(schema.dialect))
        name = TableName("public", source.name) if default else source
    for part in (*name, *(column.name for column in schema.columns)):
        if len(part.encode()) > NAME_BYTES_MAX:
            raise OperatorError(
                f"The name {part!r} of {schema.table} is longer than the {NAME_BYTES_MAX} bytes PostgreSQL keeps.",
                code="UW-PT-030",
                remedy="Give a shorter name with `to:` or `rename:` in the configuration.",
            )
    if name.schema == OWN_SCHEMA and schema.table != HEARTBEAT_TABLE:
        raise OperatorError(
            f"{schema.table} would become {name} in the target, where {OWN_SCHEMA} is upwell's own schema.",
            code="UW-PT-039",
            remedy="Name another table with `to:` in the configuration.",
        )
    taken = [column.name for column in schema.columns if not column.name or column.name in _NOT_COLUMNS]
    if taken:
        raise OperatorError(
            f"PostgreSQL has no columns of the name {', '.join(map(repr, taken))}, as {schema.table} has.",
            code="UW-PT-039",
            remedy="Give them other names with `rename:` in the configuration.",
        )
    return name


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column as the catalog describes it."""

    name: str
    type: str  # as format_type writes it
    base_type: str  # below a domain
    not_null: bool
    generated: bool  # can't be written
    default: str | None  # SQL


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """A unique index or constraint, or an exclusion constraint."""

    name: str
    columns: tuple[str, ...]  # empty where it has expressions
    expressions: tuple[str, ...]  # SQL over the table's unqualified column names
    predicate: str | None
    nulls_equal: bool
    deferrable: bool
    exclusion: bool


@dataclass(frozen=True)
class TargetTable:
    """A table of the target."""

    name: TableName
    columns: dict[str, TargetColumn]
    uniques: tuple[UniqueIndex, ...]

    @property
    def sql(self) -> str:
        return ident(*self.name)

    @property
    def quoted(self) -> str:
        """Its quoted name as a literal, for functions that take one."""
        return literal(self.sql)

    @cached_property
    def label(self) -> str:
        """Its name as a literal: what upwell.evicted calls it."""
        return literal(str(self.name))

    @cached_property
    def written(self) -> list[TargetColumn]:
        """The columns that can be written."""
        return [column for column in self.columns.values() if not column.generated]

    def as_text(self, alias: str, names: Iterable[str]) -> str:
        """SQL: a jsonb object of these columns' text forms."""
        names = list(names)
        labels = ", ".join(map(literal, names))
        texts = ", ".join(f"{alias}.{ident(name)}::text" for name in names)
        return f"jsonb_object(ARRAY[{labels}]::text[], ARRAY[{texts}]::text[])"

    def from_text(self) -> str:
        """SQL: the written columns from such an object, `e.row`; a column that it lacks gets its default."""
        values = []
        for column in self.written:
            name = literal(column.name)
            value = f"(e.row ->> {name})::{column.type}"
            if column.default is not None:
                value = f"CASE WHEN e.row ? {name} THEN {value} ELSE {column.default} END"
            values.append(f"{value} AS {ident(column.name)}")
        return ", ".join(values)

    def key_index(self, key: Sequence[str]) -> UniqueIndex | None:
        """The unique index over just these columns, which ON CONFLICT can use."""
        for index in self.uniques:
            plain = not index.exclusion and not index.deferrable and index.predicate is None
            if plain and index.columns and set(index.columns) == set(key):
                return index
        return None


def read_table(session: Session, name: TableName) -> TargetTable | None:
    """The table as it is now; None where there is none. Raises OperatorError for what is no table."""
    found = session.query(
        "SELECT c.oid, c.relkind FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        [*name],
    )
    if not found:
        return None
    oid, kind = found[0]
    if kind not in ("r", "p", b"r", b"p"):
        raise OperatorError(f"{name} in the target is not a table.", code="UW-PT-031")
    columns = [TargetColumn(*row) for row in session.query(_COLUMNS, [oid])]
    uniques = []
    for index_name, plain, expressions, predicate, nulls_equal, deferrable, exclusion in session.query(_UNIQUES, [oid]):
        uniques.append(
            UniqueIndex(
                index_name, tuple(plain or ()), tuple(expressions), predicate, nulls_equal, deferrable, exclusion
            )
        )
    return TargetTable(name, {column.name: column for column in columns}, tuple(uniques))


_COLUMNS: Final = """
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod),
  CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, NULL) ELSE format_type(a.atttypid, NULL) END,
  a.attnotnull, a.attgenerated <> '',
  CASE WHEN a.attidentity <> ''
    THEN format('nextval(%%L::regclass)', pg_get_serial_sequence(format('%%I.%%I', n.nspname, c.relname), a.attname))
    ELSE pg_get_expr(d.adbin, d.adrelid) END
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

# indnullsnotdistinct exists from PostgreSQL 15 on.
_UNIQUES: Final = """
SELECT x.relname::text,
  CASE WHEN i.indexprs IS NULL THEN ARRAY(
    SELECT a.attname::text FROM generate_series(0, i.indnkeyatts - 1) g
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[g] ORDER BY g) END,
  ARRAY(SELECT pg_get_indexdef(i.indexrelid, g, true) FROM generate_series(1, i.indnkeyatts) g ORDER BY g),
  pg_get_expr(i.indpred, i.indrelid),
  coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false),
  NOT i.indimmediate, i.indisexclusion
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
WHERE i.indrelid = %s AND (i.indisunique OR i.indisexclusion) AND i.indisvalid
ORDER BY i.indisprimary DESC, x.relname
"""


def check_indexes(schema: TableSchema, table: TargetTable) -> None:
    """Raises OperatorError where rows of the schema can't be upserted safely."""
    for index in table.uniques:
        if index.deferrable:
            raise OperatorError(
                f"{table.name} in the target has a deferrable constraint ({index.name}), which can't decide conflicts.",
                code="UW-PT-036",
                remedy=f"ALTER TABLE {table.sql} DROP CONSTRAINT {ident(index.name)}; add it anew, NOT DEFERRABLE.",
            )
    if table.key_index(schema.key) is None:
        columns = ", ".join(map(ident, schema.key))
        raise OperatorError(
            f"{table.name} in the target has no unique index on its key ({', '.join(schema.key)}).",
            code="UW-PT-035",
            remedy=f"CREATE UNIQUE INDEX ON {table.sql} ({columns});",
        )


def create_statements(session: Session, schema: TableSchema, name: TableName) -> list[str]:
    """CREATE SCHEMA (where it is not public) and CREATE TABLE, ready to be run or to be shown to a person."""
    columns = [
        f"{ident(column.name)} {known_type(session, schema, index)}" for index, column in enumerate(schema.columns)
    ]
    key = ", ".join(map(ident, schema.key))
    created = [f"CREATE SCHEMA IF NOT EXISTS {ident(name.schema)}"] if name.schema != "public" else []
    created.append(f"CREATE TABLE IF NOT EXISTS {ident(*name)} ({', '.join(columns)}, PRIMARY KEY ({key}))")
    if schema.table == HEARTBEAT_TABLE:
        # Who reads the rows must learn their age, and nothing else of our schema: dead letters lie there too.
        created.append(f"GRANT SELECT ON {ident(*name)} TO PUBLIC")
    return created


def add_statement(session: Session, schema: TableSchema, name: TableName, missing: Iterable[int]) -> str:
    """ALTER TABLE ... ADD COLUMN for the columns at these indexes, nullable."""
    additions = [
        f"ADD COLUMN IF NOT EXISTS {ident(schema.columns[index].name)} {known_type(session, schema, index)}"
        for index in missing
    ]
    return f"ALTER TABLE {ident(*name)} {', '.join(additions)}"


def known_type(session: Session, schema: TableSchema, index: int) -> str:
    """`target_type`, or text where this server is too old to know it."""
    type_, _ = target_type(schema.columns[index], schema.dialect)
    bare = type_.split("(")[0].rstrip("[]")
    known = session.query("SELECT to_regtype(%s) IS NOT NULL", [bare])[0][0]
    return type_ if known else "text"


class Writer:
    """The SQL that writes rows of one schema into one table."""

    def __init__(self, schema: TableSchema, table: TargetTable) -> None:
        self.schema = schema
        self.table = table
        held = [(i, c) for i, c in enumerate(schema.columns) if not table.columns[c.name].generated]
        self.indexes = [index for index, _ in held]  # which of a row's values are written
        self.columns = [column for _, column in held]
        self.types = [table.columns[column.name].base_type for column in self.columns]
        self.key_columns = [schema.columns[index] for index in schema.key_indexes]
        self.key_types = [table.columns[name].base_type for name in schema.key]
        self.row_stage = f"upwell_{schema.hash}"
        self.key_stage = f"upwell_key_{schema.hash}"
        self._names = [column.name for column in self.columns]
        # A column of the row stage, for the place of each row in its batch where that is asked for.
        self.ordinal = "upwell_ordinal"
        while self.ordinal in self._names:
            self.ordinal += "_"
        self._values = [name for name in self._names if name not in schema.key]

    def create_stage(self, stage: str) -> str:
        """The stage has the target's types and collations, and none of its constraints."""
        names = self._names if stage == self.row_stage else self.schema.key
        columns = ", ".join(map(ident, names))
        if stage == self.row_stage:
            columns += f", 0 AS {ident(self.ordinal)}"
        return (
            f"CREATE TEMPORARY TABLE {ident(stage)} ON COMMIT DELETE ROWS"
            f" AS SELECT {columns} FROM {self.table.sql} WITH NO DATA"
        )

    @cached_property
    def upsert(self) -> str:
        columns = ", ".join(map(ident, self._names))
        key = ", ".join(map(ident, self.schema.key))
        return (
            # The alias, because a table called excluded would be taken for the row that is to be inserted.
            f"INSERT INTO {self.table.sql} AS t ({columns}) OVERRIDING SYSTEM VALUE"
            f" SELECT {columns} FROM {self._stage(self.row_stage)} ON CONFLICT ({key}) {self._on_conflict}"
        )

    @property
    def _on_conflict(self) -> str:
        # Where equal keys can look different (1.0 and 1.00, case in citext), the newest look is kept: the notes of
        # a resync compare looks.
        names = self._values if self._key_is_exact else self._names
        if not names:
            return "DO NOTHING"
        changes = ", ".join(f"{ident(name)} = EXCLUDED.{ident(name)}" for name in names)
        # A resync finds most rows as they are: not to write them again keeps the table from doubling in size. `*<>`
        # compares what is stored, bit by bit, so that 1.0 and 1.00 differ and types without `=` compare too.
        return f"DO UPDATE SET {changes} WHERE {self._image('t', names)} *<> {self._image('EXCLUDED', names)}"

    @staticmethod
    def _image(alias: str, names: Iterable[str]) -> str:
        return f"ROW({', '.join(f'{alias}.{ident(name)}' for name in names)})::record"

    @property
    def _key_is_exact(self) -> bool:
        return all(type_.startswith((*_SHORT, "timestamp", "bytea")) for type_ in self.key_types)

    @cached_property
    def update(self) -> str:
        """Of a partial schema: change what exists."""
        if not self._values:
            return "SELECT"
        changes = ", ".join(f"{ident(name)} = s.{ident(name)}" for name in self._values)
        return (
            f"UPDATE {self.table.sql} AS t SET {changes} FROM {self._stage(self.row_stage)} AS s"
            f" WHERE {self._same_key('t', 's')}"
        )

    @cached_property
    def delete(self) -> str:
        return self._delete(self.key_stage)

    def _delete(self, stage: str) -> str:
        return f"DELETE FROM {self.table.sql} AS t USING {self._stage(stage)} AS s WHERE {self._same_key('t', 's')}"

    def _same_key(self, one: str, other: str) -> str:
        return " AND ".join(f"{one}.{ident(name)} = {other}.{ident(name)}" for name in self.schema.key)

    def key_text(self, alias: str) -> str:
        """SQL: the key as one text, computed by the database from typed values; a hash where it may be long."""
        text = f"ROW({', '.join(f'{alias}.{ident(name)}' for name in self.schema.key)})::text"
        if all(type_.startswith(_SHORT) for type_ in self.key_types):
            return text
        # A ROW's text begins with a parenthesis, a hash never does.
        return (
            f"CASE WHEN length({text}) <= {NOTED_LENGTH_MAX} THEN {text}"
            f" ELSE encode(sha256(convert_to({text}, 'UTF8')), 'hex') END"
        )

    def read(self, *, after: bool) -> str:
        """Rows in key order as their output functions print them. Parameters: the key, where `after`, and the limit."""
        columns = [_doubled(f"t.{ident(column.name)}") for column in self.schema.columns]
        # format() calls the output function, as the wire's text is defined; a cast to text prints some types otherwise.
        texts = (f"CASE WHEN {column} IS DISTINCT FROM NULL THEN format('%%s', {column}) END" for column in columns)
        keys = [columns[index] for index in self.schema.key_indexes]
        given = ", ".join(f"%s::text::{_doubled(self.table.columns[name].type)}" for name in self.schema.key)
        beyond = f"WHERE ROW({', '.join(keys)}) > ROW({given})" if after else ""
        table = _doubled(self.table.sql)
        return f"SELECT {', '.join(texts)} FROM {table} AS t {beyond} ORDER BY {', '.join(keys)} LIMIT %s"

    # ---- rows that make way ----

    @cached_property
    def any_evicted(self) -> str:
        """The question that follows each write: is there a row that waits to come back?"""
        return f"SELECT 1 FROM upwell.evicted WHERE target = {self.table.label} LIMIT 1"

    def forget_evicted(self, stage: str) -> str:
        return (
            f"DELETE FROM upwell.evicted AS e USING {self._stage(stage)} AS s"
            f" WHERE e.target = {self.table.label} AND e.key = {self.key_text('s')}"
        )

    @cached_property
    def restore(self) -> str:
        """Of a partial schema: rows that were evicted come back as they were, with the new values."""
        return (
            f"{self._insert_evicted} FROM (SELECT old.row || {self.table.as_text('s', self._names)} AS row"
            f" FROM {self._stage(self.row_stage)} AS s JOIN upwell.evicted AS old"
            f" ON old.target = {self.table.label} AND old.key = {self.key_text('s')}) AS e"
            f" WHERE NOT EXISTS (SELECT FROM {self.table.sql} AS t WHERE {self._evicted_key})"
        )

    @cached_property
    def complete(self) -> list[str]:
        """Rows just inserted that had been evicted: their columns beyond the schema become what they were.

        By way of the eviction, since an identity column can be inserted but not updated.
        """
        if {column.name for column in self.table.written} <= set(self._names):
            return []
        stage = f"{self._stage(self.row_stage)} AS s"
        mine = f"e.target = {self.table.label} AND e.key = {self.key_text('s')}"
        return [
            f"UPDATE upwell.evicted AS e SET row = e.row || {self.table.as_text('s', self._names)} FROM {stage}"
            f" WHERE {mine}",
            f"DELETE FROM {self.table.sql} AS t USING {stage}, upwell.evicted AS e"
            f" WHERE {self._same_key('t', 's')} AND {mine}",
            self.unpark,
        ]

    @cached_property
    def bring_back(self) -> list[str]:
        """Evicted rows whose key has come anew are history; those that nothing keeps out any more come back."""
        return [
            f"DELETE FROM upwell.evicted AS e USING {self.table.sql} AS t"
            f" WHERE e.target = {self.table.label} AND {self._evicted_key}",
            self._bring_back("true"),
        ]

    @cached_property
    def park(self) -> list[str]:
        """All rows of the stage, complete with what the table or an eviction has of them, become evicted ones."""
        t, label, stage = self.table.sql, self.table.label, self._stage(self.row_stage)
        before = (
            f"coalesce(CASE WHEN t.ctid IS NOT NULL THEN"
            f" {self.table.as_text('t', (column.name for column in self.table.written))} END, old.row)"
        )
        known = f"WHERE {before} IS NOT NULL" if self.schema.partial else ""
        return [
            f"INSERT INTO upwell.evicted AS e SELECT {label}, {self.key_text('s')},"
            f" coalesce({before}, '{{}}') || {self.table.as_text('s', self._names)} FROM {stage} AS s"
            f" LEFT JOIN {t} AS t ON {self._same_key('t', 's')}"
            f" LEFT JOIN upwell.evicted AS old ON old.target = {label} AND old.key = {self.key_text('s')} {known}"
            f" ON CONFLICT (target, key) DO UPDATE SET row = EXCLUDED.row",
            self._delete(self.row_stage),
        ]

    def make_way(self, index: UniqueIndex) -> str:
        """Rows that hold what parked rows of the stage want become evicted ones."""
        prefix = "upwell"
        while any(name.startswith(prefix) for name in self.table.columns):
            prefix += "_"  # the index's expressions name the table's columns, unqualified
        names = [f"{prefix}_{number}" for number in range(len(index.expressions))]
        wanted = ", ".join(f"{sql} AS {name}" for sql, name in zip(index.expressions, names, strict=True))
        equal = "IS NOT DISTINCT FROM" if index.nulls_equal else "="
        holds = " AND ".join(f"({sql}) {equal} n.{name}" for sql, name in zip(index.expressions, names, strict=True))
        predicate = f"({index.predicate})" if index.predicate else "true"
        return (
            f"WITH gone AS (DELETE FROM {self.table.sql} AS t"
            f" USING (SELECT {wanted} FROM ({self._parked}) AS i WHERE {predicate}) AS n"
            f" WHERE {holds} AND {predicate} RETURNING {self.key_text('t')} AS key,"
            f" {self.table.as_text('t', (column.name for column in self.table.written))} AS row)"
            f" INSERT INTO upwell.evicted AS e SELECT {self.table.label}, key, row FROM gone"
            f" ON CONFLICT (target, key) DO UPDATE SET row = EXCLUDED.row"
        )

    @property
    def _parked(self) -> str:
        """The parked rows of the stage with the table's types, generated columns included."""
        rows = f"SELECT {self.table.from_text()} FROM upwell.evicted AS e WHERE {self._of_stage}"
        generated = "".join(f", {c.default} AS {ident(c.name)}" for c in self.table.columns.values() if c.generated)
        return f"SELECT j.*{generated} FROM ({rows}) AS j"

    @cached_property
    def unpark(self) -> str:
        """What was parked goes into the table."""
        return self._bring_back(self._of_stage)

    @property
    def _of_stage(self) -> str:
        keys = f"SELECT {self.key_text('s')} FROM {self._stage(self.row_stage)} AS s"
        return f"e.target = {self.table.label} AND e.key IN ({keys})"

    def _bring_back(self, which: str) -> str:
        # Without a conflict target, DO NOTHING heeds every unique index and waits for concurrent transactions.
        return (
            f"WITH back AS ({self._insert_evicted} FROM upwell.evicted AS e WHERE e.target = {self.table.label}"
            f" AND {which} ORDER BY e.key ON CONFLICT DO NOTHING RETURNING {self.key_text(self.table.sql)} AS key)"
            f" DELETE FROM upwell.evicted AS e USING back WHERE e.target = {self.table.label} AND e.key = back.key"
        )

    @property
    def _insert_evicted(self) -> str:
        columns = ", ".join(ident(column.name) for column in self.table.written)
        return f"INSERT INTO {self.table.sql} ({columns}) OVERRIDING SYSTEM VALUE SELECT {self.table.from_text()}"

    @property
    def _evicted_key(self) -> str:
        return " AND ".join(
            f"t.{ident(name)} = (e.row ->> {literal(name)})::{self.table.columns[name].type}"
            for name in self.schema.key
        )

    # ---- resyncs ----

    def note(self, source_table: int, resync: int) -> str:
        return (
            f"INSERT INTO upwell.note SELECT {source_table}, {resync}, {self.key_text('s')}"
            f" FROM {self._stage(self.key_stage)} AS s ON CONFLICT DO NOTHING"
        )

    def sweep(self, source_table: int, resync: int) -> list[str]:
        """The last statement's row says how many went."""
        noted = f"SELECT FROM upwell.note AS n WHERE n.source_table = {source_table} AND n.resync = {resync}"
        return [
            f"DELETE FROM upwell.evicted AS e WHERE e.target = {self.table.label}"
            f" AND NOT EXISTS ({noted} AND n.key = e.key)",
            f"WITH gone AS (DELETE FROM {self.table.sql} AS t"
            f" WHERE NOT EXISTS ({noted} AND n.key = {self.key_text('t')}) RETURNING 1) SELECT count(*) FROM gone",
        ]

    @property
    def stage(self) -> str:
        """The row stage, quoted."""
        return self._stage(self.row_stage)

    def _stage(self, stage: str) -> str:
        return f"pg_temp.{ident(stage)}"


def _doubled(sql: str) -> str:
    """SQL in a statement with parameters, where % stands for one."""
    return sql.replace("%", "%%")
