"""The configuration file: what it may say, and that every mistake is named with its file, line and setting."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upwell.config import Pipeline, identifier, load
from upwell.errors import ConfigError, OperatorError
from upwell.model import TableName
from upwell.tablepatterns import has_wildcard, shown

SMALL = """\
pipeline: shop
source: {url: "sqlite:///shop.db"}
destination: {stdout: {}}
tables: {users: {}}
"""
INTERFACE_EXAMPLE = """\
pipeline: legacy-shop
source:
  url: postgresql://upwell:${SHOP_DB_PASSWORD}@db01.corp.example:5432/shop
  poll_interval: 1s
  on_gap: resync            # or: halt
destination:
  kinesis: {stream: legacy-shop, region: eu-west-1}
subscriber:
  target: postgresql://app:${AURORA_PASSWORD}@aurora.example/app
  create_tables: true
  schema_changes: apply     # or: halt
  ordering: key
defaults:
  snapshot: true
tables:
  sales.*: {}
  public.users:
    columns: [id, email, name, country, updated_at]
    where: "country = 'DE'"
    rename: {name: full_name}
    mask: {email: hmac, name: null}
    to: users
  sales.order_lines:
    dynamodb: {table: shop, partition_key: "ORDER#{order_id}", sort_key: "LINE#{line_no:05}"}
masking: {key: "${MASKING_KEY}"}
state: upwell-state.db
limits: {memory: 300 MB}
"""
ENVIRONMENT = {"SHOP_DB_PASSWORD": "s3cret", "AURORA_PASSWORD": "s3cret", "MASKING_KEY": "0123456789abcdef"}


def loaded(folder: Path, text: str, environ: Mapping[str, str] = ENVIRONMENT) -> Pipeline:
    file = folder / "upwell.yaml"
    file.write_text(text, encoding="utf-8")
    return load(file, environ)


def refused(folder: Path, text: str, environ: Mapping[str, str] = ENVIRONMENT) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        loaded(folder, text, environ)
    return error.value


def test_the_example_of_the_interface(tmp_path: Path) -> None:
    pipeline = loaded(tmp_path, INTERFACE_EXAMPLE)
    assert pipeline.name == "legacy-shop"
    assert pipeline.source().url.get_secret_value() == "postgresql://upwell:s3cret@db01.corp.example:5432/shop"
    assert (pipeline.source().poll_interval, pipeline.config.limits.memory) == (1.0, 300_000_000)
    assert pipeline.state == tmp_path / "upwell-state.db"
    assert pipeline.mask_key == b"0123456789abcdef"
    assert (pipeline.slot, pipeline.publication) == ("upwell_legacy_shop", "upwell_legacy_shop")
    users, lines, sales = pipeline.rules  # what names one table comes first, whatever the order of the file
    assert [r.pattern for r in (users, lines, sales)] == [("public", "users"), ("sales", "order_lines"), ("sales", "*")]
    assert users.mask == {"email": "hmac", "name": "null"}
    assert users.where is not None
    assert users.where.text == "country = 'DE'"
    assert users.origin == f"{tmp_path}/upwell.yaml:17"
    ((rule, item),) = pipeline.items
    assert (rule, item.sort_key) == (lines, "LINE#{line_no:05}")


def test_secrets_are_in_no_text_of_the_settings(tmp_path: Path) -> None:
    pipeline = loaded(tmp_path, INTERFACE_EXAMPLE)
    for text in (repr(pipeline), str(pipeline.config), pipeline.config.model_dump_json(include={"source"})):
        assert "s3cret" not in text
        assert "0123456789abcdef" not in text


def test_a_role_needs_only_what_it_reads(tmp_path: Path) -> None:
    file = tmp_path / "upwell.yaml"
    file.write_text(INTERFACE_EXAMPLE, encoding="utf-8")
    subscriber = load(file, {"AURORA_PASSWORD": "x"}, needs={"destination", "subscriber"})
    assert subscriber.subscriber().create_tables
    with pytest.raises(ConfigError) as error:
        subscriber.source()
    assert error.value.code == "UW-CF-012"
    with pytest.raises(ConfigError, match="AURORA_PASSWORD"):
        load(file, {}, needs={"destination", "subscriber"})


@pytest.mark.parametrize(
    ("yaml", "seconds"), [("500ms", 0.5), ("1s", 1), ("1.5 s", 1.5), ("10m", 600), ("2h", 7200), ("1d", 86400)]
)
def test_durations(tmp_path: Path, yaml: str, seconds: float) -> None:
    text = SMALL.replace("shop.db", "shop.db").replace('shop.db"}', f'shop.db", poll_interval: {yaml}}}')
    assert loaded(tmp_path, text).source().poll_interval == seconds


@pytest.mark.parametrize(
    ("yaml", "size"), [("300 MB", 300_000_000), ("1GiB", 2**30), ("1.5 kB", 1500), ("64 MiB", 2**26)]
)
def test_sizes(tmp_path: Path, yaml: str, size: int) -> None:
    assert loaded(tmp_path, SMALL + f"limits: {{memory: {yaml}}}\n").config.limits.memory == size


def test_nothing_behind_a_table_or_stdout_means_all_defaults(tmp_path: Path) -> None:
    pipeline = loaded(tmp_path, "pipeline: p\ndestination:\n  stdout:\ntables:\n  users:\n")
    assert pipeline.destination().stdout is not None
    assert pipeline.rules[0].snapshot


def test_words_that_old_yaml_takes_for_booleans_and_dates_are_text(tmp_path: Path) -> None:
    text = SMALL.replace("users: {}", "users: {columns: [no, on, yes, 2026-01-31, 'true'], rename: {on: off}}")
    (rule,) = loaded(tmp_path, text).rules
    assert rule.columns == ("no", "on", "yes", "2026-01-31", "true")
    assert rule.rename == {"on": "off"}


def test_placeholders(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("from-file\n", encoding="utf-8")
    text = SMALL.replace("shop.db", "${A}-$${A}-${file:secret.txt}-$A.db")
    url = loaded(tmp_path, text, {"A": "a"}).source().url.get_secret_value()
    assert url == "sqlite:///a-${A}-from-file-$A.db"


def test_secrets_manager_is_asked_by_a_function(tmp_path: Path) -> None:
    file = tmp_path / "upwell.yaml"
    file.write_text(SMALL.replace("shop.db", "${secretsmanager:shop/db}.db"), encoding="utf-8")
    pipeline = load(file, {}, secret=lambda name: f"<{name}>")
    assert pipeline.source().url.get_secret_value() == "sqlite:///<shop/db>.db"

    def refuse(name: str) -> str:
        raise OperatorError(f"no right to read {name}")

    with pytest.raises(OperatorError):
        load(file, {}, secret=refuse)


@given(password=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_a_password_may_hold_anything(tmp_path: Path, password: str) -> None:
    environ = {"USER": password, "PASSWORD": password}
    text = SMALL.replace("sqlite:///shop.db", "postgresql://${USER}:${PASSWORD}@db:5432/shop")
    parts = urlsplit(loaded(tmp_path, text, environ).source().url.get_secret_value())
    assert (unquote(parts.username or ""), unquote(parts.password or "")) == (password, password)
    assert (parts.hostname, parts.port, parts.path) == ("db", 5432, "/shop")


def test_outside_of_user_and_password_a_placeholder_stands_as_it_is(tmp_path: Path) -> None:
    for template, value in [
        ("${V}", "postgresql://u:a%40b@db/shop"),
        ("postgresql://u@${V}/shop", "db:5432"),
        ("postgresql://${V}/shop", "u:p@db:5432"),
        ("postgresql://db/shop?options=${V}", "-c%20a@b"),
    ]:
        text = SMALL.replace("sqlite:///shop.db", template)
        assert value in loaded(tmp_path, text, {"V": value}).source().url.get_secret_value()


def test_identifiers_fit_postgresql() -> None:
    assert identifier("legacy-shop.v2") == "upwell_legacy_shop_v2"
    long = [identifier("a" * 62 + last) for last in "bc"]
    assert len(set(long)) == 2
    assert all(len(name) == 63 for name in long)


def with_source(settings: str) -> str:
    return SMALL.replace('{url: "sqlite:///shop.db"}', settings)


def with_destination(settings: str) -> str:
    return SMALL.replace("{stdout: {}}", settings)


def with_table(settings: str) -> str:
    return SMALL.replace("users: {}", f"users: {settings}")


# what is wrong: (text, line, setting or "", code, part of the sentence)
BAD = {
    "empty": ("", 1, "pipeline", "UW-CF-004", "missing"),
    "a list": ("- a\n", 1, "", "UW-CF-002", "keys and values"),
    "a scalar": ("hello\n", 1, "", "UW-CF-002", "keys and values"),
    "no yaml": ("pipeline: shop\n  x: [", 2, "", "UW-CF-002", ""),
    "a tab": ("pipeline: shop\nsource:\n\turl: x\n", 3, "", "UW-CF-002", ""),
    "a control character": ("pipeline: sh\x01op\n", 1, "", "UW-CF-002", "characters"),
    "an unquoted star": (SMALL + "x: 1\n*.*: {}\n", 6, "", "UW-CF-002", 'quoted, as in "*.*"'),
    "an alias without anchor": ("pipeline: *x\n", 1, "", "UW-CF-002", "quoted"),
    "an alias in itself": ("pipeline: &a [*a]\n", 1, "", "UW-CF-002", "unfolds"),
    "aliases that unfold": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
        ), 1, "", "UW-CF-002", "unfolds",
    ),
    "deep": ("a: " + "[" * 5000, 1, "", "UW-CF-002", ""),
    "a complex key": ("? [a]\n: b\n", 1, "", "UW-CF-002", "key must be text"),
    "a key twice": (SMALL + "pipeline: shop\n", 1, "", "UW-CF-006", "lines 1 and 5"),
    "a table twice": (with_table("{}, users: {}"), 4, "tables", "UW-CF-006", "users stands twice"),
    "unknown": (SMALL + "colour: red\n", 5, "colour", "UW-CF-003", "known here are pipeline, source"),
    "misspelt": (SMALL.replace("pipeline", "pipelnie"), 1, "pipelnie", "UW-CF-003", "did you mean `pipeline`"),
    "misspelt deep": (with_table("{colums: [id]}"), 4, "tables.users.colums", "UW-CF-003", "`columns`"),
    "misspelt in dynamodb": (
        with_destination("{dynamodb: {prefix: x}}"), 3, "destination.dynamodb.prefix", "UW-CF-003", "`table_prefix`",
    ),
    "misplaced": (SMALL + "poll_interval: 1s\n", 5, "poll_interval", "UW-CF-003", "belongs in `source`"),
    "misplaced at the top": (with_source("{url: 'sqlite:///a', pipeline: x}"), 2, "source.pipeline", "UW-CF-003",
                             "the top of the file"),
    "no pipeline": (SMALL.replace("pipeline: shop\n", ""), 1, "pipeline", "UW-CF-004", "missing"),
    "no url": (with_source("{}"), 2, "source.url", "UW-CF-004", "missing"),
    "no stream": (with_destination("{kinesis: {}}"), 3, "destination.kinesis.stream", "UW-CF-004", "missing"),
    "no key template": (with_table("{dynamodb: {table: abc}}"), 4, "tables.users.dynamodb.partition_key",
                        "UW-CF-004", "missing"),
    "a number for a name": (SMALL.replace("shop\n", "42\n", 1), 1, "pipeline", "UW-CF-005", "quotes"),
    "capitals": (SMALL.replace("shop\n", "Shop\n", 1), 1, "pipeline", "UW-CF-005", "lower-case"),
    "a long name": (SMALL.replace("shop\n", "x" * 64 + "\n", 1), 1, "pipeline", "UW-CF-005", "1 to 63"),
    "a list of sources": (with_source("[a]"), 2, "source", "UW-CF-005", "keys and values"),
    "no url at all": (with_source("{url: shop}"), 2, "source.url", "UW-CF-005", "postgresql://"),
    "another scheme": (with_source("{url: 'oracle://a/b'}"), 2, "source.url", "UW-CF-005", "one of these kinds"),
    "a bad port": (with_source("{url: 'postgresql://a:99999/b'}"), 2, "source.url", "UW-CF-005", "not a valid URL"),
    "a bare special character": (with_source("{url: 'postgresql://a:p[w@h/b'}"), 2, "source.url", "UW-CF-005", "%40"),
    "no database": (with_source("{url: 'postgresql://a/'}"), 2, "source.url", "UW-CF-005", "names no database"),
    "no file": (with_source("{url: 'sqlite://'}"), 2, "source.url", "UW-CF-005", "must name a file"),
    "two slashes": (with_source("{url: 'sqlite://shop.db'}"), 2, "source.url", "UW-CF-005", "sqlite:///shop.db"),
    "no unit": (with_source("{url: 'sqlite:///a', poll_interval: 1}"), 2, "source.poll_interval", "UW-CF-005", "unit"),
    "no duration": (with_source("{url: 'sqlite:///a', poll_interval: soon}"), 2, "source.poll_interval", "UW-CF-005",
                    "(it is 'soon')"),
    "no choice": (with_source("{url: 'sqlite:///a', on_gap: stop}"), 2, "source.on_gap", "UW-CF-005", "'halt'"),
    "a bad slot": (with_source("{url: 'sqlite:///a', slot: A-b}"), 2, "source.slot", "UW-CF-005", "lower-case"),
    "no destination": (with_destination("{}"), 3, "destination", "UW-CF-016", "names none"),
    "two destinations": (with_destination("{stdout: {}, dynamodb: {}}"), 3, "destination", "UW-CF-016", "dynamodb and"),
    "no lanes": (with_destination("{kinesis: {stream: s, lanes: 0}}"), 3, "destination.kinesis.lanes", "UW-CF-005",
                 "greater than or equal to 1"),
    "many lanes": (with_destination("{kinesis: {stream: s, lanes: 1025}}"), 3, "destination.kinesis.lanes",
                   "UW-CF-005", "1024"),
    "lanes in words": (with_destination("{kinesis: {stream: s, lanes: many}}"), 3, "destination.kinesis.lanes",
                       "UW-CF-005", "whole number"),
    "a bad stream": (with_destination("{kinesis: {stream: 'a b'}}"), 3, "destination.kinesis.stream", "UW-CF-005",
                     "letters"),
    "a bad endpoint": (with_destination("{kinesis: {stream: s, endpoint_url: localhost}}"), 3,
                       "destination.kinesis.endpoint_url", "UW-CF-005", "https://"),
    "a bad format": (with_destination("{kinesis: {stream: s, format: avro}}"), 3, "destination.kinesis.format",
                     "UW-CF-005", "'cloudevents'"),
    "not a boolean": (SMALL + "defaults: {snapshot: 5}\n", 5, "defaults.snapshot", "UW-CF-005", "true or false"),
    "no size": (SMALL + "limits: {memory: much}\n", 5, "limits.memory", "UW-CF-005", "300 MB"),
    "a size without a unit": (SMALL + "limits: {memory: 300}\n", 5, "limits.memory", "UW-CF-005", "300 MB"),
    "a short key": (SMALL + "masking: {key: short}\n", 5, "masking", "UW-CF-005", "16 bytes"),
    "a table in a list": (SMALL.replace("{users: {}}", "[users]"), 4, "tables", "UW-CF-005", "keys and values"),
    "a table as text": (with_table("yes"), 4, "tables.users", "UW-CF-005", "keys and values"),
    "no table name": (SMALL.replace("users", '"a.b\\"c"'), 4, "tables.'a.b\"c'", "UW-CF-013", "schema.table"),
    "an empty table name": (SMALL.replace("users", '""'), 4, "tables.", "UW-CF-013", "schema.table"),
    "columns as text": (with_table("{columns: id}"), 4, "tables.users.columns", "UW-CF-005", "a list"),
    "no columns": (with_table("{columns: []}"), 4, "tables.users.columns", "UW-CF-005", "not be empty"),
    "columns and exclude": (with_table("{columns: [a], exclude: [b]}"), 4, "tables.users", "UW-CF-005", "not both"),
    "a list to rename": (with_table("{rename: [a]}"), 4, "tables.users.rename", "UW-CF-005", "keys and values"),
    "a bad mask": (with_table("{mask: {a: md5}}"), 4, "tables.users.mask.a", "UW-CF-005", "'redact'"),
    "a bad target": (with_table("{to: ''}"), 4, "tables.users.to", "UW-CF-005", "no table name"),
    "one name for many": (SMALL.replace("users: {}", "'u*': {to: x}"), 4, "tables.u*.to", "UW-CF-005", "several"),
    "a filter that is no text": (with_table("{where: 5}"), 4, "tables.users.where", "UW-CF-005", "in quotes"),
    "a filter that is no sql": (with_table("{where: 'a ='}"), 4, "tables.users.where", "UW-CF-014", "not a condition"),
    "a filter that is too much": (with_table("{where: 'lower(a) = 1'}"), 4, "tables.users.where", "UW-CF-014",
                                  "`LOWER(a)` is not supported"),
    "a variable that is not set": (with_source("{url: 'sqlite:///${NOT_SET}'}"), 2, "source.url", "UW-CF-007",
                                   "NOT_SET is not set"),
    "an empty placeholder": (with_source("{url: '${}'}"), 2, "source.url", "UW-CF-011", "is none of"),
    "an open placeholder": (with_source("{url: 'sqlite:///${A'}"), 2, "source.url", "UW-CF-011", "no closing }"),
    "a placeholder's kind": (with_source("{url: '${vault:a}'}"), 2, "source.url", "UW-CF-011", "is none of"),
    "a file that is not there": (with_source("{url: '${file:gone}'}"), 2, "source.url", "UW-CF-008", "No such file"),
    "a folder as a file": (with_source("{url: '${file:.}'}"), 2, "source.url", "UW-CF-008", "directory"),
    "secrets manager": (with_source("{url: '${secretsmanager:a}'}"), 2, "source.url", "UW-CF-009", "is not asked"),
    **{
        f"{scheme} as a source": (with_source(f"{{url: '{scheme}://a:b@c/d'}}"), 2, "source.url", "UW-CF-010",
                                  "not in this version")
        for scheme in ("mysql", "mariadb", "dynamodb")
    },
    "mysql as a target": (SMALL + "subscriber: {target: 'mysql://a/b'}\n", 5, "subscriber.target", "UW-CF-010",
                          "not in this version"),
    "whole transactions": (SMALL + "subscriber: {target: 'postgresql://a/b', ordering: transaction}\n", 5,
                           "subscriber.ordering", "UW-CF-010", "transaction is not in this version"),
    "an unknown order": (SMALL + "subscriber: {target: 'postgresql://a/b', ordering: none}\n", 5,
                         "subscriber.ordering", "UW-CF-005", "'key'"),
    "an uplink": (SMALL + "limits: {uplink: 20 Mbit/s}\n", 5, "limits.uplink", "UW-CF-010", "not in this version"),
    "state in dynamodb": (SMALL + "state: dynamodb://t\n", 5, "state", "UW-CF-010", "not in this version"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_every_mistake_is_named_with_its_file_line_and_setting(tmp_path: Path, what: str) -> None:
    text, line, setting, code, part = BAD[what]
    error = refused(tmp_path, text)
    first = str(error).splitlines()[0]
    assert first.startswith(f"{tmp_path}/upwell.yaml:{line}: {setting}")
    assert part in first
    assert error.code == code


def test_all_mistakes_are_shown_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "pipeline: Shop\nsorce: {}\ntables: {a: {colums: [x]}}\nlimits: {memory: 5}\n"
    lines = str(refused(tmp_path, text)).splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "2", "3", "4"]


def test_of_very_many_mistakes_the_first_are_shown(tmp_path: Path) -> None:
    lines = str(refused(tmp_path, SMALL + "".join(f"key{n}: 1\n" for n in range(50)))).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "… and 30 more"


def test_what_came_from_outside_the_file_is_never_quoted(tmp_path: Path) -> None:
    environ = {"V": "s3cret"}
    text = (
        "pipeline: ${V}!\nsource: {url: '${V}', poll_interval: '${V}', slot: 'S-${V}'}\n"
        "destination: {proxy: 5, kinesis: {stream: '!${V}', lanes: '${V}', format: '${V}'}}\n"
        "subscriber: {target: 'x://u:s3cret@h/d'}\nmasking: {key: s3cret}\n"
        "tables: {t: {columns: '${V}', mask: {a: '${V}'}, to: '.${V}'}}\nlimits: {memory: '${V}'}\n"
    )
    message = str(refused(tmp_path, text, environ))
    assert message.count("\n") > 8
    assert "s3cret" not in message


@pytest.mark.parametrize("what", ["missing", "folder", "unreadable", "binary", "huge"])
def test_a_file_that_cannot_be_read(tmp_path: Path, what: str) -> None:
    file = tmp_path / "upwell.yaml"
    if what == "folder":
        file.mkdir()
    elif what == "unreadable":
        file.symlink_to(file)  # root may read anything but a link that leads nowhere
    elif what == "binary":
        file.write_bytes(b"pipeline: \xff\n")
    elif what == "huge":
        file.write_bytes(b"#" * 2_000_000)
    with pytest.raises(ConfigError) as error:
        load(file, os.environ)
    assert error.value.code == ("UW-CF-002" if what in ("binary", "huge") else "UW-CF-001")
    assert str(file) in str(error.value)


@given(st.text(max_size=200) | st.text("{}[]:,-?&*#|>'\"%@` \nab$", max_size=60))
@settings(max_examples=400)
def test_whatever_the_file_holds_only_config_errors_come_out(tmp_path: Path, text: str) -> None:
    file = tmp_path / "upwell.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ConfigError):
        load(file, {})


def test_json_may_escape_what_it_likes(tmp_path: Path) -> None:
    (rule,) = loaded(tmp_path, SMALL.replace("{users: {}}", '{"\\ud83d\\ude42\\u00e9": {}}')).rules
    assert rule.pattern == ("", "🙂é")
    error = refused(tmp_path, SMALL.replace("{users: {}}", '{"\\ud83d": {}}'))
    assert error.code == "UW-CF-002"
    assert "half of a character" in error.message


@given(st.text(st.characters(codec="utf-8"), max_size=20))
@settings(max_examples=300)
def test_whatever_a_table_is_called_it_parses_or_is_a_config_error(tmp_path: Path, name: str) -> None:
    import orjson

    text = SMALL.replace("{users: {}}", "{" + orjson.dumps(name).decode() + ": {}}")
    try:
        (rule,) = loaded(tmp_path, text).rules
    except ConfigError:
        return
    assert shown(rule.pattern) == str(TableName.parse(name)) or has_wildcard(rule.pattern)


def test_secrets_manager_is_asked_for_what_is_needed_only(tmp_path: Path) -> None:
    file = tmp_path / "upwell.yaml"
    file.write_text(SMALL + "masking: {key: '${secretsmanager:masks}'}\n", encoding="utf-8")
    asked: list[str] = []

    def secret(name: str) -> str:
        asked.append(name)
        return "x" * 16

    assert load(file, {}, needs=["source"], secret=secret).mask_key is None
    assert asked == []
    assert load(file, {}, needs=["source", "masking"], secret=secret).mask_key == b"x" * 16
    assert asked == ["masks"]
