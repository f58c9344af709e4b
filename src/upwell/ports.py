"""The contracts between the flow and the outside world. Each adapter passes the contract suite of its port.

All of them translate what goes wrong into the classes of errors.py and retry nothing themselves: the only retry
loops are the flow's (pipeline/delivery.py, pipeline/applier.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from upwell.errors import Rejected, TransientError
from upwell.model import (
    LOWEST_VERSION,
    Checkpoint,
    Chunk,
    Cursor,
    DeadLetter,
    LaneItem,
    Lease,
    Marker,
    Position,
    Rejection,
    TableSchema,
    Value,
    Version,
    Window,
)


class Clock(Protocol):
    """Time, as an argument."""

    def now(self) -> float:
        """Seconds since 1970, UTC; may jump."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never goes back."""

    def sleep(self, seconds: float) -> None:
        """Wait; may return early when the program is told to stop."""


class Source(Protocol):
    """A database that tells what changed. One thread uses it.

    Who starts takes over: a publisher that read the same before, and still runs, ends with LeaseLost at its next call
    of `changes`, where the source lets two read at all.

    Call order: `start` once, again after a PositionLost, when `start` itself failed, and whenever the caller wants
    what it has read since a position once more, the schemas included; then `changes`, `chunk`, `confirm` in any
    order. After a TransientError of these the source reconnects by itself at the next call and goes on where it was.
    """

    def tables(self) -> Sequence[TableSchema]:
        """The configured tables as they are now, key columns included, in a stable order."""

    def start(self, position: Position | None, epoch: int) -> tuple[Position, int]:
        """Make ready to read from `position`, or from now on where it is None; `epoch` stamps the versions to come.

        Returns the position and the commit number that it stands for (see Window.commit). Raises PositionLost where
        the source can't prove that it still has everything after the position; OperatorError where capture is off.
        """

    def changes(self, after: Position, limit: int, wait_s: float) -> Window:
        """What committed after `after`, about `limit` events at most, waiting up to `wait_s` for the first.

        `after` is the position of the window before or, where that was not complete, still continues it. Versions
        never decrease. Events of one transaction share the commit number. Never returns what rolled back.
        Raises PositionLost where the log has gone, TransientError where the connection has.
        """

    def head(self) -> int:
        """The commit number (see Window.commit) that is reached when all that is committed now has been returned."""

    def start_chunks(self) -> None:
        """From now on the caller remembers the keys of what is delivered, by transaction.

        Every later chunk contains all that was delivered before this call.
        """

    def chunk(self, schema: TableSchema, cursor: Cursor | None, limit: int) -> Chunk | None:
        """Up to `limit` rows after `cursor` in the database's key order; None: not possible yet, ask again soon."""

    def estimate(self, table: str) -> int | None:
        """About how many rows the table has, from statistics; None where unknown. Cheap."""

    def confirm(self, position: Position) -> None:
        """Everything before it is durable at the destination and the checkpoint is saved: the log may be freed."""

    def health(self) -> Mapping[str, Any]:
        """For `status`: what the source retains and for how long; keys are documented in docs/operations.md."""

    def close(self) -> None:
        """Free connections; never raises."""


@dataclass(slots=True)
class Parcel:
    """What one lane has under way: at most one at any time, so that nothing overtakes."""

    lane: int
    term: int
    seq: int
    after: tuple[int, int] | None  # on the first of a term: the last acknowledged (term, sequence) before it
    taken: int  # how many of the items offered it covers, those rejected included
    body: Any = None  # the sink's own form of what remains to be sent; None: nothing does
    size: int = 0  # of the body, in bytes on the wire, about
    rejected: list[Rejection] = field(default_factory=list)  # filled by pack, and by send where the service refuses
    detour: bool = False  # something goes to another service first: sent in a call of its own, few at a time


class Sink(Protocol):
    """Where a publisher sends. Several threads may be in `send` at once, each with other lanes."""

    carries_markers: bool  # True: resyncs are opened and closed in the stream; False: `sweep` ends them
    parcels_max: int  # a call's limit
    call_bytes_max: int  # a call's limit

    def pack(self, lane: int, term: int, seq: int, after: tuple[int, int] | None, items: Sequence[LaneItem]) -> Parcel:
        """Encode as many of `items`, from the front, as fit one parcel; at least one. Does no I/O.

        What can never be sent (too large, not representable) goes to `Parcel.rejected`. A parcel whose items were
        all rejected has no body.
        """

    def send(self, parcels: Sequence[Parcel]) -> Sequence[TransientError | None]:
        """One attempt, an answer for each parcel: None where it is durable, else why to send the same again.

        May lower `body`, and `size` with it, to what remains, and add to `rejected`. Raises TransientError where the
        whole call failed (all are sent again, though they may have arrived), OperatorError where only a person can
        help.
        """

    def prepare(self, schemas: Sequence[TableSchema]) -> None:
        """Before the first event of these schemas: create or check what they need. Raises OperatorError."""

    def sweep(self, schema: TableSchema, before: Version) -> int:
        """Remove what is older than `before` from the table and return how many; only where not carries_markers."""

    def close(self) -> None:
        """Free connections; never raises."""


class ObjectStore(Protocol):
    """Where contents wait that are too large for their way. Threads share it; one attempt each."""

    def put(self, key: str, content: bytes) -> None:
        """Durable when it returns. The same content may be put again. Raises TransientError or OperatorError."""

    def get(self, key: str) -> bytes | None:
        """What was put last; None where there is nothing of this key. Raises TransientError or OperatorError."""

    def close(self) -> None:
        """Free connections; never raises."""


@dataclass(slots=True)
class Request:
    """Something asked of the publisher: by a person (`upwell resync`) or by a subscriber (repair)."""

    id: str
    table: str | None  # None: all tables
    reason: str


class StateStore(Protocol):
    """Where a publisher keeps what survives it. Every write is atomic and durable when it returns."""

    def acquire(self, now: float) -> Lease:
        """Become the pipeline's publisher, with a term above every earlier one. Raises LeaseLost where one lives."""

    def renew(self, lease: Lease) -> None:
        """Raises LeaseLost where another publisher has taken over since; called about once a second."""

    def load(self) -> Checkpoint | None:
        """The last checkpoint; None where there never was one. Raises OperatorError where it can't be trusted."""

    def save(self, checkpoint: Checkpoint, lease: Lease) -> None:
        """Raises LeaseLost, and saves nothing, where another publisher has taken over since."""

    def add_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Keep them; equal ones (table, key, version) once. Their `id` is ignored and given anew."""

    def requests(self) -> Sequence[Request]:
        """What was asked and not yet `finish`ed."""

    def finish(self, request: Request) -> None:
        """The request is in the checkpoint."""

    def put_status(self, status: Mapping[str, Any]) -> None:
        """What `upwell status` shows; JSON values. Raises LeaseLost where another publisher has taken over."""

    def release(self) -> None:
        """Let another publisher take over; never raises."""


class ControlChannel(Protocol):
    """How a subscriber asks a publisher for a repair: the publisher polls it, nothing calls on-premises."""

    def ask(self, pipeline: str, request: Request) -> None:
        """Idempotent by the request's id."""

    def poll(self, pipeline: str) -> Sequence[Request]:
        """What was asked and not yet finished."""

    def finish(self, pipeline: str, request: Request) -> None:
        """The request is in the publisher's checkpoint."""


@dataclass(slots=True)
class LaneState:
    """What the target knows of a lane; locked, compared and moved in the transaction that writes the rows."""

    version: Version = LOWEST_VERSION  # the watermark
    term: int = 0
    seq: int = 0
    resyncs: dict[str, int] = field(
        default_factory=dict
    )  # table → the newest resync opened in this lane; "": see applier.py


@dataclass(slots=True)
class ResyncState:
    """What the target knows of a table's newest resync."""

    resync: int
    active: bool
    closed: set[int] = field(default_factory=set)  # lanes


class TargetTransaction(Protocol):
    """One transaction of the target. What a write refuses leaves the transaction usable and that write undone."""

    def lock_lanes(self, pipeline: str, lanes: Sequence[int]) -> dict[int, LaneState]:
        """Lock the lanes' watermark rows, in lane order; a lane never seen gets one."""

    def save_lanes(self, pipeline: str, states: Mapping[int, LaneState]) -> None:
        """Move the watermarks."""

    def lock_resyncs(self, pipeline: str, shared: Sequence[str], exclusive: Sequence[str]) -> dict[str, ResyncState]:
        """The resyncs of these tables, locked in table order: a sweep must not run beside an upsert's note."""

    def save_resync(self, pipeline: str, table: str, state: ResyncState) -> None:
        """Keep it; a newer resync's notes replace those of an older one."""

    def ensure_table(self, schema: TableSchema) -> None:
        """Before the first row of this schema: create the table, add columns, as configured.

        Raises OperatorError where the table can't hold the schema and may not be changed.
        """

    def upsert(self, schema: TableSchema, rows: Sequence[Sequence[Value]]) -> Mapping[int, Rejected]:
        """Rows with distinct keys, sorted by key. Of a partial schema: change those that exist, skip the others.

        Returns the rows, by their place, that are refused for what they hold, where that can be told; the others are
        written. Raises UniqueConflict where another row holds a unique value; Rejected where one row alone is
        refused, or it can't be told which.
        """

    def replace(self, schema: TableSchema, rows: Sequence[Sequence[Value]]) -> Mapping[int, Rejected]:
        """As `upsert`, by deleting the keys first. A row with another key that holds one of their unique values
        makes way, and comes back by itself as soon as nothing keeps it out: either its own change is still to come in
        another lane, or this one is the older and will be changed.
        """

    def delete(self, schema: TableSchema, keys: Sequence[Sequence[Value]]) -> None:
        """Keys that don't exist are no error. Raises Rejected."""

    def note(self, pipeline: str, schema: TableSchema, resync: int, keys: Sequence[Sequence[Value]]) -> None:
        """Remember that the resync found these keys."""

    def sweep(self, pipeline: str, schema: TableSchema, resync: int) -> int:
        """Delete the rows whose keys were not noted, forget the notes, return how many rows went."""

    def add_dead_letters(self, pipeline: str, letters: Sequence[DeadLetter]) -> None:
        """Keep them; equal ones (table, key, version) once. Their `id` is ignored and given anew."""

    def ask_repair(self, pipeline: str, request: Request) -> None:
        """Keep the request until it has been handed to the control channel."""


class Target(Protocol):
    """Where a subscriber applies. Several threads may hold a transaction each."""

    def begin(self) -> AbstractContextManager[TargetTransaction]:
        """A transaction: commits when the block ends, rolls back when it raises.

        Everything the environment does (deadlock, lost connection, read-only after a failover, disk full) is a
        TransientError, at commit too: then it is unknown whether it happened.
        """

    def close(self) -> None:
        """Free connections; never raises."""


class ItemSink(Protocol):
    """Where a subscriber writes rows that have no transaction around them: each with its version, by which what is
    older is refused. A row is written when `send` says so, whatever happens to the others.
    """

    parcels_max: int  # a call's limit

    def pack(self, lane: int, term: int, seq: int, after: tuple[int, int] | None, items: Sequence[LaneItem]) -> Parcel:
        """See Sink."""

    def send(self, parcels: Sequence[Parcel]) -> Sequence[TransientError | None]:
        """See Sink."""

    def prepare(self, schemas: Sequence[TableSchema]) -> None:
        """See Sink."""

    def sweep_page(self, schema: TableSchema, before: Version, cursor: str | None) -> tuple[int, str | None]:
        """Remove what is older than `before` from the next part of the table; how many that were, and where the part
        after it begins. None: at the table's beginning, or its end.
        """


@dataclass(slots=True)
class Sweep:
    """All lanes of a resync are closed: what is older than it is to go."""

    cursor: str | None  # from here on; None: from the table's beginning


class LaneStore(Protocol):
    """What a subscriber knows of lanes and resyncs beside a target without transactions.

    Each write is atomic by itself and durable when it returns. Several subscribers may be at it at once: nothing here
    is locked, so nothing may go back to what it was. Raises TransientError or OperatorError.
    """

    def lanes(self, pipeline: str, lanes: Sequence[int]) -> dict[int, LaneState]:
        """As saved last, by whomever; a lane never seen has a new one."""

    def save_lanes(self, pipeline: str, states: Mapping[int, LaneState]) -> None:
        """Move the watermarks; one that has come further by (term, sequence) stays."""

    def open_resync(self, pipeline: str, table: str, resync: int) -> None:
        """It has begun, in at least one lane."""

    def close_lane(self, pipeline: str, marker: Marker) -> Sweep | None:
        """All of the resync in this lane is durable; what that makes due. Closed again, it is closed.

        A newer resync that was opened meanwhile changes nothing: what is older than this one has to go in any case.
        """

    def swept(self, pipeline: str, marker: Marker, cursor: str | None) -> None:
        """What is older than the resync has gone up to here; None: all of it."""

    def add_dead_letters(self, pipeline: str, letters: Sequence[DeadLetter]) -> None:
        """Keep them; equal ones (table, key, version) once. Their `id` is ignored and given anew."""

    def ask_repair(self, pipeline: str, request: Request) -> None:
        """Keep the request until it has been handed to the control channel."""


class ShardCheckpoints(Protocol):
    """How far each shard has been applied. May lag what was applied, never lead it.

    `stream`: whose they are, `PIPELINE/STREAM`: two pipelines may come through one stream into one target.
    """

    def load(self, stream: str) -> dict[str, str | None]:
        """shard → the last applied sequence number; None where the shard is finished."""

    def save(self, stream: str, shard: str, sequence: str | None) -> None:
        """Durable when it returns."""


@dataclass(frozen=True, slots=True)
class ReadIndex:
    """A second way into a table: the rows of a value, in the order of another column."""

    name: str
    partition_key: str
    sort_key: str | None = None  # rows in which it is NULL are not found


@dataclass(frozen=True, slots=True)
class Listing:
    """Which rows are wanted, from where on, how many at most."""

    schema: TableSchema
    tenant: tuple[str, str] | None  # a column, and what it must be equal to in every row
    index: ReadIndex | None  # None: all rows
    partition: Value  # of the index's partition key
    after: Any  # see Found; None: from the beginning
    limit: int


class Found(NamedTuple):
    """A row, and what `Listing.after` must be to go on behind it: JSON that only the reader understands."""

    row: list[Value]
    after: Any


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a listing. It may be short, or empty, and still not be the last one."""

    found: Sequence[Found]
    after: Any  # to go on behind all of them; None: there are no more


class Reader(Protocol):
    """Where the read API reads. Threads share it; one attempt each.

    Rows are in the order of the schema's columns, values as presentation.py has them, so that every reader gives the
    same for the same row. A row of another tenant is as if it were not there. What a store can't hold as a key is not
    there either. All raise TransientError and OperatorError; Rejected for a row that can't be had.
    """

    def get(self, schema: TableSchema, key: Sequence[Value], tenant: tuple[str, str] | None) -> list[Value] | None:
        """The row of this key, as it is now; None where there is none."""

    def page(self, listing: Listing) -> Page:
        """The next rows of a listing: each that is there all the while comes exactly once."""

    def heartbeats(self, pipeline: str) -> Sequence[Mapping[str, Any]]:
        """The heartbeat rows that have arrived; see heartbeat.py."""

    def close(self) -> None:
        """Free connections; never raises."""
