"""A process of the gate that has run out of something: of descriptors, of memory, or of the kernel's mercy.

Without memory, no page can be mapped any more: what asks for one hears so, as MemoryError. `killed` is what
the kernel does to who touches one that was promised: it ends it (OOM), in the middle of whatever it did.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import kernel
from lab.control_groups import NoMemory

RESOURCES = ("descriptors", "memory", "killed")
_LIMITS = {"descriptors": resource.RLIMIT_NOFILE, "memory": resource.RLIMIT_AS}
# What is open, or mapped, beyond these stays; what is closed is gone.
_MOST = {"descriptors": 3, "memory": 0}


@contextmanager
def short_of(what: str, pid: int) -> Iterator[None]:
    """A process that gets no more than it has of something, for as long as the block lasts and it lives."""
    if what == "killed":
        with NoMemory([pid]):
            yield
        return
    soft, hard = _limit(pid, _LIMITS[what])
    _limit(pid, _LIMITS[what], (_MOST[what], hard))
    try:
        yield
    finally:
        if kernel.is_alive(pid):
            _limit(pid, _LIMITS[what], (soft, hard))


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
