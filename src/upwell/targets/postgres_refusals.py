# ruff: noqa: S608 - names are quoted by ident(), expressions are the catalog's own, rows travel by COPY
"""Which rows of a bulk write a table refuses for what they hold: asked of the server before, not found by halving.

Halving until each such row stands alone writes a batch many times over: one refused row in a thousand cost two thirds
to nine tenths of the throughput. The first refusal of a kind names a column or a constraint. From then on, for a
while, the server is asked about just that before each write: does the column's type read these values, which rows
make the condition false. What it answers is what it would refuse.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final

from upwell.errors import Rejected, TransientError, UpwellError
from upwell.model import TableName, Value
from upwell.targets.postgres_session import Refused, Session, ident
from upwell.targets.postgres_tables import Writer, read_table
from upwell.targets.postgres_types import copy_cells

# How many writes of the table a suspicion outlives the last row that confirmed it.
SUSPECTED_FOR: Final = 100
SUSPICIONS_MAX: Final = 8  # of a table at a time; each costs a question before every write of it
PROBED_AT_ONCE_MAX: Final = 2_000  # values of a COPY that ends at the first that can't be read
_NOT_NULL: Final = "23502"
_CHECK: Final = "23514"
_EXPRESSION: Final = (
    "SELECT pg_get_expr(c.conbin, c.conrelid), ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a"
    " WHERE a.attrelid = c.conrelid AND a.attnum = ANY(c.conkey)) FROM pg_catalog.pg_constraint c"
    " WHERE c.conrelid = %s::regclass AND c.conname = %s AND c.contype = 'c'"
)


@dataclass(eq=False)
class Suspicion:
    """A kind of value that a table refuses."""

    error: Refused  # in whose words
    reads: frozenset[str]  # the columns that it is about
    condition: str | None = None  # SQL over these, false for what is refused; None: their type can't read the values
    left: int = SUSPECTED_FOR

    def concerns(self, writer: Writer) -> bool:
        """Whether rows of this schema have what it is about."""
        return self.reads <= {column.name for column in writer.columns}

    def same_as(self, other: Suspicion) -> bool:
        """Whether both ask the same."""
        return (self.reads, self.condition) == (other.reads, other.condition)

    def holds(self, session: Session, writer: Writer) -> bool:
        """Whether the table, as the writer knows it, still refuses that: somebody may have let the rows in."""
        if self.condition is None:
            return True  # it was asked of the column as it is
        if self.error.state == _NOT_NULL:
            return all(writer.table.columns[name].not_null for name in self.reads)
        known = session.query(_EXPRESSION, [writer.table.sql, self.error.constraint])
        return bool(known) and known[0][0] == self.condition


class Suspicions:
    """What the tables of a target have refused of late. Threads share it: one that misses another's asks itself."""

    def __init__(self) -> None:
        self._of: dict[TableName, tuple[Suspicion, ...]] = {}

    def about(self, writer: Writer) -> list[Suspicion]:
        """What to ask before these rows are written."""
        return [each for each in self._of.get(writer.table.name, ()) if each.concerns(writer)]

    def add(self, session: Session, writer: Writer, refused: Refused, undo: str) -> bool:
        """Whether there is something new to ask about after this refusal, which is undone; `undo` does it again.

        Raises TransientError where the table is no longer what it was when we looked at it.
        """
        _check_unchanged(session, writer)
        new = _suspicion(session, writer, refused, undo)
        known = self._of.get(writer.table.name, ())
        if new is None or any(new.same_as(each) for each in known):
            return False
        self._of[writer.table.name] = (*known, new)[-SUSPICIONS_MAX:]
        return True

    def confirm(
        self, session: Session, writer: Writer, asked: Sequence[Suspicion], confirmed: Sequence[Suspicion]
    ) -> None:
        """Rows are about to be refused on suspicion. One that nothing confirms for long is given up.

        Raises TransientError where the table has been mended meanwhile and would take the rows.
        """
        if not asked:
            return
        if confirmed:
            _check_unchanged(session, writer)
        mended = [each for each in confirmed if not each.holds(session, writer)]
        for each in asked:
            each.left = SUSPECTED_FOR if each in confirmed else each.left - 1
        kept = (each for each in self._of.get(writer.table.name, ()) if each.left > 0 and each not in mended)
        self._of[writer.table.name] = tuple(kept)
        if mended:
            raise TransientError(f"The table {writer.table.name} takes what it refused before.", code="UW-PT-003")


def _check_unchanged(session: Session, writer: Writer) -> None:
    """What a table refused by an old look at it, it may take by now."""
    if read_table(session, writer.table.name) != writer.table:
        session.moved = True
        raise TransientError(f"The table {writer.table.name} was changed by somebody else.", code="UW-PT-003")


def _suspicion(session: Session, writer: Writer, refused: Refused, undo: str) -> Suspicion | None:
    """What to ask about; None where the server does not say enough."""
    names = {column.name for column in writer.columns}
    if refused.column in names and refused.line is not None:
        return Suspicion(refused, frozenset({refused.column}))
    if refused.column in names and refused.state == _NOT_NULL:
        return Suspicion(refused, frozenset({refused.column}), f"{ident(refused.column)} IS NOT NULL")
    if refused.state == _CHECK and refused.constraint is not None:
        known = session.query(_EXPRESSION, [writer.table.sql, refused.constraint])
        if known and _can_be_asked(session, writer, known[0][0], undo):
            found = Suspicion(refused, frozenset(known[0][1]), known[0][0])
            return found if found.concerns(writer) else None
    return None


def _can_be_asked(session: Session, writer: Writer, condition: str, undo: str) -> bool:
    """Whether it can be asked of rows that are not in the table: one about the table as such, say, can't."""
    moved = session.moved
    try:
        session.run(f"SELECT FROM {writer.stage} WHERE NOT ({condition}) LIMIT 0")
    except (UpwellError, session.error):
        session.run(undo)
        session.moved = moved
        return False
    return True


def _unreadable(session: Session, writer: Writer, name: str, cells: Sequence[str], undo: str) -> dict[int, Refused]:
    """Which of a column's values, in COPY's text form, its type can't read, each with its own reason.

    `undo` makes good for each of them.
    """
    # Values are read before the condition is looked at: nothing is stored, and nothing left behind to be skipped.
    statement = f"COPY {writer.stage} ({ident(name)}) FROM STDIN WHERE false"
    found: dict[int, Refused] = {}
    start = 0
    while start < len(cells):
        part = cells[start : start + PROBED_AT_ONCE_MAX]
        try:
            session.copy(statement, "\n".join([*part, ""]).encode())
        except Refused as refused:
            if refused.line is None:
                raise
            found[start + refused.line - 1] = refused
            start += refused.line
        else:
            start += len(part)
        session.run(undo)
    return found


def _violating(session: Session, writer: Writer, condition: str) -> list[int]:
    """The ordinals of the rows in the stage that make the condition false; they are taken out of it."""
    gone = session.run(f"DELETE FROM {writer.stage} WHERE NOT ({condition}) RETURNING {ident(writer.ordinal)}")
    return [ordinal for (ordinal,) in gone]


def filled_without(
    session: Session,
    writer: Writer,
    rows: Sequence[Sequence[Value]],
    lines: Sequence[str],
    unfit: Container[int],
    suspicions: Sequence[Suspicion],
    undo: str,
) -> tuple[dict[int, Rejected], list[Suspicion]]:
    """Fill the empty row stage with the lines of rows, but for those at `unfit` and those of which a suspicion is
    confirmed: these are returned, by their place, with the suspicions. `undo` empties the stage.
    """
    refused: dict[int, Rejected] = {}
    confirmed: list[Suspicion] = []
    good = [number for number in range(len(lines)) if number not in unfit]
    conditions: list[Suspicion] = []
    for each in suspicions:
        if each.condition is not None:
            conditions.append(each)
            continue
        (name,) = each.reads
        place = [column.name for column in writer.columns].index(name)
        cells = copy_cells(writer.columns[place], writer.types[place], [rows[number][place] for number in good], {})
        wrong = {good[at]: error for at, error in _unreadable(session, writer, name, cells, undo).items()}
        refused.update(wrong)
        confirmed += [each] if wrong else []
        good = [number for number in good if number not in wrong]
    names = ", ".join(ident(column.name) for column in writer.columns)
    if conditions:
        names = f"{ident(writer.ordinal)}, {names}"
        data = "\n".join([*(f"{number}\t{lines[number]}" for number in good), ""])
    else:
        data = "\n".join([*(lines[number] for number in good), ""])
    session.copy(f"COPY {writer.stage} ({names}) FROM STDIN", data.encode())
    for each in conditions:
        assert each.condition is not None
        gone = _violating(session, writer, each.condition)
        refused.update(dict.fromkeys(gone, each.error))
        confirmed += [each] if gone else []
    return refused, confirmed
