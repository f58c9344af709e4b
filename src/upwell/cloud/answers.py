"""Answers of the read API: rows, and problems as RFC 9457 has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import orjson

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers in lower case, body."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Problem(Exception):
    """Why there is no answer, in words for the caller: nothing of a row, nothing of how we are made."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        """`headers`: with _ for -."""
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(self) -> Answer:
        """As it goes to the caller."""
        body = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        content = orjson.dumps({**body, "detail": self.detail})
        return Answer(self.status, content, {"content-type": PROBLEM, "cache-control": "no-store", **self.headers})


def json_answer(content: Any, **headers: str) -> Answer:
    """200 with JSON; `headers` with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(200, orjson.dumps(content), {"content-type": JSON, **named})
