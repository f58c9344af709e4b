"""The S3 client over real sockets, and what boto3 says to what it wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import boto3
import pytest

from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY
from tests.fake_s3 import FakeS3
from upwell import http1
from upwell.claims import CONTENT_BYTES_MAX
from upwell.errors import OperatorError, TransientError
from upwell.s3 import S3Bucket, no_such_bucket

BUCKET = "claims-of-a-test"
KEY = "upwell/shop/00000001/0000/abc-def"


@pytest.fixture(autouse=True)
def _known_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower() in ("https_proxy", "http_proxy", "no_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)


@pytest.fixture
def fake() -> Iterator[FakeS3]:
    with FakeS3(BUCKET) as fake:
        yield fake


@pytest.fixture
def bucket(fake: FakeS3) -> Iterator[S3Bucket]:
    with closing(S3Bucket(BUCKET, REGION, endpoint_url=fake.url)) as bucket:
        yield bucket


@pytest.mark.parametrize("content", [b"", b"some", os.urandom(3_000_000)], ids=len)
def test_what_was_put_is_got_also_by_boto3(fake: FakeS3, bucket: S3Bucket, content: bytes) -> None:
    assert bucket.get(KEY) is None
    bucket.put(KEY, content)
    bucket.put(KEY, content)
    assert bucket.get(KEY) == content
    theirs = boto3.client(
        "s3",
        endpoint_url=fake.url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    )
    assert theirs.get_object(Bucket=BUCKET, Key=KEY)["Body"].read() == content
    theirs.close()


def test_the_key_of_kms_is_named_with_each_object(fake: FakeS3) -> None:
    with closing(S3Bucket(BUCKET, REGION, endpoint_url=fake.url, kms_key="alias/shop")) as bucket:
        bucket.put(KEY, b"secret")
    assert fake.headers[KEY]["x-amz-server-side-encryption"] == "aws:kms"
    assert fake.headers[KEY]["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/shop"


def test_temporary_credentials_go_with_their_token(
    fake: FakeS3, monkeypatch: pytest.MonkeyPatch, bucket: S3Bucket
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "for an hour")
    with closing(S3Bucket(BUCKET, REGION, endpoint_url=fake.url)) as temporary:
        temporary.put(KEY, b"some")
    assert fake.headers[KEY]["x-amz-security-token"] == "for an hour"


def test_away_is_transient_and_it_comes_back(fake: FakeS3, bucket: S3Bucket) -> None:
    bucket.put(KEY, b"some")
    fake.go_away()
    for _ in range(3):
        with pytest.raises(TransientError):
            bucket.put(KEY, b"more")
        with pytest.raises(TransientError):
            bucket.get(KEY)
    fake.come_back()
    assert bucket.get(KEY) == b"some"


def test_a_large_body_waits_for_leave_and_is_not_sent_to_be_refused(fake: FakeS3, bucket: S3Bucket) -> None:
    large = os.urandom(3_000_000)
    bucket.put(KEY, large)
    assert fake.invited == 1
    assert bucket.get(KEY) == large
    fake.writable = False
    with pytest.raises(OperatorError) as denied:
        bucket.put(KEY, large)
    assert denied.value.code == "UW-CC-003"
    fake.writable, fake.failing = True, True
    with pytest.raises(TransientError):
        bucket.put(KEY, large)
    fake.failing = False
    bucket.put(KEY, large)
    bucket.put(KEY, b"small")
    assert fake.invited == 2


def test_who_does_not_know_the_question_gets_the_body_all_the_same(
    fake: FakeS3, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "EXPECT_S", 0.05)
    monkeypatch.setattr(BaseHTTPRequestHandler, "handle_expect_100", lambda _: True)
    large = os.urandom(3_000_000)
    bucket.put(KEY, large)
    assert bucket.get(KEY) == large


def test_the_largest_content_comes_back(bucket: S3Bucket) -> None:
    largest = bytes(CONTENT_BYTES_MAX)
    bucket.put(KEY, largest)
    assert bucket.get(KEY) == largest


def test_what_only_a_person_can_mend(fake: FakeS3, bucket: S3Bucket) -> None:
    fake.writable = fake.readable = False
    with pytest.raises(OperatorError) as denied:
        bucket.put(KEY, b"some")
    assert denied.value.code == "UW-CC-003"
    assert f"arn:aws:s3:::{BUCKET}/upwell/shop/*" in denied.value.remedy
    assert "s3:PutObject" in denied.value.remedy
    with pytest.raises(OperatorError) as denied:
        bucket.get(KEY)
    assert "s3:GetObject" in denied.value.remedy
    assert "s3:ListBucket" in denied.value.remedy
    with closing(S3Bucket("another", REGION, endpoint_url=fake.url)) as missing, pytest.raises(OperatorError) as gone:
        missing.put(KEY, b"some")
    assert gone.value.code == "UW-CC-001"
    assert gone.value.remedy.endswith(f"LocationConstraint={REGION}")


def test_the_first_region_is_not_named_when_a_bucket_is_made() -> None:
    assert "LocationConstraint" not in no_such_bucket(BUCKET, "us-east-1").remedy


def test_aws_names_the_bucket_in_the_host_where_a_certificate_can() -> None:
    assert S3Bucket(BUCKET, REGION).route.host == f"{BUCKET}.s3.{REGION}.amazonaws.com"
    assert S3Bucket("with.dots", REGION).route.host == f"s3.{REGION}.amazonaws.com"


def test_wrong_keys_are_told(fake: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with closing(S3Bucket(BUCKET, REGION, endpoint_url=fake.url)) as bucket, pytest.raises(OperatorError) as refused:
        bucket.put(KEY, b"some")
    assert refused.value.code == "UW-AWS-005"
