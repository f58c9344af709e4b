"""What must hold at any size: a module each, run small by `make test` and in full by `make prove`.

A module has `SMALL` and `FULL`, two sizes of one dataclass of numbers, and `run(servers, folder, size)`, which raises
AssertionError where the promise is broken, and otherwise returns the figures that it found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lab.parts import PostgresServer

Figures = Mapping[str, str]  # what was measured → the figure with its unit


@dataclass(frozen=True)
class Servers:
    """The real servers that a proof may use; others it starts itself."""

    postgres: PostgresServer
    kinesis: str  # URL
    dynamodb: str  # URL
