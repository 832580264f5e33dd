"""What a daemon that was killed leaves behind: bubbles, shut in. Who they are is kept beside its socket.

A process is known by its number and its start time together, so that a number used again is nobody.

And sandboxes that never began: bubblewrap makes a child in the new namespaces, which waits for its word. Who
is killed before that word leaves a child that waits for ever; it has run nothing, and is in no list.
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

from proxy import sandbox

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


def end_unbegun() -> int:
    """Kill the sandboxes of this user (of root: of every user) that nobody will let begin; how many."""
    ended = 0
    for pid in [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]:
        with contextlib.suppress(OSError, ValueError):
            if not _is_unbegun(pid):
                continue
            pidfd = os.pidfd_open(pid)
            try:
                if _is_unbegun(pid):  # looked at again now that its number cannot change hands
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    ended += 1
            finally:
                os.close(pidfd)
    return ended


def _is_unbegun(pid: int) -> bool:
    """Whether it is a sandbox of ours that is not yet a program, and who was to let it begin has ended.

    That one leads the group, which is left when a sandbox begins. Raises OSError if it is not there.
    """
    owner = Path(f"/proc/{pid}").stat().st_uid
    if os.geteuid() not in (0, owner):
        return False
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if not sandbox.is_ours(words):
        return False
    leader = _stat(pid)[2:3]
    return bool(leader) and _stat(int(leader[0]))[:1] in ([], ["Z"], ["X"])


def _started(pid: int) -> str:
    """The start time of a process in clock ticks since boot (proc(5), stat, field 22); empty if none."""
    return "".join(_stat(pid)[19:20])


def _stat(pid: int) -> list[str]:
    """The fields of proc(5), stat, from the third on, which is the state; none of a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # a process has any bytes as its name
        return text.rpartition(")")[2].split()
    except OSError:
        return []
