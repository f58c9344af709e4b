"""From a database through the publisher's role into tables, and out by API Gateway, by real HTTP and with IAM enforced.

The stacks are those that `upwell stack` writes. Of the package only the dependencies are not inside: the functions of
ministack run in its own Python, and take them from the environment of the tests.
"""

import http.client
import json
import os
import subprocess
import sys
import sysconfig
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from lab.ministack import ACCOUNT, Ministack
from lab.part import LOOPBACK
from lab.parts import REGION, PostgresServer
from tests.identity_provider import AUDIENCE, ISSUER, IdentityProvider
from tests.sqlserver_databases import connect, fresh_database
from tests.stack_deployed import Deployed, put_code
from upwell.app.stack import stack
from upwell.app.stacks import package

UPWELL = Path(sys.executable).with_name("upwell")
CONFIG = """
pipeline: {name}
source: {{url: "{url}"}}
destination:
  dynamodb: {{table_prefix: "{name}-", region: {region}, create_tables: false}}
api:
  cursor_key: ${{UPWELL_CURSOR_KEY}}
  authorization: {authorization}
  tables:
    users:
      table: users
      columns: [id, full_name, country]
      tenant: tenant
      indexes: {{by-country: {{partition_key: country, sort_key: full_name}}}}
tables: {{users: {{}}, notes: {{}}}}
"""
TABLES = (
    "CREATE TABLE users (id int NOT NULL PRIMARY KEY, full_name varchar(20), country varchar(2), tenant varchar(9))",
    "CREATE TABLE notes (id int NOT NULL PRIMARY KEY, text varchar(20))",
)
ROWS = ("(1, 'Ada', 'GB', 'a')", "(2, 'Bob', 'DE', 'a')", "(3, 'Eve', 'DE', 'b')")


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Shop:
    """A pipeline whose cloud side is deployed, with what it has published."""

    def __init__(self, aws: Ministack, folder: Path, url: str, authorization: Mapping[str, Any]) -> None:
        """`url`: of the database, where the tables are already."""
        self.aws, self.folder, self.name = aws, folder, f"t{uuid.uuid4().hex[:8]}"
        text = CONFIG.format(name=self.name, url=url, region=REGION, authorization=json.dumps(authorization))
        self.file = folder / "upwell.yaml"
        self.file.write_text(text, encoding="utf-8")
        self.run("track")
        self.run("api", "--learn", UPWELL_CURSOR_KEY="x" * 32)
        self.serverless = self._deployed()
        user = aws.client("iam").create_user(UserName=self.name)["User"]
        keys = aws.client("iam").create_access_key(UserName=self.name)["AccessKey"]
        self.user = Credentials(keys["AccessKeyId"], keys["SecretAccessKey"])
        self._allow(self.name, "become", "sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/*")
        template = stack("publisher-access", self.file, {}).template()
        self.access = Deployed(aws, f"{self.name}p", template, TrustedPrincipalArn=user["Arn"])

    def _deployed(self) -> Deployed:
        made = stack("serverless", self.file, {})
        own = dict(package._upwell()) | made.beside_the_code()
        installed = f"\nimport sys\n\nsys.path.append({sysconfig.get_path('purelib')!r})\n"
        own["upwell/__init__.py"] += installed.encode()
        name = package.name_of(own)
        put_code(self.aws, name, own)
        return Deployed(self.aws, self.name, made.template(name), AuthorizerCacheSeconds="0")

    def _allow(self, user: str, name: str, action: str, resource: str) -> None:
        statement = {"Effect": "Allow", "Action": action, "Resource": resource}
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self.aws.client("iam").put_user_policy(UserName=user, PolicyName=name, PolicyDocument=document)

    def may_ask(self, user: str) -> None:
        """The user may call the API."""
        api = self.serverless.resource("Api")
        place = f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{api}/live/GET/v1/*"
        self._allow(user, "ask", "execute-api:Invoke", place)

    def run(self, *arguments: str, **environ: str) -> str:
        """A command of upwell's, as the publisher."""
        own = {"AWS_ENDPOINT_URL": self.aws.url, "AWS_EC2_METADATA_DISABLED": "true"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run(
            [UPWELL, *arguments, "-c", self.file],
            capture_output=True,
            text=True,
            env={**kept, **own, **environ},
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def as_publisher(self, *arguments: str) -> str:
        """With the credentials that the role gives."""
        sts = self.aws.client("sts", self.user.access_key, self.user.secret_key)
        role = f"arn:aws:iam::{ACCOUNT}:role/{self.access.resource('Role')}"
        keys = sts.assume_role(RoleArn=role, RoleSessionName="publisher")["Credentials"]
        return self.run(
            *arguments,
            AWS_ACCESS_KEY_ID=keys["AccessKeyId"],
            AWS_SECRET_ACCESS_KEY=keys["SecretAccessKey"],
            AWS_SESSION_TOKEN=keys["SessionToken"],
        )

    def ask(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
        """Through API Gateway, by HTTP."""
        connection = http.client.HTTPConnection(LOOPBACK, self.aws.port, timeout=60)
        try:
            connection.request(method, f"/live{path}", headers={"Host": self.host, **(headers or {})})
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, told, answer.read())
        finally:
            connection.close()

    @property
    def host(self) -> str:
        return f"{self.serverless.resource('Api')}.execute-api.localhost:{self.aws.port}"

    def signed(self, path: str, keys: Credentials) -> dict[str, str]:
        """Headers of a request that is signed with AWS credentials."""
        request = AWSRequest("GET", f"http://{self.host}/live{path}", headers={"Host": self.host})
        SigV4Auth(keys, "execute-api", REGION).add_auth(request)
        return dict(request.headers.items())


@pytest.fixture
def postgres(postgres_cluster: PostgresServer, database: str) -> str:
    """The URL of a database with the shop's tables."""
    with postgres_cluster.connect(database) as connection:
        for statement in (*TABLES, *(f"INSERT INTO users VALUES {row}" for row in ROWS)):
            connection.execute(statement)
    return postgres_cluster.url(database)


@pytest.fixture
def sql_server(sqlserver: str) -> Iterator[str]:
    """The same of SQL Server, or of what stands in for it."""
    with fresh_database(sqlserver) as url, connect(url) as session:
        for statement in (*TABLES, *(f"INSERT INTO users VALUES {row}" for row in ROWS)):
            session.run(statement)
        yield url


@pytest.fixture(scope="module")
def provider() -> Iterator[tuple[IdentityProvider, str]]:
    """An identity provider, and where it publishes its keys."""
    known = IdentityProvider()

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = known.fetch()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer((LOOPBACK, 0), Keys)
    thread = threading.Thread(target=lambda: server.serve_forever(0.05), daemon=True)
    thread.start()
    yield known, f"http://{LOOPBACK}:{server.server_address[1]}/keys"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_was_published_is_read_by_those_who_may(
    ministack: Ministack, postgres: str, provider: tuple[IdentityProvider, str], tmp_path: Path
) -> None:
    who, keys = provider
    jwt = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": keys, "tenant_claim": "tenant"}
    shop = Shop(ministack, tmp_path, postgres, {"jwt": jwt})
    assert "PutItem is allowed" in shop.as_publisher("doctor")
    shop.as_publisher("publish", "--once")

    ada = who.bearer(tenant="a")
    got = shop.ask("/v1/users/1", ada)
    assert (got.status, got.json) == (200, {"id": 1, "full_name": "Ada", "country": "GB"})
    assert "x-data-as-of" in got.headers
    assert shop.ask("/v1/users/1", {**ada, "If-None-Match": got.headers["etag"]}).status == 304
    found = shop.ask("/v1/users?index=by-country&country=DE", ada)
    assert [row["id"] for row in found.json["items"]] == [2]
    # The publisher has ended: the API answers all the same, and says how old the data are.
    fresh = shop.ask("/v1/_freshness", ada).json
    assert fresh["tables"]["users"]["complete"] is True
    assert fresh["age_s"] > 0
    deadline = time.monotonic() + 30
    while (later := shop.ask("/v1/_freshness", ada).json)["age_s"] <= fresh["age_s"]:  # in tenths of a second
        assert time.monotonic() < deadline
    assert later["as_of"] == fresh["as_of"]
    assert shop.ask("/openapi.json", ada).status == 200
    assert shop.ask("/healthz").status == 200  # of nobody, by nobody

    refused = {
        "without a token": shop.ask("/v1/users/1"),
        "with something else": shop.ask("/v1/users/1", {"Authorization": "Basic YTpi"}),
        "of another issuer": shop.ask("/v1/users/1", who.bearer(tenant="a", iss="https://evil.example")),
        "expired": shop.ask("/v1/users/1", who.bearer(tenant="a", exp=1)),
    }
    assert {name: answer.status for name, answer in refused.items()} == dict.fromkeys(refused, 401)
    anothers = shop.ask("/v1/users/3", ada)
    nobodys = shop.ask("/v1/users/4", ada)
    assert anothers.status == nobodys.status == 404
    assert anothers.body == nobodys.body
    # What is published and not shown, and what there is not, the gateway does not even know.
    for path in ("/v1/notes/1", "/v1/nothing", "/"):
        assert shop.ask(path, ada).status in (403, 404)
    assert shop.ask("/v1/users/1", ada, "DELETE").status in (403, 404, 405)


def test_callers_with_aws_credentials(ministack: Ministack, sql_server: str, tmp_path: Path) -> None:
    name = f"c{uuid.uuid4().hex[:8]}"
    caller = ministack.client("iam").create_user(UserName=name)["User"]
    shop = Shop(ministack, tmp_path, sql_server, {"iam": {"tenants": {caller["Arn"]: "b"}}})
    shop.as_publisher("publish", "--once")
    keys = ministack.client("iam").create_access_key(UserName=name)["AccessKey"]
    own = Credentials(keys["AccessKeyId"], keys["SecretAccessKey"])
    path = "/v1/users/3"
    assert shop.ask(path).status == 403  # not signed
    assert shop.ask(path, shop.signed(path, own)).status == 403  # signed by who may not call
    assert shop.ask(path, shop.signed(path, Credentials(own.access_key, "wrong"))).status == 403
    shop.may_ask(name)
    got = shop.ask(path, shop.signed(path, own))
    assert (got.status, got.json["full_name"]) == (200, "Eve"), got.body
    assert shop.ask("/v1/users/1", shop.signed("/v1/users/1", own)).status == 404
    shop.may_ask(shop.name)  # by its policy; but it is none of those that the configuration names
    assert shop.ask(path, shop.signed(path, shop.user)).status == 403
