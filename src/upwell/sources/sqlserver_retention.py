"""How long a SQL Server keeps changes, and how long it will keep those that are still to be read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from upwell.errors import OperatorError, TransientError
from upwell.sources.sqlserver_catalog import TableState
from upwell.sources.sqlserver_session import Session

_HOURS: Final = {"MINUTES": 1 / 60, "HOURS": 1.0, "DAYS": 24.0}


class Retention(NamedTuple):
    """What ALTER DATABASE … SET CHANGE_TRACKING says."""

    hours: float
    cleanup: bool  # False: changes are kept until somebody turns it on again

    @property
    def words(self) -> str:
        """For a sentence."""
        return f"{self.hours / 24:g} days" if self.hours >= 24 else f"{self.hours:g} hours"


def read_retention(session: Session) -> Retention | None:
    """None where change tracking is off in the database."""
    row = session.one(
        "SELECT c.retention_period, c.retention_period_units_desc, c.is_auto_cleanup_on "
        "FROM sys.change_tracking_databases AS c WHERE c.database_id = DB_ID()"
    )
    return None if row is None else Retention(row[0] * _HOURS[row[1]], bool(row[2]))


def commit_table_rows(session: Session) -> int | None:
    """How many transactions the server remembers; CHANGETABLE slows down with them. None where we may not see it."""
    try:
        row = session.one(
            "SELECT SUM(p.row_count) FROM sys.dm_db_partition_stats AS p "
            "WHERE p.object_id = OBJECT_ID(N'sys.syscommittab') AND p.index_id IN (0, 1)"
        )
    except (OperatorError, TransientError):
        return None
    return None if row is None or row[0] is None else int(row[0])


def health_of(session: Session, states: Iterable[TableState], done: int, behind_s: float) -> dict[str, Any]:
    """For `status`: the runway, of each table too.

    `done`: the version up to which we have read; `behind_s`: how long ago it was the newest. `versions_left` is by how
    many versions the oldest one that the server has kept of a table is below ours.
    """
    retention = read_retention(session)
    left = None if retention is None or not retention.cleanup else max(0.0, retention.hours - behind_s / 3600)
    tables = {
        str(state.name): {
            "min_valid_version": state.min_valid,
            "versions_left": None if state.min_valid is None else done - state.min_valid,
            "runway_hours": 0.0 if state.min_valid is not None and state.min_valid > done else _rounded(left),
        }
        for state in states
    }
    return {
        "retention_hours": None if retention is None else _rounded(retention.hours),
        "auto_cleanup": None if retention is None else retention.cleanup,
        "runway_hours": _rounded(left),
        "tables": tables,
    }


def _rounded(hours: float | None) -> float | None:
    return None if hours is None else round(hours, 2)
