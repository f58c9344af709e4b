"""The highest epoch that a state file has ever held, in a small file beside it.

A state file can go back in time without looking damaged: restored from a backup, or SQLite found the newest part of its
log unreadable and left it out. As long as the source still has what follows, an older position does no harm; but events
of an older epoch would look old to the destination, and so be lost. Hence every epoch is noted here first.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path


class WitnessDamaged(Exception):
    """What the file says can't be trusted."""


class Witness:
    """The file `path`. Raises OSError where it can't be read or written."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: int | None = None  # what was read or written last

    def epoch(self) -> int:
        """0 where nothing was ever noted. Raises WitnessDamaged."""
        try:
            text = Path(self._path).read_bytes()
        except FileNotFoundError:
            return 0
        digits, _, checksum = text.strip().partition(b" ")
        if not digits.isdigit() or checksum != _checksum(digits):
            raise WitnessDamaged
        self._known = int(digits)
        return self._known

    def note(self, epoch: int) -> None:
        """On the disk when it returns."""
        if self._known == epoch and Path(self._path).exists():
            return
        digits = str(epoch).encode()
        new = f"{self._path}.new"
        with suppress(FileNotFoundError):
            os.unlink(new)
        with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(b"%b %b\n" % (digits, _checksum(digits)))
            file.flush()
            os.fsync(file.fileno())
        Path(new).replace(self._path)
        sync_folder(self._path)
        self._known = epoch


def sync_folder(path: str) -> None:
    """That the folder of `path` knows its name is on the disk too; where folders can't be synced, nothing."""
    with suppress(OSError):
        folder = os.open(Path(path).absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _checksum(digits: bytes) -> bytes:
    return hashlib.sha256(digits).hexdigest()[:16].encode()
