"""Choose, filter, rename, mask: what happens to a row before it leaves the building. A pure function of an event.

A filter reads the source's values under the source's names, before anything is masked or renamed. A mask in the key
changes the key, in every event of the table alike, so order per key stays what it was.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import orjson

from upwell.comparison import WhereError
from upwell.errors import ConfigError
from upwell.model import (
    DELETE,
    ChangeEvent,
    Column,
    Kind,
    TableName,
    TableSchema,
    TableSelection,
    Value,
)
from upwell.tablepatterns import folded, has_wildcard, part_matches, shown
from upwell.where import Condition, Where

Mask = Literal["hmac", "redact", "null"]

REDACTED: Final = "***"
HMAC_HEX_DIGITS: Final = 32  # 128 bits of HMAC-SHA-256: no two values meet by chance
# Where a mask makes text of a column that held something else, or whose length it would not fit.
_TEXT_TYPES: Final = {
    "postgresql": "text",
    "sqlite": "TEXT",
    "sqlserver": f"varchar({HMAC_HEX_DIGITS})",
    "mysql": f"varchar({HMAC_HEX_DIGITS})",
    "mariadb": f"varchar({HMAC_HEX_DIGITS})",
}
DEFAULT_SCHEMAS: Final = {"postgresql": "public", "sqlite": "main", "sqlserver": "dbo"}


@dataclass(frozen=True)
class TableRule:
    """What the configuration says of the tables that a pattern names. The first rule that matches a table counts."""

    pattern: TableName  # one of tablepatterns.py
    columns: tuple[str, ...] | None = None  # only these and the key; None: all
    exclude: tuple[str, ...] = ()
    where: Where | None = None
    rename: Dict[str, str] = field(default_factory=dict)
    mask: Dict[str, Mask] = field(default_factory=dict)
    to: str | None = None
    snapshot: bool = True
    origin: str = ""  # where in which file it stands, for messages

    def selection(self) -> TableSelection:
        """What the source has to read: the chosen columns, and those that the filter needs."""
        needed = () if self.where is None else self.where.column_names
        return TableSelection(
            pattern=self.pattern,
            columns=None if self.columns is None else tuple(dict.fromkeys((*self.columns, *needed))),
            exclude=tuple(name for name in self.exclude if name not in needed),
        )

    def matches(self, table: str, dialect: str) -> bool:
        """Whether the pattern names the table; case counts where it does in the source."""
        name = TableName.parse(table)
        default = DEFAULT_SCHEMAS.get(dialect)
        wanted, actual = self.pattern.schema or default, name.schema or default
        fits = wanted is None or actual is None or part_matches(wanted, actual, dialect)
        return fits and part_matches(self.pattern.name, name.name, dialect)

    @property
    def is_pattern(self) -> bool:
        """Whether it may match several tables."""
        return has_wildcard(self.pattern)


def check_targets(leaving: Iterable[TableSchema]) -> None:
    """Raises ConfigError where two tables would become one table of a relational target."""
    taken: dict[TableName, str] = {}
    for schema in leaving:
        name = TableName.parse(schema.target or schema.table)
        default = "public" if schema.target is not None else DEFAULT_SCHEMAS.get(schema.dialect, "")
        there = TableName("public" if name.schema in ("", default) else name.schema, name.name)
        other = taken.setdefault(there, schema.table)
        if other != schema.table:
            raise ConfigError(
                f"{other} and {schema.table} would both become the table {there}, and remove each other's rows.",
                code="UW-CF-024",
                remedy="Give one of them another name with `to`.",
            )


@dataclass(frozen=True, slots=True)
class _Plan:
    """A rule, worked out for the rows of one schema."""

    schema: TableSchema  # what leaves
    row: Callable[[list[Value]], list[Value]]
    key: Callable[[list[Value]], list[Value]] | None  # None: the key stays as it is
    row_changes: bool
    names: Dict[str, str]  # the source's name of each column that leaves → its name from here on
    where: Condition | None = None
    filtered_on: frozenset[str] = frozenset()
    filter_lacks: bool = False  # a partial row lacks columns of the filter


class Mapping:
    """The rules of a pipeline. Tables without a rule pass as they are."""

    def __init__(self, rules: Sequence[TableRule], *, dialect: str, mask_key: bytes | None = None) -> None:
        """`dialect` is the source's, as in TableSchema; `mask_key` is the secret of the `hmac` masks.

        Raises ConfigError where that secret is needed and missing.
        """
        self._rules = tuple(rules)
        self._dialect = dialect
        self._mask_key = mask_key or b""
        for rule in self._rules:
            if not self._mask_key and "hmac" in rule.mask.values():
                raise _wrong(rule, "the mask hmac needs a secret; set `masking.key`", "UW-CF-021")
        self._idle = all(rule == TableRule(rule.pattern, snapshot=rule.snapshot, origin=rule.origin) for rule in rules)
        self._plans: dict[str, _Plan | None] = {}
        self._resyncs: dict[str, str] = {}

    def schema(self, source: TableSchema) -> TableSchema:
        """What the table's rows look like when they leave. Raises ConfigError where its rule does not fit it."""
        plan = self._plan(source)
        return source if plan is None else plan.schema

    def snapshot(self, table: str) -> bool:
        """Whether the rows that the table already has are wanted."""
        rule = self._rule(table)
        return rule is None or rule.snapshot

    def events(self, events: list[ChangeEvent]) -> list[ChangeEvent]:
        """The events as they leave; the same list where nothing changes. A row that leaves its filter is a delete."""
        if self._idle or not any(self._plan(event.schema) for event in events):
            return events
        mapped = []
        for event in events:
            plan = self._plan(event.schema)
            if plan is None:
                mapped.append(event)
            elif (changed := self._event(plan, event)) is not None:
                mapped.append(changed)
        return mapped

    def rows(self, source: TableSchema, rows: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """A chunk's (key, row) pairs as they leave; the same list where nothing changes."""
        plan = self._plan(source)
        if plan is None or (plan.where is None and not plan.row_changes and plan.key is None):
            return rows
        mapped = []
        for key, row in rows:
            values: list[Value] = orjson.loads(row)
            if plan.where is None or plan.where(values):
                mapped.append((_mapped_key(plan, key), _mapped_row(plan, row, values)))
        return mapped

    def key(self, source: TableSchema, key: bytes) -> bytes:
        """A row's key as it leaves."""
        plan = self._plan(source)
        return key if plan is None else _mapped_key(plan, key)

    def take_resyncs(self) -> list[tuple[str, str]]:
        """(table, why) for tables of which a change could not be mapped with certainty since the last call.

        PostgreSQL does not repeat large values that did not change. Where such an incomplete row may just have
        entered its filter, only reading the table again brings the missing values.
        """
        taken = list(self._resyncs.items())
        self._resyncs.clear()
        return taken

    def _rule(self, table: str) -> TableRule | None:
        return next((rule for rule in self._rules if rule.matches(table, self._dialect)), None)

    def _plan(self, source: TableSchema) -> _Plan | None:
        try:
            return self._plans[source.hash]
        except KeyError:
            rule = None if self._idle else self._rule(source.table)
            plan = self._plans[source.hash] = None if rule is None else _plan(rule, source, self._mask_key)
            return plan

    def _event(self, plan: _Plan, event: ChangeEvent) -> ChangeEvent | None:
        """The event as it leaves; None where it is of no interest to anybody."""
        schema, key = plan.schema, _mapped_key(plan, event.key)
        if event.row is None:
            return event._replace(schema=schema, key=key, changed=None)
        changed = None
        if event.changed is not None:
            changed = tuple(plan.names[name] for name in event.changed if name in plan.names)
        if plan.where is None and not plan.row_changes:
            return event._replace(schema=schema, key=key, changed=changed)
        values: list[Value] = orjson.loads(event.row)
        if plan.where is not None and not self._passes(plan, plan.where, event, values):
            if event.was == "insert" and self._dialect == "postgresql":
                return None  # it was never there: PostgreSQL's log tells each change, not the net of several
            return event._replace(schema=schema, operation=DELETE, key=key, row=None, changed=None)
        return event._replace(schema=schema, key=key, row=_mapped_row(plan, event.row, values), changed=changed)

    def _passes(self, plan: _Plan, where: Condition, event: ChangeEvent, values: list[Value]) -> bool:
        result = where(values)
        if not event.schema.partial or (result is not True and not plan.filter_lacks):
            return result is True
        if result is False:
            return False
        if not plan.filtered_on or (event.changed is not None and plan.filtered_on.isdisjoint(event.changed)):
            return True  # nothing that the filter reads has changed: the row is at the target, or is not, as before
        self._resyncs[event.schema.table] = (
            "a row may have entered the filter without its large unchanged values, which PostgreSQL does not repeat; "
            f"ALTER TABLE {TableName.parse(event.schema.table).sql} REPLICA IDENTITY FULL makes it repeat them"
        )
        return True


def _mapped_key(plan: _Plan, key: bytes) -> bytes:
    # Copied, here and below: orjson makes its result in a buffer of pages, which each row would keep.
    return key if plan.key is None else b"%b" % orjson.dumps(plan.key(orjson.loads(key)))


def _mapped_row(plan: _Plan, row: bytes, values: list[Value]) -> bytes:
    return b"%b" % orjson.dumps(plan.row(values)) if plan.row_changes else row


# --- from a rule to a plan ----------------------------------------------------------------------------------------


def _plan(rule: TableRule, source: TableSchema, mask_key: bytes) -> _Plan | None:
    """The rule worked out for the schema; None where it changes nothing. Raises ConfigError where it does not fit."""
    names = [column.name for column in source.columns]
    for listed in (rule.columns or (), tuple(rule.rename), tuple(rule.mask)):
        _check_known(rule, source, listed)
    key = set(source.key)
    excluded = {_real(name, names, source.dialect) for name in rule.exclude}
    if key & excluded:
        sentence = f"{', '.join(sorted(key & excluded))} is part of the key of {source.table} and cannot be left out"
        raise _wrong(rule, sentence, "UW-CF-022", "Mask it with hmac instead.")
    chosen = set(names) if rule.columns is None else {_real(name, names, source.dialect) for name in rule.columns}
    kept = [index for index, name in enumerate(names) if name in key or (name in chosen and name not in excluded)]
    renames = {_real(old, names, source.dialect): new for old, new in rule.rename.items()}
    masks = {_real(name, names, source.dialect): mask for name, mask in rule.mask.items()}
    for name in source.key:
        if masks.get(name, "hmac") != "hmac":
            sentence = f"{name} is part of the key of {source.table}, where {masks[name]} would make all rows one"
            raise _wrong(rule, sentence, "UW-CF-022", "Mask it with hmac instead.")
    schema = _leaving(rule, source, kept, renames, masks)
    where, filtered_on = None, frozenset[str]()
    if rule.where is not None:
        try:
            where, filtered_on = rule.where.compile(source), rule.where.columns(source)
        except WhereError as error:
            raise _wrong(rule, f"where: {error}", "UW-CF-023") from error
    maskers = [_masker(masks.get(names[index]), source.columns[index], mask_key) for index in kept]
    if where is None and schema == source and not any(maskers):
        return None
    key_maskers = [_masker(masks.get(name), _column(source, name), mask_key) for name in source.key]
    return _Plan(
        schema=schema,
        row=_picker(list(zip(kept, maskers, strict=True))),
        key=_picker(list(enumerate(key_maskers))) if any(key_maskers) else None,
        row_changes=len(kept) != len(names) or any(maskers),
        names={names[index]: schema.columns[place].name for place, index in enumerate(kept)},
        where=where,
        filtered_on=filtered_on,
        filter_lacks=rule.where is not None and rule.where.lacks_columns(source),
    )


def _leaving(
    rule: TableRule, source: TableSchema, kept: Sequence[int], renames: Dict[str, str], masks: Dict[str, Mask]
) -> TableSchema:
    columns = []
    for index in kept:
        column = source.columns[index]
        mask = masks.get(column.name)
        if mask == "hmac" or (mask == "redact" and column.kind is Kind.TEXT):
            column = column._replace(type=_TEXT_TYPES[source.dialect], kind=Kind.TEXT)
        columns.append(column._replace(name=renames.get(column.name, column.name)))
    named = [column.name for column in columns]
    for name in named:
        if named.count(name) > 1:
            raise _wrong(rule, f"rename gives {source.table} two columns named {name}", "UW-CF-022")
    key = tuple(renames.get(name, name) for name in source.key)
    loose = frozenset(renames.get(name, name) for name in source.loose)
    target = source.target if rule.to is None else rule.to
    return replace(source, columns=tuple(columns), key=key, target=target, loose=loose)


def _check_known(rule: TableRule, source: TableSchema, listed: Sequence[str]) -> None:
    """A column that is listed for one table must be there: whoever renames it would unmask it otherwise."""
    if source.partial or rule.is_pattern:
        return
    names = [column.name for column in source.columns]
    for name in listed:
        if _real(name, names, source.dialect) not in names:
            sentence = f"{source.table} has no column {name}; it has {', '.join(names)}"
            raise _wrong(rule, sentence, "UW-CF-022")


def _real(name: str, names: Sequence[str], dialect: str) -> str:
    """The column's name as the source writes it; case counts where it does there."""
    if name in names:
        return name
    return next((other for other in names if folded(other, dialect) == folded(name, dialect)), name)


def _column(schema: TableSchema, name: str) -> Column:
    return next(column for column in schema.columns if column.name == name)


_Masker = Callable[[Value], Value]


def _masker(mask: Mask | None, column: Column, mask_key: bytes) -> _Masker | None:
    if mask is None:
        return None
    if mask == "hmac":
        return lambda value: None if value is None else pseudonym(value, mask_key)
    fixed = REDACTED if mask == "redact" and column.kind is Kind.TEXT else None
    return lambda value: fixed


def pseudonym(value: Value, mask_key: bytes) -> str:
    """32 hex digits that stand for the value: the same in every table and column, so that joins still work.

    HMAC-SHA-256 of the text as it is, or of the JSON form of what is no text.
    """
    text = value.encode() if isinstance(value, str) else orjson.dumps(value)
    return hmac.digest(mask_key, text, "sha256").hex()[:HMAC_HEX_DIGITS]


def _picker(parts: Sequence[tuple[int, _Masker | None]]) -> Callable[[list[Value]], list[Value]]:
    def picked(values: list[Value]) -> list[Value]:
        return [values[index] if masker is None else masker(values[index]) for index, masker in parts]

    return picked


def _wrong(rule: TableRule, sentence: str, code: str, remedy: str = "") -> ConfigError:
    where = f"{rule.origin}: " if rule.origin else ""
    return ConfigError(f"{where}tables.{shown(rule.pattern)}: {sentence}.", code=code, remedy=remedy)
