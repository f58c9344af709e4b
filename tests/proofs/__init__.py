"""What must hold at any size: a module each, run small by `make test` and in full by `make prove`.

A module has `SMALL` and `FULL`, two sizes of one dataclass of numbers, and `run(servers, folder, size)`, which raises
AssertionError where the promise is broken, and otherwise returns the figures that it found.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from lab.faults import FaultProxy
from lab.parts import PostgresServer
from tests.acceptance.pipelines import Pipeline, explained

Figures = Mapping[str, str]  # what was measured → the figure with its unit


@dataclass(frozen=True)
class Servers:
    """The real servers that a proof may use; others it starts itself."""

    postgres: PostgresServer
    kinesis: str  # URL
    dynamodb: str  # URL

    @contextmanager
    def databases(self, count: int) -> Iterator[list[str]]:
        """The URLs of so many new ones, which are gone in the end, with all that still hangs on them."""
        with ExitStack() as stack:
            names = [f"proof_{uuid.uuid4().hex[:12]}" for _ in range(count)]
            for name in names:
                stack.callback(self.postgres.drop_database, name)
            yield [self.postgres.create_database(name) for name in names]


@contextmanager
def behind_faults(pipeline: Pipeline, endpoint: str, seed: int) -> Iterator[FaultProxy]:
    """The proxy by which the pipeline reaches its destination from now on. In the end the pipeline is closed; a failure
    tells the seed and what the programs said.
    """
    with closing(pipeline), explained(pipeline, seed), FaultProxy(endpoint, seed=seed) as wire:
        pipeline.lead_through(wire.url)
        yield wire
