"""Rows as DynamoDB items: types, limits, keys, and the way back."""

import json
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.errors import ConfigError, Rejected
from upwell.items import (
    ITEM_BYTES_MAX,
    ItemForm,
    KeyAttribute,
    KeyTemplates,
    attribute_loss,
    attribute_type,
    fits_number,
    key_type,
    table_names,
)
from upwell.model import Column, Kind, TableName, TableSchema


def schema(*columns: tuple[str, str, Kind], key: tuple[str, ...] = ("id",), table: str = "public.t") -> TableSchema:
    return TableSchema(table, tuple(Column(*column) for column in columns), key, "postgresql")


def of_kind(kind: Kind, type_: str = "?") -> ItemForm:
    return ItemForm(schema(("id", "int", Kind.INT), ("v", type_, kind)), "t")


@pytest.mark.parametrize(
    ("kind", "type_", "value", "attribute"),
    [
        (Kind.INT, "int8", 7, {"N": "7"}),
        (Kind.INT, "int8", "9007199254740993", {"N": "9007199254740993"}),
        (Kind.DECIMAL, "numeric(12,2)", "12.50", {"N": "12.50"}),
        (Kind.DECIMAL, "numeric", "1" * 38, {"N": "1" * 38}),
        (Kind.DECIMAL, "numeric", "1" * 39, {"S": "1" * 39}),
        (Kind.DECIMAL, "numeric(40,2)", "1.5", {"S": "1.5"}),
        (Kind.DECIMAL, "numeric", "NaN", {"S": "NaN"}),
        (Kind.DECIMAL, "numeric", "1" + "0" * 125, {"N": "1" + "0" * 125}),
        (Kind.DECIMAL, "numeric", "1" + "0" * 126, {"S": "1" + "0" * 126}),
        (Kind.FLOAT, "float8", 0.1, {"N": "0.1"}),
        (Kind.FLOAT, "float8", 1e-130, {"N": "1e-130"}),
        (Kind.FLOAT, "float8", 1e-131, {"S": "1e-131"}),
        (Kind.FLOAT, "float8", 1e126, {"S": "1e+126"}),
        (Kind.FLOAT, "float8", "-Infinity", {"S": "-Infinity"}),
        (Kind.BOOL, "bool", True, {"BOOL": True}),
        (Kind.BYTES, "bytea", "AAEC", {"B": "AAEC"}),
        (Kind.BYTES, "bytea", "", {"B": ""}),
        (Kind.TEXT, "text", "", {"S": ""}),
        (Kind.TIMESTAMP, "timestamp", "2026-01-31T10:00:00", {"S": "2026-01-31T10:00:00"}),
        (Kind.JSON, "jsonb", "null", {"NULL": True}),
        (Kind.JSON, "jsonb", '"a"', {"S": "a"}),
        # Half of a surrogate pair is JSON, and no text: nobody could write it as UTF-8.
        (Kind.JSON, "json", '["\\ud800"]', {"S": '["\\ud800"]'}),
        (Kind.JSON, "json", '{"\\udfff": 1}', {"S": '{"\\udfff": 1}'}),
        (Kind.JSON, "json", '"\\ud83d\\ude42"', {"S": "🙂"}),
        (Kind.JSON, "jsonb", "[1, 2.50, 1e400]", {"L": [{"N": "1"}, {"N": "2.50"}, {"S": "1e400"}]}),
        (
            Kind.JSON,
            "jsonb",
            '{"a": {"b": [true, null]}}',
            {"M": {"a": {"M": {"b": {"L": [{"BOOL": True}, {"NULL": True}]}}}}},
        ),
        (Kind.JSON, "json", '{"": 1}', {"S": '{"": 1}'}),
        (Kind.JSON, "json", "not json", {"S": "not json"}),
        (Kind.JSON, "json", "NaN", {"S": "NaN"}),
        (Kind.JSON, "json", "[" * 40 + "]" * 40, {"S": "[" * 40 + "]" * 40}),
        # SQLite gives a column whatever was put into it.
        (Kind.INT, "INTEGER", "abc", {"S": "abc"}),
        (Kind.TEXT, "TEXT", 5, {"N": "5"}),
        (Kind.BYTES, "BLOB", 1.5, {"N": "1.5"}),
        (Kind.BOOL, "BOOLEAN", 1, {"N": "1"}),
        (Kind.JSON, "JSON", 1, {"N": "1"}),
    ],
)
def test_each_value_has_its_type(kind: Kind, type_: str, value: Any, attribute: dict[str, Any]) -> None:
    assert of_kind(kind, type_).item([1, value], 0)["v"] == attribute


def test_null_is_absent_or_kept() -> None:
    table = schema(("id", "int", Kind.INT), ("v", "text", Kind.TEXT))
    assert ItemForm(table, "t").item([1, None], 0) == {"id": {"N": "1"}}
    assert ItemForm(table, "t", nulls="keep").item([1, None], 0) == {"id": {"N": "1"}, "v": {"NULL": True}}


@pytest.mark.parametrize(
    ("column", "type_", "warned"),
    [
        (Column("c", "int8", Kind.INT), "N", False),
        (Column("c", "decimal(38,10)", Kind.DECIMAL), "N", False),
        (Column("c", "decimal(39,0)", Kind.DECIMAL), "S", True),
        (Column("c", "numeric", Kind.DECIMAL), "N", True),
        (Column("c", "float8", Kind.FLOAT), "N", True),
        (Column("c", "bool", Kind.BOOL), "BOOL", False),
        (Column("c", "bytea", Kind.BYTES), "B", False),
        (Column("c", "jsonb", Kind.JSON), "M/L", True),
        (Column("c", "uuid", Kind.UUID), "S", False),
        (Column("c", "int4[]", Kind.OTHER), "S", False),
    ],
)
def test_the_plan_says_what_a_column_becomes(column: Column, type_: str, warned: bool) -> None:
    assert attribute_type(column) == type_
    assert (attribute_loss(column, "sqlserver") is not None) is warned
    assert key_type(column) == (type_ if type_ in "NB" else "S")


def test_the_plan_says_what_else_a_decimal_may_hold() -> None:
    def said(type_: str, dialect: str = "postgresql") -> str | None:
        return attribute_loss(Column("c", type_, Kind.DECIMAL), dialect)

    assert said("decimal(12,2)", "sqlserver") is None
    assert said("numeric(12,2)") == "NaN is stored as S"
    assert "1E-130" in str(said("numeric(3,200)"))
    assert "1E-130" in str(said("numeric(38,-100)"))
    assert "dead letter" in str(said("DECIMAL(12,2)", "sqlite"))


@given(st.decimals(allow_nan=False, allow_infinity=False) | st.integers().map(Decimal))
def test_what_fits_a_number_is_what_decimal_arithmetic_of_38_digits_holds(number: Decimal) -> None:
    digits = len("".join(map(str, number.as_tuple().digits)).strip("0")) or 1
    expected = not number or (digits <= 38 and -130 <= number.adjusted() <= 125)
    assert fits_number(str(number)) is expected
    assert fits_number(format(number, "f")) is expected


class TestKeys:
    def test_the_first_two_columns_are_the_key(self) -> None:
        table = schema(("b", "bytea", Kind.BYTES), ("a", "text", Kind.TEXT), ("id", "int", Kind.INT), key=("a", "b"))
        form = ItemForm(table, "t")
        assert form.key_attributes == (KeyAttribute("a", "S"), KeyAttribute("b", "B"))
        assert form.key(["x", "AA=="]) == {"a": {"S": "x"}, "b": {"B": "AA=="}}

    def test_further_columns_join_the_sort_key(self) -> None:
        table = schema(("a", "int", Kind.INT), ("b", "text", Kind.TEXT), ("c", "text", Kind.TEXT), key=("a", "b", "c"))
        form = ItemForm(table, "t")
        assert form.key_attributes == (KeyAttribute("a", "N"), KeyAttribute("_upwell_sk", "S"))
        item = form.item([1, "x#y", "z"], 0)
        assert item["_upwell_sk"] == {"S": "x%23y#z"}
        assert (item["b"], item["c"]) == ({"S": "x#y"}, {"S": "z"})
        assert form.item([1, "x", "y#z"], 0)["_upwell_sk"] != item["_upwell_sk"]

    def test_templates_make_both_keys_beside_the_columns(self) -> None:
        table = schema(("order_id", "int", Kind.INT), ("line_no", "int", Kind.INT), key=("order_id", "line_no"))
        form = ItemForm(table, "shop", KeyTemplates("shop", "ORDER#{order_id}", "LINE#{line_no:05}"))
        assert form.item([7, 3], 0) == {
            "pk": {"S": "ORDER#7"},
            "sk": {"S": "LINE#00003"},
            "order_id": {"N": "7"},
            "line_no": {"N": "3"},
        }

    def test_templates_must_use_the_whole_key(self) -> None:
        table = schema(("a", "int", Kind.INT), ("b", "int", Kind.INT), key=("a", "b"))
        with pytest.raises(ConfigError, match="leave out b"):
            ItemForm(table, "t", KeyTemplates("t", "A#{a}"))

    def test_a_number_in_a_column_for_dates_is_a_key_by_its_text(self) -> None:
        form = ItemForm(schema(("day", "DATE", Kind.TEXT), ("at", "TIME", Kind.TEXT), key=("day", "at")), "t")
        assert form.key([20260131, 0.5]) == {"day": {"S": "20260131"}, "at": {"S": "0.5"}}

    @pytest.mark.parametrize("name", ["a{b", "a}b", "{}", "a:b", "a!r", "a#b", "%s", "a.b[0]"])
    def test_columns_of_a_joined_key_may_be_called_anything(self, name: str) -> None:
        columns = [("a", "text", Kind.TEXT), (name, "text", Kind.TEXT), (name + "2", "int", Kind.INT)]
        form = ItemForm(schema(*columns, key=("a", name, name + "2")), "t")
        assert form.key(["x", "y#", 3]) == {"a": {"S": "x"}, "_upwell_sk": {"S": "y%23#3"}}

    def test_a_number_where_texts_may_look_like_it_is_no_part_of_a_joined_key(self) -> None:
        columns = [("a", "text", Kind.TEXT), ("b", "", Kind.OTHER), ("c", "text", Kind.TEXT)]
        form = ItemForm(schema(*columns, key=("a", "b", "c")), "t")
        assert form.key(["x", "1", "z"])["_upwell_sk"] == {"S": "1#z"}
        with pytest.raises(Rejected, match="column b holds a number"):
            form.key(["x", 1, "z"])

    @pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128])
    def test_names_that_dynamodb_has_not_are_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="has no attribute called") as raised:
            ItemForm(schema((name, "int", Kind.INT), key=(name,)), "t")
        assert json.dumps(name, ensure_ascii=False) in raised.value.remedy or name in raised.value.remedy

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (Kind.TEXT, ""),
            (Kind.BYTES, ""),
            (Kind.TEXT, "x" * 2049),
            (Kind.TEXT, "é" * 1025),
            (Kind.DECIMAL, "1" * 39),
            (Kind.FLOAT, "NaN"),
            (Kind.INT, "abc"),
            (Kind.OTHER, 5),  # SQLite: beside a text "5"
        ],
    )
    def test_what_can_be_no_key_is_rejected(self, kind: Kind, value: Any) -> None:
        form = ItemForm(schema(("id", "?", kind)), "t")
        with pytest.raises(Rejected):
            form.key([value])
        with pytest.raises(Rejected):
            form.item([value], 0)

    def test_a_key_of_the_longest_goes(self) -> None:
        form = ItemForm(schema(("id", "text", Kind.TEXT), ("s", "text", Kind.TEXT), key=("id", "s")), "t")
        assert form.key(["é" * 1024, "x" * 1024])
        with pytest.raises(Rejected, match="s has more than the 1,024 bytes"):
            form.key(["a", "x" * 1025])

    def test_a_boolean_is_text_as_a_key(self) -> None:
        form = ItemForm(schema(("id", "bool", Kind.BOOL)), "t")
        assert form.key([True]) == {"id": {"S": "true"}}
        assert form.canonical([True]) == [True]

    @pytest.mark.parametrize("name", ["_upwell_v", "_upwell_anything"])
    def test_names_of_ours_are_ours(self, name: str) -> None:
        with pytest.raises(ConfigError, match=name):
            ItemForm(schema(("id", "int", Kind.INT), (name, "int", Kind.INT)), "t")

    def test_columns_named_as_the_template_keys_are_refused(self) -> None:
        table = schema(("id", "int", Kind.INT), ("pk", "int", Kind.INT))
        ItemForm(table, "t")
        with pytest.raises(ConfigError, match="pk"):
            ItemForm(table, "t", KeyTemplates("t", "A#{id}"))


class TestNames:
    def tables(self, *names: str, **targets: str) -> list[TableSchema]:
        columns = (Column("id", "int", Kind.INT),)
        plain = [TableSchema(name, columns, ("id",), "sqlserver") for name in names]
        return plain + [TableSchema(f"dbo.{name}", columns, ("id",), "sqlserver", to) for name, to in targets.items()]

    def test_a_table_is_named_by_the_prefix_and_its_name(self) -> None:
        assert table_names(self.tables("dbo.users", "sales.orders"), "shop-") == {
            "dbo.users": "shop-users",
            "sales.orders": "shop-orders",
        }

    def test_with_its_schema_where_two_would_collide(self) -> None:
        assert table_names(self.tables("dbo.users", "hr.users"), "shop-") == {
            "dbo.users": "shop-dbo.users",
            "hr.users": "shop-hr.users",
        }

    def test_or_as_configured(self) -> None:
        assert table_names(self.tables(users="people"), "shop-") == {"dbo.users": "shop-people"}

    def test_what_dynamodb_does_not_take_is_spelled(self) -> None:
        names = table_names(self.tables("dbo.größe", 'dbo."a b"', "dbo.🙂", "dbo.a_x0020_b2"), "p-")
        assert list(names.values()) == ["p-gr_x00f6__x00df_e", "p-a_x0020_b", "p-_x1f642_", "p-a_x0020_b2"]
        in_a_schema = table_names(self.tables('"my s".t', "dbo.t"), "p-")
        assert list(in_a_schema.values()) == ["p-my_x0020_s.t", "p-dbo.t"]

    @given(st.lists(st.text(st.sampled_from(" _x0205fé.%"), min_size=1, max_size=12), unique=True, max_size=6))
    def test_two_names_are_never_spelled_alike(self, names: list[str]) -> None:
        spelled = [str(TableName("dbo", name)) for name in names if not re.fullmatch(r"[a-zA-Z0-9_.-]+", name)]
        found = table_names(self.tables(*spelled), "p-")
        assert len(set(found.values())) == len(spelled)
        assert all(re.fullmatch(r"[a-zA-Z0-9_.-]{3,255}", name) for name in found.values())

    def test_one_that_looks_like_a_spelled_one_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="has the same"):
            table_names(self.tables('dbo."a b"', "dbo.a_x0020_b"), "p-")

    @pytest.mark.parametrize(("name", "prefix"), [("dbo." + "x" * 300, "p-"), ("dbo." + "é" * 40, "p-"), ("dbo.a", "")])
    def test_names_of_other_lengths_are_refused(self, name: str, prefix: str) -> None:
        with pytest.raises(ConfigError, match="3 to 255") as raised:
            table_names(self.tables(name), prefix)
        assert raised.value.code == "UW-DD-006"

    def test_two_tables_never_share_one(self) -> None:
        with pytest.raises(ConfigError):
            table_names(self.tables("a.x", "b.x", 'c."a.x"'), "p-")


def test_an_item_over_the_limit_is_rejected() -> None:
    form = of_kind(Kind.TEXT)
    assert form.item([1, "x" * (ITEM_BYTES_MAX - 300)], ITEM_BYTES_MAX)
    with pytest.raises(Rejected, match="409,600"):
        form.item([1, "x" * ITEM_BYTES_MAX], ITEM_BYTES_MAX)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_json_is_the_same_whatever_its_notation(value: Any) -> None:
    form = of_kind(Kind.JSON)
    compact = form.canonical([1, json.dumps(value, separators=(",", ":"), ensure_ascii=False)])
    spaced = form.canonical([1, json.dumps(value, indent=2, sort_keys=True)])
    assert compact == spaced
    assert json.loads(str(compact[1])) == value
