"""SQL Server as the source: both programs are killed over and over on a bad wire, and nothing is wrong or late by that.
Then its history is cleaned up before it was read, tables are truncated, made anew or not tracked for a while, backups
are restored: each is seen, and repaired.

The server is the stand-in of lab/sqlserver, whose own procedure brings the cleanup about.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.parts import StandinDynamoDb, StandinSqlServer
from tests.acceptance import sqlserver_losses as losses
from tests.acceptance.pipelines import Pipeline, into_dynamodb, new_seed, through_kinesis
from tests.acceptance.workload import connect, create_tables
from tests.proofs import Figures, Servers, behind_faults, kills
from tests.proofs.wire import awaited
from tests.sqlserver_databases import in_database

BUSY: Final = 15  # transactions, before or after something happens


@dataclass(frozen=True)
class Size:
    """How often, and in how much."""

    kills: kills.Size
    losses: int  # of what follows the publisher's last look, each kind once before any comes again


SMALL: Final = Size(kills.Size(3, 2_000, 400, False, 0.3, 40, 1, 60), 2)
FULL: Final = Size(kills.Size(50, 20_000, 10_000, True, 2, 40, 1, 900), 25)


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Through Kinesis to PostgreSQL, then into DynamoDB."""
    seed = new_seed()
    figures: dict[str, str] = {}
    making_way: tuple[str, ...]
    with StandinSqlServer() as server, ExitStack() as stack:
        (target,) = stack.enter_context(servers.databases(1))
        create_tables(target)
        dynamodb = stack.enter_context(StandinDynamoDb()).url if size.kills.standin else servers.dynamodb
        for way in ("Kinesis", "DynamoDB"):
            place = folder / way
            place.mkdir()
            source = new_database(server.url, way)
            create_tables(source)
            if way == "Kinesis":
                endpoint, rows, making_way = servers.kinesis, size.kills.ledger_rows, ("person",)
                pipeline = through_kinesis(place, source_url=source, target_url=target, kinesis_endpoint=endpoint)
            else:
                endpoint, rows, making_way = dynamodb, size.kills.ledger_items, ()
                pipeline = into_dynamodb(place, source_url=source, dynamodb_endpoint=endpoint)
            with behind_faults(pipeline, endpoint, seed) as wire:
                killer = kills.survive(pipeline, wire, size.kills, rows, making_way, seed)
                figures |= killer.figures(way, wire) | _lose(pipeline, size, way, seed)
    return figures


def new_database(url: str, name: str) -> str:
    """Its URL."""
    with closing(connect(url)) as master:
        master.execute(f"CREATE DATABASE {name}")
    return in_database(url, name)


# --- what follows the publisher's last look is lost ---------------------------------------------------------------


def _lose(pipeline: Pipeline, size: Size, way: str, seed: int) -> dict[str, str]:
    chance = random.Random(seed)
    happened: Counter[str] = Counter()
    kinds: list[Callable[[Pipeline], None]] = []
    for number in range(size.losses):
        kinds = kinds or chance.sample(_LOSSES, len(_LOSSES))
        loss = kinds.pop()
        before = _newest_resync(pipeline)
        if number % 2 or loss in _ASLEEP:
            _happens(loss, pipeline)
            with pipeline.running():
                _await_repaired(pipeline, before, size)
        else:
            with pipeline.running():
                _happens(loss, pipeline)
                _await_repaired(pipeline, before, size)
        happened[loss.__name__.strip("_").replace("_", " ")] += 1
    pipeline.assert_no_dead_letters()
    return {f"{way}: lost, seen, and repaired": ", ".join(f"{times} {what}" for what, times in happened.items())}


def _happens(loss: Callable[[Pipeline], None], pipeline: Pipeline) -> None:
    _write(pipeline)
    loss(pipeline)
    _connect_anew(pipeline)
    _write(pipeline)


def _connect_anew(pipeline: Pipeline) -> None:
    for workload in pipeline.workloads:
        workload.recover()


def _await_repaired(pipeline: Pipeline, before: int, size: Size) -> None:
    awaited(lambda: _newest_resync(pipeline) > before, size.kills.within_s, "nothing was found to be lost")
    pipeline.await_equal(size.kills.within_s)


def _newest_resync(pipeline: Pipeline) -> int:
    return max(pipeline.resyncs().values())


def _write(pipeline: Pipeline) -> None:
    for workload in pipeline.workloads:
        for _ in range(BUSY):
            workload.transaction()


def _truncated_table(pipeline: Pipeline) -> None:
    losses.run_sql(pipeline.source_url, "TRUNCATE TABLE stock")


def _tracking_off_for_a_while(pipeline: Pipeline) -> None:
    losses.track_off_and_on(pipeline.source_url)


def _table_made_anew(pipeline: Pipeline) -> None:
    losses.make_ledger_anew(pipeline.source_url, entry=1, state=0)


def _restored_backup(pipeline: Pipeline) -> None:
    """What was written since the backup is gone; then more is written than that was."""
    losses.back_up(pipeline.source_url)
    _connect_anew(pipeline)
    _write(pipeline)
    losses.restore(pipeline.source_url)
    _connect_anew(pipeline)
    for _ in range(2):
        _write(pipeline)


def _cleaned_up(pipeline: Pipeline) -> None:
    """Before the publisher has looked."""
    losses.clean_up(pipeline.source_url)


_LOSSES: Final = (_truncated_table, _tracking_off_for_a_while, _table_made_anew, _restored_backup, _cleaned_up)
_ASLEEP: Final = (_restored_backup, _cleaned_up)  # while nobody reads: what is lost must not have been read before
