"""Who calls: by a token of an identity provider, by a key that was given out, or as API Gateway says.

A caller is nothing but a name and a tenant, and both come from what was verified: never from a header, a parameter or
a path.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeGuard

from upwell.cloud.answers import Problem
from upwell.cloud.jwks import Jwks

TOKEN_BYTES_MAX: Final = 8 * 1024
LEEWAY_S: Final = 30  # between the provider's clock and ours
TENANT_CHARS_MAX: Final = 256
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*) *")
_ASSUMED_ROLE: Final = re.compile(r"arn:(aws[a-z-]*):sts::([0-9]{12}):assumed-role/([^/]+)/.+")
_ROLE_PATH: Final = re.compile(r"(arn:aws[a-z-]*:iam::[0-9]{12}:role/)(?:.*/)?([^/]+)")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who was verified."""

    name: str  # for throttling and, if it is no person's, the access log
    tenant: str | None


class Authorizer(Protocol):
    """How callers show who they are."""

    scheme: str  # bearer | iam
    described: str  # for the API's description

    def caller(self, authorization: str | None, event: Mapping[str, Any] | None) -> Caller:
        """`authorization`: the header; `event`: API Gateway's, where it is the way in. Raises Problem 401,
        or TransientError where it can't be told now.
        """


def unauthorized(detail: str) -> Problem:
    """401."""
    return Problem(401, detail, www_authenticate='Bearer realm="upwell"')


def bearer(authorization: str | None) -> str:
    """The token of the header. Raises Problem 401."""
    if authorization is None:
        raise unauthorized("An Authorization header with a bearer token is needed.")
    if len(authorization) > TOKEN_BYTES_MAX:
        raise unauthorized(f"The token is longer than {TOKEN_BYTES_MAX} bytes.")
    found = _BEARER.fullmatch(authorization)
    if found is None:
        raise unauthorized("The Authorization header is not of the form: Bearer TOKEN.")
    return found[1]


class JwtAuthorizer:
    """By JSON Web Tokens of one issuer, for one audience."""

    scheme = "bearer"
    described = "A JSON Web Token of the configured issuer, for this API's audience, that names the caller's tenant."

    def __init__(self, issuer: str, audience: str, tenant_claim: str, keys: Jwks) -> None:
        self._issuer = issuer
        self._audience = audience
        self._tenant_claim = tenant_claim
        self._keys = keys

    def caller(self, authorization: str | None, event: Mapping[str, Any] | None) -> Caller:
        """See Authorizer."""
        claims = self._claims(bearer(authorization))
        subject = claims.get("sub") or claims.get("client_id") or claims.get("azp")
        if not _is_text(subject):
            raise unauthorized("The token does not say whom it is about.")
        name = hashlib.sha256(subject.encode()).hexdigest()[:16]
        return Caller(name, self._tenant(claims))

    def _claims(self, token: str) -> dict[str, Any]:
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
            key = self._keys.key(kid) if isinstance(kid, str) else None
            if key is None or algorithm not in key.algorithms:
                raise unauthorized("The token is not signed with a key of the issuer.")
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise unauthorized("The token has expired.") from error
        except (jwt.InvalidTokenError, ValueError, TypeError) as error:
            raise unauthorized("The token is not valid here.") from error
        return claims

    def _tenant(self, claims: Mapping[str, Any]) -> str | None:
        tenant = claims.get(self._tenant_claim)
        if isinstance(tenant, int) and not isinstance(tenant, bool):
            tenant = str(tenant)
        if tenant is None:
            return None
        if not _is_text(tenant) or len(tenant) > TENANT_CHARS_MAX:
            raise unauthorized("The token's tenant is not a text.")
        return tenant


def _is_text(value: object) -> TypeGuard[str]:
    """Half of a surrogate pair, which JSON's escapes may leave, is none."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


class ApiKeyAuthorizer:
    """By keys that were given out, of which only the hashes are known."""

    scheme = "bearer"
    described = "A key that was given out for this API."

    def __init__(self, keys: Mapping[str, tuple[str, str | None]]) -> None:
        """name → (SHA-256 in hex, tenant)."""
        self._keys = dict(keys)

    def caller(self, authorization: str | None, event: Mapping[str, Any] | None) -> Caller:
        """See Authorizer. Takes as long for whichever key, and for none."""
        digest = hashlib.sha256(bearer(authorization).encode()).hexdigest()
        found: Caller | None = None
        for name, (sha256, tenant) in self._keys.items():
            if hmac.compare_digest(digest, sha256):
                found = Caller(name, tenant)
        if found is None:
            raise unauthorized("The key is not known.")
        return found


class IamAuthorizer:
    """By AWS credentials: API Gateway checks the signature, and its event says whose it was."""

    scheme = "iam"
    described = "A request signed with AWS credentials (Signature Version 4), which API Gateway checks."

    def __init__(self, tenants: Mapping[str, str | None]) -> None:
        """The ARN of a role or user → its tenant."""
        self._tenants = {_ROLE_PATH.sub(r"\1\2", arn): tenant for arn, tenant in tenants.items()}

    def caller(self, authorization: str | None, event: Mapping[str, Any] | None) -> Caller:
        """See Authorizer. Only API Gateway's event counts, which no header of a request can change."""
        identity = ((event or {}).get("requestContext") or {}).get("identity") or {}
        arn = identity.get("userArn")
        if not isinstance(arn, str):
            raise unauthorized("A request signed with AWS credentials is needed.")
        name = _ASSUMED_ROLE.sub(r"arn:\1:iam::\2:role/\3", arn)
        if name not in self._tenants:
            raise Problem(403, "This role or user is not among those that may call.")
        return Caller(name, self._tenants[name])
