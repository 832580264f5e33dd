"""What a daemon that was killed leaves behind: bubbles, shut in. Who they are is kept beside its socket.

A process is known by its number and its start time together, so that a number used again is nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "bubbles.json"
GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Remaining:
    """A `zonegate run` process; `started` is its start time in clock ticks since boot."""

    bubble: str
    pid: int
    started: str

    @classmethod
    def of(cls, bubble: str, pid: int) -> Remaining:
        """The process that has this number now."""
        return cls(bubble, pid, _started(pid))

    @property
    def is_there(self) -> bool:
        """Whether it has not ended."""
        return bool(self.started) and _started(self.pid) == self.started


def remember(run: Path, bubbles: Iterable[Remaining]) -> None:
    """Write down who is inside; replaced whole, so that a crash leaves the old list or the new one."""
    rows = [asdict(one) for one in bubbles]
    draft = run / f".{FILE}"
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(rows))
    draft.replace(run / FILE)


def remaining(run: Path) -> list[Remaining]:
    """Those of the list that are still there. A list that is missing or torn is empty."""
    try:
        rows = json.loads((run / FILE).read_text())
        found = [Remaining(str(row["bubble"]), int(row["pid"]), str(row["started"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [one for one in found if one.is_there]


def end(bubbles: Iterable[Remaining]) -> None:
    """End them: SIGTERM to their programs, SIGKILL to those that are there after a grace period."""
    waiting = []
    for one in bubbles:
        with contextlib.suppress(ProcessLookupError):
            waiting.append(os.pidfd_open(one.pid))
            if not one.is_there:  # looked at again now that its number cannot change hands
                os.close(waiting.pop())
                continue
            signal.pidfd_send_signal(waiting[-1], signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    for pidfd in waiting:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        ended.poll(max(0.0, until - time.monotonic()) * 1000)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def _started(pid: int) -> str:
    """The start time of a process in clock ticks since boot (proc(5), stat, field 22); empty if none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
