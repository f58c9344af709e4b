"""Objects in one S3 bucket: put and got whole, one attempt each.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from upwell import rights
from upwell.aws import AwsTime, Credentials, Place
from upwell.aws_errors import ServiceRefusal, translate
from upwell.errors import OperatorError, UpwellError
from upwell.http1 import Answer, Connection, Route
from upwell.sigv4 import Keys, object_head

ASKED_BYTES_MIN: Final = 256 * 1024  # from this on a body waits for S3's leave
_NOTHING = hashlib.sha256(b"").hexdigest()
OBJECT_BYTES_MAX: Final = 32 * 1024 * 1024  # as large as a claim's content can be
_IDLE_MAX = 4  # connections
_REFUSED_KEYS = ("UW-AWS-005", "UW-AWS-006")


class S3Bucket:
    """Implements ports.ObjectStore, for keys of which no character needs an escape in a path. Threads share it."""

    def __init__(
        self,
        bucket: str,
        region: str | None = None,
        *,
        kms_key: str | None = None,
        endpoint_url: str | None = None,
        proxy: str | None = None,
        ca_bundle: str | None = None,
    ) -> None:
        """Connects to nothing yet. Without `kms_key` the bucket's own encryption holds, of which there always is one.

        Raises ConfigError, or OperatorError where no region is known.
        """
        self.bucket = bucket
        self._kms_key = kms_key
        place = Place.find("s3", region, endpoint_url, proxy, ca_bundle)
        self.region = place.region
        parts = urlsplit(place.url)
        aws = ".amazonaws.com" in (parts.hostname or "")
        if aws and endpoint_url is None and "." not in bucket:  # with a dot the certificate would not match
            place = Place(place.region, f"{parts.scheme}://{bucket}.{parts.netloc}", proxy, place.ca_bundle)
            self._path = "/"
        else:
            self._path = f"{parts.path.rstrip('/')}/{bucket}/"
        self._host = place.host_header
        self._route = place.route()
        self._credentials = Credentials(place)
        self._time = AwsTime()
        self._idle: list[Connection] = []
        self._mutex = threading.Lock()

    @property
    def route(self) -> Route:
        """How the bucket is reached."""
        return self._route

    def put(self, key: str, content: bytes) -> None:
        """See ports.ObjectStore. Raises TransientError or OperatorError."""
        headers = {"host": self._host}
        if self._kms_key is not None:
            headers["x-amz-server-side-encryption"] = "aws:kms"
            headers["x-amz-server-side-encryption-aws-kms-key-id"] = self._kms_key
        self._exchange("PUT", key, headers, content, hashlib.sha256(content).hexdigest())

    def get(self, key: str) -> bytes | None:
        """See ports.ObjectStore. Raises TransientError or OperatorError."""
        try:
            return bytes(self._exchange("GET", key, {"host": self._host}, b"", _NOTHING).body)
        except ServiceRefusal as refusal:
            if refusal.reason == "NoSuchKey":
                return None
            raise

    def close(self) -> None:
        """Free connections; never raises."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(self, method: str, key: str, headers: dict[str, str], body: bytes, sha256: str) -> Answer:
        keys = self._credentials.current()
        head = object_head(
            method,
            self._path + key,
            headers,
            sha256,
            len(body),
            region=self.region,
            keys=keys,
            now=self._time.now(),
        )
        connection = self._connection()
        try:
            if len(body) < ASKED_BYTES_MIN:
                connection.send(head, body)
                answer = connection.receive()
            elif connection.offer(head.removesuffix(b"\r\n") + b"Expect: 100-continue\r\n\r\n"):
                connection.send(b"", body)
                answer = connection.receive()
            else:
                answer = connection.receive()
                connection.close()
        finally:
            self._give_back(connection)
        self._time.note(answer)
        if answer.status != 200:
            raise self._failure(answer, method, key, keys)
        return answer

    def _failure(self, answer: Answer, method: str, key: str, keys: Keys) -> UpwellError:
        error = translate("s3", answer)
        if error.code in _REFUSED_KEYS:
            self._credentials.forget(keys)
        if isinstance(error, ServiceRefusal):
            if error.reason == "NoSuchBucket":
                return no_such_bucket(self.bucket, self.region)
            if error.reason != "NoSuchKey":
                return OperatorError(
                    f"S3 refuses a request for the bucket {self.bucket}: {error.message}",
                    code="UW-CC-002",
                    remedy=f"aws s3api get-bucket-location --bucket {self.bucket}",
                )
        if error.code == "UW-AWS-004":
            return _denied(self.bucket, method, key)
        return error

    def _connection(self) -> Connection:
        while True:
            with self._mutex:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return Connection(self._route, OBJECT_BYTES_MAX)
            if connection.alive():
                return connection
            connection.close()

    def _give_back(self, connection: Connection) -> None:
        with self._mutex:
            if connection.reusable and len(self._idle) < _IDLE_MAX:
                self._idle.append(connection)
                return
        connection.close()


def no_such_bucket(bucket: str, region: str) -> OperatorError:
    """The bucket is not there, with the command that makes it."""
    # S3's first region is the one that may not be named: InvalidLocationConstraint.
    place = "" if region == "us-east-1" else f" --create-bucket-configuration LocationConstraint={region}"
    return OperatorError(
        f"The S3 bucket {bucket} does not exist.",
        code="UW-CC-001",
        remedy=f"aws s3api create-bucket --bucket {bucket} --region {region}{place}",
    )


def _denied(bucket: str, method: str, key: str) -> OperatorError:
    objects = f"arn:aws:s3:::{bucket}/{key.rsplit('/', 3)[0]}/*"  # the pipeline's part: see claims.py
    if method == "PUT":
        statement = _statement(rights.PUT_CLAIMS, objects)
    else:
        statement = (
            f"{_statement(rights.GET_CLAIMS, objects)}, {_statement(rights.MISS_CLAIMS, f'arn:aws:s3:::{bucket}')}"
        )
    return OperatorError(
        f"AWS denies {'writing' if method == 'PUT' else 'reading'} objects in the bucket {bucket}.",
        code="UW-CC-003",
        remedy=f"Add to the policy of these credentials: {statement}; where kms_key is set, also "
        f"{', '.join(rights.ENCRYPT if method == 'PUT' else rights.DECRYPT)} on that key.",
    )


def _statement(actions: Sequence[str], resource: str) -> str:
    return json.dumps({"Effect": "Allow", "Action": list(actions), "Resource": resource})
