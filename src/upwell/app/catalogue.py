"""`upwell explain`: every code that the program can show, with its cause and what to do."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

import yaml

from upwell.errors import ConfigError

_FILE: Final = "catalogue.yaml"


class Entry(NamedTuple):
    """What a code means."""

    cause: str
    remedy: str


@cache
def entries() -> dict[str, Entry]:
    """code → entry, in the order of the codes."""
    text = files("upwell.app").joinpath(_FILE).read_text(encoding="utf-8")
    return {code: Entry(entry["cause"], entry["remedy"]) for code, entry in yaml.safe_load(text).items()}


def explained(code: str) -> str:
    """The entry as text. Raises ConfigError for a code that there is not."""
    known = entries()
    wanted = code.strip().upper()
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3)
        raise ConfigError(
            f"There is no code {code}.",
            code="UW-CL-004",
            remedy=f"Did you mean {' or '.join(near)}?" if near else "Codes look like UW-PG-020.",
        )
    entry = known[wanted]
    return f"{wanted}\n\nCause:  {entry.cause}\nTo do:  {entry.remedy}"
