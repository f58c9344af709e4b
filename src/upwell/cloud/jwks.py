"""The keys of an identity provider, fetched, kept and renewed within bounds.

A token can name any key: an unknown name makes us ask again, but only so often. While the provider can't be reached,
the keys that are known go on to be good, but only for so long.
"""

from __future__ import annotations

import http.client
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import orjson

from upwell.errors import TransientError
from upwell.ports import Clock

RENEW_S: Final = 300.0  # a key that the provider has withdrawn is good for so long at most
ASK_AGAIN_S: Final = 10.0  # after a key that is not known, or a failure
KEEP_S: Final = 6 * 3600.0  # without a word of the provider
FETCH_S: Final = 5.0
WAIT_S: Final = 1.0  # for another thread's attempt
STRANGERS_MAX: Final = 4  # threads that may wait so, for the key of a name that anybody may have made up
BYTES_MAX: Final = 256 * 1024
KEYS_MAX: Final = 100
RSA_BITS_MIN: Final = 2048

log = logging.getLogger("upwell.api")

Fetch = Callable[[], bytes]
# Signatures with a key that the provider alone has. Neither `none` nor a shared secret: with those, whoever knows the
# public key could sign.
_OF_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_ALLOWED: Final = frozenset({*_OF_RSA, "ES256", "ES384", "ES512", "EdDSA"})


class Key(NamedTuple):
    """A public key, and the algorithms of the signatures that it is for."""

    key: Any  # cryptography's
    algorithms: tuple[str, ...]


class Jwks:
    """Threads share it; one of them fetches at a time."""

    def __init__(self, fetch: Fetch, clock: Clock) -> None:
        """Fetches when it is first asked."""
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._strangers = threading.BoundedSemaphore(STRANGERS_MAX)
        self._keys: dict[str, Key] | None = None
        self._fetched_at = self._tried_at = float("-inf")

    def key(self, kid: str) -> Key | None:
        """The key of this name; None where the provider has none. Raises TransientError where it can't be asked."""
        now = self._clock.monotonic()
        keys = self._keys
        known = keys is not None and kid in keys
        if keys is None or now - self._fetched_at > RENEW_S or not known:
            keys = self._renewed(now, known)
        return keys.get(kid)

    def _renewed(self, now: float, known: bool) -> dict[str, Key]:
        # Who knows the key already does not wait for somebody else's attempt, and nobody waits long.
        if self._keys is None:
            self._take_turn(now, FETCH_S)
        elif known:
            self._take_turn(now, 0.0)
        elif self._strangers.acquire(blocking=False):
            try:
                self._take_turn(now, WAIT_S)
            finally:
                self._strangers.release()
        keys = self._keys
        if keys is None or self._clock.monotonic() - self._fetched_at > KEEP_S:
            raise TransientError("The identity provider's keys can't be had.", code="UW-AP-020")
        return keys

    def _take_turn(self, now: float, wait_s: float) -> None:
        if self._lock.acquire(timeout=wait_s):
            try:
                if now - self._tried_at > ASK_AGAIN_S:
                    self._try()
            finally:
                self._lock.release()

    def _try(self) -> None:
        self._tried_at = self._clock.monotonic()
        try:
            self._keys = _parsed(self._fetch())
            self._fetched_at = self._clock.monotonic()
        except (OSError, ValueError, TypeError, AttributeError, LookupError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            log.warning("the identity provider's keys could not be fetched: %s", reason, extra={"code": "UW-AP-020"})


def _parsed(content: bytes) -> dict[str, Key]:
    """kid → key, of those that can sign for us; what we can't read is somebody else's. Raises ValueError."""

    found = {}
    for written in orjson.loads(content)["keys"][:KEYS_MAX]:
        key = _key(written)
        if key is not None:
            found[str(written["kid"])] = key
    if not found:
        raise ValueError("no keys")
    return found


def _key(written: Mapping[str, Any]) -> Key | None:
    import jwt

    if not isinstance(written.get("kid"), str) or written.get("use", "sig") != "sig":
        return None
    if written.get("kty") not in ("RSA", "EC", "OKP") or not {written.get("alg", "EdDSA")} <= _ALLOWED:
        return None
    try:
        key = jwt.PyJWK.from_dict(dict(written))
    except jwt.PyJWTError:
        return None
    if written["kty"] == "RSA" and key.key.key_size < RSA_BITS_MIN:
        return None
    several = written["kty"] == "RSA" and "alg" not in written
    return Key(key.key, _OF_RSA if several else (key.algorithm_name,))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """The configured address is the one that is trusted."""


def fetch_from(url: str) -> Fetch:
    """By HTTPS, through the proxy of the environment."""
    opener = urllib.request.build_opener(_NoRedirects)

    def fetch() -> bytes:
        with opener.open(url, timeout=FETCH_S) as answer:
            content: bytes = answer.read(BYTES_MAX + 1)
        if len(content) > BYTES_MAX:
            raise ValueError("too long")
        return content

    return fetch
