"""The configuration's part for the read API."""

from pathlib import Path

import pytest

from upwell.app import build_api
from upwell.clock import SystemClock
from upwell.config import OPTIONAL_PARTS, Pipeline, load
from upwell.errors import ConfigError

GOOD = """
pipeline: shop
tables: {dbo.users: {}}
api:
  cursor_key: ${UPWELL_CURSOR_KEY}
  heartbeat: 3s
  authorization:
    api_keys: {web: {sha256: abababababababababababababababababababababababababababababababab, tenant: a}}
  tables:
    users: {table: dbo.users, columns: [id, name], tenant: tenant_id, indexes: {by-name: {partition_key: name}}}
"""
KEY = {"UPWELL_CURSOR_KEY": "0123456789abcdef0123456789abcdef"}


def loaded(folder: Path, text: str, environ: dict[str, str] = KEY, needs: tuple[str, ...] = ("api",)) -> Pipeline:
    (folder / "upwell.yaml").write_text(text, "utf-8")
    return load(folder / "upwell.yaml", environ, needs=needs)


def test_what_is_given_is_there_and_the_rest_has_its_default(tmp_path: Path) -> None:
    pipeline = loaded(tmp_path, GOOD)
    api = pipeline.api()
    assert api.schema_file == Path("upwell-api.json")
    assert api.tables["users"].indexes["by-name"].partition_key == "name"
    assert (api.limits.page, api.limits.requests_per_second, pipeline.heartbeat_s) == (100, 50, 3.0)
    assert KEY["UPWELL_CURSOR_KEY"] in pipeline.secrets
    assert (
        loaded(tmp_path, GOOD.replace("api:\n", "api:\n  schema: other.json\n")).api().schema_file.name == "other.json"
    )


def test_a_publisher_without_the_secrets_of_the_api_still_knows_the_heartbeat(tmp_path: Path) -> None:
    """On-premises nobody sets the key of the cursors."""
    pipeline = loaded(tmp_path, GOOD, {}, needs=tuple(OPTIONAL_PARTS - {"api"}))
    assert pipeline.config.api is None
    assert pipeline.heartbeat_s == 3.0
    assert loaded(tmp_path, GOOD.replace("  heartbeat: 3s\n", ""), {}, needs=()).heartbeat_s == 10.0
    assert loaded(tmp_path, "pipeline: shop", {}, needs=()).heartbeat_s is None


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("api_keys:", "api_key:", "did you mean `api_keys`?"),
        ("    api_keys", "    iam: {tenants: {x: null}}\n    api_keys", "names iam and api_keys"),
        ("sha256: abab", "sha256: xxab", "api.authorization.api_keys.web.sha256: must be the SHA-256"),
        ("columns: [id, name]", "columns: []", "api.tables.users.columns: must not be empty"),
        ("users: {table", "Users: {table", "lower-case letters"),
        ("  cursor_key", "  schem: x.json\n  cursor_key", "did you mean `schema`?"),
        ("heartbeat: 3s", "heartbeat: 100ms", "api.heartbeat"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in GOOD
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, GOOD.replace(before, after))
    assert said in error.value.message


def test_a_short_cursor_key_is_refused_and_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, GOOD, {"UPWELL_CURSOR_KEY": "guessable"})
    assert "at least 32 bytes" in error.value.message
    assert "guessable" not in error.value.message


@pytest.mark.parametrize("url", ["http://idp.example/keys", "ftp://x", "http://localhost.evil.example/keys"])
def test_keys_are_fetched_over_tls_only(tmp_path: Path, url: str) -> None:
    jwt = f"jwt: {{issuer: https://idp.example, audience: shop, jwks_url: '{url}'}}"
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, GOOD.replace("api_keys: {web: {sha256: " + "ab" * 32 + ", tenant: a}}", jwt))
    assert "must be a URL: https://…" in error.value.message


def test_two_names_of_one_key_are_refused(tmp_path: Path) -> None:
    """Or the order of the names would decide whose the request is."""
    other = "other: {sha256: " + "ab" * 32 + ", tenant: b}"
    with pytest.raises(ConfigError, match="other and web are the same key") as error:
        build_api.authorizer(loaded(tmp_path, GOOD.replace("api_keys: {", f"api_keys: {{{other}, ")), SystemClock())
    assert error.value.code == "UW-AP-003"
