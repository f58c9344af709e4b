"""AWS's JSON services: credentials and endpoints by botocore, requests by ourselves.

botocore knows every way to come by credentials and every endpoint; its own client costs 15 µs a Kinesis record and
re-sends behind our back. Here a call is one attempt, and what goes wrong becomes a class of errors.py.
"""

from __future__ import annotations

import email.utils
import os
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlencode, urlsplit

import orjson

from upwell.aws_errors import passes_by_itself, translate
from upwell.errors import ConfigError, OperatorError, TransientError, UpwellError
from upwell.http1 import ANSWER_S, CONNECT_S, READ_S, Answer, Connection, Proxy, Route, Waiting, trust
from upwell.sigv4 import Keys, Signer

# From this on requests are signed with AWS's time: it refuses those that are five minutes off.
SKEW_S_MAX: Final = 60.0
_NO_KEYS = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
_SKEW_EVERY_S = 10.0
_KEYS_EVERY_S = 1.0
_TOKEN_S: Final = 900
_HANDSHAKES_MAX = 16  # at the same time
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# For stand-ins on this machine, which ask for keys but check none.
_LOCAL_KEYS = Keys("test", "test", None)


class _Service(NamedTuple):
    target: str  # the prefix of X-Amz-Target
    content_type: str
    connections_max: int


_SERVICES: Final = {
    # Few large calls.
    "kinesis": _Service("Kinesis_20131202", "application/x-amz-json-1.1", 16),
    # A call an item: 64 under way make 3,200 items a second at 20 ms.
    "dynamodb": _Service("DynamoDB_20120810", "application/x-amz-json-1.0", 64),
    "secretsmanager": _Service("secretsmanager", "application/x-amz-json-1.1", 1),
}


class JsonService(Protocol):
    """What adapters use of a service."""

    @property
    def region(self) -> str: ...

    @property
    def clock_skew_s(self) -> float | None: ...

    def call(self, action: str, payload: Mapping[str, Any] | bytes) -> dict[str, Any]: ...

    def call_many(
        self, action: str, payloads: Sequence[Mapping[str, Any] | bytes]
    ) -> list[dict[str, Any] | UpwellError]: ...

    def close(self) -> None: ...


class AwsService:
    """One JSON service in one region. Threads share it; a thread may have many requests under way at once."""

    def __init__(
        self,
        service: str,
        region: str | None = None,
        *,
        endpoint_url: str | None = None,
        proxy: str | None = None,
        ca_bundle: str | None = None,
        connections_max: int | None = None,
    ) -> None:
        """`service`: kinesis, dynamodb or secretsmanager. What is None comes from the environment and AWS's files;
        of `connections_max`, from what suits the service.

        Connects to nothing yet. Raises ConfigError, or OperatorError where no region is known.
        """
        self.service = service
        self._target, content_type, default_max = _SERVICES[service]
        place = Place.find(service, region, endpoint_url, proxy, ca_bundle)
        self.region = place.region
        self.endpoint_url = place.url
        self._credentials = Credentials(place)
        self._route = place.route()
        self._signer = Signer(service, place.region, place.host_header, place.path, content_type)
        self._connections_max = connections_max or default_max
        self._idle: list[Connection] = []
        self._in_use = 0
        self._freed = threading.Condition()
        self._time = AwsTime()
        self._closed = False

    @property
    def clock_skew_s(self) -> float | None:
        """How far this machine's clock is ahead of AWS's, to about a second; None before the first answer."""
        return self._time.skew_s

    @property
    def route(self) -> Route:
        """How the endpoint is reached."""
        return self._route

    def keys(self) -> Keys:
        """The credentials as they are now, refreshed where they run out. Raises OperatorError or TransientError."""
        return self._credentials.current()

    def call(self, action: str, payload: Mapping[str, Any] | bytes) -> dict[str, Any]:
        """One request; `payload` as JSON or to be encoded as such. Raises UpwellError."""
        (answer,) = self.call_many(action, [payload])
        if isinstance(answer, UpwellError):
            raise answer
        return answer

    def call_many(
        self, action: str, payloads: Sequence[Mapping[str, Any] | bytes]
    ) -> list[dict[str, Any] | UpwellError]:
        """Many requests at once over several connections, from this thread; an answer for each, in their order.

        A request that may have arrived is answered with TransientError where its connection was lost. After a
        connection could not be made, or the credentials failed, what was not yet sent is answered with that error.
        """
        if not payloads:
            return []
        try:
            keys = self._credentials.current()
            connections = self._borrow(len(payloads))
        except UpwellError as error:
            return [error] * len(payloads)
        try:
            return self._scatter(f"{self._target}.{action}", payloads, keys, connections)
        finally:
            self._give_back(connections)

    def close(self) -> None:
        """Close the idle connections; those in use close when their call ends."""
        with self._freed:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _scatter(
        self,
        target: str,
        payloads: Sequence[Mapping[str, Any] | bytes],
        keys: Keys,
        connections: list[Connection],
    ) -> list[dict[str, Any] | UpwellError]:
        """A request goes over the next connection that is free, so that a slow answer holds back nothing but itself.

        Where one does not come at all, no more are sent: each would wait as long.
        """
        answers: list[dict[str, Any] | UpwellError] = [_UNSENT] * len(payloads)
        free = list(range(len(connections)))
        slots: dict[int, int] = {}  # request → connection
        waiting = Waiting()
        failure: UpwellError | None = None
        index = 0
        while True:
            while free and index < len(payloads) and failure is None:
                slot = free.pop()
                if not connections[slot].alive():
                    connections[slot].close()
                    made = self._connect()
                    if isinstance(made, UpwellError):
                        failure = made
                        break
                    connections[slot] = made
                lost = self._send(connections[slot], target, payloads[index], keys)
                if lost is None:
                    slots[index] = slot
                    waiting.add(connections[slot], index)
                else:
                    answers[index] = lost
                    free.append(slot)
                index += 1
            if not waiting:
                return [failure if answer is _UNSENT and failure is not None else answer for answer in answers]
            for connection, due in waiting.next():
                answers[due] = answer = self._receive(connection, keys)
                free.append(slots.pop(due))
                if isinstance(answer, UpwellError) and isinstance(answer.__cause__, TimeoutError):
                    failure = answer

    def _send(
        self, connection: Connection, target: str, payload: Mapping[str, Any] | bytes, keys: Keys
    ) -> TransientError | None:
        body = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        try:
            connection.send(self._signer.head(target, body, keys, self._time.now()), body)
        except TransientError as error:
            return error
        return None

    def _receive(self, connection: Connection, keys: Keys) -> dict[str, Any] | UpwellError:
        try:
            answer = connection.receive()
        except UpwellError as error:
            return error
        self._time.note(answer)
        if answer.status == 200:
            try:
                content: dict[str, Any] = orjson.loads(answer.body or b"{}")  # some actions answer nothing
            except ValueError:
                connection.close()
                return TransientError(f"{self._route.host} answered something that is not JSON.", code="UW-AWS-020")
            return content
        failure = translate(self.service, answer)
        if failure.code in ("UW-AWS-005", "UW-AWS-006"):
            self._credentials.forget(keys)  # perhaps new ones lie in the file by now
        return failure

    def _borrow(self, wanted: int) -> list[Connection]:
        """One to `wanted` connections, new ones where those at rest are too few. Raises UpwellError."""
        deadline = time.monotonic() + READ_S + ANSWER_S
        with self._freed:
            while self._in_use >= self._connections_max:
                wait_s = deadline - time.monotonic()
                if wait_s <= 0:
                    raise TransientError(
                        f"All {self._connections_max} connections to {self._route.host} are in use.", code="UW-AWS-012"
                    )
                self._freed.wait(wait_s)
            count = min(wanted, self._connections_max - self._in_use)
            self._in_use += count
            # The ones that rested the shortest are the least likely to be closed.
            rested = [self._idle.pop() for _ in range(min(count, len(self._idle)))]
        alive = [connection for connection in rested if connection.alive()]
        for connection in rested:
            if connection not in alive:
                connection.close()
        made = self._connect_many(count - len(alive)) if len(alive) < count else []
        borrowed = alive + [each for each in made if isinstance(each, Connection)]
        with self._freed:
            self._in_use -= count - len(borrowed)
            self._freed.notify_all()
        if not borrowed:
            raise next(each for each in made if isinstance(each, UpwellError))
        return borrowed

    def _connect_many(self, count: int) -> list[Connection | UpwellError]:
        """At the same time: a handshake takes two or three times the way there. After a failure no more are tried."""
        failures: list[UpwellError] = []

        def attempt(_: int) -> Connection | UpwellError:
            if failures:
                return failures[0]
            made = self._connect()
            if isinstance(made, UpwellError):
                failures.append(made)
            return made

        if count == 1:
            return [attempt(0)]
        with ThreadPoolExecutor(min(count, _HANDSHAKES_MAX), "connect") as pool:
            return list(pool.map(attempt, range(count)))

    def _connect(self) -> Connection | UpwellError:
        try:
            return Connection(self._route)
        except UpwellError as error:
            return error

    def _give_back(self, connections: list[Connection]) -> None:
        with self._freed:
            for connection in connections:
                if connection.reusable and not self._closed:
                    self._idle.append(connection)
                else:
                    connection.close()
            self._in_use -= len(connections)
            self._freed.notify_all()


_UNSENT: Final = TransientError("The request was not sent.", code="UW-AWS-012")


class AwsTime:
    """AWS's clock, as its answers tell it."""

    def __init__(self) -> None:
        self.skew_s: float | None = None  # how far this machine's clock is ahead; None before the first answer
        self._noted_at = 0.0

    def now(self) -> float:
        """The time to sign with: AWS's own where this machine's clock is far off."""
        skew_s = self.skew_s
        return time.time() if skew_s is None or abs(skew_s) < SKEW_S_MAX else time.time() - skew_s

    def note(self, answer: Answer) -> None:
        """Learn from an answer, now and then."""
        now = time.monotonic()
        if self.skew_s is not None and now - self._noted_at < _SKEW_EVERY_S:
            return
        try:
            then = email.utils.parsedate_to_datetime(answer.header("date") or "")
        except ValueError:  # a stand-in without a clock
            return
        self.skew_s, self._noted_at = time.time() - then.timestamp(), now


class Place:
    """Where a service is, and how it is reached."""

    def __init__(self, region: str, url: str, proxy: str | None, ca_bundle: str | None) -> None:
        self.region = region
        self.url = url
        self.ca_bundle = ca_bundle
        parts = urlsplit(url)
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigError(
                f"The endpoint {url!r} is not a URL of the form https://host[:port].",
                code="UW-AWS-019",
                remedy="Correct endpoint_url, or leave it out to use AWS's own endpoint.",
            )
        self.host = host
        self.secure = parts.scheme == "https"
        self.port = parts.port or (443 if self.secure else 80)
        self.path = parts.path or "/"
        self.host_header = parts.netloc.rpartition("@")[2].lower()
        self.loopback = host in _LOOPBACK
        self.proxy = proxy or (_environment_proxy(host) if self.secure else None)

    @classmethod
    def find(
        cls, service: str, region: str | None, endpoint_url: str | None, proxy: str | None, ca_bundle: str | None
    ) -> Place:
        """Resolve what is None as every AWS tool does: environment, configuration files, AWS's own endpoints."""
        import botocore.exceptions
        import botocore.session

        session = botocore.session.Session()
        try:
            # AWS_REGION is what its newer tools and its containers know; botocore does not.
            region = region or os.environ.get("AWS_REGION") or session.get_config_variable("region")
            ca_bundle = ca_bundle or session.get_config_variable("ca_bundle")
            if region is None and endpoint_url is None:
                raise OperatorError(
                    f"No AWS region is configured for {service}.",
                    code="UW-AWS-019",
                    remedy="Set region in the destination, or AWS_REGION.",
                )
            region = region or "us-east-1"  # a stand-in's signature is checked by nobody
            if endpoint_url is None:
                # These keys sign nothing: the client is made only to ask it for its endpoint.
                client = session.create_client(service, region_name=region, **_NO_KEYS)
                endpoint_url = client.meta.endpoint_url
        except botocore.exceptions.BotoCoreError as error:
            raise OperatorError(
                f"AWS's configuration can't be used: {error}",
                code="UW-AWS-003",
                remedy="Check ~/.aws/config and the AWS_ variables of the environment.",
            ) from error
        return cls(region, str(endpoint_url), proxy, ca_bundle)

    def route(self) -> Route:
        return Route(
            host=self.host,
            port=self.port,
            tls=trust(self.ca_bundle or _public_authorities()) if self.secure else None,
            proxy=Proxy.parse(self.proxy) if self.proxy else None,
        )


def _public_authorities() -> str:
    import botocore.httpsession

    return str(botocore.httpsession.where())


def _environment_proxy(host: str) -> str | None:
    """HTTPS_PROXY and NO_PROXY, or what the system has in their place."""
    if urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get("https")


class Credentials:
    """botocore's credentials, whichever provider has them; it refreshes them before they run out."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._source: Any = None  # botocore's Credentials, which refresh themselves
        self._keys: Keys | None = None
        self._checked_at = 0.0

    def current(self) -> Keys:
        """Asks the provider at most once a second. The same object as long as they are the same."""
        with self._lock:
            if self._keys is not None and time.monotonic() - self._checked_at < _KEYS_EVERY_S:
                return self._keys
            found = self._find()
            if self._keys is None or self._keys != found:
                self._keys = found
            self._checked_at = time.monotonic()
            return self._keys

    def forget(self, refused: Keys) -> None:
        """AWS refuses these: look again, also where they were not meant to change."""
        with self._lock:
            if self._keys is refused:
                self._source = self._keys = None

    def _find(self) -> Keys:
        import botocore.exceptions

        try:
            if self._source is None:
                self._source = self._session().get_credentials()
            if self._source is None:
                if self._place.loopback:
                    return _LOCAL_KEYS
                raise _no_credentials()
            frozen = self._source.get_frozen_credentials()
        except botocore.exceptions.BotoCoreError as error:
            self._source = None
            raise _credentials_failed(error) from error
        except botocore.exceptions.ClientError as error:  # from STS or SSO
            self._source = None
            raise _credentials_refused(error.response.get("Error", {}).get("Code", "an error")) from error
        except OSError as error:  # credential_process names a program that is not there
            self._source = None
            raise OperatorError(
                f"The program that should give AWS credentials can't be started: {error.strerror or error}.",
                code="UW-AWS-003",
                remedy="Check credential_process in ~/.aws/config.",
            ) from error
        if not frozen.access_key or not frozen.secret_key:
            raise _no_credentials()
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    def _session(self) -> Any:
        """A botocore session whose own calls (STS, SSO) go the way that ours go."""
        import botocore.config
        import botocore.session

        session = botocore.session.Session()
        place = self._place
        proxies = {"https": place.proxy if "//" in place.proxy else f"http://{place.proxy}"} if place.proxy else None
        session.set_default_client_config(
            botocore.config.Config(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                retries={"total_max_attempts": 1},
                **({"proxies": proxies} if proxies else {}),
            )
        )
        if place.ca_bundle:
            session.set_config_variable("ca_bundle", place.ca_bundle)
        session.set_config_variable("region", place.region)
        if place.loopback:  # no waiting for the metadata service of a machine in EC2
            session.get_component("credential_provider").remove("iam-role")
        return session


class DatabaseTokens:
    """Passwords for RDS and Aurora with IAM authentication: a signed request that nobody sends, good for 15 minutes.

    https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.Connecting.html
    """

    def __init__(self, region: str | None, *, proxy: str | None = None, ca_bundle: str | None = None) -> None:
        """Where the database is, and how its credentials' own calls go. Asks for nothing yet."""
        self._region = region
        self._way = proxy, ca_bundle
        self._credentials: Credentials | None = None

    def token(self, host: str, port: str, user: str) -> str:
        """The password of this moment. Raises OperatorError or TransientError."""
        import botocore.auth
        import botocore.awsrequest

        if self._credentials is None:
            place = Place.find("sts", self._region, None, *self._way)
            self._region, self._credentials = place.region, Credentials(place)
        url = f"https://{host}:{port}/?{urlencode({'Action': 'connect', 'DBUser': user})}"
        request = botocore.awsrequest.AWSRequest("GET", url)
        signer = botocore.auth.SigV4QueryAuth(self._credentials.current(), "rds-db", self._region, _TOKEN_S)
        signer.add_auth(request)
        return str(request.url).removeprefix("https://")


def _no_credentials() -> OperatorError:
    return OperatorError(
        "No AWS credentials were found.",
        code="UW-AWS-001",
        remedy="Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or credential_process in "
        "~/.aws/config (with IAM Roles Anywhere no key lies on this machine).",
    )


def _credentials_failed(error: Exception) -> UpwellError:
    """What botocore says when a provider fails, by the exception's name."""
    name = type(error).__name__
    if name in _BROKEN_CONFIGURATION:
        return OperatorError(
            f"AWS credentials can't be loaded: {error}",
            code="UW-AWS-003",
            remedy="Check AWS_PROFILE, ~/.aws/config and ~/.aws/credentials.",
        )
    if name in _SIGN_IN:
        return OperatorError(
            "The AWS sign-in session has ended.", code="UW-AWS-003", remedy="Run: aws sso login (or: aws login)"
        )
    return TransientError(
        f"AWS credentials could not be had ({name}); the program or service that gives them failed.",
        code="UW-AWS-002",
        remedy="Run: aws sts get-caller-identity",
    )


_BROKEN_CONFIGURATION = (
    "ProfileNotFound",
    "PartialCredentialsError",
    "ConfigNotFound",
    "ConfigParseError",
    "InvalidConfigError",
    "InfiniteLoopConfigError",
    "UnknownCredentialError",
    "NoCredentialsError",
    "MissingDependencyException",
)
_SIGN_IN = (
    "SSOTokenLoadError",
    "UnauthorizedSSOTokenError",
    "TokenRetrievalError",
    "LoginRefreshRequired",
    "LoginTokenLoadError",
)


def _credentials_refused(reason: str) -> UpwellError:
    message = f"AWS gives no credentials for the configured role: {reason}."
    if passes_by_itself(reason):
        return TransientError(message, code="UW-AWS-002")
    return OperatorError(
        message, code="UW-AWS-003", remedy="Check the role's trust policy, then run: aws sts get-caller-identity"
    )
