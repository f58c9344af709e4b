"""The proxy's switches over HTTP, at its own address: GET says how it stands, PUT changes what is named.

    curl -X PUT http://127.0.0.1:PORT/-/faults -d '{"rates": {"answer_lost": 0.02, "shard_throttled": 0.05}}'

`rates`, `closed_shards`, `clock_ahead_s`, `late_s`, `slow_s`: as in `Faults`, in place of what was there.
`then`: [[kind or null, action or null], …], for the next requests. `cut_s`: the Internet is gone for so long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from lab.faults.decide import KINDS
from lab.messages import Asked, Said

if TYPE_CHECKING:
    from lab.faults.proxy import FaultProxy

PATH: Final = "/-/faults"
_PLAIN: Final = ("rates", "clock_ahead_s")
_NAMES: Final = (*_PLAIN, "closed_shards", "late_s", "slow_s", "then", "cut_s")


def answered(proxy: FaultProxy, request: Asked) -> Said:
    """Obeys the request, in the proxy's own thread."""
    if request.method == "PUT":
        try:
            change(proxy, orjson.loads(request.body))
        except (ValueError, TypeError, AttributeError) as error:
            return Said.of({"message": str(error)}, 400)
    elif request.method != "GET":
        return Said.of({"message": "GET or PUT"}, 405)
    faults = proxy.faults
    return Said.of(
        {
            "rates": faults.rates,
            "closed_shards": sorted(faults.closed_shards),
            "clock_ahead_s": faults.clock_ahead_s,
            "done": dict(proxy.done),
            "requests": dict(proxy.requests),
            "lost_upstream": proxy.lost_upstream,
            "kinds": KINDS,
        }
    )


def change(proxy: FaultProxy, wanted: dict[str, Any]) -> None:
    """Raises ValueError for what it does not know; then nothing is changed."""
    faults = proxy.faults
    kinds = [*wanted.get("rates", {}), *(kind for kind, _ in wanted.get("then", ()) if kind is not None)]
    unknown = (set(kinds) - set(KINDS)) | (set(wanted) - set(_NAMES))
    if unknown:
        raise ValueError(f"not known: {', '.join(sorted(unknown))}; there are {', '.join((*_NAMES, *KINDS))}")
    if "rates" in wanted:
        faults.rates = {kind: float(rate) for kind, rate in wanted["rates"].items()}
    if "closed_shards" in wanted:
        faults.closed_shards = frozenset(wanted["closed_shards"])
    if "clock_ahead_s" in wanted:
        faults.clock_ahead_s = float(wanted["clock_ahead_s"])
    for name in ("late_s", "slow_s"):
        if name in wanted:
            first, last = map(float, wanted[name])
            setattr(faults, name, (first, last))
    for kind, action in wanted.get("then", ()):
        faults.then(kind, action)
    if wanted.get("cut_s"):
        proxy.cut_for(float(wanted["cut_s"]))
