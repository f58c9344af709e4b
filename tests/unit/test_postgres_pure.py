"""The parts of the PostgreSQL source that need no server: places, snapshots, notations, selections."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.errors import OperatorError, PositionLost, TransientError
from upwell.model import Position, TableName
from upwell.sources.postgres_catalog import matches
from upwell.sources.postgres_chunks import Snapshot, whole_xid
from upwell.sources.postgres_place import Place, Server, Slot, why_lost
from upwell.sources.postgres_session import meaning, quote_ident, quote_literal, refused
from upwell.sources.postgres_types import is_exact, unescape

PLACE = Place(lsn=1000, system="7", timeline=3, database=5, slot="s", next_xid=77)
SERVER = Server(system="7", timeline=3, database=5, lsn=2000, next_xid=100, standby=False)
SLOT = Slot("s", "pgoutput", "shop", 900, 800, None, "reserved", None, "")
URL = "postgresql://u:hunter2@db.example:5433/shop"


def lost(
    *,
    place: Place = PLACE,
    server: Server = SERVER,
    slot: Slot | None = SLOT,
    history: list[tuple[int, int]] | None = None,
) -> str | None:
    return why_lost(place, server, slot, lambda: history or [])


def test_a_place_that_is_still_there() -> None:
    assert lost() is None
    assert lost(slot=replace(SLOT, confirmed=1000)) is None


def test_a_failover_that_kept_everything_is_no_gap() -> None:
    """The new timeline left ours at or after our place."""
    promoted = Server("7", 5, 5, 2000, 100, False)
    assert lost(server=promoted, history=[(1, 10), (3, 1000), (4, 1500)]) is None


@pytest.mark.parametrize("history", [[], [(3, 999)], [(2, 5000)]])
def test_a_failover_that_lost_something_is_one(history: list[tuple[int, int]]) -> None:
    assert "timeline 3 became 4" in (lost(server=Server("7", 4, 5, 2000, 100, False), history=history) or "")


def test_a_server_that_went_back() -> None:
    assert "its log ends at 0/3E7" in (lost(server=Server("7", 3, 5, 999, 100, False)) or "")
    assert "transaction ids anew" in (lost(server=Server("7", 3, 5, 2000, 76, False)) or "")


def test_a_standby_may_be_behind() -> None:
    assert lost(server=Server("7", 3, 5, 999, 70, True)) is None


@pytest.mark.parametrize(
    "row",
    [
        {"wal_status": "lost"},
        {"restart_lsn": None},
        {"conflicting": True},
        {"invalidation_reason": "idle_timeout"},
    ],
)
def test_a_slot_that_is_of_no_use(row: dict[str, object]) -> None:
    whole = {
        "slot_name": "s",
        "plugin": "pgoutput",
        "database": "shop",
        "restart_lsn": "0/10",
        "confirmed_flush_lsn": "0/20",
        "active_pid": None,
    }
    assert Slot.from_row(whole).invalid == ""
    assert "gave up" in (lost(slot=Slot.from_row({**whole, **row})) or "")


@given(
    st.integers(0, 2**64 - 1), st.text("0123456789"), st.integers(1, 2**31), st.integers(0, 2**32 - 1), st.integers(0)
)
def test_a_place_survives_its_position(lsn: int, system: str, timeline: int, database: int, xid: int) -> None:
    place = Place(lsn, system, timeline, database, "slot_1", min(xid, 2**63 - 1))
    assert Place.parse(place.to_position()) == place


@pytest.mark.parametrize("position", ["", "{}", "42", '{"lsn":"x"}', '{"main":17}'])
def test_a_position_of_another_source(position: str) -> None:
    with pytest.raises(OperatorError, match="not one of PostgreSQL's"):
        Place.parse(Position(position))


# --- snapshots


@given(st.data())
def test_what_a_snapshot_contains(data: st.DataObject) -> None:
    """By 32 bits as by all 64, wherever the counter stands."""
    xmax = data.draw(st.integers(2**33, 2**40))
    running = data.draw(st.sets(st.integers(xmax - 50, xmax - 1), max_size=10))
    xmin = min(running, default=xmax)
    snapshot = Snapshot.parse(f"{xmin}:{xmax}:{','.join(map(str, sorted(running)))}")
    xid = data.draw(st.integers(xmax - 100, xmax + 100) | st.integers(xmax - 2**31 + 1, xmax + 2**31 - 1))
    assert snapshot.contains(xid % 2**32) == (xid < xmax and xid not in running)
    assert whole_xid(xid % 2**32, xmax) == xid


# --- notations


ESCAPES = {"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


@given(st.text(st.sampled_from("\\\b\f\n\r\t\vNnbx0ü\"'") | st.characters(exclude_categories=["Cs"])))
def test_copy_escapes(text: str) -> None:
    escaped = "".join(ESCAPES.get(letter, letter) for letter in text)
    assert unescape(escaped.encode()) == text.encode()


def test_quoting() -> None:
    assert quote_ident('a"b') == '"a""b"'
    assert quote_literal("it's \\ so") == "'it''s \\ so'"


# --- selections


@pytest.mark.parametrize(
    ("pattern", "name", "matching"),
    [
        (("", "users"), ("public", "users"), True),
        (("", "users"), ("sales", "users"), False),
        (("", "*"), ("public", "a.b"), True),
        (("*", "*"), ("sales", "users"), True),
        (("sales", "order_?"), ("sales", "order_1"), True),
        (("sales", "order_?"), ("sales", "order_12"), False),
        (("sales", "a+(b)[c]"), ("sales", "a+(b)[c]"), True),
        (("sales", "a[bc]"), ("sales", "ab"), False),
        (("public", "Users"), ("public", "users"), False),
        (("public", "new\nline*"), ("public", "new\nlines\n"), True),
    ],
)
def test_patterns(pattern: tuple[str, str], name: tuple[str, str], matching: bool) -> None:
    assert matches(TableName(*pattern), TableName(*name)) is matching


# --- errors


@pytest.mark.parametrize(
    ("sqlstate", "text", "kind", "code"),
    [
        ("58P01", "requested WAL segment 000000010000000000000001 has already been removed", PositionLost, "UW-PG-020"),
        ("55000", 'can no longer get changes from replication slot "s"', PositionLost, "UW-PG-020"),
        ("55000", 'cannot read from logical replication slot "s"', PositionLost, "UW-PG-020"),
        ("55000", 'can no longer access replication slot "s"', PositionLost, "UW-PG-020"),
        ("55000", 'logical decoding requires "wal_level" >= "logical"', OperatorError, "UW-PG-030"),
        ("42704", 'publication "p" does not exist', OperatorError, "UW-PG-032"),
        ("55006", 'replication slot "s" is active for PID 7', TransientError, "UW-PG-011"),
        ("53400", "all replication slots are in use", OperatorError, "UW-PG-033"),
        ("42501", "permission denied for table t", OperatorError, "UW-PG-004"),
        ("57P01", "terminating connection due to administrator command", TransientError, "UW-PG-012"),
        ("57014", "canceling statement due to statement timeout", TransientError, "UW-PG-014"),
        ("53100", "could not extend file: No space left on device", TransientError, "UW-PG-012"),
        ("40001", "could not serialize access", TransientError, "UW-PG-012"),
        ("42P01", 'relation "t" does not exist', OperatorError, "UW-PG-044"),
        ("42601", "syntax error", OperatorError, "UW-PG-009"),
    ],
)
def test_what_the_servers_errors_mean(sqlstate: str, text: str, kind: type[Exception], code: str) -> None:
    error = meaning(sqlstate, text, URL)
    assert type(error) is kind
    assert error.code == code


@pytest.mark.parametrize(
    ("text", "kind", "code"),
    [
        ('FATAL:  password authentication failed for user "u"', OperatorError, "UW-PG-002"),
        ('FATAL:  role "u" does not exist', OperatorError, "UW-PG-002"),
        ('FATAL:  database "shop" does not exist', OperatorError, "UW-PG-003"),
        ('FATAL:  no pg_hba.conf entry for host "::1"', OperatorError, "UW-PG-004"),
        ("FATAL:  must be superuser or replication role to start walsender", OperatorError, "UW-PG-004"),
        ("FATAL:  permission denied to start WAL sender", OperatorError, "UW-PG-004"),
        ("SSL error: certificate verify failed", OperatorError, "UW-PG-005"),
        ("server does not support SSL, but SSL was required", OperatorError, "UW-PG-006"),
        ("connection failed: Connection refused", TransientError, "UW-PG-007"),
        ("connection timeout expired", TransientError, "UW-PG-007"),
        ("FATAL:  the database system is starting up", TransientError, "UW-PG-008"),
        ("FATAL:  sorry, too many clients already", TransientError, "UW-PG-008"),
        ("something new", TransientError, "UW-PG-010"),
    ],
)
def test_why_there_is_no_connection(text: str, kind: type[Exception], code: str) -> None:
    error = refused(text, URL)
    assert type(error) is kind
    assert error.code == code
    assert "db.example:5433/shop" in str(error)
    assert "hunter2" not in str(error)


# --- keys


@pytest.mark.parametrize(
    ("base", "typtype", "typmod", "exact"),
    [
        ("int8", "b", -1, True),
        ("numeric", "b", -1, True),
        ("mood", "e", -1, True),
        ("bpchar", "b", 9, True),
        ("bpchar", "b", -1, False),
        ("interval", "b", -1, False),
        ("citext", "b", -1, False),
        ("jsonb", "b", -1, False),
        ("numrange", "r", -1, False),
        ("int4range", "r", -1, True),
        ("_int4", "b", -1, True),
        ("_numeric", "b", -1, False),
        ("pair", "c", -1, False),
    ],
)
def test_which_keys_are_equal_only_where_they_look_alike(base: str, typtype: str, typmod: int, exact: bool) -> None:
    assert is_exact(base, typtype, typmod=typmod) is exact
