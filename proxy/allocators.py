"""The names of each user in each zone, as the supervisor keeps them: what others asked for is nobody's to
infer from an address. Knows no workers and no messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Coroutine
from pathlib import Path

from proxy.allocator import Allocator

ADOPTION_LIMIT_S = 60.0


class Allocators:
    """An allocator for each zone and user, in files below `state`; `inside` are the bubbles of the moment."""

    def __init__(
        self,
        state: Path,
        inside: Container[str],
        start: Callable[[Coroutine[None, None, None]], object],
    ) -> None:
        self._state, self._inside, self._start = state, inside, start
        self._open: dict[tuple[str, int], Allocator] = {}

    def open(self, zone: str, uid: int, quota: int) -> None:
        """Have one for a user who may have so many names: that of a post that was dismissed, if it is there.

        Raises OSError, JournalUnusable.
        """
        if (zone, uid) not in self._open:
            journal = self._state / f"names-{zone}-{uid}.jsonl"
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            self._open[zone, uid] = found = Allocator(journal, clock=time.time, boot=boot, quota=quota)
            self._start(self._release_the_gone(found))

    def get(self, zone: str, uid: int) -> Allocator | None:
        """That of a user, None where there is none."""
        return self._open.get((zone, uid))

    def limit(self, quota: int) -> None:
        """From now on each may have so many names."""
        for allocator in self._open.values():
            allocator.quota = quota

    def close(self) -> None:
        """Close their files."""
        for allocator in self._open.values():
            allocator.close()

    async def _release_the_gone(self, allocator: Allocator) -> None:
        """Bubbles of an earlier daemon that did not come back have ended."""
        await asyncio.sleep(ADOPTION_LIMIT_S)
        for bubble in [one for one in allocator.bubbles() if one not in self._inside]:
            allocator.release(bubble)
