"""Progress bars of snapshots, for a person at a terminal; everybody else gets log lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # loaded only where there is a terminal: it is large
    from rich.progress import Progress, TaskID


class SnapshotBars:
    """A bar for each table whose rows are being read; gone when there is none."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    @property
    def shown(self) -> bool:
        """Whether there is a bar: it says more than a log line."""
        return bool(self._tasks)

    def update(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """`tables` as in `upwell status --json`."""
        for name, table in tables.items():
            if table["phase"] == "snapshot":
                self._show(name, table)
            elif name in self._tasks:
                self._progress.remove_task(self._tasks.pop(name))
        if self._tasks:
            self._progress.start()
        else:
            self._progress.stop()

    def _show(self, name: str, table: Mapping[str, Any]) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=None, rate="", left="")
        eta = table["eta_seconds"]
        self._progress.update(
            self._tasks[name],
            total=None if table["estimate"] is None else max(table["estimate"], table["rows"]),
            completed=table["rows"],
            rate=f"{table['rows_per_second']:,.0f} rows/s",
            left="" if eta is None else f"{eta // 60}:{eta % 60:02} left",
        )


@contextmanager
def snapshot_bars() -> Iterator[SnapshotBars | None]:
    """The bars, below what is logged meanwhile; None where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    try:
        yield SnapshotBars(progress)
    finally:
        progress.stop()
