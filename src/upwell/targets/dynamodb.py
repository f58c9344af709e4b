"""What a subscriber knows of lanes and resyncs, in DynamoDB tables of upwell's beside the rows; dead letters too.

`PREFIXupwell_lanes` has an item for each lane, resync, shard, request for repair and taken name; the key `id` says what
it is, so that no partition holds more than one. `PREFIXupwell_dead_letters` has one for each dead letter.
"""

from __future__ import annotations

import binascii
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from upwell.aws import JsonService
from upwell.aws_errors import ResourceMissing, ServiceRefusal
from upwell.dynamodb_tables import ensure_table, no_such_table, table_findings
from upwell.errors import OperatorError, UpwellError
from upwell.items import TTL, Attribute, Item, KeyAttribute
from upwell.model import DeadLetter, Finding, Marker
from upwell.ports import Clock, LaneState, Request, Sweep

LANES: Final = "upwell_lanes"
DEAD_LETTERS: Final = "upwell_dead_letters"
KEY: Final = (KeyAttribute("id", "S"),)
LETTER_KEY: Final = (KeyAttribute("id", "N"),)
_EXPIRING: Final = {KEY: TTL}  # what is done with goes by itself; dead letters stay until a person drops them
# An item holds 400 KB; a letter's key and reason are for a person to look at.
PAYLOAD_BYTES_MAX: Final = 256 * 1024
TEXT_CHARS_MAX: Final = 16 * 1024
# What is known of a resync goes so long after its last lane was closed.
RESYNC_KEPT_S: Final = 90 * 86_400

_STALE: Final = "ConditionalCheckFailedException"


class DynamoDbLanes:
    """A LaneStore in DynamoDB, with what the command line asks of a target. Threads share it."""

    def __init__(self, service: JsonService, clock: Clock, table_prefix: str, *, create_tables: bool) -> None:
        """Connects to nothing yet."""
        self._service = service
        self._clock = clock
        self._create_tables = create_tables
        self._keys = {table_prefix + LANES: KEY, table_prefix + DEAD_LETTERS: LETTER_KEY}
        self._lanes, self._letters = self._keys

    def check(self) -> None:
        """The tables are there, or are made. Raises OperatorError or TransientError."""
        for table, key in self._keys.items():
            ttl = _EXPIRING.get(key)
            ensure_table(self._service, self._clock, table, key, create=self._create_tables, ttl_attribute=ttl)

    def findings(self) -> Iterator[Finding]:
        """What `doctor` says about the tables; changes nothing."""
        for table, key in self._keys.items():
            ttl = _EXPIRING.get(key)
            yield from table_findings(self._service, table, key, create=self._create_tables, ttl_attribute=ttl)

    # ---- lanes ----

    def lanes(self, pipeline: str, lanes: Sequence[int]) -> dict[int, LaneState]:
        """See ports.LaneStore."""
        requests = [
            {"TableName": self._lanes, "Key": {"id": {"S": f"{pipeline}/lane/{lane}"}}, "ConsistentRead": True}
            for lane in lanes
        ]
        states: dict[int, LaneState] = {}
        for lane, answer in zip(lanes, self._service.call_many("GetItem", requests), strict=True):
            if isinstance(answer, UpwellError):
                raise self._explained(answer, self._lanes)
            states[lane] = _lane_state(answer["Item"]) if "Item" in answer else LaneState()
        return states

    def save_lanes(self, pipeline: str, states: Mapping[int, LaneState]) -> None:
        """See ports.LaneStore."""
        requests = [
            {
                "TableName": self._lanes,
                "Item": {"id": {"S": f"{pipeline}/lane/{lane}"}, **_lane_item(state)},
                "ConditionExpression": "attribute_not_exists(id) OR #t < :t OR (#t = :t AND #s <= :s)",
                "ExpressionAttributeNames": {"#t": "term", "#s": "seq"},
                "ExpressionAttributeValues": {":t": {"N": str(state.term)}, ":s": {"N": str(state.seq)}},
            }
            for lane, state in states.items()
        ]
        for answer in self._service.call_many("PutItem", requests):
            if isinstance(answer, UpwellError) and not _is_stale(answer):
                raise self._explained(answer, self._lanes)

    # ---- resyncs ----

    def open_resync(self, pipeline: str, table: str, resync: int) -> None:
        """See ports.LaneStore."""
        self._update(
            _resync_id(pipeline, table, resync), "SET #ttl = :ttl", None, {"#ttl": TTL}, {":ttl": self._forgotten_at()}
        )

    def close_lane(self, pipeline: str, marker: Marker) -> Sweep | None:
        """See ports.LaneStore."""
        item = self._update(
            _resync_id(pipeline, marker.schema.table, marker.resync),
            "ADD #c :lane SET #ttl = :ttl",
            None,
            {"#c": "closed", "#ttl": TTL},
            {":lane": {"NS": [str(marker.lane)]}, ":ttl": self._forgotten_at()},
        )
        if item is None or len(item["closed"]["NS"]) < marker.lanes or "swept" in item:
            return None
        return Sweep(item["cursor"]["S"] if "cursor" in item else None)

    def swept(self, pipeline: str, marker: Marker, cursor: str | None) -> None:
        """See ports.LaneStore."""
        done = cursor is None
        self._update(
            _resync_id(pipeline, marker.schema.table, marker.resync),
            "SET #v = :v",
            None,
            {"#v": "swept" if done else "cursor"},
            {":v": {"BOOL": True} if done else {"S": cursor}},
        )

    def _forgotten_at(self) -> Attribute:
        return {"N": str(int(self._clock.now()) + RESYNC_KEPT_S)}

    # ---- shards: ports.ShardCheckpoints ----

    def load(self, stream: str) -> dict[str, str | None]:
        """See ports.ShardCheckpoints."""
        place = f"shard/{stream}/"
        return {
            item["id"]["S"].removeprefix(place): item["sequence"]["S"] if "sequence" in item else None
            for item in self._items(place)
        }

    def save(self, stream: str, shard: str, sequence: str | None) -> None:
        """See ports.ShardCheckpoints."""
        item: Item = {"id": {"S": f"shard/{stream}/{shard}"}, **({"sequence": {"S": sequence}} if sequence else {})}
        self._call("PutItem", self._lanes, {"Item": item})

    # ---- names ----

    def take_name(self, pipeline: str, name: str, table: str) -> None:
        """The DynamoDB table is the source table's ("": several ones', by their keys). Raises OperatorError where
        another one has it: subscribers learn of tables in any order, and must not mix them up.
        """
        owner = f"{pipeline}/{table}"
        taken = self._update(
            f"name/{name}",
            "SET #o = :o",
            "attribute_not_exists(id) OR #o = :o",
            {"#o": "owner"},
            {":o": {"S": owner}},
        )
        if taken is None:
            raise OperatorError(
                f"The DynamoDB table {name} already holds another table's rows, so {table or 'the key templates'} of "
                f"{pipeline} can't have it.",
                code="UW-DD-008",
                remedy="Give the table another name: tables: {TABLE: {to: NAME}}, or the target another prefix; or, if "
                f'those rows are this table\'s after all, delete the item "name/{name}" of {self._lanes}.',
            )

    # ---- dead letters ----

    def add_dead_letters(self, pipeline: str, letters: Sequence[DeadLetter]) -> None:
        """See ports.LaneStore."""
        requests = [{"TableName": self._letters, "Item": _letter_item(pipeline, letter)} for letter in letters]
        for answer in self._service.call_many("PutItem", requests):
            if isinstance(answer, UpwellError):
                raise self._explained(answer, self._letters)

    def dead_letters(self, pipeline: str) -> list[DeadLetter]:
        """All that are kept, the oldest first, without their payloads."""
        names = {f"#{name}": name for name in ("id", "pipeline", "table", "key", "version", "reason", "time")}
        found = self._scan(
            self._letters,
            {
                "ProjectionExpression": ", ".join(names),
                "FilterExpression": "#pipeline = :p",
                "ExpressionAttributeNames": names,
                "ExpressionAttributeValues": {":p": {"S": pipeline}},
            },
        )
        return sorted(map(_letter, found), key=lambda letter: (letter.time, letter.id))

    def dead_letter(self, id_: int) -> DeadLetter | None:
        """One of them, with its payload; None where there is none of that id."""
        answer = self._call("GetItem", self._letters, {"Key": {"id": {"N": str(id_)}}, "ConsistentRead": True})
        return _letter(answer["Item"]) if "Item" in answer else None

    def drop_dead_letter(self, id_: int) -> bool:
        """Forget one; whether there was one."""
        request = {"Key": {"id": {"N": str(id_)}}, "ReturnValues": "ALL_OLD"}
        return "Attributes" in self._call("DeleteItem", self._letters, request)

    # ---- repairs ----

    def ask_repair(self, pipeline: str, request: Request) -> None:
        """See ports.LaneStore."""
        self._update(
            f"{pipeline}/repair/{request.id}",
            "SET #why = :why",
            "attribute_not_exists(id)",
            {"#why": "reason"},
            {":why": {"S": request.reason}},
        )

    def pending_repairs(self, pipeline: str) -> list[Request]:
        """What was asked and not yet handed to the control channel."""
        place = f"{pipeline}/repair/"
        items = [item for item in self._items(place) if "handed_over" not in item]
        return [Request(item["id"]["S"].removeprefix(place), None, item["reason"]["S"]) for item in items]

    def repair_handed_over(self, pipeline: str, id_: str) -> None:
        """The control channel has it."""
        self._update(
            f"{pipeline}/repair/{id_}",
            "SET #over = :true",
            "attribute_exists(id)",
            {"#over": "handed_over"},
            {":true": {"BOOL": True}},
        )

    # ---- status ----

    def status(self, pipeline: str) -> dict[str, Any]:
        """What is known of a pipeline; keys are documented in docs/operations.md."""
        versions: list[str] = []
        resyncs: dict[str, Any] = {}
        repairs: dict[str, Any] = {}
        for item in self._items(f"{pipeline}/"):
            kind, _, name = item["id"]["S"].removeprefix(f"{pipeline}/").partition("/")
            if kind == "lane":
                versions.append(_lane_state(item).version.hex())
            elif kind == "resync":
                resync, _, table = name.partition("/")
                closed = len(item["closed"]["NS"]) if "closed" in item else 0
                if table not in resyncs or resyncs[table]["resync"] < int(resync):
                    resyncs[table] = {"resync": int(resync), "active": "swept" not in item, "lanes_closed": closed}
            elif kind == "repair":
                repairs[name] = {"reason": item["reason"]["S"], "handed_over": "handed_over" in item}
        letters = Counter(letter.table for letter in self.dead_letters(pipeline))
        return {
            "lanes": len(versions),
            "newest_version": max(versions, default=None),
            "resyncs": dict(sorted(resyncs.items())),
            "dead_letters": dict(letters),
            "evicted": {},  # items have no unique values but their keys
            "repairs_pending": sum(not repair["handed_over"] for repair in repairs.values()),
            "repairs": dict(sorted(repairs.items())),
        }

    def close(self) -> None:
        """Free connections; never raises."""
        self._service.close()

    # ---- calls ----

    def _update(
        self, id_: str, update: str, condition: str | None, names: Mapping[str, str], values: Mapping[str, Any]
    ) -> Item | None:
        """The item as it is then; None where the condition does not hold."""
        try:
            answer = self._call(
                "UpdateItem",
                self._lanes,
                {
                    "Key": {"id": {"S": id_}},
                    "UpdateExpression": update,
                    **({} if condition is None else {"ConditionExpression": condition}),
                    "ExpressionAttributeNames": names,
                    "ExpressionAttributeValues": values,
                    "ReturnValues": "ALL_NEW",
                },
            )
        except ServiceRefusal as refusal:
            if not _is_stale(refusal):
                raise
            return None
        item: Item = answer["Attributes"]
        return item

    def _items(self, place: str) -> Iterator[Item]:
        """All whose id begins so. The table is small."""
        values = {":place": {"S": place}}
        return self._scan(
            self._lanes, {"FilterExpression": "begins_with(id, :place)", "ExpressionAttributeValues": values}
        )

    def _scan(self, table: str, request: Mapping[str, Any]) -> Iterator[Item]:
        start: dict[str, Any] = {}
        while True:
            answer = self._call("Scan", table, {**request, **start, "ConsistentRead": True})
            yield from answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    def _call(self, action: str, table: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._service.call(action, {"TableName": table, **request})
        except ResourceMissing as missing:
            raise self._explained(missing, table) from missing

    def _explained(self, error: UpwellError, table: str) -> UpwellError:
        if isinstance(error, ResourceMissing):
            return no_such_table(table, self._service.region, self._keys[table])
        return error


def _is_stale(error: UpwellError) -> bool:
    """The condition does not hold: what is there is newer, or the same."""
    return isinstance(error, ServiceRefusal) and error.reason == _STALE


def _resync_id(pipeline: str, table: str, resync: int) -> str:
    """An item of its own: a newer resync need not end what an older one still has to remove."""
    return f"{pipeline}/resync/{resync}/{table}"


def _lane_item(state: LaneState) -> Item:
    return {
        "version": {"B": binascii.b2a_base64(state.version, newline=False).decode()},
        "term": {"N": str(state.term)},
        "seq": {"N": str(state.seq)},
        "resyncs": {"S": orjson.dumps(state.resyncs).decode()},
    }


def _lane_state(item: Item) -> LaneState:
    return LaneState(
        binascii.a2b_base64(item["version"]["B"]),
        int(item["term"]["N"]),
        int(item["seq"]["N"]),
        orjson.loads(item["resyncs"]["S"]),
    )


def _letter_item(pipeline: str, letter: DeadLetter) -> Item:
    """Its id is made of what it is about, so that it is kept once."""
    id_ = int.from_bytes(letter.identity(pipeline)[:7])
    payload = letter.payload if len(letter.payload) <= PAYLOAD_BYTES_MAX else b""
    return {
        "id": {"N": str(id_)},
        "pipeline": {"S": pipeline},
        "table": {"S": letter.table},
        "key": {"S": letter.key[:TEXT_CHARS_MAX]},
        "version": {"S": letter.version},
        "reason": {"S": letter.reason[:TEXT_CHARS_MAX]},
        "time": {"S": letter.time},
        "payload": {"B": binascii.b2a_base64(payload, newline=False).decode()},
    }


def _letter(item: Item) -> DeadLetter:
    return DeadLetter(
        id=int(item["id"]["N"]),
        **{name: item[name]["S"] for name in ("table", "key", "version", "reason", "time")},
        payload=binascii.a2b_base64(item["payload"]["B"]) if "payload" in item else b"",
    )
