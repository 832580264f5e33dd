"""The inner process of `zonegate run`: makes the bubble's namespaces and is the program's parent.

It is root of those namespaces and of nothing else. It shows them to the outer process (see run), waits for
the word, starts the program under bubblewrap, passes signals on to the program itself, and ends with it.
It holds nothing of the person's: no terminal, no link to the daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import termios
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, Protocol

from proxy import bubble, ipc, namespaces, prctl, sandbox

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
ENDING = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
NOT_STARTED = 125
LOOK_EVERY_S, GRACE_S = 0.5, 5.0  # after a signal that ends most programs
GO, GO_BYTES = b"go\n", 256 * 1024  # and the roots of the inspection CA, if the zone is inspected
TRY_AGAIN_S = 0.02  # a signal that comes before there is a program to take it
_ALL_DESCRIPTORS = (1 << 31) - 1


class Streams(Protocol):
    """The program's standard input, output and error, and its controlling terminal, if it has one."""

    @property
    def inner(self) -> Sequence[int]: ...
    @property
    def controlling(self) -> int | None: ...
    def keep_inner(self) -> None:
        """Close what is not the program's."""


def live(view: bubble.View, stdio: Streams, link: socket.socket, outer: int) -> NoReturn:
    """Say `made`, or `!` and why not; on `go`, which brings the roots, be the program's parent to its end."""
    code = NOT_STARTED
    told = False
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
        os.setsid()  # what the terminal sends to the foreground job is passed on by the outer process, once
        stdio.keep_inner()
        namespaces.enter_new(os.getuid(), os.getgid())
        prctl.die_with_parent(outer)
        namespaces.make_zone()
        link.send(b"made")
        rules = _rules()
        word = link.recv(GO_BYTES)
        if word.startswith(GO):
            told = True
            code = _accompany(*_start(replace(view, roots=word.removeprefix(GO)), stdio, rules))
    except Exception as error:
        words = str(error) or repr(error)
        with contextlib.suppress(OSError):
            if told:
                os.write(2, f"zonegate: the program cannot be started: {words}\n".encode())
            else:
                link.send(b"!" + words.encode())
    finally:
        os._exit(code)


def _rules() -> bytes:
    """The seccomp program of the bubble: made while the daemon opens its ears in the namespace."""
    from proxy import syscalls

    return syscalls.bubble_filter()


def _start(view: bubble.View, stdio: Streams, rules: bytes) -> tuple[int, int]:
    """Start bubblewrap on the program. Returns its pid and where it tells of its own child."""
    seccomp_fd = ipc.memory_file("seccomp", rules)
    info_read, info_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    command, fds = bubble.arguments(view, seccomp_fd, info_write)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(command, [seccomp_fd, info_write, *fds], stdio, parent)
    ipc.close_all([seccomp_fd, info_write, *fds])
    return pid, info_read


def _become(command: list[str], fds: Sequence[int], stdio: Streams, parent: int) -> NoReturn:
    """In the child: the program's terminal as its own, the descriptors that bubblewrap reads, then exec."""
    try:
        prctl.die_with_parent(parent)
        os.setsid()
        if stdio.controlling is not None:
            fcntl.ioctl(stdio.controlling, termios.TIOCSCTTY, 0)
        inner = [os.dup(fd) for fd in stdio.inner]
        for number, fd in enumerate(inner):
            os.dup2(fd, number, inheritable=True)
        for fd in fds:
            os.set_inheritable(fd, True)
        # bubblewrap passes on what it inherits: nothing above 2 but what it reads itself.
        _close_others({0, 1, 2, *fds})
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and that is inherited
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.execvpe(command[0], command, {"PATH": sandbox.SYSTEM_PATH})
    except OSError as error:
        os.write(2, f"zonegate: {command[0]} cannot be started: {error.strerror}\n".encode())
    finally:
        os._exit(NOT_STARTED)


def _close_others(kept: set[int]) -> None:
    low = 0
    for fd in sorted(kept):
        if low < fd:
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, _ALL_DESCRIPTORS)


# -- company -----------------------------------------------------------------------------------------


def _accompany(pid: int, info_read: int) -> int:
    """Pass signals on until bubblewrap, and so everything in the bubble, has ended; its exit code.

    A program may stop the init of its bubble (ptrace), which then never sees it end: who is asked to end it
    has the init killed from here.
    """
    program = _Program(info_read)
    heard = {*FORWARDED, signal.SIGCHLD}
    waiting: list[int] = []
    asked = False
    over_since: float | None = None
    while True:
        pause = TRY_AGAIN_S if waiting else LOOK_EVERY_S if asked else None
        taken = signal.sigwaitinfo(heard) if pause is None else signal.sigtimedwait(heard, pause)
        if taken is not None and taken.si_signo != signal.SIGCHLD:
            waiting.append(taken.si_signo)
            asked = asked or taken.si_signo in ENDING
        done, status = os.waitpid(pid, os.WNOHANG)
        if done == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        waiting = [number for number in waiting if not program.signal(number)]
        if not (asked and program.is_over()):
            over_since = None
        elif over_since is None:
            over_since = time.monotonic()
        elif time.monotonic() - over_since > GRACE_S:
            program.kill_all()


class _Program:
    """The program, which is the first child of the sandbox's init. Others there come and go."""

    def __init__(self, info_read: int) -> None:
        self._info_read, self._told, self._init = info_read, b"", 0

    def signal(self, number: int) -> bool:
        """Send it a signal; False while it has not begun."""
        try:
            init = self._sandbox_init()
            children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
            if children:
                os.kill(int(children[0]), number)
            return bool(children)
        except BlockingIOError:
            return False  # bubblewrap has not told yet
        except (OSError, ValueError, KeyError):
            return True  # it has ended

    def is_over(self) -> bool:
        """Whether it has ended, though the init of its bubble has not."""
        try:
            init = self._sandbox_init()
            first = Path(f"/proc/{init}/task/{init}/children").read_text().split()[:1]
            return not first or _state(int(first[0])) == "Z"
        except (OSError, ValueError, KeyError):
            return False

    def kill_all(self) -> None:
        """End the bubble's init, and with it everything there."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            os.kill(self._sandbox_init(), signal.SIGKILL)

    def _sandbox_init(self) -> int:
        """The pid, as seen from here, of the sandbox's init; bubblewrap writes it once, at the start."""
        while not self._init:
            told = os.read(self._info_read, 4096)
            self._told += told
            if not told or self._told.rstrip().endswith(b"}"):
                self._init = int(json.loads(self._told)["child-pid"])
        return self._init


def _state(pid: int) -> str:
    """One letter, as ps(1) has it; the name before it may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
