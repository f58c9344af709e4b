"""Who the publisher is to AWS: a role with its pipeline's rights, for the holder of a certificate."""

from __future__ import annotations

from upwell import rights
from upwell.app.stacks.blueprint import Blueprint
from upwell.app.stacks.claims import may_put
from upwell.app.stacks.cloudformation import NO_VALUE, Json, Template, allow, arn, att, if_, policy, ref, sub
from upwell.app.stacks.serverless import TAG
from upwell.app.stacks.tables import may_poll, may_write

_ANYWHERE = "HasCaCertificate"
# One role or user: neither everybody nor a whole account.
_PRINCIPAL = r"(arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/[A-Za-z0-9+=,.@_/-]+)?"


def template(plan: Blueprint) -> Json:
    """The role, and the trust anchor and profile by which a certificate stands for it."""
    t = Template(f"upwell {plan.pipeline}: what its publisher may do", {TAG: plan.pipeline})
    _parameters(t, plan.pipeline)
    name = f"upwell-{plan.pipeline.replace('.', '-')}"  # Roles Anywhere takes no dots
    t.add(
        "TrustAnchor",
        "RolesAnywhere::TrustAnchor",
        {
            "Name": name,
            "Enabled": True,
            "Source": {
                "SourceType": "CERTIFICATE_BUNDLE",
                "SourceData": {"X509CertificateData": ref("CaCertificate")},
            },
        },
        condition=_ANYWHERE,
    )
    t.add(
        "Role",
        "IAM::Role",
        {
            "Description": f"Publishes the pipeline {plan.pipeline}, and nothing else",
            "MaxSessionDuration": 3600,
            "AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [if_(_ANYWHERE, _anywhere(), _other())]},
            "Policies": [policy("publish", [_from_here(statement) for statement in statements(t, plan)])],
        },
    )
    t.add(
        "Profile",
        "RolesAnywhere::Profile",
        {
            "Name": name,
            "Enabled": True,
            "DurationSeconds": ref("SessionSeconds"),
            "RoleArns": [att("Role", "Arn")],
        },
        condition=_ANYWHERE,
    )
    t.output("RoleArn", "The publisher's role", att("Role", "Arn"))
    t.output("TrustAnchorArn", "For credential_process", att("TrustAnchor", "TrustAnchorArn"), condition=_ANYWHERE)
    t.output("ProfileArn", "For credential_process", att("Profile", "ProfileArn"), condition=_ANYWHERE)
    return t.body


def statements(t: Template, plan: Blueprint) -> list[Json]:
    """What publishing this pipeline needs of AWS."""
    found = []
    if plan.stream:
        found.append(allow(rights.SEND_RECORDS, arn("kinesis", f"stream/{plan.stream}")))
        t.parameter("StreamKeyArn", "The ARN of the stream's KMS key; empty where it has AWS's own.", "")
        has_key = t.given("StreamKeyArn")
        via = {"kms:ViaService": sub("kinesis.${AWS::Region}.amazonaws.com")}
        found.append(if_(has_key, allow(rights.ENCRYPT, ref("StreamKeyArn"), StringEquals=via)))
    if plan.written:
        found += may_write(plan.written, create=plan.create_tables, remove=plan.removes)
    return [*found, *may_poll(plan.control, plan.pipeline), *may_put(t, plan.claims)]


def _parameters(t: Template, pipeline: str) -> None:
    t.parameter(
        "CaCertificate",
        "The certificate, as PEM, of the authority that signs the publisher's. Empty: no Roles Anywhere.",
        "",
    )
    t.parameter("CommonName", "The common name in the publisher's own certificate.", f"upwell-{pipeline}", MinLength=1)
    t.parameter(
        "SessionSeconds",
        "How long credentials live before the helper fetches new ones.",
        3600,
        Type="Number",
        MinValue=900,
        MaxValue=3600,
    )
    t.parameter(
        "TrustedPrincipalArn",
        "Instead of a certificate: a role that the publisher's machine has already.",
        "",
        AllowedPattern=_PRINCIPAL,
    )
    t.parameter("SourceCidr", "The address range that the publisher comes from, as 203.0.113.0/24; empty: any.", "")
    t.given("CaCertificate")
    t.given("SourceCidr")
    one, other = ({"Fn::Equals": [ref(name), ""]} for name in ("CaCertificate", "TrustedPrincipalArn"))
    t.rules["OneWayIn"] = {
        "Assertions": [
            {
                "Assert": {"Fn::And": [{"Fn::Or": [one, other]}, {"Fn::Not": [{"Fn::And": [one, other]}]}]},
                "AssertDescription": "Give CaCertificate or TrustedPrincipalArn, and not both",
            }
        ]
    }


def _anywhere() -> Json:
    """Only this authority's certificate of this name: the subject becomes tags of the session."""
    return {
        "Effect": "Allow",
        "Principal": {"Service": "rolesanywhere.amazonaws.com"},
        "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"],
        "Condition": {
            "StringEquals": {"aws:PrincipalTag/x509Subject/CN": ref("CommonName")},
            "ArnEquals": {"aws:SourceArn": att("TrustAnchor", "TrustAnchorArn")},
        },
    }


def _other() -> Json:
    return {"Effect": "Allow", "Principal": {"AWS": ref("TrustedPrincipalArn")}, "Action": ["sts:AssumeRole"]}


def _from_here(statement: Json) -> Json:
    """The statement, where wanted only for who comes from the data center's own addresses."""
    if "Fn::If" in statement:
        condition, then, otherwise = statement["Fn::If"]
        return if_(condition, _from_here(then), otherwise)
    anywhere = statement.get("Condition", NO_VALUE)
    here = {**statement.get("Condition", {}), "IpAddress": {"aws:SourceIp": ref("SourceCidr")}}
    return {**statement, "Condition": if_("HasSourceCidr", here, anywhere)}
