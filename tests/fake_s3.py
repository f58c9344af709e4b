"""S3 in a thread: objects in memory, put and got whole, by path. It can go away and come back on its port.

It checks what AWS checks, by other means than ours: signatures by botocore, a body by the hash that was signed. What
it answers to mistakes is what the S3 API reference says; boto3 reads from it as from AWS.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from unittest import mock

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from lab.part import LOOPBACK, free_port
from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY

_CREDENTIAL = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+), ?Signature=")
_clock = threading.Lock()  # botocore's clock is set for one request at a time


@dataclass
class FakeS3:
    """One bucket. `objects`: key → content; `asked`: (method, key, status) of each request, in order."""

    bucket: str
    readable: bool = True
    writable: bool = True
    failing: bool = False  # it answers that it is not available
    invited: int = 0  # how many asked for leave to send a body, and got it
    objects: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)  # with which an object was put
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    _server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        self.port = free_port()
        self.come_back()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._server is not None:
            self.go_away()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def go_away(self) -> None:
        """Nobody listens any more; connections that are open are closed at their next request."""
        assert self._server is not None
        server, self._server = self._server, None
        server.shutdown()
        server.server_close()

    def come_back(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            do_PUT = do_GET = do_HEAD = lambda self: fake._serve(self)  # noqa: N815

            def handle_expect_100(self) -> bool:
                """As S3: who may not write is told before the body, and the connection ends."""
                if fake._server is not None and fake.writable and not fake.failing:
                    fake.invited += 1
                    return super().handle_expect_100()
                fake._serve(self, body_follows=False)
                return False

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def count(self, method: Literal["PUT", "GET"], status: int = 200) -> int:
        return sum(each[0] == method and each[2] == status for each in self.asked)

    def _serve(self, request: BaseHTTPRequestHandler, *, body_follows: bool = True) -> None:
        if self._server is None:
            request.close_connection = True
            return
        request.close_connection |= not body_follows
        body = request.rfile.read(int(request.headers.get("content-length") or 0)) if body_follows else b""
        bucket, _, key = request.path.split("?")[0].lstrip("/").partition("/")
        status, content = self._answer(request, bucket, key, body)
        self.asked.append((request.command, key, status))
        request.send_response_only(status)
        request.send_header("Date", formatdate(usegmt=True))
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    def _answer(self, request: BaseHTTPRequestHandler, bucket: str, key: str, body: bytes) -> tuple[int, bytes]:
        wrong = _wrong_signature(request, self.url)
        if wrong:
            return _error(403, wrong)
        if self.failing:
            return _error(503, "ServiceUnavailable")
        if bucket != self.bucket:
            return _error(404, "NoSuchBucket")
        if request.command == "PUT":
            if not self.writable:
                return _error(403, "AccessDenied")
            if hashlib.sha256(body).hexdigest() != request.headers["x-amz-content-sha256"]:
                return _error(400, "XAmzContentSHA256Mismatch")
            self.objects[key] = body
            self.headers[key] = {name.lower(): value for name, value in request.headers.items()}
            return 200, b""
        if not self.readable:
            return _error(403, "AccessDenied")
        return (200, self.objects[key]) if key in self.objects else _error(404, "NoSuchKey")


def _error(status: int, code: str) -> tuple[int, bytes]:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{code} &amp; so on</Message>'
    return status, f"{text}<RequestId>1</RequestId></Error>".encode()


def _wrong_signature(request: BaseHTTPRequestHandler, url: str) -> str:
    """S3's name for what is wrong with the signature, as botocore would have made it; empty where nothing is."""
    given = request.headers.get("authorization") or ""
    found = _CREDENTIAL.search(given)
    if found is None:
        return "AccessDenied"
    if found[1] != ACCESS_KEY_ID:
        return "InvalidAccessKeyId"
    signed = {name: request.headers[name] for name in found[3].split(";") if name not in ("host", "x-amz-date")}
    again = AWSRequest(request.command, f"{url}{request.path}", signed, b"")
    moment = datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    with _clock, mock.patch.object(botocore.auth, "get_current_datetime", return_value=moment):
        auth = botocore.auth.S3SigV4Auth(Credentials(ACCESS_KEY_ID, SECRET_ACCESS_KEY), "s3", found[2])
        with mock.patch.object(auth, "payload", return_value=request.headers["x-amz-content-sha256"]):
            auth.add_auth(again)
    same = again.headers["Authorization"].rpartition("Signature=")[2] == given.rpartition("Signature=")[2]
    return "" if same and found[2] == REGION else "SignatureDoesNotMatch"
