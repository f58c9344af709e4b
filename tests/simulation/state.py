"""The publisher's state store, and the way by which a subscriber asks for a repair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.simulation.dice import Dice
from upwell.errors import LeaseLost, TransientError
from upwell.model import Checkpoint, DeadLetter, Lease
from upwell.ports import Request


@dataclass
class SimState:
    """See ports.StateStore. Who calls `acquire` takes over, whoever was there: the world plays the lease's clock."""

    dice: Dice
    saving: Callable[[Checkpoint | None, Checkpoint], None]  # checks what is about to be saved
    checkpoint: Checkpoint | None = None
    term: int = 0
    letters: dict[tuple[str, str, str], DeadLetter] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)

    def _reach(self) -> None:
        if self.dice.hit("state.away"):
            raise TransientError("The state store is away.")

    def acquire(self, now: float) -> Lease:
        self._reach()
        self.term += 1
        return Lease(self.term, f"publisher {self.term}")

    def renew(self, lease: Lease) -> None:
        """The world's publishers learn as late as can be that they have a successor: by what they save."""

    def load(self) -> Checkpoint | None:
        return self.checkpoint

    def save(self, checkpoint: Checkpoint, lease: Lease) -> None:
        self._reach()
        if lease.term != self.term:
            raise LeaseLost("Another publisher has taken over.")
        # What is kept does not change with what the publisher goes on to do.
        kept = replace(
            checkpoint,
            lanes=dict(checkpoint.lanes),
            tables=dict(checkpoint.tables),
            schemas=dict(checkpoint.schemas),
        )
        self.saving(self.checkpoint, kept)
        self.checkpoint = kept
        if self.dice.hit("state.answer_lost"):
            raise TransientError("No answer from the state store.")

    def add_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        self._reach()
        for letter in letters:
            self.letters[letter.table, letter.key, letter.version] = letter

    def requests(self) -> Sequence[Request]:
        self._reach()
        return list(self.asked)

    def finish(self, request: Request) -> None:
        self._reach()
        self.asked = [other for other in self.asked if other.id != request.id]

    def put_status(self, status: Mapping[str, Any]) -> None:
        pass

    def release(self) -> None:
        pass


@dataclass
class SimControl:
    """See ports.ControlChannel."""

    dice: Dice
    asked: list[Request] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def ask(self, pipeline: str, request: Request) -> None:
        if self.dice.hit("control.away"):
            raise TransientError("The control channel is away.")
        if request.id not in self.ids:
            self.ids.add(request.id)
            self.asked.append(request)

    def poll(self, pipeline: str) -> Sequence[Request]:
        if self.dice.hit("control.away"):
            raise TransientError("The control channel is away.")
        return list(self.asked)

    def finish(self, pipeline: str, request: Request) -> None:
        if self.dice.hit("control.away"):
            raise TransientError("The control channel is away.")
        self.asked = [other for other in self.asked if other.id != request.id]
