"""Whatever stands in for DynamoDB passes the contract, with its deviations named; and so does DynamoDB itself.

UPWELL_TEST_DYNAMODB_URL=https://dynamodb.eu-central-1.amazonaws.com, with credentials in the environment, runs it
against AWS: a few minutes, and a few cents.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from lab.parts import StandinDynamoDb
from tests.contract.dynamodb_service_contract import (
    Deviation,
    DynamoDbServiceContract,
    DynamoDbThrottlingContract,
    refused,
)

OTHER = "UPWELL_TEST_DYNAMODB_URL" in os.environ
DYNAMODB_LOCAL = frozenset[Deviation]({"never throttles", "one table for names that differ by case"})


class TestDynamoDb(DynamoDbServiceContract):
    """DynamoDB Local, or what UPWELL_TEST_DYNAMODB_URL names: that is taken for DynamoDB, without deviations."""

    deviations = frozenset() if OTHER else DYNAMODB_LOCAL

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls, dynamodb_endpoint: str) -> str:
        return dynamodb_endpoint


class TestDynamoDbThrottling(DynamoDbThrottlingContract):
    """As above."""

    deviations = TestDynamoDb.deviations

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls, dynamodb_endpoint: str) -> str:
        return dynamodb_endpoint


class TestStandin(DynamoDbServiceContract):
    """Our own, as fast as it can."""

    deviations = frozenset({"takes reserved words"})

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls, standin_dynamodb_endpoint: str) -> str:
        return standin_dynamodb_endpoint

    def test_what_it_does_not_know_it_refuses(self, client: Any, table: str) -> None:
        assert refused(lambda: client.scan(TableName=table, Segment=0, TotalSegments=2)) == "NotInStandin"
        nested = {"ConditionExpression": "attribute_exists(a.b)"}
        assert refused(lambda: client.put_item(TableName=table, Item={"id": {"S": "1"}}, **nested)) == "NotInStandin"


class TestStandinWithLimits(DynamoDbThrottlingContract):
    """Our own, with AWS's limits."""

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls) -> Iterator[str]:
        with StandinDynamoDb(limits=1) as standin:
            yield standin.url


class TestStandinWithoutLimits(DynamoDbThrottlingContract):
    """Our own, as fast as it can."""

    deviations = frozenset({"never throttles"})

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls, standin_dynamodb_endpoint: str) -> str:
        return standin_dynamodb_endpoint
