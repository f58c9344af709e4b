"""Schemas of tables, as a source tells them, and how many of them chance may make."""

from collections.abc import Sequence

from hypothesis import HealthCheck, Phase, settings

from upwell.model import Column, Kind, TableSchema

SLOW = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would make hundreds of tables more
)


def table(name: str, *columns: tuple[str, str, Kind], key: Sequence[str] = ("id",)) -> TableSchema:
    return TableSchema(f"public.{name}", tuple(Column(*column) for column in columns), tuple(key), "postgresql")
