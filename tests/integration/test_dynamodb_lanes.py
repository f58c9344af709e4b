"""What a subscriber knows of lanes and resyncs, in DynamoDB Local: see ports.LaneStore."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.simulation.dice import SimClock
from upwell.aws import AwsService
from upwell.clock import SystemClock
from upwell.envelope import unpack_record
from upwell.errors import OperatorError
from upwell.model import Column, DeadLetter, Kind, Marker, TableSchema, pack_version
from upwell.ports import LaneState, Request, Sweep
from upwell.targets.dynamodb import PAYLOAD_BYTES_MAX, DynamoDbLanes

PIPELINE = "shop"
USERS = TableSchema("public.users", (Column("id", "int", Kind.INT),), ("id",), "postgresql")


@pytest.fixture
def service(dynamodb_endpoint: str) -> Iterator[AwsService]:
    service = AwsService("dynamodb", "eu-west-1", endpoint_url=dynamodb_endpoint)
    yield service
    service.close()


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex[:12]}-"


@pytest.fixture
def lanes(service: AwsService, prefix: str) -> DynamoDbLanes:
    made = DynamoDbLanes(service, SystemClock(), prefix, create_tables=True)
    for _ in range(2):
        made.check()
    return made


def state(seq: int, term: int = 1, **resyncs: int) -> LaneState:
    return LaneState(pack_version(5, 10 * term + seq, 2**32 - 1), term, seq, resyncs)


def marker(lane: int, resync: int = 6, lanes: int = 2) -> Marker:
    return Marker(USERS, resync, "close", lanes, lane)


# --- lanes ----------------------------------------------------------------------------------------------------------


def test_a_lane_never_seen_is_new_and_a_saved_one_is_as_it_was(lanes: DynamoDbLanes) -> None:
    saved = state(4, **{"public.users": 7, "": 3, 'we"ird.näme': 9})
    lanes.save_lanes(PIPELINE, {3: saved})
    assert lanes.lanes(PIPELINE, [2, 3]) == {2: LaneState(), 3: saved}
    assert lanes.lanes("other", [3]) == {3: LaneState()}


@pytest.mark.parametrize(
    ("there", "comes", "stays"),
    [
        ((1, 4), (1, 5), False),
        ((1, 4), (1, 4), False),
        ((1, 4), (1, 3), True),
        ((2, 1), (1, 9), True),
        ((1, 9), (2, 1), False),
    ],
)
def test_a_lane_is_never_moved_back(
    lanes: DynamoDbLanes, there: tuple[int, int], comes: tuple[int, int], stays: bool
) -> None:
    lanes.save_lanes(PIPELINE, {0: state(there[1], there[0], there=1)})
    lanes.save_lanes(PIPELINE, {0: state(comes[1], comes[0], comes=1), 1: state(1)})
    assert lanes.lanes(PIPELINE, [0])[0].resyncs == ({"there": 1} if stays else {"comes": 1})
    assert lanes.lanes(PIPELINE, [1])[1] == state(1), "the others move all the same"


# --- resyncs --------------------------------------------------------------------------------------------------------


def test_whoever_closes_the_last_lane_is_to_sweep_and_again_until_it_is_done(lanes: DynamoDbLanes) -> None:
    lanes.open_resync(PIPELINE, "public.users", 6)
    assert lanes.close_lane(PIPELINE, marker(0)) is None
    assert lanes.close_lane(PIPELINE, marker(0)) is None, "closed again it is closed"
    assert lanes.close_lane(PIPELINE, marker(1)) == Sweep(None)
    lanes.swept(PIPELINE, marker(1), "page 2")
    assert lanes.close_lane(PIPELINE, marker(0)) == Sweep("page 2")
    lanes.swept(PIPELINE, marker(0), None)
    assert lanes.close_lane(PIPELINE, marker(1)) is None


def test_resyncs_of_one_table_know_nothing_of_each_other(lanes: DynamoDbLanes) -> None:
    for resync in (6, 7):
        lanes.open_resync(PIPELINE, "public.users", resync)
    assert lanes.close_lane(PIPELINE, marker(0, 6)) is None
    assert lanes.close_lane(PIPELINE, marker(0, 7)) is None
    assert lanes.close_lane(PIPELINE, marker(1, 6)) == Sweep(None), "what is older than it has to go in any case"
    assert lanes.status(PIPELINE)["resyncs"] == {"public.users": {"resync": 7, "active": True, "lanes_closed": 1}}


def test_of_many_that_close_at_the_same_time_one_at_least_sees_all(lanes: DynamoDbLanes) -> None:
    count = 16
    due: list[Sweep | None] = []
    ready = threading.Barrier(count)

    def close(lane: int) -> None:
        ready.wait()
        due.append(lanes.close_lane(PIPELINE, marker(lane, lanes=count)))

    threads = [threading.Thread(target=close, args=(lane,)) for lane in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert due.count(Sweep(None)) == 1


# --- dead letters, repairs, shards, names ---------------------------------------------------------------------------


def letter(key: str = "[7]", version: str = "05", reason: str = "no", payload: bytes = b"x") -> DeadLetter:
    return DeadLetter(0, "public.users", key, version, reason, "2026-01-31T10:00:00Z", payload)


def test_dead_letters_are_kept_once_shown_and_forgotten(lanes: DynamoDbLanes) -> None:
    lanes.add_dead_letters(PIPELINE, [letter(), letter("[8]"), letter("[8]")])
    lanes.add_dead_letters(PIPELINE, [letter()])
    kept = lanes.dead_letters(PIPELINE)
    assert sorted((each.key, each.reason, each.payload) for each in kept) == [
        ("[7]", "no", b""),
        ("[8]", "no", b""),
    ]
    whole = lanes.dead_letter(kept[0].id)
    assert whole is not None
    assert whole.payload == b"x"
    assert lanes.dead_letters("other") == []
    assert (lanes.drop_dead_letter(kept[0].id), lanes.drop_dead_letter(kept[0].id)) == (True, False)
    assert lanes.dead_letter(kept[0].id) is None


def test_records_that_can_not_be_read_are_each_kept(lanes: DynamoDbLanes) -> None:
    lanes.add_dead_letters(PIPELINE, [letter("", "", payload=payload) for payload in (b"a", b"b", b"a")])
    assert len(lanes.dead_letters(PIPELINE)) == 2


def test_a_letter_that_is_too_large_for_an_item_is_kept_without_its_row(lanes: DynamoDbLanes) -> None:
    lanes.add_dead_letters(
        PIPELINE, [letter("k" * 2_000_000, reason="r" * 500_000, payload=bytes(PAYLOAD_BYTES_MAX + 1))]
    )
    [kept] = lanes.dead_letters(PIPELINE)
    whole = lanes.dead_letter(kept.id)
    assert whole is not None
    assert whole.payload == b""
    with pytest.raises(Exception, match="not a packed upwell record"):
        unpack_record(whole.payload)


def test_a_repair_waits_until_it_is_handed_over(lanes: DynamoDbLanes) -> None:
    for reason in ("lane 1", "lane 2"):
        lanes.ask_repair(PIPELINE, Request("holes-after-5", None, reason))
    assert lanes.pending_repairs(PIPELINE) == [Request("holes-after-5", None, "lane 1")]
    lanes.repair_handed_over(PIPELINE, "holes-after-5")
    assert lanes.pending_repairs(PIPELINE) == []
    lanes.ask_repair(PIPELINE, Request("holes-after-5", None, "lane 1"))
    assert lanes.pending_repairs(PIPELINE) == [], "it is not asked anew"
    assert lanes.status(PIPELINE)["repairs"] == {"holes-after-5": {"reason": "lane 1", "handed_over": True}}


def test_shards_are_remembered(lanes: DynamoDbLanes) -> None:
    assert lanes.load("stream") == {}
    lanes.save("stream", "shard-1", "10")
    lanes.save("stream", "shard-1", "11")
    lanes.save("stream", "shard-2", None)
    lanes.save("other", "shard-1", "1")
    assert lanes.load("stream") == {"shard-1": "11", "shard-2": None}


def test_a_table_s_name_is_taken_once(lanes: DynamoDbLanes, prefix: str) -> None:
    for _ in range(2):
        lanes.take_name(PIPELINE, f"{prefix}users", "public.users")
    for pipeline, table in ((PIPELINE, "sales.users"), ("other", "public.users"), (PIPELINE, "")):
        with pytest.raises(OperatorError) as error:
            lanes.take_name(pipeline, f"{prefix}users", table)
        assert error.value.code == "UW-DD-008"
        assert f"name/{prefix}users" in error.value.remedy


def test_status_counts(lanes: DynamoDbLanes) -> None:
    lanes.save_lanes(PIPELINE, {lane: state(lane + 1) for lane in range(5)})
    lanes.add_dead_letters(PIPELINE, [letter()])
    found: dict[str, Any] = lanes.status(PIPELINE)
    assert (found["lanes"], found["newest_version"]) == (5, state(5).version.hex())
    assert found["dead_letters"] == {"public.users": 1}
    assert (found["resyncs"], found["repairs_pending"]) == ({}, 0)


def test_a_table_that_is_missing_is_said_with_the_command_that_makes_it(service: AwsService, prefix: str) -> None:
    lanes = DynamoDbLanes(service, SimClock(), prefix, create_tables=False)
    for call in (
        lanes.check,
        lambda: lanes.lanes(PIPELINE, [0]),
        lambda: lanes.save_lanes(PIPELINE, {0: state(1)}),
        lambda: lanes.load("stream"),
        lambda: lanes.close_lane(PIPELINE, marker(0)),
    ):
        with pytest.raises(OperatorError) as error:
            call()
        assert error.value.code == "UW-DD-001"
        assert f"--table-name {prefix}upwell_lanes" in error.value.remedy
    with pytest.raises(OperatorError, match="upwell_dead_letters"):
        lanes.add_dead_letters(PIPELINE, [letter()])
    assert {finding.level for finding in lanes.findings()} == {"fail"}
