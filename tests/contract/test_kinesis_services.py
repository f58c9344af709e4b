"""Whatever stands in for Kinesis passes the contract, with its deviations named; and so does Kinesis itself.

UPWELL_TEST_KINESIS_URL=https://kinesis.eu-central-1.amazonaws.com, with credentials in the environment, runs it
against AWS: a quarter of an hour, and a few cents.
"""

import base64
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from lab.parts import StandinKinesis
from tests.contract.kinesis_service_contract import (
    Deviation,
    KinesisServiceContract,
    KinesisThrottlingContract,
    hash_keys,
    refused,
    shards,
)

TOO_OLD_S = 301
# Kinesalite's own, published in its source: with them a test makes an iterator that is older than the server.
KINESALITE_KEY = bytes.fromhex("1133a5a833666b49abf28c8ba302930f0b2fb240dccd43cf4dfbc0ca91f17751")
KINESALITE_IV = bytes.fromhex("7bf139dbabbea2d9995d6fcae1dff7da")
KINESALITE = frozenset[Deviation](
    {
        "never throttles",
        "calls of 5 MiB at most",
        "data of 1 MiB beside the key",
        "reads of any size",
        "always at the tip",
        "no child shards",
        "lists all shards at once",
        "no UpdateShardCount",
    }
)
OTHER = "UPWELL_TEST_KINESIS_URL" in os.environ


class TestKinesis(KinesisServiceContract):
    """Kinesalite, or what UPWELL_TEST_KINESIS_URL names: that is taken for Kinesis, without deviations."""

    deviations = frozenset() if OTHER else KINESALITE

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls, kinesis_endpoint: str) -> str:
        return kinesis_endpoint

    def expired_iterator(self, client: Any, stream: str, shard: str) -> str:
        if OTHER:
            return super().expired_iterator(client, stream, shard)
        answer = client.get_shard_iterator(StreamName=stream, ShardId=shard, ShardIteratorType="TRIM_HORIZON")
        return aged(answer["ShardIterator"])


class TestKinesisThrottling(KinesisThrottlingContract):
    """As above."""

    deviations = TestKinesis.deviations

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls, kinesis_endpoint: str) -> str:
        return kinesis_endpoint


class TestStandin(KinesisServiceContract):
    """Our own, as fast as it can."""

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls, standin_kinesis_endpoint: str) -> str:
        return standin_kinesis_endpoint

    def expired_iterator(self, client: Any, stream: str, shard: str) -> str:
        words = f"{time.time() - TOO_OLD_S}/{stream}/{shard}/0"
        return base64.b64encode(words.encode()).decode()

    def test_what_it_does_not_know_it_refuses(self, client: Any, stream: str) -> None:
        by_time = {"Type": "AT_TIMESTAMP", "Timestamp": 0}
        assert refused(lambda: client.list_shards(StreamName=stream, ShardFilter=by_time)) == "NotInStandin"

    def test_shards_are_filtered(self, client: Any, stream: str) -> None:
        """As KCL asks for them: which to begin with, which are open, which came later."""
        first, second = shards(client, stream)
        middle = str((hash_keys(first)[0] + hash_keys(first)[1]) // 2)
        client.split_shard(StreamName=stream, ShardToSplit=first["ShardId"], NewStartingHashKey=middle)
        client.get_waiter("stream_exists").wait(StreamName=stream)

        def filtered(**of: str) -> list[str]:
            found, answer = [], client.list_shards(StreamName=stream, ShardFilter=of, MaxResults=1)
            while True:
                found += [shard["ShardId"] for shard in answer["Shards"]]
                if "NextToken" not in answer:
                    return found
                answer = client.list_shards(NextToken=answer["NextToken"], MaxResults=1)

        ids = [shard["ShardId"] for shard in shards(client, stream)]
        assert filtered(Type="AT_TRIM_HORIZON") == ids[:2] == [first["ShardId"], second["ShardId"]]
        assert filtered(Type="AT_LATEST") == ids[1:]
        assert filtered(Type="FROM_TRIM_HORIZON") == ids
        assert filtered(Type="AFTER_SHARD_ID", ShardId=ids[1]) == ids[2:]


class TestStandinWithLimits(KinesisThrottlingContract):
    """Our own, with AWS's limits."""

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls) -> Iterator[str]:
        with StandinKinesis(limits=1) as standin:
            yield standin.url


class TestStandinWithoutLimits(KinesisThrottlingContract):
    """Our own, as fast as it can."""

    deviations = frozenset({"never throttles"})

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls, standin_kinesis_endpoint: str) -> str:
        return standin_kinesis_endpoint


def aged(iterator: str) -> str:
    """Kinesalite's iterator, made TOO_OLD_S earlier."""
    cipher, padding = Cipher(algorithms.AES(KINESALITE_KEY), modes.CBC(KINESALITE_IV)), PKCS7(128)
    wire = base64.b64decode(iterator)
    opening, unpadding = cipher.decryptor(), padding.unpadder()
    plain = unpadding.update(opening.update(wire[8:]) + opening.finalize()) + unpadding.finalize()
    made_ms, _, rest = plain.decode().partition("/")
    sealing, pad = cipher.encryptor(), padding.padder()
    older = pad.update(f"{int(made_ms) - TOO_OLD_S * 1000:014}/{rest}".encode()) + pad.finalize()
    return base64.b64encode(wire[:8] + sealing.update(older) + sealing.finalize()).decode()
