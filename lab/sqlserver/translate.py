"""A statement of T-SQL that reads or changes rows, as a statement of PostgreSQL.

sqlglot parses; what it cannot (CHANGETABLE, the context of changes, methods of types) is taken out of the words before.
A variable stays in the text as a mark, so that the translation of one text serves all its values.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import sqlglot
from sqlglot import exp
from sqlglot.dialects.postgres import Postgres
from sqlglot.dialects.tsql import TSQL
from sqlglot.errors import SqlglotError
from sqlglot.generators.postgres import PostgresGenerator
from sqlglot.parsers.tsql import TSQLParser

from lab.sqlserver import tracking
from lab.sqlserver.catalog import Catalog, Column, Table, quoted
from lab.sqlserver.errors import SqlError, Unknown
from lab.sqlserver.values import SqlType, text_literal
from lab.sqlserver.words import Script, Word, by_commas, joined

MARK: Final = re.compile("\x01(.+?)\x01")
_CHANGETABLE: Final = "__changetable_"
# T-SQL's function → PostgreSQL's; what is not here is looked for in schema tds, by its own name.
_SAME: Final = {
    "count", "min", "max", "avg", "coalesce", "nullif", "lower", "upper", "abs", "row_number", "left", "right",
    "substring", "replace", "concat", "trim", "floor", "round", "exists", "string_agg",
}  # fmt: skip
_RENAMED: Final = {"count_big": "count", "isnull": "coalesce", "char": "chr", "nchar": "chr"}
_RESULTS: Final = {"sysutcdatetime": "datetime2(7)", "sysdatetime": "datetime2(7)", "getdate": "datetime",
                   "getutcdate": "datetime", "newid": "uniqueidentifier", "count": "int"}  # fmt: skip
# Moments of the catalog, whose types PostgreSQL does not keep.
_CATALOG: Final = {
    "create_date": SqlType("datetime"), "modify_date": SqlType("datetime"), "commit_time": SqlType("smalldatetime"),
}  # fmt: skip


class _TSql(TSQL):
    """sqlglot's T-SQL with functions left as they are written."""

    class Parser(TSQLParser):
        FUNCTIONS: ClassVar[dict[str, Any]] = {}
        NO_PAREN_FUNCTIONS: ClassVar[dict[Any, Any]] = {}
        FUNCTION_PARSERS = {  # noqa: RUF012
            name: TSQLParser.FUNCTION_PARSERS[name] for name in ("CAST", "CONVERT", "TRY_CAST", "TRY_CONVERT")
        }
        NO_PAREN_FUNCTION_PARSERS = {"CASE": TSQLParser.NO_PAREN_FUNCTION_PARSERS["CASE"]}  # noqa: RUF012


class _Text(Postgres):
    class Generator(PostgresGenerator):
        def datatype_sql(self, expression: exp.DataType) -> str:
            return str(expression.args.get("kind") or super().datatype_sql(expression))


@dataclass
class Query:
    """What is to be done, and what its answer is."""

    sql: str
    columns: list[tuple[str, SqlType | None]] | None = None  # of what it returns; None: as PostgreSQL says
    returns: bool = False
    assigns: list[str] = field(default_factory=list)  # variables that take the values of the row
    needs: set[tuple[str, Table]] = field(default_factory=set)  # (permission, table)
    changes: tuple[int, str] | None = None  # (oid, column ids) of an UPDATE, for the mask
    writes: bool = False
    what: str = "SELECT"
    context: str | None = None  # of Change Tracking, as an expression

    def named(self, name: str) -> Column | None:
        """A column of that name, of `SELECT *` from what PostgreSQL takes for no table, such as CHANGETABLE."""
        if name in tracking.COLUMNS:
            return Column(name.upper(), 0, tracking.COLUMNS[name], required=False, identity=False, computed=False)
        return next((table.columns[name] for _, table in self.needs if name in table.columns), None)


class Translator:
    """For one database. `variables` are asked for the type of a variable."""

    def __init__(
        self, catalog: Catalog, database: Callable[[], str], variables: Callable[[str], SqlType | None]
    ) -> None:
        self._catalog, self._database, self._variables = catalog, database, variables

    def translate(self, text: str, *, forceseek: bool = True) -> Query:
        query = Query("")
        text, sources = self._prepared(text, query, forceseek)
        try:
            tree = sqlglot.parse_one(text, dialect=_TSql)
        except SqlglotError as error:
            raise SqlError(102, f"Incorrect syntax: {str(error).splitlines()[0]}", severity=15) from None
        return _Statement(self, query, sources).done(tree)

    def expression(self, text: str) -> str:
        """A default, a check or a computed column."""
        return self.translate(f"SELECT {text} AS x").sql.removeprefix("SELECT ").removesuffix(' AS "x"')

    def condition(self, text: str) -> str:
        return self.translate(f"SELECT 1 WHERE {text}").sql.partition(" WHERE ")[2]

    def table(self, node: exp.Table) -> Table | None:
        catalog = node.args.get("catalog")
        if catalog is not None and catalog.name.lower() != self._database().lower():
            raise Unknown("a table of another database")
        return self._catalog.table(node.db, node.name)

    def variable(self, name: str) -> SqlType | None:
        return self._variables(name.lower())

    def _prepared(self, text: str, query: Query, forceseek: bool) -> tuple[str, dict[str, tuple[Table, str]]]:
        """The text without what sqlglot does not know; the sources that stand for each CHANGETABLE."""
        script, out, copied = Script(text), [], 0
        sources: dict[str, tuple[Table, str]] = {}
        if script.has("WITH", "CHANGE_TRACKING_CONTEXT"):
            query.context = _plain(script.inside(), self.variable)
            copied = script.word.start
        while script.word.kind != "end":
            word = script.next()
            if word.upper == "CHANGETABLE":
                inside = script.inside()
                if script.word.upper != "AS" and script.word.kind not in {"word", "name"}:
                    raise SqlError(22104, "A table returned by the CHANGETABLE function must be aliased.")
                name = f"{_CHANGETABLE}{len(sources)}"
                sources[name] = self._changetable(Script(joined(inside, text)), query, forceseek)
                out.append(text[copied : word.start] + f"[{name}]")
                copied = script.words[script.at - 1].end
            elif word.text.lower() == "0x":  # no bytes at all: sqlglot takes it for a name
                out.append(text[copied : word.start] + "CAST('' AS varbinary(1))")
                copied = word.end
            elif word.text == "::":  # a static method: geometry::Parse(…)
                out.append(text[copied : word.start] + "__")
                copied = word.end
        return "".join(out) + text[copied:], sources

    def _changetable(self, script: Script, query: Query, forceseek: bool) -> tuple[Table, str]:
        kind = script.next().upper
        parts = script.dotted()
        table = self._tracked(parts)
        script.need(",")
        query.needs |= {("SELECT", table), ("VIEW CHANGE TRACKING", table)}
        if kind == "CHANGES":
            arguments = by_commas(script.words[script.at :])
            if not 1 <= len(arguments) <= 2 or (len(arguments) == 2 and arguments[1][0].upper != "FORCESEEK"):
                raise SqlError(22102, "The arguments supplied to the CHANGETABLE(CHANGES ...) function are not valid.")
            if len(arguments) == 2 and not forceseek:
                raise SqlError(102, "Incorrect syntax near ','.", severity=15)
            since = _plain(arguments[0], self.variable, a_version=True)
            return table, tracking.changes(table, since)
        if kind != "VERSION":
            script.fail()
        names = [part[0].value for part in by_commas(script.inside())]
        script.need(",")
        values = [_plain(part, self.variable) for part in by_commas(script.inside())]
        if len(names) != len(values) or len(names) != len(table.key):
            raise SqlError(22110, "The number of columns specified in the CHANGETABLE(VERSION ...) function does not "
                                  f"match the number of primary key columns for table '{table.written}'.")  # fmt: skip
        for name in names:
            if name.lower() not in table.key:
                raise SqlError(22111, f"The column '{name}' specified in the CHANGETABLE(VERSION ...) function is not "
                                      f"part of the primary key for table '{table.written}'.")  # fmt: skip
        return table, tracking.version_of(table, names, values)

    def _tracked(self, parts: list[str]) -> Table:
        schema = parts[-2] if len(parts) > 1 else ""
        table = self._catalog.table(schema, parts[-1])
        if table is None:
            if schema.lower() == "sys":
                raise SqlError(22107, f"Object '{parts[-1]}' is not a user table.")
            raise SqlError(208, f"Invalid object name '{'.'.join(parts)}'.")
        if table.side is None:
            raise SqlError(22105, f"Change tracking is not enabled on table '{table.written}'.")
        return table


def _plain(parts: list[Word], kind_of: Callable[[str], SqlType | None], *, a_version: bool = False) -> str:
    """A literal, a variable or NULL, as an expression; anything else is a syntax error."""
    sign = "-" if parts and parts[0].text == "-" else ""
    word = parts[len(sign)] if len(parts) == 1 + len(sign) else None
    if word is None:
        raise SqlError(102, f"Incorrect syntax near '{joined(parts, '') or '('}'.", severity=15)
    if word.kind == "variable":
        kind = kind_of(word.text[1:])
        if a_version and kind is not None and kind.name in {"date", "datetime", "datetime2"}:
            raise SqlError(257, f"Implicit conversion from data type {kind.name} to bigint is not allowed.")
        return f"{sign}\x01{word.text[1:].lower()}\x01" + ("::int8" if a_version else "")
    if word.kind == "number":
        return sign + word.text
    if word.upper == "NULL":
        return "NULL::int8" if a_version else "NULL"
    if word.kind == "hex" and not a_version:
        return f"'\\x{word.text[2:]}'::bytea"
    if word.kind == "text" and not a_version:
        return text_literal(word.value)
    raise SqlError(102, f"Incorrect syntax near '{word.text}'.", severity=15)


class _Statement:
    """One statement on its way."""

    def __init__(self, to: Translator, query: Query, sources: dict[str, tuple[Table, str]]) -> None:
        self._to, self._query, self._changes = to, query, sources
        # name or alias in lower case → the table, for types of columns
        self._scope: dict[str, Table] = {}

    def done(self, tree: exp.Expr) -> Query:
        self._refuse(tree)
        for node in list(tree.find_all(exp.Table)):
            self._source(node, tree)
        if isinstance(tree, exp.Insert | exp.Update | exp.Delete | exp.Merge):
            self._query.writes, self._query.what = True, tree.key.upper()
            self._prepare_change(tree)
        self._describe(tree)
        tree = tree.transform(self._node, copy=False)
        self._query.sql = tree.sql(dialect=_Text, normalize_functions=False, comments=False)
        return self._query

    @staticmethod
    def _refuse(tree: exp.Expr) -> None:
        """What would be left out silently."""
        for select in tree.find_all(exp.Select):
            if select.args.get("into") or select.args.get("for_"):
                raise Unknown("SELECT … INTO, FOR JSON, FOR XML")
            select.set("options", None)  # they are hints
        for limit in tree.find_all(exp.LimitOptions):
            if limit.args.get("percent") or limit.args.get("with_ties"):
                raise Unknown("TOP … PERCENT, WITH TIES")

    # What it reads and returns ----------------------------------------------------------------------------------------

    def _source(self, node: exp.Table, tree: exp.Expr) -> None:
        node.set("hints", None)
        alias = node.alias.lower() or node.name.lower()
        if node.name in self._changes:
            table, sql = self._changes[node.name]
            self._scope[alias] = table
            node.replace(exp.Subquery(this=exp.Var(this=sql), alias=node.args.get("alias")))
            return
        if node.db.lower() in {"sys", "information_schema", "tds"}:
            node.set("catalog", None)
            return
        if node.find_ancestor(exp.Select, exp.Merge) and _names_of_ctes(tree) & {node.name.lower()}:
            return
        target = tree.this if isinstance(tree, exp.Update | exp.Insert | exp.Delete | exp.Merge) else None
        target = target.this if isinstance(target, exp.Schema) else target
        found = self._to.table(node)
        if found is None:
            if isinstance(node.this, exp.Anonymous):
                return
            if node is target and isinstance(tree, exp.Update | exp.Delete):
                return  # perhaps an alias: see _prepare_change
            raise SqlError(208, f"Invalid object name '{node.sql(dialect='tsql').replace('[', '').replace(']', '')}'.")
        self._scope[alias] = found
        self._query.needs.add((tree.key.upper() if node is target else "SELECT", found))
        node.set("catalog", None)
        node.set("db", exp.to_identifier(found.schema))

    def _describe(self, tree: exp.Expr) -> None:
        """Names and types of the result, as far as the text tells them."""
        returning = tree.args.get("returning")
        if not isinstance(tree, exp.Query) and returning is None:
            return
        items = returning.expressions if returning is not None else _selected(tree)
        assigned = [i for i in items if isinstance(i, exp.EQ) and isinstance(i.this, exp.Parameter)]
        if assigned:
            self._query.assigns = [str(i.this.name).lower() for i in assigned]
            for item in assigned:
                item.replace(item.expression)
            items = _selected(tree)
        self._query.returns = True
        if not any(item.is_star for item in items):
            self._query.columns = [(_name(item), self._type(item)) for item in items]

    def _type(self, node: exp.Expr) -> SqlType | None:
        """Of an expression, where a cast, a literal, a variable or a column says it."""
        if isinstance(node, exp.Alias | exp.Paren):
            return self._type(node.this)
        if isinstance(node, exp.Cast | exp.TryCast):
            return SqlType.parse(node.to.sql(dialect="tsql"))
        if isinstance(node, exp.Convert):
            return SqlType.parse(node.this.sql(dialect="tsql"))
        if isinstance(node, exp.National):
            return SqlType("nvarchar", length=max(1, len(node.name)))
        if isinstance(node, exp.Literal) and node.is_string:
            return SqlType("varchar", length=max(1, len(node.name)))
        if isinstance(node, exp.Literal) and "." in node.name and node.name.replace(".", "").isdigit():
            whole, _, fraction = node.name.partition(".")
            return SqlType("numeric", precision=len(whole) + len(fraction), scale=len(fraction))
        if isinstance(node, exp.HexString):
            return SqlType("varbinary", length=max(1, len(node.name) // 2))
        if isinstance(node, exp.Parameter):
            return self._to.variable(node.name)
        if isinstance(node, exp.Column):
            name = node.name.lower()
            return tracking.COLUMNS.get(name) or _kind(self._column(node)) or _CATALOG.get(name)
        if isinstance(node, exp.Anonymous) and node.name.lower() in _RESULTS:
            return SqlType.parse(_RESULTS[node.name.lower()])
        return None

    def _column(self, node: exp.Column) -> Column | None:
        name, of = node.name.lower(), node.table.lower()
        tables = [self._scope[of]] if of in self._scope else [] if of else list(self._scope.values())
        found = [table.columns[name] for table in tables if name in table.columns]
        return found[0] if len({column.kind for column in found}) == 1 else None

    # Changes ----------------------------------------------------------------------------------------------------------

    def _prepare_change(self, tree: exp.Expr) -> None:
        if isinstance(tree, exp.Delete) and tree.args.get("tables"):
            (target,) = tree.args["tables"]
            if target.name.lower() == "top":
                raise Unknown("DELETE TOP")
            if tree.this:
                tree.set("tables", None)
                self._query.needs = {("DELETE", table) for _, table in self._query.needs}
            else:
                tree.set("this", target)
                tree.set("tables", None)
        if isinstance(tree, exp.Update):
            self._update(tree)
        if isinstance(tree, exp.Insert):
            self._insert(tree)
        if isinstance(tree, exp.Merge):
            table = self._to.table(tree.this)
            updates = [w.args["then"] for w in tree.args["whens"].expressions if isinstance(w.args["then"], exp.Update)]
            if table is not None:
                self._query.changes = (table.oid, self._ids(table, [a for u in updates for a in u.expressions]))
        elif self._query.changes is None:
            target = tree.this.this if isinstance(tree.this, exp.Schema) else tree.this
            table = self._to.table(target)
            if table is not None:
                self._query.changes = (table.oid, "")
        if returning := tree.args.get("returning"):
            for column in returning.find_all(exp.Column):
                if column.table.lower() in {"inserted", "deleted"}:
                    column.set("table", None)
            if isinstance(returning.args.get("into"), exp.Expr):
                raise Unknown("OUTPUT … INTO")

    def _update(self, tree: exp.Update) -> None:
        source = tree.args.get("from_")
        if source is not None and source.this.alias_or_name.lower() == tree.this.name.lower():
            if tree.this.name.lower() not in self._scope or source.this.args.get("joins"):
                raise Unknown("UPDATE … FROM … JOIN")
            tree.set("this", source.this)
            tree.set("from_", None)
        table = self._scope.get(tree.this.alias_or_name.lower())
        if table is None:
            raise SqlError(208, f"Invalid object name '{tree.this.name}'.")
        for assignment in tree.expressions:
            if not isinstance(assignment.this, exp.Column):
                raise Unknown("a variable set by UPDATE")
            assignment.this.set("table", None)
            self._assigned(table, assignment.this.name, assignment.expression)
        self._query.changes = (table.oid, self._ids(table, tree.expressions))

    def _ids(self, table: Table, assignments: list[exp.Expr]) -> str:
        names = [assignment.this.name.lower() for assignment in assignments]
        for name in names:
            if name not in table.columns:
                raise SqlError(207, f"Invalid column name '{name}'.")
        return ",".join(str(table.columns[name].number) for name in names)

    def _insert(self, tree: exp.Insert) -> None:
        target = tree.this.this if isinstance(tree.this, exp.Schema) else tree.this
        table = self._to.table(target)
        if table is None or tree.args.get("default"):
            return
        if not isinstance(tree.this, exp.Schema):
            given = [c.name for c in table.columns.values()
                     if not c.identity and not c.computed and c.kind.name != "timestamp"]  # fmt: skip
            tree.set("this", exp.Schema(this=target, expressions=[exp.to_identifier(name) for name in given]))
        names = [identifier.name for identifier in tree.this.expressions]
        for name in names:
            if name.lower() not in table.columns:
                raise SqlError(207, f"Invalid column name '{name}'.")
        values = tree.expression
        if isinstance(values, exp.Values):
            for row in values.expressions:
                items = row.expressions if isinstance(row, exp.Tuple) else [row]
                if len(items) != len(names):
                    raise SqlError(213, "Column name or number of supplied values does not match table definition.")
                for name, value in zip(names, items, strict=True):
                    self._assigned(table, name, value)

    def _assigned(self, table: Table, name: str, value: exp.Expr) -> None:
        """A sql_variant keeps the type of what is put into it; a string of bytes comes from its literal."""
        column = table.columns.get(name.lower())
        if column is None or isinstance(value, exp.Null):
            return
        if column.kind.name == "sql_variant":
            kind = self._type(value) or SqlType(
                "int" if value.is_int else "nvarchar", length=0 if value.is_int else 4000
            )
            if isinstance(value, exp.Literal) and not value.is_string and not value.is_int:
                kind = SqlType("decimal", precision=18, scale=len(value.name.partition(".")[2]))
            inner = self._sql(value, f"::{kind.postgres}" if not kind.textual else "")
            value.replace(exp.Var(this=f"('{kind}:' || ({inner})::text)"))
        elif isinstance(value, exp.Cast | exp.Literal | exp.National | exp.Parameter):
            value.replace(exp.Var(this=f"({self._sql(value)})::{column.kind.postgres}"))

    # Expressions ------------------------------------------------------------------------------------------------------

    def _sql(self, node: exp.Expr, suffix: str = "") -> str:
        text = node.copy().transform(self._node).sql(dialect=_Text, normalize_functions=False, comments=False)
        return f"({text}){suffix}" if suffix else str(text)

    def _node(self, node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Identifier):
            return exp.Identifier(this=node.name.lower(), quoted=True)
        if isinstance(node, exp.National) or (isinstance(node, exp.Literal) and node.is_string):
            return exp.Var(this=text_literal(node.name))
        if isinstance(node, exp.HexString):
            digits = node.name if len(node.name) % 2 == 0 else "0" + node.name
            return exp.Var(this=f"'\\x{digits}'::bytea")
        if isinstance(node, exp.Parameter):
            inner = node.this
            name = f"@{inner.name}" if isinstance(inner, exp.Parameter) else node.name
            return exp.Var(this=f"\x01{name.lower()}\x01")
        if isinstance(node, exp.Ordered):
            return self._ordered(node)
        if isinstance(node, exp.Cast | exp.TryCast):
            return exp.Var(this=self._cast(node.this, SqlType.parse(node.to.sql(dialect="tsql")), 0))
        if isinstance(node, exp.Convert):
            style = node.args.get("style")
            kind = SqlType.parse(node.this.sql(dialect="tsql"))
            return exp.Var(this=self._cast(node.expression, kind, int(style.name) if style is not None else 0))
        if isinstance(node, exp.Dot) and isinstance(node.expression, exp.Anonymous):
            return self._method(node)
        if isinstance(node, exp.Anonymous):
            return self._function(node)
        if isinstance(node, exp.Collate):
            return exp.Var(this=f"({self._sql(node.this)} COLLATE {collation(node.expression.name)})")
        if isinstance(node, exp.Like):
            left, right = self._sql(node.this), self._sql(node.expression)
            return exp.Var(this=f'(({left})::text COLLATE "und-x-icu" ILIKE {right})')
        return node

    def _ordered(self, node: exp.Ordered) -> exp.Expr:
        """NULLs come first, as SQL Server has it; not said of what has none, for the sake of the index."""
        column = self._column(node.this) if isinstance(node.this, exp.Column) else None
        if column is not None and column.required:
            node.set("nulls_first", bool(node.args.get("desc")))
        return node

    def _cast(self, value: exp.Expr, kind: SqlType, style: int) -> str:
        source = self._type(value)
        text = self._sql(value)
        if kind.textual and source is not None and source.name in {"datetime", "datetime2", "smalldatetime"}:
            digits = 0 if style in {20, 120} else source.scale if source.name == "datetime2" else 3
            return f"tds.moment_text(({text})::tds.datetime2::int8, {digits}, {style})"
        if kind.textual and source is not None and source.name == "time":
            return f"substr(tds.moment_text(({text})::tds.time::int8, {source.scale}, 121), 12)"
        if kind.textual and source is not None and source.name == "datetimeoffset":
            return f"tds.offset_text(({text})::tds.datetimeoffset, {source.scale}, {style})"
        if kind.textual and source is not None and "binary" in source.name:
            prefix = "'0x' || " if style == 1 else ""
            return f"({prefix}upper(encode({text}, 'hex')))" if style else f"convert_from({text}, 'UTF8')"
        if "binary" in kind.name and (source is None or source.textual):
            wide = source is None or source.name in {"nvarchar", "nchar", "ntext"}
            plain = f"tds.to_{'wide_' * wide}bytes({text})"
            return f"decode(regexp_replace({text}, '^0x', ''), 'hex')" if style else plain
        if "binary" in kind.name and source is not None and source.name in {"int", "bigint", "smallint"}:
            return f"int{ {'int': 4, 'bigint': 8, 'smallint': 2}[source.name] }send({text})"
        if kind.textual and source is not None and source.name == "sql_variant":
            return f"substr({text}, strpos({text}, ':') + 1)"
        if kind.textual and source is not None and source.name in {"money", "smallmoney"} and style != 2:
            return f"({text})::numeric(19,2)::text"
        if kind.name == "bit":
            return f"(({text})::int4 <> 0)::int4::int2"
        if kind.name == "timestamp":
            return f"({text})"
        if kind.textual and source is not None and source.name in {"char", "nchar"}:
            text = f"textin(bpcharout({text}))"  # a cast would take the blanks away
        elif kind.textual and (source is None or not source.textual):
            text = f"({text})::text"  # which is where the ways from our own types lead
        return f"({text})::{kind.postgres}"

    def _function(self, node: exp.Anonymous) -> exp.Expr:
        name = node.name.lower()
        if name in {"datediff", "dateadd"}:
            rest = ", ".join(self._sql(part) for part in node.expressions[1:])
            return exp.Var(this=f"tds.{name}({text_literal(node.expressions[0].name.lower())}, {rest})")
        target = _RENAMED.get(name, name)
        if target not in _SAME and target != "chr":
            target = f"tds.{target}"
        node.set("this", target)
        return node

    def _method(self, node: exp.Dot) -> exp.Expr:
        """`column.STAsBinary()` → `tds.stasbinary(column)`."""
        call = node.expression
        inner = [part.name for part in node.this.flatten()] if isinstance(node.this, exp.Dot) else [node.this.name]
        arguments = [".".join(quoted(part) for part in inner), *(self._sql(part) for part in call.expressions)]
        return exp.Var(this=f"tds.{call.name.lower()}({', '.join(arguments)})")


def collation(name: str) -> str:
    """PostgreSQL's collation for SQL Server's, by what its name says; accents are told apart but for AI."""
    upper = name.upper()
    if upper == "DATABASE_DEFAULT":
        return "tds.ci"
    if upper.endswith(("_BIN", "_BIN2")):
        return '"C"'
    if "_AI" in upper:
        return "tds.ai"
    return "tds.cs" if "_CS" in upper else "tds.ci"


def _kind(column: Column | None) -> SqlType | None:
    return column.kind if column is not None else None


def _selected(tree: exp.Expr) -> list[exp.Expr]:
    assert isinstance(tree, exp.Query)
    return list(tree.selects)


def _name(item: exp.Expr) -> str:
    """Of a result's column: only a column or an alias gives it one."""
    return str(item.alias_or_name) if isinstance(item, exp.Alias | exp.Column) else ""


def _names_of_ctes(tree: exp.Expr) -> set[str]:
    return {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
