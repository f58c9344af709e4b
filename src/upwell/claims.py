"""The claim check: a row that is too large for its way waits in S3, and its event says where. docs/wire.md.

An object's name holds the source's position, the row's identity and a hash of the content: no two contents ever share
one, so that nothing is overwritten by a repeat, by a publisher that lost its lease, or by a changed configuration.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final, NamedTuple

from upwell.errors import Rejected
from upwell.model import ChangeEvent, unpack_version
from upwell.ports import ObjectStore

CONTENT_BYTES_MAX: Final = 32 * 1024 * 1024  # a row is held in memory several times while it is written
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Claim(NamedTuple):
    """Where a row's content waits: the object's key in the bucket, the content's SHA-256 in hex and its length."""

    object: str
    sha256: str
    bytes: int

    @classmethod
    def from_wire(cls, wire: Any) -> Claim:
        """Of an object with these three members. Raises KeyError, TypeError or ValueError where it is not one."""
        claim = cls(str(wire["object"]), str(wire["sha256"]), int(wire["bytes"]))
        if not _SHA256.fullmatch(claim.sha256) or claim.bytes < 0:
            raise ValueError("no claim")
        return claim


class Upload(NamedTuple):
    """What must be in the bucket before the event that refers to it may be sent."""

    claim: Claim
    content: bytes


class Claims:
    """One pipeline's part of a bucket. Threads share it."""

    def __init__(self, store: ObjectStore, prefix: str, pipeline: str) -> None:
        """`prefix` ends with a slash, or is empty."""
        self._store = store
        self._place = f"{prefix}{pipeline}/"

    def upload(self, event: ChangeEvent, content: bytes) -> Upload:
        """The claim for an event's content; nothing is sent yet. Raises Rejected where it is too large even so."""
        size = max(len(content), len(event.row or b""))
        if size > CONTENT_BYTES_MAX:
            raise Rejected(
                f"its row would take {size:,} bytes; by way of the claim check at most {CONTENT_BYTES_MAX:,} go"
            )
        epoch = unpack_version(event.version)[0]
        row = hashlib.sha256(event.schema.table.encode() + b"\0" + event.key).hexdigest()[:32]
        sha256 = hashlib.sha256(content).hexdigest()
        key = f"{self._place}{epoch:08x}/{event.version.hex()}/{row}-{sha256[:16]}"
        return Upload(Claim(key, sha256, len(content)), content)

    def put(self, upload: Upload) -> None:
        """One attempt. Raises TransientError or OperatorError."""
        self._store.put(upload.claim.object, upload.content)

    def content(self, claim: Claim) -> bytes:
        """What was put. One attempt; raises Rejected where it can never be had, TransientError, OperatorError.

        Nothing outside of the pipeline's own part of its own bucket is ever asked for, whatever an event says.
        """
        rest = claim.object.removeprefix(self._place)
        if rest == claim.object or not _REST.fullmatch(rest):
            raise Rejected(f"its row is claimed to be outside of {self._place} in the bucket of the claim check")
        if claim.bytes > CONTENT_BYTES_MAX:
            raise Rejected(f"its row is claimed to have {claim.bytes:,} bytes; at most {CONTENT_BYTES_MAX:,} are read")
        content = self._store.get(claim.object)
        if content is None:
            raise Rejected(f"the object {claim.object} that holds its row is not in the bucket any more")
        if len(content) != claim.bytes or hashlib.sha256(content).hexdigest() != claim.sha256:
            raise Rejected(f"the object {claim.object} does not hold what was put there: its SHA-256 is another")
        return content

    def probe(self) -> Upload:
        """A few bytes, by which can be tried whether the bucket may be written and read."""
        content = b"written by upwell doctor"
        digest = hashlib.sha256(content).hexdigest()
        return Upload(Claim(f"{self._place}{0:08x}/{0:032x}/{0:032x}-{digest[:16]}", digest, len(content)), content)

    def close(self) -> None:
        """Free connections; never raises."""
        self._store.close()


_REST = re.compile(r"[0-9a-f]{8}/[0-9a-f]{32}/[0-9a-f]{32}-[0-9a-f]{16}")
