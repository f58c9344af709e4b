"""SqliteState against the contract."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.state_contract import StateContract
from upwell.ports import StateStore
from upwell.state.sqlite import SqliteState


class TestSqliteState(StateContract):
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> Iterator[None]:
        self.path = str(tmp_path / "state.db")
        self.made: list[SqliteState] = []
        yield
        for store in self.made:
            store.release()

    def make(self) -> SqliteState:
        self.made.append(SqliteState(self.path, "shop"))
        return self.made[-1]

    def count_dead_letters(self, store: StateStore) -> int:
        assert isinstance(store, SqliteState)
        return len(store.dead_letters())
