"""What a stack costs a month, about, at a given load: arithmetic over a list of prices and the template itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

import yaml

from upwell.app.stacks.blueprint import Blueprint
from upwell.app.stacks.serverless import READ_MEMORY_MB
from upwell.app.stacks.stream import MEMORY_MB

HOURS: Final = 730.0  # of a month
SECONDS: Final = HOURS * 3600
GB: Final = 1e9
MILLION: Final = 1e6
# Assumed, not measured on AWS: how long a function works at a request, and what it and the gateway write down of it.
READ_S: Final = 0.05
BATCH_S: Final = 0.2
LOGGED_BYTES: Final = 800
ENVELOPE_BYTES: Final = 60  # of a change, beside its row, in a packed record
HEARTBEATS: Final = SECONDS / 10
ZONES: Final = 2
_ENDPOINT: Final = "interface endpoint"


@dataclass(frozen=True)
class Load:
    """What is to be borne, on average."""

    events: float = 10.0  # changes a second
    row_bytes: int = 500
    reads: float = 10.0  # a second
    gigabytes: float = 10.0  # of rows at the destination


class Prices(NamedTuple):
    """A list of prices, where and when it held."""

    region: str
    date: str
    currency: str
    prices: Mapping[str, float]


class Line(NamedTuple):
    """A line of the bill."""

    what: str
    quantity: float
    unit: str
    price: float

    @property
    def amount(self) -> float:
        """Quantity times price."""
        return self.quantity * self.price


@cache
def price_list() -> Prices:
    """The list that comes with this version."""
    text = files(__package__).joinpath("prices.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    return Prices(content["region"], str(content["date"]), content["currency"], content["prices"])


def estimate(plan: Blueprint, template: Mapping[str, Any], load: Load, prices: Prices) -> list[Line]:
    """The lines of the bill, without those that come to nothing."""
    counts = Counter(map(_kind, template["Resources"].values()))
    p = prices.prices
    parts = [
        *(_tables(plan, load, p) if plan.tables else ()),
        *(_stream(load, p) if counts["Kinesis::Stream"] else ()),
        *(_database(counts, load, p) if counts["RDS::DBCluster"] else ()),
        *(_gateway(load, p) if counts["ApiGateway::RestApi"] else ()),
        *(_fleet(counts, load, p) if counts["AutoScaling::AutoScalingGroup"] else ()),
        *_rest(counts, load, p),
    ]
    return [line for line in parts if line.amount]


def _kind(resource: Mapping[str, Any]) -> str:
    """What a resource is paid as: endpoints of the kind Gateway cost nothing."""
    kind = resource["Type"].removeprefix("AWS::")
    return kind if resource.get("Properties", {}).get("VpcEndpointType") != "Interface" else _ENDPOINT


def _tables(plan: Blueprint, load: Load, p: Mapping[str, float]) -> Iterator[Line]:
    """An index holds a copy of each row: its own write, its own storage."""
    copies = 1 + sum(len(table.indexes) for table in plan.tables) / len(plan.tables)
    units = math.ceil((load.row_bytes + 100) / 1024) * copies
    written = load.events * SECONDS * units + (HEARTBEATS if plan.heartbeat else 0)
    yield Line("DynamoDB: writes", written / MILLION, "million units", p["dynamodb_write_million"])
    stored = load.gigabytes * copies
    yield Line("DynamoDB: storage", stored, "GB", p["dynamodb_gb_month"])
    yield Line("DynamoDB: restorable to any second", stored, "GB", p["dynamodb_restorable_gb_month"])
    if plan.api:
        read = load.reads * SECONDS * math.ceil(load.row_bytes / 4096)
        yield Line("DynamoDB: reads", read / MILLION, "million units", p["dynamodb_read_million"])


def _gateway(load: Load, p: Mapping[str, float]) -> Iterator[Line]:
    requests = load.reads * SECONDS
    yield Line("API Gateway", requests / MILLION, "million requests", p["api_gateway_million"])
    yield Line("Read function: requests", requests / MILLION, "million", p["lambda_requests_million"])
    yield Line("Read function: time", requests * READ_S * READ_MEMORY_MB / 1024, "GB-s", p["lambda_gb_second"])


def _stream(load: Load, p: Mapping[str, float]) -> Iterator[Line]:
    """A record is counted in steps of 1 KiB; packed ones are larger than that unless hardly anything happens."""
    rate = load.events * (load.row_bytes + ENVELOPE_BYTES)
    through = rate * SECONDS / GB
    yield Line("Kinesis: the stream", HOURS, "hours", p["kinesis_stream_hour"])
    yield Line("Kinesis: in", through, "GB", p["kinesis_in_gb"])
    yield Line("Kinesis: out", through, "GB", p["kinesis_out_gb"])
    yield Line("Kinesis: kept for seven days", rate * 6 * 86_400 / GB, "GB", p["kinesis_kept_gb_month"])
    calls = min(load.events, 10.0) * SECONDS + HEARTBEATS  # what waits meanwhile goes into the next call
    yield Line("Subscriber: requests", calls / MILLION, "million", p["lambda_requests_million"])
    yield Line("Subscriber: time", calls * BATCH_S * MEMORY_MB / 1024, "GB-s", p["lambda_gb_second"])
    yield Line("Subscriber: metrics", 5, "metrics", p["metric_month"])


def _database(counts: Counter[str], load: Load, p: Mapping[str, float]) -> Iterator[Line]:
    """At the least capacity: half a unit for each instance, which some hundred changes a second do not exceed."""
    units = counts["RDS::DBInstance"] * 0.5
    yield Line("Aurora: capacity, at the least", units * HOURS, "ACU-hours", p["aurora_acu_hour"])
    yield Line("Aurora: storage", load.gigabytes, "GB", p["aurora_gb_month"])
    operations = (2 * load.events + 0.1 * load.reads) * SECONDS
    yield Line("Aurora: input and output", operations / MILLION, "million", p["aurora_io_million"])
    yield Line("Aurora: the administrator's secret", 1, "secret", p["secret_month"])


def _fleet(counts: Counter[str], load: Load, p: Mapping[str, float]) -> Iterator[Line]:
    yield Line("Instances, t4g.small", ZONES * HOURS, "hours", p["instance_hour"])
    yield Line("Instances: disks", ZONES * 10, "GB", p["volume_gb_month"])
    yield Line("Load balancer", HOURS, "hours", p["balancer_hour"])
    # One unit bears 25 new connections a second, or 1 GB an hour.
    units = max(load.reads / 25, load.reads * load.row_bytes * 3600 / GB)
    yield Line("Load balancer: use", units * HOURS, "unit-hours", p["balancer_unit_hour"])
    addresses = ZONES + counts["EC2::EIP"]
    yield Line("Public addresses", addresses * HOURS, "hours", p["public_address_hour"])


def _rest(counts: Counter[str], load: Load, p: Mapping[str, float]) -> Iterator[Line]:
    """What there is whatever the load, and what leaves."""
    yield Line("NAT gateways", counts["EC2::NatGateway"] * HOURS, "hours", p["nat_hour"])
    yield Line("VPC endpoints", ZONES * counts[_ENDPOINT] * HOURS, "hours", p["endpoint_hour"])
    yield Line("KMS keys", counts["KMS::Key"], "keys", p["kms_key_month"])
    yield Line("Secrets", counts["SecretsManager::Secret"], "secrets", p["secret_month"])
    yield Line("Alarms", counts["CloudWatch::Alarm"], "alarms", p["alarm_month"])
    yield Line("Dashboard", counts["CloudWatch::Dashboard"], "dashboards", p["dashboard_month"])
    if counts["ApiGateway::RestApi"] or counts["AutoScaling::AutoScalingGroup"]:
        requests = load.reads * SECONDS
        yield Line("Logs", requests * LOGGED_BYTES / GB, "GB", p["logs_gb"])
        yield Line("Answers, to the Internet", requests * load.row_bytes / GB, "GB", p["internet_out_gb"])
