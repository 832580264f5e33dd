"""Processes with namespaces of their own, to be presented and to ask from. No tests are here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534
ROOT = str(Path(__file__).parent.parent)
_MAKE = """
import ctypes, os, sys
sys.path.insert(0, {root!r})
from proxy import namespaces
uid = {uid}
if uid != os.getuid():
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: its files in /proc are its own again
namespaces.enter_new(uid, uid if uid else os.getgid())
if {zone}:
    namespaces.make_zone()
print(flush=True)
{then}
sys.stdin.read()
"""


@contextlib.contextmanager
def process(
    *, uid: int | None = None, zone: bool = False, then: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a user in a user and a network namespace of its own; `then` is what it does there."""
    code = _MAKE.format(root=ROOT, uid=os.getuid() if uid is None else uid, zone=zone, then=then)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=pipe, stdout=pipe) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"\n"
        try:
            yield started
        finally:
            started.kill()


@contextlib.contextmanager
def namespaces_of(pid: int) -> Iterator[list[int]]:
    """The descriptors of a process's user and network namespace, as a bubble brings them."""
    fds = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "net")]
    try:
        yield fds
    finally:
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)
