"""An identity provider: keys, tokens good and bad."""

import time
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://idp.example/pool"
AUDIENCE = "shop-api"
# Some are made where a module is loaded, which may be long before its tests have their turn.
A_DAY_S = 86_400


class IdentityProvider:
    """Its keys can be changed, and it can be away."""

    def __init__(self) -> None:
        self.private: dict[str, Any] = {
            "rsa": rsa.generate_private_key(65537, 2048),
            "ec": ec.generate_private_key(ec.SECP256R1()),
            "ed": ed25519.Ed25519PrivateKey.generate(),
        }
        self.published = set(self.private)
        self.extra: list[dict[str, Any]] = []
        self.away = False
        self.asked = 0

    def fetch(self) -> bytes:
        self.asked += 1
        if self.away:
            raise TimeoutError("it is away")
        keys = [{**self.public(kid), "kid": kid, "use": "sig"} for kid in sorted(self.published)]
        return orjson.dumps({"keys": [*keys, *self.extra]})

    def public(self, kid: str) -> dict[str, Any]:
        key = self.private[kid].public_key()
        of = {"rsa": RSAAlgorithm, "ec": ECAlgorithm, "ed": OKPAlgorithm}[kid.partition("-")[0]]
        found: dict[str, Any] = of.to_jwk(key, as_dict=True)  # type: ignore[attr-defined]  # of each of the three
        return found

    def token(self, *, kid: str = "rsa", algorithm: str | None = None, header: Any = None, **claims: Any) -> str:
        """A good one, but for what is said; a claim that is None is left out."""
        now = time.time()
        usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "someone", "iat": now, "exp": now + A_DAY_S}
        content = {name: value for name, value in {**usual, **claims}.items() if value is not None}
        chosen = algorithm or {"rsa": "RS256", "ec": "ES256", "ed": "EdDSA"}[kid.partition("-")[0]]
        return jwt.encode(content, self.private[kid], chosen, headers={"kid": kid, **(header or {})})

    def bearer(self, **claims: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(**claims)}"}


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = (orjson.dumps(header), orjson.dumps(claims), signature)
    return ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
