"""The read API in both its homes: uvicorn by real HTTP, and Lambda by API Gateway's events."""

import asyncio
import http.client
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, urlsplit

import orjson
import uvicorn

from upwell.cloud.guard import Guard
from upwell.cloud.read_api_lambda import adapted

LOOPBACK = "127.0.0.1"


@dataclass
class Got:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Home(Protocol):
    """Where the application lives."""

    def ask(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Got: ...


@dataclass
class Http:
    """By real HTTP, a connection for each request."""

    port: int

    def ask(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Got:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=30)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            answer = connection.getresponse()
            body = answer.read()
            return Got(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)
        finally:
            connection.close()


@contextmanager
def served(app: Guard) -> Iterator[Http]:
    """uvicorn in a thread, as `upwell api` runs it."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind((LOOPBACK, 0))
    listening.listen()
    config = uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False, server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
    thread.start()
    try:
        yield Http(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@contextmanager
def gateway(app: Guard) -> Iterator[Http]:
    """What API Gateway does: each request becomes an event, one after the other."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            got = function[0].ask(self.path, dict(self.headers.items()), self.command)
            self.send_response_only(got.status)
            for name, value in {"content-length": str(len(got.body)), **got.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(got.body)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):
                return self.answer
            raise AttributeError(name)

        def log_message(self, *_: Any) -> None:
            pass

    def serve() -> None:
        with in_lambda(app) as home:
            function.append(home)
            server.serve_forever(0.05)

    function: list[Lambda] = []
    server = HTTPServer((LOOPBACK, 0), Handler)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield Http(int(server.server_address[1]))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Lambda:
    """By events as API Gateway (REST, proxy integration) sends them."""

    handle: Any
    user_arn: str | None = None

    def ask(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Got:
        answer = self.handle(event(path, headers or {}, method, self.user_arn), None)
        assert not answer["isBase64Encoded"]
        many = {name.lower(): values[-1] for name, values in (answer.get("multiValueHeaders") or {}).items()}
        one = {name.lower(): value for name, value in (answer.get("headers") or {}).items()}
        return Got(answer["statusCode"], {**many, **one}, answer["body"].encode())


@contextmanager
def in_lambda(app: Guard, user_arn: str | None = None) -> Iterator[Lambda]:
    """On this thread, as in Lambda."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield Lambda(adapted(app), user_arn)
    finally:
        loop.close()
        asyncio.set_event_loop(None)


def event(path: str, headers: Mapping[str, str], method: str = "GET", user_arn: str | None = None) -> dict[str, Any]:
    """https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html"""
    parts = urlsplit(path)
    query = parse_qsl(parts.query, keep_blank_values=True)
    sent: dict[str, list[str]] = {}
    for name, value in [("Host", "api.example"), ("X-Forwarded-For", "203.0.113.7"), *headers.items()]:
        sent.setdefault(name, []).append(value)
    return {
        "resource": "/{proxy+}",
        "path": parts.path,
        "httpMethod": method,
        "headers": {name: values[-1] for name, values in sent.items()},
        "multiValueHeaders": sent,
        "queryStringParameters": dict(query) or None,
        "multiValueQueryStringParameters": _many(query) or None,
        "pathParameters": {"proxy": parts.path.lstrip("/")},
        "stageVariables": None,
        "requestContext": {
            "resourceId": "2gxmpl",
            "resourcePath": "/{proxy+}",
            "httpMethod": method,
            "extendedRequestId": "JJbxmplHYosFVYQ=",
            "requestTime": "10/Mar/2026:00:03:59 +0000",
            "path": f"/Prod{parts.path}",
            "accountId": "123456789012",
            "protocol": "HTTP/1.1",
            "stage": "Prod",
            "domainPrefix": "70ixmpl4fl",
            "requestTimeEpoch": 1773100800000,
            "requestId": str(uuid.uuid4()),
            "identity": {
                "cognitoIdentityPoolId": None,
                "accountId": None,
                "cognitoIdentityId": None,
                "caller": None,
                "sourceIp": "203.0.113.7",
                "principalOrgId": None,
                "accessKey": None,
                "cognitoAuthenticationType": None,
                "cognitoAuthenticationProvider": None,
                "userArn": user_arn,
                "userAgent": "test",
                "user": None,
            },
            "domainName": "70ixmpl4fl.execute-api.eu-west-1.amazonaws.com",
            "apiId": "70ixmpl4fl",
        },
        "body": None,
        "isBase64Encoded": False,
    }


def _many(query: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in query:
        found.setdefault(name, []).append(value)
    return found


PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def key_text(*parts: object) -> str:
    """A key as docs/api.md tells callers to write it."""
    written = []
    for part in parts:
        text = str(part).lower() if isinstance(part, bool) else str(part)
        written.append("".join(c if c in PLAIN else "".join(f"~{byte:02X}" for byte in c.encode()) for c in text))
    return ",".join(written)


def query_text(**parameters: object) -> str:
    return "&".join(f"{quote(name)}={quote(str(value), safe='')}" for name, value in parameters.items())
