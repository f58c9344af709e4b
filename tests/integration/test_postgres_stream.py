"""What PostgresSource reads from the log: every kind of change, every replica identity, on the oldest and the newest
PostgreSQL at hand."""

import uuid
from collections.abc import Iterator

import pytest

from lab import find
from lab.parts import PostgresCluster, PostgresServer
from tests.integration.postgres_shop import Shop, brief, open_shop
from upwell.errors import OperatorError, TransientError
from upwell.model import unpack_version

LARGE = "repeat(md5(random()::text), 400)"  # 12,800 characters that don't compress well: stored out of line


@pytest.fixture(scope="module", params=["installed", "bundled"])
def server(request: pytest.FixtureRequest, postgres_cluster: PostgresServer) -> Iterator[PostgresServer]:
    """The machine's own PostgreSQL, and the one that the demo brings."""
    if request.param == "installed":
        yield postgres_cluster
        return
    with PostgresCluster(bin_dir=find.bundled_postgres_bin()) as cluster:
        yield cluster


@pytest.fixture
def shop(server: PostgresServer) -> Iterator[Shop]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    server.create_database(name)
    try:
        with open_shop(server, name) as shop:
            yield shop
    finally:
        server.drop_database(name)


def test_versions_count_row_changes_of_a_commit(shop: Shop) -> None:
    shop.execute("CREATE TABLE a (id int PRIMARY KEY, v int)", "CREATE TABLE b (id int PRIMARY KEY)")
    shop.start()
    shop.execute("INSERT INTO a VALUES (1, 1), (2, 2)", "INSERT INTO b VALUES (7)", "UPDATE a SET id = 3 WHERE id = 1")
    shop.execute("DELETE FROM a")
    events = shop.read()
    versions = [unpack_version(event.version) for event in events]
    assert [(e.operation, e.key, e.was) for e in events] == [
        ("u", b"[1]", "insert"),
        ("u", b"[2]", "insert"),
        ("u", b"[7]", "insert"),
        ("d", b"[1]", "update"),
        ("u", b"[3]", "update"),
        ("d", b"[2]", "delete"),
        ("d", b"[3]", "delete"),
    ]
    assert [ordinal for _, _, ordinal in versions] == [1, 2, 3, 4, 5, 1, 2]
    assert len({commit for _, commit, _ in versions[:5]}) == 1
    assert versions == sorted(versions)
    assert len({event.transaction for event in events}) == 2
    assert all(event.time.endswith("Z") and len(event.time) == 27 for event in events)


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_unchanged_large_values(shop: Shop, identity: str) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n int, big text, other text)")
    shop.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL", f"ALTER TABLE t REPLICA IDENTITY {identity}")
    shop.execute(f"INSERT INTO t VALUES (1, 1, {LARGE}, 'x')")
    big = shop.value("SELECT big FROM t")
    shop.start()
    shop.execute("UPDATE t SET n = 2")
    shop.execute("UPDATE t SET big = 'small' WHERE id = 1")
    first, second = shop.read()
    if identity == "FULL":
        assert not first.schema.partial
        assert first.changed == ("n",)
        assert second.changed == ("big",)
        assert brief([first]) == [("u", [1], {"id": 1, "n": 2, "big": big, "other": "x"})]
    else:
        assert first.schema.partial
        assert brief([first]) == [("u", [1], {"id": 1, "n": 2, "other": "x"})]
        assert first.schema.hash != second.schema.hash
    assert brief([second]) == [("u", [1], {"id": 1, "n": 2, "big": "small", "other": "x"})]


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_a_row_moves_with_its_unchanged_large_value(shop: Shop, identity: str) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n int, big text)")
    shop.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL", f"ALTER TABLE t REPLICA IDENTITY {identity}")
    shop.execute(f"INSERT INTO t VALUES (1, 1, {LARGE})")
    big = shop.value("SELECT big FROM t")
    shop.start()
    shop.execute("UPDATE t SET id = 2")
    deleted, moved = shop.read()
    assert (deleted.operation, deleted.key) == ("d", b"[1]")
    assert brief([moved]) == [("u", [2], {"id": 2, "n": 1, "big": big})]
    assert not moved.schema.partial


def test_a_row_that_moved_and_is_gone_is_not_made_up(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, big text)", "ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    shop.execute(f"INSERT INTO t VALUES (1, {LARGE})")
    shop.start()
    shop.execute("UPDATE t SET id = 2")
    shop.execute("DELETE FROM t")
    assert [(e.operation, e.key) for e in shop.read()] == [("d", b"[1]"), ("d", b"[2]")]


def test_a_large_key_that_did_not_change(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (k text PRIMARY KEY, n int)", "ALTER TABLE t ALTER k SET STORAGE EXTERNAL")
    # Beyond 2,000 bytes a value is stored out of line; an index takes no more than 2,700.
    shop.execute("INSERT INTO t VALUES (repeat(md5('1'), 80), 1)")
    key = shop.value("SELECT k FROM t")
    shop.start()
    shop.execute("UPDATE t SET n = 2")
    assert brief(shop.read()) == [("u", [key], {"k": key, "n": 2})]


def test_identity_by_index(shop: Shop) -> None:
    shop.execute(
        "CREATE TABLE t (a int NOT NULL, b text NOT NULL, c int)",
        "CREATE UNIQUE INDEX t_key ON t (b, a)",
        "ALTER TABLE t REPLICA IDENTITY USING INDEX t_key",
    )
    source = shop.start()
    assert source.tables()[0].key == ("b", "a")
    shop.execute("INSERT INTO t VALUES (1, 'x', 1)", "UPDATE t SET b = 'y'", "DELETE FROM t")
    assert [(e.operation, e.key) for e in shop.read()] == [
        ("u", b'["x",1]'),
        ("d", b'["x",1]'),
        ("u", b'["y",1]'),
        ("d", b'["y",1]'),
    ]
    assert shop.snapshot("public.t") == []


def test_an_identity_index_beside_a_primary_key_is_the_key(shop: Shop) -> None:
    """A delete tells the index's columns only."""
    shop.execute(
        "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL UNIQUE)",
        "ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key",
    )
    source = shop.start()
    assert source.tables()[0].key == ("code",)
    shop.execute("INSERT INTO t VALUES (1, 'x')", "UPDATE t SET id = 2", "DELETE FROM t")
    assert [(e.operation, e.key) for e in shop.read()] == [("u", b'["x"]'), ("u", b'["x"]'), ("d", b'["x"]')]


def test_truncate_asks_for_a_resync(shop: Shop) -> None:
    shop.execute("CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE b (id int PRIMARY KEY)")
    shop.start()
    shop.execute("INSERT INTO a VALUES (1)", "TRUNCATE a, b", "INSERT INTO a VALUES (2)")
    windows = shop.windows()
    assert [each for window in windows for each in window.resync] == [
        ("public.a", "TRUNCATE"),
        ("public.b", "TRUNCATE"),
    ]
    assert [event.key for window in windows for event in window.events] == [b"[1]", b"[2]"]


def test_partitions_travel_under_their_table(shop: Shop) -> None:
    shop.execute(
        "CREATE TABLE t (id int, region text, note text, PRIMARY KEY (region, id)) PARTITION BY LIST (region)",
        "CREATE TABLE t_eu (note text, id int NOT NULL, region text NOT NULL)",  # other column order than its table
        "ALTER TABLE t ATTACH PARTITION t_eu FOR VALUES IN ('eu')",
        "CREATE TABLE t_us PARTITION OF t FOR VALUES IN ('us') PARTITION BY RANGE (id)",
        "CREATE TABLE t_us_1 PARTITION OF t_us FOR VALUES FROM (0) TO (100)",
        "INSERT INTO t VALUES (1, 'eu', 'a'), (2, 'us', 'b')",
    )
    source = shop.start()
    assert [schema.table for schema in source.tables()] == ["public.t"]
    shop.execute("INSERT INTO t VALUES (3, 'us', 'c')", "UPDATE t SET region = 'us' WHERE id = 1")
    shop.execute("UPDATE t SET note = 'n' WHERE id = 3", "TRUNCATE t")
    windows = shop.windows()
    events = [event for window in windows for event in window.events]
    assert brief(events) == [
        ("u", ["us", 3], {"id": 3, "region": "us", "note": "c"}),
        ("d", ["eu", 1], None),
        ("u", ["us", 1], {"id": 1, "region": "us", "note": "a"}),
        ("u", ["us", 3], {"id": 3, "region": "us", "note": "n"}),
    ]
    assert [each for window in windows for each in window.resync] == [("public.t", "TRUNCATE")]


def test_partitions_are_read_through_their_table(shop: Shop) -> None:
    shop.execute(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20)",
        "INSERT INTO t SELECT generate_series(5, 14)",
        "ANALYZE t",
    )
    source = shop.start("public.t")
    assert [key for key, _ in shop.snapshot("public.t", 3)] == [b"[%d]" % n for n in range(5, 15)]
    assert source.estimate("public.t") == 10


def test_a_parent_and_its_children_are_tables_of_their_own(shop: Shop) -> None:
    shop.execute("CREATE TABLE p (id int PRIMARY KEY)", "CREATE TABLE c (PRIMARY KEY (id)) INHERITS (p)")
    shop.execute("INSERT INTO p VALUES (1)", "INSERT INTO c VALUES (2)")
    shop.start("p")
    shop.execute("INSERT INTO p VALUES (3)", "INSERT INTO c VALUES (4)")
    assert [e.key for e in shop.read()] == [b"[3]"]
    assert [key for key, _ in shop.snapshot("public.p")] == [b"[1]", b"[3]"]


def test_generated_columns_are_in_neither_or_both(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED, z int)")
    source = shop.start()
    assert [c.name for c in source.tables()[0].columns] == ["id", "n", "z"]
    shop.execute("INSERT INTO t (id, n, z) VALUES (1, 5, 6)")
    (event,) = shop.read()
    assert dict(shop.snapshot("public.t")) == {b"[1]": b"[1,5,6]"} == {event.key: event.row}
    assert event.schema.hash == source.tables()[0].hash


def test_published_generated_columns_are_in_both(shop: Shop) -> None:
    if shop.connection.info.server_version < 180000:
        return  # there is no such option
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED)")
    shop.execute("CREATE PUBLICATION upwell FOR TABLE t WITH (publish_generated_columns = stored)")
    shop.execute("ALTER PUBLICATION upwell SET (publish_via_partition_root = true)")
    source = shop.start()
    shop.execute("INSERT INTO t (id, n) VALUES (1, 5)")
    (event,) = shop.read()
    assert dict(shop.snapshot("public.t")) == {b"[1]": b"[1,5,10]"} == {event.key: event.row}
    assert event.schema.hash == source.tables()[0].hash


def test_excluded_columns_are_in_neither(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, secret text, n int, secret2 bytea)")
    source = shop.start("t", exclude=("secret", "secret2"))
    shop.execute(r"INSERT INTO t VALUES (1, 'hush', 2, '\x00')", "UPDATE t SET id = 3, secret = NULL")
    events = shop.read()
    assert [e.row for e in events] == [b"[1,2]", None, b"[3,2]"]
    assert shop.snapshot("public.t") == [(b"[3]", b"[3,2]")]
    assert [c.name for c in source.tables()[0].columns] == ["id", "n"]


def test_a_column_list_of_the_publication_counts(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, secret text, n int)")
    shop.execute("CREATE PUBLICATION upwell FOR TABLE t (id, n) WITH (publish_via_partition_root = true)")
    source = shop.start()
    shop.execute("INSERT INTO t VALUES (1, 'hush', 2)")
    (event,) = shop.read()
    assert event.row == b"[1,2]"
    assert shop.snapshot("public.t") == [(b"[1]", b"[1,2]")]
    assert source.tables()[0].hash == event.schema.hash


def test_changed_schemas_are_told_once_and_with_their_defaults(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    shop.start()
    shop.execute("INSERT INTO t VALUES (1, 1)")
    shop.execute("ALTER TABLE t ADD COLUMN plain text", "ALTER TABLE t ADD COLUMN filled text DEFAULT 'x'")
    shop.execute("INSERT INTO t VALUES (2, 2)", "INSERT INTO t VALUES (3, 3)")
    shop.execute("ALTER TABLE t DROP COLUMN plain")
    shop.execute("INSERT INTO t VALUES (4, 4)")
    told = [[(c.name, c.has_default) for c in s.columns] for window in shop.windows() for s in window.schemas]
    assert told == [
        [("id", False), ("n", False)],
        [("id", False), ("n", False), ("plain", False), ("filled", True)],
        [("id", False), ("n", False), ("filled", True)],
    ]


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_changes_of_before_the_key_was_another(shop: Shop, identity: str) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n text NOT NULL)", f"ALTER TABLE t REPLICA IDENTITY {identity}")
    shop.start()
    shop.execute("INSERT INTO t VALUES (1, 'a')", "DELETE FROM t")
    shop.execute("ALTER TABLE t DROP CONSTRAINT t_pkey", "ALTER TABLE t ADD PRIMARY KEY (n)")
    shop.execute("INSERT INTO t VALUES (2, 'b')", "DELETE FROM t")
    windows = shop.windows()
    assert not [each for window in windows for each in window.rejected]
    before = [b"[1]", b"[1]"] if identity == "DEFAULT" else [b'["a"]', b'["a"]']
    assert [e.key for window in windows for e in window.events] == [*before, b'["b"]', b'["b"]']


def test_a_chunk_has_the_columns_that_the_table_has_now(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n int)", "INSERT INTO t SELECT g, g FROM generate_series(1, 4) g")
    source = shop.start()
    (schema,) = source.tables()
    first = source.chunk(schema, None, 2)
    assert first is not None
    shop.execute("ALTER TABLE t DROP COLUMN n", "ALTER TABLE t ADD COLUMN m text DEFAULT 'm'")
    second = source.chunk(schema, first.cursor, 2)
    assert second is not None
    assert second.rows == [(b"[3]", b'[3,"m"]'), (b"[4]", b'[4,"m"]')]
    assert [c.name for c in second.schema.columns] == ["id", "m"]


def test_a_chunk_starts_over_where_the_key_is_another(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n text NOT NULL)")
    shop.execute("INSERT INTO t SELECT g, 'n' || g FROM generate_series(1, 4) g")
    source = shop.start()
    (schema,) = source.tables()
    first = source.chunk(schema, None, 2)
    assert first is not None
    shop.execute("ALTER TABLE t DROP CONSTRAINT t_pkey", "ALTER TABLE t ADD PRIMARY KEY (n)")
    second = source.chunk(schema, first.cursor, 10)
    assert second is not None
    assert [key for key, _ in second.rows] == [b'["n1"]', b'["n2"]', b'["n3"]', b'["n4"]']


def test_a_dropped_table_stops_its_snapshot_with_a_reason(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source = shop.start("*")
    (schema,) = source.tables()
    shop.execute("DROP TABLE t")
    with pytest.raises(OperatorError, match="does not exist"):
        source.chunk(schema, None, 10)
    assert source.tables() == []


def test_hostile_names(shop: Shop) -> None:
    table, schema, column = 'a"b.c; DROP TABLE x --', "sch\"ema'", "co'l\"umn %s {} ü"
    quoted = '"{}"."{}"'.format(*(name.replace('"', '""') for name in (schema, table)))
    key = '"' + column.replace('"', '""') + '"'
    quoted_schema = schema.replace('"', '""')
    shop.execute(f'CREATE SCHEMA "{quoted_schema}"')
    shop.execute(f"CREATE TABLE {quoted} ({key} text PRIMARY KEY, v int)")
    shop.execute(f"INSERT INTO {quoted} VALUES ('\\'';', 1)")
    shop.execute(f"INSERT INTO {quoted} VALUES ('z', 1)")
    source = shop.start("*.*")
    (found,) = source.tables()
    assert found.key == (column,)
    shop.execute(f"UPDATE {quoted} SET v = 2")
    assert {e.key: e.row for e in shop.read()} == dict(shop.snapshot(found.table, 1))


def test_a_large_transaction_comes_in_several_windows(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n text)")
    shop.start()
    shop.execute("INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 20000) g")
    windows = shop.windows(limit=1500)
    inside = [window for window in windows if not window.complete]
    assert len(inside) >= 12
    assert all(len(window.events) <= 1501 for window in windows)
    assert len({window.position for window in inside}) == 1, "an unfinished transaction is read again from its start"
    versions = [event.version for window in windows for event in window.events]
    assert versions == sorted(set(versions))
    assert len(versions) == 20_000


def test_windows_of_long_rows_are_bounded_by_bytes(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY, n text)")
    shop.start()
    shop.execute("INSERT INTO t SELECT g, repeat('x', 1000000) FROM generate_series(1, 60) g")
    sizes = [sum(len(event.row or b"") for event in window.events) for window in shop.windows()]
    assert sum(sizes) > 60_000_000
    assert max(sizes) < 20_000_000
    chunks = shop.chunks("public.t", 1000)
    assert max(sum(len(row) for _, row in chunk.rows) for chunk in chunks) < 20_000_000
    assert [key for chunk in chunks for key, _ in chunk.rows] == [b"[%d]" % n for n in range(1, 61)]


def test_a_cut_connection_inside_a_transaction(shop: Shop) -> None:
    """The rest comes over a new connection, with the versions it would have had."""
    shop.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source = shop.start()
    before = shop.position
    shop.execute("INSERT INTO t SELECT generate_series(1, 5000)", "UPDATE t SET id = -id WHERE id < 100")
    events = []
    while True:
        try:
            window = source.changes(shop.position, 700, 1.0)
        except TransientError:
            continue
        events += window.events
        shop.position = window.position
        if window.complete and window.events:
            break
        shop.end_sessions()
    assert len(events) == 5000 + 2 * 99
    source.start(before, 1)
    again = source.changes(before, 10_000, 5.0)
    assert [event.version[4:] for event in again.events] == [event.version[4:] for event in events]
    assert [event.row for event in again.events] == [event.row for event in events]


def test_an_idle_table_does_not_pin_the_log(shop: Shop) -> None:
    shop.execute("CREATE TABLE idle (id int PRIMARY KEY)", "CREATE TABLE other (id int PRIMARY KEY)")
    source = shop.start("idle")
    confirmed = source.health()["confirmed_lsn"]
    shop.execute("INSERT INTO other SELECT generate_series(1, 1000)")
    windows = shop.windows()
    assert not any(window.events for window in windows)
    source.confirm(shop.position)
    source.close()
    assert source.health()["confirmed_lsn"] > confirmed


def test_only_what_was_confirmed_is_given_up(shop: Shop) -> None:
    shop.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source = shop.start()
    shop.execute("INSERT INTO t VALUES (1)")
    shop.read()
    first = shop.position
    source.confirm(first)
    shop.execute("INSERT INTO t VALUES (2)")
    shop.read()
    source.close()
    source.start(first, 1)
    assert [event.key for event in source.changes(first, 10, 5.0).events] == [b"[2]"]


def test_rows_that_are_not_text_in_any_encoding_are_set_aside(server: PostgresServer) -> None:
    """In an SQL_ASCII database the server checks nothing."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with server.connect() as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'".encode()
        )
    try:
        with open_shop(server, name) as shop:
            shop.execute("CREATE TABLE t (k text PRIMARY KEY, v text)")
            shop.start()
            shop.execute(
                r"INSERT INTO t VALUES ('good', 'x'), ('half', E'\xff'), (E'bad\xfe', 'x'), ('last', 'ü')",
            )
            windows = shop.windows()
            rejected = [each for window in windows for each in window.rejected]
            assert [event.key for window in windows for event in window.events] == [b'["good"]', b'["last"]']
            assert [each.reason for each in rejected] == [
                "column v holds bytes that are not UTF-8",
                "column k holds bytes that are not UTF-8",
            ]
            assert rejected[0].key == '["half"]'
            chunks = shop.chunks("public.t", 1)
            assert sorted(key for chunk in chunks for key, _ in chunk.rows) == [b'["good"]', b'["last"]']
            assert {each.reason for chunk in chunks for each in chunk.rejected} == {each.reason for each in rejected}
    finally:
        server.drop_database(name)
