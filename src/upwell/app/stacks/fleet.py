"""The read API on a fleet: instances in two zones behind a load balancer, made anew by an Auto Scaling group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from upwell.app.stacks.blueprint import Blueprint
from upwell.app.stacks.claims import may_get
from upwell.app.stacks.cloudformation import REGION, Template, allow, att, policy, ref, sub, trusts
from upwell.app.stacks.database import READER, may_connect
from upwell.app.stacks.functions import alarm, cursor_secret, log_group, may_log
from upwell.app.stacks.network import HTTPS_PORT, POSTGRES_PORT, PRIVATE, PUBLIC, security_group

API_PORT: Final = 8080
FOLDER: Final = "/opt/upwell"
_IMAGE: Final = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64"

_START: Final = """\
#!/bin/bash
set -euo pipefail
dnf install --assumeyes --quiet python3.13 amazon-cloudwatch-agent logrotate
aws s3 cp --region ${AWS::Region} --only-show-errors "s3://${CodeBucket}/%(code_key)s" /tmp/function.zip
mkdir -p /opt/upwell
python3.13 -m zipfile -e /tmp/function.zip /opt/upwell
python3.13 -m compileall -qq /opt/upwell || true
useradd --system --no-create-home --shell /sbin/nologin upwell
cat > /etc/systemd/system/upwell-api.service <<'UNIT'
[Unit]
Description=The read API of upwell
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/usr/bin/python3.13 -m upwell api --host 0.0.0.0 --port %(port)s --log-format json
WorkingDirectory=/opt/upwell
%(environment)s
User=upwell
LogsDirectory=upwell
StandardOutput=append:/var/log/upwell/api.log
StandardError=append:/var/log/upwell/api.log
Restart=always
RestartSec=2
TimeoutStopSec=30
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
CapabilityBoundingSet=

[Install]
WantedBy=multi-user.target
UNIT
cat > /etc/logrotate.d/upwell <<'ROTATE'
/var/log/upwell/*.log {
  size 50M
  rotate 3
  copytruncate
  missingok
}
ROTATE
cat > /opt/upwell/agent.json <<'AGENT'
{"logs": {"logs_collected": {"files": {"collect_list": [
  {"file_path": "/var/log/upwell/api.log", "log_group_name": "${FleetLog}", "log_stream_name": "{instance_id}"}
]}}}}
AGENT
systemctl daemon-reload
systemctl enable --now upwell-api
cd /opt/aws/amazon-cloudwatch-agent/bin
./amazon-cloudwatch-agent-ctl -a fetch-config -m ec2 -s -c file:/opt/upwell/agent.json
"""


def add_fleet(t: Template, plan: Blueprint, code_key: str, environment: Mapping[str, Any]) -> None:
    """The fleet; `environment` is that of the service."""
    _parameters(t)
    log_group(t, "FleetLog")
    _role(t, plan, code_key)
    _instances(t, code_key, environment)
    _balancer(t)
    _group(t)
    _alarms(t)
    t.output(
        "Url",
        "Where the load balancer answers; let the certificate's name point there",
        sub("https://${Balancer.DNSName}"),
    )


def _parameters(t: Template) -> None:
    t.parameter("CertificateArn", "The certificate of AWS Certificate Manager, in this Region, for the API's name.")
    t.parameter("AllowedCidr", "The addresses that may reach the API: 0.0.0.0/0 for all.")
    t.parameter("InstanceType", "Of the fleet: any with Arm processors.", "t4g.small")
    t.parameter(
        "MinInstances", "At least so many; two, or the loss of a zone is an outage.", 2, Type="Number", MinValue=1
    )
    t.parameter("MaxInstances", "At most so many.", 6, Type="Number", MinValue=2)
    t.parameter(
        "ImageId", "Amazon Linux 2023, the newest.", _IMAGE, Type="AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>"
    )


def _role(t: Template, plan: Blueprint, code_key: str) -> None:
    code = sub(f"arn:${{AWS::Partition}}:s3:::${{CodeBucket}}/{code_key}")
    # The repositories of Amazon Linux are open to all, and need no right.
    statements = [
        may_log("FleetLog"),
        allow(["s3:GetObject"], code),
        may_connect(READER),
        cursor_secret(t, plan.pipeline),
        *may_get(t, plan.claims),
    ]
    t.add(
        "FleetRole",
        "IAM::Role",
        {
            "Description": f"What the read API of {plan.pipeline} may do",
            "AssumeRolePolicyDocument": trusts("ec2"),
            "Policies": [policy("own", statements)],
        },
    )
    t.add("FleetProfile", "IAM::InstanceProfile", {"Roles": [ref("FleetRole")]})


def _instances(t: Template, code_key: str, environment: Mapping[str, Any]) -> None:
    group = security_group(
        t,
        "FleetGroup",
        "The read API, from the load balancer",
        into=[(API_PORT, att("BalancerGroup", "GroupId"))],
        out=[(POSTGRES_PORT, ref("VpcCidr")), (HTTPS_PORT, "0.0.0.0/0")],
    )
    variables = {
        "UPWELL_CONFIG": f"{FOLDER}/upwell.yaml",
        "PYTHONPATH": FOLDER,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
    }
    variables |= environment
    values = {name.replace("_", ""): value for name, value in variables.items() if not isinstance(value, str)}
    lines = [
        f"Environment={name}={value if isinstance(value, str) else '${' + name.replace('_', '') + '}'}"
        for name, value in variables.items()
    ]
    script = _START % {"port": API_PORT, "code_key": code_key, "environment": "\n".join(lines)}
    t.add(
        "FleetTemplate",
        "EC2::LaunchTemplate",
        {
            "LaunchTemplateData": {
                "ImageId": ref("ImageId"),
                "InstanceType": ref("InstanceType"),
                "IamInstanceProfile": {"Arn": att("FleetProfile", "Arn")},
                "SecurityGroupIds": [group],
                "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
                "BlockDeviceMappings": [
                    {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 10, "VolumeType": "gp3", "Encrypted": True}}
                ],
                "UserData": {"Fn::Base64": sub(script, **values)},
                "TagSpecifications": [
                    {"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in t.tags.items()]}
                    for kind in ("instance", "volume")
                ],
            }
        },
    )


def _balancer(t: Template) -> None:
    allowed = ref("AllowedCidr")
    group = security_group(
        t,
        "BalancerGroup",
        "The load balancer, from those who may ask",
        into=[(HTTPS_PORT, allowed), (80, allowed)],
        out=[(API_PORT, ref("VpcCidr"))],
    )
    t.add(
        "Balancer",
        "ElasticLoadBalancingV2::LoadBalancer",
        {
            "Type": "application",
            "Scheme": "internet-facing",
            "Subnets": PUBLIC,
            "SecurityGroups": [group],
            "LoadBalancerAttributes": [{"Key": "routing.http.drop_invalid_header_fields.enabled", "Value": "true"}],
        },
        after="PublicRoute",
    )
    t.add(
        "Targets",
        "ElasticLoadBalancingV2::TargetGroup",
        {
            "VpcId": ref("Vpc"),
            "Protocol": "HTTP",
            "Port": API_PORT,
            "TargetType": "instance",
            "HealthCheckPath": "/healthz",
            "HealthCheckIntervalSeconds": 10,
            "HealthCheckTimeoutSeconds": 5,
            "HealthyThresholdCount": 2,
            "UnhealthyThresholdCount": 2,
            "TargetGroupAttributes": [{"Key": "deregistration_delay.timeout_seconds", "Value": "30"}],
        },
    )
    _listeners(t)


def _listeners(t: Template) -> None:
    forward = {"Type": "forward", "TargetGroupArn": ref("Targets")}
    secure = {"Protocol": "HTTPS", "Port": str(HTTPS_PORT), "StatusCode": "HTTP_301"}
    t.add(
        "Listener",
        "ElasticLoadBalancingV2::Listener",
        {
            "LoadBalancerArn": ref("Balancer"),
            "Protocol": "HTTPS",
            "Port": HTTPS_PORT,
            "SslPolicy": "ELBSecurityPolicy-TLS13-1-2-2021-06",
            "Certificates": [{"CertificateArn": ref("CertificateArn")}],
            "DefaultActions": [forward],
        },
    )
    t.add(
        "PlainListener",
        "ElasticLoadBalancingV2::Listener",
        {
            "LoadBalancerArn": ref("Balancer"),
            "Protocol": "HTTP",
            "Port": 80,
            "DefaultActions": [{"Type": "redirect", "RedirectConfig": secure}],
        },
    )


def _group(t: Template) -> None:
    t.add(
        "Fleet",
        "AutoScaling::AutoScalingGroup",
        {
            "MinSize": ref("MinInstances"),
            "MaxSize": ref("MaxInstances"),
            "VPCZoneIdentifier": PRIVATE,
            "LaunchTemplate": {
                "LaunchTemplateId": ref("FleetTemplate"),
                "Version": att("FleetTemplate", "LatestVersionNumber"),
            },
            "TargetGroupARNs": [ref("Targets")],
            "HealthCheckType": "ELB",
            "HealthCheckGracePeriod": 300,
        },
        after=["Listener", *(["DatabaseA"] if "DatabaseA" in t.resources else [])],
        # A new version takes the place of the old one, one instance after the other.
        UpdatePolicy={
            "AutoScalingRollingUpdate": {
                "MinInstancesInService": ref("MinInstances"),
                "MaxBatchSize": 1,
                "PauseTime": "PT4M",
                "SuspendProcesses": ["AZRebalance", "AlarmNotification", "ScheduledActions"],
            },
            "AutoScalingScheduledAction": {"IgnoreUnmodifiedGroupSizeProperties": True},
        },
    )
    t.add(
        "FleetScaling",
        "AutoScaling::ScalingPolicy",
        {
            "AutoScalingGroupName": ref("Fleet"),
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingConfiguration": {
                "PredefinedMetricSpecification": {"PredefinedMetricType": "ASGAverageCPUUtilization"},
                "TargetValue": 50,
            },
        },
    )


def _alarms(t: Template) -> None:
    balancer, targets = att("Balancer", "LoadBalancerFullName"), att("Targets", "TargetGroupFullName")
    elb, of_all, of_group = (
        "AWS/ApplicationELB",
        {"LoadBalancer": balancer},
        {"LoadBalancer": balancer, "TargetGroup": targets},
    )
    alarm(t, "ApiFails", "The read API answers with 5xx", elb, "HTTPCode_Target_5XX_Count", of_all)
    alarm(t, "BalancerFails", "The load balancer finds nobody who answers", elb, "HTTPCode_ELB_5XX_Count", of_all)
    alarm(
        t,
        "InstancesSick",
        "Instances of the read API do not answer",
        elb,
        "UnHealthyHostCount",
        of_group,
        statistic="Maximum",
        above=0.5,
        minutes=10,
    )
    t.parameter(
        "LatencySeconds", "The alarm ApiSlow is raised where one in a hundred answers takes longer.", 2, Type="Number"
    )
    alarm(
        t,
        "ApiSlow",
        "The read API is slow",
        elb,
        "TargetResponseTime",
        of_all,
        statistic="p99",
        above=ref("LatencySeconds"),
    )
