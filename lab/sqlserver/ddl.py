"""Statements that make and change tables, as statements of PostgreSQL; `Tables` runs them one after the other."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from lab.sqlserver import tracking
from lab.sqlserver.catalog import Catalog, Rows, Table, listed, quoted
from lab.sqlserver.errors import SqlError, Unknown
from lab.sqlserver.translate import Translator, collation
from lab.sqlserver.values import SqlType, of_result, plain_literal, text_literal
from lab.sqlserver.words import Script, Word, by_commas, joined

DEFAULT_COLLATION: Final = "SQL_Latin1_General_CP1_CI_AS"


@dataclass
class _Column:
    name: str
    kind: SqlType | None = None
    collation: str | None = None
    required: bool = False
    identity: tuple[int, int] | None = None
    default: str | None = None
    computed: str | None = None
    sparse: bool = False
    said: dict[str, object] = field(default_factory=dict)


class Tables:
    """What a session does to tables. `run` executes PostgreSQL's SQL, which may be several statements."""

    def __init__(
        self,
        run: Callable[[str], Rows],
        catalog: Catalog,
        translator: Translator,
        moments: Callable[[], dict[int, str]],
    ) -> None:
        self._run, self._catalog, self._translator, self._moments = run, catalog, translator, moments

    def create_table(self, script: Script) -> None:
        schema, name = self._new_name(script)
        columns, constraints = [], []
        inside = by_commas(script.inside())
        for part in inside:
            item = Script(joined(part, script.text))
            if item.word.upper in {"CONSTRAINT", "PRIMARY", "UNIQUE", "FOREIGN", "CHECK"}:
                constraints.append(self._constraint(item, schema, name))
            else:
                column, own = self._column(item, schema, name)
                columns.append(column)
                constraints += own
        in_memory = script.has("WITH") and [w.upper for w in script.inside()][:3] == ["MEMORY_OPTIMIZED", "=", "ON"]
        self._types_of_computed(columns)
        table = f"{quoted(schema)}.{quoted(name)}"
        self._run(f"CREATE TABLE {table} ({', '.join(self._definition(column) for column in columns)})")
        self._run(f"COMMENT ON TABLE {table} IS {_written(name)}")
        oid = f"{plain_literal(table)}::regclass"
        self._run(f"INSERT INTO tds.dates VALUES ({oid}, clock_timestamp(), clock_timestamp(), {in_memory})")
        for column in columns:
            self._comment(table, column)
            self._stamp(table, column)
        for constraint in constraints:
            self._run(f"ALTER TABLE {table} ADD {constraint}")

    def drop_table(self, script: Script) -> None:
        optional = script.has("IF", "EXISTS")
        while True:
            parts = script.dotted()
            table = self._catalog.table(*_schema_and_name(parts))
            if table is None and not optional:
                raise SqlError(3701, f"Cannot drop the table '{'.'.join(parts)}', because it does not exist or you do "
                                     "not have permission.", severity=11, state=5)  # fmt: skip
            if table is not None:
                self._run(f"DROP TABLE {table.quoted}")
                if table.side is not None:
                    self._run(tracking.forget(table))
            if not script.has(","):
                return

    def alter_table(self, script: Script) -> None:
        table = self.named(script, 4902, "Cannot find the object \"{}\" because it does not exist or you do not have "
                                         "permissions.")  # fmt: skip
        if script.has("WITH", "CHECK") or script.has("WITH", "NOCHECK"):
            pass
        if script.has("ENABLE", "CHANGE_TRACKING"):
            self._enable(table, script)
        elif script.has("DISABLE", "CHANGE_TRACKING"):
            if table.side is None:
                raise SqlError(4998, f"Change tracking is not enabled on table '{table.written}'.")
            self._run(tracking.disable(table))
        elif script.has("ADD"):
            self._add(table, script)
        elif script.has("DROP"):
            self._drop(table, script)
        elif script.has("ALTER", "COLUMN"):
            self._alter_column(table, script)
        elif script.has("SWITCH"):
            self._refuse_when_tracked(table, "ALTER TABLE SWITCH")
            raise Unknown("ALTER TABLE SWITCH")
        elif script.word.upper not in {"CHECK", "NOCHECK", "REBUILD", "ENABLE"}:
            raise Unknown(f"ALTER TABLE {script.word.text}")
        self._run(f"UPDATE tds.dates SET modified = clock_timestamp() WHERE oid = {table.oid}")
        if table.side is not None and (now := self._catalog.table(table.schema, table.name)) and now.side is not None:
            self._run(tracking.record(now))

    def create_index(self, script: Script) -> None:
        unique = script.has("UNIQUE")
        if not (script.has("CLUSTERED") or script.has("NONCLUSTERED")):
            pass
        script.need("INDEX")
        name = script.name()
        script.need("ON")
        table = self.named(script)
        columns = ", ".join(_key_column(part) for part in by_commas(script.inside()))
        index = quoted(f"{table.name}.{name}")
        self._run(f"CREATE {'UNIQUE ' * unique}INDEX {index} ON {table.quoted} ({columns})")
        self._run(f"COMMENT ON INDEX {quoted(table.schema)}.{index} IS {_written(name)}")

    def drop_index(self, script: Script) -> None:
        optional = script.has("IF", "EXISTS")
        name = script.name()
        script.need("ON")
        table = self.named(script)
        self._run(f"DROP INDEX {'IF EXISTS ' * optional}{quoted(table.schema)}.{quoted(f'{table.name}.{name}')}")

    def create_schema(self, script: Script) -> None:
        name = script.name()
        self._run(f"CREATE SCHEMA {quoted(name)}; COMMENT ON SCHEMA {quoted(name)} IS {_written(name)}")

    def truncate(self, script: Script) -> None:
        table = self.named(script, 4701, "Cannot find the object \"{}\" because it does not exist or you do not have "
                                         "permissions.")  # fmt: skip
        try:
            self._run(f"TRUNCATE {table.quoted}")
        except SqlError as error:
            text = (
                f"Cannot truncate table '{table.written}' because it is being referenced by a FOREIGN KEY constraint."
            )
            raise SqlError(4712, text) from error
        if table.side is not None:
            self._run(tracking.emptied(table))

    def rename(self, old: str, new: str, kind: str | None) -> None:
        """sp_rename, of a table or a column."""
        parts = Script(old).dotted()
        if (kind or "OBJECT").upper() == "COLUMN":
            table = self._known(parts[:-1])
            column = table.columns[parts[-1].lower()]
            if table.side is not None and parts[-1].lower() in table.key:
                raise Unknown("a key column of a tracked table renamed")
            self._run(f"ALTER TABLE {table.quoted} RENAME COLUMN {quoted(parts[-1])} TO {quoted(new)}")
            self._run(f"COMMENT ON COLUMN {table.quoted}.{quoted(new)} IS "
                      f"{plain_literal(json.dumps({'name': new, 'type': str(column.kind)}))}")  # fmt: skip
            if table.side is not None and (now := self._catalog.table(table.schema, table.name)):
                self._run(tracking.record(now))
            return
        table = self._known(parts)
        self._run(f"ALTER TABLE {table.quoted} RENAME TO {quoted(new)}")
        self._run(f"COMMENT ON TABLE {quoted(table.schema)}.{quoted(new)} IS {_written(new)}")

    def named(self, script: Script, number: int = 208, text: str = "Invalid object name '{}'.") -> Table:
        parts = script.dotted()
        table = self._catalog.table(*_schema_and_name(parts))
        if table is None:
            raise SqlError(number, text.format(".".join(parts)))
        return table

    def _known(self, parts: list[str]) -> Table:
        table = self._catalog.table(*_schema_and_name(parts))
        if table is None:
            raise SqlError(15225, f"No item by the name of '{'.'.join(parts)}' could be found.")
        return table

    # ALTER TABLE ------------------------------------------------------------------------------------------------------

    def _enable(self, table: Table, script: Script) -> None:
        if self._run("SELECT tds.setting('tracking')")[0][0] != "ON":
            raise SqlError(1718, "Change tracking must be enabled on the database before it can be enabled on table "
                                 f"'{table.written}'.")  # fmt: skip
        if table.side is not None:
            raise SqlError(4996, f"Change tracking is already enabled for table '{table.written}'.")
        if not table.key:
            raise SqlError(4997, f"Cannot enable change tracking on table '{table.written}'. Change tracking requires "
                                 "a primary key on the table. Create a primary key on the table before enabling change "
                                 "tracking.")  # fmt: skip
        if any(table.columns[name].kind.name == "timestamp" for name in table.key):
            raise SqlError(4999, f"Cannot enable change tracking on table '{table.written}'. Change tracking does not "
                                 "support a primary key of type timestamp on a table.")  # fmt: skip
        if self._run(f"SELECT tds.objectproperty({table.oid}, 'TableIsMemoryOptimized')") == [("1",)]:
            raise SqlError(10794, "The feature 'change tracking' is not supported with memory optimized tables.")
        masks = False
        if script.has("WITH"):
            options = [word.upper for word in script.inside()]
            if options[:2] != ["TRACK_COLUMNS_UPDATED", "="] or options[2:] not in (["ON"], ["OFF"]):
                script.fail()
            masks = options[2] == "ON"
        self._run(tracking.enable(table, masks=masks))

    def _add(self, table: Table, script: Script) -> None:
        rest = [script.words[script.at :]]
        for part in by_commas([word for words in rest for word in words]):
            item = Script(joined(part, script.text))
            if item.word.upper in {"PRIMARY", "UNIQUE", "FOREIGN", "CHECK"} or (
                item.word.upper == "CONSTRAINT" and item.peek(2) in {"PRIMARY", "UNIQUE", "FOREIGN", "CHECK"}
            ):
                self._run(f"ALTER TABLE {table.quoted} ADD {self._constraint(item, table.schema, table.written)}")
            elif item.word.upper in {"CONSTRAINT", "DEFAULT"}:
                self._add_default(table, item)
            else:
                column, constraints = self._column(item, table.schema, table.written)
                self._types_of_computed([column], table)
                self._run(f"ALTER TABLE {table.quoted} ADD COLUMN {self._definition(column)}")
                self._comment(table.quoted, column)
                self._stamp(table.quoted, column)
                for constraint in constraints:
                    self._run(f"ALTER TABLE {table.quoted} ADD {constraint}")

    def _add_default(self, table: Table, item: Script) -> None:
        if item.has("CONSTRAINT"):
            item.name()
        item.need("DEFAULT")
        start = item.at
        while item.word.upper != "FOR":
            item.next()
        value = self._translator.expression(joined(item.words[start : item.at], item.text))
        item.need("FOR")
        column = table.columns[item.name().lower()]
        self._run(f"ALTER TABLE {table.quoted} ALTER COLUMN {quoted(column.name)} SET DEFAULT ({value})"
                  f"::{column.kind.postgres}")  # fmt: skip

    def _drop(self, table: Table, script: Script) -> None:
        if script.has("COLUMN"):
            script.has("IF", "EXISTS")
            for part in by_commas(script.words[script.at :]):
                name = part[0].value
                if name.lower() not in table.columns:
                    raise SqlError(4924, f"ALTER TABLE DROP COLUMN failed because column '{name}' does not exist in "
                                         f"table '{table.written}'.")  # fmt: skip
                if table.side is not None and name.lower() in table.key:
                    self._refuse_when_tracked(table, f"ALTER TABLE DROP COLUMN {name}")
                self._run(f"ALTER TABLE {table.quoted} DROP COLUMN {quoted(name)}")
            return
        script.has("CONSTRAINT")
        script.has("IF", "EXISTS")
        name = script.name()
        kind = self._run(f"SELECT contype FROM pg_constraint WHERE conrelid = {table.oid}"
                         f" AND conname = {text_literal(name.lower())}")  # fmt: skip
        if table.side is not None and kind and kind[0][0] == "p":
            raise SqlError(3735, f"The primary key constraint '{name}' on table '{table.written}' cannot be dropped "
                                 "because change tracking is enabled on the table. Change tracking requires a primary "
                                 "key constraint on the table. Disable change tracking before dropping the "
                                 "constraint.")  # fmt: skip
        if kind:  # a default is no constraint of its own here
            self._run(f"ALTER TABLE {table.quoted} DROP CONSTRAINT {quoted(name)}")

    def _alter_column(self, table: Table, script: Script) -> None:
        column, _ = self._column(script, table.schema, table.written)
        known = table.columns.get(column.name.lower())
        if known is None or column.kind is None:
            raise SqlError(4924, f"ALTER TABLE ALTER COLUMN failed because column '{column.name}' does not exist in "
                                 f"table '{table.written}'.")  # fmt: skip
        if table.side is not None and column.name.lower() in table.key:
            self._refuse_when_tracked(table, f"ALTER COLUMN {column.name}")
        name, kind = quoted(column.name), column.kind.postgres
        collate = f" COLLATE {collation(column.collation or DEFAULT_COLLATION)}" * _collates(column.kind)
        null = "SET NOT NULL" if column.required else "DROP NOT NULL"
        self._run(f"ALTER TABLE {table.quoted} ALTER COLUMN {name} TYPE {kind}{collate} USING {name}::{kind},"
                  f" ALTER COLUMN {name} {null}")  # fmt: skip
        column.name = known.name
        self._comment(table.quoted, column)

    def _refuse_when_tracked(self, table: Table, what: str) -> None:
        if table.side is not None:
            raise SqlError(22113, f"{what} is not allowed because the table is being tracked by change tracking.")

    # Parts of a table -------------------------------------------------------------------------------------------------

    def _new_name(self, script: Script) -> tuple[str, str]:
        parts = script.dotted()
        schema, name = _schema_and_name(parts)
        if name.startswith("#"):
            raise Unknown("a temporary table")
        if self._catalog.table(schema, name) is not None:
            raise SqlError(2714, f"There is already an object named '{name}' in the database.", state=6)
        return schema, name

    def _column(self, item: Script, schema: str, table: str) -> tuple[_Column, list[str]]:
        column, constraints, label = _Column(item.name()), [], ""
        if item.has("AS"):
            column.computed = joined([word for word in item.words[item.at :] if word.upper != "PERSISTED"], item.text)
            return column, []
        column.kind = self._kind(item)
        while item.word.kind != "end":
            if item.has("CONSTRAINT"):
                label = item.name()
            elif item.has("NOT", "NULL"):
                column.required = True
            elif item.has("IDENTITY"):
                numbers = [int(part[-1].text) for part in by_commas(item.inside())] if item.word.text == "(" else [1, 1]
                column.identity, column.required = (numbers[0], numbers[1]), True
            elif item.has("COLLATE"):
                column.collation = item.name()
            elif item.has("DEFAULT"):
                column.default = self._translator.expression(self._value(item))
            elif item.has("SPARSE"):
                column.sparse = True
            elif item.word.upper in {"PRIMARY", "UNIQUE", "REFERENCES", "CHECK", "FOREIGN"}:
                column.required = column.required or item.word.upper == "PRIMARY"
                constraints.append(self._constraint(item, schema, table, column.name, label))
                label = ""
            elif not (item.has("NULL") or item.has("ROWGUIDCOL") or item.has("WITH", "VALUES")):
                item.fail()
        return column, constraints

    def _kind(self, item: Script) -> SqlType:
        name = item.dotted()[-1]
        if item.word.text == "(":
            name += f"({joined(item.inside(), item.text)})"
        return SqlType.parse(name)

    def _value(self, item: Script) -> str:
        """The expression of a DEFAULT: one in brackets, a literal, or a call."""
        start = item.at
        if item.word.text == "(":
            item.inside()
        else:
            item.has("-")
            item.next()
            if item.word.text == "(":
                item.inside()
        return joined(item.words[start : item.at], item.text)

    def _constraint(self, item: Script, schema: str, table: str, column: str = "", label: str = "") -> str:
        if item.has("CONSTRAINT"):
            label = item.name()
        if item.has("PRIMARY", "KEY"):
            name, kind = label or f"PK__{table}__{zlib.crc32(f'{schema}.{table}'.encode()):08X}", "PRIMARY KEY"
        elif item.has("UNIQUE"):
            name, kind = label or f"UQ__{table}__{zlib.crc32(f'{column}{item.text}'.encode()):08X}", "UNIQUE"
        elif item.has("CHECK"):
            check = self._translator.condition(joined(item.inside(), item.text))
            return f"{_label(label)}CHECK ({check})"
        else:
            return _label(label) + self._foreign_key(item, column)
        if not (item.has("CLUSTERED") or item.has("NONCLUSTERED")):
            pass
        columns = (
            [_key_column(part) for part in by_commas(item.inside())] if item.word.text == "(" else [quoted(column)]
        )
        if item.has("WITH"):
            item.inside()
        # Checked when the statement is over, as in SQL Server: `SET id = id + 1` must not meet itself.
        names = ", ".join(part.split(" ")[0] if part.endswith(" DESC") else part for part in columns)
        return f"CONSTRAINT {quoted(name)} {kind} ({names}) DEFERRABLE INITIALLY IMMEDIATE"

    def _foreign_key(self, item: Script, column: str) -> str:
        own = quoted(column)
        if item.has("FOREIGN", "KEY"):
            own = ", ".join(_key_column(part) for part in by_commas(item.inside()))
        item.need("REFERENCES")
        other = self.named(item)
        theirs = listed(other.key)
        if item.word.text == "(":
            theirs = ", ".join(_key_column(part) for part in by_commas(item.inside()))
        actions = ""
        while item.has("ON"):
            actions += f" ON {item.next().upper} {item.next().upper}"
            if actions.endswith((" NO", " SET")):
                actions += f" {item.next().upper}"
        self._at_once(other)
        return f"FOREIGN KEY ({own}) REFERENCES {other.quoted} ({theirs}){actions}"

    def _at_once(self, table: Table) -> None:
        """PostgreSQL refers to no key that is checked at the end only."""
        found = self._run(f"SELECT conname, contype, pg_get_constraintdef(oid) FROM pg_constraint"
                          f" WHERE conrelid = {table.oid} AND contype IN ('p', 'u') AND condeferrable")  # fmt: skip
        for name, _, definition in found:
            at_once = str(definition).replace(" DEFERRABLE", "")
            self._run(f"ALTER TABLE {table.quoted} DROP CONSTRAINT {quoted(str(name))},"
                      f" ADD CONSTRAINT {quoted(str(name))} {at_once}")  # fmt: skip

    def _types_of_computed(self, columns: list[_Column], table: Table | None = None) -> None:
        """PostgreSQL wants to be told; it tells itself, when asked about a table with the other columns."""
        for column in columns:
            if column.computed is None:
                continue
            column.computed = self._translator.expression(column.computed)
            source = table.quoted if table is not None else "pg_temp.tds_probe"
            if table is None:
                plain = ", ".join(self._definition(c) for c in columns if c.kind is not None and c.computed is None)
                self._run(f"CREATE TEMP TABLE tds_probe ({plain})")
            self._run(f"CREATE TEMP TABLE tds_answer AS SELECT {column.computed} AS c FROM {source} LIMIT 0")
            column.kind = of_result(*self._answered(), self._moments())
            self._run("DROP TABLE tds_answer" + (", tds_probe" if table is None else ""))

    def _answered(self) -> tuple[int, int]:
        answer = "attrelid = 'pg_temp.tds_answer'::regclass AND attname = 'c'"
        oid, modifier = self._run(f"SELECT atttypid, atttypmod FROM pg_attribute WHERE {answer}")[0]
        return int(oid or 0), int(modifier or 0)

    def _definition(self, column: _Column) -> str:
        assert column.kind is not None
        text = f"{quoted(column.name)} {column.kind.postgres}"
        if _collates(column.kind):
            text += f" COLLATE {collation(column.collation or DEFAULT_COLLATION)}"
        if column.required:
            text += " NOT NULL"
        if column.identity is not None:
            start, step = column.identity
            text += f" GENERATED ALWAYS AS IDENTITY (START {start} INCREMENT {step})"
        if column.default is not None:
            text += f" DEFAULT ({column.default})::{column.kind.postgres}"
        if column.computed is not None:
            text += f" GENERATED ALWAYS AS (({column.computed})::{column.kind.postgres}) STORED"
        if column.kind.name == "timestamp":
            text += " DEFAULT int8send(nextval('tds.stamp'))"
        if column.kind.name == "bit":
            text += f" CHECK ({quoted(column.name)} IN (0, 1))"
        return text

    def _comment(self, table: str, column: _Column) -> None:
        assert column.kind is not None
        said: dict[str, object] = {"name": column.name, "type": str(column.kind), "ids": column.kind.ids}
        if _collates(column.kind):
            said["collation"] = column.collation or DEFAULT_COLLATION
        if column.sparse:
            said["sparse"] = True
        self._run(f"COMMENT ON COLUMN {table}.{quoted(column.name)} IS {plain_literal(json.dumps(said))}")

    def _stamp(self, table: str, column: _Column) -> None:
        """A rowversion changes with every update of its row."""
        assert column.kind is not None
        if column.kind.name == "timestamp":
            name = quoted(column.name)
            function = f"sides.stamp_{zlib.crc32(table.encode()):08x}"
            self._run(f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                      f" NEW.{name} := int8send(nextval('tds.stamp')); RETURN NEW; END $$; "
                      f"CREATE TRIGGER tds_stamp BEFORE UPDATE ON {table} FOR EACH ROW"
                      f" EXECUTE FUNCTION {function}()")  # fmt: skip


def _collates(kind: SqlType) -> bool:
    return kind.textual and kind.name != "xml"


def _key_column(part: list[Word]) -> str:
    return quoted(part[0].value) + (" DESC" if part[-1].upper == "DESC" else "")


def _label(label: str) -> str:
    return f"CONSTRAINT {quoted(label)} " if label else ""


def _written(name: str) -> str:
    return plain_literal(name)


def _schema_and_name(parts: list[str]) -> tuple[str, str]:
    return (parts[-2] if len(parts) > 1 and parts[-2] else "dbo"), parts[-1]
