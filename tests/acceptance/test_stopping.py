"""SIGTERM finishes what is under way, saves it and ends in time with 0; a second one ends at once."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.acceptance.compare import StreamRecord, differences, stream_records
from tests.acceptance.pipelines import STOP_S, Pipeline, Program, explained, through_kinesis
from tests.acceptance.workload import Writing, create_tables
from tests.fake_aws import listening
from upwell.model import unpack_version

WRITES_PER_S = 100
AT_ONCE_S = 2.0


class Wire:
    """A way to a server that can go dead: connections stay, and nothing comes through any more."""

    def __init__(self, url: str) -> None:
        self._there = urlsplit(url)
        self._alive = threading.Event()
        self._alive.set()
        self._ended = threading.Event()
        self.waiting = threading.Event()  # something was said to the dead server, and is not answered
        self.url = ""

    def go_dead(self) -> None:
        self._alive.clear()

    def end(self) -> None:
        self._ended.set()
        self._alive.set()

    def serve(self, here: socket.socket) -> None:
        with socket.create_connection((str(self._there.hostname), int(self._there.port or 0))) as there:
            back = threading.Thread(target=self._pump, args=(there, here), daemon=True)
            back.start()
            self._pump(here, there)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self._alive.is_set():
                    self.waiting.set()
                self._alive.wait()
                if self._ended.is_set():
                    break
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def wire(url: str) -> Iterator[Wire]:
    """A wire to the server at this URL."""
    made = Wire(url)
    with listening(made.serve) as port:
        made.url = f"http://127.0.0.1:{port}"
        try:
            yield made
        finally:
            made.end()


@pytest.fixture
def pipeline(new_database: Callable[[], str], kinesis_endpoint: str, tmp_path: Path) -> Iterator[Pipeline]:
    source, target = new_database(), new_database()
    create_tables(source)
    create_tables(target)
    pipeline = through_kinesis(tmp_path, source_url=source, target_url=target, kinesis_endpoint=kinesis_endpoint)
    with closing(pipeline), explained(pipeline):
        pipeline.workload(0).fill(40)
        pipeline.run("track")
        yield pipeline


def test_under_load_what_is_saved_is_true(pipeline: Pipeline, kinesis_endpoint: str) -> None:
    stops: list[tuple[int, set[bytes]]] = []  # (how far the checkpoint says that all is sent, what was sent)
    for _ in range(3):
        publisher, subscriber = pipeline.start("publish"), pipeline.start("subscribe")
        await_work(pipeline)
        with Writing(pipeline.workloads[0], WRITES_PER_S):
            time.sleep(1)
            subscriber.stop()
            publisher.stop()
        records = stream_records(kinesis_endpoint, pipeline.name)
        assert_subscriber_saved(pipeline, records)
        stops.append((saved_commit(pipeline), {event for record in records for event in record.events}))
    pipeline.once_through()
    pipeline.assert_equal()
    pipeline.assert_no_holes()
    everything = {event for record in stream_records(kinesis_endpoint, pipeline.name) for event in record.events}
    for commit, sent in stops:
        assert len(sent) < len(everything), "nothing was left to do when it was told to stop"
        missing = [event for event in everything - sent if commit_of(event) <= commit]
        assert not missing, f"{len(missing)} events were passed by the checkpoint and not sent"


def await_work(pipeline: Pipeline) -> None:
    """Both ends are at work: what is committed now arrives."""
    pipeline.workloads[0].transaction()
    pipeline.await_equal()


def saved_commit(pipeline: Pipeline) -> int:
    state = pipeline.state()
    checkpoint = state.load()
    state.release()
    assert checkpoint is not None
    return checkpoint.commit


def commit_of(event: bytes) -> int:
    return unpack_version(bytes.fromhex(json.loads(event)[2]))[1]


def assert_subscriber_saved(pipeline: Pipeline, records: list[StreamRecord]) -> None:
    """Each shard's checkpoint stands where the watermarks stand: nothing is applied and not saved."""
    with psycopg.connect(pipeline.target_url) as target:
        shards: dict[str, str] = dict(target.execute("SELECT shard, sequence FROM upwell.shard").fetchall())
        marks = {
            lane: (term, seq) for lane, term, seq in target.execute("SELECT lane, term, seq FROM upwell.watermark")
        }
    saved: dict[int, tuple[int, int]] = {}
    for each in records:
        if int(each.sequence) <= int(shards[each.shard]):
            saved[each.lane] = max(saved.get(each.lane, (0, 0)), (each.term, each.seq))
    assert marks == saved


def test_while_the_destination_is_dead(pipeline: Pipeline, kinesis_endpoint: str) -> None:
    with wire(kinesis_endpoint) as there, wire(kinesis_endpoint) as back:
        publisher, subscriber = cut_off(pipeline, there, back)
        told_at = time.monotonic()
        for program in (publisher, subscriber):
            program.send(signal.SIGTERM)
        assert subscriber.wait(STOP_S) == 0
        assert publisher.wait(STOP_S - (time.monotonic() - told_at)) == 0
        assert differences(pipeline.source, pipeline.target, pipeline.tables)
    through(pipeline, kinesis_endpoint)
    pipeline.once_through()
    pipeline.assert_equal()
    pipeline.assert_no_holes()


def test_a_second_signal_ends_at_once(pipeline: Pipeline, kinesis_endpoint: str) -> None:
    with wire(kinesis_endpoint) as there, wire(kinesis_endpoint) as back:
        programs = cut_off(pipeline, there, back)
        for program in programs:
            program.send(signal.SIGTERM)
        time.sleep(0.3)
        for program in programs:
            assert program.running, "there was nothing under way"
            program.send(signal.SIGTERM)
        for program in programs:
            assert program.wait(AT_ONCE_S) == 128 + signal.SIGTERM


def cut_off(pipeline: Pipeline, there: Wire, back: Wire) -> tuple[Program, Program]:
    """Publisher and subscriber at work, each waiting for an answer that does not come."""
    through(pipeline, there.url)
    publisher = pipeline.start("publish")
    publisher.await_words()
    through(pipeline, back.url)
    subscriber = pipeline.start("subscribe")
    await_work(pipeline)
    there.go_dead()
    back.go_dead()
    for _ in range(10):
        pipeline.workloads[0].transaction()
    assert there.waiting.wait(STOP_S), "the publisher sends nothing"
    assert back.waiting.wait(STOP_S), "the subscriber asks for nothing"
    return publisher, subscriber


def through(pipeline: Pipeline, url: str) -> None:
    """From now on programs reach Kinesis this way."""
    pipeline.configuration["destination"]["kinesis"]["endpoint_url"] = url
    pipeline.write_configuration()
