"""A session: batches of T-SQL, one statement after the other, on a session of PostgreSQL.

Transactions are PostgreSQL's: READ COMMITTED reads what was committed when the statement began (as SQL Server does with
READ_COMMITTED_SNAPSHOT on), SNAPSHOT is REPEATABLE READ. Within a transaction every statement has a savepoint, because
in SQL Server one that fails leaves the transaction as it was.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from lab.sqlserver.admin import Admin
from lab.sqlserver.catalog import Catalog, Rows, Table, looking
from lab.sqlserver.ddl import Tables
from lab.sqlserver.errors import SqlError, Unknown
from lab.sqlserver.flow import Flow
from lab.sqlserver.parameters import Variables, bound, declared
from lab.sqlserver.store import Field, Store
from lab.sqlserver.translate import MARK, Query, Translator
from lab.sqlserver.values import SqlType, of_result, plain_literal, text_literal
from lab.sqlserver.wire import Answer, database_changed, transaction_began, transaction_ended
from lab.sqlserver.words import Script, by_commas, joined

if TYPE_CHECKING:
    from lab.sqlserver.server import Server

_LEVELS: Final = {"SNAPSHOT": "REPEATABLE READ", "SERIALIZABLE": "SERIALIZABLE", "REPEATABLE READ": "REPEATABLE READ"}
_ENDS_TRANSACTION: Final = {1205, 3960, 3961, 3952}
_QUERIES: Final = {"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH"}
_BYTES: Final = re.compile(r"'\\x([0-9a-fA-F]*)'::bytea")


class Session:
    """One client's session. `answer` is where the statement that runs says what comes of it."""

    def __init__(self, server: "Server", login: str, database: str, number: int) -> None:
        self.server, self.login, self.number = server, login, number
        self.database = database
        self.answer: Answer
        self.store: Store
        self.cancelled = False
        self.autocommit = True  # false: SET IMPLICIT_TRANSACTIONS ON
        self.depth = 0  # @@TRANCOUNT
        self.level = "READ COMMITTED"
        self._abort = False  # SET XACT_ABORT
        self._rowcount = 0
        self._transaction = 0
        self._seen = 0  # changes of tables when the transaction began, to tell those after its snapshot
        self._changed_tables = False
        self._error: SqlError | None = None
        self._explicit_identity = False
        self.variables: Variables = {}
        self._cache: dict[tuple[object, ...], Query] = {}
        self.use(database)

    def use(self, database: str, *, quiet: bool = True) -> None:
        """Goes to another database, if it may."""
        store, user, name = self.server.open(database, self.login, self.number)
        old = self.database
        if hasattr(self, "store"):
            self._leave()
        self.store, self.user, self.database = store, user, name
        if self.depth:
            self._begin_below()
        self._moments: dict[int, str] = {}
        self._cache.clear()
        self.catalog = Catalog(self.ask, lambda: self.server.changes_of_tables)
        self.translator = Translator(self.catalog, lambda: self.database, self._kind_of)
        self.tables = Tables(self.run_ddl, self.catalog, self.translator, self.moments)
        self.admin = Admin(self)
        if not quiet:
            database_changed(self.answer, name, old)

    def _leave(self) -> None:
        if self.depth and self.ask("SELECT pg_current_xact_id_if_assigned()")[0][0] is not None:
            raise Unknown("a transaction that changes two databases")
        self.store.close()

    def reset(self) -> None:
        """sp_reset_connection: as after a login, but for the isolation level."""
        if self.depth:
            self._end_transaction(committed=False)
        self.autocommit, self._abort = True, False
        self.store.run("SET lock_timeout = 0")

    def recover(self) -> None:
        """After a fault of ours: no transaction is left open."""
        self.store.drain()
        if self.store.in_transaction:
            self.depth = 0
            self.store.run("ROLLBACK")

    def close(self) -> None:
        self.store.close()

    # Batches ----------------------------------------------------------------------------------------------------------

    def batch(self, text: str, variables: Variables | None = None) -> None:
        """Runs it all; an error ends it."""
        outer, self.variables = self.variables, variables if variables is not None else {}
        script = Script(text)
        try:
            self._compile(script)
            Flow(script, self._statement, self._holds).run()
        finally:
            self.variables = outer

    def _compile(self, script: Script) -> None:
        """What SQL Server refuses before it runs anything of the batch: CHANGETABLE of a table that is not tracked."""
        for at, word in enumerate(script.words):
            if word.upper == "CHANGETABLE" and at + 3 < len(script.words):
                name = Script(script.text)
                name.at = at + 3
                parts = name.dotted()
                table = self.catalog.table(parts[-2] if len(parts) > 1 else "", parts[-1])
                if int(self.server.setting(self.database, "level")) < 90:
                    raise SqlError(102, "Incorrect syntax near 'CHANGETABLE'.", severity=15)
                if table is not None and table.side is None:
                    raise SqlError(22105, f"Change tracking is not enabled on table '{table.written}'.")

    def _holds(self, condition: str) -> bool:
        query = self.translator.translate(f"SELECT CASE WHEN {condition} THEN 1 ELSE 0 END AS x")
        return self.ask(self._filled(query.sql))[0][0] == "1"

    def _statement(self, text: str, caught: SqlError | None) -> None:
        """One that is not made of others. `caught`: the error of the TRY that it is in the CATCH of."""
        if self.cancelled:
            raise SqlError(3617, "The batch was cancelled.")
        self._error = caught
        script = Script(text)
        first = script.word.upper
        if first in _QUERIES or first == "(":
            self._query(text)
            return
        script.next()
        known = getattr(self, f"_do_{first.lower()}", None)
        if known is None:
            raise Unknown(text[:60])
        count = known(script)
        self.answer.done(count)

    # Statements by their first word -----------------------------------------------------------------------------------

    def _do_declare(self, script: Script) -> None:
        for part in by_commas(script.words[script.at :]):
            name, kind, value = part[0].text[1:].lower(), part[1:], None
            for at, word in enumerate(part):
                if word.text == "=":
                    kind, value = part[1:at], joined(part[at + 1 :], script.text)
                    break
            of = SqlType.parse(joined([w for w in kind if w.upper != "AS"], script.text))
            self.variables[name] = of, f"NULL::{of.postgres}"
            if value is not None:
                self.assign(name, value)

    def _do_set(self, script: Script) -> None:
        if script.word.kind == "variable":
            name = script.next().text[1:].lower()
            script.need("=")
            self.assign(name, script.text[script.word.start :])
            return
        self._set_option([word.upper for word in script.words[1:]])

    def _set_option(self, words: Sequence[str]) -> None:
        name, value = words[0], words[-1]
        if words[:3] == ["TRANSACTION", "ISOLATION", "LEVEL"]:
            self.level = " ".join(words[3:])
        elif name == "LOCK_TIMEOUT":
            number = int("".join(words[1:]))
            self.store.run(f"SET lock_timeout = {0 if number < 0 else max(number, 1)}")
        elif name == "IMPLICIT_TRANSACTIONS":
            self.autocommit = value == "OFF"
        elif name == "XACT_ABORT":
            self._abort = value == "ON"
        elif name == "IDENTITY_INSERT":
            self._explicit_identity = value == "ON"
        elif name not in {"NOCOUNT", "QUOTED_IDENTIFIER", "ANSI_NULLS", "ANSI_PADDING", "ANSI_WARNINGS", "ARITHABORT",
                          "CONCAT_NULL_YIELDS_NULL", "ANSI_NULL_DFLT_ON", "TEXTSIZE", "DATEFORMAT", "DATEFIRST",
                          "LANGUAGE", "NUMERIC_ROUNDABORT", "CURSOR_CLOSE_ON_COMMIT", "DEADLOCK_PRIORITY", "ROWCOUNT",
                          "ANSI_DEFAULTS"}:  # fmt: skip
            raise Unknown(f"SET {' '.join(words)}")

    def _do_use(self, script: Script) -> None:
        self.use(script.name(), quiet=False)

    def _do_print(self, script: Script) -> None:
        self.answer.info(0, self.value(script.text[script.word.start :]) or "")

    def _do_waitfor(self, script: Script) -> None:
        script.need("DELAY")
        self.store.run(f"SELECT pg_sleep(extract(epoch FROM {text_literal(script.word.value)}::interval))")

    def _do_begin(self, script: Script) -> None:
        self.begin()

    def _do_commit(self, script: Script) -> None:
        self.commit()

    def _do_rollback(self, script: Script) -> None:
        script.has("TRAN") or script.has("TRANSACTION") or script.has("WORK")
        name = script.word
        if name.kind in {"word", "name"} and self.depth:
            self.store.run(f'ROLLBACK TO SAVEPOINT "s {name.value.lower()}"')
            return
        self.rollback()

    def _do_save(self, script: Script) -> None:
        script.next()
        self.store.run(f'SAVEPOINT "s {script.name().lower()}"')

    def _do_throw(self, script: Script) -> None:
        if script.word.kind == "end":
            raise self._error or SqlError(
                10704, "To rethrow an error, a THROW statement must be used inside a CATCH block."
            )
        number, text, state = by_commas(script.words[script.at :])
        raise SqlError(int(number[0].text), self.value(joined(text, script.text)) or "", state=int(state[0].text))

    def _do_raiserror(self, script: Script) -> None:
        text, severity, *_ = by_commas(script.inside())
        raise SqlError(50000, self.value(joined(text, script.text)) or "", severity=int(severity[0].text))

    def _do_create(self, script: Script) -> None:
        what = script.word.upper
        if what == "TABLE":
            script.next()
            self._ddl(lambda: self.tables.create_table(script))
        elif what == "SCHEMA":
            script.next()
            self._ddl(lambda: self.tables.create_schema(script))
        elif what in {"UNIQUE", "CLUSTERED", "NONCLUSTERED", "INDEX"}:
            self._ddl(lambda: self.tables.create_index(script))
        else:
            self.admin.create(script)

    def _do_drop(self, script: Script) -> None:
        if script.has("TABLE"):
            self._ddl(lambda: self.tables.drop_table(script))
        elif script.has("INDEX"):
            self._ddl(lambda: self.tables.drop_index(script))
        else:
            self.admin.drop(script)

    def _do_alter(self, script: Script) -> None:
        if script.has("TABLE"):
            self._ddl(lambda: self.tables.alter_table(script))
        else:
            self.admin.alter(script)

    def _do_truncate(self, script: Script) -> None:
        script.need("TABLE")
        self._ddl(lambda: self.tables.truncate(script))

    def _do_grant(self, script: Script) -> None:
        self.admin.grant(script, given=True)

    def _do_revoke(self, script: Script) -> None:
        self.admin.grant(script, given=False)

    def _do_backup(self, script: Script) -> None:
        self.admin.backup(script)

    def _do_restore(self, script: Script) -> None:
        self.admin.restore(script)

    def _do_checkpoint(self, script: Script) -> None:
        pass

    def _do_exec(self, script: Script) -> None:
        if script.word.text == "(":
            self.batch(self.value(joined(script.inside(), script.text)) or "")
            return
        if script.word.kind == "variable" and script.peek() == "=":
            script.at += 2
        name = ".".join(script.dotted()).lower()
        arguments: list[tuple[str, SqlType, str]] = []
        for part in by_commas(script.words[script.at :]):
            named = len(part) > 2 and part[1].text == "="
            text = joined(part[2:] if named else part, script.text).removesuffix(" OUTPUT")
            kind, value = self.literal(text)
            arguments.append((part[0].text[1:].lower() if named else "", kind, value))
        self.procedure(name, arguments)

    _do_execute = _do_exec

    def procedure(self, name: str, arguments: Sequence[tuple[str, SqlType, str]]) -> None:
        """Arguments are (name or nothing, type, value in PostgreSQL's SQL)."""
        name = name.removeprefix("sys.").removeprefix("dbo.")
        if name == "sp_executesql":
            text = self.text_of(arguments[0][2])
            kinds = declared(self.text_of(arguments[1][2])) if len(arguments) > 1 else []
            self.batch(text, bound(kinds, arguments[2:]))
        elif name == "sp_rename":
            texts = [self.text_of(value) for _, _, value in arguments]
            self._ddl(lambda: self.tables.rename(texts[0], texts[1], texts[2] if len(texts) > 2 else None))
        elif name.startswith("lab."):
            self.server.hooks.call(self, name.removeprefix("lab."), {n: self.text_of(v) for n, _, v in arguments})
        elif name == "sp_reset_connection":
            self.reset()
        elif name not in {"sp_flush_commit_table_on_demand", "sp_flush_ct_internal_table_on_demand", "sp_updatestats"}:
            raise SqlError(2812, f"Could not find stored procedure '{name}'.")

    # Values -----------------------------------------------------------------------------------------------------------

    def literal(self, text: str) -> tuple[SqlType, str]:
        """The value of an expression of T-SQL, as a literal of PostgreSQL."""
        query = self.translator.translate(f"SELECT {text} AS x")
        rows = self.ask(self._filled(query.sql))
        kind = (query.columns or [("", None)])[0][1] or self._kind(self.store.fields[0])
        value = rows[0][0]
        return kind, "NULL::text" if value is None else f"{plain_literal(value)}::{kind.postgres}"

    def value(self, text: str) -> str | None:
        return self.ask(self._filled(self.translator.translate(f"SELECT {text} AS x").sql))[0][0]

    def text_of(self, literal: str) -> str:
        return self.ask(f"SELECT {literal}")[0][0] or ""

    def assign(self, name: str, text: str) -> None:
        if name not in self.variables:
            raise SqlError(137, f'Must declare the scalar variable "@{name}".', severity=15)
        kind, _ = self.variables[name]
        value = self.ask(f"SELECT ({self._filled(self.translator.expression(text))})::{kind.postgres}")[0][0]
        self._put(name, value)

    def _put(self, name: str, value: str | None) -> None:
        kind, _ = self.variables[name]
        shown = "NULL" if value is None else plain_literal(value)
        self.variables[name] = kind, f"{shown}::{kind.postgres}"

    def _kind_of(self, name: str) -> SqlType | None:
        found = self.variables.get(name)
        return found[0] if found else None

    def _filled(self, sql: str) -> str:
        return MARK.sub(lambda mark: self._variable(mark[1]), sql)

    def _variable(self, name: str) -> str:
        if name in self.variables:
            return f"({self.variables[name][1]})"
        system = {"@rowcount": self._rowcount, "@trancount": self.depth, "@spid": self.number,
                  "@error": self._error.number if self._error else 0}  # fmt: skip
        if name in system:
            return f"{system[name]}::int4"
        if name == "@version":
            return "('Microsoft SQL Server 2022 (stand-in) - ' || tds.setting('build'))"
        if name == "@servername":
            return "tds.setting('server')"
        if name in {"@identity", "@lock_timeout", "@microsoftversion", "@max_precision"}:
            return {"@identity": "lastval()::numeric(38,0)", "@lock_timeout": "-1", "@microsoftversion": "268436456",
                    "@max_precision": "38"}[name]  # fmt: skip
        raise SqlError(137, f'Must declare the scalar variable "@{name}".', severity=15)

    # Queries ----------------------------------------------------------------------------------------------------------

    def _query(self, text: str) -> None:
        query = self._translated(text)
        self._check(query)
        sql = self._filled(query.sql)
        if query.writes:
            if self._explicit_identity and text[:6].upper() == "INSERT":
                sql = re.sub(r" (VALUES|SELECT) ", r" OVERRIDING SYSTEM VALUE \1 ", sql, count=1)
            sql = f"SET LOCAL tds.statement = {plain_literal(self._said(query))}; {sql}"
            self._within(lambda guarded: self._answer(query, guarded), sql)
        elif self.depth or not self.autocommit:
            self._within(lambda guarded: self._answer(query, guarded), sql)
        else:
            self._answer(query, sql)

    def _translated(self, text: str) -> Query:
        kinds = tuple(sorted((name, str(kind)) for name, (kind, _) in self.variables.items()))
        key = (text, kinds, self.server.changes_of_tables, self.server.knows_forceseek(self.database))
        if key not in self._cache:
            if len(self._cache) > 500:
                self._cache.clear()
            self._cache[key] = self.translator.translate(text, forceseek=bool(key[3]))
        return self._cache[key]

    def _said(self, query: Query) -> str:
        oid, columns = query.changes or (0, "")
        context = ""
        if query.context is not None:
            value = self._filled(query.context)
            found = _BYTES.fullmatch(value.strip("()"))
            if found is None and "NULL" not in value:
                raise SqlError(22109, "A context must be of type varbinary or binary, 128 bytes at most.")
            context = found[1] if found else ""
            if len(context) > 256:
                raise SqlError(22109, "A context must be of type varbinary or binary, 128 bytes at most.")
        return f"{oid}|{columns}|{context}"

    def _check(self, query: Query) -> None:
        """What SQL Server says at the first access to a table."""
        if not query.needs:
            return
        if self.level == "SNAPSHOT":
            if self.server.setting(self.database, "snapshot") != "ON":
                raise SqlError(3952, "Snapshot isolation transaction failed accessing database "
                               f"'{self.database}' because snapshot isolation is not allowed in it.")  # fmt: skip
            if self.depth:
                self._check_unchanged(query)
        if self.server.setting(self.database, "role") == "SECONDARY" and (
            query.writes or any(permission == "VIEW CHANGE TRACKING" for permission, _ in query.needs)
        ):
            raise SqlError(3906 if query.writes else 22117, "The database is a read-only secondary replica.")
        if self.user != "dbo":
            for permission, table in sorted(query.needs, key=lambda need: (need[0] != "SELECT", need[0])):
                self._demand(permission, table)

    def _check_unchanged(self, query: Query) -> None:
        """Compares how the snapshot sees a table with how it is now, if any table was changed since."""
        if self.server.changes_of_tables == self._seen:
            return
        for _, table in query.needs:
            look = looking(table.schema, table.name)
            if self.ask(look) != self.server.ask(self.database, look):
                raise SqlError(3961, f"Snapshot isolation transaction failed in database '{self.database}' because the "
                               "object accessed by the statement has been modified by a DDL statement in another "
                               "concurrent transaction since the start of this transaction.")  # fmt: skip

    def _demand(self, permission: str, table: Table) -> None:
        if self.ask(f"SELECT tds.may({text_literal(permission)}, {table.oid})")[0][0] != "t":
            raise SqlError(229, f"The {permission} permission was denied on the object '{table.written}', database "
                           f"'{self.database}', schema '{table.schema}'.", severity=14, state=5)  # fmt: skip

    def _answer(self, query: Query, sql: str) -> None:
        """Sends what comes of it."""
        self.server.hooks.before_statement(self)
        rows = self.store.stream(sql)
        try:
            if not query.returns:
                for _ in rows:
                    pass
                self._rowcount = self.store.affected or 0
                self.answer.done(self._rowcount, what=query.what)
                return
            first = next(rows, None)
            if query.assigns:
                self._take(query.assigns, first, rows)
                return
            columns = self._columns(query)
            self.answer.columns(columns)
            self._rowcount = self.answer.rows([kind for _, kind in columns], self._until_cancelled(first, rows))
            self.answer.done(self._rowcount, what=query.what)
        finally:
            self.store.drain()

    def _take(
        self, names: Sequence[str], first: Sequence[bytes | None] | None, rows: Iterator[Sequence[bytes | None]]
    ) -> None:
        """SELECT @a = …: the last row counts, and none leaves the variables as they were."""
        last = first
        for last in rows:  # noqa: B007
            pass
        for name, value in zip(names, last or (), strict=False):
            if name not in self.variables:
                raise SqlError(137, f'Must declare the scalar variable "@{name}".', severity=15)
            self._put(name, None if value is None else value.decode())
        self.answer.done(None if last is None else 1)

    def _until_cancelled(
        self, first: Sequence[bytes | None] | None, rows: Iterator[Sequence[bytes | None]]
    ) -> Iterator[Sequence[bytes | None]]:
        if first is not None:
            yield first
        for row in rows:
            if self.cancelled:
                self.store.cancel()
                return
            yield row

    def _columns(self, query: Query) -> list[tuple[str, SqlType]]:
        """Names and types of the result: as the statement says, else the column it comes from, else PostgreSQL."""
        fields = self.store.fields
        said = query.columns if query.columns is not None and len(query.columns) == len(fields) else None
        result = []
        for number, field in enumerate(fields):
            name, kind = said[number] if said else ("", None)
            origin = self.catalog.column(field.table, field.column) if field.table else None
            if said is None:
                origin = origin or query.named(field.name)
                name = origin.name if origin else field.name
            result.append((name, kind or (origin.kind if origin else None) or self._kind(field)))
        return result

    def _kind(self, field: Field) -> SqlType:
        return of_result(field.oid, field.modifier, self.moments())

    def moments(self) -> dict[int, str]:
        """The oids of our own types in this database."""
        if not self._moments:
            names = "('datetime2', 'time', 'datetimeoffset', 'uniqueidentifier')"
            rows = self.server.ask(self.database, f"SELECT oid, typname FROM pg_type WHERE typname IN {names}"
                                                  " AND typnamespace = 'tds'::regnamespace")  # fmt: skip
            self._moments = {int(oid or 0): str(name) for oid, name in rows}
        return self._moments

    # Transactions -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        if not self.depth:
            self._begin_below()
            self._transaction = self.server.next_number()
            transaction_began(self.answer, self._transaction)
        self.depth += 1

    def _begin_below(self) -> None:
        self.store.run(f"BEGIN ISOLATION LEVEL {_LEVELS.get(self.level, 'READ COMMITTED')}")
        self._seen = self.server.changes_of_tables

    def commit(self) -> None:
        if not self.depth:
            raise SqlError(3902, "The COMMIT TRANSACTION request has no corresponding BEGIN TRANSACTION.")
        if self.depth > 1:
            self.depth -= 1
            return
        self._end_transaction(committed=True)

    def rollback(self) -> None:
        if not self.depth:
            raise SqlError(3903, "The ROLLBACK TRANSACTION request has no corresponding BEGIN TRANSACTION.")
        self._end_transaction(committed=False)

    def _end_transaction(self, *, committed: bool) -> None:
        self.depth = 0
        try:
            self.store.run("SELECT tds.before_commit(); COMMIT" if committed else "ROLLBACK")
        except SqlError:
            self.store.run("ROLLBACK")
            committed = False
            raise
        finally:
            if self._changed_tables:
                self._changed_tables = False
                self.server.tables_changed(self.database)
            if hasattr(self, "answer"):
                transaction_ended(self.answer, self._transaction, committed=committed)

    def _within(self, work: Callable[[str], None], sql: str) -> None:
        """Runs one statement in the open transaction, or in one of its own."""
        if not self.depth and not self.autocommit:
            self.begin()
        own = not self.depth
        head = f"BEGIN ISOLATION LEVEL {_LEVELS.get(self.level, 'READ COMMITTED')}" if own else "SAVEPOINT tds"
        try:
            work(f"{head}; {sql}")
            self.store.run("SELECT tds.before_commit(); COMMIT" if own else "RELEASE SAVEPOINT tds")
        except (SqlError, Unknown) as error:
            self._undo(error, own=own)
            raise

    def _undo(self, error: SqlError, *, own: bool) -> None:
        self.store.drain()
        if own:
            self.store.run("ROLLBACK")
        elif self._abort or error.number in _ENDS_TRANSACTION:
            self._end_transaction(committed=False)
        else:
            self.store.run("ROLLBACK TO SAVEPOINT tds; RELEASE SAVEPOINT tds")

    def _ddl(self, work: Callable[[], None]) -> None:
        """Changes tables: in the open transaction, or in one of its own."""
        if self.depth and self.level == "SNAPSHOT":
            raise SqlError(3964, "Transaction failed because this DDL statement is not allowed inside a snapshot "
                                 "isolation transaction.")  # fmt: skip
        if self.user != "dbo" and self.ask("SELECT tds.may('ALTER', 0)")[0][0] != "t":
            raise SqlError(262, f"CREATE or ALTER permission denied in database '{self.database}'.", severity=14)
        own = not self.depth
        self.store.run("BEGIN" if own else "SAVEPOINT tds")
        try:
            work()
            self.store.run("COMMIT" if own else "RELEASE SAVEPOINT tds")
        except (SqlError, Unknown) as error:
            self._undo(error, own=own)
            raise
        finally:
            self._changed_tables = not own
            self.server.tables_changed(self.database)

    def run_ddl(self, sql: str) -> Rows:
        rows = self.store.run(sql)
        if not sql.startswith("SELECT"):
            self.server.tables_changed(self.database)
        return rows

    def ask(self, sql: str) -> Rows:
        """A question of ours; if it fails, an open transaction goes on."""
        if not self.depth:
            return self.store.run(sql)
        try:
            rows = self.store.run(f"SAVEPOINT ask; {sql}")
            fields = self.store.fields
            self.store.run("RELEASE SAVEPOINT ask")
            self.store.fields = fields
            return rows
        except SqlError:
            self.store.run("ROLLBACK TO SAVEPOINT ask; RELEASE SAVEPOINT ask")
            raise
