"""Stacks on ministack, with IAM enforced: deployed, updated, deleted."""

import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import ClientError

from lab.ministack import Ministack
from tests.stack_plans import statements, without
from upwell.app.stacks.cloudformation import Json, as_yaml

BUCKET = "code"
IMAGE = "/test/image"
PATIENCE_S = 60.0
UNKNOWN_HERE = ("RolesAnywhere::TrustAnchor", "RolesAnywhere::Profile", "EC2::EIP", "EC2::NatGateway")


def put_code(aws: Ministack, key: str, files: Mapping[str, bytes]) -> None:
    """A package for functions."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path, each in files.items():
            archive.writestr(path, each)
    aws.client("s3").put_object(Bucket=BUCKET, Key=key, Body=content.getvalue())


class Deployed:
    """A stack that is there."""

    def __init__(self, aws: Ministack, name: str, template: Json, **parameters: str) -> None:
        self.aws, self.name = aws, name
        self._parameters = parameters
        self._template = template
        self._change("create_stack", template)

    def update(self, template: Json) -> None:
        self._change("update_stack", template)

    def _change(self, how: str, template: Json) -> None:
        known = known_here(template)
        given = {"CodeBucket": BUCKET, **self._parameters}
        wanted = [key for key in known.get("Parameters", {}) if key in given]
        getattr(self._client, how)(
            StackName=self.name,
            TemplateBody=as_yaml(known),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": given[key]} for key in wanted],
        )
        good = "CREATE_COMPLETE" if how == "create_stack" else "UPDATE_COMPLETE"
        self._await(lambda status: status == good)

    def delete(self) -> None:
        self._client.delete_stack(StackName=self.name)
        self._await(lambda status: status is None)

    @property
    def _client(self) -> Any:
        return self.aws.client("cloudformation")

    def _await(self, done: Callable[[str | None], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                (stack,) = self._client.describe_stacks(StackName=self.name)["Stacks"]
            except ClientError:
                stack = {"StackStatus": None}
            status = stack["StackStatus"]
            if done(status):
                return
            assert status is not None, f"{self.name} is gone"
            assert status.endswith("IN_PROGRESS"), self._why(status)
            assert time.monotonic() < deadline, self._why(status)
            time.sleep(0.05)

    def _why(self, status: str) -> str:
        events = self._client.describe_stack_events(StackName=self.name)["StackEvents"]
        failed = [e for e in events if "FAILED" in e["ResourceStatus"]]
        return f"{self.name} is {status}: {[(e['LogicalResourceId'], e.get('ResourceStatusReason')) for e in failed]}"

    def resource(self, name: str) -> str:
        found = self._client.describe_stack_resource(StackName=self.name, LogicalResourceId=name)
        return str(found["StackResourceDetail"]["PhysicalResourceId"])

    def names(self) -> set[str]:
        found = self._client.describe_stack_resources(StackName=self.name)["StackResources"]
        return {each["LogicalResourceId"] for each in found}


def known_here(template: Json) -> Json:
    """The template without what ministack does not know."""
    known = without(template, *UNKNOWN_HERE)
    for name in ("PrivateARoute", "PrivateBRoute"):  # by the NAT gateways
        known["Resources"].pop(name, None)
    known.get("Outputs", {}).pop("DatabaseSecretArn", None)  # an attribute that only the true RDS has
    for statement in statements(known["Resources"]):
        condition = statement.get("Condition", {})
        for way in condition.get("Fn::If", [condition])[-2:]:
            if isinstance(way, dict) and "LeadingKeys" in json.dumps(way.get("Null", {})):
                del way["Null"]
    for role in known["Resources"].values():
        trust = role.get("Properties", {}).get("AssumeRolePolicyDocument", {}).get("Statement", [])
        if trust and "Fn::If" in trust[0]:
            trust[0] = trust[0]["Fn::If"][2]
    return known
