"""Regions and the addresses of services."""

import pytest

from upwell.aws import AwsService
from upwell.errors import ConfigError, OperatorError


@pytest.mark.parametrize(
    ("service", "region", "url"),
    [
        ("kinesis", "eu-west-1", "https://kinesis.eu-west-1.amazonaws.com"),
        ("dynamodb", "cn-north-1", "https://dynamodb.cn-north-1.amazonaws.com.cn"),
        ("kinesis", "us-gov-west-1", "https://kinesis.us-gov-west-1.amazonaws.com"),
    ],
)
def test_the_endpoint_is_awss_own(service: str, region: str, url: str) -> None:
    assert AwsService(service, region).endpoint_url == url


def test_region_and_endpoint_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", "https://vpce-1.kinesis.example")
    service = AwsService("kinesis")
    assert (service.region, service.endpoint_url) == ("eu-central-1", "https://vpce-1.kinesis.example")
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    assert AwsService("dynamodb", "us-east-1").endpoint_url == "https://dynamodb-fips.us-east-1.amazonaws.com"


def test_both_names_of_the_region_are_known_and_the_newer_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert AwsService("kinesis").region == "eu-north-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    assert AwsService("kinesis").region == "eu-north-1"


def test_without_a_region_nothing_starts() -> None:
    with pytest.raises(OperatorError) as raised:
        AwsService("kinesis")
    assert raised.value.code == "UW-AWS-019"


@pytest.mark.parametrize("url", ["kinesis.example", "ftp://kinesis.example", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        AwsService("kinesis", "eu-west-1", endpoint_url=url)
    assert raised.value.code == "UW-AWS-019"
