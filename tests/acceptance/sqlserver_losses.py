"""What a SQL Server's history may lose so that change tracking does not tell it: done by an application's connection.

Each is whole when the function returns, so that nobody finds a table untracked or gone in between.
"""

from __future__ import annotations

from contextlib import closing
from urllib.parse import urlsplit

from tests.acceptance.sqlserver_client import SqlServerConnection
from tests.sqlserver_databases import in_database


def run_sql(url: str, *statements: str) -> None:
    """Each is a transaction of its own, unless BEGIN opened one."""
    with closing(SqlServerConnection(url)) as connection:
        for statement in statements:
            connection.execute(statement)


def track_off_and_on(url: str) -> None:
    """Rows of `item` change in between, unseen; in one transaction, since a publisher ends at an untracked table."""
    run_sql(
        url,
        "BEGIN",
        "ALTER TABLE item DISABLE CHANGE_TRACKING",
        "UPDATE item SET name = 'unseen'",
        "ALTER TABLE item ENABLE CHANGE_TRACKING WITH (TRACK_COLUMNS_UPDATED = ON)",
        "COMMIT",
    )


def make_ledger_anew(url: str, entry: int, state: int) -> None:
    """It has this row then; in one transaction, since a publisher that starts where there is no such table ends."""
    run_sql(
        url,
        "BEGIN",
        "DROP TABLE ledger",
        "CREATE TABLE ledger (entry int PRIMARY KEY, state bigint NOT NULL, note nvarchar(40))",
        f"INSERT INTO ledger VALUES ({entry}, {state}, 'anew')",
        "ALTER TABLE ledger ENABLE CHANGE_TRACKING WITH (TRACK_COLUMNS_UPDATED = ON)",
        "COMMIT",
    )


def clean_up(url: str) -> None:
    """All that is tracked by now is forgotten, as when the retention is over: a procedure of the stand-in's."""
    with closing(SqlServerConnection(url)) as connection:
        (newest,) = connection.execute("SELECT CHANGE_TRACKING_CURRENT_VERSION()").fetchone()
        connection.execute(f"EXEC lab.cleanup @to = {newest}")


def back_up(url: str) -> None:
    """The stand-in ends the sessions that the database has."""
    _alone(url, f"BACKUP DATABASE {_name(url)} TO DISK = '{_name(url)}.bak'")


def restore(url: str) -> None:
    """What was written since the backup is gone, with all sessions."""
    _alone(url, f"RESTORE DATABASE {_name(url)} FROM DISK = '{_name(url)}.bak' WITH REPLACE")


def _alone(url: str, statement: str) -> None:
    """While the server lets nobody else into the database."""
    alter = f"ALTER DATABASE {_name(url)} SET"
    run_sql(
        in_database(url, "master"),
        f"{alter} SINGLE_USER WITH ROLLBACK IMMEDIATE",
        statement,
        f"{alter} MULTI_USER",
    )


def _name(url: str) -> str:
    return urlsplit(url).path.strip("/")
