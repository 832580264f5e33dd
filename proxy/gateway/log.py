"""What the gateway writes down: one JSON line for each thing that happened, in a file of mode 0600.

A connection that could not be written down does not come about. What strangers can cause without having
proved anything is counted, so that they cannot fill the disk.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from proxy.lines import LineFile

_MAX_TEXT = 512
_STRANGERS_PER_MINUTE = 60

type Value = str | int | float | bool | None


class LogUnwritable(Exception):
    """A line could not be written; the text says why."""


class Log:
    """The log at `path`. `now` is the wall clock."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        """Raises OSError, and ValueError for a file that others may read."""
        self._path = path
        self._now = now
        self._file = LineFile(_open(path))
        self._minute = 0
        self._strangers = 0
        self._unsaid = 0
        self.lost = 0
        """Lines that could not be written."""

    def write(self, what: str, **facts: Value) -> None:
        """Write one line. Raises LogUnwritable."""
        at = self._now().isoformat(timespec="milliseconds")
        clipped = {
            key: value[:_MAX_TEXT] if isinstance(value, str) else value for key, value in facts.items()
        }
        line = json.dumps({"at": at, "what": what, **clipped}, separators=(",", ":"), allow_nan=False)
        try:
            self._file.append(line.replace("\x7f", "\\u007f").encode("ascii") + b"\n")
        except OSError as error:
            self.lost += 1
            raise LogUnwritable(f'cannot write "{self._path}": {error.strerror}') from None

    def note(self, what: str, **facts: Value) -> None:
        """Write a line about what has happened anyway; one that cannot be written is counted in `lost`."""
        with suppress(LogUnwritable):
            self.write(what, **facts)

    def note_stranger(self, what: str, **facts: Value) -> None:
        """As `note`, for what anybody can cause: a bounded number of lines each minute, the rest counted."""
        minute = int(self._now().timestamp() // 60)
        if minute != self._minute:
            self._minute, self._strangers = minute, 0
            if self._unsaid:
                self.note("not written down", count=self._unsaid)
                self._unsaid = 0
        self._strangers += 1
        if self._strangers > _STRANGERS_PER_MINUTE:
            self._unsaid += 1
        else:
            self.note(what, **facts)

    def reopen(self) -> None:
        """Go on in a new file after the old one was moved away; raises as the constructor does."""
        fresh = LineFile(_open(self._path))
        self._file.close()
        self._file = fresh

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077:
        os.close(descriptor)
        raise ValueError(f'"{path}" must be a file that only its owner reads; remove it or chmod 600')
    return descriptor
