"""A process of the gate that has run out of something: of descriptors, or of memory."""

from __future__ import annotations

import itertools
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import kernel

RESOURCES = {"descriptors": resource.RLIMIT_NOFILE, "memory": resource.RLIMIT_AS}


@contextmanager
def short_of(what: str, pid: int) -> Iterator[None]:
    """A process that gets no more than it has of something, for as long as the block lasts and it lives."""
    has = {"descriptors": _lowest_free_descriptor, "memory": _memory_bytes}[what](pid)
    soft, hard = _limit(pid, RESOURCES[what])
    _limit(pid, RESOURCES[what], (has, hard))
    try:
        yield
    finally:
        if kernel.is_alive(pid):
            _limit(pid, RESOURCES[what], (soft, hard))


def _lowest_free_descriptor(pid: int) -> int:
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in itertools.count() if number not in used)


def _memory_bytes(pid: int) -> int:
    return int(_of_status(pid, "VmSize")) * 1024


def _of_status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


def _limit(pid: int, number: int, new: tuple[int, int] | None = None) -> tuple[int, int]:
    """prlimit(2), which its own user may use where no capability is left to root."""

    def ask() -> bytes:
        found = resource.prlimit(pid, number, new) if new else resource.prlimit(pid, number)
        return json.dumps(found).encode()

    soft, hard = json.loads(kernel.as_user(int(_of_status(pid, "Uid")), ask))
    return soft, hard
