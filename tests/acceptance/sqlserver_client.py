"""SQL Server as an application sees it, by python-tds: not the driver that upwell prefers."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import pytds

# The statements of transactions that the workload knows, in T-SQL.
_TRANSACTIONS: Final = {
    "BEGIN": "BEGIN TRANSACTION",
    "COMMIT": "COMMIT TRANSACTION",
    "ROLLBACK": "ROLLBACK TRANSACTION",
    "SAVEPOINT part": "SAVE TRANSACTION part",
    "ROLLBACK TO SAVEPOINT part": "ROLLBACK TRANSACTION part",
    "RELEASE SAVEPOINT part": "",
}
_ANSWER_S: Final = 60.0
_LOGIN_S: Final = 5.0  # python-tds tries again and again for so long

# What a client gets where the server goes away, gives it up, or will not have it just now. A commit that was under way
# may be done only after the client has come back and looked, so that a key is there which was not.
LOST: Final = (pytds.OperationalError, pytds.InterfaceError, pytds.IntegrityError, OSError)


class SqlServerConnection:
    """A connection to `mssql://USER:PASSWORD@HOST:PORT/DATABASE?ca=FILE`: each statement is a transaction of its own
    unless BEGIN opened one.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        self._connection = pytds.connect(
            dsn=parts.hostname,
            port=parts.port,
            database=unquote(parts.path.strip("/")),
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            cafile=options.get("ca"),
            validate_host=False,  # python-tds 1.17 can't with the pyOpenSSL of today
            timeout=_ANSWER_S,
            login_timeout=_LOGIN_S,
            autocommit=True,
        )

    def execute(self, sql: str, values: Any = (), /) -> Any:
        """A cursor with its rows. `%s` stand for the values."""
        cursor = self._connection.cursor()
        statement = _TRANSACTIONS.get(sql, sql)
        if statement:
            cursor.execute(statement, tuple(pytds.Binary(v) if isinstance(v, bytes) else v for v in values))
        return cursor

    def close(self) -> None:
        self._connection.close()
