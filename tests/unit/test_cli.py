"""The command line: help, exit codes, what goes where; no mistake of a user ends in a traceback."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from upwell.app import build, cli, logs
from upwell.app.report import Rates
from upwell.app.status import _publisher
from upwell.config import load
from upwell.errors import ConfigError, OperatorError, TransientError

UPWELL = (sys.executable, "-m", "upwell")
DEADLINE_S = 30.0


def commands(
    group: click.Group = cli.upwell, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small shop in SQLite, to stand in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UPWELL_CONFIG", raising=False)
    with closing(sqlite3.connect("shop.db")) as shop:
        shop.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT, country TEXT, paid DECIMAL(10,2))")
        shop.execute("CREATE TABLE notes (text TEXT)")
        shop.executemany("INSERT INTO users VALUES (?, ?, 'DE', 1.5)", [(1, "a@example.com"), (2, "b@example.com")])
        shop.commit()
    return tmp_path


CONFIG = """\
pipeline: shop
source: {url: "sqlite:///shop.db"}
destination: {stdout: {}}
tables: {users: {}}
"""


class Done:
    """How a command ended, and what it said."""

    def __init__(self, code: int, captured: Any) -> None:
        self.code, self.out, self.err = code, captured.out, captured.err


@pytest.fixture
def upwell(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = cli.run(list(arguments))
        return Done(code, capsys.readouterr())

    return run


# --- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_helps(upwell: Any, path: tuple[str, ...]) -> None:
    done = upwell(*path, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: upwell {' '.join(path)} " in done.out
    assert all(len(line) <= 110 for line in done.out.splitlines())
    command = ALL[path]
    if not isinstance(command, click.Group):
        assert f"Example:  upwell {' '.join(path)}" in done.out
        assert "--config" in done.out
        assert "UPWELL_CONFIG" in done.out
        assert "--log-format" in done.out
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, f"{option.name} says nothing"


def test_the_commands_are_those_of_the_contract() -> None:
    top = {path[0] for path in ALL if len(path) == 1}
    assert top == {
        "demo", "init", "doctor", "track", "plan", "publish", "subscribe", "status", "resync", "verify",
        "dead-letters", "config", "explain", "stack", "api",
    }  # fmt: skip
    assert {path[1] for path in ALL if path[:1] == ("dead-letters",) and len(path) == 2} == {
        "list", "show", "replay", "drop",
    }  # fmt: skip


def test_help_and_version_need_no_driver_and_no_time() -> None:
    heavy = "psycopg", "botocore", "sqlglot", "pydantic", "rich.table", "upwell.aws"
    for arguments in (["--help"], ["publish", "--help"], ["--version"]):
        code = f"import sys; from upwell.app.cli import run; run({arguments}); "
        code += f"print([m for m in {heavy} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_version(upwell: Any) -> None:
    assert upwell("--version").out.startswith("upwell 0.")


# --- exit codes ---------------------------------------------------------------------------------------------------

# what is wrong: (arguments, configuration or None, exit code, what the message says)
BAD: dict[str, tuple[list[str], str | None, int, str]] = {
    "no command": ([], None, 2, "Usage"),
    "an unknown command": (["pubish"], None, 2, "No such command"),
    "an unknown option": (["publish", "--onc"], CONFIG, 2, "No such option"),
    "a missing argument": (["explain"], None, 2, "Missing argument"),
    "an argument too many": (["publish", "users"], CONFIG, 2, "unexpected extra argument"),
    "a bad log format": (["publish", "--log-format", "xml"], CONFIG, 2, "'text', 'json'"),
    "no configuration": (["publish"], None, 2, "UW-CF-001"),
    "another file that is not there": (["status", "-c", "gone.yaml"], CONFIG, 2, "gone.yaml"),
    "a folder as configuration": (["status", "-c", "."], CONFIG, 2, "UW-CF-001"),
    "a broken configuration": (["publish"], "a: [", 2, "UW-CF-002"),
    "a misspelt key": (["publish"], CONFIG + "tabels: {}", 2, "did you mean `tables`"),
    "no source": (["publish"], "pipeline: p\ndestination: {stdout: {}}", 2, "has no `source`"),
    "no destination": (["publish"], "pipeline: p\nsource: {url: 'sqlite:///shop.db'}\ntables: {users: {}}", 2,
                       "has no `destination`"),
    "no tables": (["publish"], CONFIG.replace("tables: {users: {}}", ""), 2, "names no tables"),
    "no target": (["subscribe"], CONFIG.replace("stdout: {}", "kinesis: {stream: s}"), 2, "has no `subscriber`"),
    "nothing to subscribe to": (["subscribe"], CONFIG, 2, "destination.kinesis"),
    "cloudevents to subscribe to": (["subscribe"], CONFIG.replace("stdout: {}", "kinesis: {stream: s, format: "
                                                                  "cloudevents}"), 2, "format: packed"),
    "a mask without a secret": (["publish"], CONFIG.replace("users: {}", "users: {mask: {email: hmac}}"), 2,
                                "UW-CF-021"),
    "a source that is not there": (["publish"], CONFIG.replace("shop.db", "gone.db"), 3, "UW-SL-001"),
    "a source that is no database": (["publish"], CONFIG.replace("shop.db", "upwell.yaml"), 3, "UW-SL-002"),
    "a table that is not there": (["publish"], CONFIG.replace("users", "usres"), 3, "UW-SL-006"),
    "a table without a key": (["publish"], CONFIG.replace("users", "notes"), 3, "UW-SL-004"),
    "a column that is not there": (["publish"], CONFIG.replace("{users: {}}", "{users: {where: 'age > 3'}}"), 2,
                                   "no column age"),
    "a source that is not tracked": (["publish", "--once"], CONFIG, 3, "upwell track"),
    "a folder without rights": (["publish", "--once"], CONFIG + "state: gone/state.db", 3, "UW-ST-004"),
    "a state file of something else": (["status"], CONFIG + "state: shop.db", 3, "UW-ST-005"),
    "a state file that is none": (["status"], CONFIG + "state: upwell.yaml", 3, "UW-ST-009"),
    "resync before a publisher ran": (["resync"], CONFIG, 2, "UW-CL-014"),
    "verify without rows to read": (["verify"], CONFIG, 2, "UW-CL-016"),
    "a dead letter that is not there": (["dead-letters", "show", "p-1"], CONFIG, 2, "UW-CL-005"),
    "a dead letter's id": (["dead-letters", "drop", "seven"], CONFIG, 2, "UW-CL-005"),
    "a dead letter of a side that is not here": (["dead-letters", "show", "s-1"], CONFIG, 2, "UW-CL-005"),
    "no dead letter": (["dead-letters", "replay"], CONFIG, 2, "Missing argument"),
    "no code": (["explain", "UW-XX-001"], None, 2, "UW-CL-004"),
    "init with no url": (["init"], None, 2, "Missing argument"),
    "init with a path": (["init", "shop.db"], None, 2, "UW-CL-003"),
    "init with a later scheme": (["init", "mysql://u:p@h/d"], None, 2, "UW-CL-003"),
    "init to nowhere": (["init", "sqlite:///shop.db", "--to", "s3://bucket"], None, 2, "UW-CL-003"),
    "init to nothing": (["init", "sqlite:///shop.db", "--to", "kinesis://"], None, 2, "UW-CL-003"),
    "init of what is not there": (["init", "sqlite:///gone.db"], None, 3, "UW-SL-001"),
    "init over a file": (["init", "sqlite:///shop.db"], CONFIG, 2, "UW-CL-002"),
    "init into a folder that is not there": (["init", "sqlite:///shop.db", "-c", "gone/upwell.yaml"], None, 2,
                                             "UW-CL-002"),
    "demo for ever": (["demo", "--for", "ever"], None, 2, "duration"),
    "demo of another database": (["demo", "--source", "postgresql://u:p@h/d"], None, 2, "mssql://"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_every_mistake_has_its_exit_code_and_a_sentence(folder: Path, upwell: Any, what: str) -> None:
    arguments, config, code, part = BAD[what]
    if config is not None:
        (folder / "upwell.yaml").write_text(config)
    done = upwell(*arguments)
    assert (done.code, done.out) == (code, "")
    assert part in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("x."), 2), (OperatorError("x."), 3), (TransientError("x."), 3), (KeyboardInterrupt(), 1)],
)
def test_the_class_of_an_error_is_the_exit_code(
    folder: Path, upwell: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    (folder / "upwell.yaml").write_text(CONFIG)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(build, "source_parts", fail)
    done = upwell("track")
    assert done.code == code
    assert "Traceback" not in done.err


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_bug_shows_its_traceback_without_secrets(
    folder: Path, upwell: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    (folder / "upwell.yaml").write_text(CONFIG + 'masking: {key: "a-very-secret-key"}\n')

    def fail(*_: object) -> None:
        raise ZeroDivisionError("while using a-very-secret-key")

    monkeypatch.setattr(build, "source_parts", fail)
    done = upwell("track", "--log-format", form)
    assert done.code == 1
    assert "ZeroDivisionError: while using ***" in done.err
    assert "This is a bug" in done.err
    assert "a-very-secret-key" not in done.err


def test_errors_are_json_where_asked_for(folder: Path, upwell: Any) -> None:
    done = upwell("publish", "--log-format", "json")
    line = json.loads(done.err)
    assert (line["level"], line["code"]) == ("error", "UW-CF-001")
    assert line["remedy"]


def test_the_configuration_is_found_by_its_variable(folder: Path, upwell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other.yaml").write_text(CONFIG)
    monkeypatch.setenv("UPWELL_CONFIG", "other.yaml")
    assert upwell("status").out.startswith("pipeline shop: ")


# --- what the commands do -----------------------------------------------------------------------------------------


def test_from_a_url_to_published_rows(folder: Path, upwell: Any) -> None:
    written = upwell("init", "sqlite:///shop.db")
    assert written.out.split() == ["upwell.yaml", str(folder / "grants.sql"), str(folder / "firewall.txt")]
    assert upwell("doctor").code == 3  # not tracked yet
    assert "CREATE TRIGGER" in upwell("track").out
    assert upwell("track").out == ""  # again is no mistake
    assert upwell("doctor").code == 0
    assert "no publisher has reported here" in upwell("status").out
    done = subprocess.run([*UPWELL, "publish", "--once"], capture_output=True, text=True, check=True)
    assert {json.loads(line)["data"]["key"]["id"] for line in done.stdout.splitlines()} == {1, 2}
    assert "main.users  stream" in upwell("status").out


def test_a_dry_run_of_track_can_be_pasted(folder: Path, upwell: Any) -> None:
    (folder / "upwell.yaml").write_text(CONFIG)
    sql = upwell("track", "--dry-run").out
    with closing(sqlite3.connect("shop.db")) as shop:
        shop.executescript(sql)
    assert upwell("track", "--dry-run").out == ""


def test_undo_leaves_the_database_as_it_was(folder: Path, upwell: Any) -> None:
    def schema() -> list[tuple[str]]:
        with closing(sqlite3.connect("shop.db")) as shop:
            # SQLite's own table of AUTOINCREMENT can't be dropped.
            return shop.execute("SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()

    (folder / "upwell.yaml").write_text(CONFIG)
    before = schema()
    upwell("track")
    subprocess.run([*UPWELL, "publish", "--once"], stdout=subprocess.DEVNULL, check=True)
    tracked = schema()
    planned = upwell("track", "--undo", "--dry-run").out
    assert schema() == tracked != before
    assert upwell("track", "--undo").out == planned
    assert "DROP TABLE _upwell_log;" in planned.splitlines()
    assert schema() == before
    assert upwell("track", "--undo").out == ""
    upwell("track")
    again = subprocess.run([*UPWELL, "publish", "--once"], capture_output=True, text=True, check=True)
    assert len(again.stdout.splitlines()) == 2, "what happened meanwhile went unseen, so the table is read again"


def test_nothing_is_undone_beneath_a_running_publisher(folder: Path, upwell: Any) -> None:
    (folder / "upwell.yaml").write_text(CONFIG)
    upwell("track")
    with subprocess.Popen(
        [*UPWELL, "publish"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        awaited(process, "publishing shop")
        awaited(process, "events read")
        refused = upwell("track", "--undo")
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert (refused.code, refused.out) == (3, "")
    assert "UW-CL-018" in refused.err
    assert "DROP TRIGGER" in upwell("track", "--undo").out


@pytest.mark.parametrize(
    ("url", "to", "expected"),
    [
        ("sqlite:///shop.db", None, {"stdout": {}}),
        ("sqlite:///shop.db", "kinesis://legacy-shop", {"kinesis": {"stream": "legacy-shop", "region": "eu-west-1"}}),
        ("sqlite:///shop.db", "dynamodb://shop-", {"dynamodb": {"table_prefix": "shop-", "region": "eu-west-1"}}),
    ],
)
def test_init_writes_what_load_reads(
    folder: Path, upwell: Any, monkeypatch: pytest.MonkeyPatch, url: str, to: str | None, expected: dict[str, Any]
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    done = upwell("init", url, *(["--to", to] if to else []))
    assert done.code == 0
    assert yaml.safe_load((folder / "upwell.yaml").read_text())["destination"] == expected
    pipeline = load(folder / "upwell.yaml", os.environ)
    assert [str(rule.pattern) for rule in pipeline.rules] == ["main.users"]
    text = (folder / "upwell.yaml").read_text()
    assert "# left out: Table notes has no primary key" in text
    assert "443" in (folder / "firewall.txt").read_text() or to is None


def test_init_overwrites_only_when_told(folder: Path, upwell: Any) -> None:
    (folder / "grants.sql").write_text("mine")
    assert upwell("init", "sqlite:///shop.db").code == 2
    assert (folder / "grants.sql").read_text() == "mine"
    assert not (folder / "upwell.yaml").exists()
    assert upwell("init", "sqlite:///shop.db", "--force").code == 0
    assert (folder / "grants.sql").read_text() != "mine"


def test_plan_shows_masks_names_and_filters(folder: Path, upwell: Any) -> None:
    rules = "{users: {where: \"country = 'DE'\", rename: {paid: amount}, mask: {email: hmac}, exclude: [country]}}"
    (folder / "upwell.yaml").write_text(CONFIG.replace("{users: {}}", rules) + 'masking: {key: "0123456789abcdef"}\n')
    (table,) = json.loads(upwell("plan", "--json").out)
    assert (table["table"], table["filter"], table["key"]) == ("main.users", "country = 'DE'", ["id"])
    assert [(c["column"], c["to"], c["mask"]) for c in table["columns"]] == [
        ("id", "id", None), ("email", "email", "hmac"), ("paid", "amount", None),
    ]  # fmt: skip
    text = upwell("plan").out
    assert "only rows where country = 'DE'" in text
    assert "hmac mask" in text


def test_a_pattern_names_columns_that_only_some_tables_have(folder: Path, upwell: Any) -> None:
    with closing(sqlite3.connect("shop.db")) as shop:
        shop.execute("CREATE TABLE units (id INTEGER PRIMARY KEY, secret TEXT)")
    rule = '"u*": {exclude: [secret, paid], mask: {email: redact}}'
    (folder / "upwell.yaml").write_text(CONFIG.replace("users: {}", rule))
    plan = json.loads(upwell("plan", "--json").out)
    assert {table["table"]: [column["column"] for column in table["columns"]] for table in plan} == {
        "main.units": ["id"],
        "main.users": ["id", "email", "country"],
    }


def test_resync_takes_names_as_a_person_writes_them(folder: Path, upwell: Any) -> None:
    (folder / "upwell.yaml").write_text(CONFIG.replace("stdout: {}", "stdout: {}"))
    upwell("track")
    assert subprocess.run([*UPWELL, "publish", "--once"], capture_output=True, check=False).returncode == 0
    for name in ("users", "main.users", "USERS"):
        done = upwell("resync", name)
        assert (done.code, done.out) == (0, "main.users will be read again\n")
    assert upwell("resync").code == 0
    unknown = upwell("resync", "users", "customers")
    assert unknown.code == 2
    assert "customers" in unknown.err
    assert "Its tables are main.users." in unknown.err
    again = subprocess.run([*UPWELL, "publish", "--once"], capture_output=True, text=True, check=True)
    assert len(again.stdout.splitlines()) == 2


def test_what_is_never_read_cannot_be_read_again(folder: Path, upwell: Any) -> None:
    (folder / "upwell.yaml").write_text(CONFIG.replace("users: {}", "users: {snapshot: false}"))
    upwell("track")
    done = subprocess.run([*UPWELL, "publish", "--once"], capture_output=True, check=True)
    assert done.stdout == b""
    assert upwell("resync").out == ""
    refused = upwell("resync", "users")
    assert refused.code == 2
    assert "UW-CL-017" in refused.err


def test_doctor_tells_everything_in_json(folder: Path, upwell: Any) -> None:
    config = (
        CONFIG.replace("users: {}", "users: {mask: {email: hmac}}")
        + "masking: {key: '${MASKING_KEY}'}\nstate: gone/s.db\n"
    )
    (folder / "upwell.yaml").write_text(config)
    done = upwell("doctor", "--json")
    assert done.code == 3
    found = {(finding["code"], finding["level"]) for finding in json.loads(done.out)}
    assert {
        ("UW-CL-007", "warn"),  # the mask's secret is not on this machine
        ("UW-SL-003", "fail"),  # not tracked
        ("UW-CF-021", "fail"),  # hmac without its secret
        ("UW-CL-008", "fail"),  # no folder for the state
    } <= found


def test_the_schema_is_a_json_schema_with_a_description_for_every_setting(upwell: Any) -> None:
    schema = json.loads(upwell("config", "schema").out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    for model in [schema, *schema["$defs"].values()]:
        assert model["additionalProperties"] is False
        for name, field in model.get("properties", {}).items():
            described = field if "$ref" not in field else schema["$defs"][field["$ref"].rpartition("/")[2]]
            assert described.get("description"), f"{model['title']}.{name}"


# --- signals, pipes -----------------------------------------------------------------------------------------------


def awaited(process: subprocess.Popen[str], line: str) -> None:
    """Read what it says until it says this."""
    assert process.stderr is not None
    while True:
        said = process.stderr.readline()
        assert said, "it ended"
        if line in said:
            return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_publisher_with_zero(folder: Path, upwell: Any, number: signal.Signals) -> None:
    (folder / "upwell.yaml").write_text(CONFIG)
    upwell("track")
    with subprocess.Popen(
        [*UPWELL, "publish"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        awaited(process, "publishing shop")
        awaited(process, "events read")
        process.send_signal(number)
        assert process.wait(10) == 0
    assert json.loads(upwell("status", "--json").out)["publisher"]["running"] is False


@pytest.fixture
def silent() -> Iterator[str]:
    """A service that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_where_something_hangs_a_second_signal_ends_at_once(folder: Path, upwell: Any, silent: str) -> None:
    kinesis = f"kinesis: {{stream: s, region: eu-west-1, endpoint_url: '{silent}'}}"
    (folder / "upwell.yaml").write_text(CONFIG.replace("stdout: {}", kinesis))
    upwell("track")
    with subprocess.Popen(
        [*UPWELL, "publish"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        awaited(process, "publishing shop")
        process.send_signal(signal.SIGTERM)
        awaited(process, "SIGTERM")
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
        assert time.monotonic() - started < 2


def test_output_that_nobody_reads_is_no_bug(folder: Path) -> None:
    (folder / "upwell.yaml").write_text(CONFIG)
    with subprocess.Popen([*UPWELL, "config", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(DEADLINE_S)
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_logs_and_results_never_mix(folder: Path, upwell: Any) -> None:
    (folder / "upwell.yaml").write_text(CONFIG)
    upwell("track")
    done = subprocess.run(
        [*UPWELL, "publish", "--once", "--log-format", "json"], capture_output=True, text=True, check=True
    )
    assert all(json.loads(line)["specversion"] == "1.0" for line in done.stdout.splitlines())
    assert all(json.loads(line)["level"] == "info" for line in done.stderr.splitlines())


def test_status_of_a_running_publisher(folder: Path, upwell: Any) -> None:
    (folder / "upwell.yaml").write_text(CONFIG)
    upwell("track")
    with (
        subprocess.Popen([*UPWELL, "publish"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        closing(sqlite3.connect("shop.db")) as shop,
    ):
        deadline = time.monotonic() + DEADLINE_S
        events = 0
        while True:
            shop.execute("UPDATE users SET paid = paid + 1")
            shop.commit()
            found = json.loads(upwell("status", "--json").out)
            publisher, table = found["publisher"], found["tables"].get("main.users")
            events = publisher["events"] if publisher else 0
            if events > 4 and table["phase"] == "stream" and table["events_per_second"] > 0:
                break
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        assert publisher["running"]
        assert publisher["lag_seconds"] < 5
        assert (table["rows"], table["dead_letters"], table["last_error"]) == (2, 0, "")
        assert upwell("status").out.startswith("pipeline shop: running, ")
        process.kill()  # it can't say that it ends: that is seen by its silence
    assert process.wait() == -signal.SIGKILL


def test_a_publisher_that_is_silent_is_not_running() -> None:
    status = {"at": "2026-01-31T10:00:00Z", "running": True, "lag_seconds": 1.0, "last_error": "", "tables": {}}
    at = 1769853600.0
    assert _publisher(status, [], at + 5)["publisher"]["running"]
    silent = _publisher(status, [], at + 3600)["publisher"]
    assert not silent["running"]
    assert silent["lag_seconds"] == 3601  # and falls behind


def test_rates_are_of_the_last_seconds() -> None:
    rates = Rates()
    assert rates.per_second("a") == 0
    for second in range(61):
        rates.note(float(second), {"a": second * 10 if second <= 40 else 400})
    assert rates.per_second("a") == 0
    rates.note(61.0, {"a": 510})
    assert 9 <= rates.per_second("a") <= 11
    assert rates.per_second("b") == 0


# --- logs ---------------------------------------------------------------------------------------------------------


def test_a_secret_is_blotted_out_wherever_it_slips_in(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("text")
    logs.hide(["s3cr3t-of-mine", "abc"])
    logs.log.warning("the driver said s3cr3t-of-mine")
    logs.failed(OperatorError("s3cr3t-of-mine!", remedy="abc s3cr3t-of-mine"))
    said = capsys.readouterr().err
    assert "s3cr3t-of-mine" not in said
    assert said.count("***") == 3
    assert "abc" in said  # too short to be a secret, and in half of all messages


def test_a_name_does_nothing_to_a_log_or_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("text")
    name = "a\n2026-01-31T10:00:00Z error   forged\x1b[2J\u202e\u2028"
    logs.log.error("The table %s is not there.", name)
    logs.failed(OperatorError(f"The table {name} is not there.", remedy="two\nlines"))
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 5  # a log line; the error and what to do, which may have several
    assert r"forged\x1b[2J\u202e\u2028 is not there" in said
    assert not set(said) & {"\x1b", "\u202e", "\u2028"}
