"""`${secretsmanager:ID}` of a configuration, fetched when it is needed and not before."""

from __future__ import annotations

from contextlib import closing

from upwell.errors import ConfigError


def from_secrets_manager(name: str) -> str:
    """The secret's text, by its name or ARN. Raises UpwellError."""
    from upwell.aws import AwsService
    from upwell.aws_errors import ResourceMissing

    with closing(AwsService("secretsmanager")) as service:
        try:
            answer = service.call("GetSecretValue", {"SecretId": name})
        except ResourceMissing as missing:
            raise ConfigError(
                f"There is no secret {name} in AWS Secrets Manager in {service.region}.",
                code="UW-CF-025",
                remedy=f"aws secretsmanager describe-secret --secret-id {name} --region {service.region}",
            ) from missing
    text = answer.get("SecretString")
    if not isinstance(text, str):
        raise ConfigError(
            f"The secret {name} in AWS Secrets Manager holds bytes, not text.",
            code="UW-CF-009",
            remedy="Store it as text.",
        )
    return text
