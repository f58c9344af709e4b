"""Our signatures against botocore's."""

from datetime import UTC, datetime
from unittest import mock

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from upwell.sigv4 import Keys, Signer

VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,15}", fullmatch=True)
KEYS = st.builds(
    Keys,
    access_key=st.text(VISIBLE, min_size=1, max_size=20),
    secret_key=st.text(VISIBLE, min_size=1, max_size=60),
    token=st.none() | st.text(VISIBLE, min_size=1, max_size=60),
)
MOMENTS = st.floats(min_value=0, max_value=4e9)


def headers(head: bytes) -> dict[str, str]:
    lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert lines[0].startswith("POST ")
    return dict(line.split(": ", 1) for line in lines[1:])


def botocores(url: str, sent: dict[str, str], body: bytes, keys: Keys, service: str, region: str, now: float) -> str:
    """The Authorization header that botocore puts on the same request."""
    request = AWSRequest(
        "POST", url, {"Content-Type": sent["content-type"], "X-Amz-Target": sent["x-amz-target"]}, body
    )
    moment = datetime.fromtimestamp(int(now), UTC)
    with mock.patch.object(botocore.auth, "get_current_datetime", return_value=moment):
        botocore.auth.SigV4Auth(Credentials(*keys), service, region).add_auth(request)
    assert request.headers["X-Amz-Date"] == sent["x-amz-date"]
    return str(request.headers["Authorization"])


@given(
    service=st.sampled_from(["kinesis", "dynamodb"]),
    region=NAMES,
    host=NAMES,
    port=st.none() | st.integers(1, 65535).filter(lambda port: port != 443),
    requests=st.lists(
        st.tuples(st.from_regex(r"[A-Z][A-Za-z_.0-9]{0,30}", fullmatch=True), st.binary(max_size=500), KEYS, MOMENTS),
        min_size=1,
        max_size=5,
    ),
)
def test_the_same_signature_as_botocores(
    service: str, region: str, host: str, port: int | None, requests: list[tuple[str, bytes, Keys, float]]
) -> None:
    """One signer for all the requests: what it keeps from one to the next must not leak into another's."""
    address = host if port is None else f"{host}:{port}"
    signer = Signer(service, region, address, "/", "application/x-amz-json-1.1")
    for target, body, keys, now in requests:
        sent = headers(signer.head(target, body, keys, now))
        assert sent["Authorization"] == botocores(f"https://{address}/", sent, body, keys, service, region, now)
        assert sent["host"] == address
        assert sent["Content-Length"] == str(len(body))
        assert sent.get("x-amz-security-token") == keys.token


def test_keys_keep_their_secrets_to_themselves() -> None:
    shown = f"{Keys('AKIA1', 'secret', 'token')!r} {Keys('AKIA1', 'secret', 'token')}"
    assert "AKIA1" in shown
    assert "secret" not in shown
    assert "token" not in shown
