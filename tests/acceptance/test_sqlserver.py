"""SQL Server as the source, killed and bereft, in the size that fits every run: see tests/proofs/sqlserver.py."""

from pathlib import Path

from tests.proofs import Servers, sqlserver


def test_sqlserver(servers: Servers, tmp_path: Path) -> None:
    sqlserver.run(servers, tmp_path, sqlserver.SMALL)
