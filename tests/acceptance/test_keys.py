"""Keys of every kind arrive, and none is taken for another; in full: make prove ARGS=keys."""

from pathlib import Path

from tests.proofs import Servers, keys


def test_keys_of_every_kind(servers: Servers, tmp_path: Path) -> None:
    keys.run(servers, tmp_path, keys.SMALL)
