"""Connections to a PostgreSQL target: fixed settings, a bounded pool, and errors translated by SQLSTATE.

The only importer of the driver. What leaves this module is an error of errors.py; its sentence is our own, since
the server's own messages, details and contexts quote row values.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from upwell.errors import OperatorError, Rejected, TransientError, UniqueConflict, UpwellError
from upwell.pgtext import TEXT_FORMS

if TYPE_CHECKING:
    import psycopg

CONNECT_TIMEOUT_S: Final = 10
STATEMENT_TIMEOUT_S: Final = 300
LOCK_TIMEOUT_S: Final = 60
# A transaction whose owner hangs holds its lanes' watermarks, and another subscriber waits: the server ends it. Between
# two statements of ours lie moments.
IDLE_IN_TRANSACTION_S: Final = 30
POOL_WAIT_S: Final = 60.0
KEEPALIVE_IDLE_S: Final = 30

_SETTINGS: Final = f"""{TEXT_FORMS}SET jit TO off;
SET statement_timeout TO '{STATEMENT_TIMEOUT_S}s';
SET lock_timeout TO '{LOCK_TIMEOUT_S}s';
SET idle_in_transaction_session_timeout TO '{IDLE_IN_TRANSACTION_S}s'
"""

_END_HANGING: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user
  AND application_name = current_setting('application_name')
  AND state = 'active' AND wait_event = 'ClientRead' AND state_change < now() - interval 'PATIENCE_S s'
"""

_DATA = ("21", "22", "23", "44")  # classes: cardinality, data exception, integrity constraint, WITH CHECK OPTION
_DATA_CODES = {"54000", "54001", "54011", "P0001", "P0004"}  # an index row too large; a trigger's RAISE or ASSERT
_ENVIRONMENT = ("08", "40", "53", "57", "58")
_ENVIRONMENT_CODES = {"55006", "25006", "25P03"}
_MOVED = ("08", "53", "57P", "58")  # a new connection, resolved anew, may find the new writer
_MOVED_CODES = {"25006", "25P03"}
_MADE_CODES = {"42P06", "42P07", "42701", "42710"}
# Somebody changed a table under a plan or a cached look at it: a fresh connection looks again.
_STALE_CODES = {"42P01", "42703", "42P10", "42804", "0A000", "3F000"}


# (host, port, user) → a password; raises UpwellError.
Password = Callable[[str, str, str], str]
_PLACE: Final = {"host": "localhost", "port": "5432", "user": "postgres"}


class Refused(Rejected):
    """A write that the server refuses for the data, with what it says of where that is."""

    def __init__(self, message: str, state: str, constraint: str | None, column: str | None, line: int | None) -> None:
        super().__init__(message, code="UW-PT-011")
        self.state = state  # SQLSTATE
        self.constraint = constraint
        self.column = column
        self.line = line  # of a COPY, from 1


class AlreadyMade(TransientError):
    """Another transaction made the same table or schema a moment ago; IF NOT EXISTS did not see it yet."""


class Locked(TransientError):
    """Another transaction has held a lock for too long."""


def ident(*parts: str) -> str:
    """A quoted name."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def literal(text: str) -> str:
    """A quoted string; sound because sessions have standard_conforming_strings on. NUL can't be in one."""
    return "'" + text.replace("'", "''").replace("\0", "\\u0000") + "'"


class Session:
    """One connection, used by one thread at a time."""

    def __init__(self, url: str, password: Password | None = None, *, first: bool = False) -> None:
        """Connect. `password`: makes the one to log in with; then TLS is asked for.

        `first`: trouble that a person must mend is an OperatorError even if it could pass.
        """
        import psycopg
        from psycopg.conninfo import conninfo_to_dict

        self.error = psycopg.Error  # what no class of errors.py names
        try:
            given = conninfo_to_dict(url)
            settings: dict[str, Any] = {
                "connect_timeout": CONNECT_TIMEOUT_S,
                "application_name": "upwell",
                "keepalives_idle": KEEPALIVE_IDLE_S,
                "keepalives_interval": 10,
                "keepalives_count": 3,
                "tcp_user_timeout": 60_000,
            } | {name: value for name, value in given.items() if value is not None}
            if password is not None:
                asked = [str(given.get(name) or usual) for name, usual in _PLACE.items()]
                settings = {"sslmode": "require", **settings, "password": password(*asked)}
            self._connection: psycopg.Connection[Any] = psycopg.connect(autocommit=True, **settings)
        except psycopg.Error as error:
            raise _connect_error(error, first=first) from error
        self.user = self._connection.info.user  # the role that is connected
        self.cache: dict[Any, Any] = {}  # what was learned of tables in the database; belongs to this connection
        self.moved = False
        try:
            self.run(_SETTINGS)
        except UpwellError:
            self.close()
            raise

    @property
    def broken(self) -> bool:
        """Not to be used again."""
        return self.moved or bool(self._connection.closed)

    @property
    def encrypted(self) -> bool:
        """Whether TLS protects the connection."""
        return bool(self._connection.pgconn.ssl_in_use)

    @property
    def verified(self) -> bool:
        """Whether it was checked whose certificate it is."""
        modes = [option.val for option in self._connection.pgconn.info if option.keyword == b"sslmode"]
        return modes in ([b"verify-full"], [b"verify-ca"])

    @property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        address = self._connection.info.hostaddr
        return not address or address == "::1" or address.startswith("127.")

    @property
    def server_version(self) -> int:
        """As 150006."""
        return self._connection.info.server_version

    def run(self, script: str) -> list[tuple[Any, ...]]:
        """Statements without parameters, in one round trip; the last one's rows."""
        try:
            cursor = self._connection.cursor()
            cursor.execute(script.encode(), prepare=False)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []
        except self.error as error:
            raise self._translated(error) from error

    def commit(self) -> None:
        """COMMIT, which in a transaction that has failed answers ROLLBACK and no error."""
        try:
            cursor = self._connection.execute("COMMIT")
        except self.error as error:
            raise self._translated(error) from error
        if cursor.statusmessage != "COMMIT":
            raise RuntimeError("an error of a write was swallowed without undoing it: nothing was committed")

    def query(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """One statement with parameters `%s`; its rows."""
        try:
            cursor = self._connection.cursor()
            cursor.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []
        except self.error as error:
            raise self._translated(error) from error

    def copy(self, statement: str, data: bytes) -> None:
        """COPY ... FROM STDIN."""
        try:
            with self._connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
                copy.write(data)
        except self.error as error:
            raise self._translated(error) from error

    def end_hanging(self) -> None:
        """End sessions like this one whose owner has stopped in the middle of a COPY, and holds locks until it goes on.

        No timeout of the server's does that: it takes such a COPY for work, and interrupts none that waits for data.
        """
        self.run(_END_HANGING.replace("PATIENCE_S", str(IDLE_IN_TRANSACTION_S)))

    def close(self) -> None:
        """Never raises."""
        with suppress(self.error, OSError):
            self._connection.close()

    def _translated(self, error: psycopg.Error) -> Exception:
        translated, moved = translate(error, lost=bool(self._connection.closed), user=self.user)
        self.moved = self.moved or moved
        return translated


def translate(error: psycopg.Error, *, lost: bool, user: str) -> tuple[Exception, bool]:
    """What the pipeline does next, and whether the connection must be replaced before it does.

    SQLSTATEs: PostgreSQL documentation, Appendix A. An error that no table names is returned as it is: a bug.
    """
    import psycopg

    state = error.sqlstate
    if state is None and not lost and not isinstance(error, psycopg.OperationalError):
        return error, False  # the driver was used wrongly
    if lost or state is None:
        return TransientError("The connection to the target database was lost.", code="UW-PT-001"), True
    name = _state_name(state)
    if state == "23505":
        return UniqueConflict(
            f"Another row of the target holds a unique value ({_where(error)}).", code="UW-PT-010"
        ), False
    if state.startswith(_DATA) or state in _DATA_CODES:
        place = _where(error)
        sentence = f"The target refuses the data: {name}, SQLSTATE {state}{', ' + place if place else ''}."
        line, column = _copied(error)
        return Refused(sentence, state, error.diag.constraint_name, error.diag.column_name or column, line), False
    if state == "55P03":
        return Locked(
            f"The target waited for a lock for {LOCK_TIMEOUT_S} s: {name}, SQLSTATE {state}.", code="UW-PT-009"
        ), False
    if state.startswith(_ENVIRONMENT) or state in _ENVIRONMENT_CODES:
        moved = state.startswith(_MOVED) or state in _MOVED_CODES
        return TransientError(f"The target database can't go on now: {name}, SQLSTATE {state}.", code="UW-PT-002"), (
            moved
        )
    if state in _MADE_CODES:
        return AlreadyMade(f"Another connection makes the same: {name}, SQLSTATE {state}.", code="UW-PT-007"), False
    if state in _STALE_CODES:
        return TransientError(
            f"A table of the target was changed by somebody else: {name}, SQLSTATE {state}.", code="UW-PT-003"
        ), True
    if state == "42501":
        return OperatorError(
            f"The target role {user!r} lacks a right: {_denied(error)}.",
            code="UW-PT-020",
            remedy=_grant(error, user),
        ), False
    return error, False


def _state_name(state: str) -> str:
    """23502 → not null violation."""
    import psycopg.errors

    try:
        words = psycopg.errors.lookup(state).__name__
    except KeyError:
        return "error"
    return re.sub(r"(?<!^)(?=[A-Z])", " ", words).lower()


def _where(error: psycopg.Error) -> str:
    """Which constraint, column and table; names only, never values."""
    diag = error.diag
    found = []
    if diag.constraint_name:
        found.append(f"constraint {diag.constraint_name!r}")
    column = diag.column_name or _copied(error)[1]
    if column:
        found.append(f"column {column!r}")
    if diag.table_name and not diag.table_name.startswith("upwell_"):
        found.append(f"table {diag.table_name!r}")
    return ", ".join(found)


def _copied(error: psycopg.Error) -> tuple[int | None, str | None]:
    """The line and the column that a COPY failed at. Its context says: `COPY t, line 3, column qty: "the value"`."""
    # In whatever language: the table's name is ours, then come a word and the number, a word and the name.
    context = re.match(r"COPY upwell_\w+, \w+ (\d+)(?:, \w+ ([^\n]+?)(?:: |$))?", error.diag.context or "")
    return (None, None) if context is None else (int(context[1]), context[2])


def _denied(error: psycopg.Error) -> str:
    """The server's words: messages of this SQLSTATE name objects, never values."""
    return error.diag.message_primary or "permission denied"


_GRANTS: Final = (
    # The message ends with the name, as it is.
    (re.compile(r"for (?:table|view|relation) (.+)", re.DOTALL), "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {};"),
    (re.compile(r"for schema (.+)", re.DOTALL), "GRANT USAGE, CREATE ON SCHEMA {} TO {};"),
    (re.compile(r"temporary tables in database \"(.+)\"", re.DOTALL), "GRANT TEMPORARY ON DATABASE {} TO {};"),
    (re.compile(r"for database (.+)", re.DOTALL), "GRANT CREATE ON DATABASE {} TO {};"),
    (re.compile(r"for sequence (.+)", re.DOTALL), "GRANT USAGE ON SEQUENCE {} TO {};"),
)


def _grant(error: psycopg.Error, user: str) -> str:
    message = _denied(error)
    if message.startswith("must be owner"):
        return f"Make {ident(user)} the owner, or change the object as its owner."
    for pattern, statement in _GRANTS:
        found = pattern.search(message)
        if found:
            return statement.format(ident(found.group(1)), ident(user))
    return f"Grant {ident(user)} the right that the message names."


def _connect_error(error: psycopg.Error, *, first: bool) -> UpwellError:
    """libpq gives a failed connect no SQLSTATE, so its words decide; they name host and role, never a password."""
    words = str(error).strip()
    last = words.splitlines()[-1] if words else "no reason given"
    for pattern, sentence, remedy, code, always in _CONNECT:
        if re.search(pattern, words):
            if first or always:
                return OperatorError(f"{sentence} ({last})", code=code, remedy=remedy)
            return TransientError(f"{sentence} ({last})", code=code)
    if first and not re.search(r"starting up|shutting down|too many|remaining connection slots|recovery", words):
        return OperatorError(f"The target database refuses the connection ({last}).", code="UW-PT-005")
    return TransientError(f"The target database can't be reached ({last}).", code="UW-PT-004")


# pattern, sentence, remedy, code, whether only a person can mend it even when it once worked
_CONNECT: Final = (
    (
        r"password authentication failed|no password supplied|authentication failed",
        "The target database refuses the role or its password.",
        "Check user and password in subscriber.target.",
        "UW-PT-021",
        True,
    ),
    (
        r'role "[^"]*" does not exist',
        "The target database has no such role.",
        "Create it, or correct the user in subscriber.target.",
        "UW-PT-021",
        True,
    ),
    (
        r"no pg_hba\.conf entry",
        "The target server admits no such connection.",
        "Add a line to its pg_hba.conf, or use sslmode=require if only encrypted connections are admitted.",
        "UW-PT-022",
        False,
    ),
    (
        r'database "[^"]*" does not exist',
        "The target server has no such database.",
        "Create it, or correct its name in subscriber.target.",
        "UW-PT-023",
        False,
    ),
    (
        r"could not translate host name|failed to resolve host|Name or service not known|nodename nor servname",
        "The target's host name is not known.",
        "Correct the host in subscriber.target, or the machine's DNS.",
        "UW-PT-024",
        False,
    ),
    (
        r"certificate|SSL|sslrootcert|sslmode",
        "The target's TLS is not trusted, or not as asked for.",
        "Give the authority's file with sslrootcert=FILE and sslmode=verify-full in subscriber.target.",
        "UW-PT-025",
        False,
    ),
    (
        r"Connection refused|timeout expired|timed out|No route to host|unreachable|connection is bad|No such file",
        "Nothing answers at the target's host and port.",
        "Check that the server runs and that a firewall lets this machine through.",
        "UW-PT-026",
        False,
    ),
    (
        r"invalid connection option|invalid URI|missing \"=\"|invalid port|invalid integer",
        "The target's URL is not one that PostgreSQL understands.",
        "Write postgresql://user:password@host:5432/database.",
        "UW-PT-027",
        True,
    ),
)


class Pool:
    """At most `connections_max` connections; one that failed is replaced by a new one."""

    def __init__(self, url: str, connections_max: int, password: Password | None = None) -> None:
        self._url = url
        self._password = password
        self._free = threading.BoundedSemaphore(connections_max)
        self._lock = threading.Lock()
        self._idle: list[Session] = []
        self._max = connections_max

    @contextmanager
    def session(self, *, first: bool = False) -> Iterator[Session]:
        """A connection for one thread; it goes back when the block ends, unless it is broken."""
        if not self._free.acquire(timeout=POOL_WAIT_S):
            raise TransientError(f"All {self._max} connections to the target are in use.", code="UW-PT-006")
        try:
            session = self._take(first=first)
            try:
                yield session
            finally:
                self._give_back(session)
        finally:
            self._free.release()

    def close(self) -> None:
        """Close what is idle; never raises."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _take(self, *, first: bool) -> Session:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return Session(self._url, self._password, first=first)

    def _give_back(self, session: Session) -> None:
        if not session.broken:
            with self._lock:
                self._idle.append(session)
            return
        session.close()
        self.close()  # the others lead to the same server, which has gone or is no longer the writer
