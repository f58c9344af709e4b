"""The rows that the sinks' benchmarks send: 13 columns, about 350 bytes of JSON."""

import orjson

from upwell.lanes import lane_of
from upwell.model import ChangeEvent, Column, Kind, TableSchema, pack_version

SCHEMA = TableSchema(
    table="public.customers",
    columns=(
        Column("id", "int8", Kind.INT),
        Column("email", "text", Kind.TEXT),
        Column("name", "text", Kind.TEXT),
        Column("street", "text", Kind.TEXT),
        Column("city", "text", Kind.TEXT),
        Column("country", "char(2)", Kind.TEXT),
        Column("balance", "numeric(12,2)", Kind.DECIMAL),
        Column("score", "float8", Kind.FLOAT),
        Column("active", "bool", Kind.BOOL),
        Column("visits", "int4", Kind.INT),
        Column("born", "date", Kind.DATE),
        Column("updated_at", "timestamptz", Kind.TIMESTAMPTZ),
        Column("note", "text", Kind.TEXT),
    ),
    key=("id",),
    dialect="postgresql",
)
TIME = "2026-01-31T10:00:00.123456Z"


def event(number: int, commit: int) -> ChangeEvent:
    """An upsert of the row with this number."""
    row = orjson.dumps(
        [
            number,
            f"customer{number}@example.com",
            f"Customer Number {number}",
            "Some Street 17, back building",
            "Castrop-Rauxel",
            "DE",
            "1234.56",
            number / 7,
            True,
            number % 1000,
            "1980-02-29",
            TIME,
            "lorem ipsum dolor sit amet consectetur adipisici elit, sed eiusmod tempor",
        ]
    )
    return ChangeEvent(SCHEMA, "u", pack_version(1, commit, 0), TIME, orjson.dumps([number]), row, "update")


def by_lane(count: int, lanes: int) -> dict[int, list[ChangeEvent]]:
    """`count` events of different rows, in their lanes."""
    grouped: dict[int, list[ChangeEvent]] = {}
    for number in range(count):
        made = event(number, number + 1)
        grouped.setdefault(lane_of(made, lanes), []).append(made)
    return grouped
