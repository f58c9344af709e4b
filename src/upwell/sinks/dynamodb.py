"""Events into DynamoDB tables: one guarded write per key, many at a time.

Every write is conditional on not being older than what the item holds, so that duplicates, replays and requests that
land late are harmless. BatchWriteItem takes no condition and PartiQL has no upsert (docs/dynamodb.md): one call per
item it is, and speed comes from many connections.
"""

from __future__ import annotations

import binascii
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import orjson

from upwell.aws import JsonService
from upwell.aws_errors import ResourceMissing, ServiceRefusal
from upwell.claims import Claims, Upload
from upwell.dynamodb_tables import ensure_table, no_such_table, table_findings
from upwell.errors import ConfigError, OperatorError, Rejected, TransientError, UpwellError
from upwell.items import (
    CLAIM,
    DELETED,
    ITEM_BYTES_MAX,
    SOURCE_TABLE,
    TTL,
    VERSION,
    Item,
    ItemForm,
    ItemTooLarge,
    KeyTemplates,
    Nulls,
    check_size,
    claim_of,
    claimed_content,
    claimed_item,
    table_names,
    whole_item,
)
from upwell.model import DELETE, ChangeEvent, Finding, LaneItem, Rejection, TableSchema, Value, Version
from upwell.ports import Clock, Parcel

PARCEL_ITEMS_MAX: Final = 256
PARCEL_BYTES_MAX: Final = 1024 * 1024  # a parcel may exceed it by one event
CALL_PARCELS_MAX: Final = 64
CALL_BYTES_MAX: Final = 4 * 1024 * 1024
# A tombstone outlives the requests that were under way when it was written, and weeks without a publisher.
TOMBSTONE_S: Final = 30 * 86_400

Deletes = Literal["tombstone", "remove"]

_NOT_OLDER = "attribute_not_exists(#v) OR #v <= :v"
_STALE = "ConditionalCheckFailedException"


class _Write(NamedTuple):
    """A request that is still to be acknowledged."""

    action: str
    body: bytes
    events: tuple[ChangeEvent, ...]
    upload: Upload | None = None  # what must be in S3 first
    if_claimed: bytes | None = None  # the body for an item of which a part is in S3; the other one leaves that alone


class _Change:
    """What a key's events of one parcel come to."""

    __slots__ = ("events", "form", "item", "kind", "removes")

    def __init__(
        self, kind: Literal["put", "change", "delete"], form: ItemForm, events: tuple[ChangeEvent, ...], item: Item
    ) -> None:
        self.kind = kind
        self.form = form
        self.events = events  # in order; more than one where partial rows were laid over another
        self.item = item  # the key alone for a delete; without the key for a change of some attributes
        self.removes: set[str] = set()


class DynamoDbSink:
    """A Sink with an item per row."""

    parcels_max = CALL_PARCELS_MAX
    call_bytes_max = CALL_BYTES_MAX
    carries_markers = False

    def __init__(
        self,
        service: JsonService,
        clock: Clock,
        *,
        table_prefix: str,
        templates: Callable[[TableSchema], KeyTemplates | None] = lambda _: None,
        nulls: Nulls = "absent",
        deletes: Deletes = "tombstone",
        create_tables: bool = True,
        claims: Claims | None = None,
        take_name: Callable[[str, str], None] | None = None,
    ) -> None:
        """`templates`: how a source table lies in a table of single-table design; others get tables of their own.
        `claims`: by which way rows go that are too large for an item; without it they are rejected.
        `take_name`: where tables become known one after the other, to several at once: told the DynamoDB table and
        whose it is to be, raises OperatorError where it is another's.
        """
        self._service = service
        self._clock = clock
        self._prefix = table_prefix
        self._templates = templates
        self._nulls: Nulls = nulls
        self._deletes: Deletes = deletes
        self._create_tables = create_tables
        self._claims = claims
        self._take_name = take_name
        self._schemas: dict[str, TableSchema] = {}  # source table → the newest whole schema
        self._names: dict[str, str] = {}  # source table → DynamoDB table
        self._ready: set[str] = set()  # DynamoDB tables
        self._forms: dict[str, tuple[ItemForm, bytes]] = {}  # schema hash → form and a PutItem's beginning
        self._sweeps: dict[tuple[str, Version], tuple[str | None, int]] = {}  # where a sweep was cut short

    def form(self, schema: TableSchema) -> ItemForm:
        """How the schema's rows become items. Its table must have been given to `prepare`."""
        return self._prepared(schema)[0]

    def prepare(self, schemas: Sequence[TableSchema]) -> None:
        """See ports.Sink: every table is there, with its key, or is made."""
        known = self._schemas | {schema.table: schema for schema in schemas}
        names = self._resolve(known)
        for schema in schemas:
            form = self._prepared(schema)[0]
            if names[schema.table] not in self._ready:
                ensure_table(
                    self._service,
                    self._clock,
                    form.table,
                    form.key_attributes,
                    create=self._create_tables,
                    ttl_attribute=TTL if self._deletes == "tombstone" else None,
                )
                self._ready.add(form.table)

    def learn(self, schemas: Sequence[TableSchema]) -> Mapping[str, str]:
        """source table → DynamoDB table; from then on `form` and `rows` know them. Changes nothing in AWS."""
        return self._resolve({schema.table: schema for schema in schemas})

    def findings(self, schemas: Sequence[TableSchema]) -> Iterator[Finding]:
        """What `doctor` says about the tables; changes nothing."""
        self.learn(schemas)
        forms = {form.table: form for form in map(self.form, schemas)}
        for table, form in forms.items():
            yield from table_findings(
                self._service,
                table,
                form.key_attributes,
                create=self._create_tables,
                ttl_attribute=TTL if self._deletes == "tombstone" else None,
            )

    def _resolve(self, known: dict[str, TableSchema]) -> dict[str, str]:
        """source table → DynamoDB table. Raises ConfigError or OperatorError where tables would get mixed up."""
        templates = {table: template for table, schema in known.items() if (template := self._templates(schema))}
        own = [schema for table, schema in known.items() if table not in templates]
        names = self._names_of(own) | {table: template.table for table, template in templates.items()}
        for table, name in self._names.items():
            if names[table] != name:
                raise OperatorError(
                    f"With another table of this name, {table} would move from the DynamoDB table {name} to "
                    f"{names[table]}.",
                    code="UW-DD-006",
                    remedy=f"Give the new one a name of its own: tables: {{TABLE: {{to: NAME}}}}, not {name}.",
                )
        if self._take_name is not None:
            for table in names.keys() - self._names.keys():
                self._take_name(names[table], "" if table in templates else table)
        self._schemas, self._names = known, names
        for table, name in names.items():
            self._check_shared(table, [other for other, its in names.items() if its == name and other != table])
        return names

    def _names_of(self, own: Sequence[TableSchema]) -> dict[str, str]:
        if self._take_name is None:
            return table_names(own, self._prefix)
        # What a table is called must not depend on which others are known so far.
        names = {table: name for schema in own for table, name in table_names([schema], self._prefix).items()}
        for table, name in names.items():
            rivals = [other for other, its in names.items() if its == name and other != table]
            if rivals:
                raise ConfigError(
                    f"{table} and {', '.join(rivals)} would become one DynamoDB table, {name}.",
                    code="UW-DD-006",
                    remedy="Give one of them another name: tables: {TABLE: {to: NAME}}",
                )
        return names

    def _check_shared(self, table: str, others: Sequence[str]) -> None:
        form = self.form(self._schemas[table])
        for other in others:
            if not form.disjoint(self.form(self._schemas[other])):
                raise ConfigError(
                    f"Items of {table} and {other} could get the same key in the DynamoDB table {form.table}.",
                    code="UW-DD-005",
                    remedy="Let partition_key or sort_key of each begin with a text of its own, such as ORDER# and "
                    "CUSTOMER#; both need a sort_key, or none.",
                )

    def _prepared(self, schema: TableSchema) -> tuple[ItemForm, bytes]:
        prepared = self._forms.get(schema.hash)
        if prepared is None:
            table = self._names[schema.table]
            form = ItemForm(schema, table, self._templates(schema), self._nulls)
            start = orjson.dumps(
                {
                    "TableName": table,
                    "ConditionExpression": _NOT_OLDER,
                    "ExpressionAttributeNames": {"#v": VERSION},
                }
            )
            prepared = self._forms[schema.hash] = (form, start[:-1] + b',"ExpressionAttributeValues":{":v":{"B":"')
        return prepared

    def pack(self, lane: int, term: int, seq: int, after: tuple[int, int] | None, items: Sequence[LaneItem]) -> Parcel:
        """See ports.Sink. Of a key's events only what they come to is written: the writes are independent."""
        changes: dict[tuple[str, bytes], _Change] = {}
        parcel = Parcel(lane, term, seq, after, taken=0)
        for item in items[:PARCEL_ITEMS_MAX]:
            if parcel.size > PARCEL_BYTES_MAX:
                break
            parcel.taken += 1
            if not isinstance(item, ChangeEvent):  # resyncs end by a sweep here
                continue
            identity = item.schema.table, item.key
            try:
                changes[identity] = self._fold(changes.get(identity), item)
            except _Skip:
                continue
            except Rejected as error:
                parcel.rejected.append(_rejection(item, error.message))
            else:
                parcel.size += 300 + len(item.row or item.key)
        body: list[_Write] = []
        for change in changes.values():
            try:
                body.append(self._write(change))
            except Rejected as error:
                parcel.rejected.extend(_rejection(event, error.message) for event in change.events)
        if body:
            parcel.body = body
            parcel.detour = any(write.upload for write in body)
        return parcel

    def _fold(self, before: _Change | None, event: ChangeEvent) -> _Change:
        form = self._prepared(event.schema)[0]
        values = event.values()
        if event.operation == DELETE:
            try:
                return _Change("delete", form, (event,), form.key(values))
            except Rejected:
                raise _Skip from None  # there can be no item with this key
        if not event.schema.partial:
            # With a claim check no row is too large here: its size counts when it is written.
            return _Change("put", form, (event,), form.item(values, 0 if self._claims else len(event.row or b"")))
        sets, removes = form.changes(values)
        if before is None:
            if form.may_be_large(len(event.row or b"")):
                _check_part(sets)
            change = _Change("change", form, (event,), sets)
            change.removes.update(removes)
            return change
        if before.kind == "delete":
            raise _Skip  # a row that is not there has nothing to be changed
        merged = _Change(before.kind, before.form, (*before.events, event), {**before.item, **sets})
        merged.removes = (before.removes - sets.keys()) | set(removes)
        for name in removes:
            merged.item.pop(name, None)
        if merged.kind == "change":
            _check_part(merged.item)
        elif self._claims is None:
            check_size(merged.item)
        return merged

    def _write(self, change: _Change) -> _Write:
        event, form = change.events[-1], change.form
        version = binascii.b2a_base64(event.version, newline=False)
        if change.kind == "change":
            return self._update(change, version.decode())
        start = self._prepared(form.schema)[1]
        if change.kind == "delete" and self._deletes == "remove":
            return _Write(
                "DeleteItem", start + version + b'"}},"Key":' + orjson.dumps(change.item) + b"}", change.events
            )
        item, upload = change.item, None
        if change.kind == "put" and self._claims is not None:
            item, upload = self._fitting(change)
        if change.kind == "delete":
            item[DELETED] = {"BOOL": True}
            item[TTL] = {"N": str(int(self._clock.now()) + TOMBSTONE_S)}
        item[VERSION] = {"B": version.decode()}
        if form.shared:
            item[SOURCE_TABLE] = {"S": event.schema.table}
        return _Write("PutItem", start + version + b'"}},"Item":' + orjson.dumps(item) + b"}", change.events, upload)

    def _fitting(self, change: _Change) -> tuple[Item, Upload | None]:
        """The item, or what stands for one that is too large and goes to S3. Raises Rejected."""
        assert self._claims is not None
        if change.form.may_be_large(sum(len(event.row or b"") for event in change.events)):
            try:
                check_size(change.item)
            except ItemTooLarge as error:
                try:
                    upload = self._claims.upload(change.events[-1], claimed_content(change.item))
                except Rejected as why:
                    raise Rejected(f"{error.message}, and {why.message}") from error
                key = {attribute.name: change.item[attribute.name] for attribute in change.form.key_attributes}
                return claimed_item(key, upload.claim), upload
        return change.item, None

    def _update(self, change: _Change, version: str) -> _Write:
        """An UpdateItem that changes some attributes of an item that is there and no tombstone.

        Of an item that is partly in S3 an attribute that is missing would mean: as it is there. So a NULL is written.
        """
        removes = sorted(change.removes)
        if not removes or self._claims is None:
            return _Write("UpdateItem", self._update_body(change, version, change.item, removes, ""), change.events)
        return _Write(
            "UpdateItem",
            self._update_body(change, version, change.item, removes, " AND attribute_not_exists(#c)"),
            change.events,
            if_claimed=self._update_body(
                change,
                version,
                change.item | {name: {"NULL": True} for name in removes},
                [],
                " AND attribute_exists(#c)",
            ),
        )

    def _update_body(
        self, change: _Change, version: str, attributes: Item, removes: Sequence[str], condition: str
    ) -> bytes:
        form, event = change.form, change.events[-1]
        row = event.values()
        names = {"#v": VERSION, "#d": DELETED, **({"#c": CLAIM} if condition else {})}
        values: dict[str, Any] = {":v": {"B": version}}
        sets = ["#v = :v"]
        for number, (name, attribute) in enumerate(attributes.items()):
            names[f"#s{number}"] = name
            values[f":s{number}"] = attribute
            sets.append(f"#s{number} = :s{number}")
        names |= {f"#r{number}": name for number, name in enumerate(removes)}
        expression = "SET " + ", ".join(sets)
        if removes:
            expression += " REMOVE " + ", ".join(f"#r{number}" for number in range(len(removes)))
        return orjson.dumps(
            {
                "TableName": form.table,
                "Key": form.key([row[index] for index in event.schema.key_indexes]),
                "UpdateExpression": expression,
                "ConditionExpression": f"attribute_exists(#v) AND #v <= :v AND attribute_not_exists(#d){condition}",
                "ExpressionAttributeNames": names,
                "ExpressionAttributeValues": values,
            }
        )

    def send(self, parcels: Sequence[Parcel]) -> Sequence[TransientError | None]:
        """See ports.Sink. A parcel's body shrinks to the writes that were not acknowledged."""
        remaining: list[list[_Write]] = [[] for _ in parcels]
        errors: list[TransientError | None] = [None] * len(parcels)
        failures: list[TransientError] = []
        acknowledged = 0
        waiting = [(number, write) for number, parcel in enumerate(parcels) for write in parcel.body or ()]
        while waiting:
            again: list[tuple[int, _Write]] = []
            for number, write, answer in self._answers(waiting):
                if write.if_claimed is not None and isinstance(answer, ServiceRefusal) and answer.reason == _STALE:
                    again.append((number, write._replace(body=write.if_claimed, if_claimed=None)))
                    continue
                error = self._outcome(parcels[number], write, answer)
                if error is None:
                    acknowledged += 1
                    continue
                remaining[number].append(write)
                if write.upload is None:
                    failures.append(error)
                if errors[number] is None or error.throttled:
                    errors[number] = error
            waiting = again
        for parcel, left in zip(parcels, remaining, strict=True):
            if parcel.body is not None:
                parcel.size = parcel.size * len(left) // max(1, len(parcel.body))
                parcel.body = left
                parcel.detour = any(write.upload for write in left)
        if failures and not acknowledged and not any(failure.throttled for failure in failures):
            raise failures[0]  # nothing got through: it is the service or the way to it, not a lane
        return errors

    def _answers(
        self, waiting: Sequence[tuple[int, _Write]]
    ) -> Iterator[tuple[int, _Write, dict[str, Any] | UpwellError]]:
        """Each write's answer. What is to be in S3 first goes there when the others have been written."""
        by_action: defaultdict[str, list[tuple[int, _Write]]] = defaultdict(list)
        for number, write in waiting:
            if write.upload is None:
                by_action[write.action].append((number, write))
        yield from self._called(by_action)
        claimed: list[tuple[int, _Write]] = []
        for number, write in waiting:
            if write.upload is not None:
                assert self._claims is not None, "it made the claim"
                try:
                    self._claims.put(write.upload)
                except TransientError as error:
                    yield number, write, error
                else:
                    claimed.append((number, write._replace(upload=None)))
        yield from self._called({"PutItem": claimed})

    def _called(
        self, by_action: Mapping[str, Sequence[tuple[int, _Write]]]
    ) -> Iterator[tuple[int, _Write, dict[str, Any] | UpwellError]]:
        for action, writes in by_action.items():
            answers = self._service.call_many(action, [write.body for _, write in writes])
            yield from ((number, write, answer) for (number, write), answer in zip(writes, answers, strict=True))

    def _outcome(self, parcel: Parcel, write: _Write, answer: dict[str, Any] | UpwellError) -> TransientError | None:
        if not isinstance(answer, UpwellError):
            return None
        if isinstance(answer, TransientError):
            return answer
        if isinstance(answer, ServiceRefusal):
            # A condition that fails says that the item holds something newer: all is well.
            if answer.reason != _STALE:
                parcel.rejected.extend(_rejection(event, answer.message) for event in write.events)
            return None
        if isinstance(answer, ResourceMissing):
            form = self._prepared(write.events[-1].schema)[0]
            raise no_such_table(form.table, self._service.region, form.key_attributes) from answer
        raise answer

    def sweep(self, schema: TableSchema, before: Version) -> int:
        """See ports.Sink. Called again after an error it goes on where it was."""
        cursor, swept = self._sweeps.get((schema.table, before), (None, 0))
        while True:
            buried, cursor = self.sweep_page(schema, before, cursor)
            swept += buried
            if cursor is None:
                self._sweeps.pop((schema.table, before), None)
                return swept
            self._sweeps[schema.table, before] = cursor, swept

    def sweep_page(self, schema: TableSchema, before: Version, cursor: str | None) -> tuple[int, str | None]:
        """See ports.ItemSink."""
        form, _ = self._prepared(schema)
        bound = binascii.b2a_base64(before, newline=False).decode()
        page, following = next(self._scan(form, None if cursor is None else orjson.loads(cursor), bound))
        return self._bury(form, page, bound), None if following is None else orjson.dumps(following).decode()

    def _bury(self, form: ItemForm, keys: Sequence[Item], bound: str) -> int:
        """Tombstones, or nothing, in place of items that are still older than the bound."""
        common = {
            "TableName": form.table,
            "ConditionExpression": "#v < :v",
            "ExpressionAttributeNames": {"#v": VERSION},
            "ExpressionAttributeValues": {":v": {"B": bound}},
        }
        if self._deletes == "remove":
            action, requests = "DeleteItem", [{**common, "Key": key} for key in keys]
        else:
            ours: Item = {
                VERSION: {"B": bound},
                DELETED: {"BOOL": True},
                TTL: {"N": str(int(self._clock.now()) + TOMBSTONE_S)},
                **({SOURCE_TABLE: {"S": form.schema.table}} if form.shared else {}),
            }
            action, requests = "PutItem", [{**common, "Item": key | ours} for key in keys]
        buried = 0
        for answer in self._service.call_many(action, requests):
            if not isinstance(answer, UpwellError):
                buried += 1
            elif not (isinstance(answer, ServiceRefusal) and answer.reason == _STALE):
                raise answer
        return buried

    def _scan(
        self, form: ItemForm, start: Item | None, older_than: str | None
    ) -> Iterator[tuple[list[Item], Item | None]]:
        """Pages of the source table's items, less tombstones; with where the next page starts.

        `older_than`: a version in base64; then only the keys of what is older.
        """
        names = {"#d": DELETED}
        values: dict[str, Any] = {}
        conditions = ["attribute_not_exists(#d)"]
        request: dict[str, Any] = {"TableName": form.table, "ExpressionAttributeNames": names, "ConsistentRead": True}
        if form.shared:
            names["#t"], values[":t"] = SOURCE_TABLE, {"S": form.schema.table}
            conditions.append("#t = :t")
        if older_than is not None:
            names["#v"], values[":v"] = VERSION, {"B": older_than}
            conditions.append("#v < :v")
            keys = {f"#k{number}": attribute.name for number, attribute in enumerate(form.key_attributes)}
            names |= keys
            request["ProjectionExpression"] = ", ".join(keys)
        if values:
            request["ExpressionAttributeValues"] = values
        request["FilterExpression"] = " AND ".join(conditions)
        while True:
            answer = self._service.call("Scan", request if start is None else {**request, "ExclusiveStartKey": start})
            start = answer.get("LastEvaluatedKey")
            yield answer["Items"], start
            if start is None:
                return

    def rows(self, schema: TableSchema) -> Iterator[list[Value]]:
        """All rows that the target has, in no order, in the form of `ItemForm.canonical`; for `verify`."""
        form, _ = self._prepared(schema)
        for page, _ in self._scan(form, None, None):
            for item in page:
                yield form.values(self._whole(item))

    def _whole(self, item: Item) -> Item:
        """With what of it is in S3. What can't be had is missing: a resync brings it."""
        try:
            claim = claim_of(item)
            if claim is None or self._claims is None:
                return item
            return whole_item(item, self._claims.content(claim))
        except Rejected:
            return item

    def canonical(self, schema: TableSchema) -> Callable[[list[Value]], list[Value]]:
        """A row's values as `rows` gives them; the function raises Rejected for rows that can't be stored here."""
        form = self.form(schema)

        def canonical(values: list[Value]) -> list[Value]:
            if self._claims is None:
                form.item(values, ITEM_BYTES_MAX)
            return form.canonical(values)

        return canonical

    def close(self) -> None:
        """Free connections; never raises."""
        self._service.close()
        if self._claims is not None:
            self._claims.close()


def _check_part(sets: Item) -> None:
    """Of a row that came without its other large values. Raises Rejected."""
    try:
        check_size(sets)
    except ItemTooLarge as error:
        raise Rejected(
            f"{error.message}; only rows that come whole go by way of the claim check: REPLICA IDENTITY FULL"
        ) from error


class _Skip(Exception):
    """The event changes nothing."""


def _rejection(event: ChangeEvent, reason: str) -> Rejection:
    return Rejection(table=event.schema.table, key=event.key.decode(), reason=reason, event=event)
