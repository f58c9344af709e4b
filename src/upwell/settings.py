"""The settings of a pipeline: what each may hold, what it means, what holds where it is not given.

The docstring below each setting is its documentation: `upwell config schema` prints it, docs/configuration.md is
made from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SecretStr,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from upwell.comparison import WhereError
from upwell.lanes import DEFAULT_LANES, LANES_MAX
from upwell.mapping import Mask
from upwell.model import TableName
from upwell.where import Where

SOURCE_SCHEMES: Final = {  # → dialect
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "mssql": "sqlserver",
    "sqlserver": "sqlserver",
    "sqlite": "sqlite",
}
TARGET_SCHEMES: Final = {"postgresql": "postgresql", "postgres": "postgresql"}
SUBSCRIBER_SCHEMES: Final = {**TARGET_SCHEMES, "dynamodb": "dynamodb"}
_LATER_SCHEMES: Final = ("mssql", "sqlserver", "mysql", "mariadb", "dynamodb")
MASK_KEY_BYTES_MIN: Final = 16
CURSOR_KEY_BYTES_MIN: Final = 32
IDENTIFIER_BYTES_MAX: Final = 63  # PostgreSQL's limit for the name of a slot or publication

# --- kinds of values ----------------------------------------------------------------------------------------------

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(B|kB|KB|MB|GB|KiB|MiB|GiB)")
_BYTES: Final = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}


def seconds(value: object) -> float:
    """Of a duration as it is written. Raises ValueError, a clause that begins with a verb."""
    if isinstance(value, (float, int)) and not isinstance(value, bool):
        raise ValueError("has no unit; write a duration such as 500ms, 1s or 10m")
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be a duration such as 500ms, 1s or 10m")
    return float(match[1]) * _SECONDS[match[2]]


def _size(value: object) -> object:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be a size such as 300 MB or 1 GiB")
    return int(float(match[1]) * _BYTES[match[2]])


def _empty_for_none(value: object) -> object:
    """`sales.*:` and `stdout:` with nothing behind them mean all defaults."""
    return {} if value is None else value


def _null_mask(value: object) -> object:
    """YAML reads `mask: {email: null}` as nothing at all; here it is the name of a mask."""
    if isinstance(value, dict):
        return {column: "null" if mask is None else mask for column, mask in value.items()}
    return value


def _database_url(schemes: Mapping[str, str]) -> AfterValidator:
    def check(url: SecretStr) -> SecretStr:
        _check_url(url.get_secret_value(), schemes)
        return url

    return AfterValidator(check)


def _check_url(url: str, schemes: Mapping[str, str]) -> None:
    scheme, found, rest = url.partition("://")
    first = {dialect: scheme for scheme, dialect in reversed(list(schemes.items()))}  # the usual one comes first
    examples = " or ".join(f"{first[dialect]}://…" for dialect in dict.fromkeys(schemes.values()))
    if not found:
        raise ValueError(f"must be a URL: {examples}")
    if scheme in _LATER_SCHEMES and scheme not in schemes:
        raise PydanticCustomError("later", "{scheme}:// is not in this version; it takes {examples}",
                                  {"scheme": scheme, "examples": examples})  # fmt: skip
    if scheme not in schemes:
        raise ValueError(f"must be a URL of one of these kinds: {examples}")
    if scheme == "sqlite":
        if not rest.startswith("/") or len(rest) < 2:
            raise ValueError("must name a file: sqlite:///shop.db beside this file, sqlite:////srv/shop.db anywhere")
        return
    if scheme == "dynamodb":
        if not re.fullmatch(_PREFIX.pattern, rest):
            raise ValueError(f"must be dynamodb://PREFIX; the prefix {_PREFIX.sentence}")
        return
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError as error:
        raise ValueError("is not a valid URL; encode what is special in its password, as in %40 for @") from error
    if not parts.path.strip("/"):
        raise ValueError("names no database; it ends with /NAME")


def _where(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("must be a condition in quotes, as in \"country = 'DE'\"")
    try:
        return Where(value)
    except WhereError as error:
        raise PydanticCustomError("where", "{why}", {"why": str(error)}) from error


def _table_name(value: str) -> str:
    try:
        return str(TableName.parse(value))
    except ValueError as error:
        raise ValueError("is no table name; write name or schema.name, quoted as in SQL where needed") from error


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION.pattern}$", "examples": ["500ms", "1s", "10m"]}),
]
Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"type": "string", "pattern": f"^{_SIZE.pattern}$", "examples": ["300 MB", "1 GiB"]}),
]


@dataclass(frozen=True)
class _Form:
    """The form of a text, as a pattern for programs and a sentence for people."""

    pattern: str
    sentence: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^({self.pattern})$"}

    def _check(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise ValueError(self.sentence)
        return value


PipelineName = Annotated[
    str,
    _Form(
        r"[a-z0-9][a-z0-9_.-]{0,62}",
        "must be 1 to 63 lower-case letters, digits, _, . or -, the first of them a letter or digit",
    ),
]
StreamName = Annotated[str, _Form(r"[a-zA-Z0-9_.-]{1,128}", "must be 1 to 128 letters, digits, _, . or -")]
DynamoDbName = Annotated[str, _Form(r"[a-zA-Z0-9_.-]{3,255}", "must be 3 to 255 letters, digits, _, . or -")]
_PREFIX: Final = _Form(r"[a-zA-Z0-9_.-]{0,128}", "must be at most 128 letters, digits, _, . or -")
NamePrefix = Annotated[str, _PREFIX]
SlotName = Annotated[str, _Form(r"[a-z0-9_]{1,63}", "must be 1 to 63 lower-case letters, digits or _")]
BucketName = Annotated[
    str,
    _Form(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "must be 3 to 63 lower-case letters, digits, . or -"),
]
ObjectPrefix = Annotated[
    str,
    _Form(r"([a-zA-Z0-9_.-]{1,64}/){0,8}", "must be empty, or names of letters, digits, _, . or -, each followed by /"),
]
HttpUrl = Annotated[str, _Form(r"https?://[^\s]+", "must be a URL: https://…")]
TrustedUrl = Annotated[
    str,
    _Form(r"https://[^\s]+|http://(localhost|127\.0\.0\.1)(:[0-9]+)?(/[^\s]*)?", "must be a URL: https://…"),
]
UrlName = Annotated[
    str,
    _Form(
        r"[a-z0-9][a-z0-9_-]{0,62}", "must be 1 to 63 lower-case letters, digits, _ or -, the first a letter or digit"
    ),
]
IndexName = Annotated[str, _Form(r"[a-zA-Z0-9_.-]{3,255}", "must be 3 to 255 letters, digits, _, . or -")]
Sha256 = Annotated[str, _Form(r"[0-9a-f]{64}", "must be the SHA-256 of the key: 64 lower-case hexadecimal digits")]
ColumnNames = Annotated[tuple[str, ...], Field(min_length=1)]
Condition = Annotated[Where, BeforeValidator(_where), WithJsonSchema({"type": "string"})]


# --- the settings -------------------------------------------------------------------------------------------------


class Settings(BaseModel):
    """What all parts of the configuration have in common: an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )


class SourceSettings(Settings):
    """The database whose changes are published."""

    url: Annotated[SecretStr, _database_url(SOURCE_SCHEMES)]
    """Where it is: `postgresql://USER:${PASSWORD}@HOST:5432/DATABASE` (any libpq parameter may follow, as in
    `?sslmode=verify-full&sslrootcert=/etc/ca.pem`), `mssql://USER:${PASSWORD}@HOST:1433/DATABASE` (options: see
    sqlserver.md) or `sqlite:///FILE`."""
    poll_interval: Duration = 1.0
    """How long to wait for changes before looking again, where the source must be asked. A change is seen at once
    where the database tells by itself."""
    on_gap: Literal["resync", "halt"] = "resync"
    """What to do where the source no longer has the changes that follow the last published one: read the tables
    again, or stop and wait for a person."""
    publication: str | None = Field(default=None, min_length=1, max_length=IDENTIFIER_BYTES_MAX)
    """PostgreSQL: the publication to read. Default: `upwell_` and the pipeline's name."""
    slot: SlotName | None = None
    """PostgreSQL: the replication slot to read. Default: `upwell_` and the pipeline's name."""
    driver: Literal["mssql-python", "python-tds"] = "mssql-python"
    """SQL Server: Microsoft's driver, or one in Python alone for machines where that finds no libraries."""


class ClaimCheckSettings(Settings):
    """An S3 bucket, by way of which rows go that are too large for the stream or the table. See claim-check.md."""

    bucket: BucketName
    """The bucket's name, in the destination's region."""
    prefix: ObjectPrefix = "upwell/"
    """Stands before the name of each object. Nothing outside of it is ever read or written."""
    kms_key: str | None = Field(default=None, min_length=1)
    """The KMS key to encrypt with, by id, ARN or alias. Default: the bucket's own encryption."""
    endpoint_url: HttpUrl | None = None
    """Another address of S3: a VPC endpoint, or a local stand-in."""


class KinesisSettings(Settings):
    """A Kinesis data stream, for `upwell subscribe` or for functions of your own."""

    stream: StreamName
    """The stream's name."""
    region: str | None = None
    """The AWS region. Default: what the AWS environment says."""
    endpoint_url: HttpUrl | None = None
    """Another address of the service: a VPC endpoint, or a local stand-in."""
    format: Literal["packed", "cloudevents"] = "packed"
    """`packed`: few, large records for `upwell subscribe`. `cloudevents`: one CloudEvents 1.0 event per record, for
    functions of your own."""
    compression: Literal["none", "zstd"] = "none"
    """Of packed records."""
    claim_check: ClaimCheckSettings | None = None
    """An S3 bucket for rows that are too large for a record (1 MiB). Without it they become dead letters."""
    lanes: int = Field(default=DEFAULT_LANES, ge=1, le=LANES_MAX)
    """How many ordered virtual partitions the stream has; fixed for the life of a stream."""
    control_table: DynamoDbName | None = None
    """A DynamoDB table in the same region, through which subscribers ask the publisher to read tables again where
    records were lost. The publisher creates it. Without it a person does that, with `upwell resync`. Another address
    of DynamoDB is set by AWS_ENDPOINT_URL_DYNAMODB."""


class DynamoDbSettings(Settings):
    """DynamoDB tables, written directly."""

    region: str | None = None
    """The AWS region. Default: what the AWS environment says."""
    table_prefix: NamePrefix = ""
    """Stands before the name of each table."""
    endpoint_url: HttpUrl | None = None
    """Another address of the service: a VPC endpoint, or a local stand-in."""
    deletes: Literal["tombstone", "remove"] = "tombstone"
    """`tombstone`: a deleted row's item stays for a while, marked, so that a late write cannot bring it back.
    `remove`: it goes at once."""
    nulls: Literal["absent", "keep"] = "absent"
    """Whether SQL NULL is an absent attribute, or one of type NULL."""
    create_tables: bool = True
    """Create the tables that are missing (on demand)."""
    claim_check: ClaimCheckSettings | None = None
    """An S3 bucket for rows that are too large for an item (400 KB). Without it they become dead letters."""


class StdoutSettings(Settings):
    """Standard output, one JSON event per line: to look at, or to pipe into something else."""


class DestinationSettings(Settings):
    """Where the change events go: exactly one of `kinesis`, `dynamodb` and `stdout`."""

    kinesis: KinesisSettings | None = None
    """A Kinesis data stream."""
    dynamodb: DynamoDbSettings | None = None
    """DynamoDB tables."""
    stdout: StdoutSettings | None = None
    """Standard output."""
    proxy: SecretStr | None = None
    """An HTTP proxy on the way to AWS: `http://USER:${PASSWORD}@HOST:3128`. Default: what HTTPS_PROXY says."""
    ca_bundle: Path | None = None
    """A file of certificates to trust instead of the usual ones, for a proxy that looks inside."""

    @property
    def kind(self) -> Literal["kinesis", "dynamodb", "stdout"]:
        """Which of them it is."""
        return "kinesis" if self.kinesis else "dynamodb" if self.dynamodb else "stdout"

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("stdout", ...) is None:
            return {**data, "stdout": {}}
        return data

    @model_validator(mode="after")
    def _exactly_one(self) -> DestinationSettings:
        given = [name for name in ("kinesis", "dynamodb", "stdout") if getattr(self, name) is not None]
        if len(given) != 1:
            what = "names " + " and ".join(given) if given else "names none"
            raise PydanticCustomError(
                "destinations", "must name exactly one of kinesis, dynamodb and stdout; this {what}", {"what": what}
            )
        return self


class SubscriberSettings(Settings):
    """The database to which `upwell subscribe`, or the subscriber on Lambda, applies the changes."""

    target: Annotated[SecretStr, _database_url(SUBSCRIBER_SCHEMES)]
    """Where it is: `postgresql://USER:${PASSWORD}@HOST:5432/DATABASE`, or `dynamodb://PREFIX`: tables whose names begin
    with PREFIX, in the stream's region (another address: AWS_ENDPOINT_URL_DYNAMODB). See dynamodb.md."""
    create_tables: bool = True
    """Create the tables that are missing."""
    schema_changes: Literal["apply", "halt"] = "apply"
    """What to do where a table gets a new column: add it to the target, or stop and wait for a person. Items take any
    attribute: DynamoDB knows only `apply`."""
    ordering: Literal["key"] = "key"
    """`key`: the changes of a row stay in order, different rows travel independently."""
    iam_auth: bool = False
    """PostgreSQL in RDS or Aurora: log in with an IAM token in place of a password, made anew for each connection. The
    URL has no password then; TLS is needed (`?sslmode=verify-full&sslrootcert=FILE`)."""

    @property
    def kind(self) -> str:
        """postgresql or dynamodb."""
        return SUBSCRIBER_SCHEMES[self.target.get_secret_value().partition("://")[0]]

    @model_validator(mode="after")
    def _fits_its_kind(self) -> SubscriberSettings:
        items, url = self.kind == "dynamodb", urlsplit(self.target.get_secret_value())
        if items and (self.schema_changes == "halt" or self.iam_auth):
            raise PydanticCustomError("choice", "takes `schema_changes: halt` and `iam_auth` for PostgreSQL only")
        if self.iam_auth and (url.password or re.search(r"sslmode=(disable|allow|prefer)\b", url.query)):
            raise PydanticCustomError("choice", "takes `iam_auth` with TLS and without a password in the URL")
        return self


class DynamoDbItem(Settings):
    """How a table's rows become items."""

    table: DynamoDbName
    """The DynamoDB table, without the prefix."""
    partition_key: str = Field(min_length=1)
    """Template of the partition key: `ORDER#{order_id}`."""
    sort_key: str | None = Field(default=None, min_length=1)
    """Template of the sort key: `LINE#{line_no:05}`."""


class TableSettings(Settings):
    """What leaves the building of a table, and how."""

    columns: ColumnNames | None = None
    """Only these columns; name those of the key too. Default: all."""
    exclude: ColumnNames | None = None
    """All columns but these. Not together with `columns`."""
    where: Condition | None = None
    """Only the rows for which this condition is true; a row that leaves the filter is deleted at the destination.
    See Filters."""
    rename: Mapping[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    """Other names for columns: the source's name, then the one at the destination."""
    mask: Annotated[Mapping[str, Mask], BeforeValidator(_null_mask)] = Field(default_factory=dict)
    """Columns whose values do not leave the building: `hmac` (a pseudonym), `redact` (`***` in text columns, else
    NULL), `null`. See Masks."""
    to: Annotated[str, AfterValidator(_table_name)] | None = None
    """The table's name at the destination, as `name` or `schema.name`."""
    dynamodb: DynamoDbItem | None = None
    """Only for DynamoDB: other keys than the table's own, or several tables in one."""
    snapshot: bool | None = None
    """Whether the rows that exist already are sent too. Default: `defaults.snapshot`."""

    @model_validator(mode="after")
    def _one_choice(self) -> TableSettings:
        if self.columns is not None and self.exclude is not None:
            raise PydanticCustomError("choice", "takes `columns` or `exclude`, not both")
        return self


class DefaultsSettings(Settings):
    """What holds for every table that does not say otherwise."""

    snapshot: bool = True
    """Whether the rows that exist already are sent too."""


class MaskingSettings(Settings):
    """The secret behind `mask: hmac`."""

    key: SecretStr
    """At least 16 bytes that nobody else knows, best from `${MASKING_KEY}` or a file. Whoever has it can tell by
    trying whether a pseudonym stands for a certain value; with another key every pseudonym is another."""

    @model_validator(mode="after")
    def _long_enough(self) -> MaskingSettings:
        if len(self.key.get_secret_value().encode()) < MASK_KEY_BYTES_MIN:
            raise PydanticCustomError("short", f"must have a key of at least {MASK_KEY_BYTES_MIN} bytes")
        return self


class LimitsSettings(Settings):
    """What the program may use."""

    memory: Size = 300 * 1000**2
    """The whole process, about. Decides how much is read ahead."""


class JwtSettings(Settings):
    """Callers bring a JSON Web Token of an identity provider (OpenID Connect: Cognito, Entra ID, Okta, Keycloak …)."""

    issuer: str = Field(min_length=1)
    """What the token's `iss` must be, exactly."""
    audience: str = Field(min_length=1)
    """What the token's `aud` must be, or hold."""
    jwks_url: TrustedUrl
    """Where the provider publishes its keys."""
    tenant_claim: str = Field(default="tenant", min_length=1)
    """The claim that names the caller's tenant."""


class IamSettings(Settings):
    """Callers sign with AWS credentials, and API Gateway checks that: only behind API Gateway."""

    tenants: Annotated[
        Mapping[str, Annotated[str, Field(min_length=1)] | None],
        Field(min_length=1),
        WithJsonSchema(
            {
                "type": "object",
                "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "examples": ["{arn:aws:iam::123456789012:role/shop-web: tenant-a}"],
            }
        ),
    ]
    """Who may call, by the ARN of a role or a user, and the tenant of each; null: one without."""


class ApiKeySettings(Settings):
    """A key that a caller brings: at least 32 random letters and digits, of which only the hash stands here."""

    sha256: Sha256
    """The key's SHA-256, as `sha256sum` prints it for a file that holds the key and no line's end."""
    tenant: str | None = Field(default=None, min_length=1)
    """The tenant of whoever has the key."""


class AuthorizationSettings(Settings):
    """How callers show who they are: exactly one of `jwt`, `iam` and `api_keys`."""

    jwt: JwtSettings | None = None
    """By a token of an identity provider."""
    iam: IamSettings | None = None
    """By AWS credentials, which API Gateway checks."""
    api_keys: Annotated[Mapping[UrlName, ApiKeySettings], Field(min_length=1)] | None = None
    """By keys that you give out, each with a name that stands in the access log."""

    @model_validator(mode="after")
    def _exactly_one(self) -> AuthorizationSettings:
        given = [name for name in ("jwt", "iam", "api_keys") if getattr(self, name) is not None]
        if len(given) != 1:
            what = "names " + " and ".join(given) if given else "names none"
            raise PydanticCustomError(
                "choice", "must name exactly one of jwt, iam and api_keys; this {what}", {"what": what}
            )
        return self


class ApiIndexSettings(Settings):
    """A second way into a table: a global secondary index in DynamoDB, an index in a database."""

    partition_key: str = Field(min_length=1)
    """The column whose value a caller gives."""
    sort_key: str | None = Field(default=None, min_length=1)
    """The column by which the rows found are sorted; rows in which it is NULL are not found."""


class ApiTableSettings(Settings):
    """What callers see of a table."""

    table: Annotated[str, AfterValidator(_table_name)]
    """The source's table: `dbo.users`."""
    columns: ColumnNames
    """The columns that are shown, and no others; as the destination has them, after `rename`."""
    tenant: str | None = Field(default=None, min_length=1)
    """A column, shown or not, that must be equal to the caller's tenant. Without it every caller sees every row."""
    indexes: Mapping[IndexName, ApiIndexSettings] = Field(default_factory=dict)
    """Other ways to find rows than by key."""


class ApiLimitsSettings(Settings):
    """How much a caller may ask for."""

    page: int = Field(default=100, ge=1, le=1000)
    """Rows in an answer, at most."""
    requests_per_second: int = Field(default=50, ge=1, le=100_000)
    """Of one caller, in each process; for a moment twice as many."""


class ApiSettings(Settings):
    """The read API; see api.md."""

    schema_file: Path = Field(default=Path("upwell-api.json"), alias="schema")
    """The exposed tables' columns, types and keys: the API's contract. `upwell api --learn` writes it; it
    belongs into version control."""
    database: Annotated[SecretStr, _database_url(TARGET_SCHEMES)] | None = None
    """The database to read: `postgresql://USER:${PASSWORD}@HOST:5432/DATABASE`. Default: the DynamoDB tables where they
    are the destination or the subscriber's target, else `subscriber.target`."""
    heartbeat: Annotated[Duration, Field(ge=1)] = 10.0
    """How often the publisher sends heartbeat rows, by which the API knows how old the data is."""
    cursor_key: SecretStr
    """At least 32 characters that nobody else knows, from which the key is made that seals cursors; the same for all
    processes of an API."""
    authorization: AuthorizationSettings
    """How callers show who they are."""
    tables: Annotated[Mapping[UrlName, ApiTableSettings], Field(min_length=1)]
    """What is shown, by the name in the URL."""
    limits: ApiLimitsSettings = Field(default_factory=ApiLimitsSettings)
    """How much a caller may ask for."""

    @model_validator(mode="after")
    def _long_enough(self) -> ApiSettings:
        if len(self.cursor_key.get_secret_value().encode()) < CURSOR_KEY_BYTES_MIN:
            raise PydanticCustomError("short", f"must have a cursor_key of at least {CURSOR_KEY_BYTES_MIN} bytes")
        return self


class Config(Settings):
    """A pipeline."""

    pipeline: PipelineName
    """The pipeline's name: lower-case letters, digits, `_`, `.` and `-`. It is part of what the destination stores;
    give a copy of the pipeline another one."""
    source: SourceSettings | None = None
    """The database whose changes are published. A subscriber needs none."""
    destination: DestinationSettings | None = None
    """Where the change events go; for a subscriber, where they come from."""
    subscriber: SubscriberSettings | None = None
    """The database to which the changes are applied. A publisher needs none."""
    api: ApiSettings | None = None
    """The read API. Where there is one, the publisher sends heartbeat rows."""
    defaults: DefaultsSettings = Field(default_factory=DefaultsSettings)
    """What holds for every table that does not say otherwise."""
    tables: Mapping[str, Annotated[TableSettings, BeforeValidator(_empty_for_none)]] = Field(default_factory=dict)
    """The tables to publish, by name. See Table names."""
    masking: MaskingSettings | None = None
    """The secret behind `mask: hmac`."""
    state: Path = Path("upwell-state.db")
    """The file in which the publisher keeps how far it has come. Whoever deletes it starts a full resync."""
    limits: LimitsSettings = Field(default_factory=LimitsSettings)
    """What the program may use."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the file, in which every setting has its description."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "upwell.yaml"}
