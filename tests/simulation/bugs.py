"""Planted bugs."""
from __future__ import annotations
from collections.abc import Callable, Iterator
from contextlib import contextmanager
BUGS: dict[str, Callable[[], object]] = {}
@contextmanager
def planted(name: str | None) -> Iterator[None]:
    yield
