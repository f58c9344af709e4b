"""AWS Signature Version 4: for JSON services (POST to one path, a fixed set of signed headers), and for S3's objects.

The rules: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
A signature costs two SHA-256 and one HMAC: what is the same for a second's requests is prepared once.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import NamedTuple


class Keys(NamedTuple):
    """Credentials as AWS takes them; `token` only where they are temporary."""

    access_key: str
    secret_key: str
    token: str | None

    def __repr__(self) -> str:
        return f"Keys({self.access_key})"  # the rest is secret, and a repr ends up in logs


class _Prepared(NamedTuple):
    """What all requests of one action, with one set of keys, within one second have in common."""

    second: int
    keys: Keys
    head: bytes  # the request from its first line to the end of `SignedHeaders=...,Signature=`
    canonical: hashlib._Hash  # has taken the canonical request up to the body's hash
    to_sign: bytes  # up to the hash of the canonical request
    key: bytes


class Signer:
    """Makes the heads of signed HTTP requests for one service at one address."""

    def __init__(self, service: str, region: str, host: str, path: str, content_type: str) -> None:
        """`host` as in the Host header, with its port unless that is the scheme's own."""
        self._service = service
        self._region = region
        self._host = host
        self._path = path
        self._content_type = content_type
        self._prepared: dict[str, _Prepared] = {}
        self._signing_key: tuple[str, str, bytes] = ("", "", b"")  # day, secret, key

    def head(self, target: str, body: bytes, keys: Keys, now: float) -> bytes:
        """The request's head, empty line included; `now` in seconds since 1970."""
        second = int(now)
        prepared = self._prepared.get(target)
        if prepared is None or prepared.second != second or prepared.keys is not keys:
            prepared = self._prepared[target] = self._prepare(target, keys, second)
        canonical = prepared.canonical.copy()
        canonical.update(hashlib.sha256(body).hexdigest().encode())
        to_sign = prepared.to_sign + canonical.hexdigest().encode()
        signature = hmac.digest(prepared.key, to_sign, "sha256").hex()
        return b"%b%b\r\nContent-Length: %d\r\n\r\n" % (prepared.head, signature.encode(), len(body))

    def _prepare(self, target: str, keys: Keys, second: int) -> _Prepared:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        day = stamp[:8]
        headers = {"content-type": self._content_type, "host": self._host, "x-amz-date": stamp}
        if keys.token is not None:
            headers["x-amz-security-token"] = keys.token
        headers["x-amz-target"] = target
        names = ";".join(headers)  # in the order of their names, which is the order of the canonical form
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        sent = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return _Prepared(
            second=second,
            keys=keys,
            head=(
                f"POST {self._path} HTTP/1.1\r\n{sent}Authorization: AWS4-HMAC-SHA256 "
                f"Credential={keys.access_key}/{scope}, SignedHeaders={names}, Signature="
            ).encode("ascii"),
            canonical=hashlib.sha256(f"POST\n{self._path}\n\n{lines}\n{names}\n".encode()),
            to_sign=f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n".encode(),
            key=self._key(day, keys.secret_key),
        )

    def _key(self, day: str, secret: str) -> bytes:
        """The day's signing key."""
        if self._signing_key[:2] != (day, secret):
            self._signing_key = (day, secret, _signing_key(day, secret, self._region, self._service))
        return self._signing_key[2]


def object_head(
    method: str, path: str, headers: Mapping[str, str], sha256: str, length: int, *, region: str, keys: Keys, now: float
) -> bytes:
    """The head of a request about one of S3's objects, empty line included.

    `path` is percent-encoded; `headers`, host among them, have lower-case names and are all signed; `sha256` and
    `length` are the body's. S3 refuses a body with another hash, so what arrives is what was meant.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(int(now)))
    day = stamp[:8]
    signed = {**headers, "x-amz-content-sha256": sha256, "x-amz-date": stamp}
    if keys.token is not None:
        signed["x-amz-security-token"] = keys.token
    signed = dict(sorted(signed.items()))
    names = ";".join(signed)
    lines = "".join(f"{name}:{value}\n" for name, value in signed.items())
    canonical = hashlib.sha256(f"{method}\n{path}\n\n{lines}\n{names}\n{sha256}".encode()).hexdigest()
    scope = f"{day}/{region}/s3/aws4_request"
    key = _signing_key(day, keys.secret_key, region, "s3")
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{canonical}".encode(), "sha256").hex()
    sent = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
    return (
        f"{method} {path} HTTP/1.1\r\n{sent}Authorization: AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}\r\nContent-Length: {length}\r\n\r\n"
    ).encode("ascii")


def _signing_key(day: str, secret: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
