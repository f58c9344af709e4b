"""A local AWS with CloudFormation, IAM that denies, Lambda and API Gateway: where stacks are tried."""

from typing import Any

import boto3
from botocore.config import Config

from lab import find
from lab.part import LOOPBACK
from lab.parts import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, HttpPart

ACCOUNT = "000000000000"


class Ministack(HttpPart):
    """ministack, with IAM enforced. Functions run in its own interpreter, whatever runtime they ask for."""

    name = "ministack"

    def __init__(self) -> None:
        super().__init__()
        self._python = find.ministack()

    def command(self) -> list[str]:
        return [str(self._python), "-m", "ministack"]

    def client(
        self, service: str, key: str = ACCESS_KEY_ID, secret: str = SECRET_ACCESS_KEY, token: str | None = None
    ) -> Any:
        """A client of a service; as root unless other credentials are given."""
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=Config(retries={"total_max_attempts": 1}),
        )

    def _environment(self) -> dict[str, str]:
        own = {
            "BIND_HOST": LOOPBACK,
            "GATEWAY_PORT": str(self.port),
            "MINISTACK_REGION": REGION,
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "LOG_LEVEL": "WARNING",
            "AUTH": "true",
            "TMPDIR": str(self.folder),
        }
        # Its functions inherit what it has: nothing of ours.
        ours = ("AWS_", "PYTHON", "UPWELL_")
        kept = {name: value for name, value in super()._environment().items() if not name.startswith(ours)}
        return kept | own
