"""The proof of rows that are too large, small."""

from __future__ import annotations

from pathlib import Path

from tests.proofs import Servers
from tests.proofs.oversize import SMALL, by_kinesis, into_items


def test_large_rows_by_kinesis(servers: Servers, tmp_path: Path) -> None:
    by_kinesis(servers, tmp_path, SMALL)


def test_large_rows_into_dynamodb(servers: Servers, tmp_path: Path) -> None:
    into_items(servers, tmp_path, SMALL)
