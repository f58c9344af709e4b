"""Progress bars: one for each table whose rows are being read, as `upwell status` tells of it."""

from io import StringIO
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn

from upwell.app.bars import SnapshotBars


def table(phase: str, rows: int = 0, estimate: int | None = None, eta: int | None = None) -> dict[str, Any]:
    return {"phase": phase, "rows": rows, "estimate": estimate, "eta_seconds": eta, "rows_per_second": 1234.5}


def bars() -> tuple[SnapshotBars, Progress]:
    progress = Progress(TextColumn("x"), console=Console(file=StringIO()), auto_refresh=False)
    return SnapshotBars(progress), progress


def test_a_bar_for_each_table_being_read_and_none_for_others() -> None:
    shown, progress = bars()
    shown.update({"a": table("snapshot", 10, 100, 65), "b": table("stream"), "c": table("sweep")})
    assert [task.description for task in progress.tasks] == ["a"]
    (task,) = progress.tasks
    assert (task.completed, task.total) == (10, 100)
    assert task.fields == {"rate": "1,234 rows/s", "left": "1:05 left"}
    assert shown.shown


def test_a_bar_goes_when_its_table_is_read() -> None:
    shown, progress = bars()
    shown.update({"a": table("snapshot", 10, 100)})
    shown.update({"a": table("sweep", 100, 100)})
    assert not progress.tasks
    assert not shown.shown


def test_a_table_that_has_more_rows_than_estimated_is_never_beyond_its_end() -> None:
    shown, progress = bars()
    shown.update({"a": table("snapshot", 150, 100)})
    assert (progress.tasks[0].completed, progress.tasks[0].total) == (150, 150)


def test_without_an_estimate_there_is_no_total() -> None:
    shown, progress = bars()
    shown.update({"a": table("snapshot", 150)})
    assert progress.tasks[0].total is None
