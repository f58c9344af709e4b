"""Who gets in, and above all who does not."""

import hashlib
import hmac
import json
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.identity_provider import AUDIENCE, ISSUER, IdentityProvider, unsigned
from upwell.clock import SystemClock
from upwell.cloud import jwks
from upwell.cloud.answers import Problem
from upwell.cloud.authorization import ApiKeyAuthorizer, Authorizer, Caller, IamAuthorizer, JwtAuthorizer
from upwell.cloud.jwks import ASK_AGAIN_S, BYTES_MAX, KEEP_S, RENEW_S, STRANGERS_MAX, Jwks, fetch_from
from upwell.errors import TransientError

WEAK_BITS = 1024


class FakeClock(SystemClock):
    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def provider() -> IdentityProvider:
    return IdentityProvider()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def authorizer(provider: IdentityProvider, clock: FakeClock) -> JwtAuthorizer:
    return JwtAuthorizer(ISSUER, AUDIENCE, "tenant", Jwks(provider.fetch, clock))


def refused(authorizer: Authorizer, header: str | None) -> str:
    with pytest.raises(Problem) as problem:
        authorizer.caller(header, None)
    assert problem.value.status == 401
    return problem.value.detail


# --- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kid", ["rsa", "ec", "ed"])
def test_a_good_token_gets_in(authorizer: JwtAuthorizer, provider: IdentityProvider, kid: str) -> None:
    for claims in ({}, {"aud": ["other", AUDIENCE]}, {"nbf": time.time() - 5}, {"exp": time.time() - 20}):
        caller = authorizer.caller(f"Bearer {provider.token(kid=kid, tenant='a', **claims)}", None)
        assert caller == Caller(hashlib.sha256(b"someone").hexdigest()[:16], "a")
    assert authorizer.caller(f"bearer  {provider.token(kid=kid, tenant=7)} ", None).tenant == "7"
    assert authorizer.caller(f"Bearer {provider.token(kid=kid)}", None).tenant is None


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://idp.example/other"},
        {"iss": ISSUER + "/"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"aud": AUDIENCE.upper()},
        {"exp": None},
        {"exp": time.time() - 60},
        {"exp": "soon"},
        {"nbf": time.time() + 3600},
        {"iat": time.time() + 3600},
        {"sub": None},
        {"sub": ""},
        {"tenant": ["a", "b"]},
        {"tenant": {"id": "a"}},
        {"tenant": True},
        {"tenant": ""},
        {"tenant": "x" * 257},
        {"sub": "\ud800"},
        {"tenant": "a\ud800"},
    ],
)
def test_a_token_with_a_wrong_claim_does_not(
    authorizer: JwtAuthorizer, provider: IdentityProvider, claims: dict[str, Any]
) -> None:
    header = {"kid": "rsa"}
    content = {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 300, **claims}
    content = {name: value for name, value in content.items() if value is not None}
    parts = (json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT", **header}, content))
    body = ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    signature = jwt.get_algorithm_by_name("RS256").sign(body.encode(), provider.private["rsa"])
    token = f"{body}.{urlsafe_b64encode(signature).decode().rstrip('=')}"
    refused(authorizer, f"Bearer {token}")


def test_nobody_signs_but_the_provider(authorizer: JwtAuthorizer, provider: IdentityProvider) -> None:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": int(time.time()) + 300, "tenant": "a"}
    public = provider.private["rsa"].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    jwk = orjson.dumps(provider.public("rsa"))
    tokens = [unsigned({"alg": alg, "kid": "rsa"}, claims) for alg in ("none", "None", "NONE", "", None, "RS256")]
    for secret in (pem, pem.strip(), jwk, b"", provider.public("rsa")["n"].encode()):  # taken for a shared secret
        body = unsigned({"alg": "HS256", "kid": "rsa"}, claims).rsplit(".", 1)[0]
        signature = hmac.digest(secret, body.encode(), "sha256")
        tokens.append(f"{body}.{urlsafe_b64encode(signature).decode().rstrip('=')}")
    mine, curve = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
    own = jwt.algorithms.RSAAlgorithm.to_jwk(mine.public_key(), as_dict=True)
    for header in (
        {},
        {"kid": "rsa"},
        {"kid": "mine"},
        {"kid": "rsa", "jwk": own},
        {"kid": "rsa", "jku": "https://me"},
    ):
        tokens += [jwt.encode(claims, mine, "RS256", headers=header)]
    tokens.append(jwt.encode(claims, curve, "ES256", headers={"kid": "ec"}))
    tokens.append(jwt.encode(claims, provider.private["rsa"], "RS256"))  # names no key
    tokens.append(jwt.encode(claims, provider.private["rsa"], "RS256", headers={"kid": "ec"}))
    tokens.append(jwt.encode(claims, provider.private["ec"], "ES256", headers={"kid": "rsa"}))
    tokens.append(provider.token(header={"crit": ["exp"]}))
    tokens.append(provider.token(header={"crit": ["x"], "x": 1}))
    for token in tokens:
        refused(authorizer, f"Bearer {token}")


def test_a_token_that_was_changed_does_not(authorizer: JwtAuthorizer, provider: IdentityProvider) -> None:
    head, body, signature = provider.token(tenant="a").split(".")
    claims = orjson.loads(urlsafe_b64decode(body + "=="))
    other = unsigned({}, {**claims, "tenant": "b"}).split(".")[1]
    for token in (
        f"{head}.{other}.{signature}",
        f"{head}.{body}.",
        f"{head}.{body}",
        f"{head}.{body}.{signature[:-4]}",
        f"{head}.{body}.{signature[::-1]}",
        f"{head}.{body}.{signature}.x",
        f".{body}.{signature}",
        "...",
        "e30.e30.e30",
        "x",
    ):
        refused(authorizer, f"Bearer {token}")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Token x", "Bearer a b", "x" * 9000]
)
def test_what_is_no_token_does_not(authorizer: JwtAuthorizer, provider: IdentityProvider, header: str | None) -> None:
    refused(authorizer, header)
    assert provider.asked == 0


def test_an_oversized_token_is_not_looked_at(authorizer: JwtAuthorizer, provider: IdentityProvider) -> None:
    assert "longer" in refused(authorizer, f"Bearer {provider.token(padding='x' * 9000)}")
    assert provider.asked == 0


# --- the provider's keys --------------------------------------------------------------------------------------------


def test_keys_that_are_not_fit_are_left_out(authorizer: JwtAuthorizer, provider: IdentityProvider) -> None:
    short, good = rsa.generate_private_key(65537, WEAK_BITS), rsa.generate_private_key(65537, 2048)
    of = jwt.algorithms.RSAAlgorithm.to_jwk
    secret = urlsafe_b64encode(b"x" * 64).decode()
    provider.extra = [
        {**of(short.public_key(), as_dict=True), "kid": "short"},
        {**of(good.public_key(), as_dict=True), "kid": "for-encryption", "use": "enc"},
        {**of(good.public_key(), as_dict=True), "kid": "only-384", "alg": "RS384"},
        {**of(good.public_key(), as_dict=True), "kid": "not-allowed", "alg": "RSA-OAEP"},
        {**of(good.public_key(), as_dict=True), "kid": "none", "alg": "none"},
        {"kty": "oct", "k": secret, "kid": "shared"},
        {"kty": "oct", "k": secret, "kid": "shared-256", "alg": "HS256"},
        {"kty": "EC", "crv": "P-256", "kid": "broken", "x": "AA", "y": "AA"},
        {"kty": "new", "kid": "unknown"},
        {"kty": "RSA"},
    ]
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": int(time.time()) + 300}
    for kid, key, algorithm in (
        ("for-encryption", good, "RS256"),
        ("only-384", good, "RS256"),
        ("only-384", good, "PS384"),
        ("not-allowed", good, "RS256"),
        ("none", good, "RS256"),
        ("shared", b"x" * 64, "HS256"),
        ("shared-256", b"x" * 64, "HS256"),
    ):
        refused(authorizer, f"Bearer {jwt.encode(claims, key, algorithm, headers={'kid': kid})}")
    good_one = jwt.encode(claims, good, "RS384", headers={"kid": "only-384"})
    authorizer.caller(f"Bearer {good_one}", None)
    authorizer.caller(f"Bearer {provider.token()}", None)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        weak = jwt.encode(claims, short, "RS256", headers={"kid": "short"})
    refused(authorizer, f"Bearer {weak}")


def test_a_new_key_is_found_and_a_withdrawn_one_forgotten(
    authorizer: JwtAuthorizer, provider: IdentityProvider, clock: FakeClock
) -> None:
    old = f"Bearer {provider.token()}"
    authorizer.caller(old, None)
    provider.private["rsa-2"] = rsa.generate_private_key(65537, 2048)
    provider.published = {"rsa-2"}
    clock.at += ASK_AGAIN_S + 1
    authorizer.caller(f"Bearer {provider.token(kid='rsa-2')}", None)
    refused(authorizer, old)


def test_a_withdrawn_key_is_good_for_minutes_at_most(
    authorizer: JwtAuthorizer, provider: IdentityProvider, clock: FakeClock
) -> None:
    old = f"Bearer {provider.token()}"
    authorizer.caller(old, None)
    provider.published = {"ec"}
    authorizer.caller(old, None)
    clock.at += RENEW_S + 1
    refused(authorizer, old)


def test_made_up_keys_make_us_ask_now_and_then_only(
    authorizer: JwtAuthorizer, provider: IdentityProvider, clock: FakeClock
) -> None:
    for number in range(200):
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": int(time.time()) + 300}
        refused(authorizer, f"Bearer {unsigned({'alg': 'RS256', 'kid': f'k{number}'}, claims, b'x' * 256)}")
        clock.at += ASK_AGAIN_S / 50
    assert provider.asked <= 5


def test_made_up_keys_hold_up_a_few_threads_only(
    provider: IdentityProvider, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the provider takes its time: all others answer those whose keys are known."""
    monkeypatch.setattr(jwks, "WAIT_S", 30.0)
    answering = threading.Event()

    def fetch() -> bytes:
        if provider.asked:
            answering.wait(30)
        return provider.fetch()

    keys = Jwks(fetch, clock)
    assert keys.key("rsa") is not None
    clock.at += ASK_AGAIN_S + 1
    threads = [threading.Thread(target=keys.key, args=(f"made up {n}",)) for n in range(30)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    while sum(thread.is_alive() for thread in threads) > STRANGERS_MAX:
        assert time.monotonic() - started < 15
        time.sleep(0.01)
    answering.set()
    for thread in threads:
        thread.join(20)
    assert provider.asked == 2


def test_while_the_provider_is_away_its_keys_stay_good_for_hours(
    authorizer: JwtAuthorizer, provider: IdentityProvider, clock: FakeClock
) -> None:
    token = f"Bearer {provider.token(exp=time.time() + 10**6)}"
    authorizer.caller(token, None)
    provider.away = True
    clock.at += RENEW_S + 1
    authorizer.caller(token, None)
    refused(authorizer, f"Bearer {provider.token(header={'kid': 'unknown'})}")
    clock.at += KEEP_S
    with pytest.raises(TransientError) as error:
        authorizer.caller(token, None)
    assert error.value.code == "UW-AP-020"
    provider.away = False
    clock.at += ASK_AGAIN_S + 1
    authorizer.caller(token, None)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b'{"keys": []}', b'{"keys": 1}', b'{"keys": ["x"]}', b"<html>"]
)
def test_an_answer_that_holds_no_keys_is_a_trouble_that_passes(content: bytes, clock: FakeClock) -> None:
    authorizer = JwtAuthorizer(ISSUER, AUDIENCE, "tenant", Jwks(lambda: content, clock))
    with pytest.raises(TransientError):
        authorizer.caller(f"Bearer {IdentityProvider().token()}", None)


def test_many_threads_fetch_once(provider: IdentityProvider, clock: FakeClock) -> None:
    keys, gate, token = Jwks(provider.fetch, clock), threading.Barrier(10), provider.token()
    authorizer = JwtAuthorizer(ISSUER, AUDIENCE, "tenant", keys)
    found: list[Caller] = []

    def call() -> None:
        gate.wait()
        found.append(authorizer.caller(f"Bearer {token}", None))

    threads = [threading.Thread(target=call) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    assert provider.asked == 1


def test_keys_are_fetched_from_one_place_and_not_without_end() -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(302 if self.path == "/moved" else 200)
            self.send_header("Location", "/keys")
            self.end_headers()
            self.wfile.write(b"x" * (BYTES_MAX + 1) if self.path == "/long" else b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert fetch_from(f"{url}/keys")() == b"{}"
        with pytest.raises(ValueError, match="too long"):
            fetch_from(f"{url}/long")()
        with pytest.raises(OSError, match="302"):
            fetch_from(f"{url}/moved")()
        server.shutdown()
        thread.join()


# --- keys that were given out, AWS credentials ----------------------------------------------------------------------


def test_a_key_gets_in_by_its_hash() -> None:
    known = hashlib.sha256(b"secret-of-a").hexdigest()
    authorizer = ApiKeyAuthorizer({"web": (known, "a"), "jobs": (hashlib.sha256(b"other").hexdigest(), None)})
    assert authorizer.caller("Bearer secret-of-a", None) == Caller("web", "a")
    assert authorizer.caller("Bearer other", None) == Caller("jobs", None)
    for header in (None, "secret-of-a", f"Bearer {known}", "Bearer secret-of-A", "Bearer x", "Bearer web", "Bearer "):
        refused(authorizer, header)


ROLE = "arn:aws:iam::123456789012:role/team/shop-web"
SESSION = "arn:aws:sts::123456789012:assumed-role/shop-web/session-1"


def event(arn: object) -> dict[str, Any]:
    return {"requestContext": {"identity": {"userArn": arn}}}


def test_a_role_gets_in_as_api_gateway_says() -> None:
    user = "arn:aws:iam::123456789012:user/ops/ann"
    authorizer = IamAuthorizer({ROLE: "a", user: None})
    assert authorizer.caller(None, event(SESSION)).tenant == "a"
    assert authorizer.caller("Bearer x", event(user)).tenant is None


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        {"requestContext": None},
        {"requestContext": {"identity": None}},
        event(None),
        event(""),
        event(7),
        event("arn:aws:sts::123456789012:assumed-role/other/session"),
        event("arn:aws:sts::999999999999:assumed-role/shop-web/session"),
        event("arn:aws:sts::123456789012:federated-user/shop-web"),
        event(SESSION.replace("/session-1", "")),
        {"headers": {"userArn": SESSION}, "identity": {"userArn": SESSION}},
    ],
)
def test_others_do_not(said: dict[str, Any] | None) -> None:
    with pytest.raises(Problem) as problem:
        IamAuthorizer({ROLE: "a"}).caller("Bearer x", said)
    assert problem.value.status in (401, 403)
