"""The stacks on a local AWS with IAM enforced: they deploy, update and go; who may do what, by trying.

ministack knows no RolesAnywhere, EIP, NatGateway and no `dynamodb:LeadingKeys`: what speaks of those is left out of the
templates here, and nothing else.
"""

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lab.ministack import ACCOUNT, Ministack
from lab.parts import REGION
from tests.stack_deployed import BUCKET, IMAGE, Deployed, put_code
from tests.stack_plans import CONTROL, IAM, KEYS, PACKAGE, items, stream, stream_to_items
from upwell.app.stacks import publisher_access, relational, serverless
from upwell.app.stacks.blueprint import Blueprint, Table
from upwell.items import KeyAttribute

DENIED = {"AccessDeniedException", "AccessDenied"}

# In place of upwell's own code: what a function is told to call, it calls, with the function's rights.
PROBE = """
import json
import botocore.session
from botocore.exceptions import ClientError

def handler(event, context):
    done = {}
    for service, action, arguments in event["calls"]:
        try:
            getattr(botocore.session.get_session().create_client(service), action)(**arguments)
            done[f"{service}.{action} {json.dumps(arguments)}"] = "done"
        except ClientError as error:
            done[f"{service}.{action} {json.dumps(arguments)}"] = error.response["Error"]["Code"]
    return done
"""
PROBES = {
    f"upwell/cloud/{module}.py": PROBE.encode()
    for module in ("read_api_lambda", "authorizer_lambda", "subscriber_lambda")
}


@pytest.fixture(scope="module")
def aws(ministack: Ministack) -> Ministack:
    put_code(ministack, PACKAGE, PROBES)
    ministack.client("ssm").put_parameter(Name=IMAGE, Value="ami-0123456789abcdef0", Type="String")
    return ministack


@pytest.fixture
def name() -> str:
    return f"t{uuid.uuid4().hex[:8]}"


def own(plan: Blueprint, name: str) -> Blueprint:
    """The plan with names of its own: tables outlive their stacks."""

    def renamed(table: Table | None) -> Any:
        return table and replace(table, name=f"{name}-{table.name}")

    return replace(
        plan,
        pipeline=f"{plan.pipeline}-{name}",
        tables=tuple(map(renamed, plan.tables)),
        heartbeat=renamed(plan.heartbeat),
        control=renamed(plan.control),
        lanes=renamed(plan.lanes),
        letters=renamed(plan.letters),
        stream=plan.stream and f"{name}-{plan.stream}",
    )


def codes(calls: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """What each call comes to: done, or AWS's name for the refusal."""
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = "done"
        except ClientError as error:
            found[name] = error.response["Error"]["Code"]
    return found


# --- serverless ---------------------------------------------------------------------------------------------------


def test_serverless_reads_and_can_not_write(aws: Ministack, name: str) -> None:
    plan = own(items(KEYS), name)
    stack = Deployed(aws, name, serverless.template(plan, PACKAGE))
    users, notes, shared = (table.name for table in plan.tables)
    item = {"id": {"N": "1"}, "country": {"S": "DE"}, "full_name": {"S": "A"}}
    aws.client("dynamodb").put_item(TableName=users, Item=item)
    key = {"id": {"N": "1"}}
    by_country = {
        "TableName": users,
        "IndexName": "by-country",
        "KeyConditionExpression": "country = :c",
        "ExpressionAttributeValues": {":c": {"S": "DE"}},
    }
    may: list[Any] = [
        ("dynamodb", "get_item", {"TableName": users, "Key": key}),
        ("dynamodb", "scan", {"TableName": users}),
        ("dynamodb", "query", by_country),
        ("dynamodb", "scan", {"TableName": plan.heartbeat.name if plan.heartbeat else ""}),
        ("secretsmanager", "get_secret_value", {"SecretId": f"upwell/{plan.pipeline}/cursor-key"}),
    ]
    may_not: list[Any] = [
        ("dynamodb", "put_item", {"TableName": users, "Item": item}),
        ("dynamodb", "update_item", {"TableName": users, "Key": key, "UpdateExpression": "REMOVE country"}),
        ("dynamodb", "delete_item", {"TableName": users, "Key": key}),
        ("dynamodb", "batch_write_item", {"RequestItems": {users: [{"DeleteRequest": {"Key": key}}]}}),
        ("dynamodb", "delete_table", {"TableName": users}),
        ("dynamodb", "scan", {"TableName": notes}),  # published, but not shown
        ("dynamodb", "scan", {"TableName": shared}),
        ("s3", "get_object", {"Bucket": BUCKET, "Key": PACKAGE}),
        ("kinesis", "list_streams", {}),
    ]
    answers = asked(aws, stack.resource("Read"), [*may, *may_not])
    results = list(answers.values())
    assert results[: len(may)] == ["done"] * len(may), answers
    assert set(results[len(may) :]) <= DENIED, answers
    # The function that checks callers may read the secret, and not a single row.
    answers = asked(aws, stack.resource("Authorize"), [may[0], may[4]])
    assert list(answers.values()) in ([code, "done"] for code in DENIED), answers
    stack.delete()


def asked(aws: Ministack, function: str, calls: list[Any]) -> dict[str, str]:
    """What the function's calls come to, with its role's rights."""
    answer = aws.client("lambda").invoke(FunctionName=function, Payload=json.dumps({"calls": calls}))
    said = json.loads(answer["Payload"].read())
    assert "FunctionError" not in answer, said
    return dict(said)


def test_by_a_stream_the_subscriber_writes_the_tables_and_no_others(aws: Ministack, name: str) -> None:
    plan = own(stream_to_items(control=CONTROL), name)
    stack = Deployed(aws, name, serverless.template(plan, PACKAGE))
    other = Deployed(aws, f"{name}o", serverless.template(own(items(), f"{name}x"), PACKAGE))
    users, lanes, letters, control = plan.tables[0].name, *(table.name for table in plan.kept)
    lane = {"id": {"S": "shop/lane/0"}}
    may: list[Any] = [
        ("dynamodb", "put_item", {"TableName": users, "Item": {"id": {"N": "1"}}}),
        ("dynamodb", "scan", {"TableName": users}),
        ("dynamodb", "put_item", {"TableName": lanes, "Item": lane}),
        ("dynamodb", "get_item", {"TableName": lanes, "Key": lane}),
        ("dynamodb", "put_item", {"TableName": letters, "Item": {"id": {"N": "1"}}}),
        ("dynamodb", "put_item", {"TableName": control, "Item": {"pipeline": {"S": "shop"}, "id": {"S": "1"}}}),
        ("kinesis", "describe_stream_summary", {"StreamName": plan.stream}),
    ]
    may_not: list[Any] = [
        ("dynamodb", "get_item", {"TableName": users, "Key": {"id": {"N": "1"}}}),
        ("dynamodb", "put_item", {"TableName": f"{name}x-shop-users", "Item": {"id": {"N": "1"}}}),
        ("dynamodb", "scan", {"TableName": letters}),
        ("dynamodb", "scan", {"TableName": control}),
        ("dynamodb", "delete_table", {"TableName": users}),
        ("kinesis", "put_record", {"StreamName": plan.stream, "Data": "x", "PartitionKey": "1"}),
        ("secretsmanager", "list_secrets", {}),
    ]
    answers = list(asked(aws, stack.resource("Subscriber"), [*may, *may_not]).values())
    assert answers[: len(may)] == ["done"] * len(may)
    assert set(answers[len(may) :]) <= DENIED, answers
    for each in (stack, other):
        each.delete()


def test_serverless_is_updated_in_place_and_leaves_its_tables(aws: Ministack, name: str) -> None:
    plan = own(items(IAM), name)
    stack = Deployed(aws, name, serverless.template(plan, PACKAGE))
    dynamodb, users = aws.client("dynamodb"), plan.tables[0].name
    dynamodb.put_item(TableName=users, Item={"id": {"N": "7"}})
    before = stack.resource("Api")
    wider = replace(plan, tables=(*plan.tables, Table(f"{name}-new", (KeyAttribute("id", "S"),))))
    stack.update(serverless.template(wider, PACKAGE))
    assert stack.resource("Api") == before
    assert f"{name}-new" in dynamodb.list_tables()["TableNames"]
    assert dynamodb.get_item(TableName=users, Key={"id": {"N": "7"}})["Item"]
    stack.delete()
    assert dynamodb.get_item(TableName=users, Key={"id": {"N": "7"}})["Item"]
    # What stayed is in the way of the same stack, unless it is told so.
    again = Deployed(aws, f"{name}b", serverless.template(wider, PACKAGE), Tables="keep")
    assert not [each for each in again.names() if each.startswith("Table")]
    again.delete()


# --- the publisher ------------------------------------------------------------------------------------------------


@pytest.fixture
def somebody(aws: Ministack, name: str) -> Callable[[str], Any]:
    """Credentials of the role of a deployed stack, as a user who may become it."""
    iam = aws.client("iam")
    user = iam.create_user(UserName=name)["User"]
    may_try = {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": f"arn:aws:iam::{ACCOUNT}:role/*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [may_try]})
    iam.put_user_policy(UserName=name, PolicyName="become", PolicyDocument=document)
    keys = iam.create_access_key(UserName=name)["AccessKey"]

    def become(role: str) -> Callable[[str], Any]:
        sts = aws.client("sts", keys["AccessKeyId"], keys["SecretAccessKey"])
        arn = f"arn:aws:iam::{ACCOUNT}:role/{role}"
        found = sts.assume_role(RoleArn=arn, RoleSessionName="publisher")["Credentials"]
        token = (found["AccessKeyId"], found["SecretAccessKey"], found["SessionToken"])
        return lambda service: aws.client(service, *token)

    become.user = user["Arn"]  # type: ignore[attr-defined]
    return become


def test_the_publisher_writes_its_tables_and_nothing_else(aws: Ministack, name: str, somebody: Any) -> None:
    plan, other = own(items(KEYS), name), own(items(), f"{name}x")
    tables = Deployed(aws, f"{name}t", serverless.template(plan, PACKAGE))
    others = Deployed(aws, f"{name}o", serverless.template(other, PACKAGE))
    stack = Deployed(aws, name, publisher_access.template(plan), TrustedPrincipalArn=somebody.user)
    dynamodb = somebody(stack.resource("Role"))("dynamodb")
    users, key = plan.tables[0].name, {"id": {"N": "1"}}
    assert plan.heartbeat is not None
    beats = plan.heartbeat.name
    may = {
        "write a row": lambda: dynamodb.put_item(TableName=users, Item=key),
        "write a heartbeat": lambda: dynamodb.put_item(
            TableName=beats, Item={"pipeline": {"S": "shop"}, "beat": {"N": "0"}}
        ),
        "write into a shared table": lambda: dynamodb.put_item(
            TableName=plan.tables[2].name, Item={"pk": {"S": "ORDER#1"}, "sk": {"S": "ORDER"}}
        ),
        "sweep": lambda: dynamodb.scan(TableName=users),
        "look": lambda: dynamodb.describe_table(TableName=users),
    }
    assert set(codes(may).values()) == {"done"}, codes(may)
    iam, kinesis = somebody(stack.resource("Role"))("iam"), somebody(stack.resource("Role"))("kinesis")
    may_not = {
        "write another pipeline's": lambda: dynamodb.put_item(TableName=other.tables[0].name, Item=key),
        "read one row": lambda: dynamodb.get_item(TableName=users, Key=key),
        "remove a row, which becomes a tombstone": lambda: dynamodb.delete_item(TableName=users, Key=key),
        "delete the table": lambda: dynamodb.delete_table(TableName=users),
        "make a table": lambda: dynamodb.create_table(
            TableName=f"{name}-mine",
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        ),
        "list tables": dynamodb.list_tables,
        "use Kinesis": kinesis.list_streams,
        "change rights": lambda: iam.create_user(UserName=f"{name}-mine"),
    }
    assert set(codes(may_not).values()) <= DENIED, codes(may_not)
    # A table more in the configuration is one more that may be written, by an update in place.
    stack.update(publisher_access.template(replace(plan, tables=(*plan.tables, other.tables[0]))))
    assert codes({"write": may_not["write another pipeline's"]}) == {"write": "done"}
    for each in (stack, tables, others):
        each.delete()


def test_the_publisher_writes_its_stream_and_nothing_else(aws: Ministack, name: str, somebody: Any) -> None:
    plan = own(stream(control=CONTROL), name)
    below = Deployed(aws, f"{name}r", relational.template(plan, PACKAGE))
    stack = Deployed(aws, name, publisher_access.template(plan), TrustedPrincipalArn=somebody.user)
    role = somebody(stack.resource("Role"))
    kinesis, dynamodb = role("kinesis"), role("dynamodb")
    aws.client("kinesis").create_stream(StreamName=f"{name}-other", ShardCount=1)
    record = [{"Data": b"x", "PartitionKey": "1"}]
    may = {
        "send": lambda: kinesis.put_records(StreamName=plan.stream, Records=record),
        "look": lambda: kinesis.describe_stream_summary(StreamName=plan.stream),
        "be asked": lambda: dynamodb.query(
            TableName=plan.control.name if plan.control else "",
            KeyConditionExpression="pipeline = :p",
            ExpressionAttributeValues={":p": {"S": plan.pipeline}},
        ),
    }
    assert set(codes(may).values()) == {"done"}, codes(may)
    shard = {"StreamName": plan.stream, "ShardId": "shardId-000000000000", "ShardIteratorType": "LATEST"}
    may_not = {
        "send elsewhere": lambda: kinesis.put_records(StreamName=f"{name}-other", Records=record),
        "read": lambda: kinesis.get_shard_iterator(**shard),
        "delete": lambda: kinesis.delete_stream(StreamName=plan.stream),
        "shorten": lambda: kinesis.decrease_stream_retention_period(StreamName=plan.stream, RetentionPeriodHours=24),
        "ask itself": lambda: dynamodb.put_item(
            TableName=plan.control.name if plan.control else "",
            Item={"pipeline": {"S": plan.pipeline}, "id": {"S": "1"}},
        ),
    }
    assert set(codes(may_not).values()) <= DENIED, codes(may_not)
    stack.delete()
    below.delete()


def test_wrong_and_missing_credentials_are_refused(aws: Ministack, name: str, somebody: Any) -> None:
    plan = own(items(), name)
    stack = Deployed(
        aws, name, publisher_access.template(plan), TrustedPrincipalArn=f"arn:aws:iam::{ACCOUNT}:user/other"
    )
    with pytest.raises(ClientError) as refused:
        somebody(stack.resource("Role"))  # may become any role, but this one does not trust it
    assert refused.value.response["Error"]["Code"] in DENIED
    for keys in (("AKIAUNKNOWN00000000", "wrong"), ("AKIAUNKNOWN00000000", "wrong", "token")):
        with pytest.raises(ClientError) as refused:
            aws.client("dynamodb", *keys).list_tables()
        assert refused.value.response["Error"]["Code"] in ("UnrecognizedClientException", "InvalidClientTokenId")
    stack.delete()


# --- relational ---------------------------------------------------------------------------------------------------


def test_relational_is_updated_in_place_and_leaves_the_stream(aws: Ministack, name: str) -> None:
    plan = own(stream(KEYS, control=CONTROL), name)
    wanted = {
        "CertificateArn": f"arn:aws:acm:{REGION}:{ACCOUNT}:certificate/{uuid.uuid4()}",
        "AllowedCidr": "203.0.113.0/24",
        "ImageId": IMAGE,
        "DeletionProtection": "false",
    }
    stack = Deployed(aws, name, relational.template(plan, PACKAGE), **wanted)
    kinesis = aws.client("kinesis")
    about = kinesis.describe_stream_summary(StreamName=plan.stream)["StreamDescriptionSummary"]
    assert about["RetentionPeriodHours"] == 168
    subscriber = stack.resource("Subscriber")
    (mapping,) = aws.client("lambda").list_event_source_mappings(FunctionName=subscriber)["EventSourceMappings"]
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    before = {each: stack.resource(each) for each in ("Stream", "Database", "Balancer", "Fleet")}
    put_code(aws, "function-new.zip", PROBES)
    stack.update(relational.template(plan, "function-new.zip"))
    assert {each: stack.resource(each) for each in before} == before
    sent = kinesis.put_record(StreamName=plan.stream, Data=b"kept", PartitionKey="1")
    stack.delete()
    again = Deployed(aws, f"{name}b", relational.template(plan, PACKAGE), **wanted, StreamPlace="keep", Tables="keep")
    assert not {"Stream", "StreamKey"} & again.names()
    again.delete()
    place = {"StreamName": plan.stream, "ShardId": sent["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
    iterator = kinesis.get_shard_iterator(**place)["ShardIterator"]
    assert [record["Data"] for record in kinesis.get_records(ShardIterator=iterator)["Records"]] == [b"kept"]
