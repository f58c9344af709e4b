"""What AWS's services answer when they do not do as asked, as the classes of errors.py."""

from __future__ import annotations

import html
import re

import orjson

from upwell.errors import OperatorError, Rejected, TransientError, UpwellError
from upwell.http1 import Answer


class ServiceRefusal(Rejected):
    """The service refuses a request for what it holds. `reason` is AWS's name for the error."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message, code="UW-AWS-018")
        self.reason = reason


class ResourceMissing(OperatorError):
    """The stream or table is not there. Whoever knows its name adds the remedy."""


# What AWS calls its errors. docs.aws.amazon.com: CommonErrors of each service, and each action's own.
_THROTTLED = frozenset(
    {
        "ProvisionedThroughputExceededException",
        "ThrottlingException",
        "Throttling",
        "ThrottledException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "LimitExceededException",
        "KMSThrottlingException",
        "SlowDown",
    }
)
_TRANSIENT = frozenset(
    {
        "InternalFailure",
        "InternalFailureException",
        "InternalServerError",
        "InternalServerErrorException",
        "InternalServiceError",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "RequestTimeout",
        "RequestTimeoutException",
        "ResourceInUseException",
        "TableInUseException",
        "TransactionConflictException",
        "TransactionInProgressException",
        "ReplicatedWriteConflictException",
        # S3's: two writes of one object at a time, and a body that was changed on its way.
        "OperationAborted",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
    }
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"})
_BAD_KEYS = frozenset(
    {
        "UnrecognizedClientException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "OptInRequired",
        "NotSignedUp",
    }
)
_DENIED = frozenset({"AccessDeniedException", "AccessDenied", "UnauthorizedOperation", "NotAuthorized"})
_MISSING = frozenset({"ResourceNotFoundException", "TableNotFoundException"})


def passes_by_itself(reason: str) -> bool:
    """Whether an error of this name means: the same again later."""
    return reason in _THROTTLED or reason in _TRANSIENT or reason in _EXPIRED or reason in _SKEWED


def throttles(reason: str) -> bool:
    """Whether an error of this name means: too much at the moment."""
    return reason in _THROTTLED


def translate(service: str, answer: Answer) -> UpwellError:
    """An answer other than 200 as the error that it is."""
    reason, message = _error_of(answer)
    name = service.capitalize() if service != "dynamodb" else "DynamoDB"
    told = f"{name} answered {reason or f'status {answer.status}'}"
    if reason in _THROTTLED or answer.status == 429:
        return TransientError(f"{told}: it takes no more at the moment.", throttled=True, code="UW-AWS-008")
    if reason in _SKEWED or (reason in _BAD_KEYS and ("not yet current" in message or "expired" in message.lower())):
        return TransientError(
            f"{told}: this machine's clock is wrong.",
            code="UW-AWS-007",
            remedy="Let the machine take its time from a time server (chrony, systemd-timesyncd, w32time).",
        )
    if reason in _EXPIRED:
        return TransientError(
            f"{told}: the temporary credentials have run out.",
            code="UW-AWS-006",
            remedy="Renew them; upwell takes up new ones from the file or the provider by itself.",
        )
    if reason == "ExpiredIteratorException":
        return TransientError(f"{told}: the iterator is older than five minutes.", code="UW-AWS-023")
    if reason in _TRANSIENT or answer.status >= 500 or answer.status == 408:
        return TransientError(f"{told}.", code="UW-AWS-009")
    return _final(answer, reason, message, told)


def _final(answer: Answer, reason: str, message: str, told: str) -> UpwellError:
    """The errors that trying again does not mend."""
    if reason.startswith("KMS"):
        return OperatorError(
            f"{told}: the encryption key can't be used. {message}",
            code="UW-AWS-021",
            remedy="The key's policy must allow kms:GenerateDataKey and kms:Decrypt to these credentials.",
        )
    if reason in _DENIED:
        return OperatorError(
            f"AWS denies access. {message}",
            code="UW-AWS-004",
            remedy=f"Add to the policy of these credentials: {statement_for(message)}",
        )
    if reason in _BAD_KEYS:
        return OperatorError(
            f"{told}: AWS does not accept these credentials.",
            code="UW-AWS-005",
            remedy="Check the access key and its secret (aws sts get-caller-identity), and that the key is active.",
        )
    if reason in _MISSING:
        return ResourceMissing(f"{told}. {message}".strip(), code="UW-AWS-017")
    if not reason:
        return TransientError(
            f"{told}, without saying why.",
            code="UW-AWS-020",
            remedy="Something on the way may answer in its place: a firewall's notice, a login page, a wrong port.",
        )
    return ServiceRefusal(f"{told}: {_without_values(message) or f'status {answer.status}'}", reason=reason)


def _without_values(message: str) -> str:
    """AWS quotes what it refuses, which may be of a row: from the first quote to the last goes, and what follows
    "value:".
    """
    message = re.sub(r"(['\"]).*\1", "…", message, flags=re.DOTALL)
    return re.sub(r"(?i)(value:).*", r"\1 …", message, flags=re.DOTALL)


def _error_of(answer: Answer) -> tuple[str, str]:
    """AWS's name for the error, without its namespace, and its message; empty where there are none."""
    if answer.body[:1] == b"<":
        return _xml(answer.body, b"Code"), _xml(answer.body, b"Message")
    try:
        content = orjson.loads(answer.body)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        content = {}
    kind = content.get("__type") or content.get("code") or answer.header("x-amzn-errortype") or ""
    message = content.get("message") or content.get("Message") or ""
    return str(kind).rpartition("#")[2].partition(":")[0], str(message)


def _xml(body: bytes | bytearray, name: bytes) -> str:
    """The text of S3's <Error><Code>…</Code><Message>…</Message>…</Error>."""
    found = re.search(rb"<%b>([^<]*)</%b>" % (name, name), body)
    return html.unescape(found[1].decode(errors="replace")) if found else ""


def statement_for(message: str) -> str:
    """The IAM policy statement that allows what an AccessDenied message says was denied."""
    action = _after(message, "not authorized to perform: ")
    resource = _after(message, "on resource: ")
    return orjson.dumps({"Effect": "Allow", "Action": action or "*", "Resource": resource or "*"}).decode()


def _after(message: str, words: str) -> str:
    rest = message.partition(words)[2]
    return rest.split()[0].rstrip(".,") if rest else ""


def no_such_stream(stream: str, region: str) -> OperatorError:
    """The stream is not there, with the command that makes it."""
    return OperatorError(
        f"The Kinesis stream {stream} does not exist in {region}.",
        code="UW-KS-001",
        remedy=f"aws kinesis create-stream --stream-name {stream} --region {region} "
        "--stream-mode-details StreamMode=ON_DEMAND",
    )
