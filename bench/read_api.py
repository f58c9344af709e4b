"""`upwell api` over PostgreSQL and over DynamoDB Local, beside the bare query in a loop: python -m bench.read_api [N].

One client with eight connections, in this process. Reads a second are told of a whole core, by the processor time of
the server's process alone: on a busy machine that is what can be compared. The share says how many of the bare loop's
reads are left when HTTP, authorization and throttling, the age of the data and its ETag come on top. The times are the
client's, with its own part and the database's.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
import psycopg

from bench.rows import SCHEMA, event
from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, DynamoDbLocal, PostgresCluster
from tests.identity_provider import AUDIENCE, ISSUER, IdentityProvider
from upwell.aws import AwsService
from upwell.clock import SystemClock
from upwell.exposure import Wanted, contract, expose
from upwell.sinks.dynamodb import DynamoDbSink
from upwell.targets.postgres import PostgresTarget

ROWS = 10_000
CONNECTIONS = 8
PAGE = 100
KEY = "a-key-that-only-the-benchmark-knows"
COLUMNS = tuple(column.name for column in SCHEMA.columns)
SETTINGS = """
api:
  cursor_key: ${UPWELL_CURSOR_KEY}
  authorization: AUTHORIZATION
  tables: {customers: {table: public.customers, columns: [COLUMNS]}}
  limits: {requests_per_second: 100000}
"""


def run(count: int) -> None:
    """Both stores, by token and by key."""
    provider = IdentityProvider()
    with ExitStack() as closing_up:
        jwks = closing_up.enter_context(published(provider))
        token = f"{{jwt: {{issuer: '{ISSUER}', audience: {AUDIENCE}, jwks_url: '{jwks}'}}}}"
        key = f"{{api_keys: {{bench: {{sha256: '{hashlib.sha256(KEY.encode()).hexdigest()}'}}}}}}"
        ways = {"token": (token, provider.bearer()["Authorization"]), "API key": (key, f"Bearer {KEY}")}
        for name, store in (("PostgreSQL", relational), ("DynamoDB Local", items)):
            with store() as (target, one, page):
                alone, many = (
                    bare(f"{name}: bare query, a row", one, count),
                    bare(f"{name}: bare query, a page", page, count // 10),
                )
                for way, (authorization, header) in ways.items():
                    with api(target, authorization) as (port, process):
                        measured(f"{name}: a row, by {way}", port, process, header, "/v1/customers/{n}", count, alone)
                        if way == "token":
                            path = f"/v1/customers?limit={PAGE}"
                            measured(f"{name}: {PAGE} rows, by {way}", port, process, header, path, count // 10, many)
                            measured(f"{name}: /healthz", port, process, header, "/healthz", count, None)


# --- the stores, and the bare query of each ---------------------------------------------------------------------------


Read = Callable[[int], object]


@contextmanager
def relational() -> Iterator[tuple[str, Read, Read]]:
    with PostgresCluster() as cluster:
        url = cluster.create_database("bench")
        target = PostgresTarget(url, create_tables=True, schema_changes="apply")
        with target.begin() as transaction:
            transaction.ensure_table(SCHEMA)
            transaction.upsert(SCHEMA, [event(number, 1).values() for number in range(ROWS)])
        target.close()
        columns = ", ".join(COLUMNS)
        with psycopg.connect(url, autocommit=True) as sql:
            yield (
                f"subscriber: {{target: '{url}'}}",
                lambda n: sql.execute(f"SELECT {columns} FROM customers WHERE id = %s", [n]).fetchone(),
                lambda n: sql.execute(f"SELECT {columns} FROM customers ORDER BY id LIMIT {PAGE}").fetchall(),
            )


@contextmanager
def items() -> Iterator[tuple[str, Read, Read]]:
    prefix = f"bench{uuid.uuid4().hex[:8]}-"
    with DynamoDbLocal() as part:
        service = AwsService("dynamodb", REGION, endpoint_url=part.url)
        sink = DynamoDbSink(service, SystemClock(), table_prefix=prefix)
        sink.prepare([SCHEMA])
        rest = [event(number, 1) for number in range(ROWS)]
        while rest:
            parcel = sink.pack(0, 1, 1, None, rest)
            assert sink.send([parcel]) == [None]
            rest = rest[parcel.taken :]
        destination = f"{{region: {REGION}, endpoint_url: '{part.url}', table_prefix: {prefix}}}"
        table = {"TableName": f"{prefix}customers", "ConsistentRead": True}
        yield (
            f"destination: {{dynamodb: {destination}}}",
            lambda n: service.call("GetItem", {**table, "Key": {"id": {"N": str(n)}}}),
            lambda n: service.call("Scan", {**table, "Limit": PAGE}),
        )
        sink.close()


def bare(what: str, read: Read, count: int) -> float:
    """Reads a second of a core, without HTTP."""
    for n in range(20):
        read(n)
    times = []
    cpu = time.process_time()
    for number in range(count):
        began = time.perf_counter()
        read(number % ROWS)
        times.append(time.perf_counter() - began)
    rate = count / (time.process_time() - cpu)
    told(what, rate, times, None)
    return rate


# --- the API ----------------------------------------------------------------------------------------------------------


@contextmanager
def api(store: str, authorization: str) -> Iterator[tuple[int, psutil.Process]]:
    """`upwell api` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "upwell.yaml", Path(folder) / "log"
        settings = SETTINGS.replace("AUTHORIZATION", authorization).replace("COLUMNS", ", ".join(COLUMNS))
        file.write_text(f"pipeline: bench\n{store}\n{settings}", "utf-8")
        exposed = expose("customers", Wanted(SCHEMA.table, COLUMNS, None, {}), SCHEMA, "customers")
        (Path(folder) / "upwell-api.json").write_bytes(contract([exposed]))
        environ = {
            "UPWELL_CURSOR_KEY": "x" * 32,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        }
        with log.open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "upwell", "api", "-c", str(file), "--port", "0"],
                stderr=said,
                env=os.environ | environ,
            )
        try:
            yield port_of(process, log), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def port_of(process: subprocess.Popen[bytes], log: Path) -> int:
    while process.poll() is None:
        found = re.search(r"answering at http://[0-9.]+:([0-9]+)", log.read_text("utf-8"))
        if found:
            return int(found[1])
        time.sleep(0.05)
    raise RuntimeError(log.read_text("utf-8"))


def measured(
    what: str, port: int, process: psutil.Process, header: str, path: str, count: int, limit: float | None
) -> None:
    """Prints reads a second of a core of the server's, and how long they took."""
    ask(port, header, path, 200)
    cpu = sum(process.cpu_times()[:2])
    times = ask(port, header, path, count)
    told(what, count / (sum(process.cpu_times()[:2]) - cpu), times, limit)


def ask(port: int, header: str, path: str, count: int) -> list[float]:
    """How long each request took."""
    times: list[float] = []

    def one(first: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as wire:
            for number in range(first, count, CONNECTIONS):
                target = path.replace("{n}", str(number % ROWS))
                began = time.perf_counter()
                wire.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n\r\n".encode())
                receive(wire)
                times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=one, args=(first,)) for first in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == count
    return times


def receive(wire: socket.socket) -> None:
    """One answer, which must be good."""
    got = bytearray()
    while b"\r\n\r\n" not in got:
        got += wire.recv(65536)
    head, _, body = bytes(got).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    length = re.search(rb"content-length: ([0-9]+)", head)
    assert length is not None
    missing = int(length[1]) - len(body)
    while missing > 0:
        missing -= len(wire.recv(65536))


def told(what: str, rate: float, times: list[float], limit: float | None) -> None:
    ordered = sorted(times)
    p50, p99 = (ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99))
    share = "" if limit is None else f"{rate / limit:6.0%} of bare"
    print(f"{what:42} {rate:8,.0f} reads/s of a core   p50 {p50:6.1f} ms  p99 {p99:6.1f} ms  {share}", flush=True)


@contextmanager
def published(provider: IdentityProvider) -> Iterator[str]:
    """The provider's keys by HTTP."""
    content = provider.fetch()
    assert orjson.loads(content)["keys"]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/keys"
        server.shutdown()


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 8_000)
