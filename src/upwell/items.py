"""Rows to DynamoDB items and back: the only form of an item. docs/dynamodb.md describes it for other readers.

Limits: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple

import orjson

from upwell.claims import Claim
from upwell.errors import ConfigError, Rejected
from upwell.keytemplates import Template
from upwell.model import Column, Kind, TableName, TableSchema, Value

VERSION: Final = "_upwell_v"
DELETED: Final = "_upwell_deleted"
TTL: Final = "_upwell_ttl"
SORT_KEY: Final = "_upwell_sk"  # the key's columns from the second on, where there are more than two
SOURCE_TABLE: Final = "_upwell_t"  # in a table that holds items of several source tables
CLAIM: Final = "_upwell_claim"  # where the rest of an item waits that was too large
_OURS: Final = "_upwell_"
TEMPLATE_PARTITION_KEY: Final = "pk"
TEMPLATE_SORT_KEY: Final = "sk"

ITEM_BYTES_MAX: Final = 400 * 1024
PARTITION_KEY_BYTES_MAX: Final = 2048
SORT_KEY_BYTES_MAX: Final = 1024
NUMBER_DIGITS_MAX: Final = 38
NUMBER_EXPONENTS: Final = range(-130, 126)  # of the first significant digit
NESTING_MAX: Final = 31  # inside an attribute: DynamoDB's 32 levels count the attribute itself

# An attribute's value as DynamoDB's JSON has it: {"S": "text"}, {"N": "1.5"}, {"M": {...}}.
Attribute = dict[str, Any]
Item = dict[str, Attribute]
KeyType = Literal["S", "N", "B"]
AttributeType = Literal["S", "N", "B", "BOOL", "M/L"]
Nulls = Literal["absent", "keep"]

_NULL: Final[Attribute] = {"NULL": True}
_EXACT_INT = 2**53
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_PRECISION = re.compile(r"\(\s*([0-9]+)\s*(?:,\s*(-?[0-9]+))?")
_BEYOND: Final = "what lies outside ±1E-130 to ±9.9E+125"
_TYPES: Final[Mapping[Kind, AttributeType]] = {
    Kind.INT: "N",
    Kind.FLOAT: "N",
    Kind.BOOL: "BOOL",
    Kind.BYTES: "B",
    Kind.JSON: "M/L",
}
_TABLE_NAME = re.compile(r"[a-zA-Z0-9_.-]{3,255}")
_NOT_TAKEN = re.compile(r"[^a-zA-Z0-9_.-]")
_KEY_NAME_BYTES_MAX: Final = 255
# A row's JSON this far below the limit needs no exact count: nothing takes four times the bytes of its JSON.
_SURELY_SMALL = ITEM_BYTES_MAX // 4


@dataclass(frozen=True)
class KeyTemplates:
    """How a source table lies in a table of single-table design."""

    table: str
    partition_key: str
    sort_key: str | None = None


class KeyAttribute(NamedTuple):
    """An attribute of a table's key."""

    name: str
    type: KeyType


def attribute_type(column: Column) -> AttributeType:
    """What a column that is not of the key becomes; single values may become something else, see `attribute_loss`."""
    if column.kind is Kind.DECIMAL:
        precision = _PRECISION.search(column.type)
        return "S" if precision is not None and int(precision[1]) > NUMBER_DIGITS_MAX else "N"
    return _TYPES.get(column.kind, "S")


def attribute_loss(column: Column, dialect: str) -> str | None:
    """What such a column may hold that its attribute does not; None: nothing."""
    notes = []
    if column.kind is Kind.DECIMAL:
        notes = _decimal_loss(column, dialect)
    elif column.kind is Kind.FLOAT:
        notes = [f"NaN, infinities and {_BEYOND} are stored as S; -0.0 becomes 0"]
    elif column.kind is Kind.JSON:
        notes = ["of members with the same name the last one counts; what is nested deeper than 31 levels, and numbers "
                 "that a Number can't hold, are stored as S"]  # fmt: skip
    elif column.type == "xml":
        notes = ["the declaration <?xml …?> of a document may be left out"]
    if dialect == "sqlite":
        unfit = "text" if column.kind is Kind.BYTES else "a blob, or text that is not UTF-8,"
        notes.append(f"SQLite lets it hold anything: numbers are N, texts S; {unfit} becomes a dead letter")
    return "; ".join(notes) or None


def _decimal_loss(column: Column, dialect: str) -> list[str]:
    declared = _PRECISION.search(column.type)
    precision, scale = (0, 0) if declared is None else (int(declared[1]), int(declared[2] or 0))
    if precision > NUMBER_DIGITS_MAX:
        return ["a Number of DynamoDB holds 38 digits: stored as text, which sorts and adds up otherwise"]
    notes = []
    if declared is None:
        notes.append(f"values of more than 38 digits, infinities and {_BEYOND} are stored as S")
    elif precision - scale - 1 not in NUMBER_EXPONENTS or -scale not in NUMBER_EXPONENTS:
        notes.append(f"{_BEYOND} is stored as S")
    if dialect == "postgresql":
        notes.append("NaN is stored as S")
    return notes


def attribute_of(column: Column, value: Value) -> Attribute:
    """A value that is not NULL as the attribute that the column becomes, to compare with."""
    encode = _ENCODERS[column.kind] if attribute_type(column) != "S" else _text_or_other
    return encode(value)


def key_type(column: Column) -> KeyType:
    """What a column becomes as a partition or sort key."""
    type_ = attribute_type(column)
    return type_ if type_ in ("N", "B") else "S"


def key_loss(column: Column, type_: KeyType, dialect: str) -> str | None:
    """What a column may hold that its key attribute can't; None: nothing. Rows with such keys become dead letters."""
    if column.kind is Kind.INT and dialect != "sqlite":
        return None
    unfit = "what a Number can't hold" if type_ == "N" else "an empty value, or one longer than DynamoDB's keys,"
    other = ", or what is of another type," if dialect == "sqlite" else ""
    return f"{unfit}{other} becomes a dead letter"


def table_names(schemas: Sequence[TableSchema], prefix: str) -> dict[str, str]:
    """source table → DynamoDB table: `prefix` and its name, with its schema where two would be the same.

    In a name that DynamoDB does not take, each other character becomes `_x`, its number in hexadecimal, `_`: `order
    details` is `order_x0020_details`, as in SQL/XML (ISO 9075-14). Raises ConfigError where the name is too long or
    too short, or where two source tables would still share one.
    """
    short = {schema.table: TableName.parse(schema.target or schema.table).name for schema in schemas}
    names: dict[str, str] = {}
    for table, name in short.items():
        parsed = TableName.parse(table)
        shared = sum(other == name for other in short.values()) > 1
        whole = f"{_taken(parsed.schema)}.{_taken(name)}" if shared and parsed.schema else _taken(name)
        names[table] = f"{prefix}{whole}"
    for table, name in names.items():
        rivals = [other for other, its in names.items() if its == name and other != table]
        if rivals or not _TABLE_NAME.fullmatch(name):
            why = f"{', '.join(rivals)} has the same" if rivals else "DynamoDB takes 3 to 255 letters, digits, _ . -"
            raise ConfigError(
                f"{table} can't become the DynamoDB table {name}: {why}.",
                code="UW-DD-006",
                remedy=f"Give it another name: tables: {{{_yaml(table)}: {{to: NAME}}}}",
            )
    return names


def _taken(name: str) -> str:
    """The name, or where DynamoDB does not take it, one that no other name becomes in this way."""
    if not _NOT_TAKEN.search(name):
        return name
    literal = re.sub(r"_(?=x[0-9a-f]{4})", "_x005f_", name)
    return _NOT_TAKEN.sub(lambda sign: f"_x{ord(sign[0]):04x}_", literal)


def _yaml(text: str) -> str:
    """A key of a configuration."""
    return text if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", text) else json.dumps(text, ensure_ascii=False)


class ItemForm:
    """How the rows of one schema become items: prepared once, used for every row."""

    def __init__(
        self, schema: TableSchema, table: str, templates: KeyTemplates | None = None, nulls: Nulls = "absent"
    ) -> None:
        """`table`: the DynamoDB table. Raises ConfigError where templates or names of columns can't be used."""
        self.schema = schema
        self.table = table
        self.shared = templates is not None
        columns = {column.name: column for column in schema.columns}
        self._key_columns = [columns[name] for name in schema.key]
        self._partition, self._sort = self._templates(templates)
        self.key_attributes = self._key_attributes()
        self._check_names(templates)
        self._nulls = nulls
        self._names_bytes = 64 + sum(len(name.encode()) + 24 for name in columns)
        kept = {attribute.name for attribute in self.key_attributes}
        self._encoders = [
            (index, column.name, _ENCODERS[column.kind] if attribute_type(column) != "S" else _text_or_other)
            for index, column in enumerate(schema.columns)
            if column.name not in kept
        ]

    def _templates(self, templates: KeyTemplates | None) -> tuple[Template | None, Template | None]:
        key = self._key_columns
        if templates is not None:
            partition = Template(templates.partition_key, key)
            sort = None if templates.sort_key is None else Template(templates.sort_key, key)
            missing = set(self.schema.key) - partition.columns - (sort.columns if sort else frozenset())
            if missing:
                raise ConfigError(
                    f"The key templates of {self.schema.table} leave out {', '.join(sorted(missing))}: "
                    "several rows would share one item.",
                    code="UW-DD-005",
                    remedy="Use every column of the key in partition_key or sort_key.",
                )
            return partition, sort
        if len(key) <= 2:
            return None, None
        return None, Template.joined(key[1:], "#", key)

    @property
    def lead(self) -> str:
        """The text that every partition key begins with; empty where it is a column's value."""
        return self._partition.lead if self._partition is not None else ""

    def _key_attributes(self) -> tuple[KeyAttribute, ...]:
        if self._partition is not None:
            names = [TEMPLATE_PARTITION_KEY, *([TEMPLATE_SORT_KEY] if self._sort is not None else [])]
            return tuple(KeyAttribute(name, "S") for name in names)
        first, *others = self._key_columns
        attributes = [KeyAttribute(first.name, key_type(first))]
        if self._sort is not None:
            attributes.append(KeyAttribute(SORT_KEY, "S"))
        elif others:
            attributes.append(KeyAttribute(others[0].name, key_type(others[0])))
        return tuple(attributes)

    def _check_names(self, templates: KeyTemplates | None) -> None:
        taken = {attribute.name for attribute in self.key_attributes} if templates is not None else set()
        for column in self.schema.columns:
            if column.name in taken or column.name.startswith(_OURS):
                raise ConfigError(
                    f"The column {column.name} of {self.schema.table} has the name of an attribute of upwell's.",
                    code="UW-DD-007",
                    remedy=self._rename(column.name),
                )
        names = [column.name for column in self.schema.columns]
        unfit = [] if "" not in names else [""]
        unfit += [key.name for key in self.key_attributes if len(key.name.encode()) > _KEY_NAME_BYTES_MAX]
        if unfit:
            raise ConfigError(
                f"DynamoDB has no attribute called {unfit[0]!r}, as a column of {self.schema.table} is: names have at "
                f"least one character, in a key at most {_KEY_NAME_BYTES_MAX} bytes.",
                code="UW-DD-007",
                remedy=self._rename(unfit[0]),
            )

    def _rename(self, column: str) -> str:
        return f"Rename it: tables: {{{_yaml(self.schema.table)}: {{rename: {{{_yaml(column)}: NAME}}}}}}"

    def key(self, values: Sequence[Value]) -> Item:
        """The key's attributes for the key's values, in the key's order. Raises Rejected."""
        item: Item = {}
        first, *rest = self.key_attributes
        value = self._partition.render(values) if self._partition is not None else self._of_key(0, values)
        item[first.name] = _key_attribute(first, value, PARTITION_KEY_BYTES_MAX)
        if rest:
            value = self._sort.render(values) if self._sort is not None else self._of_key(1, values)
            item[rest[0].name] = _key_attribute(rest[0], value, SORT_KEY_BYTES_MAX)
        return item

    def _of_key(self, index: int, values: Sequence[Value]) -> Value:
        """SQLite keeps numbers in columns for dates: no text there looks like one, so the number's text is its key."""
        value = values[index]
        if isinstance(value, int | float) and self._key_columns[index].kind is Kind.TEXT:
            return repr(value)
        return value

    def item(self, values: Sequence[Value], row_bytes: int) -> Item:
        """A row's attributes, key included. Raises Rejected, not for its size where `row_bytes`, its JSON's, is 0."""
        item = self.key([values[index] for index in self.schema.key_indexes])
        for index, name, encode in self._encoders:
            value = values[index]
            if value is not None:
                item[name] = encode(value)
            elif self._nulls == "keep":
                item[name] = _NULL
        if row_bytes and self.may_be_large(row_bytes):
            check_size(item)
        return item

    def may_be_large(self, row_bytes: int) -> bool:
        """Whether a row whose JSON takes so many bytes could exceed DynamoDB's limit."""
        return row_bytes + self._names_bytes > _SURELY_SMALL

    def changes(self, values: Sequence[Value]) -> tuple[Item, list[str]]:
        """Of a partial row: the attributes that it sets, and the names of those that it removes; without the key."""
        sets: Item = {}
        removes: list[str] = []
        for index, name, encode in self._encoders:
            value = values[index]
            if value is not None:
                sets[name] = encode(value)
            elif self._nulls == "keep":
                sets[name] = _NULL
            else:
                removes.append(name)
        return sets, removes

    def disjoint(self, other: ItemForm) -> bool:
        """Whether rows of both can lie in one table and never have the same key."""
        if self.key_attributes != other.key_attributes or self._partition is None or other._partition is None:
            return False
        if self._partition.disjoint(other._partition):
            return True
        return self._sort is not None and other._sort is not None and self._sort.disjoint(other._sort)

    def values(self, item: Item) -> list[Value]:
        """The row that an item holds, in the order of the schema's columns, in the form of `canonical`."""
        read = [item.get(column.name) for column in self.schema.columns]
        return [
            None if attribute is None else _value(attribute, column.kind)
            for attribute, column in zip(read, self.schema.columns, strict=True)
        ]

    def canonical(self, values: Sequence[Value]) -> list[Value]:
        """A row's values as they come back from DynamoDB: numbers without trailing zeros, JSON in one notation.

        Raises Rejected, not for its size.
        """
        return self.values(self.item(values, 0))


# --- items that are too large ---


class ItemTooLarge(Rejected):
    """DynamoDB would not take the item."""


def claimed_content(item: Item) -> bytes:
    """What of an item goes to S3 where it is too large: all of it, in DynamoDB's JSON."""
    return orjson.dumps(item)


def claimed_item(key: Item, claim: Claim) -> Item:
    """What stands in the table in its place."""
    where = {"object": {"S": claim.object}, "sha256": {"S": claim.sha256}, "bytes": {"N": str(claim.bytes)}}
    return {**key, CLAIM: {"M": where}}


def claim_of(item: Item) -> Claim | None:
    """Where the rest of an item waits; None where it is whole. Raises Rejected where that can't be read."""
    attribute = item.get(CLAIM)
    if attribute is None:
        return None
    try:
        where = attribute["M"]
        return Claim.from_wire(
            {"object": where["object"]["S"], "sha256": where["sha256"]["S"], "bytes": where["bytes"]["N"]}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Rejected(f"its attribute {CLAIM} is not one of upwell's") from error


def whole_item(item: Item, content: bytes) -> Item:
    """The item with what `claimed_content` gave; the attributes beside the claim are newer. Raises Rejected."""
    try:
        rest = orjson.loads(content)
        return {**rest, **{name: attribute for name, attribute in item.items() if name != CLAIM}}
    except (ValueError, TypeError) as error:
        raise Rejected("what the claim check holds for it is no item") from error


def check_size(item: Item) -> None:
    """Raises ItemTooLarge where DynamoDB would not take the item (with room for the attributes of ours)."""
    size = 200 + sum(len(name.encode()) + attribute_bytes(attribute) for name, attribute in item.items())
    if size > ITEM_BYTES_MAX:
        raise ItemTooLarge(f"its item would have about {size:,} bytes; DynamoDB takes at most {ITEM_BYTES_MAX:,}")


def attribute_bytes(attribute: Attribute) -> int:
    """What a value counts towards the item's size, at most.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """
    ((type_, value),) = attribute.items()
    if type_ == "S":
        return len(value.encode())
    if type_ == "N":
        return min(21, len(value) // 2 + 3)
    if type_ == "B":
        return len(value) * 3 // 4
    if type_ == "M":
        return 3 + sum(1 + len(name.encode()) + attribute_bytes(part) for name, part in value.items())
    if type_ == "L":
        return 3 + sum(1 + attribute_bytes(part) for part in value)
    return 1


def fits_number(text: str) -> bool:
    """Whether DynamoDB's Number holds this number exactly: 38 digits, 1E-130 to 9.9…E+125."""
    if _NUMBER.fullmatch(text) is None:
        return False
    if len(text) <= NUMBER_DIGITS_MAX and "e" not in text and "E" not in text:
        return True
    number = Decimal(text)
    if not number:
        return True
    digits = "".join(map(str, number.as_tuple().digits)).strip("0")
    return len(digits) <= NUMBER_DIGITS_MAX and number.adjusted() in NUMBER_EXPONENTS


def _number(text: str) -> Attribute:
    return {"N": text} if fits_number(text) else {"S": text}


def _number_or_other(value: Value) -> Attribute:
    """A database may give a column values of other types than its own: SQLite does. Each keeps the type that it has."""
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, int):
        return {"N": str(value)}
    if isinstance(value, float):
        return _number(repr(value))
    assert value is not None, "NULL is not an attribute's value"
    return _number(value)


def _text_or_other(value: Value) -> Attribute:
    return {"S": value} if isinstance(value, str) else _number_or_other(value)


def _binary_or_other(value: Value) -> Attribute:
    return {"B": value} if isinstance(value, str) else _number_or_other(value)


def _json_or_other(value: Value) -> Attribute:
    if not isinstance(value, str):
        return _number_or_other(value)
    try:
        return _structure(json.loads(value, parse_int=_Digits, parse_float=_Digits, parse_constant=_no_constant), 0)
    except (ValueError, RecursionError):
        return {"S": value}  # not JSON, or deeper or otherwise than DynamoDB takes


class _Digits(str):
    """A number in JSON, digit by digit."""

    __slots__ = ()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _structure(value: Any, depth: int) -> Attribute:
    if isinstance(value, _Digits):
        return _number(str(value))
    if isinstance(value, str):
        return {"S": _whole(value)}
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return {"BOOL": value}
    if depth >= NESTING_MAX:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return {"L": [_structure(part, depth + 1) for part in value]}
    if "" in value:
        raise ValueError("a member without a name")
    return {"M": {_whole(name): _structure(part, depth + 1) for name, part in value.items()}}


def _whole(text: str) -> str:
    """Raises UnicodeEncodeError, a ValueError, where JSON's escapes have left half of a surrogate pair."""
    if not text.isascii():
        text.encode()
    return text


_ENCODERS: Final[dict[Kind, Callable[[Value], Attribute]]] = {
    Kind.BOOL: _text_or_other,
    Kind.INT: _number_or_other,
    Kind.DECIMAL: _number_or_other,
    Kind.FLOAT: _number_or_other,
    Kind.BYTES: _binary_or_other,
    Kind.JSON: _json_or_other,
}


def _key_attribute(attribute: KeyAttribute, value: Value, bytes_max: int) -> Attribute:
    encoded: Attribute
    if attribute.type == "S":
        encoded = {"S": str(value).lower()} if isinstance(value, bool) else _text_or_other(value)
    elif attribute.type == "B":
        encoded = _binary_or_other(value)
    else:
        encoded = _number_or_other(value)
    content = encoded.get(attribute.type)
    if content is None:
        raise Rejected(f"its key {attribute.name} is not of the type {attribute.type}, as which the table has it")
    if content == "":
        raise Rejected(f"its key {attribute.name} is empty, which DynamoDB does not take")
    if len(content) > bytes_max // 4 and attribute_bytes(encoded) > bytes_max:
        raise Rejected(f"its key {attribute.name} has more than the {bytes_max:,} bytes that DynamoDB takes")
    return encoded


def _value(attribute: Attribute, kind: Kind) -> Value:
    ((type_, value),) = attribute.items()
    if type_ == "N":
        return _numeric(value, kind)
    if type_ in ("S", "B", "BOOL"):
        if kind is Kind.JSON:
            return _json_text(attribute)
        if kind is Kind.BOOL and value in ("true", "false"):
            return bool(value == "true")
        return value  # type: ignore[no-any-return]  # what DynamoDB answers has no types
    return None if type_ == "NULL" and kind is not Kind.JSON else _json_text(attribute)


def _numeric(text: str, kind: Kind) -> Value:
    number = Decimal(text)
    plain = _plain(number)
    if kind is Kind.FLOAT:
        return float(text)
    if kind is Kind.DECIMAL or number != number.to_integral_value():
        return plain
    return int(plain) if abs(number) <= _EXACT_INT else plain


def _plain(number: Decimal) -> str:
    """Without exponent, trailing zeros, or a sign on zero: as DynamoDB gives numbers back."""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _json_text(attribute: Attribute) -> str:
    ((type_, value),) = attribute.items()
    if type_ == "M":
        members = (f"{_quoted(name)}:{_json_text(value[name])}" for name in sorted(value))
        return "{" + ",".join(members) + "}"
    if type_ == "L":
        return "[" + ",".join(map(_json_text, value)) + "]"
    if type_ == "N":
        return _plain(Decimal(value))
    if type_ == "NULL":
        return "null"
    return _quoted(value)


def canonical_json(text: str) -> str:
    """A JSON document in the one notation in which it comes back from DynamoDB; once more, it stays the same."""
    return _json_text(_json_or_other(text))


def _quoted(value: object) -> str:
    return orjson.dumps(value).decode()
