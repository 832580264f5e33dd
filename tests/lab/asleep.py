"""A gate that sleeps: all its processes stand still while its programs, the peer and every clock go on.

What a machine that sleeps is to its gate, but for CLOCK_MONOTONIC, which goes on here (see test_clock).
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

from lab import kernel
from lab.control_groups import Freezer
from lab.gate import Gate
from proxy.tunnels.base import MAX_AGE_NS

LONG_NS = MAX_AGE_NS + MAX_AGE_NS // 10  # no proof from before has that life left


class Asleep:
    """Processes that stand still. They are woken one by one, in an order that no thaw would give."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids

    def wake(self, *pids: int) -> None:
        """Have these go on."""
        kernel.signal_all(pids, signal.SIGCONT)
        self._pids = [pid for pid in self._pids if pid not in pids]

    def wake_all_but(self, *pids: int) -> None:
        """Have all others go on."""
        self.wake(*(pid for pid in self._pids if pid not in pids))


@contextlib.contextmanager
def stopped(gate: Gate) -> Iterator[Asleep]:
    """All processes of a gate stand still; in the end all of them go on."""
    daemon = gate.pid
    kernel.signal_all([daemon], signal.SIGSTOP)
    kernel.until("the daemon stands still", lambda: not kernel.is_running(daemon))
    while awake := [pid for pid in kernel.descendants(daemon) if kernel.is_running(pid)]:
        kernel.signal_all(awake, signal.SIGSTOP)
    below = [daemon, *kernel.descendants(daemon)]
    try:
        yield Asleep(below)
    finally:
        kernel.signal_all(below, signal.SIGCONT)


@contextlib.contextmanager
def frozen(gate: Gate) -> Iterator[None]:
    """All processes of a gate stand still; in the end they go on, at once."""
    with Freezer([gate.pid, *kernel.descendants(gate.pid)]) as freezer:
        freezer.freeze()
        yield


def past_every_proof() -> None:
    """Wait until no proof of now is good any more."""
    until_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + LONG_NS
    kernel.until("every proof is too old", lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) > until_ns)
