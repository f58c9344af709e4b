"""What a checkpoint says, and when rows change without an event."""

from dataclasses import replace

import pytest

from upwell.model import Checkpoint, Column, Kind, Position, TablePhase, TableProgress, TableSchema
from upwell.pipeline.progress import Progress, advanced, begun, initial_tables, next_epoch, resync_reason

ID, A, B = (Column(name, "int", Kind.INT) for name in ("id", "a", "b"))


def schema(*columns: Column, key: tuple[str, ...] = ("id",)) -> TableSchema:
    return TableSchema("public.t", columns, key, "postgresql")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (schema(ID, A), schema(ID, A), None),
        (schema(ID, A), schema(A, ID), None),
        (schema(ID, A), schema(ID), None),
        (schema(ID, A), schema(ID, A, B), None),
        (schema(ID, A), schema(ID, A, B._replace(has_default=True)), "column b was added with a default"),
        (schema(ID, A), schema(ID, B), "column b may be one that was renamed"),
        (schema(ID, A), schema(ID, A._replace(type="text")), "column a changed its type from int to text"),
        (schema(ID, A), schema(ID, A, key=("id", "a")), "its key changed"),
        (schema(ID, A._replace(has_default=True)), schema(ID, A), None),
    ],
)
def test_why_rows_may_have_changed_unseen(old: TableSchema, new: TableSchema, reason: str | None) -> None:
    assert resync_reason(old, new) == reason


def test_an_epoch_is_above_all_before_it_even_where_the_state_was_lost() -> None:
    assert next_epoch(0, 1_800_000_000.9) == 1_800_000_000
    assert next_epoch(1_800_000_000, 1_800_000_000.9) == 1_800_000_001
    assert next_epoch(1_900_000_000, 1_800_000_000.0) == 1_900_000_001


def test_known_tables_go_on_new_ones_want_a_snapshot_unless_it_is_not_wanted() -> None:
    known = TableProgress(TablePhase.SNAPSHOT, resync=5, wanted="a gap")
    tables = initial_tables({"a": True, "b": True, "c": False, "d": False}, {"a": known, "d": known, "gone": known})
    assert tables == {
        "a": known,
        "b": TableProgress(TablePhase.STREAM, wanted="first snapshot"),
        "c": TableProgress(TablePhase.STREAM),
        "d": replace(known, wanted=""),
    }


def test_a_resync_starts_at_the_beginning_with_the_epoch_as_its_id() -> None:
    before = TableProgress(TablePhase.SWEEP, resync=5, opened=True, rows=100, estimate=90, wanted="a gap")
    assert begun(before, 9, "a gap") == TableProgress(TablePhase.SNAPSHOT, resync=9, estimate=90, reason="a gap")


def test_a_checkpoint_takes_all_from_the_progress_but_the_term() -> None:
    tables = {"t": TableProgress(TablePhase.STREAM)}
    progress = Progress(9, Position("p"), 77, tables, {"t": schema(ID)}, number=4)
    assert advanced(Checkpoint(epoch=8, term=3), progress, {1: (3, 5)}) == Checkpoint(
        epoch=9, term=3, position=Position("p"), commit=77, lanes={1: (3, 5)}, tables=tables, schemas={"t": schema(ID)}
    )
