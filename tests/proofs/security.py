"""Secrets and personal data stay where they belong: canaries in all of them, and nobody may find one elsewhere.

Secrets: nowhere. Values of masked columns: not beyond the source. Values of other columns and keys: at the destination
and where a person asks for them, never in a log, an error or a status. Looked for as they are, percent-encoded, in hex,
in JSON and in base64, in all that commands, services, failures, crashes, files, the stream and the target show.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import boto3
import psycopg
import trustme

import upwell
from lab.parts import ACCESS_KEY_ID, REGION, PostgresServer
from tests.acceptance.compare import kinesis_client
from tests.acceptance.pipelines import COMMAND_S, UPWELL, Pipeline, create_stream, explained
from tests.fake_aws import Request, fake_proxy, fake_service, listening, ok, refused
from tests.proofs import Figures, Servers
from tests.proofs.disk import _await

MARK = "cAnArY"
SECRETS = {
    "CANARY_SOURCE": f"{MARK}/source:p4ss",
    "CANARY_TARGET": f"{MARK}@target%p4ss",
    "CANARY_PROXY": f"{MARK}+proxy p4ss",
    "CANARY_MASKING": f"{MARK}-masking-key-0123456789",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}/aws+secret/key",
    "AWS_SESSION_TOKEN": f"{MARK}/aws//session+token==",
}
WRONG = f"{MARK}-wrong-p4ss"
MASKED = (f"{MARK}-ssn", f"{MARK}-card", f"{MARK}-birth")
# Of columns that are not masked, the key among them.
PLAIN = (f"{MARK}-name", f"{MARK}-mail")
COLUMNS = "mail text PRIMARY KEY, name text, ssn text, card text, birth text"
TABLE = {"mask": {"ssn": "hmac", "card": "redact", "birth": "null"}}
# What a shell starts without job control ignores SIGQUIT, and so would all that it starts.
OPEN_TO_ALL = (
    sys.executable,
    "-c",
    "import os, signal, sys\n"
    "os.umask(0)\n"
    "signal.signal(signal.SIGQUIT, signal.SIG_DFL)\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n",
    UPWELL[0],
)
# A bug: an error that quotes the first row it meets, and another one on another thread.
BUG = (
    sys.executable,
    "-c",
    "import threading\n"
    "from upwell.app.cli import main\n"
    "from upwell.mapping import Mapping\n"
    "def events(self, events):\n"
    "    thread = threading.Thread(target=lambda: {}[events[0].values()[1]])\n"
    "    thread.start(); thread.join()\n"
    "    return {}[repr(events[0].values())]\n"
    "Mapping.events = events\n"
    "main()\n",
)


@dataclass(frozen=True)
class Size:
    """How many rows carry canaries, and how much is tried."""

    rows: int
    all: bool  # every command that may fail in its own way; else the first that does


SMALL = Size(20, all=False)
FULL = Size(1_000, all=True)


@dataclass
class Search:
    """Looks for canaries; counts where it looked."""

    places: int = 0
    found: list[str] = field(default_factory=list)

    def look(self, where: str, data: bytes | str, canaries: Sequence[str]) -> None:
        """None of them may be in there."""
        self.places += 1
        text = data.encode(errors="surrogateescape") if isinstance(data, str) else data
        self.found += [f"{canary} in {where}" for canary in canaries if any(form in text for form in _forms(canary))]


def _forms(canary: str) -> set[bytes]:
    raw = canary.encode()
    forms = {raw, quote(canary).encode(), quote(canary, safe="").encode(), raw.hex().encode()}
    forms |= {json.dumps(canary)[1:-1].encode(), json.dumps(canary)[1:-1].replace("/", "\\/").encode()}
    for shift in range(3):  # where it begins within three bytes, its own digits are others
        digits = base64.b64encode(bytes(shift) + raw).rstrip(b"=")
        forms.add(digits[(shift * 8 + 5) // 6 : len(digits) - 2])
    return forms


def run(servers: Servers, folder: Path, size: Size) -> Figures:
    """Both ways, and TLS."""
    figures = {}
    for part in (_relational, _serverless, _tls):
        search = Search()
        place = folder / part.__name__.strip("_")
        place.mkdir()
        part(servers, place, size, search)
        assert not search.found, f"{len(search.found)} canaries were found:\n" + "\n".join(search.found[:20])
        figures[f"{part.__name__.strip('_')}: places looked at, canaries found"] = f"{search.places}, 0"
    return figures


# --- PostgreSQL → Kinesis → PostgreSQL ----------------------------------------------------------------------------


def _relational(servers: Servers, folder: Path, size: Size, search: Search) -> None:
    with _databases(servers.postgres) as (source, target), fake_proxy(_basic("CANARY_PROXY")) as proxy:
        _execute(source, f"CREATE TABLE people ({COLUMNS})")
        _execute(target, f"CREATE TABLE people ({COLUMNS}, CHECK (name NOT LIKE '%refused%'))")
        name = f"sec-{uuid.uuid4().hex[:8]}"
        create_stream(servers.kinesis, name, 2)
        configuration = {
            "pipeline": name,
            "source": {"url": _with_password(source, "${CANARY_SOURCE}"), "poll_interval": "200ms"},
            "destination": {
                "kinesis": {"stream": name, "region": REGION, "endpoint_url": servers.kinesis},
                "proxy": proxy.url.replace("//", "//corp:${CANARY_PROXY}@"),
            },
            "subscriber": {"target": _with_password(target, "${CANARY_TARGET}")},
            "masking": {"key": "${CANARY_MASKING}"},
            "tables": {"people": TABLE},
        }
        with _pipeline(folder, configuration, source, target) as pipeline:
            _initialised(pipeline, search)
            _insert(source, size.rows, refused=3)
            _commands(pipeline, search, ["track"], ["doctor"], ["plan", "--json"])
            _at_work(pipeline, search)
            _look_at_target(target, search)
            _look_at_stream(servers.kinesis, name, search)
            _failures(pipeline, search, size)


def _at_work(pipeline: Pipeline, search: Search) -> None:
    """Both services, with every file open to all as far as the umask goes; a dump of theirs is asked for in the end."""
    pipeline.upwell = OPEN_TO_ALL
    publisher, subscriber = pipeline.start("publish", "--log-format", "json"), pipeline.start("subscribe")
    pipeline.upwell = UPWELL
    _await(partial(_has_letters, pipeline.target_url, 3), "the refused rows")
    for file in pipeline.folder.glob(f"{pipeline.state_file.name}*"):
        mode = file.stat().st_mode & 0o777
        assert mode == 0o600, f"{file.name} has the mode {mode:o}"
        search.look(file.name, file.read_bytes(), [*SECRETS.values(), *MASKED])
    _commands(pipeline, search, ["status"], ["status", "--json"], ["resync"])
    _commands(pipeline, search, ["verify", "--pause", "500ms"], code=1, shows_rows=True)
    shown = _commands(pipeline, search, ["dead-letters", "list", "--json"], shows_rows=True)
    letter = json.loads(shown)[0]["id"]
    _commands(pipeline, search, ["dead-letters", "list"], ["dead-letters", "show", letter], shows_rows=True)
    for program in (publisher, subscriber):
        search.look("its arguments", Path(f"/proc/{program.pid}/cmdline").read_bytes(), list(SECRETS.values()))
        program.send(signal.SIGQUIT)
        program.wait(COMMAND_S)
        search.look(program.log.name, program.log.read_bytes(), [*SECRETS.values(), *MASKED, *PLAIN])
    dumps = [file.name for file in pipeline.folder.iterdir() if file.name.startswith("core")]
    assert not dumps, f"memory was dumped to {dumps}"


def _failures(pipeline: Pipeline, search: Search, size: Size) -> None:
    """Each ends with a sentence, and each sentence with what it may say."""
    good = dict(pipeline.environ)
    for name, commands in (
        ("CANARY_SOURCE", (["publish", "--once"], ["doctor"], ["verify"])),
        ("CANARY_TARGET", (["subscribe", "--once"], ["verify"])),
        ("CANARY_PROXY", (["publish", "--once"], ["doctor"])),
    ):
        pipeline.environ[name] = WRONG
        _commands(pipeline, search, *(commands if size.all else commands[:1]), code=None)
        pipeline.environ = dict(good)
    _commands(pipeline, search, ["status", "--json"])
    for answer in (_echoes_the_signature, _echoes_the_request):
        _execute(pipeline.source_url, "UPDATE people SET name = name || ' '")
        with fake_service(answer) as service, _changed(pipeline, "kinesis", endpoint_url=service.url):
            _commands(pipeline, search, ["publish", "--once"], *([["doctor"]] if size.all else []), code=None)
    pipeline.upwell = BUG
    _execute(pipeline.source_url, "UPDATE people SET name = name || ' changed'")
    for form in ("text", "json") if size.all else ("text",):
        shown = _commands(pipeline, search, ["publish", "--once", "--log-format", form], code=1)
        assert "KeyError" in shown, f"the bug was to be seen: {shown}"
    pipeline.upwell = UPWELL


def _echoes_the_signature(request: Request) -> bytes:
    """As AWS does where a signature is wrong: with all headers that were signed, the session token among them."""
    headers = "\n".join(f"{name}:{value}" for name, value in request.headers.items())
    return refused("InvalidSignatureException", f"The Canonical String should have been 'POST\n/\n\n{headers}'")


def _echoes_the_request(request: Request) -> bytes:
    """As AWS does where a value is not allowed."""
    if request.action != "PutRecords":
        return ok({"StreamDescriptionSummary": {"StreamStatus": "ACTIVE"}})
    data = base64.b64decode(request.payload["Records"][0]["Data"]).decode()
    return refused("ValidationException", f"1 validation error detected: Value '{data}' at 'records' is too much")


def _look_at_target(target: str, search: Search) -> None:
    with psycopg.connect(target) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'upwell')"
        )
        for schema, table in tables.fetchall():
            rows = connection.execute(f'SELECT t::text FROM "{schema}"."{table}" AS t').fetchall()
            search.look(f"the target's {schema}.{table}", repr(rows), [*SECRETS.values(), *MASKED])
        letters = connection.execute("SELECT payload, reason FROM upwell.dead_letter").fetchall()
        assert letters
        for payload, reason in letters:
            search.look("a dead letter", payload, [*SECRETS.values(), *MASKED])
            search.look("a dead letter's reason", reason, PLAIN)
        (rows,) = connection.execute("SELECT count(*) FROM people WHERE name LIKE %s", [f"{PLAIN[0]}%"]).fetchone() or (
            0,
        )
        assert rows, "nothing has arrived, so nothing was proved"


def _look_at_stream(endpoint: str, stream: str, search: Search) -> None:
    with closing(kinesis_client(endpoint)) as client:
        for shard in client.list_shards(StreamName=stream)["Shards"]:
            place = {"StreamName": stream, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
            iterator = client.get_shard_iterator(**place)["ShardIterator"]
            while iterator:
                answer = client.get_records(ShardIterator=iterator, Limit=1000)
                for record in answer["Records"]:
                    search.look("the stream", record["Data"], [*SECRETS.values(), *MASKED])
                iterator = answer.get("NextShardIterator") if answer["Records"] else None


def _initialised(pipeline: Pipeline, search: Search) -> None:
    """`upwell init` gets the password in its URL."""
    place = pipeline.folder / "init"
    url = _with_password(pipeline.source_url, quote(SECRETS["CANARY_SOURCE"], safe=""))
    done = _run(pipeline, ["init", url, "--to", "kinesis://shop", "-c", str(place / "upwell.yaml")], make=place)
    assert done.returncode == 0, done.stderr
    search.look("what init says", done.stdout + done.stderr, list(SECRETS.values()))
    files = sorted(place.iterdir())
    assert [file.name for file in files] == ["firewall.txt", "grants.sql", "upwell.yaml"]
    for file in files:
        search.look(file.name, file.read_bytes(), list(SECRETS.values()))
    assert "${UPWELL_SOURCE_PASSWORD}" in (place / "upwell.yaml").read_text()


# --- SQLite → DynamoDB --------------------------------------------------------------------------------------------


def _serverless(servers: Servers, folder: Path, size: Size, search: Search) -> None:
    """The publisher's own dead letters: one row is larger than an item may be."""
    path, name = folder / "source.db", f"sec-{uuid.uuid4().hex[:8]}"
    _execute(str(path), f"CREATE TABLE people ({COLUMNS})")
    _insert(str(path), size.rows, large=1)
    configuration = {
        "pipeline": name,
        "source": {"url": f"sqlite:///{path}"},
        "destination": {
            "dynamodb": {"region": REGION, "endpoint_url": servers.dynamodb, "table_prefix": f"{name}-"},
        },
        "masking": {"key": "${CANARY_MASKING}"},
        "tables": {"people": TABLE},
    }
    with _pipeline(folder, configuration, str(path), "") as pipeline:
        _commands(pipeline, search, ["track"], ["doctor"], ["publish", "--once"], ["status", "--json"])
        _commands(pipeline, search, ["dead-letters", "list"], ["dead-letters", "show", "p-1"], shows_rows=True)
        for file in pipeline.folder.glob(f"{pipeline.state_file.name}*"):
            search.look(file.name, file.read_bytes(), [*SECRETS.values(), *MASKED])
        assert PLAIN[0].encode() in pipeline.state_file.read_bytes(), "the letter holds no row, so nothing was proved"
    keys = {"aws_access_key_id": ACCESS_KEY_ID, "aws_secret_access_key": SECRETS["AWS_SECRET_ACCESS_KEY"]}
    with closing(boto3.client("dynamodb", endpoint_url=servers.dynamodb, region_name=REGION, **keys)) as client:
        items = client.scan(TableName=f"{name}-people")["Items"]
    assert items, "nothing has arrived, so nothing was proved"
    search.look("the items", repr(items), [*SECRETS.values(), *MASKED])


# --- TLS ----------------------------------------------------------------------------------------------------------


def _tls(servers: Servers, folder: Path, size: Size, search: Search) -> None:
    """Whoever answers with a certificate that nobody vouches for is told nothing."""
    _no_unverified_tls()
    path = folder / "source.db"
    _execute(str(path), f"CREATE TABLE people ({COLUMNS})")
    _insert(str(path), 3, large=1)
    _execute(str(path), "UPDATE people SET name = name || name || name WHERE length(name) > 1000")
    with _impostor() as (url, told):
        stream = f"sec-{uuid.uuid4().hex[:8]}"
        create_stream(servers.kinesis, stream, 1)
        there: dict[str, Any] = {"stream": stream, "region": REGION, "endpoint_url": servers.kinesis}
        for number, destination in enumerate(
            (
                {"kinesis": {**there, "endpoint_url": url}},
                {"dynamodb": {"region": REGION, "endpoint_url": url}},
                {"kinesis": {**there, "claim_check": {"bucket": "impostor", "endpoint_url": url}}},
            )
        ):
            configuration = {
                "pipeline": f"tls-{number}",
                "source": {"url": f"sqlite:///{path}"},
                "destination": destination,
                "masking": {"key": "${CANARY_MASKING}"},
                "tables": {"people": TABLE},
                "state": f"state-{number}.db",
            }
            with _pipeline(folder, configuration, str(path), "") as pipeline:
                if not number:
                    _commands(pipeline, search, ["track"])
                for command in (["publish", "--once"], ["doctor"]) if size.all else (["publish", "--once"],):
                    shown = _commands(pipeline, search, command, code=3)
                    assert "UW-AWS-013" in shown, shown
        assert not told, f"an impostor was told {told!r:.200}"


@contextmanager
def _impostor() -> Iterator[tuple[str, list[bytes]]]:
    """Speaks TLS with a certificate of its own making; with what it was told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    told: list[bytes] = []

    def serve(raw: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(raw, server_side=True) as secured:
            while data := secured.recv(65536):
                told.append(data)

    with listening(serve) as port:
        yield f"https://localhost:{port}", told


def _no_unverified_tls() -> None:
    """In the whole program one function may look at a certificate without trusting it, and it sends nothing."""
    found = [
        (file.name, getattr(function, "name", "lambda"), ast.unparse(function))
        for file in sorted(Path(upwell.__file__).parent.rglob("*.py"))
        for function in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and _trusts_anybody(function)
    ]
    assert [(file, name) for file, name, _ in found] == [("http1.py", "_issuer")], found
    assert not any(word in found[0][2] for word in ("send", "write", "request")), "it speaks to whoever is there"


def _trusts_anybody(function: ast.AST) -> bool:
    text = ast.unparse(function)
    words = ("CERT_NONE", "check_hostname = False", "_create_unverified_context", "verify=False", "sslmode=disable")
    return any(word in text for word in words)


# --- the pipelines and their commands -----------------------------------------------------------------------------


class _NoRows:
    """What is at either end is looked at by other means here."""

    def close(self) -> None:
        pass


@contextmanager
def _pipeline(folder: Path, configuration: dict[str, Any], source: str, target: str) -> Iterator[Pipeline]:
    ends: Any = _NoRows()
    pipeline = Pipeline(folder, configuration["pipeline"], configuration, ends, ends, source, target)
    pipeline.environ = {**SECRETS, "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID, "PYTHONFAULTHANDLER": "1"}
    pipeline.write_configuration()
    with closing(pipeline), explained(pipeline):
        yield pipeline


@contextmanager
def _changed(pipeline: Pipeline, destination: str, **settings: str) -> Iterator[None]:
    before = pipeline.configuration["destination"]
    pipeline.configuration["destination"] = {destination: {**before[destination], **settings}}
    pipeline.write_configuration()
    yield
    pipeline.configuration["destination"] = before
    pipeline.write_configuration()


def _commands(
    pipeline: Pipeline, search: Search, *commands: Sequence[str], code: int | None = 0, shows_rows: bool = False
) -> str:
    """Runs them and looks at all they say; `code` None: they fail. `shows_rows`: to whoever asked."""
    shown = ""
    for command in commands:
        done = _run(pipeline, [*command, "-c", str(pipeline.file)])
        as_wanted = done.returncode != 0 if code is None else done.returncode == code
        assert as_wanted, f"upwell {' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        what = f"what `upwell {' '.join(command)}` says"
        search.look(what, done.stdout + done.stderr, [*SECRETS.values(), *MASKED, WRONG])
        search.look(what, done.stderr if shows_rows else done.stdout + done.stderr, PLAIN)
        shown += done.stdout + done.stderr
    return shown


def _run(pipeline: Pipeline, arguments: Sequence[str], make: Path | None = None) -> subprocess.CompletedProcess[str]:
    if make is not None:
        make.mkdir()
    return subprocess.run(
        [*pipeline.upwell, *arguments],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        env={**os.environ, **pipeline.environ},
        cwd=pipeline.folder,
        check=False,
    )


def _has_letters(target: str, count: int) -> bool:
    with psycopg.connect(target) as connection:
        if connection.execute("SELECT to_regclass('upwell.dead_letter')").fetchone() == (None,):
            return False
        return connection.execute("SELECT count(*) FROM upwell.dead_letter").fetchone() == (count,)


@contextmanager
def _databases(server: PostgresServer) -> Iterator[tuple[str, str]]:
    """Two, with a role each whose password is a canary. Their URLs are without passwords."""
    with ExitStack() as closing_up:
        urls = []
        for secret in ("CANARY_SOURCE", "CANARY_TARGET"):
            name = f"sec_{uuid.uuid4().hex[:10]}"
            password = SECRETS[secret].replace("'", "''")
            with server.connect() as connection:
                connection.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{password}'".encode())
            closing_up.callback(_drop_role, server, name)
            server.create_database(name)
            closing_up.callback(server.drop_database, name)
            parts = urlsplit(server.url(name))
            host = parts.netloc.rpartition("@")[2]
            user = f"{name}:{quote(SECRETS[secret], safe='')}"
            urls.append(urlunsplit(parts._replace(netloc=f"{user}@{host}")))
        yield urls[0], urls[1]


def _drop_role(server: PostgresServer, name: str) -> None:
    with server.connect() as connection:
        connection.execute(f"DROP ROLE {name}".encode())


def _with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    user = parts.netloc.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"))


def _basic(secret: str) -> str:
    return "Basic " + base64.b64encode(f"corp:{SECRETS[secret]}".encode()).decode()


def _insert(source: str, rows: int, *, refused: int = 0, large: int = 0) -> None:
    ssn, card, birth = MASKED
    for number in range(rows):
        name = f"{PLAIN[0]} {number}"
        name += " refused" if number < refused else " " * 500_000 if number < large else ""
        values = ", ".join(f"'{value} {number}'" for value in (PLAIN[1], name, ssn, card, birth))
        _execute(source, f"INSERT INTO people VALUES ({values})")


def _execute(url: str, statement: str) -> None:
    if url.startswith("postgresql://"):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement.encode())
        return
    with closing(sqlite3.connect(url)) as database:
        database.execute(statement)
        database.commit()
