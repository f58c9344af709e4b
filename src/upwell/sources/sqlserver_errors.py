"""What to do about SQL Server's errors. Pure.

python-tds tells an error's number; mssql-python only its text, in the session's language, which is English: see
`number_of`.
Numbers: "Database Engine events and errors"; those of Azure SQL: "Troubleshoot transient connection errors".
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from upwell.errors import OperatorError, TransientError, UpwellError


class _Meaning(NamedTuple):
    error: type[OperatorError] | type[TransientError]
    code: str
    sentence: str  # {where} and {text} may stand in it
    remedy: str = ""


LOGIN_FAILED: Final = 18456
NO_RIGHT: Final = "UW-MS-004"
NO_OBJECT: Final = "UW-MS-043"

_SNAPSHOT_OFF: Final = _Meaning(
    TransientError,
    "UW-MS-015",
    "Snapshot isolation is not available in {where} just now: {text}.",
    "ALTER DATABASE CURRENT SET ALLOW_SNAPSHOT_ISOLATION ON;",
)
_CHANGED_MEANWHILE: Final = _Meaning(
    TransientError, "UW-MS-015", "The tables were altered in {where} while they were read: {text}."
)
_RIGHTS: Final = _Meaning(
    OperatorError,
    NO_RIGHT,
    "SQL Server at {where} does not let us do that: {text}.",
    "Have an administrator run grants.sql, as written by: upwell init",
)
_BUSY: Final = _Meaning(TransientError, "UW-MS-008", "SQL Server at {where} takes no connection now: {text}.")
_BROKEN: Final = _Meaning(TransientError, "UW-MS-010", "The connection to SQL Server at {where} broke: {text}.")
_NO_TABLE: Final = _Meaning(TransientError, NO_OBJECT, "A table or column of {where} is not there any more: {text}.")

_BY_NUMBER: Final[dict[int, _Meaning]] = {
    LOGIN_FAILED: _Meaning(
        OperatorError,
        "UW-MS-002",
        "SQL Server at {where} does not accept the user or the password.",
        "Check user and password in source.url, and the database at its end: not every driver tells which it was.",
    ),
    4060: _Meaning(
        OperatorError,
        "UW-MS-003",
        "SQL Server at {where} has no such database, or the login may not use it.",
        "Check the database's name at the end of source.url; grant it with: CREATE USER upwell FOR LOGIN upwell;",
    ),
    1205: _Meaning(TransientError, "UW-MS-011", "A deadlock in {where} was resolved at our expense."),
    1222: _Meaning(
        TransientError,
        "UW-MS-013",
        "A writer's lock in {where} held us up for too long.",
        "Allow snapshot isolation, so that reading waits for nobody: "
        "ALTER DATABASE CURRENT SET ALLOW_SNAPSHOT_ISOLATION ON;",
    ),
    22105: _Meaning(
        OperatorError,
        "UW-MS-031",
        "Change tracking is off for a table of {where}: {text}.",
        "Run: upwell track",
    ),
    22117: _Meaning(
        TransientError,
        "UW-MS-033",
        "SQL Server at {where} is a secondary replica, which has no change tracking.",
        "Name the availability group's listener, or the primary, in source.url.",
    ),
    **dict.fromkeys((3952, 3954, 3956, 3957), _SNAPSHOT_OFF),
    **dict.fromkeys((3960, 3961), _CHANGED_MEANWHILE),
    **dict.fromkeys((229, 230, 297, 300, 262, 916, 5011, 15247), _RIGHTS),
    **dict.fromkeys((207, 208, 1088, 4902), _NO_TABLE),
    **dict.fromkeys(
        (10928, 10929, 10936, 17809, 18401, 40197, 40501, 40613, 49918, 49919, 49920, 40143, 4221, 615), _BUSY
    ),
    **dict.fromkeys((233, 596, 6005, 927, 976, 983, 10053, 10054, 10060), _BROKEN),
}
# What will be the same the next time: syntax, conversions, names.
_LASTING: Final = frozenset(
    {102, 105, 137, 156, 170, 195, 206, 241, 242, 245, 248, 257, 319, 4104, 8114, 8115, 8116, 8152}
)

_BREAKS: Final = re.compile(
    r"communication link|connection|closed|reset by peer|broken pipe|tcp provider|io error|end of file", re.IGNORECASE
)

# How the texts of errors begin that must be told apart, for a driver that has no numbers.
_NUMBERS: Final = tuple(
    (number, re.compile(pattern, re.IGNORECASE))
    for number, pattern in (
        (4060, r"cannot open database"),  # the next one follows it
        (LOGIN_FAILED, r"login failed for user"),
        (1205, r"was deadlocked on"),
        (1222, r"lock request time ?out period exceeded"),
        (22105, r"change tracking is not enabled on table"),
        (22117, r"change tracking.* secondary|secondary .*change tracking"),
        (3952, r"snapshot isolation transaction failed accessing database"),
        (3956, r"snapshot isolation transaction failed to start"),
        (3954, r"snapshot isolation transaction failed to start in database .* ALLOW_SNAPSHOT_ISOLATION"),
        (3960, r"snapshot isolation transaction aborted due to update conflict"),
        (3961, r"snapshot isolation transaction failed in database .* because the object"),
        (229, r"permission was denied on the (object|schema|database)"),
        (230, r"permission was denied on the column"),
        (300, r"permission was denied|permission denied in database"),
        (297, r"user does not have permission to perform this action"),
        (5011, r"does not have permission to alter database"),
        (916, r"is not able to access the database"),
        (207, r"invalid column name"),
        (208, r"invalid object name"),
        (4902, r"cannot find the object"),
        (102, r"incorrect syntax near"),
        (156, r"incorrect syntax near the keyword"),
        (8114, r"error converting data type"),
        (245, r"conversion failed when converting"),
        (8115, r"arithmetic overflow error"),
        (195, r"is not a recognized"),
        (4104, r"could not be bound"),
        (10928, r"resource id ?: ?\d+"),
        (40613, r"is not currently available"),
        (6005, r"shutdown is in progress"),
        (596, r"session is in the kill state"),
    )
)  # fmt: skip


def number_of(text: str) -> int:
    """An error's number by its English text; 0 where it is none of those that matter."""
    return next((number for number, pattern in _NUMBERS if pattern.search(text)), 0)


def meaning(number: int, text: str, where: str) -> UpwellError:
    """What to do about an error of the server's. Texts of errors name objects, not values, but for conversions."""
    found = _BY_NUMBER.get(number)
    if found is not None:
        return found.error(
            found.sentence.format(where=where, text=one_line(text)), code=found.code, remedy=found.remedy
        )
    if not number and re.search(r"time ?out|timed out", text, re.IGNORECASE):
        return TransientError(
            f"SQL Server at {where} did not answer in time.",
            code="UW-MS-014",
            remedy="Where it sorts a large backlog: ?read_timeout=600 in source.url",
        )
    if not number and _BREAKS.search(text):
        return TransientError(f"The connection to SQL Server at {where} broke: {one_line(text)}.", code="UW-MS-010")
    if number in _LASTING:
        return OperatorError(f"SQL Server at {where} refuses a statement: {_told(number, text)}.", code="UW-MS-009")
    return TransientError(f"SQL Server at {where} failed: {_told(number, text)}.", code="UW-MS-012")


def _told(number: int, text: str) -> str:
    """A conversion's error quotes the value that it is about."""
    quotes = number in (241, 242, 245, 248, 8114, 8115)
    words = "a value can't be converted" if quotes else one_line(text)
    return f"{words} (error {number})" if number else words


def unreachable(text: str, where: str) -> UpwellError:
    """Why no connection could be made, where the server did not say it. Drivers tell that in words only."""
    text = one_line(text)
    for pattern, error, code, sentence, remedy in _REFUSALS:
        if re.search(pattern, text, re.IGNORECASE):
            return error(sentence.format(where=where, text=text), code=code, remedy=remedy)
    return TransientError(f"There is no connection to SQL Server at {where}: {text}.", code="UW-MS-010")


_REFUSALS: Final = (
    (
        r"certificate|self.signed|hostname mismatch|doesn't match|unable to get local issuer",
        OperatorError,
        "UW-MS-005",
        "The TLS certificate of SQL Server at {where} is not trusted: {text}.",
        "Have the machine trust the certificate's authority, or add ?ca=/path/of/the/ca.pem to source.url. On a "
        "network that you trust: ?trust_server_certificate=yes",
    ),
    (
        r"encryption not supported|not support encryption|client requires encryption",
        OperatorError,
        "UW-MS-006",
        "SQL Server at {where} does not speak TLS, which is what upwell asks for.",
        "Turn encryption on in the server. On a network that you trust: ?encrypt=no in source.url",
    ),
    (
        r"failed to load the driver|cannot open shared object|libltdl|lib(krb5|gssapi)",
        OperatorError,
        "UW-MS-017",
        "The driver mssql-python lacks a library of the system's: {text}.",
        "apt-get install libltdl7 libkrb5-3 libgssapi-krb5-2, or set MSSQL_PYTHON_NATIVE_PROVIDER=mssql-odbc, or set "
        "source.driver: python-tds",
    ),
    (
        r"tcp provider|io error|unable to establish connection|refused|timed? ?out|timeout|unreachable|no route|"
        r"resolve|name or service|getaddrinfo|network-related|"
        r"server is not found|not accessible",
        TransientError,
        "UW-MS-007",
        "SQL Server at {where} can't be reached: {text}.",
        "Check host and port in source.url, and that the server listens there (TCP/IP is off by default in Express).",
    ),
)


def one_line(text: str) -> str:
    """A server's or driver's message as the end of a sentence of ours."""
    text = re.sub(r"\[(Microsoft|ODBC Driver[^\]]*|SQL Server)\]", "", text)
    return " ".join(text.split()).rstrip(". ")
