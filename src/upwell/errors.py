"""The classes of failure. The class says what the pipeline does next; adapters translate at the border.

The foreign exception stays as `__cause__`. Messages are sentences for a person: what happened and, where a
person must act, the next step. They hold neither secrets nor row values. Whatever is none of these classes is a
bug and crashes with its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class UpwellError(Exception):
    """Any failure that has a name."""

    exit_code = 1

    def __init__(self, message: str, *, code: str = "", remedy: str = "") -> None:
        """`code` is the key of `upwell explain`; `remedy` is the next step, ready to be pasted where it can be."""
        super().__init__(message)
        self.message = message
        self.code = code
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ConfigError(UpwellError):
    """The configuration or the command line is wrong: nothing starts."""

    exit_code = 2


class OperatorError(UpwellError):
    """Only a person can mend it (rights, a missing stream, `wal_level`): stop, name the remedy."""

    exit_code = 3


class TransientError(UpwellError):
    """The same again later, for as long as it takes: network, throttling, expired credentials, database down.

    One that ends a command, because nothing has begun yet that could be retried, means a surrounding not ready.
    """

    exit_code = 3

    def __init__(self, message: str, *, throttled: bool = False, code: str = "", remedy: str = "") -> None:
        super().__init__(message, code=code, remedy=remedy)
        self.throttled = throttled


class Rejected(UpwellError):
    """This one event can never go, however often it is tried: dead letter, go on."""


class UniqueConflict(Rejected):
    """A bulk write hit another row's unique value: delete the affected keys and insert them anew."""


class PositionLost(UpwellError):
    """The source no longer has what follows the position: resync, or halt.

    `tables` names the tables whose changes are lost, while those of all others still follow the position: `start`
    with the same position succeeds. None means all: there is nothing to go on from but now.
    """

    def __init__(self, message: str, *, tables: Sequence[str] | None = None, code: str = "") -> None:
        super().__init__(message, code=code)
        self.tables = tables


class LeaseLost(UpwellError):
    """Another publisher holds the pipeline now: stand by, save nothing."""
