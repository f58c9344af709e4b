"""Connections to PostgreSQL, ordinary and for replication, and what their failures mean. The only driver import."""

from __future__ import annotations

import re
import selectors
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from upwell.errors import OperatorError, PositionLost, TransientError, UpwellError
from upwell.sources.pgoutput import format_lsn

if TYPE_CHECKING:
    import psycopg
    from psycopg.pq.abc import PGconn, PGresult

# Both connections print values alike, whatever the role's or the database's own settings are.
_SETTINGS: Final[Mapping[str, str]] = {
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",  # in which the target reads money: elsewhere 12,34 is 12.34
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",  # regclass and its like print names
    "search_path": "pg_catalog",  # so that format_type() names the schema of every type but PostgreSQL's own
    "statement_timeout": "0",
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_read_only": "off",  # chunks are read in READ ONLY transactions all the same
    # What we write ourselves (logical messages) need not wait for a standby.
    "synchronous_commit": "local",
}
# A peer that vanished without a word is noticed within about a minute.
_CONNECTION: Final[Mapping[str, str | int]] = {
    "client_encoding": "UTF8",
    "application_name": "upwell",
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# A database in SQL_ASCII may hold any bytes. It fails what it is to send as UTF-8 and is not; so we look ourselves.
RAW_TEXT: Final = "SET client_encoding = 'SQL_ASCII'"
_WAIT_SLICE_S: Final = 1.0  # TLS may hold back bytes that the socket no longer shows: look again that often
_POSTGRES_EPOCH_S: Final = 946_684_800
_feedback = struct.Struct(">cQQQqB").pack


def connect(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    """An ordinary connection on which each statement is a transaction of its own. Raises UpwellError."""
    import psycopg

    try:
        return psycopg.connect(_conninfo(url), autocommit=True)
    except psycopg.Error as error:
        raise refused(str(error), url) from error


def _conninfo(url: str, **more: str) -> str:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    try:
        given = conninfo_to_dict(url)
    except psycopg.Error as error:
        raise OperatorError(
            "The source's URL is not one of PostgreSQL.",
            code="UW-PG-001",
            remedy="Write it as postgresql://USER:PASSWORD@HOST:5432/DATABASE with special characters percent-encoded.",
        ) from error
    settings = [f"-c {name}={value}" for name, value in _SETTINGS.items()]
    options = " ".join(filter(None, [str(given.get("options") or ""), *settings]))
    # What the URL says of the connection counts; how values are printed is ours.
    parameters: dict[str, Any] = {**_CONNECTION, **given, **more, "client_encoding": "UTF8", "options": options}
    return make_conninfo("", **parameters)


class ReplicationConnection:
    """A connection in the replication protocol. Raises UpwellError, and is of no use any more after that."""

    def __init__(self, url: str) -> None:
        from psycopg import pq

        self._url = url
        self._pgconn: PGconn = pq.PGconn.connect(_conninfo(url, replication="database").encode())
        if self._pgconn.status != pq.ConnStatus.OK:
            message = self._pgconn.get_error_message()
            self._pgconn.finish()
            raise refused(message, url)
        if self._pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII":
            self._pgconn.exec_(RAW_TEXT.encode())
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pgconn.socket, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """Of the process that serves it."""
        return self._pgconn.backend_pid

    def identify(self) -> tuple[str, int]:
        """The server's system identifier and its timeline."""
        ((system, timeline, *_),) = self._query("IDENTIFY_SYSTEM")
        return system.decode(), int(timeline)

    def timeline_history(self, timeline: int) -> list[tuple[int, int]]:
        """The timelines before this one, each with the LSN at which it was left."""
        if timeline == 1:
            return []  # the first has no history file
        ((_, content),) = self._query(f"TIMELINE_HISTORY {timeline}")
        lines = re.findall(r"^(\d+)\t([0-9A-F]+)/([0-9A-F]+)", content.decode(errors="replace"), re.MULTILINE)
        return [(int(tli), (int(high, 16) << 32) | int(low, 16)) for tli, high, low in lines]

    def start(self, slot: str, lsn: int, publication: str) -> None:
        """Begin to stream what committed at `lsn` or later."""
        from psycopg import pq

        names = quote_literal(quote_ident(publication))
        command = (
            f"START_REPLICATION SLOT {quote_ident(slot)} LOGICAL {format_lsn(lsn)}"
            f" (proto_version '1', publication_names {names})"
        )
        result = self._pgconn.exec_(command.encode())
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._failure(result)

    def receive(self) -> bytes | None:
        """The next message; None when there is none without waiting."""
        size, data = self._pgconn.get_copy_data(1)
        if size == 0:
            self._pgconn.consume_input()
            size, data = self._pgconn.get_copy_data(1)
        if size > 0:
            return bytes(data)
        if size == 0:
            return None
        raise self._failure(self._pgconn.get_result())

    def wait(self, seconds: float) -> bool:
        """Until there may be something to receive, or the time is over; True in the first case."""
        return bool(self._selector.select(min(seconds, _WAIT_SLICE_S)))

    def feedback(self, confirmed: int, now: float, *, ask: bool = False) -> None:
        """Tell the server what is durable downstream; it may free its log up to there. `ask`: for a keepalive."""
        micros = int((now - _POSTGRES_EPOCH_S) * 1_000_000)
        self._pgconn.put_copy_data(_feedback(b"r", confirmed, confirmed, confirmed, micros, ask))
        self._pgconn.flush()

    def close(self) -> None:
        """Never raises."""
        self._selector.close()
        self._pgconn.finish()

    def _query(self, command: str) -> list[Sequence[bytes]]:
        from psycopg import pq

        result = self._pgconn.exec_(command.encode())
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise self._failure(result)
        return [
            [result.get_value(row, column) or b"" for column in range(result.nfields)] for row in range(result.ntuples)
        ]

    def _failure(self, result: PGresult | None) -> UpwellError:
        from psycopg import pq

        if result is None:
            return TransientError("The server ended the replication connection.", code="UW-PG-010")
        state = result.error_field(pq.DiagnosticField.SQLSTATE)
        text = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY)
        if state is None:  # libpq itself: the connection broke
            return broken(result.get_error_message())
        return meaning(state.decode(), (text or b"").decode(errors="replace"), self._url)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """What the driver raises inside becomes an UpwellError."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate is not None:
            raise meaning(error.sqlstate, error.diag.message_primary or "", url) from error
        if isinstance(error, psycopg.OperationalError):
            raise broken(str(error)) from error
        raise


def meaning(sqlstate: str, text: str, url: str) -> UpwellError:
    """What to do about an error of the server's. Its primary message holds no row values."""
    text = one_line(text)
    if sqlstate in ("58P01", "55000") and re.search(
        r"WAL segment|can no longer|cannot read from logical|invalidated", text
    ):
        return PositionLost(f"The source no longer has the log after the saved position: {text}.", code="UW-PG-020")
    if sqlstate == "55000" and "wal_level" in text:
        return OperatorError(
            f"Logical replication is off in the source: {text}.",
            code="UW-PG-030",
            remedy="ALTER SYSTEM SET wal_level = logical; then restart the server.",
        )
    if sqlstate == "42704" and "publication" in text:
        return OperatorError(f"The source refuses to stream: {text}.", code="UW-PG-032", remedy="Run: upwell track")
    if sqlstate in ("57014", "55P03"):
        return TransientError(
            f"The source made us wait for too long: {text}.",
            code="UW-PG-014",
            remedy="See what is in progress: SELECT pid, xact_start, query FROM pg_stat_activity ORDER BY xact_start;",
        )
    if sqlstate == "55006":
        pid = re.search(r"PID (\d+)", text)
        return TransientError(
            f"The replication slot is in use by another session: {text}.",
            code="UW-PG-011",
            remedy=f"If that is a publisher that hangs: SELECT pg_terminate_backend({pid[1]});" if pid else "",
        )
    if sqlstate in ("53400", "53300") and "replication slots" in text:
        return OperatorError(
            f"The source has no free replication slot: {text}.",
            code="UW-PG-033",
            remedy="Drop a slot that nobody uses, or raise max_replication_slots and restart the server.",
        )
    if sqlstate == "42P01":
        return OperatorError(
            f"The source does not have a table any more: {text}.",
            code="UW-PG-044",
            remedy="Remove it from tables in the configuration, or create it again.",
        )
    if sqlstate == "42501":
        return OperatorError(
            f"The source refuses us: {text}.", code="UW-PG-004", remedy="Run grants.sql as written by: upwell init"
        )
    if sqlstate.startswith("28") or sqlstate in ("3D000", "0A000"):
        return refused(text, url)
    if sqlstate in _LASTING or sqlstate[:2] in _LASTING:
        return OperatorError(f"The source refuses a statement: {text} (SQLSTATE {sqlstate}).", code="UW-PG-009")
    return TransientError(f"The source failed: {text} (SQLSTATE {sqlstate}).", code="UW-PG-012")


# Classes and codes of errors that will be the same the next time, see "PostgreSQL Error Codes".
_LASTING: Final = frozenset({"22", "23", "42", "0A", "25006"})


def broken(text: str) -> UpwellError:
    """A connection that was there is no more."""
    return TransientError(f"The connection to the source broke: {one_line(text)}.", code="UW-PG-010")


def refused(text: str, url: str) -> UpwellError:
    """Why a connection could not be made. libpq tells that in words only."""
    where = address(url)
    # libpq's question back is for somebody who has nobody to tell the next step.
    text = re.sub(r"\s*Is the server running.*", "", one_line(text)).removeprefix("connection failed: ")
    for pattern, code, sentence, remedy in _REFUSALS:
        if re.search(pattern, text, re.IGNORECASE):
            error = OperatorError if code in _FOR_A_PERSON else TransientError
            return error(sentence.format(where=where, text=text), code=code, remedy=remedy)
    return TransientError(f"There is no connection to PostgreSQL at {where}: {text}.", code="UW-PG-010")


_FOR_A_PERSON: Final = frozenset({"UW-PG-001", "UW-PG-002", "UW-PG-003", "UW-PG-004", "UW-PG-005", "UW-PG-006"})
_REFUSALS: Final = (
    (
        r"invalid \S+ value|invalid connection option",
        "UW-PG-001",
        "The source's URL is not right: {text}.",
        "Check source.url.",
    ),
    (
        r"password authentication failed|no password supplied|authentication failed|role \S+ does not exist",
        "UW-PG-002",
        "PostgreSQL at {where} does not accept the user or the password.",
        "Check user and password in source.url.",
    ),
    (
        r"database \S+ does not exist",
        "UW-PG-003",
        "PostgreSQL at {where} has no such database.",
        "Check the database's name at the end of source.url.",
    ),
    (
        r"no pg_hba\.conf entry|permission denied to start WAL sender|must be superuser or replication role",
        "UW-PG-004",
        "PostgreSQL at {where} does not let us in: {text}.",
        "Allow it in pg_hba.conf, and for replication: ALTER ROLE our_role REPLICATION;",
    ),
    (
        r"certificate|root\.crt",
        "UW-PG-005",
        "The TLS certificate of PostgreSQL at {where} is not trusted: {text}.",
        "Add sslrootcert=/path/of/the/ca.pem to source.url.",
    ),
    (
        r"server does not support SSL",
        "UW-PG-006",
        "PostgreSQL at {where} does not speak TLS, which source.url demands.",
        "Turn TLS on in the server (ssl = on), or change sslmode in source.url.",
    ),
    (
        r"connection refused|timeout expired|timed out|no route to host|unreachable|could not translate|resolve host",
        "UW-PG-007",
        "PostgreSQL at {where} can't be reached: {text}.",
        "Check host and port in source.url, and that the server listens there.",
    ),
    (
        r"too many clients|remaining connection slots|too many connections|max_wal_senders|starting up|shutting down",
        "UW-PG-008",
        "PostgreSQL at {where} takes no connection now: {text}.",
        "",
    ),
)


def address(url: str) -> str:
    """HOST:PORT/DATABASE of a URL, without its secrets."""
    from psycopg.conninfo import conninfo_to_dict

    given = conninfo_to_dict(url)
    return f"{given.get('host') or 'the local socket'}:{given.get('port') or 5432}/{given.get('dbname') or ''}"


def one_line(text: str) -> str:
    """A server's or libpq's message as the end of a sentence of ours."""
    return " ".join(text.split()).removeprefix("FATAL: ").rstrip(". ")


def quote_ident(name: str) -> str:
    """A name as SQL has it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """A text as SQL has it; standard_conforming_strings is on."""
    return "'" + text.replace("'", "''") + "'"
