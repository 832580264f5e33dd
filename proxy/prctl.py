"""Two promises that a process makes of itself to the kernel (prctl(2)). Standard library only."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Be killed when `parent`, who must be this process's parent, ends. A change of uid undoes it."""
    _call(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def no_core_dump() -> None:
    """No core file and no ptrace by the same user: this process has keys in memory."""
    _call(_PR_SET_DUMPABLE, 0)


def _call(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl {option}")
