"""What the viewer sees: the stage as a picture in the terminal, or as lines where there is none."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from rich.align import Align
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from upwell.app.demo.databases import TABLES
from upwell.app.demo.equality import Equality, TableEquality
from upwell.app.demo.stage import Stage
from upwell.app.demo.ways import Role, Way

NEWS_MAX: Final = 50
LINE_EVERY_S: Final = 5.0
WAY_HEIGHT: Final = 9  # of a way's two panels
LAG_WARN_S: Final = 3.0

_KEYS: Final = (("i", "cut or restore the Internet"), ("k", "kill the publishers"), ("q", "end the day"))


class Lines:
    """A view for logs: what happens, and every few seconds a line per way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._next_line = 0.0

    def say(self, sentence: str) -> None:
        self._print(sentence)

    def show(self, stage: Stage, left_s: float | None) -> None:
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + LINE_EVERY_S
        internet = "up" if stage.internet.up else "CUT"
        for way in stage.ways:
            if way.look is not None:
                self._print(f"{_route(way)}: {_in_words(way, way.look)}; Internet {internet}")

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _print(self, text: str) -> None:
        self._console.print(f"{time.monotonic() - self._began:6.1f} s  {text}", highlight=False, soft_wrap=True)


class Picture:
    """A view that fills the terminal while it is entered."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._news: deque[tuple[str, str]] = deque(maxlen=NEWS_MAX)
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._entered = False

    def say(self, sentence: str) -> None:
        if self._entered:
            self._news.append((time.strftime("%H:%M:%S"), sentence))
        else:
            self._console.print(sentence, highlight=False)

    def show(self, stage: Stage, left_s: float | None) -> None:
        self._live.update(picture(stage, list(self._news), left_s, self._console.height), refresh=True)

    def __enter__(self) -> Picture:
        self._live.start()
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        self._live.stop()
        for at, sentence in self._news:  # the picture is gone with its screen
            self._console.print(f"{at}  {sentence}", highlight=False)


def picture(stage: Stage, news: Sequence[tuple[str, str]], left_s: float | None, height: int) -> RenderableType:
    """All of it: the ways side by side with the Internet between their ends, the news, the keys."""
    ways_height = WAY_HEIGHT * len(stage.ways)
    body = Layout(size=ways_height)
    here, between, there = Layout(ratio=5, minimum_size=26), Layout(ratio=3, minimum_size=16), Layout(ratio=6)
    here.split_column(*(Layout(_here(way)) for way in stage.ways))
    between.update(_between(stage, ways_height))
    there.split_column(*(Layout(_there(way)) for way in stage.ways))
    body.split_row(here, between, there)
    whole = Layout()
    whole.split_column(body, Layout(_news(news, height - ways_height - 3)), Layout(_footer(left_s), size=1))
    return whole


def print_result(console: Console, ways: Sequence[Way], looks: Sequence[Equality]) -> None:
    """The comparison of all tables, at the end."""
    table = Table(title="All tables, compared value by value", title_justify="left", header_style="")
    table.add_column("way", no_wrap=True)
    table.add_column("table", no_wrap=True)
    for heading in ("in the shop", "in AWS", "differing"):
        table.add_column(heading, justify="right", no_wrap=True)
    for way, look in zip(ways, looks, strict=True):
        for name, found in look.tables.items():
            style = "" if found.equal else "red"
            first = _route(way) if name == next(iter(look.tables)) else ""
            table.add_row(first, name, f"{found.source:,}", f"{found.target:,}", f"{found.differing:,}", style=style)
        table.add_section()
    console.print(table)


def _route(way: Way) -> str:
    return f"{way.shop.branch} → {way.title}"


def _in_words(way: Way, look: Equality) -> str:
    rows = sum(table.source for table in look.tables.values())
    equal = "all rows equal" if look.equal else f"{look.differing:,} on their way"
    missing = [f"{role.name} down" for role in way.roles if not role.running]
    return ", ".join(
        [
            f"{rows:,} rows",
            f"{way.changed.per_s:.0f} changed/s",
            f"{way.arrived.per_s:.0f} arrived/s",
            equal,
            f"lag {look.lag_s:.1f} s",
            *missing,
        ]
    )


# --- the panels -------------------------------------------------------------------------------------------------


def _here(way: Way) -> Panel:
    table = _grid()
    for name in TABLES:
        rows = f"{way.look.tables[name].source:,}" if way.look is not None else ""
        table.add_row(name, rows)
    speed = Text.assemble((f"{way.changed.per_s:5.0f}", "bold"), " rows/s change")
    return Panel(
        Group(speed, Text(""), table, _role(way.publisher)),
        title=f"On premises: {way.shop.branch}, {way.shop.maker}",
        title_align="left",
        border_style="cyan",
    )


def _there(way: Way) -> Panel:
    table = _grid(columns=3)
    for name in TABLES:
        if way.look is None:
            table.add_row(name, "", "")
        else:
            table.add_row(name, f"{way.look.tables[name].target:,}", _equality(way.look.tables[name]))
    speed = Text.assemble((f"{way.arrived.per_s:5.0f}", "bold"), " rows/s arrive, ", _lag(way.look))
    below = Text("written by the publisher itself") if way.subscriber is None else _role(way.subscriber)
    return Panel(
        Group(speed, Text(""), table, below),
        title=f"AWS: {way.title}",
        title_align="left",
        border_style="yellow",
    )


def _between(stage: Stage, height: int) -> Panel:
    internet = stage.internet
    if internet.cut_at is None:
        moving = int(time.monotonic() * 6) % 5 if stage.uplink.per_s > 0 else -1
        line = " ".join("▶" if place == moving else "·" for place in range(5))
        lines = [(line, "green"), ("", ""), ("up", "bold green"), (f"{stage.uplink.per_s / 1000:,.1f} kB/s", "")]
        style = "green"
    else:
        lines = [("· · ✂ · ·", "bold red"), ("", ""), ("CUT", "bold red")]
        lines.append((f"for {time.monotonic() - internet.cut_at:.0f} s", "red"))
        style = "red"
    text = Text("\n", justify="center").join(Text(words, style) for words, style in lines)
    return Panel(Align.center(text, vertical="middle", height=height - 2), title="Internet", border_style=style)


def _news(news: Sequence[tuple[str, str]], lines: int) -> Panel:
    table = _grid()
    for at, sentence in list(news)[-max(1, lines) :]:
        table.add_row(Text(at, "dim"), Text(sentence, no_wrap=True, overflow="ellipsis"))
    return Panel(table, title="What happens", title_align="left", border_style="dim")


def _footer(left_s: float | None) -> RenderableType:
    text = Text(" ")
    for key, what in _KEYS:
        text.append(f" {key} ", "reverse")
        text.append(f" {what}   ")
    if left_s is not None:
        text.append(f"ends in {max(0.0, left_s):.0f} s", "dim")
    return text


def _grid(columns: int = 2) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    for place in range(1, columns):
        grid.add_column(justify="right" if columns == 3 and place == 1 else "left")
    return grid


def _equality(table: TableEquality) -> Text:
    if table.equal:
        return Text("equal", "green")
    return Text(f"{table.differing:,} differ", "yellow")


def _lag(look: Equality | None) -> Text:
    if look is None:
        return Text("lag unknown", "dim")
    return Text(f"lag {look.lag_s:.1f} s", "bold red" if look.lag_s > LAG_WARN_S else "bold green")


def _role(role: Role) -> Text:
    kind = role.name.partition("-")[0]  # the panel says which branch's
    if role.back_in_s is not None:
        return Text.assemble(
            f"{kind} ", ("KILLED" if role.killed else "ended", "bold red"), f" ({role.back_in_s:.0f} s)"
        )
    if not role.running:
        return Text.assemble(f"{kind} ", ("ended", "bold red"))
    return Text.assemble(f"{kind} ", ("running", "green"))
