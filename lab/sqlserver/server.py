"""The server: its databases in a PostgreSQL cluster, its logins, and one pair of threads for each connection."""

import itertools
import json
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from lab.sqlserver import wire
from lab.sqlserver.bulk import BulkLoad
from lab.sqlserver.catalog import Rows
from lab.sqlserver.engine import Session
from lab.sqlserver.errors import SqlError
from lab.sqlserver.hooks import Hooks
from lab.sqlserver.parameters import bound, declared
from lab.sqlserver.store import Lost, Store
from lab.sqlserver.values import Reader, SqlType, plain_literal, read_parameter, text_literal
from lab.sqlserver.wire import Answer, Link, Login, Message

GONE_S: Final = 2.0
BUILD: Final = "16.0.4165.4"
SERVER_NAME: Final = "STANDIN"
_NEW: Final = {
    "server": SERVER_NAME, "build": BUILD, "tracking": "OFF", "retention": "2 DAYS", "cleanup": "ON", "snapshot": "OFF",
    "role": "PRIMARY", "versioned": "OFF", "backup": "no", "level": "160",
}  # fmt: skip
_SQL: Final = [Path(__file__).with_name(name) for name in ("store.sql", "catalog.sql")]
_PROCEDURES: Final = {10: "sp_executesql", 11: "sp_prepare", 12: "sp_execute", 13: "sp_prepexec", 15: "sp_unprepare"}


class Server:
    """All that connections share. Databases are `PREFIX:name`, so that several servers may use one cluster."""

    def __init__(self, postgres: str, password: str, prefix: str) -> None:
        self._postgres, self._prefix = postgres, prefix
        self.logins = {"sa": password}
        self.hooks = Hooks(self)
        self.changes_of_tables = 0
        self._numbers = itertools.count(51)
        self._lock = threading.RLock()
        self._asking: dict[str, Store] = {}
        self._settings: dict[str, dict[str, Any]] = {}  # what the databases' comments say
        self.connections: dict[int, Connection] = {}
        self.single: dict[str, int] = {}  # database → the session that has it for itself
        self._root = Store(postgres)
        self._model()

    # Databases --------------------------------------------------------------------------------------------------------

    def open(self, database: str, login: str, number: int) -> tuple[Store, str, str]:
        """A session on a database, for a login; the login's user there; how the database is written."""
        settings = self.settings(database)
        if settings is None:
            raise SqlError(911, f"Database '{database}' does not exist. Make sure that the name is entered correctly.")
        if self.single.get(database.lower(), number) != number:
            raise SqlError(
                924, f"Database '{database}' is already open and can only have one user at a time.", severity=14
            )
        store = Store(self.url(database))
        user = "dbo"
        if login != "sa":
            rows = store.run(f"SELECT name FROM tds.users WHERE login = {text_literal(login)}")
            if not rows and database.lower() != "master":
                store.close()
                raise SqlError(916, f'The server principal "{login}" is not able to access the database "{database}" '
                                    "under the current security context.", severity=14)  # fmt: skip
            user = rows[0][0] or "guest" if rows else "guest"
        store.run(
            f"SET tds.person = {plain_literal(user)}; SET tds.login = {plain_literal(login)};"
            " SET search_path = dbo, tds; SET extra_float_digits = 1; SET bytea_output = hex; SET timezone = 'UTC';"
            " SET default_transaction_isolation = 'read committed'; SET client_min_messages = error"
        )
        return store, user, str(settings["name"])

    def settings(self, database: str) -> dict[str, Any] | None:
        """What is set for it, and how its name is written; None when there is none."""
        known = self._settings.get(database.lower())
        if known is None:
            rows = self.root("SELECT shobj_description(oid, 'pg_database') FROM pg_database"
                             f" WHERE datname = {text_literal(self.inner(database))}")  # fmt: skip
            if not rows or not rows[0][0]:
                return None
            known = self._settings[database.lower()] = json.loads(rows[0][0])
        return known

    def setting(self, database: str, key: str) -> str:
        return str((self.settings(database) or {}).get(key, ""))

    def set(self, database: str, **values: object) -> None:
        self._describe(database, {**(self.settings(database) or {}), **values})

    def create(self, database: str, like: str | None = None, **values: object) -> None:
        """An empty database, or the copy of another."""
        if self.settings(database) is not None:
            raise SqlError(1801, f"Database '{database}' already exists. Choose a different database name.")
        template = f"{self._prefix}:" if like is None else self.inner(like)
        if like is not None:
            self.close_all(like)
        with self._lock:
            self.root(f'CREATE DATABASE "{self.inner(database)}" TEMPLATE "{template}"')
        basis: dict[str, object] = {**_NEW, "name": database}
        fork, broker, created = self.root("SELECT gen_random_uuid(), gen_random_uuid(), now()")[0]
        basis |= {"fork": fork, "broker": broker, "created": created, "first_fork": fork}
        self._describe(database, basis | values)

    def drop(self, database: str) -> None:
        if self.settings(database) is None:
            raise SqlError(3701, f"Cannot drop the database '{database}', because it does not exist or you do not have "
                                 "permission.", severity=11)  # fmt: skip
        if not self.idle(database):
            raise SqlError(3702, f'Cannot drop database "{database}" because it is currently in use.')
        self.single.pop(database.lower(), None)
        self.close_all(database)
        self.root(f'DROP DATABASE "{self.inner(database)}" WITH (FORCE)')
        self._settings.pop(database.lower(), None)

    def close_all(self, database: str) -> None:
        """Ends every session of PostgreSQL's in a database."""
        with self._lock:
            if (asking := self._asking.pop(database.lower(), None)) is not None:
                asking.close()
        self.root("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                  f" WHERE datname = {text_literal(self.inner(database))}")  # fmt: skip

    def idle(self, database: str) -> bool:
        """Whether no client uses it. One that has just closed its connection is given a moment to be gone."""
        deadline = time.monotonic() + GONE_S
        while self._users(database):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def end_sessions(self, database: str, but: Session) -> None:
        """All other connections to it are gone."""
        for connection in self._users(database):
            if connection.session is not but:
                connection.link.close()

    def _users(self, database: str) -> "list[Connection]":
        return [
            connection
            for connection in list(self.connections.values())
            if connection.session is not None and connection.session.database.lower() == database.lower()
        ]

    def inner(self, database: str) -> str:
        return f"{self._prefix}:{database.lower()}"

    def url(self, database: str) -> str:
        inner = self.inner(database).replace("%", "%25").replace(":", "%3A").replace(" ", "%20")
        return urlunsplit(urlsplit(self._postgres)._replace(path=f"/{inner}"))

    # What sessions ask ------------------------------------------------------------------------------------------------

    def root(self, sql: str) -> Rows:
        with self._lock:
            return self._root.run(sql)

    def ask(self, database: str, sql: str) -> Rows:
        """A question to a database, outside of every transaction."""
        with self._lock:
            store = self._asking.get(database.lower())
            if store is None:
                store = self._asking[database.lower()] = Store(self.url(database))
                store.run("SET search_path = dbo, tds")
            return store.run(sql)

    def next_number(self) -> int:
        return next(self._numbers)

    def tables_changed(self, database: str) -> None:
        with self._lock:
            self.changes_of_tables += 1

    def knows_forceseek(self, database: str) -> bool:
        """2016 SP2 CU16, 2017 CU24, 2019 CU11 and later."""
        major, _, build = (int(part) for part in self.setting(database, "build").split(".")[:3])
        return build >= {13: 5882, 14: 3391, 15: 4178}.get(major, 0 if major > 15 else 10**6)

    def _model(self) -> None:
        """The template of all databases, and master."""
        if self.settings("master") is not None:
            return  # it was there before this process
        self.root(f'CREATE DATABASE "{self._prefix}:" TEMPLATE template0')
        model = Store(self.url(""))
        for file in _SQL:
            model.run(file.read_text("utf-8"))
        model.close()
        self.create("master")

    def _describe(self, database: str, settings: dict[str, Any]) -> None:
        self.root(f'COMMENT ON DATABASE "{self.inner(database)}" IS {plain_literal(json.dumps(settings, default=str))}')
        self._settings[database.lower()] = settings

    # Connections ------------------------------------------------------------------------------------------------------

    def serve(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        """Until the listener is closed."""
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=Connection(self, sock, context).run, daemon=True).start()


class Connection:
    """One client, from its PRELOGIN to its end."""

    def __init__(self, server: Server, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._server, self._context = server, context
        self.link = Link(sock, self._packet_came)
        self.session: Session | None = None
        self.encryption = ""
        self.number = server.next_number()
        self._prepared: dict[int, tuple[str, list[tuple[str, SqlType]]]] = {}
        self._handles = itertools.count(1)
        self._bulk: BulkLoad | None = None  # announced by the batch before

    def run(self) -> None:
        """The working thread."""
        self._server.connections[self.number] = self
        try:
            version = tuple(int(part) for part in BUILD.split(".")[:3])
            login, self.encryption = wire.welcome(self.link, self._context, (version[0], version[1], version[2]))
            if self._log_in(login, (version[0], version[1], version[2])):
                threading.Thread(target=self.link.read_forever, args=(self._attention,), daemon=True).start()
                while (message := self.link.messages.get()) is not None:
                    self._serve(message)
        except (wire.Gone, OSError, Lost, ValueError, UnicodeError):
            pass  # the client or the database is gone, or what came is not TDS
        finally:
            self._server.connections.pop(self.number, None)
            if self.session is not None:
                self.session.close()
            self.link.close()

    def _log_in(self, login: Login, version: tuple[int, int, int]) -> bool:
        try:
            if self._server.logins.get(login.user.lower()) != login.password:
                raise SqlError(18456, f"Login failed for user '{login.user}'.", severity=14)
            database = login.database or "master"
            try:
                self.session = Session(self._server, login.user.lower(), database, self.number)
            except SqlError as error:
                if error.number not in {911, 916, 924}:
                    raise
                text = f'Cannot open database "{database}" requested by the login. The login failed.'
                raise SqlError(4060, text, severity=11) from error
        except SqlError as error:
            answer = Answer(self.link)
            answer.error(error)
            if error.number == 4060:
                answer.error(SqlError(18456, f"Login failed for user '{login.user}'.", severity=14))
            answer.done(None, failed=True)
            answer.end()
            return False
        wire.greet(self.link, login, self.session.database, version)
        return True

    def _serve(self, message: Message) -> None:
        assert self.session is not None
        session = self.session
        answer = session.answer = Answer(self.link, procedure=message.kind == wire.RPC)
        if message.kind == wire.ATTENTION:
            session.cancelled = False
            answer.end(attention=True)
            return
        try:
            if message.reset:
                session.reset()
                answer.changed(18, b"\x00", b"\x00")
            self._do(message, session, answer)
        except SqlError as error:
            answer.error(error)
            answer.done(None, failed=True)
        except Lost:
            answer.error(
                SqlError(596, "Cannot continue the execution because the session is in the kill state.", severity=21)
            )
            answer.done(None, failed=True)
            answer.end()
            raise
        except Exception as error:
            traceback.print_exc()
            session.recover()
            answer.error(SqlError(50000, f"the stand-in failed: {type(error).__name__}: {error}"))
            answer.done(None, failed=True)
        answer.end()

    def _do(self, message: Message, session: Session, answer: Answer) -> None:
        if message.kind == wire.BATCH:
            reader = wire.without_headers(message.data)
            text = reader.take(len(message.data) - reader.at).decode("utf-16-le")
            self._bulk = BulkLoad.announced(text)
            if self._bulk is None:
                session.batch(text)
            else:
                answer.done(None)
        elif message.kind == wire.BULK and self._bulk is not None:
            session.batch(*self._bulk.statement(Reader(message.data)))
        elif message.kind == wire.RPC:
            self._procedure(wire.without_headers(message.data), session, answer)
        elif message.kind == wire.TRANSACTION:
            self._transaction(wire.without_headers(message.data), session)
        else:
            raise wire.Gone

    def _transaction(self, reader: Reader, session: Session) -> None:
        kind = reader.number(2)
        if kind == 5:
            level = {1: "READ UNCOMMITTED", 2: "READ COMMITTED", 3: "REPEATABLE READ", 4: "SERIALIZABLE", 5: "SNAPSHOT"}
            session.level = level.get(reader.number(1), session.level)
            session.begin()
        elif kind in {7, 8}:
            session.commit() if kind == 7 else session.rollback()
            if reader.number(1) >> 8 or (not reader.done and _begins_another(reader)):
                session.begin()
        else:
            raise SqlError(50000, f"the stand-in knows no transaction request {kind}")

    def _procedure(self, reader: Reader, session: Session, answer: Answer) -> None:
        size = reader.number(2)
        name = _PROCEDURES.get(reader.number(2), "") if size == 0xFFFF else reader.text(size).lower()
        reader.take(2)
        arguments: list[tuple[str, SqlType, str]] = []
        while not reader.done:
            label = reader.text(reader.number(1)).removeprefix("@").lower()
            reader.take(1)
            arguments.append((label, *read_parameter(reader)))
        returned: list[tuple[str, SqlType, bytes | None]] = []
        if name in {"sp_prepare", "sp_prepexec"}:
            handle = next(self._handles)
            kinds = declared(session.text_of(arguments[1][2]))
            self._prepared[handle] = session.text_of(arguments[2][2]), kinds
            returned = [("", SqlType("int"), str(handle).encode())]
            if name == "sp_prepexec":
                self._execute(session, handle, arguments[3:])
        elif name == "sp_execute":
            self._execute(session, int(session.text_of(arguments[0][2])), arguments[1:])
        elif name == "sp_unprepare":
            self._prepared.pop(int(session.text_of(arguments[0][2])), None)
        else:
            session.procedure(name, arguments)
        answer.returned(0, returned)

    def _execute(self, session: Session, handle: int, values: list[tuple[str, SqlType, str]]) -> None:
        if handle not in self._prepared:
            raise SqlError(8179, f"Could not find prepared statement with handle {handle}.")
        text, kinds = self._prepared[handle]
        session.batch(text, bound(kinds, values))

    def _attention(self) -> None:
        """In the reading thread: the client wants no more, or is gone."""
        if self.session is not None:
            self.session.cancelled = True
            self.session.store.cancel()

    def _packet_came(self) -> None:
        if self.session is not None and self._server.hooks.drops(self.session):
            self.link.close()


def _begins_another(reader: Reader) -> bool:
    """A COMMIT or ROLLBACK names itself and says whether a new transaction begins at once."""
    reader.at -= 1
    reader.take(2 * reader.number(1))
    return not reader.done and bool(reader.number(1) & 1)


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        yield listener
