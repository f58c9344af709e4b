"""Lambda functions with their roles and logs, and alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from upwell.app.stacks.cloudformation import Json, Template, allow, arn, att, if_, policy, ref, trusts

RUNTIME: Final = "python3.13"
ARCHITECTURE: Final = "arm64"
HANDLERS: Final = "upwell.cloud"
CONFIG: Final = "upwell.yaml"  # beside the code
SUBSCRIBER_CONFIG: Final = "subscriber.yaml"  # without the read API, whose secret the subscriber may not read
LOG_DAYS: Final = [1, 3, 7, 14, 30, 60, 90, 180, 365, 731, 1827]


def code_bucket(t: Template) -> None:
    """Where the package lies. Its key is no parameter: `aws cloudformation deploy` would keep the one before."""
    t.parameter("CodeBucket", "The S3 bucket, in this Region, into which the package was put.")


def log_group(t: Template, name: str) -> Json:
    """A log group, kept as long as the parameter says."""
    t.parameter("LogDays", "How many days logs are kept.", 30, Type="Number", AllowedValues=LOG_DAYS)
    return t.add(name, "Logs::LogGroup", {"RetentionInDays": ref("LogDays")}, keep="Delete")


def may_log(group: str) -> Json:
    """The right to write to a log group: CloudWatch Logs knows none for less than its streams."""
    return allow(["logs:CreateLogStream", "logs:PutLogEvents"], arn("logs", f"log-group:${{{group}}}:*"))


def function(
    t: Template,
    name: str,
    description: str,
    handler: str,
    code_key: str,
    statements: Sequence[Json],
    *,
    timeout: int,
    memory: int,
    environment: Mapping[str, Any] | None = None,
    vpc: Json | None = None,
) -> Json:
    """A function of the package, its role, its log group, and an alarm for each way in which it fails."""
    log_group(t, f"{name}Log")
    t.add(
        f"{name}Role",
        "IAM::Role",
        {
            "Description": f"What {description} may do",
            "AssumeRolePolicyDocument": trusts("lambda"),
            "Policies": [policy("own", [may_log(f"{name}Log"), *statements])],
        },
    )
    properties: Json = {
        "Description": description,
        "Runtime": RUNTIME,
        "Architectures": [ARCHITECTURE],
        "Handler": handler,
        "Code": {"S3Bucket": ref("CodeBucket"), "S3Key": code_key},
        "Role": att(f"{name}Role", "Arn"),
        "Timeout": timeout,
        "MemorySize": memory,
        "LoggingConfig": {"LogGroup": ref(f"{name}Log")},
    }
    properties["Environment"] = {"Variables": {"UPWELL_CONFIG": CONFIG, **(environment or {})}}
    if vpc:
        properties["VpcConfig"] = vpc
    made = t.add(name, "Lambda::Function", properties)
    for metric, why in (("Errors", "fails"), ("Throttles", "is called more often than the account allows")):
        alarm(t, f"{name}{metric}", f"{description} {why}", "AWS/Lambda", metric, {"FunctionName": ref(name)})
    return made


def alarm(
    t: Template,
    name: str,
    description: str,
    namespace: str,
    metric: str,
    dimensions: Mapping[str, Any],
    *,
    statistic: str = "Sum",
    above: Any = 0,
    below: Any = None,
    minutes: Any = 5,
    missing: str = "notBreaching",
    condition: str | None = None,
) -> None:
    """An alarm over a metric, minute by minute: beyond the limit in each of so many minutes, or once where `above`
    is 0. `missing`: what a minute without a figure says.
    """
    once = below is None and above == 0
    kind = {"ExtendedStatistic": statistic} if statistic.startswith("p") else {"Statistic": statistic}
    topic(t)
    action = [if_("HasAlarmTopicArn", ref("AlarmTopicArn"))]
    t.add(
        name,
        "CloudWatch::Alarm",
        {
            "AlarmDescription": description,
            "Namespace": namespace,
            "MetricName": metric,
            "Dimensions": [{"Name": key, "Value": value} for key, value in dimensions.items()],
            **kind,
            "Period": 60,
            "EvaluationPeriods": minutes,
            "DatapointsToAlarm": 1 if once else minutes,
            "ComparisonOperator": "GreaterThanThreshold" if below is None else "LessThanThreshold",
            "Threshold": above if below is None else below,
            "TreatMissingData": missing,
            "AlarmActions": action,
            "OKActions": action,
        },
        condition=condition,
    )


def topic(t: Template) -> None:
    """Whom the alarms tell."""
    t.parameter("AlarmTopicArn", "The SNS topic that alarms are sent to; empty: they only show in CloudWatch.", "")
    t.given("AlarmTopicArn")


def staleness(t: Template) -> Json:
    """From when on data are called stale."""
    return t.parameter(
        "StaleAfterMinutes",
        "For so long no heartbeat may arrive before the alarm Stale is raised.",
        5,
        Type="Number",
        MinValue=2,
        MaxValue=60,
    )


def cursor_secret(t: Template, pipeline: str) -> Json:
    """The secret that signs the read API's cursors, made by Secrets Manager; returns the statement that lets it be
    read.
    """
    t.add(
        "CursorKey",
        "SecretsManager::Secret",
        {
            "Name": cursor_secret_name(pipeline),
            "Description": "Signs the cursors of the read API",
            "GenerateSecretString": {"PasswordLength": 64, "ExcludePunctuation": True},
        },
        keep="Delete",
    )
    return allow(["secretsmanager:GetSecretValue"], att("CursorKey", "Id"))


def cursor_secret_name(pipeline: str) -> str:
    """How the configuration beside the function's code finds it."""
    return f"upwell/{pipeline}/cursor-key"
