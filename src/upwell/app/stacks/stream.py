"""The stream, and the subscriber's function behind it."""

from __future__ import annotations

from typing import Any, Final

from upwell import rights
from upwell.app.stacks.blueprint import Blueprint
from upwell.app.stacks.claims import may_get
from upwell.app.stacks.cloudformation import Json, Template, allow, arn, att, if_, ref, sub
from upwell.app.stacks.functions import HANDLERS, alarm, function, staleness
from upwell.app.stacks.tables import may_ask

RETENTION_H: Final = 168
TIMEOUT_S: Final = 60
MEMORY_MB: Final = 1024
NAMESPACE: Final = "upwell"
LAG: Final = "AppliedLag"
MAKES: Final = "MakesStream"
_KEPT: Final = "HasKeptStreamKeyArn"
WAITING: Final = "ApproximateNumberOfMessagesVisible"


def add_stream(t: Template, plan: Blueprint) -> None:
    """The stream, encrypted by a key of its own; both outlive the stack, or what is on its way would be lost."""
    assert plan.stream is not None
    _parameters(t)
    t.add(
        "StreamKey",
        "KMS::Key",
        {"Description": f"Encrypts the stream {plan.stream}", "EnableKeyRotation": True, "KeyPolicy": _key_policy()},
        condition=MAKES,
        keep="Retain",
    )
    t.add(
        "Stream",
        "Kinesis::Stream",
        {
            "Name": plan.stream,
            "RetentionPeriodHours": RETENTION_H,
            "StreamModeDetails": {"StreamMode": ref("StreamMode")},
            "ShardCount": if_("Provisioned", ref("Shards")),
            "StreamEncryption": {"EncryptionType": "KMS", "KeyId": att("StreamKey", "Arn")},
        },
        condition=MAKES,
        keep="Retain",
    )
    key = if_(MAKES, att("StreamKey", "Arn"), ref("KeptStreamKeyArn"))
    t.output("StreamKeyArn", "For the stack publisher-access", key)
    if plan.api:  # else there is no heartbeat, and silence says nothing
        alarm(
            t,
            "PublisherSilent",
            "Nothing arrives in the stream, not even a heartbeat",
            "AWS/Kinesis",
            "IncomingRecords",
            {"StreamName": plan.stream},
            below=1,
            minutes=staleness(t),
            missing="breaching",
        )
    alarm(
        t,
        "StreamFull",
        "A shard is above its limits: its rows wait",
        "AWS/Kinesis",
        "WriteProvisionedThroughputExceeded",
        {"StreamName": plan.stream},
        above=1,
        minutes=15,
    )


def _parameters(t: Template) -> None:
    t.parameter(
        "StreamPlace",
        "make: this stack makes the stream. keep: it is there already, and is left alone.",
        "make",
        AllowedValues=["make", "keep"],
    )
    t.conditions[MAKES] = {"Fn::Equals": [ref("StreamPlace"), "make"]}
    t.parameter("KeptStreamKeyArn", "The ARN of the key of a stream that is there already.", "")
    t.given("KeptStreamKeyArn")
    t.parameter(
        "StreamMode",
        "ON_DEMAND grows by itself; PROVISIONED has Shards.",
        "ON_DEMAND",
        AllowedValues=["ON_DEMAND", "PROVISIONED"],
    )
    about = "Of a PROVISIONED stream: each takes 1 MiB and 1,000 records a second."
    t.parameter("Shards", about, 1, Type="Number", MinValue=1)
    t.conditions["Provisioned"] = {"Fn::Equals": [ref("StreamMode"), "PROVISIONED"]}


def _may_decrypt(key: Json) -> Json:
    return allow(rights.DECRYPT, key, StringEquals={"kms:ViaService": sub("kinesis.${AWS::Region}.amazonaws.com")})


def add_subscriber(
    t: Template,
    plan: Blueprint,
    code_key: str,
    statements: list[Json],
    environment: dict[str, Any],
    vpc: Json | None = None,
) -> None:
    """The function that applies the stream to the database, AWS's mapping of one to the other, and its alarms."""
    t.add("Unapplied", "SQS::Queue", {"SqsManagedSseEnabled": True, "MessageRetentionPeriod": 1_209_600}, keep="Delete")
    stream = if_(MAKES, att("Stream", "Arn"), arn("kinesis", f"stream/{plan.stream}"))
    function(
        t,
        "Subscriber",
        f"The subscriber of {plan.pipeline}",
        f"{HANDLERS}.subscriber_lambda.handler",
        code_key,
        [
            allow(rights.FEED_FUNCTION, stream),
            if_(MAKES, _may_decrypt(att("StreamKey", "Arn")), if_(_KEPT, _may_decrypt(ref("KeptStreamKeyArn")))),
            allow(["sqs:SendMessage"], att("Unapplied", "Arn")),
            *may_ask(plan.control),
            *may_get(t, plan.claims),
            *statements,
        ],
        timeout=TIMEOUT_S,
        memory=MEMORY_MB,
        environment=environment,
        vpc=vpc,
    )
    _mapping(t, stream)
    _subscriber_alarms(t, plan)
    t.output("Unapplied", "The queue that names records that were given up", ref("Unapplied"))


def _subscriber_alarms(t: Template, plan: Blueprint) -> None:
    name = {"FunctionName": ref("Subscriber")}
    alarm(
        t,
        "SubscriberBehind",
        "The subscriber is five minutes behind the stream",
        "AWS/Lambda",
        "IteratorAge",
        name,
        statistic="Maximum",
        above=300_000,
    )
    alarm(
        t,
        "SubscriberGaveUp",
        "Records were given up: the queue Unapplied says which",
        "AWS/SQS",
        WAITING,
        {"QueueName": att("Unapplied", "QueueName")},
        statistic="Maximum",
    )
    alarm(
        t,
        "Stale",
        "What the target has is older than it should be",
        NAMESPACE,
        LAG,
        {"Pipeline": plan.pipeline},
        statistic="Maximum",
        above=300,
        minutes=staleness(t),
        missing="breaching" if plan.api else "notBreaching",  # without a heartbeat silence says nothing
    )


def _mapping(t: Template, stream: Json) -> None:
    """A record is tried as long as the stream has it; a batch that fails is halved until the one record stands alone.

    A lane is a partition key, and AWS keeps those in order also where several calls share a shard.
    """
    t.parameter(
        "Parallelism", "Calls of the subscriber at a time for each shard.", 2, Type="Number", MinValue=1, MaxValue=10
    )
    t.parameter(
        "CollectSeconds",
        "For so long AWS collects records before a call: fewer calls, at that much delay.",
        0,
        Type="Number",
        MinValue=0,
        MaxValue=300,
    )
    t.add(
        "SubscriberMapping",
        "Lambda::EventSourceMapping",
        {
            "EventSourceArn": stream,
            "FunctionName": ref("Subscriber"),
            "StartingPosition": "TRIM_HORIZON",
            "BatchSize": 500,
            "MaximumBatchingWindowInSeconds": ref("CollectSeconds"),
            "ParallelizationFactor": ref("Parallelism"),
            "FunctionResponseTypes": ["ReportBatchItemFailures"],
            "BisectBatchOnFunctionError": True,
            "MaximumRetryAttempts": -1,
            "MaximumRecordAgeInSeconds": RETENTION_H * 3600,
            "DestinationConfig": {"OnFailure": {"Destination": att("Unapplied", "Arn")}},
        },
        after="SubscriberRole",
    )


def _key_policy() -> Json:
    """As AWS gives to every key: the account's own policies decide. In a key's policy `*` is that key."""
    owner = {"AWS": sub("arn:${AWS::Partition}:iam::${AWS::AccountId}:root")}
    statement = {"Effect": "Allow", "Principal": owner, "Action": "kms:*", "Resource": "*"}
    return {"Version": "2012-10-17", "Statement": [statement]}


def may_attach(subnets: list[Json]) -> list[Json]:
    """What Lambda itself needs, with the function's role, to place a function in a network."""
    places = [
        *(
            sub("arn:${AWS::Partition}:ec2:${AWS::Region}:${AWS::AccountId}:subnet/${S}", S=subnet)
            for subnet in subnets
        ),
        arn("ec2", "security-group/${SubscriberGroup.GroupId}"),
        arn("ec2", "network-interface/*"),
    ]
    interfaces = arn("ec2", "network-interface/*")
    detach = ["ec2:DeleteNetworkInterface", "ec2:AssignPrivateIpAddresses", "ec2:UnassignPrivateIpAddresses"]
    return [
        allow(["ec2:CreateNetworkInterface"], places),
        allow(detach, interfaces),
        # EC2 knows no narrower resource for what describes.
        allow(
            ["ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets", "ec2:DescribeSecurityGroups", "ec2:DescribeVpcs"],
            "*",
        ),
    ]
