"""`upwell status`: how a pipeline is, as its publisher and its target say."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, Final

import click
import orjson

from upwell.app import build, build_cloud
from upwell.app.logs import visible
from upwell.app.tables import show
from upwell.clock import SystemClock
from upwell.config import Pipeline
from upwell.errors import UpwellError
from upwell.model import DeadLetter
from upwell.pipeline.applier import repaired
from upwell.ports import ResyncState

# A publisher reports every second; one that has not for this long is gone, or hangs.
SILENT_S: Final = 15.0
WATCH_EVERY_S: Final = 2.0
HEADERS: Final = ("TABLE", "PHASE", "LAG", "RUNWAY", "SNAPSHOT", "LEFT", "EVENTS/S", "DEAD", "LAST ERROR")


def gather(pipeline: Pipeline, now: float) -> dict[str, Any]:
    """All that is known, as `upwell status --json` prints it; docs/operations.md describes it."""
    found: dict[str, Any] = {"pipeline": pipeline.name, "publisher": None, "tables": {}}
    # The state file can be read without the source's password.
    if pipeline.config.source is not None or pipeline.why_left_out("source"):
        kept = build.state(pipeline)
        try:
            found |= _publisher(kept.status(), kept.dead_letters(), now)
        finally:
            kept.release()
    if pipeline.config.subscriber is not None:
        found["subscriber"] = _subscriber(pipeline)
    elif why := pipeline.why_left_out("subscriber"):
        found["subscriber"] = {"error": f"it can't be asked from here, {why}"}
    return found


def _publisher(status: Mapping[str, Any] | None, letters: Sequence[DeadLetter], now: float) -> dict[str, Any]:
    if status is None:
        return {}
    publisher = {name: value for name, value in status.items() if name not in ("tables", "pipeline")}
    silent_s = now - datetime.fromisoformat(publisher["at"]).timestamp()
    publisher["running"] = publisher["running"] and silent_s < SILENT_S
    if not publisher["running"] and publisher.get("lag_seconds") is not None:
        publisher["lag_seconds"] = round(publisher["lag_seconds"] + silent_s, 3)  # it falls behind while it is off
    publisher["dead_letters"] = len(letters)
    counts = Counter(letter.table for letter in letters)
    reasons = {letter.table: letter.reason for letter in letters}
    tables = {
        name: {
            **table,
            "lag_seconds": publisher.get("lag_seconds"),
            "runway_hours": publisher.get("runway_hours"),
            "dead_letters": counts[name],
            "last_error": reasons.get(name, "") or publisher["last_error"],
        }
        for name, table in status.get("tables", {}).items()
    }
    return {"publisher": publisher, "tables": tables}


def _subscriber(pipeline: Pipeline) -> Mapping[str, Any]:
    try:
        with closing(build_cloud.target(pipeline, SystemClock())) as target:
            found = target.status(pipeline.name)
    except UpwellError as error:
        return {"error": error.message}
    # Resyncs of tables that are no longer published will not be followed by others. Which tables are can be told only
    # where the source is known.
    known = pipeline.config.source is not None and pipeline.rules
    resyncs = [
        ResyncState(resync["resync"], resync["active"])
        for table, resync in found["resyncs"].items()
        if not known or pipeline.rule(table) is not None
    ]
    repairs = found.pop("repairs")
    return found | {"holes": [each["reason"] for id_, each in repairs.items() if not repaired(id_, resyncs)]}


def status(pipeline: Pipeline, *, as_json: bool, watch: bool) -> None:
    """Print it; with `watch` over and over, until interrupted."""
    while True:
        found = gather(pipeline, time.time())
        if watch and not as_json:
            click.clear()
        if as_json:
            click.echo(orjson.dumps(found, option=0 if watch else orjson.OPT_INDENT_2))
        else:
            _print(found)
        if not watch:
            return
        try:
            time.sleep(WATCH_EVERY_S)
        except KeyboardInterrupt:
            return


def _print(found: Mapping[str, Any]) -> None:
    publisher = found["publisher"]
    click.echo(visible(f"pipeline {found['pipeline']}: {_headline(publisher)}"))
    if publisher is not None and publisher.get("last_gap"):
        click.echo(visible(f"last gap: {publisher['last_gap']}"))
    rows = [_row(name, table) for name, table in found["tables"].items()]
    if rows:
        show(HEADERS, rows)
    subscriber = found.get("subscriber")
    if subscriber is None:
        return
    if "error" in subscriber:
        click.echo(f"target: {subscriber['error']}")
        return
    letters = sum(subscriber["dead_letters"].values())
    active = [name for name, resync in subscriber["resyncs"].items() if resync["active"]]
    text = f"target: {subscriber['lanes']} lanes seen, {letters} dead letters"
    text += f", resync under way of {', '.join(active)}" if active else ""
    text += f", {subscriber['repairs_pending']} repairs asked for" if subscriber["repairs_pending"] else ""
    click.echo(visible(text))
    for reason in subscriber["holes"]:
        click.echo(visible(f"records were lost, and what they held is not there yet: {reason}"))


def _headline(publisher: Mapping[str, Any] | None) -> str:
    if publisher is None:
        return "no publisher has reported here"
    if not publisher["running"]:
        why = f": {publisher['last_error']}" if publisher["last_error"] else ""
        return f"no publisher is running; the last one reported at {publisher['at']}{why}"
    if publisher["last_error"]:
        return f"running, in trouble: {publisher['last_error']}"
    lag = publisher["lag_seconds"]
    behind = "" if lag is None else f", {lag:.1f} s behind"
    return f"running{behind}, {publisher['events_per_second']:.0f} events/s"


def _row(name: str, table: Mapping[str, Any]) -> list[str]:
    reading = table["phase"] == "snapshot"
    share = f"{table['rows']}/{table['estimate']}" if table["estimate"] else str(table["rows"])
    return [
        name,
        table["phase"],
        "-" if table["lag_seconds"] is None else f"{table['lag_seconds']:.1f} s",
        "unlimited" if table["runway_hours"] is None else f"{table['runway_hours']:.1f} h",
        share if reading else "-",
        "-" if table["eta_seconds"] is None else f"{table['eta_seconds']} s",
        f"{table['events_per_second']:.0f}",
        str(table["dead_letters"]),
        table["last_error"],
    ]
