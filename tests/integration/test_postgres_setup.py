"""What the command line does to and says of a PostgreSQL source: track, inspect, grants, doctor's findings."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import trustme

from lab import find
from lab.parts import PostgresCluster, PostgresServer
from tests.integration.postgres_shop import EPOCH, Shop, open_shop
from upwell.clock import SystemClock
from upwell.errors import ConfigError, OperatorError, UpwellError
from upwell.model import Finding, TableName, TableSelection
from upwell.sources.postgres import PostgresSource
from upwell.sources.postgres_catalog import Catalog
from upwell.sources.postgres_setup import findings, grants_sql, inspect, track, track_sql, untrack, untrack_sql


@pytest.fixture
def shop(database: str, postgres_cluster: PostgresServer) -> Iterator[Shop]:
    with open_shop(postgres_cluster, database) as shop:
        shop.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        yield shop


def with_user(url: str, user: str, password: str = "") -> str:
    parts = urlsplit(url)
    netloc = f"{user}:{password or parts.password}@{parts.hostname}:{parts.port}"
    return urlunsplit(parts._replace(netloc=netloc))


def doctor(shop: Shop, *patterns: str, url: str = "") -> list[Finding]:
    return findings(url or shop.url, tables=shop.select(*patterns or ("t",)), slot=shop.slot, publication="upwell")


def bad(found: list[Finding]) -> dict[str, Finding]:
    return {finding.code: finding for finding in found if finding.level != "pass"}


# --- track


def test_track_does_what_its_dry_run_says_and_only_once(shop: Shop) -> None:
    tables = shop.select("*")
    said = track_sql(shop.url, tables=tables, slot=shop.slot, publication="up'\"well")
    assert said == [
        'CREATE PUBLICATION "up\'""well" FOR TABLE ONLY "public"."t" WITH (publish_via_partition_root = true,'
        " publish = 'insert, update, delete, truncate');",
        f"SELECT pg_create_logical_replication_slot('{shop.slot}', 'pgoutput');",
    ]
    assert shop.value("SELECT count(*) FROM pg_publication") == 0
    assert track(shop.url, tables=tables, slot=shop.slot, publication="up'\"well") == said
    assert track(shop.url, tables=tables, slot=shop.slot, publication="up'\"well") == []


def test_track_adds_what_is_missing(shop: Shop) -> None:
    shop.execute("CREATE PUBLICATION upwell WITH (publish = 'insert')")
    shop.execute("CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    assert shop.track() == [
        'ALTER PUBLICATION "upwell" SET (publish_via_partition_root = true,'
        " publish = 'insert, update, delete, truncate');",
        'ALTER PUBLICATION "upwell" ADD TABLE "public"."p";',
        'ALTER PUBLICATION "upwell" ADD TABLE ONLY "public"."t";',
        f"SELECT pg_create_logical_replication_slot('{shop.slot}', 'pgoutput');",
    ]
    assert shop.track() == []


def test_track_by_somebody_who_may_not(shop: Shop, postgres_cluster: PostgresServer) -> None:
    with role(shop, "clerk_of_nothing", "LOGIN REPLICATION") as url, pytest.raises(OperatorError) as refused:
        track(url, tables=shop.select("t"), slot=shop.slot, publication="upwell")
    assert "--dry-run" in refused.value.remedy


def test_track_of_a_table_that_is_not_there(shop: Shop) -> None:
    with pytest.raises(OperatorError, match=r"no table public\.gone"):
        shop.track("public.gone")


def undo(shop: Shop, url: str = "") -> list[str]:
    return untrack(url or shop.url, slot=shop.slot, publication="upwell")


def left_over(shop: Shop) -> tuple[int, int]:
    """(slots, publications)"""
    slots = shop.value(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{shop.slot}'")
    return slots, shop.value("SELECT count(*) FROM pg_publication")


def test_undo_removes_slot_and_publication(shop: Shop) -> None:
    shop.track("t")
    said = untrack_sql(shop.url, slot=shop.slot, publication="upwell")
    assert left_over(shop) == (1, 1)
    assert undo(shop) == said == [f"SELECT pg_drop_replication_slot('{shop.slot}');", 'DROP PUBLICATION "upwell";']
    assert left_over(shop) == (0, 0)
    assert undo(shop) == []


def test_undo_leaves_a_slot_that_is_read(shop: Shop) -> None:
    source = shop.start("t")
    for attempt in (undo, lambda shop: untrack_sql(shop.url, slot=shop.slot, publication="upwell")):
        with pytest.raises(OperatorError, match="is being read") as refused:
            attempt(shop)
        assert (refused.value.code, "publisher" in refused.value.remedy) == ("UW-PG-039", True)
    assert left_over(shop) == (1, 1)
    source.close()


def test_undo_leaves_a_slot_that_is_somebody_elses(shop: Shop) -> None:
    shop.execute("CREATE PUBLICATION upwell")
    shop.value(f"SELECT pg_create_logical_replication_slot('{shop.slot}', 'test_decoding')")
    with pytest.raises(OperatorError, match="belongs to something else"):
        undo(shop)
    assert left_over(shop) == (1, 1)


def test_undo_by_somebody_who_may_not(shop: Shop) -> None:
    shop.track("t")
    with role(shop, "clerk_of_less", "LOGIN REPLICATION") as url, pytest.raises(OperatorError) as refused:
        undo(shop, url)
    assert "upwell track --undo --dry-run" in refused.value.remedy


# --- inspect and grants


def test_inspect_tells_every_table_with_its_problem(shop: Shop) -> None:
    shop.execute(
        "CREATE SCHEMA sales", "CREATE TABLE sales.keyless (a int NOT NULL UNIQUE)", "CREATE VIEW v AS TABLE t"
    )
    shop.execute("CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 10)")
    shop.execute("ANALYZE t")
    found = {str(table.name): table for table in inspect(shop.url)}
    assert list(found) == ["public.fast", "public.t", "sales.keyless"]
    schema = found["public.t"].schema
    assert schema is not None
    assert schema.key == ("id",)
    assert found["public.t"].rows == 10
    assert "SET LOGGED" in found["public.fast"].problem
    assert found["sales.keyless"].problem.endswith(
        'ALTER TABLE "sales"."keyless" REPLICA IDENTITY USING INDEX "keyless_a_key";'
    )
    shop.execute('ALTER TABLE "sales"."keyless" REPLICA IDENTITY USING INDEX "keyless_a_key";')
    assert next(table for table in inspect(shop.url) if table.name.schema == "sales").problem == ""


def test_the_grants_are_enough_and_no_more(shop: Shop) -> None:
    shop.execute("CREATE TABLE secret (id int PRIMARY KEY)")
    name = f"reader_{shop.database}"
    try:
        for statement in grants_sql([TableName("", "t")], role=name, database=shop.database):
            shop.connection.execute(statement.split(" --")[0].encode())
        shop.execute(f"ALTER ROLE {name} PASSWORD 'it''s'")
        url = with_user(shop.url, name, "it's")
        shop.track("t")
        assert bad(doctor(shop, url=url)).keys() <= {"UW-PG-038"}
        source = PostgresSource(url, tables=shop.select("t"), slot=shop.slot, publication="upwell", clock=SystemClock())
        shop.sources.append(source)
        shop.position, _ = source.start(None, EPOCH)
        shop.execute("INSERT INTO t VALUES (1, 'x')")
        assert [event.row for event in shop.read()] == [b'[1,"x"]']
        assert shop.snapshot("public.t") == [(b"[1]", b'[1,"x"]')]
        source.close()
        with psycopg.connect(url) as reader, pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("SELECT * FROM secret")
    finally:
        shop.execute(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


# --- doctor


def test_a_good_source_has_no_fault(shop: Shop) -> None:
    shop.track("t")
    found = doctor(shop)
    assert [finding for finding in found if finding.level == "fail"] == []
    assert bad(found).keys() == {"UW-PG-038"}, "max_slot_wal_keep_size is not set"
    assert all(finding.code and finding.sentence.endswith(".") for finding in found)


def test_doctor_tells_all_faults_not_the_first(shop: Shop) -> None:
    shop.execute(
        "CREATE TABLE keyless (a int)",
        "CREATE TABLE nothing (a int PRIMARY KEY)",
        "ALTER TABLE nothing REPLICA IDENTITY NOTHING",
        "CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)",
        "CREATE TABLE made (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)",
        "CREATE PUBLICATION upwell FOR TABLE made, keyless, nothing WITH (publish = 'insert')",
    )
    found = doctor(shop, "*", "gone")
    assert bad(found).keys() >= {
        "UW-PG-031",  # t is not published
        "UW-PG-032",  # updates are not published
        "UW-PG-034",  # no slot
        "UW-PG-038",  # no limit to what the slot retains
        "UW-PG-040",  # keyless
        "UW-PG-041",  # nothing
        "UW-PG-044",  # gone
        "UW-PG-046",  # fast
        "UW-PG-048",  # made
    }
    assert all(finding.remedy for finding in bad(found).values())


def test_partitions_are_warned_of(shop: Shop) -> None:
    shop.execute("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    shop.track("parts")
    assert bad(doctor(shop, "parts"))["UW-PG-049"].remedy.endswith("upwell resync public.parts")


def test_large_values_are_advised_on(shop: Shop) -> None:
    shop.track("t")
    (advice,) = [finding for finding in doctor(shop) if finding.code == "UW-PG-047"]
    assert "public.t: large values of v" in advice.sentence
    shop.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    assert not [finding for finding in doctor(shop) if finding.code == "UW-PG-047"]


def test_a_role_without_rights(shop: Shop) -> None:
    shop.track("t")
    with role(shop, "clerk", "LOGIN") as url:
        refused = [finding for finding in doctor(shop, url=url) if finding.code == "UW-PG-004"]
    assert [finding.level for finding in refused] == ["fail", "fail"]
    assert "REPLICATION" in refused[0].remedy
    assert 'GRANT SELECT ON TABLE "public"."t"' in refused[1].remedy


def test_rows_that_the_publication_leaves_out(shop: Shop) -> None:
    shop.execute(
        "CREATE PUBLICATION upwell FOR TABLE t WHERE (id > 5) WITH (publish_via_partition_root = true)",
    )
    assert "leaves out rows" in bad(doctor(shop))["UW-PG-032"].sentence


def test_all_slots_taken() -> None:
    with PostgresCluster({"max_replication_slots": 1}) as cluster:
        cluster.create_database("shop")
        with open_shop(cluster, "shop") as shop:
            shop.execute("CREATE TABLE t (id int PRIMARY KEY)")
            shop.value("SELECT pg_create_physical_replication_slot('other')")
            assert bad(doctor(shop))["UW-PG-033"].level == "fail"
            with pytest.raises(OperatorError, match="no free replication slot") as refused:
                shop.track("t")
            assert refused.value.code == "UW-PG-033"


def test_a_server_without_logical_replication() -> None:
    with PostgresCluster({"wal_level": "replica"}) as cluster:
        cluster.create_database("shop")
        with open_shop(cluster, "shop") as shop:
            shop.execute("CREATE TABLE t (id int PRIMARY KEY)", "CREATE PUBLICATION upwell FOR TABLE t")
            assert "ALTER SYSTEM SET wal_level" in bad(doctor(shop))["UW-PG-030"].remedy
            first, *_ = track_sql(shop.url, tables=shop.select(), slot="s", publication="upwell")
            assert first.startswith("ALTER SYSTEM SET wal_level = logical;")
            with pytest.raises(OperatorError, match="wal_level is replica"):
                shop.track("t")
            with pytest.raises(OperatorError, match="wal_level is replica"):
                shop.make("t").start(None, EPOCH)


# --- connections that can't be made


def why_not(url: str) -> Finding:
    found = findings(url, tables=[], slot="s", publication="p")
    (finding,) = found
    assert finding.level == "fail"
    with pytest.raises(UpwellError) as refused:
        inspect(url)
    assert refused.value.code == finding.code
    return finding


def test_wrong_password_and_wrong_user(shop: Shop) -> None:
    for url in (with_user(shop.url, "upwell", "hunter2"), with_user(shop.url, "nobody_here", "hunter2")):
        finding = why_not(url)
        assert finding.code == "UW-PG-002"
        assert "hunter2" not in finding.sentence + finding.remedy


def test_unknown_database(shop: Shop) -> None:
    assert why_not(shop.url + "_not").code == "UW-PG-003"


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        finding = why_not(f"postgresql://u:p@127.0.0.1:{taken.getsockname()[1]}/db")
    assert finding.code == "UW-PG-007"
    assert "127.0.0.1" in finding.sentence


def test_a_host_that_has_no_address() -> None:
    assert why_not("postgresql://u:p@no-such-host.invalid/db").code == "UW-PG-007"


def test_not_a_url() -> None:
    assert why_not("postgresql://u:p@:notaport:/db").code == "UW-PG-001"


def test_tls_that_is_not_trusted_and_tls_that_is_not_there(tmp_path: Path, shop: Shop) -> None:
    assert why_not(shop.url + "?sslmode=require").code == "UW-PG-006"
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    with PostgresCluster(bin_dir=find.system_postgres_bin()) as cluster:
        certificate.cert_chain_pems[0].write_to_path(cluster.data_dir / "server.crt")
        key = cluster.data_dir / "server.key"
        certificate.private_key_pem.write_to_path(key)
        with cluster.connect() as connection:
            owner = (cluster.data_dir / "PG_VERSION").stat()
            os.chown(key, owner.st_uid, owner.st_gid)
            key.chmod(0o600)
            connection.execute("ALTER SYSTEM SET ssl = on")
        cluster.restart()
        verify = cluster.url() + "?sslmode=verify-full&sslrootcert="
        assert inspect(f"{verify}{tmp_path / 'ca.pem'}") == []
        assert why_not(f"{verify}{tmp_path / 'stranger.pem'}").code == "UW-PG-005"
        assert why_not(f"{verify}{tmp_path / 'absent.pem'}").code == "UW-PG-005"
        tables = [TableSelection(TableName("", "t"))]
        with cluster.connect() as connection:
            connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
            url = f"{verify}{tmp_path / 'ca.pem'}"
            track(url, tables=tables, slot="s", publication="p")
            source = PostgresSource(url, tables=tables, slot="s", publication="p", clock=SystemClock())
            position, _ = source.start(None, EPOCH)
            connection.execute("INSERT INTO t SELECT generate_series(1, 20000)")
            events = 0
            while events < 20_000:
                window = source.changes(position, 1000, 5.0)
                position = window.position
                events += len(window.events)
            source.close()


# --- what start refuses


def test_start_names_what_is_missing(shop: Shop) -> None:
    with pytest.raises(OperatorError, match="no publication") as refused:
        shop.make("t").start(None, EPOCH)
    assert refused.value.remedy == "Run: upwell track"
    shop.execute("CREATE TABLE more (id int PRIMARY KEY)")
    shop.track("t")
    with pytest.raises(OperatorError, match=r"does not have public\.more"):
        shop.make("t", "more").start(None, EPOCH)
    shop.make("*").start(None, EPOCH)
    assert [schema.table for schema in shop.source.tables()] == ["public.t"]
    with pytest.raises(OperatorError, match=r"no table public\.gone"):
        shop.make("t", "public.gone").start(None, EPOCH)


def test_tables_that_came_later_stop_nobody(shop: Shop) -> None:
    """Somebody's scratch table may match a pattern, without a key even."""
    shop.track("*")
    shop.execute("CREATE TABLE scratch AS SELECT 1 AS a")
    source = shop.make("*")
    source.start(None, EPOCH)
    assert source.health()["untracked_tables"] == ["public.scratch"]
    assert bad(doctor(shop, "*"))["UW-PG-040"].level == "fail"


def test_a_column_that_is_not_there(shop: Shop) -> None:
    shop.track("t")
    with pytest.raises(ConfigError, match=r"public\.t has no column w\."):
        shop.make("t", exclude=("v", "w")).start(None, EPOCH)


def test_a_key_can_not_be_left_out(shop: Shop) -> None:
    shop.track("t")
    with pytest.raises(ConfigError, match=r"key of public\.t is id, .* leaves out id"):
        shop.make("t", exclude=("id",)).tables()


def test_partitions_before_they_could_be_published(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL 12 is not at hand: its number stands in."""
    shop.execute("CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    monkeypatch.setattr(Catalog, "server_version", 120022)
    (finding,) = [finding for finding in doctor(shop, "p") if finding.code == "UW-PG-045"]
    assert "Name its partitions" in finding.remedy


class role:  # noqa: N801 - used like a function
    """A role of the test's own, as a URL."""

    def __init__(self, shop: Shop, name: str, options: str) -> None:
        self._shop, self._name = shop, f"{name}_{shop.database}"
        shop.execute(f"CREATE ROLE {self._name} {options} PASSWORD 'x'")

    def __enter__(self) -> str:
        return with_user(self._shop.url, self._name, "x")

    def __exit__(self, *_: object) -> None:
        self._shop.execute(f"DROP OWNED BY {self._name}", f"DROP ROLE {self._name}")
