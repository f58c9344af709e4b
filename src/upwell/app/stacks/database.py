"""Aurora PostgreSQL Serverless v2 in private subnets: a writer and a reader, each in a zone of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from upwell.app.stacks.cloudformation import Json, Template, allow, arn, att, if_, ref
from upwell.app.stacks.functions import alarm
from upwell.app.stacks.network import POSTGRES_PORT, PRIVATE, ZONES, security_group

NAME: Final = "upwell"
SUBSCRIBER: Final = "upwell_subscriber"
READER: Final = "upwell_reader"
ADMIN: Final = "upwell_admin"


def add_database(t: Template, from_groups: Sequence[Json]) -> None:
    """The cluster; those groups may connect, by IAM and TLS. Its administrator's password is Secrets Manager's."""
    _parameters(t)
    group = security_group(
        t, "DatabaseGroup", "The database, from those who use it", into=[(POSTGRES_PORT, each) for each in from_groups]
    )
    t.add(
        "DatabaseSubnets",
        "RDS::DBSubnetGroup",
        {"DBSubnetGroupDescription": "Private, in two zones", "SubnetIds": PRIVATE},
    )
    t.add(
        "Database",
        "RDS::DBCluster",
        {
            "Engine": "aurora-postgresql",
            "EngineVersion": if_("HasEngineVersion", ref("EngineVersion")),
            "DatabaseName": NAME,
            "MasterUsername": ADMIN,
            "ManageMasterUserPassword": True,
            "EnableIAMDatabaseAuthentication": True,
            "EnableHttpEndpoint": True,  # by which the two users are made without a way into the network
            "ServerlessV2ScalingConfiguration": {"MinCapacity": ref("MinCapacity"), "MaxCapacity": ref("MaxCapacity")},
            "DBSubnetGroupName": ref("DatabaseSubnets"),
            "VpcSecurityGroupIds": [group],
            "StorageEncrypted": True,
            "BackupRetentionPeriod": ref("BackupDays"),
            "CopyTagsToSnapshot": True,
            "DeletionProtection": ref("DeletionProtection"),
            # Its log stays where it is, for three days: it quotes rows, and CloudWatch would keep it without end.
        },
        keep="Snapshot",
    )
    for zone in ZONES:
        t.add(
            f"Database{zone}",
            "RDS::DBInstance",
            {
                "DBClusterIdentifier": ref("Database"),
                "Engine": "aurora-postgresql",
                "DBInstanceClass": "db.serverless",
                "PubliclyAccessible": False,
                "AutoMinorVersionUpgrade": True,
            },
            keep="Delete",
        )
    alarm(
        t,
        "DatabaseFull",
        "The database uses all the capacity that it may",
        "AWS/RDS",
        "ACUUtilization",
        {"DBClusterIdentifier": ref("Database")},
        statistic="Maximum",
        above=95,
        minutes=15,
    )
    t.output("DatabaseArn", "For aws rds-data", att("Database", "DBClusterArn"))
    t.output("DatabaseSecretArn", "The administrator's password", att("Database", "MasterUserSecret.SecretArn"))


def may_connect(user: str) -> Json:
    """The right to log in as a user of the database."""
    return allow(["rds-db:connect"], arn("rds-db", f"dbuser:${{Database.DBClusterResourceId}}/{user}"))


def _parameters(t: Template) -> None:
    t.parameter("EngineVersion", "Aurora PostgreSQL's version; empty: AWS's default when the cluster is made.", "")
    t.given("EngineVersion")
    t.parameter(
        "MinCapacity", "ACUs that an instance always has; heartbeats keep it from pausing at 0.", 0.5, Type="Number"
    )
    t.parameter("MaxCapacity", "ACUs that an instance may grow to.", 4, Type="Number")
    t.parameter(
        "BackupDays", "For how many days any second can be restored.", 7, Type="Number", MinValue=1, MaxValue=35
    )
    t.parameter(
        "DeletionProtection",
        "true: the cluster can't be deleted. Deleted, it leaves a snapshot.",
        "true",
        AllowedValues=["true", "false"],
    )
