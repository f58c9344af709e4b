"""README.md beside a template: the commands, exactly, from nothing to a running stack and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from upwell.app.stacks.blueprint import Blueprint
from upwell.app.stacks.database import ADMIN, NAME, READER, SUBSCRIBER
from upwell.app.stacks.functions import cursor_secret_name

Kind = Literal["serverless", "relational", "publisher-access"]

_BUCKET: Final = """
## 1. A bucket for the code

Once for the account and Region; skip it where you have one.

```sh
export CODE_BUCKET=upwell-code-$(aws sts get-caller-identity --query Account --output text)-$AWS_REGION
{make_bucket}
aws s3api put-public-access-block --bucket "$CODE_BUCKET" --public-access-block-configuration \\
  BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
aws s3api put-bucket-versioning --bucket "$CODE_BUCKET" --versioning-configuration Status=Enabled
```

## 2. Put the code there

```sh
aws s3 cp {package} "s3://$CODE_BUCKET/{package}"
```
"""
_DEPLOY: Final = """
## {number}. Deploy, and later update

```sh
aws cloudformation deploy --stack-name {stack} --template-file template.yaml \\
  --capabilities CAPABILITY_IAM{bucket}{parameters}
```

The same command updates the stack{again}. `--no-execute-changeset` shows what would change.

```sh
aws cloudformation describe-stacks --stack-name {stack} --query 'Stacks[0].Outputs' --output table
```
"""
_USERS: Final = """
## 4. The users of the database

Once. They log in by IAM, without passwords; the administrator's password stays in Secrets Manager.

```sh
out() {{ aws cloudformation describe-stacks --stack-name {stack} --output text \\
  --query "Stacks[0].Outputs[?OutputKey=='$1'].OutputValue"; }}
sql() {{ aws rds-data execute-statement --resource-arn "$(out DatabaseArn)" --secret-arn "$(out DatabaseSecretArn)" \\
  --database {database} --sql "$1"; }}
sql 'CREATE ROLE {subscriber} LOGIN'
sql 'GRANT rds_iam TO {subscriber}'
sql 'GRANT {subscriber} TO CURRENT_USER'
sql 'GRANT CREATE, TEMPORARY ON DATABASE {database} TO {subscriber}'
sql 'GRANT USAGE, CREATE ON SCHEMA public TO {subscriber}'
sql 'CREATE SCHEMA upwell AUTHORIZATION {subscriber}'
sql 'CREATE ROLE {reader} LOGIN'
sql 'GRANT rds_iam TO {reader}'
sql 'GRANT USAGE ON SCHEMA public TO {reader}'
sql 'GRANT USAGE ON SCHEMA upwell TO {reader}'
sql 'ALTER DEFAULT PRIVILEGES FOR ROLE {subscriber} IN SCHEMA public GRANT SELECT ON TABLES TO {reader}'
```

Until then the function fails and is called again by AWS; nothing is lost. Other schemas that rows go to need the same
two GRANTs.
"""
_HELPER: Final = (
    "credential_process = /usr/local/bin/aws_signing_helper credential-process"
    " --certificate /etc/upwell/publisher.pem --private-key /etc/upwell/publisher.key"
    " --trust-anchor-arn TRUST_ANCHOR_ARN --profile-arn PROFILE_ARN --role-arn ROLE_ARN"
)
_DELETE: Final = """
## Delete

{commands}
{stays}
"""


def readme(kind: Kind, plan: Blueprint, template: Mapping[str, Any], package: str | None, region: str | None) -> str:
    """The guide to one stack, in Markdown. `package`: the name of function.zip, where the stack has one."""
    stack = f"upwell-{plan.pipeline.replace('.', '-').replace('_', '-')}-{kind}"
    number = 1
    parts = [_head(kind, plan, region)]
    if package:
        parts.append(_BUCKET.format(package=package, make_bucket=_make_bucket(region)))
        number = 3
    again = "; after `upwell stack` has written another package, put that into the bucket first" if package else ""
    parameters = "".join(f" \\\n  {line}" for line in _parameters(template))
    bucket = ' --s3-bucket "$CODE_BUCKET" --s3-prefix templates' if package else ""
    parts.append(_DEPLOY.format(number=number, stack=stack, parameters=parameters, again=again, bucket=bucket))
    if kind == "relational":
        parts.append(_USERS.format(stack=stack, database=NAME, subscriber=SUBSCRIBER, reader=READER))
    if kind == "publisher-access":
        parts.append(_certificate(plan))
    parts.append(_table_of_parameters(template))
    parts.append(_delete(kind, stack, plan))
    return "".join(parts)


def _head(kind: Kind, plan: Blueprint, region: str | None) -> str:
    place = region or "REGION"
    return (
        f"# {kind} for the pipeline {plan.pipeline}\n\n"
        "Written by `upwell stack`; template.yaml is CloudFormation and needs nothing but the AWS CLI.\n\n"
        f"```sh\nexport AWS_REGION={place}{'' if region else '   # the one of your tables or your stream'}\n```\n"
    )


def _make_bucket(region: str | None) -> str:
    # S3's first region is the one that may not be named.
    place = "" if region == "us-east-1" else ' --create-bucket-configuration LocationConstraint="$AWS_REGION"'
    return f'aws s3api create-bucket --bucket "$CODE_BUCKET"{place}'


def _parameters(template: Mapping[str, Any]) -> list[str]:
    """Those that must be given."""
    wanted = [name for name, about in template.get("Parameters", {}).items() if "Default" not in about]
    values = [f'{name}="${_variable(name)}"' for name in wanted]
    if "CaCertificate" in template.get("Parameters", {}):
        values.append('CaCertificate="$(cat ca.pem)"')
    return ["--parameter-overrides " + " ".join(values)] if values else []


def _variable(name: str) -> str:
    return "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in name).lstrip("_")


def _table_of_parameters(template: Mapping[str, Any]) -> str:
    rows = [
        f"| `{name}` | {about.get('Default', '')} | {about['Description']} |"
        for name, about in template.get("Parameters", {}).items()
    ]
    return "\n## Parameters\n\n| parameter | default | |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


def _certificate(plan: Blueprint) -> str:
    name = f"upwell-{plan.pipeline}"
    return f"""
## 2. The publisher's machine

No key of AWS lies there: a certificate is exchanged for credentials that live for an hour. Take your company's
authority where it has one; else make one, before the deployment, on a machine that is not the publisher's:

```sh
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN={name}-ca" \\
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.pem
```

The publisher's own certificate. Its common name is what the role asks for; make the key on the publisher's machine and
take only the request away:

```sh
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN={name}" \\
  -keyout publisher.key -out publisher.csr
printf 'basicConstraints=CA:FALSE\\nkeyUsage=critical,digitalSignature\\nextendedKeyUsage=clientAuth\\n' > extensions
openssl x509 -req -in publisher.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile extensions \\
  -out publisher.pem
chmod 400 publisher.key
```

AWS's helper, https://docs.aws.amazon.com/rolesanywhere/latest/userguide/credential-helper.html, in `~/.aws/config` of
the user that runs upwell, with the three ARNs that the stack tells:

```ini
[default]
{_HELPER}
```

```sh
aws sts get-caller-identity
upwell doctor
```

A certificate that may no longer be used goes into a revocation list: `aws rolesanywhere import-crl`.
"""


def _delete(kind: Kind, stack: str, plan: Blueprint) -> str:
    commands = [f"aws cloudformation delete-stack --stack-name {stack}"]
    if kind == "relational":
        commands.insert(
            0,
            f"aws cloudformation deploy --stack-name {stack} --template-file template.yaml \\\n"
            '  --capabilities CAPABILITY_IAM --s3-bucket "$CODE_BUCKET" --s3-prefix templates \\\n'
            "  --parameter-overrides DeletionProtection=false",
        )
    shell = "```sh\n" + "\n".join(commands) + "\n```\n"
    return _DELETE.format(commands=shell, stays="\n".join(_what_stays(kind, plan)))


def _what_stays(kind: Kind, plan: Blueprint) -> Sequence[str]:
    tables = [table.name for table in (*plan.written, *plan.kept)]
    if kind == "publisher-access":
        return ["Nothing stays. The publisher can't send any more."]
    lines = ["What stays, because it holds data:", ""]
    if kind == "relational":
        lines += [f"* a snapshot of the database (its users {SUBSCRIBER} and {READER} are in it; {ADMIN} too)"]
    if plan.stream:
        lines += [f"* the stream `{plan.stream}`, until `aws kinesis delete-stream --stream-name {plan.stream}`,"]
        lines += ["  and its key, until `aws kms schedule-key-deletion`: without the key nobody can read the stream"]
    for table in tables:
        lines.append(f"* the table `{table}`, until")
        lines.append(f"  `aws dynamodb update-table --table-name {table} --no-deletion-protection-enabled` and")
        lines.append(f"  `aws dynamodb delete-table --table-name {table}`")
    if plan.api and kind == "serverless":
        lines.append("* the role by which API Gateway writes logs, which other APIs of the account may use")
    if plan.api:
        secret = cursor_secret_name(plan.pipeline)
        lines += ["", f"The secret `{secret}` goes. Should a new deployment find it still waiting for its deletion:"]
        lines += [f"`aws secretsmanager delete-secret --secret-id {secret} --force-delete-without-recovery`."]
    keep = [*(["StreamPlace=keep KeptStreamKeyArn=…"] if plan.stream else []), *(["Tables=keep"] if tables else [])]
    if keep:
        lines += ["", f"To deploy again beside what stayed: `--parameter-overrides … {' '.join(keep)}`."]
    return lines
