"""Moments of SQL Server and what PostgreSQL makes of them compare as equal, and no others do."""

import pytest

from upwell.app.verify import canonical_value
from upwell.model import Kind


@pytest.mark.parametrize(
    ("kind", "there", "here"),
    [
        (Kind.TIMESTAMP, "2026-01-31T10:00:00.1234567", "2026-01-31T10:00:00.123457"),
        (Kind.TIMESTAMP, "2026-01-31T10:00:00.0000000", "2026-01-31T10:00:00"),
        (Kind.TIMESTAMP, "2026-12-31T23:59:59.9999999", "2027-01-01T00:00:00"),
        (Kind.TIMESTAMP, "2026-01-31T10:00:00.120", "2026-01-31T10:00:00.12"),
        (Kind.TIMESTAMPTZ, "2026-01-31T10:00:00.1234567+02:00", "2026-01-31T08:00:00.123457Z"),
        (Kind.TIMESTAMPTZ, "2026-01-31T10:00:00-11:30", "2026-01-31T21:30:00Z"),
        (Kind.TIMESTAMPTZ, "2026-01-31T10:00:00.0000000Z", "2026-01-31T10:00:00Z"),
        (Kind.TIME, "10:00:00.1234567", "10:00:00.123457"),
        (Kind.TIME, "23:59:59.9999999", "24:00:00"),
        (Kind.TIMESTAMP, "infinity", "infinity"),
        (Kind.TIMESTAMP, "0044-03-15T12:00:00.5 BC", "0044-03-15T12:00:00.5 BC"),
    ],
)
def test_one_form_for_the_same_moment(kind: Kind, there: str, here: str) -> None:
    assert canonical_value(kind, there) == canonical_value(kind, here)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2026-01-31T10:00:00.1234567", "2026-01-31T10:00:00.123456"),
        ("2026-01-31T10:00:00.1234567+02:00", "2026-01-31T10:00:00.123457Z"),
        ("2026-01-31T10:00:00", "2026-01-31T10:00:01"),
    ],
)
def test_other_moments_stay_other_moments(one: str, other: str) -> None:
    assert canonical_value(Kind.TIMESTAMPTZ, one) != canonical_value(Kind.TIMESTAMPTZ, other)
