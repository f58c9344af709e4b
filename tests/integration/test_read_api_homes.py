"""The read API as it is deployed: the command, and the functions on Lambda, each from a configuration."""

import contextlib
import hashlib
import http.client
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from lab.faults import FaultProxy
from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, PostgresCluster, PostgresServer
from tests.acceptance.commands import Commands, surroundings
from tests.read_homes import Http, event
from tests.read_rows import new_database, postgres_store
from tests.read_shop import fill
from upwell.app import build_api
from upwell.app.stacks.gateway import usage_identifier
from upwell.cloud import authorizer_lambda, read_api_lambda
from upwell.ports import Reader

SECRET = "key-of-tenant-a-that-nobody-knows"
CURSOR_KEY = "0123456789abcdef0123456789abcdef"
GOOD = {"Authorization": f"Bearer {SECRET}"}
AUTHORIZATION = f"{{api_keys: {{web: {{sha256: '{hashlib.sha256(SECRET.encode()).hexdigest()}', tenant: a}}}}}}"
API = f"""
api:
  cursor_key: ${{UPWELL_CURSOR_KEY}}
  authorization: {AUTHORIZATION}
  tables:
    orders:
      table: TABLE
      columns: [id, country, total]
      tenant: tenant_id
      indexes: {{by-country: {{partition_key: country, sort_key: id}}}}
"""
ENVIRON = {
    "UPWELL_CURSOR_KEY": CURSOR_KEY,
    "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
    "AWS_REGION": REGION,
}


@pytest.fixture(autouse=True)
def _environ(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    with surroundings():
        yield


def sqlite_shop(folder: Path, endpoint: str) -> Commands:
    """A shop whose rows go from SQLite to DynamoDB."""
    with contextlib.closing(sqlite3.connect(folder / "shop.db")) as shop, shop:
        shop.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, land TEXT, total DECIMAL(8,2), tenant_id TEXT)")
        rows = [(n, ("DE", "FR")[n % 2], f"{n}.5", "abc"[n % 3]) for n in range(1, 10)]
        shop.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", rows)
    destination = f"{{region: {REGION}, endpoint_url: '{endpoint}', table_prefix: api{uuid.uuid4().hex[:8]}-}}"
    (folder / "upwell.yaml").write_text(
        "pipeline: shop\nsource: {url: 'sqlite:///shop.db'}\n"
        f"destination: {{dynamodb: {destination}}}\n"
        "tables: {main.orders: {rename: {land: country}}}\n" + API.replace("TABLE", "orders"),
        "utf-8",
    )
    commands = Commands(folder / "upwell.yaml")
    commands("track")
    commands("api", "--learn")
    commands("publish", "--once")
    return commands


@pytest.fixture
def shop(tmp_path: Path, dynamodb_endpoint: str) -> Commands:
    return sqlite_shop(tmp_path, dynamodb_endpoint)


@contextmanager
def running(file: Path, log: Path) -> Iterator[tuple[Http, "subprocess.Popen[bytes]"]]:
    """`upwell api` as a process of its own."""
    arguments = ["api", "-c", str(file), "--port", "0", "--log-format", "json"]
    with log.open("wb") as said:
        process = subprocess.Popen([sys.executable, "-m", "upwell", *arguments], stderr=said)
    try:
        yield Http(port_of(process, log)), process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def port_of(process: "subprocess.Popen[bytes]", log: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = re.search(r"answering at http://[0-9.]+:([0-9]+) as shop", log.read_text("utf-8"))
        if found:
            return int(found[1])
        assert process.poll() is None, log.read_text("utf-8")
        time.sleep(0.05)
    raise AssertionError(log.read_text("utf-8"))


# --- the contract ---------------------------------------------------------------------------------------------------


def test_the_contract_is_the_same_each_time_and_a_line_for_each_column(shop: Commands) -> None:
    file = shop.file.parent / "upwell-api.json"
    first = file.read_text("utf-8")
    assert shop("api", "--learn").strip() == str(file)
    assert file.read_text("utf-8") == first
    assert orjson.loads(first) == {
        "upwell-api": 1,
        "tables": {
            "orders": {
                "table": "main.orders",
                "dialect": "sqlite",
                "items": "orders",
                "key": ["id"],
                "columns": {"id": "int INTEGER", "country": "text TEXT", "total": "decimal DECIMAL(8,2)"},
                "unshown": {"tenant_id": "text TEXT"},
            }
        },
    }
    assert '        "country": "text TEXT",\n' in first


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("columns: [id, country, total]", "columns: [id, country]"),
        ("columns: [id, country, total]", "columns: [id, country, nothing]"),
        ("tenant: tenant_id", "tenant: nothing"),
        ("partition_key: country", "partition_key: nothing"),
        ("table: orders", "table: other"),
        ("    orders:\n", "    others:\n"),
    ],
)
def test_it_does_not_start_with_a_contract_that_does_not_fit(shop: Commands, before: str, after: str) -> None:
    text = shop.file.read_text("utf-8")
    assert before in text
    shop.file.write_text(text.replace(before, after), "utf-8")
    shop("api", "--port", "0", code=2)
    if "nothing" in after or "other" in after.split():
        shop("api", "--learn", code=2)


def test_it_does_not_start_where_callers_could_not_be_known(shop: Commands) -> None:
    text = shop.file.read_text("utf-8")
    iam = "{iam: {tenants: {'arn:aws:iam::123456789012:role/web': a}}}"
    for wrong in (text.replace(AUTHORIZATION, iam), text.replace(", tenant: a}", "}")):
        assert wrong != text
        shop.file.write_text(wrong, "utf-8")
        shop("api", "--port", "0", code=2)


def test_an_address_that_is_in_use(shop: Commands, tmp_path: Path) -> None:
    with running(shop.file, tmp_path / "log") as (home, _):
        shop("api", "--port", str(home.port), code=3)


def test_doctor_says_whether_it_would_answer(shop: Commands) -> None:
    def found(code: int) -> list[tuple[str, str]]:
        findings = orjson.loads(shop("doctor", "--json", code=code))
        return [(each["level"], each["code"]) for each in findings if each["code"].startswith("UW-AP")]

    # The rows can be read; the index that nobody has made can not.
    assert found(3) == [("pass", "UW-AP-001"), ("pass", "UW-AP-003"), ("pass", "UW-AP-012"), ("fail", "UW-AP-012")]
    (shop.file.parent / "upwell-api.json").unlink()
    assert found(3) == [("fail", "UW-AP-001"), ("pass", "UW-AP-003")]


# --- as a process ---------------------------------------------------------------------------------------------------


def test_the_command_answers_until_it_is_told_to_stop(shop: Commands, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(shop.file, log) as (home, process):
        assert home.ask("/v1/orders/3", GOOD).json == {"id": 3, "country": "FR", "total": "3.5"}
        age = home.ask("/v1/_freshness", GOOD).json
        assert age["tables"] == {"orders": {"as_of": age["as_of"], "complete": True}}
        assert 0 <= age["age_s"] < 120
        assert home.ask("/v1/orders/3", GOOD).headers["x-data-as-of"] == age["as_of"]
        without = home.ask("/v1/orders?index=by-country&country=FR", GOOD)  # nobody has made the index
        assert (without.status, without.headers["retry-after"]) == (503, "30")
        assert home.ask("/v1/orders/4", GOOD).status == 404
        assert home.ask("/v1/orders/3", {"Authorization": "Bearer wrong-key"}).status == 401
        assert home.ask("/healthz").json == {"status": "ok", "database": "up"}
        assert middle_s(home.port) < 0.03
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    said = log.read_text("utf-8")
    assert "row orders 200" in said
    assert "UW-AP-012" in said
    for kept in (SECRET, CURSOR_KEY, "wrong-key", "orders/3", "country=FR", SECRET_ACCESS_KEY):
        assert kept not in said


def middle_s(port: int) -> float:
    """Of several requests on one connection: none waits for the client's delayed acknowledgement, which takes 40 ms."""
    times = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for _ in range(20):
        began = time.monotonic()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        times.append(time.monotonic() - began)
    connection.close()
    return sorted(times)[len(times) // 2]


def test_what_is_under_way_is_answered_when_it_is_told_to_stop(tmp_path: Path, dynamodb_endpoint: str) -> None:
    with FaultProxy(dynamodb_endpoint) as wire:
        shop = sqlite_shop(tmp_path, wire.url)
        with running(shop.file, tmp_path / "log") as (home, process):
            assert home.ask("/v1/orders/3", GOOD).status == 200
            time.sleep(1.1)  # the age is looked at again
            wire.faults.slow_s = (1.5, 1.5)
            wire.faults.rates = {"slow": 1.0}
            got: list[int] = []
            threads = [
                threading.Thread(target=lambda: got.append(home.ask("/v1/orders/3", GOOD).status)) for _ in range(5)
            ]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 10
            while sum(wire.done.values()) == 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join()
            assert process.wait(10) == 0
    assert got == [200] * 5


# --- its database away ----------------------------------------------------------------------------------------------


def test_without_dynamodb_it_says_so_and_goes_on_by_itself(tmp_path: Path, dynamodb_endpoint: str) -> None:
    with FaultProxy(dynamodb_endpoint) as wire:
        shop = sqlite_shop(tmp_path, wire.url)
        with running(shop.file, tmp_path / "log") as (home, _):
            away_and_back(home, wire.cut, wire.restore)


def test_without_postgresql_it_says_so_and_goes_on_by_itself(tmp_path: Path) -> None:
    with PostgresCluster() as cluster, new_database(cluster) as database, postgres_store(cluster, database) as store:
        fill(store)
        file = relational(tmp_path, cluster, database)
        with running(file, tmp_path / "log") as (home, _):
            away_and_back(home, lambda: cluster.stop("immediate"), cluster.start)


def relational(folder: Path, server: PostgresServer, database: str) -> Path:
    """The read API over PostgreSQL, with a contract as the source would have given it."""
    columns = {"id": "int int", "country": "text nvarchar(2)", "total": "decimal decimal(12,2)"}
    table = {"table": "dbo.orders", "dialect": "sqlserver", "key": ["id"], "columns": columns}
    contract = {"upwell-api": 1, "tables": {"orders": {**table, "unshown": {"tenant_id": "text nvarchar(20)"}}}}
    (folder / "upwell-api.json").write_bytes(orjson.dumps(contract))
    file = folder / "upwell.yaml"
    subscriber = f"subscriber: {{target: '{server.url(database)}'}}\n"
    file.write_text(f"pipeline: shop\n{subscriber}{API.replace('TABLE', 'dbo.orders')}", "utf-8")
    return file


def away_and_back(home: Http, away: Any, back: Any) -> None:
    assert home.ask("/v1/orders/3", GOOD).status == 200
    away()
    for _ in range(3):
        answer = home.ask("/v1/orders/3", GOOD)
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert answer.headers["content-type"] == "application/problem+json"
        assert home.ask("/healthz").json == {"status": "ok", "database": "down"}
    back()
    deadline = time.monotonic() + 20
    while home.ask("/v1/orders/3", GOOD).status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for _ in range(20):
        assert home.ask("/v1/orders/3", GOOD).status == 200


# --- on Lambda ------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_lambda(shop: Commands, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    monkeypatch.setenv("UPWELL_CONFIG", str(shop.file))
    readers: list[Reader] = []
    make = build_api.reader

    def made(*given: Any) -> Reader:
        readers.append(make(*given))
        return readers[-1]

    monkeypatch.setattr(build_api, "reader", made)
    for each in (read_api_lambda._adapter, authorizer_lambda._parts):
        each.cache_clear()
    yield shop
    for each in (read_api_lambda._adapter, authorizer_lambda._parts):
        each.cache_clear()
    for reader in readers:  # nobody tells a function that it ends
        reader.close()


def test_the_function_answers_events_of_api_gateway(on_lambda: Commands) -> None:
    import asyncio

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    answer = read_api_lambda.handler(event("/v1/orders/3", GOOD), None)
    assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, False)
    assert orjson.loads(answer["body"]) == {"id": 3, "country": "FR", "total": "3.5"}
    assert read_api_lambda.handler(event("/v1/orders/4", GOOD), None)["statusCode"] == 404
    assert read_api_lambda.handler(event("/v1/orders/3", {}), None)["statusCode"] == 401
    problem = read_api_lambda.handler(event("/v1/nothing", GOOD), None)
    assert problem["isBase64Encoded"] is False
    assert orjson.loads(problem["body"])["status"] == 404
    # Whatever the gateway's own authorizer said, the function looks for itself.
    forged = event("/v1/orders/4", {})
    forged["requestContext"]["authorizer"] = {"principalId": "web", "tenant": "b"}
    assert read_api_lambda.handler(forged, None)["statusCode"] == 401
    others: list[dict[str, Any]] = [{}, {"Records": []}]
    others += [{"version": "2.0", "rawPath": "/v1/orders/3", "requestContext": {"http": {}}}]
    for other in others:
        with pytest.raises(TypeError):
            read_api_lambda.handler(other, None)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    asyncio.set_event_loop(None)


def token_event(token: str | None) -> dict[str, Any]:
    arn = "arn:aws:execute-api:eu-west-1:123456789012:70ixmpl4fl/Prod/GET/v1/orders/3"
    return {"type": "TOKEN", "methodArn": arn, **({} if token is None else {"authorizationToken": token})}


def test_the_authorizer_lets_in_whom_the_function_lets_in(on_lambda: Commands) -> None:
    answer = authorizer_lambda.handler(token_event(GOOD["Authorization"]), None)
    assert answer["principalId"] == "web"
    assert answer["context"] == {"tenant": "a"}
    assert answer["usageIdentifierKey"] == usage_identifier("shop", "web")
    (statement,) = answer["policyDocument"]["Statement"]
    assert statement["Effect"] == "Allow"
    stage = "arn:aws:execute-api:eu-west-1:123456789012:70ixmpl4fl/Prod"
    assert statement["Resource"] == [f"{stage}/GET/*", f"{stage}/HEAD/*"]
    for wrong in (None, "", "Bearer ", "Bearer other", SECRET, "x" * 10_000):
        with pytest.raises(Exception, match=r"^Unauthorized$"):
            authorizer_lambda.handler(token_event(wrong), None)


def test_a_function_starts_without_what_it_does_not_need() -> None:
    """Cold start: no source's code, no commands' tables and prompts, no driver."""
    code = "import sys, upwell.cloud.read_api_lambda; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    loaded = set(done.stdout.split())
    unneeded = {"upwell.app.build", "upwell.app.cli", "upwell.pipeline.publisher", "upwell.sources.postgres"}
    assert not loaded & {*unneeded, "rich", "sqlglot", "psycopg", "uvicorn", "mssql_python"}
