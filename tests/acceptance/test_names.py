"""Hostile names are carried, and nothing is injected; in full: make prove ARGS=names."""

from pathlib import Path

from tests.proofs import Servers, names


def test_hostile_names(servers: Servers, tmp_path: Path) -> None:
    names.run(servers, tmp_path, names.SMALL)
