"""The rights to the bucket of the claim check."""

from __future__ import annotations

from upwell import rights
from upwell.app.stacks.blueprint import ClaimPlace
from upwell.app.stacks.cloudformation import Json, Template, allow, ref, sub


def may_put(t: Template, place: ClaimPlace | None) -> list[Json]:
    """What the publisher needs."""
    if place is None:
        return []
    return [allow(rights.PUT_CLAIMS, _objects(place)), *_key(t, place, rights.ENCRYPT)]


def may_get(t: Template, place: ClaimPlace | None) -> list[Json]:
    """What the subscriber and the read API need."""
    if place is None:
        return []
    return [
        allow(rights.GET_CLAIMS, _objects(place)),
        allow(rights.MISS_CLAIMS, _bucket(place), StringLike={"s3:prefix": f"{place.prefix}*"}),
        *_key(t, place, rights.DECRYPT),
    ]


def _bucket(place: ClaimPlace) -> Json:
    return sub(f"arn:${{AWS::Partition}}:s3:::{place.bucket}")


def _objects(place: ClaimPlace) -> Json:
    return sub(f"arn:${{AWS::Partition}}:s3:::{place.bucket}/{place.prefix}*")


def _key(t: Template, place: ClaimPlace, actions: tuple[str, ...]) -> list[Json]:
    """An alias does not name a key in a policy, so its ARN is asked for."""
    if place.kms_key is None:
        return []
    default = place.kms_key if place.kms_key.startswith("arn:") and ":key/" in place.kms_key else None
    t.parameter("ClaimKeyArn", f"The ARN of the KMS key {place.kms_key} of the claim check's bucket.", default)
    return [allow(actions, ref("ClaimKeyArn"), StringEquals={"kms:ViaService": sub("s3.${AWS::Region}.amazonaws.com")})]
