"""Our own mark in the source database: a number that only rises, written before what was read is given away.

Change tracking gives no help against a restore, nor a failover with loss: the version goes back, and on beyond where
we were. But a database that lacks what we wrote lacks what others wrote before it, too. The table is optional:
grants.sql has its statements as comments, for whoever wants it; without it the recovery fork must do.
"""

from __future__ import annotations

from typing import Final

from upwell.sources.sqlserver_catalog import DEFAULT_SCHEMA, MARKER
from upwell.sources.sqlserver_session import PARAMETER, Session, literal, quoted

TABLE: Final = quoted(DEFAULT_SCHEMA, MARKER)
CREATE_SQL: Final = (
    f"CREATE TABLE {TABLE} (pipeline nvarchar(128) NOT NULL PRIMARY KEY, number bigint NOT NULL, "
    "at datetime2(3) NOT NULL);"
)
DROP_SQL: Final = f"DROP TABLE {TABLE};"


def exists(session: Session) -> bool:
    """Whether the table is there, and may be seen."""
    row = session.one(f"SELECT OBJECT_ID({literal(TABLE)})")
    return row is not None and row[0] is not None


def read(session: Session, pipeline: str) -> int | None:
    """What stands in our row, 0 where there is none yet; None where we have no right to write it, or no table."""
    row = session.one(f"SELECT HAS_PERMS_BY_NAME({literal(TABLE)}, 'OBJECT', 'UPDATE')")
    if row is None or row[0] != 1:
        return None
    found = session.one(f"SELECT number FROM {TABLE} WHERE pipeline = {PARAMETER}", (pipeline,))  # noqa: S608 - our name
    return 0 if found is None else int(found[0])


def write(session: Session, pipeline: str, number: int) -> None:
    """Durable when it returns."""
    changed = session.run(
        f"UPDATE {TABLE} SET number = {PARAMETER}, at = SYSUTCDATETIME() WHERE pipeline = {PARAMETER}",  # noqa: S608 - our name
        (number, pipeline),
    )
    if changed == 0:
        session.run(
            f"INSERT INTO {TABLE} (pipeline, number, at) VALUES ({PARAMETER}, {PARAMETER}, SYSUTCDATETIME())",  # noqa: S608 - our name
            (pipeline, number),
        )
