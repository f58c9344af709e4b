"""CloudFormation's words, and a template that grows.

https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/template-anatomy.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import yaml

Json = dict[str, Any]
Keeps = Literal["Delete", "Retain", "Snapshot"]

NO_VALUE: Final[Json] = {"Ref": "AWS::NoValue"}
POLICY_BYTES_MAX: Final = 10_240  # of all policies inside a role, without blanks
REGION: Final[Json] = {"Ref": "AWS::Region"}
# Resources that take no tags; every other one takes a list of them.
UNTAGGED: Final = frozenset(
    {
        "AWS::ApiGateway::Account",
        "AWS::ApiGateway::Authorizer",
        "AWS::ApiGateway::Deployment",
        "AWS::ApiGateway::GatewayResponse",
        "AWS::ApiGateway::Method",
        "AWS::ApiGateway::RequestValidator",
        "AWS::ApiGateway::Resource",
        "AWS::ApiGateway::UsagePlanKey",
        "AWS::AutoScaling::ScalingPolicy",
        "AWS::EC2::Route",
        "AWS::EC2::SubnetRouteTableAssociation",
        "AWS::EC2::VPCGatewayAttachment",
        "AWS::IAM::InstanceProfile",
        "AWS::KMS::Alias",
        "AWS::Lambda::Permission",
    }
)


def ref(name: str) -> Json:
    """A parameter's value, or what identifies a resource."""
    return {"Ref": name}


def att(resource: str, attribute: str) -> Json:
    """An attribute of a resource."""
    return {"Fn::GetAtt": [resource, attribute]}


def sub(text: str, **values: Any) -> Json:
    """Text with `${…}` filled in: by a value given here, else as by `ref` or, with a dot, by `att`."""
    return {"Fn::Sub": [text, values] if values else text}


def join(separator: str, parts: Sequence[Any]) -> Json:
    """The parts as one text."""
    return {"Fn::Join": [separator, list(parts)]}


def if_(condition: str, then: Any, otherwise: Any = NO_VALUE) -> Json:
    """One or the other, by a condition of the template."""
    return {"Fn::If": [condition, then, otherwise]}


def arn(service: str, resource: str, *, region: bool = True, account: bool = True) -> Json:
    """An ARN in the stack's own partition, Region and account; `resource` may hold `${…}` as in `sub`."""
    place = f"{'${AWS::Region}' if region else ''}:{'${AWS::AccountId}' if account else ''}"
    return sub(f"arn:${{AWS::Partition}}:{service}:{place}:{resource}")


def allow(actions: Sequence[str], resources: Any, **conditions: Mapping[str, Any]) -> Json:
    """A statement of a policy. Conditions by operator, as in `StringEquals={…}`."""
    statement: Json = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
    return (
        {**statement, "Condition": {name: dict(test) for name, test in conditions.items()}} if conditions else statement
    )


def policy(name: str, statements: Sequence[Json]) -> Json:
    """A policy inside a role."""
    return {"PolicyName": name, "PolicyDocument": {"Version": "2012-10-17", "Statement": list(statements)}}


def policy_bytes(policies: Sequence[Json]) -> int:
    """About how large they are when CloudFormation has filled them in."""
    text = json.dumps([each["PolicyDocument"] for each in policies], separators=(",", ":"))
    for name, value in (("Partition", "aws"), ("Region", "ap-southeast-1"), ("AccountId", "123456789012")):
        text = text.replace(f"${{AWS::{name}}}", value)
    return len(re.sub(r'\{"Fn::Sub":("[^"]*")\}', r"\1", text))


def trusts(service: str) -> Json:
    """The trust policy of a role that a service of AWS takes on."""
    statement = {"Effect": "Allow", "Principal": {"Service": f"{service}.amazonaws.com"}, "Action": "sts:AssumeRole"}
    return {"Version": "2012-10-17", "Statement": [statement]}


def logical(text: str) -> str:
    """A name for a resource in the template, of letters and digits; different texts may become the same."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", text))


@dataclass
class Template:
    """A template that grows; `body` is what it came to."""

    description: str
    tags: Mapping[str, str]
    resources: dict[str, Json] = field(default_factory=dict)
    parameters: dict[str, Json] = field(default_factory=dict)
    conditions: dict[str, Json] = field(default_factory=dict)
    rules: dict[str, Json] = field(default_factory=dict)
    outputs: dict[str, Json] = field(default_factory=dict)

    def add(
        self,
        name: str,
        kind: str,
        properties: Mapping[str, Any] | None = None,
        *,
        condition: str | None = None,
        keep: Keeps | None = None,
        after: str | Sequence[str] | None = None,
        **attributes: Any,
    ) -> Json:
        """A resource, tagged where its kind can be; returns what refers to it. `keep`: what deleting leaves."""
        assert name not in self.resources, f"{name} is there already"
        content: Json = {"Type": f"AWS::{kind}"}
        if condition:
            content["Condition"] = condition
        if after:
            content["DependsOn"] = after if isinstance(after, str) else list(after)
        if keep:
            content |= {"DeletionPolicy": keep, "UpdateReplacePolicy": keep}
        content |= attributes
        content["Properties"] = dict(properties or {})
        if content["Type"] not in UNTAGGED:
            content["Properties"] |= self._tags(kind)
        if not content["Properties"]:
            del content["Properties"]
        self.resources[name] = content
        return ref(name)

    def _tags(self, kind: str) -> Json:
        pairs = [{"Key": key, "Value": value} for key, value in self.tags.items()]
        if kind == "AutoScaling::AutoScalingGroup":
            return {"Tags": [{**pair, "PropagateAtLaunch": True} for pair in pairs]}
        if kind == "EC2::LaunchTemplate":  # its property Tags does not exist: it tags what is launched, and itself
            return {"TagSpecifications": [{"ResourceType": "launch-template", "Tags": pairs}]}
        return {"Tags": pairs}

    def parameter(self, name: str, description: str, default: Any = None, **more: Any) -> Json:
        """A parameter, text unless `Type` says otherwise; without a default it must be given."""
        content: Json = {"Type": "String", "Description": description, **more}
        if default is not None:
            content["Default"] = default
        self.parameters.setdefault(name, content)
        return ref(name)

    def given(self, parameter: str) -> str:
        """The condition that a parameter is not empty."""
        name = f"Has{parameter}"
        self.conditions[name] = {"Fn::Not": [{"Fn::Equals": [ref(parameter), ""]}]}
        return name

    def output(self, name: str, description: str, value: Any, condition: str | None = None) -> None:
        """Something to be told of the stack."""
        self.outputs[name] = {"Description": description, "Value": value}
        if condition:
            self.outputs[name]["Condition"] = condition

    @property
    def body(self) -> Json:
        """The template."""
        parts = {
            "Parameters": self.parameters,
            "Rules": self.rules,
            "Conditions": self.conditions,
            "Resources": self.resources,
            "Outputs": self.outputs,
        }
        head = {"AWSTemplateFormatVersion": "2010-09-09", "Description": self.description}
        return {**head, **{name: part for name, part in parts.items() if part}}


class _Dumper(yaml.SafeDumper):
    """Repeats what occurs twice: CloudFormation knows no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def as_yaml(template: Mapping[str, Any]) -> str:
    """The template as text. A date, such as a policy's version, is quoted."""
    return yaml.dump(template, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
