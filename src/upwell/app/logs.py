"""Logging to standard error, as lines for people or as JSON for programs, and without secrets.

No message is meant to hold a secret; should one slip into what a driver or a service says, it is blotted out here.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, Literal

import orjson

from upwell.clock import iso_time
from upwell.errors import UpwellError

Format = Literal["text", "json"]

BLOT: Final = "***"
SECRET_CHARS_MIN: Final = 4  # shorter ones would blot out half of every message, and are no secrets
_FIELDS: Final = ("code", "remedy", "traceback")

log = logging.getLogger("upwell")


class _Lines(logging.Formatter):
    def __init__(self, form: Format) -> None:
        super().__init__()
        self._form = form
        self.secrets: set[str] = set()

    def format(self, record: logging.LogRecord) -> str:
        text = self._json(record) if self._form == "json" else self._text(record)
        for secret in self.secrets:
            text = text.replace(secret, BLOT)
        return text

    def _text(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("upwell.").removeprefix("upwell")
        line = f"{iso_time(record.created)} {record.levelname.lower():7} {name + ': ' if name else ''}"
        line += visible(record.getMessage())
        if code := getattr(record, "code", ""):
            line += f" [{code}]"
        if remedy := getattr(record, "remedy", ""):
            line += f"\n  to do: {visible(remedy)}"
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")

    def _json(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": iso_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update((name, getattr(record, name)) for name in _FIELDS if getattr(record, name, ""))
        return orjson.dumps(fields).decode()


class _ToStandardError(logging.Handler):
    """To what standard error is at the moment: progress bars put themselves in between, below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        # Where the disk of the log is full, or nobody reads it any more, what is to be done goes on all the same.
        with suppress(OSError):
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


_lines = _Lines("text")


def set_up(form: Format) -> None:
    """Log to standard error from here on."""
    global _lines
    secrets = _lines.secrets
    _lines = _Lines(form)
    _lines.secrets = secrets
    handler = _ToStandardError()
    handler.setFormatter(_lines)
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def hide(secrets: Iterable[str]) -> None:
    """Never let these appear."""
    _lines.secrets.update(secret for secret in secrets if len(secret) >= SECRET_CHARS_MIN)


# What moves a terminal's cursor, begins a line, or turns the direction of writing: names of tables may hold anything.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")


def visible(text: str, *, lines: bool = False) -> str:
    """The text with escapes such as \\x1b in the place of what would do something instead of being seen.

    `lines`: it may have several lines.
    """
    return _CONTROL.sub(lambda sign: sign[0] if lines and sign[0] == "\n" else ascii(sign[0])[1:-1], text)


def hidden(text: str) -> str:
    """The text with every secret blotted out."""
    for secret in _lines.secrets:
        text = text.replace(secret, BLOT)
    return text


def _echo(text: str) -> None:
    """For a person, on standard error."""
    import click  # a function in AWS shows nobody anything

    click.echo(hidden(text), err=True)


def failed(error: UpwellError) -> None:
    """What ended a command, with the next step."""
    if _lines._form == "json":
        log.error("%s", error.message, extra={"code": error.code, "remedy": error.remedy})
        return
    lines = [f"error: {visible(error.message, lines=True)}"]
    if error.remedy:
        lines.append(f"  to do: {visible(error.remedy, lines=True)}")
    if error.code:
        lines.append(f"  more:  upwell explain {error.code}")
    _echo("\n".join(lines))


def crashed() -> None:
    """A bug: where it showed is what whoever mends it needs."""
    error = sys.exception()
    message = "This is a bug in upwell; please report it with the lines above."
    if _lines._form == "json":
        log.critical("%s", message, extra={"traceback": "" if error is None else _told(error)})
        return
    _echo(("" if error is None else _told(error)) + message)


def _told(error: BaseException) -> str:
    """The traceback, without messages that may quote a row: of errors that are not ours, only what stands in the code
    of the line that raised them.
    """
    chain: list[BaseException] = []  # what led to what may be a circle: an error that another thread raises again
    following: BaseException | None = error
    while following is not None and not any(following is each for each in chain):
        chain.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return "\nThen:\n\n".join(map(_told_alone, reversed(chain)))


def _told_alone(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    said = str(error)
    known = isinstance(error, UpwellError) or (frames and said in (frames[-1].line or ""))
    text = "".join(["Traceback (most recent call last):\n", *traceback.format_list(frames)])
    return f"{text}{type(error).__qualname__}: {said if known else '(what it says may quote a row)'}\n"


def catch_crashes() -> None:
    """What no code of ours catches, on whichever thread, is shown in the same way."""

    def on_thread(crash: threading.ExceptHookArgs) -> None:
        if crash.exc_value is not None and not isinstance(crash.exc_value, SystemExit):
            _echo(_told(crash.exc_value))

    def unraisable(crash: Any) -> None:
        if crash.exc_value is not None:
            _echo(_told(crash.exc_value))

    threading.excepthook = on_thread
    sys.unraisablehook = unraisable
    # What libraries would log, for lack of anybody to take it, goes to standard error as it is.
    logging.getLogger().addHandler(logging.NullHandler())
