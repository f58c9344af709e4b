"""Cursors: where a listing goes on, sealed, so that nobody can read, change, lend or keep them for long.

Fernet encrypts and signs, and dates what it seals: https://github.com/fernet/spec. Encrypted, because where a page ends
may be the key of a row that is not the caller's. For the same reason the tag of a page is made with a key: whoever
guesses what a plain hash was made of can prove it.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import Any, Final

import orjson

from upwell.cloud.answers import Problem
from upwell.ports import Clock

CURSOR_S: Final = 3600
_PURPOSE: Final = b"upwell read api cursor 1"
_PURPOSE_OF_TAGS: Final = b"upwell read api tag 1"


class Cursors:
    """Makes and opens cursors. Threads share it."""

    def __init__(self, key: str, clock: Clock) -> None:
        """All processes of an API have the same key; with another one every cursor is void."""
        from cryptography.fernet import Fernet

        self._fernet = Fernet(urlsafe_b64encode(hmac.digest(key.encode(), _PURPOSE, hashlib.sha256)))
        self._tag_key = hmac.digest(key.encode(), _PURPOSE_OF_TAGS, hashlib.sha256)
        self._clock = clock

    def seal(self, bound_to: Sequence[Any], after: Any) -> str:
        """`bound_to`: whose listing of what this is; it can be opened for the same only."""
        content = orjson.dumps([_digest(bound_to), after])
        return self._fernet.encrypt_at_time(content, int(self._clock.now())).decode().rstrip("=")

    def open(self, bound_to: Sequence[Any], cursor: str) -> Any:
        """What was sealed. Raises Problem: whatever is wrong with a cursor, the answer is the same."""
        from cryptography.fernet import InvalidToken

        refused = Problem(403, "The cursor is not valid here, or has expired; begin again without it.")
        try:
            token = cursor.encode() + b"=" * (-len(cursor) % 4)
            content = self._fernet.decrypt_at_time(token, CURSOR_S, int(self._clock.now()))
            digest, after = orjson.loads(content)
        except (InvalidToken, ValueError, TypeError) as error:
            raise refused from error
        if not hmac.compare_digest(digest, _digest(bound_to)):
            raise refused
        return after

    def tag(self, content: bytes) -> str:
        """The same for the same content, from every process of the API."""
        return hmac.digest(self._tag_key, content, hashlib.sha256).hex()[:32]


def _digest(bound_to: Sequence[Any]) -> str:
    return hashlib.sha256(orjson.dumps(bound_to)).hexdigest()
