"""Which rows of a chunk may go out, and when: the rule of docs/delivery.md, without any I/O.

A chunk goes out at a point of the stream where each of its rows says exactly what the stream has said of that key so
far. So it is held until everything that it contains has been delivered; then the keys that a delivered transaction
touched which the chunk does not contain are dropped: the stream has said something newer of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from upwell.model import ChangeEvent, Chunk

# Beyond either the chunk is given up and the remembering starts anew: memory is bounded, whatever a transaction does.
TOUCHED_KEYS_MAX = 200_000
TOUCHED_BYTES_MAX = 16 * 2**20  # of the keys themselves


class DeliveredKeys:
    """The keys that delivered transactions touched, of tables whose snapshot is under way, until a chunk has them."""

    def __init__(self) -> None:
        # transaction → (table, key) → whether the last event of the key was partial
        self._touched: dict[int, dict[tuple[str, bytes], bool]] = {}
        self._count = self._bytes = 0

    @property
    def overflowed(self) -> bool:
        """Whether more is remembered than may be: start anew, with `Source.start_chunks`."""
        return self._count > TOUCHED_KEYS_MAX or self._bytes > TOUCHED_BYTES_MAX

    def clear(self) -> None:
        """Forget all."""
        self._touched.clear()
        self._count = self._bytes = 0

    def remember(self, events: Iterable[ChangeEvent], tables: frozenset[str]) -> None:
        """These events, as the source made them, are being delivered."""
        for event in events:
            table = event.schema.table
            if table in tables:
                keys = self._touched.setdefault(event.transaction, {})
                if (table, event.key) not in keys:
                    self._count += 1
                    self._bytes += len(event.key)
                keys[table, event.key] = event.schema.partial

    def newer_than(self, chunk: Chunk) -> dict[bytes, bool]:
        """key → partial, of the chunk's table, where a delivered transaction is not contained in the chunk."""
        table = chunk.schema.table
        newer: dict[bytes, bool] = {}
        for transaction, keys in self._touched.items():
            if not chunk.contains(transaction):
                newer.update({key: partial for (name, key), partial in keys.items() if name == table})
        return newer

    def forget_contained(self, chunk: Chunk) -> None:
        """What a chunk contains, every later chunk contains too."""
        for transaction in [t for t in self._touched if chunk.contains(t)]:
            gone = self._touched.pop(transaction)
            self._count -= len(gone)
            self._bytes -= sum(len(key) for _, key in gone)


def rows_to_send(chunk: Chunk, delivered: DeliveredKeys) -> Sequence[tuple[bytes, bytes]] | None:
    """The rows that may go out now that the stream has come as far as the chunk. None: read the chunk again.

    A key whose newer event was partial (unchanged TOAST) can't be dropped: nothing else would bring the values that
    the event lacks. The transaction becomes visible in time, so reading again ends.
    """
    newer = delivered.newer_than(chunk)
    if not newer:
        return chunk.rows
    kept = []
    for key, row in chunk.rows:
        if key not in newer:
            kept.append((key, row))
        elif newer[key]:
            return None
    return kept
