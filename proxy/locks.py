"""What is locked: zones in which nothing is admitted until somebody opens them again, and why.

Remembered in one file, replaced whole and synced before anybody is told, so that a lock outlives the daemon,
SIGKILL and the machine's own crash. A file that cannot be read locks everything. Cuts nothing itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FILE = "locks.json"
EVERY_ZONE, EVERYBODY = "", -1
MAX_REASON = 200


@dataclass(frozen=True, slots=True)
class Lock:
    """`zone` may be EVERY_ZONE and `uid` EVERYBODY; `by` and `by_uid` are who locked it, `at` is RFC 3339."""

    zone: str
    uid: int
    by: str
    by_uid: int
    reason: str
    at: str

    def __post_init__(self) -> None:
        for field in fields(self):
            wanted = int if field.name.endswith("uid") else str
            if type(getattr(self, field.name)) is not wanted:
                raise ValueError(f"{field.name} of a lock is no {wanted.__name__}")

    def covers(self, zone: str, uid: int) -> bool:
        """Whether it locks a zone for a user."""
        return self.zone in (EVERY_ZONE, zone) and self.uid in (EVERYBODY, uid)

    @property
    def words(self) -> str:
        """For who is refused because of it."""
        return f"locked by {self.by} at {self.at}" + (f": {self.reason}" if self.reason else "")


class Locks:
    """The locks of one daemon; what is in force is in memory, what is kept in `path`."""

    def __init__(self, path: Path, now: str) -> None:
        self._path = path
        self.in_force: tuple[Lock, ...] = _read(path, now)
        self.changing = asyncio.Lock()

    def over(self, zone: str, uid: int) -> str:
        """Why a zone is locked for a user; empty if it is not."""
        return next((lock.words for lock in self.in_force if lock.covers(zone, uid)), "")

    def add(self, lock: Lock) -> None:
        """Put it in force; whoever asks from now on is refused. `save` makes it last."""
        same = (lock.zone, lock.uid, lock.by_uid)
        self.in_force = (
            *(one for one in self.in_force if (one.zone, one.uid, one.by_uid) != same),
            lock,
        )

    async def save(self) -> None:
        """Have what is in force outlive the daemon; OSError if it cannot be written."""
        await asyncio.to_thread(write_json, self._path, [asdict(lock) for lock in self.in_force])

    async def remove(self, gone: Collection[Lock]) -> None:
        """Open again, on disk first; OSError, and then they stay in force."""
        left = tuple(lock for lock in self.in_force if lock not in gone)
        try:
            await asyncio.to_thread(write_json, self._path, [asdict(lock) for lock in left])
        except OSError:
            with contextlib.suppress(OSError):
                await self.save()  # it may be replaced and not synced: a restart would open it
            raise
        self.in_force = left


def _read(path: Path, now: str) -> tuple[Lock, ...]:
    try:
        rows = json.loads(path.read_bytes())
        return tuple(Lock(**row) for row in rows)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        words = getattr(error, "strerror", None) or "it is not as zonegate wrote it"
        return (
            Lock(EVERY_ZONE, EVERYBODY, "zonegate", os.geteuid(), f"{path} cannot be read: {words}", now),
        )


def write_json(path: Path, value: object) -> None:
    """Replace a file whole, so that after this it is there whatever happens; OSError, and it is as it was."""
    draft = path.with_name(f".{path.name}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(fd)
        draft.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
