"""Processes with namespaces of their own, to be presented and to ask from. No tests are here."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

_DO = """
import ast, socket
for line in sys.stdin:
    try:
        exec(ast.literal_eval(line))
    except OSError as error:
        said = type(error).__name__
    print(repr(said), flush=True)
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


class Zone:
    """A zone without a bubble around it: `do` runs a line of Python there and gives what it says."""

    def __init__(self, started: subprocess.Popen[bytes], fds: list[int]) -> None:
        self._started, self.pid, self.fds = started, started.pid, fds

    def do(self, code: str) -> Any:
        """Run code that sets `said`; gives it, or the name of the exception."""
        assert self._started.stdin is not None and self._started.stdout is not None
        self._started.stdin.write(repr(code).encode() + b"\n")
        self._started.stdin.flush()
        return ast.literal_eval(self._started.stdout.readline().decode())

    def tcp(self, host: str, port: int, says: bytes = b"") -> Any:
        """Connect, speak, and give what is heard to the end; the name of an error where there is one."""
        return self.do(
            f"sock = socket.create_connection(({host!r}, {port}), 60); sock.sendall({says!r})\n"
            "said = b''\nwhile data := sock.recv(65536): said += data\nsock.close()"
        )


@contextlib.contextmanager
def zone() -> Iterator[Zone]:
    """A zone with nobody at its ears."""
    with process(zone=True, then=_DO) as started, namespaces_of(started.pid) as fds:
        yield Zone(started, fds)
