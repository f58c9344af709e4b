"""A session of PostgreSQL, by libpq itself: results come in text, in pieces, and any number of statements at once."""

import select
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from psycopg import pq

from lab.sqlserver.catalog import Rows
from lab.sqlserver.errors import SqlError

PIECE: Final = 500  # rows that are held at once
_ROWS: Final = {pq.ExecStatus.TUPLES_OK, pq.ExecStatus.SINGLE_TUPLE, pq.ExecStatus.TUPLES_CHUNK}
_STATES: Final = {
    # what PostgreSQL says → (number, severity, text); {} are its own words, {c} its constraint, {t} its table
    "23505": (2627, 14, "Violation of UNIQUE KEY constraint '{c}'. Cannot insert duplicate key in object '{t}'."),
    "23502": (515, 16, "Cannot insert the value NULL into column '{n}', table '{t}'; column does not allow nulls."),
    "23503": (547, 16, "The statement conflicted with the FOREIGN KEY constraint \"{c}\"."),
    "23514": (547, 16, "The statement conflicted with the CHECK constraint \"{c}\"."),
    "40P01": (1205, 13, "Transaction was deadlocked on lock resources with another process and has been chosen as the "
                        "deadlock victim. Rerun the transaction."),
    "55P03": (1222, 16, "Lock request time out period exceeded."),
    "40001": (3960, 16, "Snapshot isolation transaction aborted due to update conflict."),
    "42P01": (208, 16, "Invalid object name: {}"),
    "42703": (207, 16, "Invalid column name: {}"),
    "42883": (195, 15, "The stand-in does not know this function or operator, or not for these types: {}"),
    "22001": (2628, 16, "String or binary data would be truncated: {}"),
    "22P02": (245, 16, "Conversion failed: {}"),
    "22007": (241, 16, "Conversion failed when converting date and/or time from character string: {}"),
    "22008": (242, 16, "The conversion resulted in an out-of-range value: {}"),
    "22003": (8115, 16, "Arithmetic overflow error: {}"),
    "22012": (8134, 16, "Divide by zero error encountered."),
    "42P07": (2714, 16, "There is already an object of this name: {}"),
    "428C9": (544, 16, "Cannot insert explicit value for identity column in table when IDENTITY_INSERT is set to OFF."),
    "2BP01": (3726, 16, "Could not drop the object: {}"),
    "TD101": (22101, 16, "The value for the mask of changed columns is not valid."),
    "57014": (3617, 25, "The statement was cancelled."),
}  # fmt: skip
_LOST: Final = {"57P01", "57P02", "57P03", "08006", "08003"}


@dataclass(frozen=True)
class Field:
    """A result's column, as PostgreSQL describes it; `table` and `column` are 0 where it comes from none."""

    name: str
    oid: int
    modifier: int
    table: int
    column: int


class Lost(Exception):
    """PostgreSQL has ended the session."""


class Store:
    """One session. Not for two threads at once, but for `cancel`."""

    def __init__(self, url: str) -> None:
        self._connection = pq.PGconn.connect(url.encode())
        if self._connection.status != pq.ConnStatus.OK:
            raise Lost(self._connection.get_error_message())
        self.fields: list[Field] = []
        self.affected: int | None = None

    def run(self, sql: str) -> Rows:
        """Executes all; the rows of the last statement that has any."""
        rows: Rows = []
        for row in self.stream(sql):
            rows.append(tuple(None if value is None else value.decode() for value in row))
        return rows

    def stream(self, sql: str) -> Iterator[tuple[bytes | None, ...]]:
        """Executes all. `fields` are known when the first row is, or the end; `affected` at the end."""
        connection, self.fields, self.affected = self._connection, [], None
        connection.send_query(sql.encode())
        connection.set_chunked_rows_mode(PIECE)
        error = None
        while (result := self._next()) is not None:
            if result.status in _ROWS and error is None:
                if not self.fields:
                    self.fields = [_field(result, number) for number in range(result.nfields)]
                columns = range(result.nfields)
                for row in range(result.ntuples):
                    yield tuple(result.get_value(row, column) for column in columns)
            elif result.status == pq.ExecStatus.FATAL_ERROR:
                error = error or _error(result)
            if result.status in {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK} and _counts(result):
                self.affected = result.command_tuples
        if error is not None:
            raise error

    def drain(self) -> None:
        """Forgets what is left of a stream that was not read to its end."""
        with suppress(Lost):
            while self._next() is not None:
                pass

    def cancel(self) -> None:
        """From another thread."""
        with suppress(Exception):
            self._connection.get_cancel().cancel()

    @property
    def in_transaction(self) -> bool:
        return self._connection.transaction_status != pq.TransactionStatus.IDLE

    def close(self) -> None:
        self._connection.finish()

    def _next(self) -> pq.abc.PGresult | None:
        try:
            while self._connection.is_busy():
                select.select([self._connection.socket], [], [])
                self._connection.consume_input()
            return self._connection.get_result()
        except Exception as error:
            raise Lost(str(error)) from error


def _counts(result: pq.abc.PGresult) -> bool:
    return (result.command_status or b"").split(b" ")[0] in {b"INSERT", b"UPDATE", b"DELETE", b"MERGE", b"SELECT"}


def _field(result: pq.abc.PGresult, number: int) -> Field:
    return Field(
        name=(result.fname(number) or b"").decode(),
        oid=result.ftype(number),
        modifier=result.fmod(number),
        table=result.ftable(number),
        column=result.ftablecol(number),
    )


def _error(result: pq.abc.PGresult) -> Exception:
    def part(name: pq.DiagnosticField) -> str:
        return (result.error_field(name) or b"").decode()

    state, words = part(pq.DiagnosticField.SQLSTATE), part(pq.DiagnosticField.MESSAGE_PRIMARY)
    if state in _LOST:
        return Lost(words)
    number, severity, text = _STATES.get(state, (50000, 16, "the stand-in's PostgreSQL says {} (" + state + ")"))
    if state == "23505" and part(pq.DiagnosticField.CONSTRAINT_NAME).startswith("pk"):
        text = text.replace("UNIQUE KEY", "PRIMARY KEY")
    table = f"{part(pq.DiagnosticField.SCHEMA_NAME)}.{part(pq.DiagnosticField.TABLE_NAME)}"
    column, constraint = part(pq.DiagnosticField.COLUMN_NAME), part(pq.DiagnosticField.CONSTRAINT_NAME)
    return SqlError(number, text.format(words, c=constraint, t=table, n=column), severity=severity)
