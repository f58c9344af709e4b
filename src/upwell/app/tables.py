"""Results as tables: drawn in a terminal, plain columns where a program reads them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import click

from upwell.app.logs import visible

_STYLES: Final = {"pass": "green", "warn": "yellow", "fail": "red"}


def show(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the table on standard output; what is in its cells stays in them."""
    rows = [[visible(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(headers, rows)
    else:
        click.echo(plain(headers, rows))


def plain(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, two blanks between them."""
    lines = [headers, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _draw(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(table)
