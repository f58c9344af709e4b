"""Choose, filter, rename, mask."""

import hashlib
import hmac
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.errors import ConfigError
from upwell.mapping import Mapping, TableRule, check_targets, pseudonym
from upwell.model import DELETE, UPSERT, ChangeEvent, Column, Kind, TableName, TableSchema, TableSelection, Value
from upwell.where import Where

USERS = TableSchema(
    "public.users",
    (
        Column("id", "integer", Kind.INT),
        Column("email", "varchar(20)", Kind.TEXT),
        Column("country", "char(2)", Kind.TEXT),
        Column("balance", "numeric(12,2)", Kind.DECIMAL),
        Column("bio", "text", Kind.TEXT, has_default=True),
    ),
    ("id",),
    "postgresql",
)
ORDERS = TableSchema("public.orders", (Column("id", "integer", Kind.INT),), ("id",), "postgresql")
SECRET = b"a secret of sixteen bytes"
ROW: list[Value] = [7, "a@example.com", "DE", "12.50", "likes é"]


def rule(pattern: str = "users", **settings: Any) -> TableRule:
    return TableRule(TableName.parse(pattern), **settings)


def mapping(*rules: TableRule) -> Mapping:
    return Mapping(rules, dialect="postgresql", mask_key=SECRET)


def upsert(row: list[Value], schema: TableSchema = USERS, **more: Any) -> ChangeEvent:
    key = orjson.dumps([row[index] for index in schema.key_indexes])
    return ChangeEvent(schema, UPSERT, bytes(16), "t", key, orjson.dumps(row), more.pop("was", "update"), **more)


def delete(key: list[Value], schema: TableSchema = USERS) -> ChangeEvent:
    return ChangeEvent(schema, DELETE, bytes(16), "t", orjson.dumps(key), None, "delete")


def one(mapping: Mapping, event: ChangeEvent) -> ChangeEvent:
    (mapped,) = mapping.events([event])
    return mapped


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [rule("orders", columns=("id",))],
        [rule("users", snapshot=False)],
        [rule("users", columns=("id", "email", "country", "balance", "bio"))],
    ],
)
def test_where_nothing_changes_the_same_lists_come_back(rules: list[TableRule]) -> None:
    events, rows = [upsert(ROW), delete([7])], [(b"[7]", orjson.dumps(ROW))]
    same = mapping(*rules)
    assert same.events(events) is events
    assert same.rows(USERS, rows) is rows
    assert same.schema(USERS) is USERS
    assert same.key(USERS, b"[7]") == b"[7]"


def test_only_chosen_columns_and_the_key_leave() -> None:
    chosen = mapping(rule(columns=("country", "bio")))
    schema = chosen.schema(USERS)
    assert [column.name for column in schema.columns] == ["id", "country", "bio"]
    event = one(chosen, upsert(ROW, changed=("email", "bio")))
    assert (event.schema, event.values(), event.changed) == (schema, [7, "DE", "likes é"], ("bio",))
    assert chosen.rows(USERS, [(b"[7]", orjson.dumps(ROW))]) == [(b"[7]", orjson.dumps([7, "DE", "likes é"]))]


def test_excluded_columns_stay() -> None:
    rest = mapping(rule(exclude=("email", "bio")))
    assert one(rest, upsert(ROW)).values() == [7, "DE", "12.50"]


def test_renamed_columns_keep_their_values_and_types() -> None:
    renamed = mapping(rule(rename={"id": "user_id", "bio": "about"}, to="people"))
    schema = renamed.schema(USERS)
    assert [column.name for column in schema.columns] == ["user_id", "email", "country", "balance", "about"]
    assert (schema.key, schema.target, schema.table) == (("user_id",), "people", "public.users")
    assert schema.columns[4] == USERS.columns[4]._replace(name="about")
    before = upsert(ROW, changed=("bio",))
    event = one(renamed, before)
    assert event.row is before.row  # only names have changed: the bytes are not touched
    assert (event.key, event.changed) == (b"[7]", ("about",))


def test_another_table_name_alone_changes_the_schema_only() -> None:
    event = one(mapping(rule(to="people")), delete([7]))
    assert event == delete([7])._replace(schema=replace(USERS, target="people"))


def test_masks() -> None:
    masked = mapping(rule(mask={"email": "hmac", "balance": "redact", "bio": "redact", "country": "null"}))
    schema = masked.schema(USERS)
    assert [(c.type, c.kind) for c in schema.columns[1:]] == [
        ("text", Kind.TEXT),  # 32 digits do not fit varchar(20)
        ("char(2)", Kind.TEXT),
        ("numeric(12,2)", Kind.DECIMAL),
        ("text", Kind.TEXT),
    ]
    digits = hmac.new(SECRET, b"a@example.com", hashlib.sha256).hexdigest()[:32]
    assert one(masked, upsert(ROW)).values() == [7, digits, None, None, "***"]
    assert one(masked, upsert([7, None, None, None, None])).values() == [7, None, None, None, "***"]


@pytest.mark.parametrize("mask", ["null", "redact"])
def test_a_mask_that_leaves_the_schema_alone_still_masks(mask: str) -> None:
    masked = mapping(rule(mask={"bio": mask}))
    assert masked.schema(USERS) == USERS
    assert one(masked, upsert(ROW)).values()[4] in (None, "***")
    ((_, row),) = masked.rows(USERS, [(b"[7]", orjson.dumps(ROW))])
    assert b"likes" not in row


def test_a_masked_key_is_another_key_in_every_event_and_row() -> None:
    masked = mapping(rule(mask={"id": "hmac"}))
    key = orjson.dumps([pseudonym(7, SECRET)])
    assert one(masked, upsert(ROW)).key == one(masked, delete([7])).key == masked.key(USERS, b"[7]") == key
    assert masked.rows(USERS, [(b"[7]", orjson.dumps(ROW))])[0][0] == key
    assert one(masked, upsert(ROW)).values()[0] == orjson.loads(key)[0]
    assert masked.schema(USERS).columns[0] == Column("id", "text", Kind.TEXT)


def test_joins_on_a_masked_value_still_work() -> None:
    orders = replace(ORDERS, columns=(*ORDERS.columns, Column("buyer", "text", Kind.TEXT)))
    masked = mapping(rule(mask={"email": "hmac"}), rule("orders", mask={"buyer": "hmac"}))
    order = one(masked, upsert([1, "a@example.com"], orders))
    assert order.values()[1] == one(masked, upsert(ROW)).values()[1]


def test_a_row_that_leaves_its_filter_is_a_delete_of_its_key() -> None:
    germans = mapping(rule(where=Where("country = 'DE'"), columns=("email",)))
    inside, outside = upsert(ROW), upsert([7, "a@example.com", "FR", "1", ""], changed=("country",))
    assert one(germans, inside).values() == [7, "a@example.com"]
    left = one(germans, outside)
    assert (left.operation, left.key, left.row, left.changed) == (DELETE, b"[7]", None, None)
    assert one(germans, upsert([7, "a", None, "1", ""])).operation == DELETE  # unknown is not true
    assert one(germans, delete([7])).operation == DELETE


def test_rows_that_were_never_wanted_are_not_even_deleted() -> None:
    germans = [rule(where=Where("country = 'DE'"))]
    stranger = upsert([8, "b", "FR", "1", ""], was="insert")
    assert Mapping(germans, dialect="postgresql").events([stranger]) == []
    # Net changes: elsewhere an insert may follow a delete of the same key that was never told.
    sqlite = replace(USERS, table="main.users", dialect="sqlite")
    assert [e.operation for e in Mapping(germans, dialect="sqlite").events([stranger._replace(schema=sqlite)])] == ["d"]


def test_a_snapshot_holds_only_the_rows_of_the_filter() -> None:
    germans = mapping(rule(where=Where("country = 'DE'"), mask={"country": "redact"}))
    rows = [(b"[%d]" % n, orjson.dumps([n, "e", country, "1", ""])) for n, country in enumerate(["DE", "FR", None])]
    assert germans.rows(USERS, rows) == [(b"[0]", orjson.dumps([0, "e", "***", "1", ""]))]


def test_the_source_reads_what_the_filter_needs_and_the_mapping_drops_it() -> None:
    chosen = rule(columns=("email",), where=Where("country = 'DE'"))
    assert chosen.selection() == TableSelection(TableName("", "users"), columns=("email", "country"))
    hidden = rule(exclude=("country", "bio"), where=Where("country = 'DE'"))
    assert hidden.selection() == TableSelection(TableName("", "users"), exclude=("bio",))
    for one_rule in (chosen, hidden):
        assert "DE" not in one(mapping(one_rule), upsert(ROW)).values()


BIO_UNCHANGED = USERS.without(frozenset({"bio"}))
PARTIAL = ROW[:4]


def test_partial_rows_are_mapped_to_partial_rows() -> None:
    mapped = mapping(rule(rename={"bio": "about"}, mask={"bio": "hmac", "email": "null"}, exclude=("balance",)))
    event = one(mapped, upsert(PARTIAL, BIO_UNCHANGED))
    assert event.schema.partial
    assert [column.name for column in event.schema.columns] == ["id", "email", "country"]
    assert event.values() == [7, None, "DE"]


@pytest.mark.parametrize(
    ("where", "changed", "operation", "resync"),
    [
        ("country = 'DE'", None, UPSERT, True),  # it may have come from another country: the target has no bio of it
        ("country = 'FR'", None, DELETE, False),
        ("country = 'DE'", ("email",), UPSERT, False),  # the source says that the filter's column did not change
        ("country = 'DE'", ("country",), UPSERT, True),
        ("bio LIKE 'x%'", None, UPSERT, False),  # the filter's column did not change: there or not there, as before
        ("bio LIKE 'x%' AND country = 'DE'", None, UPSERT, True),
        ("bio LIKE 'x%' AND country = 'FR'", None, DELETE, False),
        ("bio LIKE 'x%' OR country = 'DE'", None, UPSERT, True),
        ("bio IS NULL", None, DELETE, False),  # a large value is no NULL
    ],
)
def test_an_incomplete_row_that_may_have_entered_the_filter_asks_for_a_resync(
    where: str, changed: tuple[str, ...] | None, operation: str, resync: bool
) -> None:
    filtered = mapping(rule(where=Where(where)))
    event = one(filtered, upsert(PARTIAL, BIO_UNCHANGED, changed=changed))
    assert event.operation == operation
    asked = filtered.take_resyncs()
    assert [table for table, _ in asked] == (["public.users"] if resync else [])
    assert all("REPLICA IDENTITY FULL" in why for _, why in asked)
    assert filtered.take_resyncs() == []


def test_tables_without_a_rule_pass_beside_those_that_have_one() -> None:
    mapped = mapping(rule(exclude=("bio",)))
    order = upsert([1], ORDERS)
    assert mapped.events([order, upsert(ROW)])[0] is order


@pytest.mark.parametrize(
    ("pattern", "table", "dialect", "matches"),
    [
        ("users", "public.users", "postgresql", True),
        ("public.users", "public.users", "postgresql", True),
        ("Users", "public.users", "postgresql", False),
        ("Users", "main.users", "sqlite", True),
        ("DBO.Users", "dbo.users", "sqlserver", True),
        ("users", "sales.users", "postgresql", False),
        ("*.users", "sales.users", "postgresql", True),
        ("sales.*", "sales.users", "postgresql", True),
        ("sales.user?", "sales.users", "postgresql", True),
        ("sales.user?", "sales.user", "postgresql", False),
        ("sales.u[s]ers", "sales.users", "postgresql", False),
        ('public."weird.table""x"', 'public."weird.table""x"', "postgresql", True),
        ("*.*", 'public."a\nb"', "postgresql", True),
        ("shop.users", "shop.users", "mysql", True),
        ("users", "shop.users", "mysql", True),
    ],
)
def test_patterns(pattern: str, table: str, dialect: str, matches: bool) -> None:
    assert rule(pattern).matches(table, dialect) is matches


def test_the_first_rule_that_matches_counts() -> None:
    mapped = mapping(rule("users", snapshot=False), rule("*", exclude=("bio",)))
    assert mapped.schema(USERS) is USERS
    assert not mapped.snapshot("public.users")
    assert mapped.snapshot("public.orders")
    assert mapped.snapshot("other.orders")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"exclude": ("id",)}, "part of the key"),
        ({"mask": {"id": "null"}}, "part of the key"),
        ({"mask": {"id": "redact"}}, "part of the key"),
        ({"rename": {"bio": "email"}}, "two columns named email"),
        ({"mask": {"e-mail": "hmac"}}, "no column e-mail"),
        ({"rename": {"e-mail": "mail"}}, "no column e-mail"),
        ({"columns": ("e-mail",)}, "no column e-mail"),
        ({"where": Where("land = 'DE'")}, "no column land"),
        ({"where": Where("id = 'DE'")}, "takes a number"),
    ],
)
def test_a_rule_that_does_not_fit_its_table_is_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part) as refused:
        mapping(rule(**settings, origin="upwell.yaml:9")).schema(USERS)
    assert str(refused.value).startswith("upwell.yaml:9: tables.users: ")
    assert refused.value.code.startswith("UW-CF-")


def test_a_pattern_may_name_columns_that_only_some_tables_have() -> None:
    assert mapping(rule("*", mask={"email": "hmac"}, rename={"email": "mail"})).schema(ORDERS) == ORDERS


def test_hmac_needs_a_secret() -> None:
    with pytest.raises(ConfigError, match=r"masking\.key"):
        Mapping([rule(mask={"email": "hmac"})], dialect="postgresql")


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)


@given(st.lists(VALUES, min_size=5, max_size=5))
def test_what_leaves_never_holds_a_masked_value_and_is_else_the_same(row: list[Value]) -> None:
    """The plain loop over values is the reference that the mapping is compared with."""
    masked = mapping(rule(mask={"email": "hmac", "country": "null", "bio": "redact"}, exclude=("balance",)))
    email = None if row[1] is None else pseudonym(row[1], SECRET)
    expected = [row[0], email, None, "***"]
    assert one(masked, upsert(row)).values() == orjson.loads(orjson.dumps(expected))


@pytest.mark.parametrize(
    ("one", "other", "refused"),
    [
        (("public.a", "x"), ("public.b", "x"), True),
        (("public.a", "x"), ("public.b", "public.x"), True),
        (("public.a", None), ("public.b", "a"), True),
        (("sales.a", None), ("public.b", "sales.a"), True),
        (("public.a", None), ("sales.a", None), False),
        (("public.a", None), ("public.A", None), False),
        (("public.a", "x"), ("public.b", '"X"'), False),
    ],
)
def test_no_two_tables_become_one(one: tuple[str, str | None], other: tuple[str, str | None], refused: bool) -> None:
    columns = (Column("id", "integer", Kind.INT),)
    schemas = [TableSchema(table, columns, ("id",), "postgresql", to) for table, to in (one, other)]
    if not refused:
        check_targets(schemas)
        return
    with pytest.raises(ConfigError) as error:
        check_targets(schemas)
    assert error.value.code == "UW-CF-024"
