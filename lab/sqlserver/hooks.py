"""What a test does to the server that no client of SQL Server could: `EXEC lab.…`, for one database."""

import threading
from typing import TYPE_CHECKING

from lab.sqlserver import tracking
from lab.sqlserver.errors import SqlError, Unknown
from lab.sqlserver.store import Store

if TYPE_CHECKING:
    from lab.sqlserver.engine import Session
    from lab.sqlserver.server import Server


class Hooks:
    """The procedures of lab; arguments come by name, in text."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._lock = threading.Lock()
        self._packets: dict[str, int] = {}  # database → packets until connections are dropped
        self._deadlocks: dict[str, int] = {}
        self._held: dict[tuple[str, str], Store] = {}
        self._callers: set[int] = set()

    def call(self, session: "Session", name: str, arguments: dict[str, str]) -> None:
        known = getattr(self, f"do_{name}", None)
        if known is None:
            raise Unknown(f"the hook lab.{name}")
        with self._lock:
            self._callers.add(session.number)
        try:
            known(session, **arguments)
        except TypeError as error:
            raise SqlError(201, f"lab.{name}: {error}") from error

    def do_cleanup(self, session: "Session", to: str) -> None:
        """Forgets the history up to a version, as the cleanup does when the retention is over."""
        session.store.run(tracking.CLEANUP.format(version=int(to)))

    def do_role(self, session: "Session", role: str) -> None:
        """PRIMARY, or SECONDARY: read only, and without Change Tracking."""
        self._server.set(session.database, role=role.upper())

    def do_fail_over(self, session: "Session", server: str) -> None:
        """The same database on another server from now on; connections end."""
        self._server.set(session.database, server=server)
        self._server.end_sessions(session.database, but=session)

    def do_build(self, session: "Session", version: str) -> None:
        """Another SERVERPROPERTY('ProductVersion'); old ones do not know FORCESEEK."""
        self._server.set(session.database, build=version)

    def do_lock(self, session: "Session", name: str) -> None:
        """Nobody reads or writes the table until lab.unlock."""
        store = Store(self._server.url(session.database))
        schema, _, table = name.rpartition(".")
        store.run(f'BEGIN; LOCK TABLE "{schema.lower() or "dbo"}"."{table.lower()}" IN ACCESS EXCLUSIVE MODE')
        self._held[session.database.lower(), name.lower()] = store

    def do_unlock(self, session: "Session", name: str) -> None:
        self._held.pop((session.database.lower(), name.lower())).close()

    def do_deadlock(self, session: "Session", statements: str = "1") -> None:
        """The next statements of others on tables lose a deadlock."""
        self._deadlocks[session.database.lower()] = int(statements)

    def do_drop_after(self, session: "Session", packets: str) -> None:
        """The connection on which the n-th packet from others comes is gone."""
        self._packets[session.database.lower()] = int(packets)

    def do_disconnect(self, session: "Session") -> None:
        """All other connections to the database are gone."""
        self._server.end_sessions(session.database, but=session)

    def before_statement(self, session: "Session") -> None:
        with self._lock:
            left = self._deadlocks.get(session.database.lower(), 0)
            if left <= 0 or session.number in self._callers:
                return
            self._deadlocks[session.database.lower()] = left - 1
        text = (
            f"Transaction (Process ID {session.number}) was deadlocked on lock resources with another process and has"
        )
        raise SqlError(1205, f"{text} been chosen as the deadlock victim. Rerun the transaction.", severity=13)

    def drops(self, session: "Session") -> bool:
        """Whether the packet that came is the last of its connection."""
        with self._lock:
            database = session.database.lower()
            left = self._packets.get(database, 0)
            if left <= 0 or session.number in self._callers:
                return False
            self._packets[database] = left - 1
            return left == 1
