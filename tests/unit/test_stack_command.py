"""`upwell stack`: from a configuration to files, and what it costs."""

import dataclasses
import re
import sqlite3
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.fake_aws import fake_service, ok, refused
from tests.stack_plans import CONTROL, JWT, PACKAGE, items, stream, stream_to_items, templates
from upwell.app import build_api, cli
from upwell.app.secret_store import from_secrets_manager
from upwell.app.stack import Stack, stack
from upwell.app.stacks import guide, package, publisher_access, relational, serverless
from upwell.app.stacks.blueprint import Blueprint, Index, index_key
from upwell.app.stacks.cloudformation import policy_bytes
from upwell.app.stacks.estimate import HOURS, SECONDS, Load, Prices, estimate, price_list
from upwell.config import load
from upwell.errors import ConfigError, UpwellError
from upwell.items import KeyAttribute
from upwell.model import Column, Kind, TableSchema

CONFIG = """
pipeline: shop
source: {url: "sqlite:///shop.db"}
destination:
  dynamodb: {table_prefix: shop-, region: eu-central-1}
  proxy: http://user:${PROXY_PASSWORD}@proxy:3128
masking: {key: "${MASKING_KEY}"}
api:
  cursor_key: ${UPWELL_CURSOR_KEY}
  authorization:
    jwt: {issuer: "https://id.example", audience: shop, jwks_url: "https://id.example/keys"}
  tables:
    users:
      table: users
      columns: [id, full_name, country]
      indexes: {by-country: {partition_key: country, sort_key: full_name}}
tables:
  users: {rename: {name: full_name}, mask: {email: hmac}}
  lines: {dynamodb: {table: shop, partition_key: "ORDER#{order_id}", sort_key: "LINE#{line_no:05}"}}
"""
SECRETS = {"MASKING_KEY": "m" * 32, "PROXY_PASSWORD": "p"}
STREAM = """
pipeline: shop
destination: {kinesis: {stream: legacy, region: eu-central-1, control_table: shop-control}}
subscriber: {target: "postgresql://app:${AURORA_PASSWORD}@elsewhere/app"}
api:
  database: postgresql://app:${AURORA_PASSWORD}@elsewhere/app
  cursor_key: ${UPWELL_CURSOR_KEY}
  authorization: {api_keys: {web: {sha256: "%s"}}}
  tables: {users: {table: dbo.users, columns: [id, no]}}
tables: {dbo.users: {}}
""" % ("0" * 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, country TEXT, email TEXT)")
        database.execute("CREATE TABLE lines (order_id INT, line_no INT, sku TEXT, PRIMARY KEY (order_id, line_no))")
    database.close()
    (tmp_path / "upwell-api.json").write_text("{}")
    (tmp_path / "rds-ca.pem").write_text("authorities")
    return tmp_path


def configured(folder: Path, text: str = CONFIG) -> Path:
    (folder / "upwell.yaml").write_text(text, encoding="utf-8")
    return folder / "upwell.yaml"


def made(folder: Path, kind: guide.Kind, text: str = CONFIG, environ: Mapping[str, str] = SECRETS) -> Stack:
    return stack(kind, configured(folder, text), environ)


# --- from the configuration ---------------------------------------------------------------------------------------


def test_tables_indexes_and_keys_come_from_the_source(folder: Path) -> None:
    plan = made(folder, "serverless").plan
    tables = {table.name: table for table in plan.tables}
    assert tables.keys() == {"shop", "shop-users"}
    assert tables["shop"].leads == ("ORDER#",)
    assert tables["shop"].key == (KeyAttribute("pk", "S"), KeyAttribute("sk", "S"))
    assert tables["shop-users"].key == (KeyAttribute("id", "N"),)
    assert tables["shop-users"].exposed
    by_country = Index("by-country", (KeyAttribute("country", "S"), KeyAttribute("full_name", "S")))
    assert tables["shop-users"].indexes == (by_country,)
    assert plan.heartbeat is not None
    assert plan.heartbeat.name == "shop-upwell_heartbeat"
    assert plan.heartbeat.key == (KeyAttribute("pipeline", "S"), KeyAttribute("beat", "N"))


def test_without_an_api_there_are_only_tables(folder: Path) -> None:
    text = re.sub(r"api:\n(  .*\n)+", "", CONFIG)
    made_without = made(folder, "serverless", text)
    assert made_without.plan.heartbeat is None
    assert not made_without.has_code
    assert {each["Type"] for each in made_without.template()["Resources"].values()} == {"AWS::DynamoDB::Table"}


def test_a_column_that_no_index_takes_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no such column") as refusal:
        made(folder, "serverless", CONFIG.replace("partition_key: country", "partition_key: name"))
    assert refusal.value.code == "UW-CS-001"
    columns = Column("id", "int", Kind.INT), Column("paid", "boolean", Kind.BOOL)
    with pytest.raises(ConfigError, match="BOOL"):
        index_key(TableSchema("public.users", columns, ("id",), "postgresql"), "paid")


def test_a_source_that_publishes_nothing_is_no_stack_without_tables(folder: Path) -> None:
    nothing = re.sub(r"\ntables:\n(  .*\n)+", '\ntables: {"o*": {}}\n', CONFIG)
    for text in (nothing, re.sub(r"api:\n(  .*\n)+", "", nothing), CONFIG.replace("table: users", "table: absent")):
        with pytest.raises(ConfigError, match="does not publish") as refusal:
            made(folder, "serverless", text)
        assert refusal.value.code == "UW-CS-007"


def test_more_tables_than_a_policy_can_name_are_refused_here_and_not_by_aws(folder: Path) -> None:
    with sqlite3.connect(folder / "shop.db") as database:
        for number in range(250):
            database.execute(f"CREATE TABLE table_with_a_rather_long_name_{number} (id INTEGER PRIMARY KEY)")
    database.close()
    many = made(folder, "publisher-access", CONFIG + '  "*": {}\n')
    with pytest.raises(ConfigError, match="IAM takes 10,240") as refusal:
        many.template()
    assert refusal.value.code == "UW-CS-008"
    few = dataclasses.replace(many, plan=dataclasses.replace(many.plan, tables=many.plan.tables[:80]))
    (role,) = (each for each in few.template()["Resources"].values() if each["Type"] == "AWS::IAM::Role")
    assert 5_000 < policy_bytes(role["Properties"]["Policies"]) < 10_240


def test_the_wrong_stack_for_a_destination_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="kinesis"):
        made(folder, "relational")
    with pytest.raises(ConfigError, match="dynamodb"):
        made(folder, "serverless", STREAM)
    iam = re.sub(r"authorization:.*", "authorization: {iam: {tenants: {'arn:aws:iam::1:role/x': a}}}", STREAM)
    with pytest.raises(ConfigError, match="API Gateway") as refusal:
        made(folder, "relational", iam)
    assert refusal.value.code == "UW-CS-006"


def test_the_clouds_secrets_need_not_be_here(folder: Path) -> None:
    """The cursor key and the database's password are the cloud's; the source's secrets are this machine's."""
    assert made(folder, "relational", STREAM, {}).plan.control is not None
    with pytest.raises(ConfigError, match="MASKING_KEY"):
        made(folder, "serverless", CONFIG, {"PROXY_PASSWORD": "p"})


# --- what goes along ----------------------------------------------------------------------------------------------


def test_nothing_of_the_source_and_no_secret_goes_along(folder: Path) -> None:
    beside = made(folder, "serverless").beside_the_code()
    assert beside.keys() == {"upwell.yaml", "upwell-api.json"}
    text = beside["upwell.yaml"].decode()
    told = yaml.safe_load(text)
    assert told.keys() == {"pipeline", "destination", "api", "tables"}
    assert told["destination"] == {"dynamodb": {"table_prefix": "shop-", "region": "eu-central-1"}}
    assert told["api"]["cursor_key"] == "${secretsmanager:upwell/shop/cursor-key}"
    assert told["api"]["schema"] == "upwell-api.json"
    assert not [secret for secret in ("sqlite", "MASKING", "PROXY", "m" * 32) if secret in text]


def test_the_subscriber_is_told_nothing_of_the_api(folder: Path) -> None:
    beside = made(folder, "relational", STREAM, {}).beside_the_code()
    assert beside.keys() == {"upwell.yaml", "subscriber.yaml", "upwell-api.json", "rds-ca.pem"}
    for file, api in (("upwell.yaml", True), ("subscriber.yaml", False)):
        told = yaml.safe_load(beside[file])
        assert ("api" in told) == api
        assert told["subscriber"]["iam_auth"] is True
        assert "sslmode=verify-full" in told["subscriber"]["target"]
        assert b"elsewhere" not in beside[file]
        assert b"[id, no]" in beside[file] or not api  # `no` is a column, and stays one
    fleet = {"UPWELL_DATABASE_USER": "r", "UPWELL_DATABASE_HOST": "ro.example", "UPWELL_CODE": "/opt/upwell"}
    (folder / "upwell.yaml").write_bytes(beside["upwell.yaml"])
    there = load(folder / "upwell.yaml", fleet, secret=lambda name: f"{name}-{'x' * 32}")
    assert there.api().cursor_key.get_secret_value().startswith("upwell/shop/cursor-key-")
    assert build_api.store(there) == "postgresql"
    role = {"UPWELL_DATABASE_USER": "u", "UPWELL_DATABASE_HOST": "h.example", "UPWELL_CODE": "/var/task"}
    (folder / "subscriber.yaml").write_bytes(beside["subscriber.yaml"])
    target = load(folder / "subscriber.yaml", role).subscriber().target.get_secret_value()
    assert target == "postgresql://u@h.example:5432/upwell?sslmode=verify-full&sslrootcert=/var/task/rds-ca.pem"


def test_by_a_stream_to_tables(folder: Path) -> None:
    """The subscriber is a function too, and what it keeps beside the rows has tables."""
    kinesis = "kinesis: {stream: legacy, region: eu-central-1}"
    text = CONFIG.replace("dynamodb: {table_prefix: shop-, region: eu-central-1}", kinesis)
    both = made(folder, "serverless", text + "subscriber: {target: 'dynamodb://shop-', create_tables: false}\n")
    assert both.plan.stream == "legacy"
    assert {table.name for table in both.plan.written} == {"shop", "shop-users", "shop-upwell_heartbeat"}
    assert {table.name for table in both.plan.kept} == {"shop-upwell_lanes", "shop-upwell_dead_letters"}
    beside = both.beside_the_code()
    for file, api in (("upwell.yaml", True), ("subscriber.yaml", False)):
        told = yaml.safe_load(beside[file])
        assert told["subscriber"] == {"target": "dynamodb://shop-", "create_tables": False}
        assert ("api" in told) == api
    with pytest.raises(ConfigError, match="dynamodb"):
        made(folder, "serverless", text + "subscriber: {target: 'postgresql://app@elsewhere/app'}\n")


def test_a_secret_of_ones_own_is_kept(folder: Path) -> None:
    text = CONFIG.replace("${UPWELL_CURSOR_KEY}", "${secretsmanager:mine}")
    told = yaml.safe_load(made(folder, "serverless", text).beside_the_code()["upwell.yaml"])
    assert told["api"]["cursor_key"] == "${secretsmanager:mine}"


@pytest.mark.parametrize(("file", "command"), [("rds-ca.pem", "curl"), ("upwell-api.json", "upwell api --learn")])
def test_a_file_that_is_missing_is_named_with_the_command_that_makes_it(folder: Path, file: str, command: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ConfigError) as refusal:
        made(folder, "relational", STREAM, {}).beside_the_code()
    assert refusal.value.code == "UW-CS-004"
    assert file in refusal.value.message
    assert refusal.value.remedy.startswith(command)


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "_dependencies", lambda _: iter([("orjson/__init__.py", b"")]))


def test_the_same_input_is_the_same_file(folder: Path, no_packages: None) -> None:
    first, second = (made(folder, "serverless").write(folder / name) for name in ("one", "two"))
    names = [path.name for path in first]
    assert names[:2] == ["template.yaml", "README.md"]
    assert re.fullmatch(r"function-[0-9a-f]{16}\.zip", names[2])
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert names[2] in first[0].read_text()
    assert names[2] in first[1].read_text()
    with zipfile.ZipFile(first[2]) as archive:
        inside = set(archive.namelist())
    assert {
        "upwell/cloud/read_api_lambda.py",
        "upwell/app/catalogue.yaml",
        "upwell.yaml",
        "orjson/__init__.py",
    } <= inside
    assert not [path for path in inside if "__pycache__" in path]
    assert [path for path in inside if path.endswith(".dist-info/METADATA")]  # the program knows its version by it
    changed = made(folder, "serverless", CONFIG.replace("shop-", "store-")).write(folder / "three")
    assert changed[2].name != names[2]


def test_a_package_that_can_not_be_fetched_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = subprocess.CompletedProcess(
        (), 1, "", "WARNING: Retrying (Retry(total=4)) after connection broken\nERROR: no"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    with pytest.raises(UpwellError, match="index can't be reached") as refusal:
        made(folder, "serverless").write(folder / "cloud")
    assert refusal.value.code == "UW-CS-003"
    assert not (folder / "cloud").exists()


def test_the_lock_is_the_functions() -> None:
    lock = Path(package.__file__).with_name(package.REQUIREMENTS).read_text()
    for name in ("botocore", "orjson", "psycopg-binary", "starlette", "mangum", "pyjwt"):
        assert re.search(rf"^{name}==", lock, re.MULTILINE)
    assert "--hash=sha256:" in lock
    assert "http" not in lock


# --- the guide ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(templates()))
def test_the_guide_gives_what_must_be_given(name: str) -> None:
    template = templates()[name]
    kind: Any = next(each for each in ("serverless", "relational", "publisher-access") if name.startswith(each[:6]))
    plan = items(JWT) if kind != "relational" else stream(JWT, control=CONTROL)
    if name == "serverless-stream":
        plan = stream_to_items(JWT, control=CONTROL)
    code = None if kind == "publisher-access" else PACKAGE
    text = guide.readme(kind, plan, template, code, "eu-central-1")
    for parameter, about in template.get("Parameters", {}).items():
        assert f"`{parameter}`" in text
        if "Default" not in about:
            assert f'{parameter}="$' in text
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert not done.stderr, block
    assert "delete-stack" in text
    assert "{" not in re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    if kind != "publisher-access":
        for table in (*plan.written, *plan.kept):
            assert f"delete-table --table-name {table.name}" in text


def test_the_guides_certificates_are_what_roles_anywhere_asks_for(tmp_path: Path) -> None:
    text = guide.readme("publisher-access", stream(), publisher_access.template(stream()), None, None)
    for block in re.findall(r"```sh\n(openssl .*?)```", text, re.DOTALL):
        subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, capture_output=True, check=True)
    authority, own = (
        x509.load_pem_x509_certificate((tmp_path / f"{name}.pem").read_bytes()) for name in ("ca", "publisher")
    )
    own.verify_directly_issued_by(authority)
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert own.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    (common_name,) = own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common_name.value == publisher_access.template(stream())["Parameters"]["CommonName"]["Default"]
    assert (tmp_path / "publisher.key").stat().st_mode & 0o777 == 0o400


# --- what it costs ------------------------------------------------------------------------------------------------

ONE = Prices("r", "2026-01-01", "USD", dict.fromkeys(price_list().prices, 1.0))


def lines(plan: Blueprint, template: dict[str, Any], load: Load, prices: Prices = ONE) -> dict[str, float]:
    return {line.what: line.amount for line in estimate(plan, template, load, prices)}


def test_what_is_written_and_stored_counts_once_more_for_each_index() -> None:
    plan = items()  # three tables, one of them with an index
    load = Load(events=2, row_bytes=500, reads=0, gigabytes=3)
    found = lines(plan, serverless.template(plan, PACKAGE), load)
    copies = 1 + 1 / 3
    assert found == {
        "DynamoDB: writes": pytest.approx(2 * SECONDS * copies / 1e6),
        "DynamoDB: storage": pytest.approx(3 * copies),
        "DynamoDB: restorable to any second": pytest.approx(3 * copies),
    }
    larger = lines(plan, serverless.template(plan, PACKAGE), dataclasses.replace(load, row_bytes=1500))
    assert larger["DynamoDB: writes"] == pytest.approx(2 * found["DynamoDB: writes"])  # units of 1 KB


def test_a_month_of_reads() -> None:
    plan = items(JWT)
    found = lines(plan, serverless.template(plan, PACKAGE), Load(events=0, row_bytes=5000, reads=1, gigabytes=0))
    assert found["API Gateway"] == pytest.approx(2.628)
    assert found["DynamoDB: reads"] == pytest.approx(2 * 2.628)  # units of 4 KB
    assert found["Read function: time"] == pytest.approx(SECONDS * 0.05 / 2)  # half a GB
    assert found["Answers, to the Internet"] == pytest.approx(SECONDS * 5000 / 1e9)


def test_what_is_there_costs_also_when_nothing_happens() -> None:
    plan = stream(JWT, control=CONTROL)
    template = relational.template(plan, PACKAGE)
    found = lines(plan, template, Load(events=0, row_bytes=500, reads=0, gigabytes=0))
    assert found["Kinesis: the stream"] == HOURS
    assert found["Aurora: capacity, at the least"] == HOURS  # two instances of half a unit
    assert found["NAT gateways"] == 2 * HOURS
    assert found["VPC endpoints"] == 2 * 2 * HOURS  # two, in two zones
    assert found["Public addresses"] == 4 * HOURS
    assert found["KMS keys"] == found["Dashboard"] == 1
    idle = lines(items(), serverless.template(items(), PACKAGE), Load(0, 500, 0, 0))
    assert idle == {}


def test_the_stream_is_paid_by_the_gigabyte() -> None:
    found = lines(
        stream(), relational.template(stream(), PACKAGE), Load(events=100, row_bytes=940, reads=0, gigabytes=0)
    )
    assert found["Kinesis: in"] == found["Kinesis: out"] == pytest.approx(100 * 1000 * SECONDS / 1e9)
    assert found["Kinesis: kept for seven days"] == pytest.approx(100 * 1000 * 6 * 86400 / 1e9)


def test_access_costs_nothing() -> None:
    plan = stream()
    assert lines(plan, publisher_access.template(plan), Load()) == {}


def test_the_estimate_says_what_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = configured(folder, STREAM)
    assert cli.run(["stack", "relational", "--estimate", "--events", "5", "-c", str(file)]) == 0
    said = capsys.readouterr().out
    assert "An estimate, not an offer" in said
    assert price_list().date in said
    assert price_list().region in said
    amounts = [float(line.split()[-1].replace(",", "")) for line in said.partition("\n\n")[0].splitlines()[1:]]
    assert sum(amounts[:-1]) == pytest.approx(amounts[-1], abs=0.01 * len(amounts))


def test_without_a_folder_the_template_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = configured(folder, STREAM)
    assert cli.run(["stack", "publisher-access", "-c", str(file)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["Resources"]["Role"]["Type"] == "AWS::IAM::Role"


# --- secrets ------------------------------------------------------------------------------------------------------


def test_a_secret_is_fetched_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [ok({"SecretString": "s3cret"}), ok({"SecretBinary": "AA=="}), refused("ResourceNotFoundException")]
    with fake_service(lambda _: answers.pop(0)) as fake:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", fake.url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        assert from_secrets_manager("upwell/shop/cursor-key") == "s3cret"
        assert (fake.requests[0].action, fake.requests[0].payload) == (
            "GetSecretValue",
            {"SecretId": "upwell/shop/cursor-key"},
        )
        for code in ("UW-CF-009", "UW-CF-025"):
            with pytest.raises(ConfigError) as refusal:
                from_secrets_manager("mine")
            assert refusal.value.code == code
            assert "mine" in refusal.value.message
