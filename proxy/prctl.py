"""Promises that a process makes of itself to the kernel (prctl(2), capset(2)). Standard library only."""

from __future__ import annotations

import ctypes
import os
import signal
import struct

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PR_SET_PTRACER = 0x59616D61
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Be killed when `parent`, who must be this process's parent, ends. A change of uid undoes it."""
    _call(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def no_core_dump() -> None:
    """No core file and no ptrace by the same user: this process has keys in memory."""
    _call(_PR_SET_DUMPABLE, 0)


def may_be_traced() -> None:
    """Let other processes of the same user trace this one, where Yama would leave that to its parents."""
    _libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # EINVAL without Yama, where all of them may


def give_up_capabilities() -> None:
    """Have no capability in any namespace, and gain none by executing a program."""
    _call(_PR_SET_NO_NEW_PRIVS, 1)
    head, none = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    if _libc.capset(head, none):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")


def _call(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl {option}")
