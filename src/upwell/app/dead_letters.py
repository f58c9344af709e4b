"""`upwell dead-letters`: what could not be delivered or applied, on whichever side the configuration reaches.

A letter of the publisher is called `p-7`, one of the target `s-7`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import orjson

from upwell.app import build, build_cloud
from upwell.clock import SystemClock
from upwell.config import Pipeline
from upwell.envelope import ReceivedEvent, unpack_record
from upwell.errors import ConfigError, Rejected
from upwell.model import DeadLetter, Marker


class Letters(Protocol):
    """Where dead letters are kept."""

    def all(self) -> Sequence[DeadLetter]: ...
    def one(self, id_: int) -> DeadLetter | None: ...
    def drop(self, id_: int) -> bool: ...


class _OfPublisher:
    def __init__(self, pipeline: Pipeline) -> None:
        self._kept = build.state(pipeline)

    def all(self) -> Sequence[DeadLetter]:
        return self._kept.dead_letters()

    def one(self, id_: int) -> DeadLetter | None:
        return self._kept.dead_letter(id_)

    def drop(self, id_: int) -> bool:
        return self._kept.drop_dead_letter(id_)

    def close(self) -> None:
        self._kept.release()


class _OfTarget:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline.name
        self._target = build_cloud.target(pipeline, SystemClock())

    def all(self) -> Sequence[DeadLetter]:
        return self._target.dead_letters(self._pipeline)

    def one(self, id_: int) -> DeadLetter | None:
        return self._target.dead_letter(id_)

    def drop(self, id_: int) -> bool:
        return self._target.drop_dead_letter(id_)

    def close(self) -> None:
        self._target.close()


class Box:
    """The dead letters of a pipeline, on both sides. `unread` says why the target's can't be read from here."""

    def __init__(self, sides: dict[str, Letters], unread: str | None) -> None:
        self._sides = sides
        self.unread = None if unread is None else f"The target's dead letters can't be read from here, {unread}."

    def all(self) -> list[tuple[str, DeadLetter]]:
        """(id, letter), the publisher's first, the oldest first."""
        return [(f"{side}-{letter.id}", letter) for side, letters in self._sides.items() for letter in letters.all()]

    def one(self, name: str) -> DeadLetter:
        """Raises ConfigError where there is none of that id."""
        letters, id_ = self._found(name)
        letter = letters.one(id_)
        if letter is None:
            raise _unknown(name)
        return letter

    def drop(self, name: str) -> None:
        """Forget it. Raises ConfigError where there is none of that id."""
        letters, id_ = self._found(name)
        if not letters.drop(id_):
            raise _unknown(name)

    def _found(self, name: str) -> tuple[Letters, int]:
        side, _, number = name.partition("-")
        if side == "s" and self.unread is not None:
            raise ConfigError(self.unread, code="UW-CF-012")
        if side not in self._sides or not number.isdecimal():
            raise _unknown(name)
        return self._sides[side], int(number)


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"There is no dead letter {name}.", code="UW-CL-005", remedy="`upwell dead-letters list` names them all."
    )


@contextmanager
def box(pipeline: Pipeline) -> Iterator[Box]:
    """The dead letters that this configuration reaches. Raises UpwellError."""
    sides: dict[str, Any] = {}
    if pipeline.config.source is not None or pipeline.why_left_out("source"):
        sides["p"] = _OfPublisher(pipeline)
    if pipeline.config.subscriber is not None:
        sides["s"] = _OfTarget(pipeline)
    try:
        yield Box(sides, pipeline.why_left_out("subscriber"))
    finally:
        for side in sides.values():
            side.close()


def described(name: str, letter: DeadLetter) -> dict[str, Any]:
    """All that is known of a letter, its row included: for the person who asked for it, not for a log."""
    found: dict[str, Any] = {
        "id": name,
        "table": letter.table,
        "key": letter.key,
        "version": letter.version,
        "reason": letter.reason,
        "time": letter.time,
    }
    with suppress(Rejected):
        found["events"] = [
            {
                "operation": {"u": "upsert", "d": "delete"}[item.operation],
                "time": item.time,
                **_values(item),
            }
            for item in unpack_record(letter.payload).items
            if not isinstance(item, Marker)
        ]
    return found


def _values(event: ReceivedEvent) -> dict[str, Any]:
    if event.claim is not None:
        return {"claim": event.claim._asdict()}
    names = event.schema.key if event.operation == "d" else [column.name for column in event.schema.columns]
    return {"values": dict(zip(names, event.values, strict=True))}


def replay(pipeline: Pipeline, names: Sequence[str]) -> list[str]:
    """Have the tables of these letters read again, and forget the letters; returns the tables.

    A letter's own event may be older than what has arrived of its row since, so sending that again could take the row
    back in time. What can't be delivered still becomes a new letter. Raises UpwellError.
    """
    from upwell.app.resync import resync

    with box(pipeline) as letters:
        tables = list(dict.fromkeys(letters.one(name).table for name in names))
        if "" in tables:
            raise ConfigError(
                "A record that could not be read names no table that could be read again.",
                code="UW-CL-006",
                remedy="Run `upwell resync`, then `upwell dead-letters drop`.",
            )
        if pipeline.config.source is None:
            raise ConfigError(
                "The tables can only be read again where the publisher runs.",
                code="UW-CL-006",
                remedy=f"Run there: upwell resync {shlex.join(tables)}; and here: upwell dead-letters drop",
            )
        resync(pipeline, tables, "dead letters are to be replayed")
        for name in names:
            letters.drop(name)
    return tables


def as_json_text(value: Any) -> bytes:
    """For standard output."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2)
