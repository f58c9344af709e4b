"""Rows of 0.3, 0.9, 1.1, 3 and 12 MB, on both ways: sent, claim-checked to S3, or dead letters with a clear reason.

The lane goes on, replay brings what was put aside once a bucket is configured. While S3 is away the rows that need it
wait, their lanes with them, and the others go on; nothing is lost, nothing becomes a dead letter. An object that is
not what was put there is noticed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import psycopg
from boto3.dynamodb.types import TypeDeserializer

from tests.acceptance.compare import dynamodb_client
from tests.acceptance.pipelines import Pipeline, Program, explained, into_dynamodb, through_kinesis
from tests.fake_s3 import FakeS3
from tests.proofs import Figures, Servers
from upwell.lanes import DEFAULT_LANES, lane_of
from upwell.model import ChangeEvent, Column, Kind, TableSchema

MB = 1_000_000
WIDTHS = (300_000, 900_000, 1_100_000, 3_000_000, 12_000_000)
KEYS = {"doc": ("id",), "tick": ("id",)}
BUCKET = "oversize-rows"
MEMORY_MB_MAX = 300


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    rows: int  # of each width
    outage_s: float  # S3 is away for so long, while small rows keep coming
    ticks_per_s: int
    ticks_within_s: float  # in the lanes that do not wait for S3
    within_s: float  # for each step


SMALL = Size(rows=1, outage_s=2, ticks_per_s=40, ticks_within_s=30, within_s=60)
FULL = Size(rows=4, outage_s=60, ticks_per_s=100, ticks_within_s=5, within_s=300)

# id → (state, note, the body's digest)
Docs = dict[int, tuple[int, str | None, str]]


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Both ways, one after the other."""
    figures: dict[str, str] = {}
    for way in (by_kinesis, into_items):
        place = folder / way.__name__
        place.mkdir()
        figures |= way(servers, place, size)
    return figures


def by_kinesis(servers: Servers, folder: Path, size: Size) -> dict[str, str]:
    """PostgreSQL → Kinesis → PostgreSQL."""
    with servers.databases(2) as (source, target), FakeS3(BUCKET) as s3:
        pipeline = through_kinesis(
            folder, source_url=source, target_url=target, kinesis_endpoint=servers.kinesis, keys=KEYS
        )
        way = _Way(pipeline, s3, size, "kinesis", too_large=1_048_576, read=lambda: _docs(target))
        with closing(pipeline), explained(pipeline):
            figures = way.walk()
            way.check_that_a_subscriber_waits_for_s3()
            way.check_that_another_content_is_noticed()
            return figures | way.weighed


def into_items(servers: Servers, folder: Path, size: Size) -> dict[str, str]:
    """PostgreSQL → DynamoDB."""
    with servers.databases(1) as (source,), FakeS3(BUCKET) as s3:
        pipeline = into_dynamodb(folder, source_url=source, dynamodb_endpoint=servers.dynamodb, keys=KEYS)
        prefix = pipeline.configuration["destination"]["dynamodb"]["table_prefix"]
        way = _Way(
            pipeline,
            s3,
            size,
            "dynamodb",
            too_large=400 * 1024,
            read=lambda: _items(servers.dynamodb, f"{prefix}doc", s3),
        )
        with closing(pipeline), explained(pipeline):
            return way.walk() | way.weighed


class _Way:
    """One pipeline, and what is proved of it."""

    def __init__(
        self, pipeline: Pipeline, s3: FakeS3, size: Size, kind: str, *, too_large: int, read: Callable[[], Docs]
    ) -> None:
        """`too_large`: beyond so many bytes a row does not fit; `read`: what a reader of the destination has."""
        self.pipeline = pipeline
        self.s3 = s3
        self.size = size
        self.kind = kind
        self.ids = {width: range(number * 1_000, number * 1_000 + size.rows) for number, width in enumerate(WIDTHS)}
        self.large = {id_ for width, ids in self.ids.items() if width > too_large for id_ in ids}
        self.read = read
        self.ticks = 0
        self.weighed: dict[str, str] = {}
        self.source = psycopg.connect(pipeline.source_url, autocommit=True)

    def walk(self) -> dict[str, str]:
        """Without a bucket, then with one, then while it is away."""
        with closing(self.source):
            self._fill()
            self.pipeline.run("track")
            figures = self._without_a_bucket()
            self._configure()
            with self._running() as programs:
                figures |= self._replayed()
                figures |= self._while_s3_is_away(programs)
                self._weigh(programs)
        return {f"{self.kind}: {what}": figure for what, figure in figures.items()}

    def _fill(self) -> None:
        self.source.execute(
            "CREATE TABLE doc (id int PRIMARY KEY, state int NOT NULL, note text, body text NOT NULL);"
            "ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;"
            "CREATE TABLE tick (id int PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())"
        )
        for width in WIDTHS[:3]:  # these are there before, the others come later
            self._write(self.ids[width], width)

    def _write(self, ids: Collection[int], width: int, state: int = 1) -> None:
        """Rows of this width, with other contents each."""
        self.source.execute(
            "INSERT INTO doc SELECT id, %s, 'n', left(repeat(md5(id || '/' || %s), %s), %s)"
            " FROM unnest(%s::int[]) AS id"
            " ON CONFLICT (id) DO UPDATE SET state = EXCLUDED.state, note = EXCLUDED.note, body = EXCLUDED.body",
            (state, state, width // 32 + 1, width, list(ids)),
        )

    def _tick(self) -> int:
        self.ticks += 1
        self.source.execute("INSERT INTO tick (id) VALUES (%s)", (self.ticks,))
        return self.ticks

    @contextmanager
    def _running(self) -> Iterator[list[Program]]:
        with self.pipeline.running() as programs:
            yield programs

    # --- without a bucket ---

    def _without_a_bucket(self) -> dict[str, str]:
        """What fits arrives, the rest is put aside with its reason, and the lanes go on."""
        with self._running():
            for width in WIDTHS[3:]:
                self._write(self.ids[width], width)
            self.source.execute("UPDATE doc SET note = 'once more'")  # the lanes of the large ones go on
            self._await_docs(lambda docs: {id_: doc for id_, doc in docs.items() if id_ not in self.large})
        letters = self.pipeline.dead_letters()
        assert {letter.split()[1] for letter in letters} == {f"[{id_}]" for id_ in self.large}, letters
        limit = "holds at most 1,048,576" if self.kind == "kinesis" else "takes at most 409,600"
        unclear = [letter for letter in letters if limit not in letter]
        assert not unclear, f"a reason that does not say what the limit is: {unclear[0]}"
        widths = [f"{width / MB:g}" for width, ids in self.ids.items() if self.large.isdisjoint(ids)]
        return {
            "without a bucket, widths sent as they are": f"{', '.join(widths)} MB",
            "without a bucket, dead letters": f"{len(letters)}, for all {len(self.large)} rows that are too large",
        }

    def _replay(self) -> None:
        """All of them, as a person does it."""
        listed = json.loads(self.pipeline.run("dead-letters", "list", "--json"))
        self.pipeline.run("dead-letters", "replay", *(letter["id"] for letter in listed))

    # --- with a bucket ---

    def _configure(self) -> None:
        check = {"bucket": BUCKET, "endpoint_url": self.s3.url}
        self.pipeline.configuration["destination"][self.kind]["claim_check"] = check
        self.pipeline.write_configuration()
        self.pipeline.run("doctor")
        assert self.s3.count("PUT") == 1, "doctor has not tried the bucket"
        self.s3.asked.clear()

    def _replayed(self) -> dict[str, str]:
        """To the end of the resync that a replay asks for: all rows are equal before that, while its last claims are
        still on their way. Those would wait for S3 too, in lanes and shards where nothing else does.
        """
        self._await(lambda: all(self.pipeline.resyncs().values()), "the end of the first snapshot")
        before = self.pipeline.resyncs()
        self._replay()
        self.pipeline.await_resyncs(before, ["public.doc"])
        if self.pipeline.subscribed:
            self._await(self._is_over_at_the_target, "the end of the resync in the target")
        self._await_docs(lambda docs: docs)
        self.pipeline.assert_no_dead_letters()
        sent = self.s3.count("PUT")
        assert sent >= len(self.large), f"{sent} objects were put for {len(self.large)} rows"
        return {
            "with a bucket": f"replayed, all {len(self.large)} arrive by way of S3, {len(self.ids) * self.size.rows} "
            "rows equal"
        }

    def _is_over_at_the_target(self) -> bool:
        resync = self.pipeline.resyncs()["public.doc"]
        with psycopg.connect(self.pipeline.target_url) as target:
            seen = target.execute("SELECT resync, active FROM upwell.resync WHERE \"table\" = 'public.doc'").fetchone()
        return seen == (resync, False)

    # --- while it is away ---

    def _while_s3_is_away(self, programs: list[Program]) -> dict[str, str]:
        """Changes of large rows wait with their lanes, those of others do not."""
        self.s3.go_away()
        waiting = [ids[0] for width, ids in self.ids.items() if ids[0] in self.large]
        for width, ids in self.ids.items():
            if ids[0] in self.large:
                self._write(ids[:1], width, state=2)
        lanes = {_lane("doc", id_) for id_ in waiting}
        self._await(self._says_what_it_waits_for, "a word that S3 is away")
        free, slowest = self._tick_for(self.size.outage_s, lanes)
        blocked = [id_ for id_ in range(1, self.ticks + 1) if _lane("tick", id_) in lanes]
        there = self._ticks_there()
        assert blocked, "no small row came in a lane that waits: the lanes prove nothing"
        overtaken = [id_ for id_ in blocked if id_ in there]
        assert not overtaken, f"tick {overtaken[0]} overtook a row that waits for S3"
        assert all(program.running for program in programs), "a program ended while S3 was away"
        self.pipeline.assert_no_dead_letters()
        self.s3.come_back()
        self._await_docs(lambda docs: docs)
        self._await(lambda: self._ticks_there() == set(range(1, self.ticks + 1)), "the small rows that waited")
        self.pipeline.assert_no_dead_letters()
        self._change_parts()
        return {
            "S3 away": f"{self.size.outage_s:g} s; {len(waiting)} rows waited and arrived, 0 dead letters",
            "S3 away, small rows in the other lanes": f"{free:,} arrived meanwhile, the slowest after {slowest:.1f} s",
            "S3 away, small rows in the lanes that wait": f"{len(blocked):,}, none overtook",
        }

    def _says_what_it_waits_for(self) -> bool:
        state = self.pipeline.state()
        status = state.status() or {}
        state.release()
        return str(self.s3.port) in (status.get("last_error") or "")

    def _tick_for(self, seconds: float, lanes: Collection[int]) -> tuple[int, float]:
        """Small rows for a while, and until there are some in these lanes and some in others; how many came in others,
        and how long the slowest of those took to arrive.
        """
        written: dict[int, float] = {}
        slowest = 0.0
        count = waiting = 0
        until = time.monotonic() + seconds
        while (writing := time.monotonic() < until or not (count and waiting)) or written:
            if writing:
                tick = self._tick()
                if _lane("tick", tick) in lanes:
                    waiting += 1
                else:
                    written[tick] = time.monotonic()
                    count += 1
            there, now = self._ticks_there(), time.monotonic()
            for tick in written.keys() & there:
                slowest = max(slowest, now - written.pop(tick))
            late = [tick for tick, at in written.items() if now - at > self.size.ticks_within_s]
            assert not late, f"tick {late[0]} waits for S3, though its lane need not"
            time.sleep(1 / self.size.ticks_per_s)
        return count, slowest

    def _ticks_there(self) -> set[int]:
        if self.kind == "kinesis":
            with psycopg.connect(self.pipeline.target_url) as target:
                try:
                    return {id_ for (id_,) in target.execute("SELECT id FROM tick")}
                except psycopg.errors.UndefinedTable:
                    return set()
        return {int(key[0]) for key in self.pipeline.target.rows("tick")}

    def _change_parts(self) -> None:
        """A change of another column: PostgreSQL does not repeat the body that did not change."""
        self.source.execute("UPDATE doc SET state = 3, note = NULL")
        self._await_docs(lambda docs: docs)

    # --- the subscriber's side ---

    def check_that_a_subscriber_waits_for_s3(self) -> None:
        """The events are in the stream, their rows in a bucket that is not available."""
        with closing(psycopg.connect(self.pipeline.source_url, autocommit=True)) as self.source:
            for width, ids in self.ids.items():
                self._write(ids[:1], width, state=4)
            was = self.read()
            self.pipeline.once("publish")
            self.s3.failing = True
            subscriber = self.pipeline.start("subscribe")
            self._await(lambda: self.s3.count("GET", 503) >= 5, "the subscriber's attempts")
            assert subscriber.running, "the subscriber ended while S3 was not available"
            now = self.read()
            assert {id_: now[id_] for id_ in self.large} == {id_: was[id_] for id_ in self.large}
            self.pipeline.assert_no_dead_letters()
            self.s3.failing = False
            self._await_docs(lambda docs: docs)
            subscriber.stop()
            self.pipeline.assert_no_dead_letters()

    def check_that_another_content_is_noticed(self) -> None:
        """A dead letter says so, the row stays as it was, the rest flows on; replay brings it."""
        with closing(psycopg.connect(self.pipeline.source_url, autocommit=True)) as self.source:
            was = self.read()
            victims = sorted(self.large)[:2]
            self.s3.objects.clear()
            for id_ in victims:
                self._write([id_], 2 * MB, state=5)
            self._tick()
            self.pipeline.once("publish")
            first, second = self.s3.objects
            self.s3.objects[first] = self.s3.objects[first].replace(b"n", b"m", 1)
            del self.s3.objects[second]
            self.pipeline.once("subscribe")
            letters = self.pipeline.dead_letters()
            assert len(letters) == 2, letters
            assert sum("SHA-256" in letter for letter in letters) == 1, letters
            assert sum("not in the bucket" in letter for letter in letters) == 1, letters
            assert self.ticks in self._ticks_there(), "what came after the lost row did not flow on"
            now = self.read()
            assert {id_: now[id_] for id_ in victims} == {id_: was[id_] for id_ in victims}
            self._replay()
            self.pipeline.once_through()
            assert self.read() == _docs(self.pipeline.source_url)
            self.pipeline.assert_no_dead_letters()

    # --- looking ---

    def _await_docs(self, part: Callable[[Docs], Docs]) -> None:
        wanted = part(_docs(self.pipeline.source_url))

        def equal() -> bool:
            return part(self.read()) == wanted

        try:
            self._await(equal, "the rows")
        except AssertionError as error:
            found = part(self.read())
            wrong = [id_ for id_ in wanted.keys() | found.keys() if wanted.get(id_) != found.get(id_)]
            raise AssertionError(f"{len(wrong)} rows are wrong, such as {wrong[:3]}") from error

    def _await(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.size.within_s
        while not done():
            assert time.monotonic() < deadline, f"{what} did not come within {self.size.within_s:.0f} s"
            time.sleep(0.1)

    def _weigh(self, programs: list[Program]) -> None:
        for program in programs:
            status = Path(f"/proc/{program.pid}/status").read_text()
            peak_mb = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / MB
            assert peak_mb < MEMORY_MB_MAX, f"{program.log.name} had {peak_mb:.0f} MB resident"
            role = program.log.stem.partition("-")[2]
            self.weighed[f"{self.kind}: {role}, most memory resident"] = f"{peak_mb:.0f} MB"


def _lane(table: str, id_: int) -> int:
    schema = TableSchema(f"public.{table}", (Column("id", "int", Kind.INT),), ("id",), "postgresql")
    return lane_of(ChangeEvent(schema, "u", b"", "", b"[%d]" % id_, None, "insert"), DEFAULT_LANES)


def _docs(url: str) -> Docs:
    """By the database itself; nothing where the table, or a column that its first rows lacked, is not there yet."""
    with psycopg.connect(url) as connection:
        try:
            rows = connection.execute("SELECT id, state, note, md5(body) FROM doc").fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            return {}
    return {id_: (state, note, digest) for id_, state, note, digest in rows}


def _items(endpoint: str, table: str, s3: FakeS3) -> Docs:
    """By boto3, as docs/dynamodb.md tells readers to."""
    plain = TypeDeserializer().deserialize
    found: Docs = {}
    with closing(dynamodb_client(endpoint)) as client:
        try:
            pages = list(client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True))
        except client.exceptions.ResourceNotFoundException:
            return {}
    for item in (item for page in pages for item in page["Items"] if "_upwell_deleted" not in item):
        whole = dict(item)
        if "_upwell_claim" in item:
            claim = plain(item["_upwell_claim"])
            content = s3.objects[claim["object"]]
            assert hashlib.sha256(content).hexdigest() == claim["sha256"]
            assert len(content) == claim["bytes"]
            whole = {**orjson.loads(content), **item}
        note = plain(whole["note"]) if "note" in whole else None
        digest = hashlib.md5(whole["body"]["S"].encode()).hexdigest()  # noqa: S324 - as PostgreSQL has it
        found[int(plain(whole["id"]))] = (int(plain(whole["state"])), note, digest)
    return found
