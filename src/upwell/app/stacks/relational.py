"""The relational way: a stream, the subscriber as a function, Aurora, and the read API on a fleet of instances."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from upwell.app.stacks.blueprint import Blueprint
from upwell.app.stacks.cloudformation import Json, Template, att, sub
from upwell.app.stacks.database import READER, SUBSCRIBER, add_database, may_connect
from upwell.app.stacks.fleet import FOLDER, add_fleet
from upwell.app.stacks.functions import SUBSCRIBER_CONFIG, code_bucket
from upwell.app.stacks.network import HTTPS_PORT, POSTGRES_PORT, PRIVATE, add_network, security_group
from upwell.app.stacks.serverless import TAG
from upwell.app.stacks.stream import LAG, NAMESPACE, WAITING, add_stream, add_subscriber, may_attach
from upwell.app.stacks.tables import add_tables

FUNCTION_FOLDER: Final = "/var/task"
DATABASE: Final = ("DBClusterIdentifier", "${Database}")


def template(plan: Blueprint, code_key: str) -> Json:
    """The stack of a pipeline to Kinesis. `code_key`: how the package is called."""
    t = Template(f"upwell {plan.pipeline}: from the stream to Aurora and the read API", {TAG: plan.pipeline})
    code_bucket(t)
    add_stream(t, plan)
    if plan.control:
        add_tables(t, [plan.control])
    services = ["s3", *(["dynamodb"] if plan.control else []), *(["logs", "secretsmanager"] if plan.api else [])]
    # Who checks tokens fetches their issuer's keys, from wherever that is.
    internet = plan.api is not None and plan.api.authorization == "jwt"
    add_network(t, public=plan.api is not None, internet=internet, services=services)
    group = security_group(
        t,
        "SubscriberGroup",
        "The subscriber, which nobody calls",
        out=[(POSTGRES_PORT, {"Ref": "VpcCidr"}), (HTTPS_PORT, "0.0.0.0/0")],
    )
    users = [group, *([att("FleetGroup", "GroupId")] if plan.api else [])]
    add_database(t, users)
    environment = {
        "UPWELL_DATABASE_HOST": att("Database", "Endpoint.Address"),
        "UPWELL_DATABASE_USER": SUBSCRIBER,
        "UPWELL_CODE": FUNCTION_FOLDER,
        "UPWELL_CONFIG": SUBSCRIBER_CONFIG,
    }
    add_subscriber(
        t,
        plan,
        code_key,
        [may_connect(SUBSCRIBER), *may_attach(PRIVATE)],
        environment,
        {"SubnetIds": PRIVATE, "SecurityGroupIds": [group]},
    )
    if plan.api:
        reading = {
            "UPWELL_DATABASE_HOST": att("Database", "ReadEndpoint.Address"),
            "UPWELL_DATABASE_USER": READER,
            "UPWELL_CODE": FOLDER,
        }
        add_fleet(t, plan, code_key, reading)
    _dashboard(t, plan)
    return t.body


def _dashboard(t: Template, plan: Blueprint) -> None:
    """From the stream to the reader, in the order of the way."""
    stream = ("StreamName", plan.stream or "")
    lambda_, subscriber = "AWS/Lambda", ("FunctionName", "${Subscriber}")
    graphs = [
        _graph("Into the stream", "Sum", "AWS/Kinesis", ("IncomingRecords", "IncomingBytes"), *stream),
        _graph("Behind the stream (ms)", "Maximum", lambda_, ("IteratorAge",), *subscriber),
        _graph("Subscriber", "Sum", lambda_, ("Invocations", "Errors", "Throttles"), *subscriber),
        _graph("Age of what is applied (s)", "Maximum", NAMESPACE, (LAG,), "Pipeline", plan.pipeline),
        _graph("Given up", "Maximum", "AWS/SQS", (WAITING,), "QueueName", "${Unapplied.QueueName}"),
        _graph("Database (ACUs)", "Maximum", "AWS/RDS", ("ServerlessDatabaseCapacity",), *DATABASE),
    ]
    if plan.api:
        elb, balancer = "AWS/ApplicationELB", ("LoadBalancer", "${Balancer.LoadBalancerFullName}")
        counts = ("RequestCount", "HTTPCode_Target_5XX_Count", "HTTPCode_ELB_5XX_Count")
        graphs += [
            _graph("Requests", "Sum", elb, counts, *balancer),
            _graph("Answers take (s), p99", "p99", elb, ("TargetResponseTime",), *balancer),
        ]
    widgets = [
        {
            "type": "metric",
            "x": 12 * (number % 2),
            "y": 6 * (number // 2),
            "width": 12,
            "height": 6,
            "properties": graph,
        }
        for number, graph in enumerate(graphs)
    ]
    t.add("Dashboard", "CloudWatch::Dashboard", {"DashboardBody": sub(json.dumps({"widgets": widgets}))})


def _graph(title: str, stat: str, namespace: str, metrics: Sequence[str], dimension: str, value: str) -> Json:
    lines = [[namespace, metric, dimension, value] for metric in metrics]
    return {"title": title, "stat": stat, "period": 60, "region": "${AWS::Region}", "metrics": lines}
