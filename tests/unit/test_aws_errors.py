"""What AWS answers, as the class that says what happens next."""

import orjson
import pytest

from upwell.aws_errors import ResourceMissing, ServiceRefusal, translate
from upwell.errors import OperatorError, TransientError, UpwellError
from upwell.http1 import Answer

DENIED = (
    "User: arn:aws:iam::123456789012:user/sync is not authorized to perform: kinesis:PutRecords on resource: "
    "arn:aws:kinesis:eu-west-1:123456789012:stream/shop because no identity-based policy allows the "
    "kinesis:PutRecords action"
)


def answer(reason: str, message: str = "", status: int = 400) -> Answer:
    body = orjson.dumps({"__type": reason, "message": message})
    return Answer(status, b"HTTP/1.1 400 Bad Request\r\nDate: Mon, 23 Nov 2026 07:00:00 GMT", body)


@pytest.mark.parametrize(
    ("reason", "status", "kind", "code"),
    [
        ("ProvisionedThroughputExceededException", 400, TransientError, "UW-AWS-008"),
        ("com.amazonaws.dynamodb.v20120810#ThrottlingException", 400, TransientError, "UW-AWS-008"),
        ("RequestLimitExceeded", 400, TransientError, "UW-AWS-008"),
        ("LimitExceededException", 400, TransientError, "UW-AWS-008"),
        ("SomethingNew", 429, TransientError, "UW-AWS-008"),
        ("InternalFailure", 500, TransientError, "UW-AWS-009"),
        ("InternalServerError", 500, TransientError, "UW-AWS-009"),
        ("SomethingNew", 503, TransientError, "UW-AWS-009"),
        ("ResourceInUseException", 400, TransientError, "UW-AWS-009"),
        ("TransactionConflictException", 400, TransientError, "UW-AWS-009"),
        ("ExpiredTokenException", 400, TransientError, "UW-AWS-006"),
        ("RequestTimeTooSkewed", 403, TransientError, "UW-AWS-007"),
        ("ExpiredIteratorException", 400, TransientError, "UW-AWS-023"),
        ("AccessDeniedException", 400, OperatorError, "UW-AWS-004"),
        ("UnrecognizedClientException", 400, OperatorError, "UW-AWS-005"),
        ("InvalidSignatureException", 400, OperatorError, "UW-AWS-005"),
        ("MissingAuthenticationTokenException", 400, OperatorError, "UW-AWS-005"),
        ("KMSAccessDeniedException", 400, OperatorError, "UW-AWS-021"),
        ("KMSThrottlingException", 400, TransientError, "UW-AWS-008"),
        ("ResourceNotFoundException", 400, ResourceMissing, "UW-AWS-017"),
        ("ValidationException", 400, ServiceRefusal, "UW-AWS-018"),
        ("com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException", 400, ServiceRefusal, "UW-AWS-018"),
        ("", 403, TransientError, "UW-AWS-020"),
    ],
)
def test_each_error_has_its_class(reason: str, status: int, kind: type[UpwellError], code: str) -> None:
    error = translate("dynamodb", answer(reason, status=status))
    assert type(error) is kind
    assert error.code == code
    assert getattr(error, "throttled", False) is (code == "UW-AWS-008")


def test_access_denied_names_the_statement_that_is_missing() -> None:
    error = translate("kinesis", answer("AccessDeniedException", DENIED))
    assert error.remedy.endswith(
        '{"Effect":"Allow","Action":"kinesis:PutRecords",'
        '"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/shop"}'
    )


@pytest.mark.parametrize(
    "message",
    [
        "Signature expired: 20260101T000000Z is now earlier than 20260101T001000Z (20260101T001500Z - 5 min.)",
        "Signature not yet current: 20260101T010000Z is still later than 20260101T001500Z",
    ],
)
def test_a_wrong_clock_is_told_from_a_wrong_key(message: str) -> None:
    error = translate("kinesis", answer("InvalidSignatureException", message))
    assert isinstance(error, TransientError)
    assert error.code == "UW-AWS-007"


def test_a_page_in_place_of_an_answer_is_no_refusal_of_the_data() -> None:
    page = Answer(403, b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html", b"<html>Blocked by policy</html>")
    assert isinstance(translate("kinesis", page), TransientError)


def test_the_name_may_stand_in_a_header() -> None:
    told = Answer(400, b"HTTP/1.1 400 Bad Request\r\nx-amzn-ErrorType: ThrottlingException:http://internal/", b"{}")
    error = translate("kinesis", told)
    assert isinstance(error, TransientError)
    assert error.throttled


@pytest.mark.parametrize(
    "message",
    [
        "1 validation error detected: Value 'Ada's \"row\"' at 'item' failed to satisfy constraint",
        "The parameter cannot be converted to a numeric value: Ada",
        'The value "Ada\nLovelace" is not one',
    ],
)
def test_what_aws_quotes_of_a_row_is_left_out(message: str) -> None:
    error = translate("dynamodb", answer("ValidationException", message))
    assert isinstance(error, ServiceRefusal)
    assert "Ada" not in str(error)
    assert "Lovelace" not in str(error)
    assert "ValidationException" in str(error)
