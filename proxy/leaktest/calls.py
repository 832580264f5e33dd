"""What a program asks of the kernel itself, past any network namespace, and of processes outside.

Runs beside `probes` and by itself: standard library only, nothing else of ours. Nothing is brought about:
a call is made with what the kernel refuses in words of its own, which no filter says. They show that the
kernel was asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import termios
from collections.abc import Callable
from pathlib import Path

from proxy.leaktest.probes import LIMIT_S, NETWORK_PROBES, outcome, sweep

CHILD_LIMIT_S = 20.0
ASKED = "reached: the kernel was asked"
NO_KIND = 12  # of socket; the kernel looks at it before it loads anything (EINVAL)
TIOCLINUX = 0x541C
PTRACE_SEIZE = 0x4206
# By their numbers, which a C library may not name: on x86-64, and on what came later (asm-generic/unistd.h).
NUMBERS = {
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
    "name_to_handle_at": (303, 264),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "pidfd_getfd": (438, 438),
}
COLUMNS = {"x86_64": 0, "aarch64": 1, "riscv64": 1}
I386_SOCKET, X32_SOCKET = 359, 0x40000000 + 41

libc = ctypes.CDLL(None, use_errno=True)


def asked(result: int, answer: int) -> str:
    """What came of a call that only the kernel itself answers with `answer`; OSError for a refusal."""
    number = ctypes.get_errno()
    if result < 0 and number != answer:
        raise OSError(number, os.strerror(number))
    return ASKED


def in_child(attempt: Callable[[], str]) -> str:
    """The outcome of an attempt that a process of its own makes; it may be killed for it."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.write(there, outcome(attempt).encode())
        os._exit(0)
    os.close(there)
    try:
        ready, _, _ = select.select([here], [], [], CHILD_LIMIT_S)
        said = os.read(here, 4096).decode() if ready else "failed: it does not end"
    finally:
        os.close(here)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return said or "refused: killed"


# -- the kernel --------------------------------------------------------------------------------------


def families(numbers: list[int]) -> str:
    """Sockets of families, and pairs of them, of a kind that there is none of."""
    pair = (ctypes.c_int * 2)()

    def ask(number: int) -> str:
        first = outcome(lambda: asked(libc.socket(number, NO_KIND, 0), errno.EINVAL))
        return first if first == ASKED else asked(libc.socketpair(number, NO_KIND, 0, pair), errno.EINVAL)

    words = [outcome(lambda n=number: ask(n)) for number in numbers]  # type: ignore[misc]
    by_kernel = words.count(ASKED)
    return f"{ASKED} for {by_kernel} of {len(words)}" if by_kernel else ", ".join(sorted({*words}))


def call(name: str, arguments: list[int], answer: int) -> str:
    """A system call by its name, and the error by which the kernel itself answers it."""
    return asked(_result(name, *arguments), answer)


def _result(name: str, *arguments: int) -> int:
    machine = os.uname().machine
    if machine not in COLUMNS:
        ctypes.set_errno(errno.ENOSYS)
        return -1
    number = NUMBERS[name][COLUMNS[machine]]
    return int(libc.syscall(*map(ctypes.c_long, (number, *arguments))))


def other_abi(family: int) -> str:
    """A socket by the calls of 32-bit and x32 programs, whose numbers mean others."""
    if os.uname().machine != "x86_64":
        return "not there"

    def by_interrupt() -> str:
        # push rbx; mov eax, ebx, ecx; xor edx, edx; int 0x80; pop rbx; ret
        code = struct.pack("<BBIBIBI", 0x53, 0xB8, I386_SOCKET, 0xBB, family, 0xB9, NO_KIND)
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code + b"\x31\xd2\xcd\x80\x5b\xc3")
        start = ctypes.addressof(ctypes.c_char.from_buffer(page))
        result = ctypes.CFUNCTYPE(ctypes.c_int)(start)()
        ctypes.set_errno(-result)
        return asked(result, errno.EINVAL)

    def by_bit() -> str:
        call = map(ctypes.c_long, (X32_SOCKET, family, NO_KIND, 0))
        return asked(libc.syscall(*call), errno.EINVAL)

    ways = (("32-bit", by_interrupt), ("x32", by_bit))
    return sweep((name, lambda way=way: in_child(way)) for name, way in ways)  # type: ignore[misc]


# -- terminals ---------------------------------------------------------------------------------------


def typed() -> str:
    """TIOCSTI on a terminal of its own: a key that nobody pressed."""

    def type_it() -> str:
        _, terminal = os.openpty()
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        fcntl.ioctl(terminal, termios.TIOCSTI, b"x")
        return "reached"

    return in_child(type_it)


def typing_requests() -> str:
    """TIOCLINUX, and TIOCSTI with a bit that the kernel drops (CVE-2019-10063), of no terminal."""

    def ask(request: int) -> str:
        with Path(os.devnull).open("rb") as file:
            return asked(libc.ioctl(file.fileno(), ctypes.c_ulong(request), b"\0"), errno.ENOTTY)

    requests = {"TIOCLINUX": TIOCLINUX, "TIOCSTI": 1 << 32 | termios.TIOCSTI}
    return sweep((name, lambda r=request: ask(r)) for name, request in requests.items())  # type: ignore[misc]


# -- processes outside -------------------------------------------------------------------------------


def _must_be(pid: int, name: str) -> None:
    """A number may be that of another process here."""
    with contextlib.suppress(FileNotFoundError):
        if Path(f"/proc/{pid}/comm").read_text().strip() != name:
            raise ProcessLookupError(errno.ESRCH, "it is another process")


def _reached(result: int, answer: int = 0) -> str:
    asked(result, answer)
    return "reached"


def signalled(pid: int, name: str) -> str:
    """May it be signalled? It is not."""
    _must_be(pid, name)
    os.kill(pid, 0)
    return "reached"


def traced(pid: int, name: str) -> str:
    """Traced, until the tracer ends."""
    _must_be(pid, name)
    seize = map(ctypes.c_long, (PTRACE_SEIZE, pid, 0, 0))
    return in_child(lambda: _reached(libc.ptrace(*seize)))


def read(pid: int, name: str) -> str:
    """Its memory, at an address where it has none."""
    _must_be(pid, name)
    buffer = ctypes.create_string_buffer(1)
    here, there = (struct.pack("PN", address, 1) for address in (ctypes.addressof(buffer), 0))
    return _reached(libc.process_vm_readv(pid, here, 1, there, 1, 0), errno.EFAULT)


def taken(pid: int, name: str, fd: int) -> str:
    """One of its descriptors."""
    _must_be(pid, name)
    process = os.pidfd_open(pid)
    try:
        found = _result("pidfd_getfd", process, fd, 0)
        said = _reached(found)
        os.close(found)
        return said
    finally:
        os.close(process)


def shared_memory(key: int) -> str:
    """A segment of memory of the host's (System V), by its key."""
    return _reached(libc.shmget(key, 0, 0))


# -- files outside -----------------------------------------------------------------------------------


def written(directories: list[str]) -> str:
    """A file made in a directory of the host, and taken away."""

    def write(directory: str) -> str:
        path = Path(directory, "written")
        path.touch(exist_ok=False)
        path.unlink()
        return "reached"

    return sweep((one, lambda d=one: write(d)) for one in directories)  # type: ignore[misc]


def writable(paths: list[str]) -> str:
    """Device files that this user may open for writing; none is opened."""
    found = [path for path in paths if os.access(path, os.W_OK)]
    return f"reached: {', '.join(found)}" if found else "not there"


def packets(path: str) -> str:
    """A Unix socket of whole messages, as the daemon's own; nothing is said."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(LIMIT_S)
        sock.connect(path)
        return "reached"


PROBES: dict[str, Callable[..., str]] = {
    **NETWORK_PROBES,
    **{
        probe.__name__: probe
        for probe in (
            families, call, other_abi, typed, typing_requests, signalled, traced, read, taken, shared_memory,
            written, writable, packets,
        )
    },
}  # fmt: skip
