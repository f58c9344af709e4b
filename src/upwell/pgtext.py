"""What PostgreSQL prints, as the wire has it. Pure.

A value's text is what its type's output function gives in a session with TEXT_FORMS.
"""

from __future__ import annotations

import math
from binascii import b2a_base64
from collections.abc import Callable
from typing import Final

from upwell.model import Kind, Value

# How values look as text, in and out: what sweep compares and what the wire carries depend on each of these.
TEXT_FORMS: Final = """
SET client_encoding TO 'UTF8';
SET standard_conforming_strings TO on;
SET TimeZone TO 'UTC';
SET DateStyle TO 'ISO, YMD';
SET IntervalStyle TO 'postgres';
SET extra_float_digits TO 1;
SET bytea_output TO 'hex';
SET lc_monetary TO 'C';
SET xmloption TO content;
SET array_nulls TO on;
"""

_EXACT_MAX: Final = 2**53  # a JSON number beyond is not the same integer everywhere


def wire_value(kind: Kind, text: str | None) -> Value:
    """What the type's output function printed, as the wire has it; of a value that came over the wire, the same."""
    if text is None:
        return None
    decode = _DECODERS.get(kind)
    return text if decode is None else decode(text)


def _integer(text: str) -> Value:
    number = int(text)
    return number if -_EXACT_MAX <= number <= _EXACT_MAX else text


def _float(text: str) -> Value:
    number = float(text)
    return number if math.isfinite(number) else text


_DECODERS: Final[dict[Kind, Callable[[str], Value]]] = {
    Kind.BOOL: lambda text: text == "t",
    Kind.INT: _integer,
    Kind.FLOAT: _float,
    Kind.BYTES: lambda text: b2a_base64(bytes.fromhex(text.removeprefix("\\x")), newline=False).decode(),
    Kind.TIMESTAMP: lambda text: text.replace(" ", "T", 1),
    Kind.TIMESTAMPTZ: lambda text: text.replace(" ", "T", 1).replace("+00", "Z"),
}
