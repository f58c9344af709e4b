"""Which fault befalls a request: by a script, by a rule, or by seeded chance. Decides only; does nothing."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Final, Literal, get_args
from zlib import crc32

from lab.messages import Asked

Kind = Literal[
    "throttled",
    "shard_throttled",
    "record_failed",
    "record_deleted",
    "failed_before",
    "failed_after",
    "answer_lost",
    "answer_withheld",
    "swallowed",
    "landed_late",
    "landed_twice",
    "reset_before",
    "reset_after",
    "slow",
    "keys_expired",
    "clock_skewed",
    "too_long",
    "too_large",
    "not_json",
    "not_http",
]
KINDS: Final[Mapping[Kind, str]] = {
    "throttled": "not done; ProvisionedThroughputExceededException",
    "shard_throttled": "what goes to a shard (DynamoDB: to a fourth of the keys) is not done, and says so; the rate is "
    "the share of time in which a shard takes nothing",
    "record_failed": "single records of a PutRecords are not stored: InternalFailure; the rate is for each record, in "
    "a script every second record fails",
    "record_deleted": "single records of a PutRecords are not stored though the answer says so, as if they were "
    "deleted since; the rate is for each record, in a script the first record",
    "failed_before": "not done; status 500 or 503",
    "failed_after": "done; status 500 or 503",
    "answer_lost": "done; the connection is closed without an answer",
    "answer_withheld": "done; no answer comes, until the client gives up",
    "swallowed": "not done; no answer comes, until the client gives up",
    "landed_late": "the connection is closed without an answer; done only after a while (`late_s`)",
    "landed_twice": "done and answered; done once more after a while (`late_s`)",
    "reset_before": "not done; the connection is reset",
    "reset_after": "done; the connection is reset in the middle of the answer",
    "slow": "done; the answer comes after a while (`slow_s`)",
    "keys_expired": "not done; ExpiredTokenException",
    "clock_skewed": "not done; InvalidSignatureException, because the request's time is not AWS's",
    "too_long": "done; the answer goes on after its announced end",
    "too_large": "done; the answer announces a terabyte",
    "not_json": "done; status 200 with a page of HTML",
    "not_http": "done; what comes back is not HTTP",
}
assert set(KINDS) == set(get_args(Kind))

# Those that chance meets. What is asked once, at the start or by an administrator, is for scripts.
EVERYDAY: Final = frozenset(
    {
        *("PutRecords", "PutRecord", "GetRecords", "GetShardIterator", "ListShards"),
        *("PutItem", "UpdateItem", "DeleteItem", "GetItem", "Query", "Scan"),
        *("BatchWriteItem", "BatchGetItem", "TransactWriteItems", "TransactGetItems"),
    }
)
# Of one shard's time, in which it takes nothing or everything.
SLICE_S: Final = 0.1
# These befall parts of a request, and go along with the others.
OF_PARTS: Final = frozenset({"shard_throttled", "record_failed", "record_deleted"})


@dataclass
class Faults:
    """What is to be done to requests. Any of it may be changed at any time, from any thread."""

    seed: int = 0
    rates: Mapping[Kind, float] = field(default_factory=dict)  # kind → probability, from 0 to 1
    actions: Set[str] = EVERYDAY  # which requests chance meets
    rule: Callable[[Asked], Kind | None] | None = None  # asked before chance is
    deletes: Callable[[bytes], bool] | None = None  # which records are deleted, by their data, beside chance
    closed_shards: Set[str] = frozenset()  # throttled all the time: "shardId-000000000000", "partition-3"
    clock_ahead_s: float = 0.0  # AWS's clock, compared with this machine's
    late_s: tuple[float, float] = (0.05, 1.5)  # from, to
    slow_s: tuple[float, float] = (0.05, 0.5)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)  # noqa: S311 - chance that can be repeated
        self._lock = threading.Lock()  # for the script
        self._script: deque[tuple[Kind | None, str | None]] = deque()

    def then(self, kind: Kind | None, action: str | None = None, times: int = 1) -> None:
        """The next request for the action, or the next one at all, suffers this, or nothing; after what was said
        before."""
        assert kind is None or kind in KINDS, f"no such fault: {kind}"
        with self._lock:
            self._script.extend([(kind, action)] * times)

    def stop(self) -> None:
        """From now on everything goes through."""
        self.rates, self.rule, self.closed_shards, self.clock_ahead_s = {}, None, frozenset(), 0.0
        self.deletes = None
        with self._lock:
            self._script.clear()

    def kind(self, request: Asked) -> tuple[Kind | None, bool]:
        """What happens to the request, or to records of it; and whether chance meets it too."""
        with self._lock:
            for entry in self._script:
                if entry[1] in (None, request.action):
                    self._script.remove(entry)
                    return entry[0], False
        ruled = None if self.rule is None else self.rule(request)
        if ruled is not None or request.action not in self.actions:
            return ruled, False
        drawn = self._chance.random()
        for kind, rate in self.rates.items():
            if kind in OF_PARTS:
                continue
            if drawn < rate:
                return kind, True
            drawn -= rate
        return None, True

    def closed(self, shard: str, now: float) -> bool:
        """Whether the shard takes nothing at the moment; `now` in seconds of any clock."""
        if shard in self.closed_shards:
            return True
        rate = self.rates.get("shard_throttled", 0.0)
        slice_ = f"{self.seed}/{shard}/{int(now / SLICE_S)}"
        return rate > 0 and crc32(slice_.encode()) < rate * 2**32

    def fails(self) -> bool:
        """Whether chance lets a record fail."""
        return self._meets("record_failed")

    def deleted(self, data: bytes, *, by_chance: bool) -> bool:
        """Whether a record is deleted."""
        chosen = self.deletes is not None and self.deletes(data)
        return chosen or (by_chance and self._meets("record_deleted"))

    def _meets(self, kind: Kind) -> bool:
        rate = self.rates.get(kind, 0.0)
        return rate > 0 and self._chance.random() < rate

    def late(self) -> float:
        """After how many seconds a request lands late."""
        return self._chance.uniform(*self.late_s)

    def slow(self) -> float:
        """After how many seconds a slow answer comes."""
        return self._chance.uniform(*self.slow_s)

    def coin(self) -> bool:
        """One of two."""
        return self._chance.random() < 0.5
