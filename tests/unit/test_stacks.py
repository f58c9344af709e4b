"""The templates: what CloudFormation takes, no right too many, nothing lost when a stack goes."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER

from tests.stack_plans import (
    CLAIMS,
    CONTROL,
    JWT,
    KEYS,
    PACKAGE,
    items,
    resources,
    statements,
    stream,
    templates,
)
from upwell import rights
from upwell.app.stacks import publisher_access, relational, serverless
from upwell.app.stacks.cloudformation import UNTAGGED, Json, as_yaml

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "upwell"
TEMPLATES = templates()
NAMES = list(TEMPLATES)

# Where a service knows nothing narrower.
# kms: in a key's own policy `*` is that key, and the account's root is how AWS says "whoever the account allows".
# ec2: what describes has no resources (Service Authorization Reference, EC2); Lambda needs it to enter a network.
# network-interface/*: the interface gets its id when it is made.
NO_NARROWER = {
    ("kms:*", "*"),
    *((f"ec2:Describe{what}", "*") for what in ("NetworkInterfaces", "SecurityGroups", "Subnets", "Vpcs")),
    *(
        (f"ec2:{action}", "arn:${AWS::Partition}:ec2:${AWS::Region}:${AWS::AccountId}:network-interface/*")
        for action in (
            "CreateNetworkInterface", "DeleteNetworkInterface", "AssignPrivateIpAddresses", "UnassignPrivateIpAddresses"
        )
    ),
}  # fmt: skip
# The streams of one log group, the objects of one pipeline: as narrow as the services know them.
BELOW_SOMETHING_OF_OURS = re.compile(r":log-group:\$\{\w+\}:\*$|:s3:::shop-claims/upwell/shop/\*$")


def too_wide(template: Json) -> Iterator[str]:
    """Each allowed action or resource that is wider than the service makes necessary."""
    for statement in statements(template):
        assert statement["Effect"] == "Allow"
        assert not {"NotAction", "NotResource", "NotPrincipal"} & statement.keys()
        for action in listed(statement["Action"]):
            for resource in listed(statement.get("Resource", [])):
                where = text_of(resource)
                wide = "*" in action or ("*" in where and not BELOW_SOMETHING_OF_OURS.search(where))
                if wide and (action, where) not in NO_NARROWER:
                    yield f"{action} on {where}"
        principal = statement.get("Principal", {})
        if principal == "*" or "*" in (text_of(each) for each in principal.values()):
            yield f"anybody may {statement['Action']}"


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def text_of(value: Any) -> str:
    """What stands there, as far as the template says it."""
    if isinstance(value, str):
        return value
    if "Fn::Sub" in value:
        return str(listed(value["Fn::Sub"])[0])
    return json.dumps(value)


def linted(folder: Path, checked: dict[str, Json]) -> str:
    """What cfn-lint says."""
    for name, template in checked.items():
        (folder / f"{name}.yaml").write_text(as_yaml(template))
    command: list[str | Path] = [
        Path(sys.executable).with_name("cfn-lint"),
        "--format",
        "parseable",
        *sorted(folder.glob("*.yaml")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2, 4, 6, 8), done.stderr
    return done.stdout


# --- what CloudFormation takes ------------------------------------------------------------------------------------


def test_cloudformation_takes_them(tmp_path: Path) -> None:
    misspelt = json.loads(json.dumps(TEMPLATES["relational-bare"]))
    stream_of = misspelt["Resources"]["Stream"]["Properties"]
    stream_of["ShardCoun"] = stream_of.pop("ShardCount")
    said = linted(tmp_path, {**TEMPLATES, "misspelt": misspelt})
    assert "ShardCoun" in said, "a misspelt property was not found: the check checks nothing"
    assert not [line for line in said.splitlines() if "/misspelt.yaml" not in line]


@pytest.mark.parametrize("name", NAMES)
def test_they_are_plain_and_within_the_limits(name: str) -> None:
    text = as_yaml(TEMPLATES[name])
    assert yaml.safe_load(text) == TEMPLATES[name]  # no tags of CloudFormation's own
    assert "Transform" not in TEMPLATES[name]
    assert len(text) < 1_000_000  # from S3; `aws cloudformation deploy` takes 51,200 bytes without a bucket
    assert len(text) < 51_200 or name.startswith(("serverless", "relational"))
    assert len(TEMPLATES[name]["Resources"]) < 500
    assert len(TEMPLATES[name].get("Parameters", {})) < 200


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_says_what_it_is_and_has_a_safe_default(name: str) -> None:
    parameters = TEMPLATES[name].get("Parameters", {})
    assert all(len(about["Description"]) > 10 for about in parameters.values())
    must_be_given = {key for key, about in parameters.items() if "Default" not in about}
    # What only the account knows, and who may reach the load balancer, which nobody should decide unasked.
    assert must_be_given <= {"CodeBucket", "CertificateArn", "AllowedCidr", "ClaimKeyArn"}
    used = json.dumps({**TEMPLATES[name]["Resources"], "Conditions": TEMPLATES[name].get("Conditions", {})})
    unused = {key for key in parameters if f'"{key}"' not in used and f"${{{key}}}" not in used}
    assert not unused


@pytest.mark.parametrize("name", NAMES)
def test_what_can_be_tagged_is_tagged(name: str) -> None:
    for logical_name, resource in TEMPLATES[name]["Resources"].items():
        schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", resource["Type"]).schema
        place = {"Tags", "TagSpecifications"} & schema["properties"].keys()
        if place and resource["Type"] not in UNTAGGED:
            assert "shop" in json.dumps(resource["Properties"][place.pop()]), logical_name
    for kind in UNTAGGED:
        schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", kind).schema
        assert "Tags" not in schema["properties"], f"{kind} can be tagged by now"


@pytest.mark.parametrize("name", NAMES)
def test_what_holds_data_outlives_the_stack(name: str) -> None:
    keeps = {
        "DynamoDB::Table": "Retain",
        "Kinesis::Stream": "Retain",
        "KMS::Key": "Retain",
        "RDS::DBCluster": "Snapshot",
    }
    for kind, keep in keeps.items():
        for resource in resources(TEMPLATES[name], kind).values():
            assert (resource["DeletionPolicy"], resource["UpdateReplacePolicy"]) == (keep, keep)
    for table in resources(TEMPLATES[name], "DynamoDB::Table").values():
        about = table["Properties"]
        assert about["DeletionProtectionEnabled"] is True
        assert about["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert about["SSESpecification"] == {"SSEEnabled": True}
        assert about["BillingMode"] == "PAY_PER_REQUEST"


def test_another_configuration_is_another_template() -> None:
    assert "Api" not in TEMPLATES["serverless-bare"]["Resources"]
    assert "Fleet" not in TEMPLATES["relational-bare"]["Resources"]
    paths = {
        each["Properties"]["PathPart"]
        for each in resources(TEMPLATES["serverless-jwt"], "ApiGateway::Resource").values()
    }
    assert paths == {"healthz", "openapi.json", "v1", "_freshness", "users", "order-lines", "{key}"}
    # Who checks tokens fetches keys from the Internet; who knows the keys does not.
    assert resources(TEMPLATES["relational-jwt"], "EC2::NatGateway")
    assert not resources(TEMPLATES["relational-keys"], "EC2::NatGateway")
    tables = [table["Properties"] for table in resources(TEMPLATES["serverless-jwt"], "DynamoDB::Table").values()]
    (users,) = (table for table in tables if table["TableName"] == "shop-users")
    (index,) = users["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "by-country"


def test_an_api_that_changes_is_deployed_anew() -> None:
    def deployment(api: Any) -> str:
        (name,) = resources(serverless.template(items(api), PACKAGE), "ApiGateway::Deployment")
        return name

    assert deployment(JWT) == deployment(JWT)
    assert deployment(JWT) != deployment(KEYS)
    # The function's code is not the gateway's business.
    (same,) = resources(serverless.template(items(JWT), "function-other.zip"), "ApiGateway::Deployment")
    assert same == deployment(JWT)


# --- who may come in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["serverless-jwt", "serverless-iam", "serverless-keys"])
def test_only_healthz_is_open(name: str) -> None:
    methods = resources(TEMPLATES[name], "ApiGateway::Method").values()
    assert len(methods) >= 10
    opened = {
        json.dumps(m["Properties"]["ResourceId"]) for m in methods if m["Properties"]["AuthorizationType"] == "NONE"
    }
    assert len(opened) == 1
    assert "Healthz" in opened.pop()


def test_instances_take_no_ssh_and_no_old_metadata() -> None:
    template = TEMPLATES["relational-jwt"]
    for group in resources(template, "EC2::SecurityGroup").values():
        for opening in group["Properties"]["SecurityGroupIngress"]:
            assert opening["FromPort"] in (80, 443, 5432, 8080)
    (launch,) = resources(template, "EC2::LaunchTemplate").values()
    about = launch["Properties"]["LaunchTemplateData"]
    assert "KeyName" not in about
    assert about["MetadataOptions"]["HttpTokens"] == "required"
    assert about["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    (cluster,) = resources(template, "RDS::DBCluster").values()
    assert cluster["Properties"]["StorageEncrypted"] is True
    assert "MasterUserPassword" not in cluster["Properties"]


@pytest.mark.parametrize("name", NAMES)
def test_no_log_is_kept_forever(name: str) -> None:
    """What a service of AWS makes by itself has no end; and a database's own log quotes rows."""
    for group in resources(TEMPLATES[name], "Logs::LogGroup").values():
        assert group["Properties"]["RetentionInDays"] == {"Ref": "LogDays"}
    for function in resources(TEMPLATES[name], "Lambda::Function").values():
        assert function["Properties"]["LoggingConfig"]["LogGroup"]["Ref"] in TEMPLATES[name]["Resources"]
    for cluster in resources(TEMPLATES[name], "RDS::DBCluster").values():
        assert "EnableCloudwatchLogsExports" not in cluster["Properties"]


@pytest.mark.parametrize("name", ["serverless-jwt", "serverless-iam", "serverless-keys"])
def test_whom_the_gateway_cannot_check_is_told_to_ask_again(name: str) -> None:
    """As the API itself does, where the identity provider can't be reached."""
    answers = resources(TEMPLATES[name], "ApiGateway::GatewayResponse").values()
    (answer,) = (a["Properties"] for a in answers if a["Properties"]["ResponseType"] == "AUTHORIZER_FAILURE")
    assert answer["StatusCode"] == "503"
    assert answer["ResponseParameters"]["gatewayresponse.header.Retry-After"] == "'2'"


def test_a_script_that_starts_an_instance_is_one() -> None:
    for environment in ("relational-jwt", "relational-keys"):
        (launch,) = resources(TEMPLATES[environment], "EC2::LaunchTemplate").values()
        script = text_of(launch["Properties"]["LaunchTemplateData"]["UserData"]["Fn::Base64"])
        filled = re.sub(r"\$\{\w+(\.\w+)?\}", "value", script)
        done = subprocess.run(["bash", "-n"], input=filled, capture_output=True, text=True, check=False)
        assert not done.stderr
        assert PACKAGE in script
        assert "Environment=UPWELL_DATABASE_USER=upwell_reader\n" in script


# --- rights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_right_is_wider_than_it_must_be(name: str) -> None:
    assert not list(too_wide(TEMPLATES[name]))


def test_a_right_that_is_too_wide_is_found() -> None:
    template = publisher_access.template(items())
    (role,) = resources(template, "IAM::Role").values()
    allowed = role["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    for wide in (
        {"Action": ["dynamodb:*"], "Resource": {"Fn::Sub": "arn:aws:dynamodb:::table/shop"}},
        {"Action": "dynamodb:PutItem", "Resource": "*"},
        {"Action": ["dynamodb:PutItem"], "Resource": [{"Fn::Sub": "arn:aws:dynamodb:::table/*"}]},
        {"Action": ["dynamodb:Put*"], "Resource": [{"Fn::Sub": "arn:aws:dynamodb:::table/shop"}]},
        {"Action": ["s3:GetObject"], "Resource": "arn:aws:s3:::shop-claims/*"},
    ):
        allowed.append({"Effect": "Allow", **wide})
        assert len(list(too_wide(template))) == 1, wide
        allowed.pop()
    assert not list(too_wide(template))


def allowed_by(template: Json, role: str) -> set[str]:
    policies = template["Resources"][role]["Properties"]["Policies"]
    return {action for statement in statements(policies) for action in listed(statement["Action"])}


def test_who_reads_can_not_write() -> None:
    for name in ("serverless-jwt", "serverless-iam", "serverless-keys"):
        actions = allowed_by(TEMPLATES[name], "ReadRole")
        assert {action for action in actions if action.startswith("dynamodb:")} == set(rights.READ_ITEMS)
    assert not [
        action for action in allowed_by(TEMPLATES["relational-jwt"], "FleetRole") if action.startswith("dynamodb:")
    ]


def test_the_publisher_has_the_rights_of_its_configuration() -> None:
    few = allowed_by(TEMPLATES["publisher-few-rights"], "Role")
    assert few == {*rights.WRITE_ITEMS, *rights.SWEEP_ITEMS, *rights.CHECK_TABLES}
    more = allowed_by(TEMPLATES["publisher-items"], "Role")
    assert more - few == {*rights.CREATE_TABLES, *rights.REMOVE_ITEMS}
    of_stream = allowed_by(TEMPLATES["publisher-stream"], "Role")
    wanted = {*rights.SEND_RECORDS, *rights.ENCRYPT, *rights.PUT_CLAIMS, *rights.POLL_REPAIRS}
    assert of_stream == wanted | {*rights.CHECK_TABLES, *rights.CREATE_TABLES}


def test_a_subscriber_to_tables_writes_them_and_what_it_keeps() -> None:
    template = TEMPLATES["serverless-stream"]
    assert "VpcConfig" not in template["Resources"]["Subscriber"]["Properties"]
    actions = {action for action in allowed_by(template, "SubscriberRole") if action.startswith("dynamodb:")}
    rows = {*rights.WRITE_ITEMS, *rights.SWEEP_ITEMS, *rights.CHECK_TABLES}
    assert actions == rows | {*rights.KEEP_LANES, *rights.KEEP_LETTERS, *rights.ASK_REPAIR}
    assert not {"dynamodb:GetItem", "dynamodb:DeleteItem"} & allowed_by(TEMPLATES["relational-jwt"], "SubscriberRole")


def test_in_a_shared_table_only_the_own_keys_may_be_written() -> None:
    (role,) = resources(TEMPLATES["publisher-items"], "IAM::Role").values()
    limited = [json.dumps(s) for s in statements(role["Properties"]["Policies"]) if "LeadingKeys" in json.dumps(s)]
    assert len(limited) == 1
    assert '"ForAllValues:StringLike": {"dynamodb:LeadingKeys": ["ORDER#*", "CUSTOMER#*"]}' in limited[0]
    assert '"Null": {"dynamodb:LeadingKeys": "false"}' in limited[0]  # else whoever names no key would be let in
    assert "table/shop" in limited[0]


def calls_in(*modules: str) -> set[str]:
    """The actions of AWS that the modules call, by name."""
    known = re.compile(
        r"(Put|Get|Update|Delete|Describe|Create|List|Scan|Query|Batch|Transact)[A-Za-z]*(?<!Expression)"
    )
    found = set()
    for module in modules:
        for node in ast.walk(ast.parse((SOURCE / module).read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and known.fullmatch(node.value):
                found.add(node.value)
    return found


def of(service: str, *groups: tuple[str, ...]) -> set[str]:
    return {action.removeprefix(f"{service}:") for group in groups for action in group}


def test_the_rights_are_those_of_the_calls() -> None:
    written = of("dynamodb", rights.WRITE_ITEMS, rights.REMOVE_ITEMS, rights.SWEEP_ITEMS)
    assert calls_in("sinks/dynamodb.py") == written
    managed = of("dynamodb", rights.CHECK_TABLES, rights.CREATE_TABLES)
    assert calls_in("dynamodb_tables.py") - written == managed
    assert calls_in("state/dynamodb_control.py") == of("dynamodb", rights.ASK_REPAIR, rights.POLL_REPAIRS)
    by_a_person = {"DeleteItem"}  # `upwell dead-letters drop`
    kept = of("dynamodb", rights.KEEP_LANES, rights.KEEP_LETTERS)
    assert calls_in("targets/dynamodb.py") - by_a_person == kept
    stand_ins_know_only_this = {"DescribeStream"}
    assert calls_in("sinks/kinesis.py") - stand_ins_know_only_this == of("kinesis", rights.SEND_RECORDS)
    assert calls_in("streams/kinesis.py") <= of("kinesis", rights.RECEIVE_RECORDS)


def test_the_documentation_names_the_rights() -> None:
    def named(page: str, heading: str) -> set[str]:
        text = (ROOT / "docs" / page).read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
        return set(re.findall(r"`((?:dynamodb|kinesis|s3|kms):\w+)`", text))

    r = rights
    tables = {*r.WRITE_ITEMS, *r.REMOVE_ITEMS, *r.SWEEP_ITEMS, *r.CHECK_TABLES, *r.CREATE_TABLES}
    assert named("dynamodb.md", "Rights") == tables
    assert named("claim-check.md", "Rights") == {*r.PUT_CLAIMS, *r.GET_CLAIMS, *r.MISS_CLAIMS, *r.ENCRYPT, *r.DECRYPT}
    assert named("guide.md", "3. AWS") == {*r.SEND_RECORDS, *r.RECEIVE_RECORDS}


def test_only_the_holder_of_the_certificate_becomes_the_publisher() -> None:
    (role,) = resources(TEMPLATES["publisher-stream"], "IAM::Role").values()
    anywhere = role["Properties"]["AssumeRolePolicyDocument"]["Statement"][0]["Fn::If"][1]
    conditions = anywhere["Condition"]
    assert conditions["StringEquals"] == {"aws:PrincipalTag/x509Subject/CN": {"Ref": "CommonName"}}
    assert conditions["ArnEquals"] == {"aws:SourceArn": {"Fn::GetAtt": ["TrustAnchor", "TrustAnchorArn"]}}
    (profile,) = resources(TEMPLATES["publisher-stream"], "RolesAnywhere::Profile").values()
    assert profile["Properties"]["DurationSeconds"] == {"Ref": "SessionSeconds"}
    assert TEMPLATES["publisher-stream"]["Parameters"]["SessionSeconds"]["MaxValue"] == 3600


@pytest.mark.parametrize(
    ("principal", "is_one"),
    [
        ("", True),
        ("arn:aws:iam::123456789012:role/team/shop", True),
        ("arn:aws-us-gov:iam::123456789012:user/shop", True),
        ("*", False),
        ("123456789012", False),
        ("arn:aws:iam::123456789012:root", False),
        ("arn:aws:iam::*:role/shop", False),
        ("arn:aws:iam::123456789012:role/*", False),
    ],
)
def test_nobody_becomes_the_publisher_by_a_slip(principal: str, is_one: bool) -> None:
    """Neither everybody nor a whole account."""
    parameter = TEMPLATES["publisher-stream"]["Parameters"]["TrustedPrincipalArn"]
    assert (re.fullmatch(parameter["AllowedPattern"], principal) is not None) is is_one


def test_a_pipelines_name_may_have_dots(tmp_path: Path) -> None:
    plan = replace(stream(JWT, control=CONTROL), pipeline="legacy.shop_1")
    dotted = {"relational": relational.template(plan, PACKAGE), "publisher": publisher_access.template(plan)}
    dotted["serverless"] = serverless.template(replace(items(KEYS), pipeline="legacy.shop_1"), PACKAGE)
    assert not linted(tmp_path, dotted)


def test_the_mapping_gives_up_no_record_before_the_stream_does() -> None:
    template = relational.template(stream(control=CONTROL, claims=CLAIMS), PACKAGE)
    (mapping,) = resources(template, "Lambda::EventSourceMapping").values()
    about, (of_it,) = mapping["Properties"], resources(template, "Kinesis::Stream").values()
    assert about["MaximumRecordAgeInSeconds"] == of_it["Properties"]["RetentionPeriodHours"] * 3600
    assert about["MaximumRetryAttempts"] == -1
    assert about["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert about["BisectBatchOnFunctionError"] is True
    assert about["StartingPosition"] == "TRIM_HORIZON"
