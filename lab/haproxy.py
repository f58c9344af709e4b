"""HAProxy: the load balancer before a fleet, and what speaks HTTP/2 for parts that don't."""

import socket
from collections.abc import Sequence
from contextlib import closing

from lab import find
from lab.part import LOOPBACK
from lab.parts import HttpPart

_COMMON = """global
  maxconn 1000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
"""


class HaProxy(HttpPart):
    """Hands requests to servers in turn, and leaves out those that are not well."""

    name = "haproxy"

    def __init__(self, urls: Sequence[str], *, health: str = "", every_ms: int = 500, http2: bool = False) -> None:
        """`health`: a path that a server well answers, asked `every_ms`; http2: clients speak HTTP/2 without TLS."""
        super().__init__()
        self._urls = list(urls)
        self._health = health
        self._every_ms = every_ms
        self._http2 = http2
        self._program = find.haproxy()

    def command(self) -> list[str]:
        (self.folder / "haproxy.cfg").write_text(self._configuration())
        return [str(self._program), "-db", "-f", str(self.folder / "haproxy.cfg")]

    def answers(self) -> bool:
        if not self._http2:
            return super().answers()
        with closing(socket.socket()) as client:
            return client.connect_ex((LOOPBACK, self.port)) == 0

    def _configuration(self) -> str:
        check = f" check inter {self._every_ms} fall 1 rise 1" if self._health else ""
        # A request whose server dies before it answers goes to another: they are reads, to be had again.
        lines = [
            "frontend clients",
            f"  bind {LOOPBACK}:{self.port}{' proto h2' if self._http2 else ''}",
            "  default_backend servers",
            "backend servers",
            "  balance roundrobin",
            *([f"  option httpchk GET {self._health}"] if self._health else []),
            "  option redispatch 1",
            "  retries 3",
            "  retry-on conn-failure empty-response response-timeout",
            *[f"  server s{n} {url.removeprefix('http://')}{check}" for n, url in enumerate(self._urls)],
        ]
        return _COMMON + "\n".join(lines) + "\n"
