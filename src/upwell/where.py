"""Row filters: the `where` of a table's configuration, a small subset of SQL that is evaluated here.

Comparisons, IN, BETWEEN, LIKE, IS NULL, AND, OR, NOT, parentheses, text, numbers, TRUE and FALSE, with SQL's
three-valued logic: a row passes where the condition is true, not where it is unknown. Numbers compare by value,
text by code point (LIKE too, and case counts), dates and times as moments (in UTC where no zone is given). Only the
row itself decides: nothing that changes by itself, as the current date does, can stand in a filter.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from upwell.comparison import WhereError, domain, like_matcher
from upwell.model import Column, Kind, TableSchema, Value

if TYPE_CHECKING:
    from sqlglot.expressions import Expression

WHERE_CHARS_MAX = 10_000
WHERE_NODES_MAX = 500  # conditions, columns and constants

# A row's values in the order of its schema's columns → true, false or unknown.
Condition = Callable[[Sequence[Value]], bool | None]


class _Name(NamedTuple):
    text: str
    quoted: bool


class _Constant(NamedTuple):
    value: str | Decimal | bool


_Operand = _Name | _Constant


class _Logic(NamedTuple):
    word: str  # and | or | not
    parts: tuple[_Node, ...]


class _Compare(NamedTuple):
    sign: str
    left: _Operand
    right: _Operand


class _In(NamedTuple):
    name: _Name
    constants: tuple[_Constant, ...]


class _Like(NamedTuple):
    name: _Name
    pattern: str
    escape: str


class _IsNull(NamedTuple):
    name: _Name


_Node = _Logic | _Compare | _In | _Like | _IsNull | _Name | _Constant


class Where:
    """A parsed filter. Raises WhereError for anything outside the subset."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._root = _parse(text)
        self._names = tuple(dict.fromkeys(_names(self._root)))
        if not self._names:
            raise WhereError("the filter names no column")

    def __repr__(self) -> str:
        return f"Where({self.text!r})"

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns that the filter reads, as they are written in it."""
        return tuple(name.text for name in self._names)

    def columns(self, schema: TableSchema) -> frozenset[str]:
        """Which of the schema's columns the filter reads. Raises WhereError for one that a whole row lacks."""
        found = (_find(name, schema) for name in self._names)
        return frozenset(schema.columns[index].name for index in found if index is not None)

    def lacks_columns(self, schema: TableSchema) -> bool:
        """Whether rows of a partial schema lack a column that the filter reads."""
        return any(_find(name, schema) is None for name in self._names)

    def compile(self, schema: TableSchema) -> Condition:
        """The filter over rows of the schema. Raises WhereError where a comparison makes no sense for its column.

        Of a partial schema, a column that is not there holds a value that is unknown, but is not NULL.
        """
        return _condition(self._root, schema)


# --- from text to nodes -------------------------------------------------------------------------------------------


def _parse(text: str) -> _Node:
    import sqlglot
    from sqlglot import errors, exp

    if len(text) > WHERE_CHARS_MAX:
        raise WhereError(f"the filter is longer than {WHERE_CHARS_MAX} characters")
    try:
        # By way of a whole statement: alone, an expression may be followed by things that would be ignored.
        sql = f"SELECT 1 FROM t WHERE {text}\n"  # noqa: S608 - it is parsed, never sent to a database
        statements = sqlglot.parse(sql, error_level=errors.ErrorLevel.RAISE)
    except (errors.SqlglotError, RecursionError) as error:
        raise WhereError("this is not a condition in SQL") from error
    statement = statements[0] if len(statements) == 1 else None
    clauses = {"expressions", "from_", "from", "where"}
    if not isinstance(statement, exp.Select) or not _given(statement) <= clauses:
        raise WhereError("this is more than one condition; only what may follow WHERE can stand here")
    tree: Expression = statement.args["where"].this
    if sum(1 for _ in tree.walk()) > WHERE_NODES_MAX:
        raise WhereError(f"the filter has more than {WHERE_NODES_MAX} parts")
    return _node(tree)


def _given(tree: Expression) -> set[str]:
    return {name for name, value in tree.args.items() if value}


# Which parts each of sqlglot's expressions may have here. A part that is not listed, now or in a later version of the
# parser, may change the meaning, so it is refused.
_PARTS: Final = {
    "And": {"this", "expression"},
    "Or": {"this", "expression"},
    "Not": {"this"},
    "Paren": {"this"},
    "EQ": {"this", "expression"},
    "NEQ": {"this", "expression"},
    "LT": {"this", "expression"},
    "LTE": {"this", "expression"},
    "GT": {"this", "expression"},
    "GTE": {"this", "expression"},
    "Between": {"this", "low", "high"},
    "In": {"this", "expressions"},
    "Like": {"this", "expression", "negate"},
    "Escape": {"this", "expression"},
    "Is": {"this", "expression"},
    "Null": set(),
    "Column": {"this"},
    "Identifier": {"this", "quoted"},
    "Literal": {"this", "is_string"},
    "Boolean": {"this"},
    "Neg": {"this"},
    "Cast": {"this", "to"},
}
_SIGNS: Final = {"EQ": "=", "NEQ": "<>", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">="}
_TYPED_CONSTANTS: Final = {"DATE", "TIME", "TIMESTAMP", "DATETIME", "TIMESTAMPTZ"}


def _kind(tree: Expression) -> str:
    name = type(tree).__name__
    if name not in _PARTS or not _given(tree) <= _PARTS[name]:
        raise _unsupported(tree)
    return name


def _unsupported(tree: Expression) -> WhereError:
    text = tree.sql()
    if len(text) > 60:
        text = text[:60] + "…"
    return WhereError(
        f"`{text}` is not supported; a filter is made of comparisons of columns with constants, IN, BETWEEN, LIKE, "
        "IS NULL, AND, OR and NOT"
    )


def _node(tree: Expression) -> _Node:
    kind = _kind(tree)
    if kind == "Paren":
        return _node(tree.this)
    if kind in ("And", "Or"):
        return _Logic(kind.lower(), (_node(tree.this), _node(tree.expression)))
    if kind == "Not":
        return _Logic("not", (_node(tree.this),))
    if kind in _SIGNS:
        return _comparison(_SIGNS[kind], tree, tree.this, tree.expression)
    if kind == "Between":
        low = _comparison(">=", tree, tree.this, tree.args["low"])
        return _Logic("and", (low, _comparison("<=", tree, tree.this, tree.args["high"])))
    if kind == "In":
        constants = tuple(_constant(item, tree) for item in tree.args.get("expressions") or ())
        if not constants:
            raise _unsupported(tree)
        return _In(_name(tree.this, tree), constants)
    if kind in ("Like", "Escape"):
        return _like(tree)
    if kind == "Is" and _kind(tree.expression) == "Null":
        return _IsNull(_name(tree.this, tree))
    if kind == "Column":
        return _name(tree, tree)
    if kind == "Boolean":
        return _constant(tree, tree)
    raise _unsupported(tree)


def _comparison(sign: str, tree: Expression, left: Expression, right: Expression) -> _Compare:
    if "Null" in (type(left).__name__, type(right).__name__):
        raise WhereError(f"`{tree.sql()}` is never true; write IS NULL or IS NOT NULL")
    compare = _Compare(sign, _operand(left, tree), _operand(right, tree))
    if isinstance(compare.left, _Constant) and isinstance(compare.right, _Constant):
        raise _unsupported(tree)
    return compare


def _operand(tree: Expression, around: Expression) -> _Operand:
    while type(tree).__name__ == "Paren":
        tree = tree.this
    return _name(tree, around) if type(tree).__name__ == "Column" else _constant(tree, around)


def _name(tree: Expression, around: Expression) -> _Name:
    while type(tree).__name__ == "Paren":
        tree = tree.this
    if type(tree).__name__ != "Column":
        raise _unsupported(around)
    if _kind(tree) and _kind(tree.this) != "Identifier":
        raise _unsupported(around)
    return _Name(tree.name, bool(tree.this.args.get("quoted")))


def _constant(tree: Expression, around: Expression) -> _Constant:
    if type(tree).__name__ == "Null":
        raise WhereError(f"`{around.sql()}` has a NULL in its list, which is never equal to anything")
    kind = _kind(tree)
    if kind == "Boolean":
        return _Constant(bool(tree.this))
    if kind == "Neg" and _kind(tree.this) == "Literal" and not tree.this.is_string:
        return _Constant(_number(tree.this.this).copy_negate())  # a minus sign would round to 28 digits
    if kind == "Literal":
        return _Constant(str(tree.this)) if tree.is_string else _Constant(_number(tree.this))
    if kind == "Cast" and tree.args["to"].sql().upper() in _TYPED_CONSTANTS and tree.this.is_string:
        return _constant(tree.this, around)
    raise _unsupported(around)


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise WhereError(f"{text} is not a number") from error


def _like(tree: Expression) -> _Node:
    escape = ""
    like = tree
    if type(tree).__name__ == "Escape":
        escape = str(_constant(tree.expression, tree).value)
        if len(escape) != 1:
            raise WhereError("ESCAPE takes one character")
        like = tree.this
    if _kind(like) != "Like":
        raise _unsupported(tree)
    pattern = _constant(like.expression, tree).value
    if not isinstance(pattern, str):
        raise _unsupported(tree)
    node = _Like(_name(like.this, tree), pattern, escape)
    return _Logic("not", (node,)) if like.args.get("negate") else node


def _names(node: _Node) -> Collection[_Name]:
    if isinstance(node, _Name):
        return [node]
    if isinstance(node, _Constant):
        return []
    if isinstance(node, _Logic):
        return [name for part in node.parts for name in _names(part)]
    if isinstance(node, _Compare):
        return [operand for operand in (node.left, node.right) if isinstance(operand, _Name)]
    return [node.name]


# --- from nodes to a function of a row ----------------------------------------------------------------------------


def _find(name: _Name, schema: TableSchema) -> int | None:
    """Where the column stands; None where a partial schema lacks it. Without quotes, case counts only to decide."""
    names = [column.name for column in schema.columns]
    if name.text in names:
        return names.index(name.text)
    alike = [index for index, other in enumerate(names) if other.casefold() == name.text.casefold()]
    if len(alike) == 1 and not name.quoted:
        return alike[0]
    if schema.partial:
        return None
    raise WhereError(f"the table has no column {name.text}; it has {', '.join(names)}")


def _unknown(_row: Sequence[Value]) -> bool | None:
    return None


def _condition(node: _Node, schema: TableSchema) -> Condition:
    if isinstance(node, _Logic):
        parts = [_condition(part, schema) for part in node.parts]
        return _not(parts[0]) if node.word == "not" else _and_or(parts[0], parts[1], node.word == "or")
    if isinstance(node, _Constant):
        truth = bool(node.value)
        return lambda row: truth
    if isinstance(node, _Compare):
        return _compare(node, schema)
    name = node if isinstance(node, _Name) else node.name
    index = _find(name, schema)
    if isinstance(node, _IsNull):
        return (lambda row: False) if index is None else (lambda row: row[index] is None)
    if index is None:
        return _unknown
    column = schema.columns[index]
    if isinstance(node, _Name):
        return _compare(_Compare("=", node, _Constant(True)), schema)
    if isinstance(node, _In):
        return _in(index, column, node.constants)
    if column.kind is not Kind.TEXT:
        raise WhereError(f"the column {column.name} ({column.type}) is no text, which LIKE needs")
    return _matches(index, like_matcher(node.pattern, node.escape))


def _not(part: Condition) -> Condition:
    def negated(row: Sequence[Value]) -> bool | None:
        result = part(row)
        return None if result is None else not result

    return negated


def _and_or(left: Condition, right: Condition, decisive: bool) -> Condition:
    """AND where False decides, OR where True does; without a decision, an unknown side makes the result unknown."""

    def combined(row: Sequence[Value]) -> bool | None:
        first = left(row)
        if first is decisive:
            return decisive
        second = right(row)
        if second is decisive:
            return decisive
        return None if first is None or second is None else not decisive

    return combined


_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MIRRORED: Final = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _compare(node: _Compare, schema: TableSchema) -> Condition:
    sign, left, right = node
    if isinstance(left, _Constant):
        sign, left, right = _MIRRORED[sign], right, left
    assert isinstance(left, _Name)
    index = _find(left, schema)
    if isinstance(right, _Name):
        other = _find(right, schema)
        return _unknown if index is None or other is None else _compare_columns(sign, index, other, schema)
    if index is None:
        return _unknown
    column = schema.columns[index]
    compared_as = domain(column, sign)
    constant = compared_as.constant(right.value, column)
    compare, read = _OPERATORS[sign], compared_as.value

    def compared(row: Sequence[Value]) -> bool | None:
        value = row[index]
        value = None if value is None else read(value)
        return None if value is None else compare(value, constant)

    return compared


def _compare_columns(sign: str, left: int, right: int, schema: TableSchema) -> Condition:
    first, second = schema.columns[left], schema.columns[right]
    one, two = domain(first, sign), domain(second, sign)
    if one.name != two.name:
        raise WhereError(f"the columns {first.name} ({first.type}) and {second.name} ({second.type}) do not compare")
    compare = _OPERATORS[sign]
    mixed = {first.kind, second.kind} == {Kind.FLOAT, Kind.DECIMAL}  # databases compare these as floats

    def compared(row: Sequence[Value]) -> bool | None:
        if row[left] is None or row[right] is None:
            return None
        a, b = one.value(row[left]), two.value(row[right])
        if a is None or b is None:
            return None
        return compare(float(a), float(b)) if mixed else compare(a, b)

    return compared


def _in(index: int, column: Column, constants: Sequence[_Constant]) -> Condition:
    compared_as = domain(column, "=")
    wanted = frozenset(compared_as.constant(constant.value, column) for constant in constants)
    read = compared_as.value

    def member(row: Sequence[Value]) -> bool | None:
        value = row[index]
        value = None if value is None else read(value)
        return None if value is None else value in wanted

    return member


def _matches(index: int, matcher: Callable[[str], bool]) -> Condition:
    def matched(row: Sequence[Value]) -> bool | None:
        value = row[index]
        return matcher(value) if isinstance(value, str) else None

    return matched
