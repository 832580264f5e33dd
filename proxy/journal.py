"""The journal of the synthetic names: rows in a file of mode 0600, read back after any end of a process.

Decides whether a file found at start can be trusted. Touches that file, its lock and, while it is
shortened, a second file beside it. Never knows what the rows amount to: that is the allocator's.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from proxy.lines import LineFile, whole_lines

_BOOT = "zonegate-names-1"  # also says what file this is: its first row is always of this kind
_SHORT_ROWS = 65536


class JournalUnusable(Exception):
    """The file cannot be opened or believed; the text names it and the cure."""


@dataclass(frozen=True, slots=True)
class Boot:
    """The machine was started: every bubble of before is gone."""

    boot_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Told:
    """A bubble was told the address of a name."""

    offset: int
    name: str
    bubble: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A bubble has ended."""

    bubble: str
    at: float


@dataclass(frozen=True, slots=True)
class Rest:
    """No living bubble knows this address since `at`; it still means the name."""

    offset: int
    name: str
    at: float


type Row = Boot | Told | Gone | Rest


def encode(row: Row) -> bytes:
    """One line, with its end."""
    match row:
        case Boot():
            cells: list[str | int | float] = [_BOOT, row.boot_id, row.at]
        case Told():
            cells = ["told", row.offset, row.name, row.bubble]
        case Gone():
            cells = ["gone", row.bubble, row.at]
        case Rest():
            cells = ["rest", row.offset, row.name, row.at]
    return json.dumps(cells, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Row:
    """The row of a line without its end; raises ValueError for anything that `encode` does not write."""
    match json.loads(line):
        case [kind, str() as boot_id, int() | float() as at] if kind == _BOOT:
            row: Row = Boot(boot_id, float(at))
        case ["told", int() as offset, str() as name, str() as bubble]:
            row = Told(offset, name, bubble)
        case ["gone", str() as bubble, int() | float() as at]:
            row = Gone(bubble, float(at))
        case ["rest", int() as offset, str() as name, int() | float() as at]:
            row = Rest(offset, name, float(at))
        case _:
            raise ValueError("not a row")
    return row


class Journal:
    """Opens, locks and replays the file at `path`; `replay` raises ValueError for an impossible row.

    A torn last line was never acknowledged and is dropped. An unreadable line before it means that
    something acknowledged is lost: while bubbles of this start of the machine may live, the file is
    refused. After a crash of the machine nothing alive depends on it, and its rest is dropped.
    """

    def __init__(self, path: Path, *, this_boot: str, replay: Callable[[Row], None]) -> None:
        self._path = path
        self._owed: list[Row] = []
        fd = _open_locked(path)
        try:
            content = path.read_bytes()
            self._rows, good = _replay(path, content, this_boot, replay)
        except BaseException:
            os.close(fd)
            raise
        self._rows_when_short = self._rows
        self._lines = LineFile(fd, good)

    @property
    def is_long(self) -> bool:
        """Whether most of the file is history that compacting would drop."""
        return self._rows > _SHORT_ROWS + 2 * self._rows_when_short

    def append(self, row: Row) -> None:
        """Write what is owed, then this row; raises OSError, and then the row is not in the file."""
        while self._owed:
            self._write(self._owed[0])
            del self._owed[0]
        self._write(row)

    def owe(self, row: Row) -> None:
        """Write this row now or, when that fails, before the next one."""
        self._owed.append(row)
        with suppress(OSError):
            while self._owed:
                self._write(self._owed[0])
                del self._owed[0]

    def compact(self, rows: Iterable[Row]) -> None:
        """Put these rows in place of the file; raises OSError, and then the old one stays in use.

        Synced, unlike single rows: a rename may reach the disk before what it names.
        """
        lines = [encode(row) for row in rows]
        self._rows_when_short = self._rows  # also when it fails: not again at once
        fresh = self._path.with_name(self._path.name + ".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file = LineFile(fd)
            file.append(b"".join(lines))
            file.sync()
            fresh.rename(self._path)
        except BaseException:
            os.close(fd)
            fresh.unlink(missing_ok=True)
            raise
        self._lines.close()
        self._lines, self._owed = file, []
        self._rows = self._rows_when_short = len(lines)

    def close(self) -> None:
        """Close and unlock the file."""
        self._lines.close()

    def _write(self, row: Row) -> None:
        self._lines.append(encode(row))
        self._rows += 1


def _open_locked(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise JournalUnusable(f"cannot open the names' journal '{path}': {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(fd)
        if path.stat(follow_symlinks=False).st_ino != found.st_ino:  # compacted under our hands
            raise BlockingIOError
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            text = "must be a file of mode 0600 of the user who runs the gate; remove it when no bubble runs"
            raise JournalUnusable(f"the names' journal '{path}' {text}")
    except (OSError, JournalUnusable) as error:
        os.close(fd)
        if isinstance(error, JournalUnusable):
            raise
        text = f"the names' journal '{path}' is in use; stop the other gate first"
        raise JournalUnusable(text) from error
    return fd


def _replay(path: Path, content: bytes, this_boot: str, replay: Callable[[Row], None]) -> tuple[int, int]:
    """Replay the rows; gives how many there are and the bytes that they take."""
    lines, size = whole_lines(content)
    boot_id = this_boot
    good = 0
    for number, line in enumerate(lines, 1):
        try:
            row = decode(line)
            if number == 1 and not isinstance(row, Boot):
                raise ValueError("the first row is not a start of the machine")
            replay(row)
        except ValueError as error:
            if boot_id != this_boot:
                return number - 1, good
            text = "cannot be read; end all bubbles and remove it"
            raise JournalUnusable(f"{path}:{number}: this row of the names' journal {text}") from error
        if isinstance(row, Boot):
            boot_id = row.boot_id
        good += len(line) + 1
    return len(lines), size
