"""Clients of a service that a test plays."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.fake_aws import FakeService, Request, ok
from upwell.aws import AwsService


def connect(fake: FakeService, **options: Any) -> AwsService:
    return AwsService("dynamodb", "eu-west-1", endpoint_url=fake.url, **options)


@contextmanager
def connected(fake: FakeService, **options: Any) -> Iterator[AwsService]:
    service = connect(fake, **options)
    try:
        yield service
    finally:
        service.close()


def echo(request: Request) -> bytes:
    return ok({"echo": request.payload})
