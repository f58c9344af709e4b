"""The read API on Lambda, behind API Gateway (REST, proxy integration)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from upwell.app import build_api, logs
from upwell.clock import SystemClock
from upwell.cloud.answers import JSON, PROBLEM
from upwell.cloud.configured import configured
from upwell.cloud.guard import Guard

Adapter = Callable[[dict[str, Any], Any], dict[str, Any]]

# Lambda's answer is 6 MB at most, in which JSON's quotes count twice.
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
ANSWER_BYTES_MAX: Final = 3 * 1024 * 1024


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """An event of API Gateway, one request. Raises TypeError for events of another kind."""
    if "httpMethod" not in event or "resource" not in event:
        raise TypeError("this is no event of an API Gateway REST API with proxy integration")
    return _adapter()(event, context)


def adapted(app: Guard) -> Adapter:
    """The application as a function of events."""
    from mangum import Mangum

    # All else would be sent as base64, which API Gateway hands on as it is unless it is told otherwise.
    return Mangum(app, lifespan="off", text_mime_types=[JSON, PROBLEM])


@cache
def _adapter() -> Adapter:
    """Made once for each environment, at its start."""
    pipeline = configured(["destination", "subscriber", "api"])
    return adapted(build_api.app(pipeline, SystemClock(), ANSWER_BYTES_MAX))


if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:  # the start of an environment has a whole processor, an event has not
    logs.set_up("json")
    _adapter()
