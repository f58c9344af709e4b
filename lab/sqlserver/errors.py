"""How SQL Server says no."""


class SqlError(Exception):
    """An error by SQL Server's number; severity 20 and above ends the connection."""

    def __init__(self, number: int, message: str, *, severity: int = 16, state: int = 1) -> None:
        super().__init__(message)
        self.number, self.message, self.severity, self.state = number, message, severity, state


class Unknown(SqlError):
    """What T-SQL may know and the stand-in does not: refused, never half obeyed."""

    def __init__(self, what: str) -> None:
        super().__init__(50000, f"the stand-in does not know: {what}")
