"""`zonegate run`: a program in a bubble of its own, and the process that stays beside it.

Two processes. The inner one makes the bubble's namespaces (it is root of them and of nothing else), sets
them up and starts the program under bubblewrap. The outer one, this, keeps the person's terminal and the
link to the daemon: it shows the daemon the namespaces, passes signals on, and presents the bubble again
when a new daemon comes up. Until the daemon has said yes the program is not started; when the daemon is
gone, the zone refuses by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy import bubble, ipc, namespaces, prctl, sandbox
from proxy.messages import TO_COMMAND, Denied, Enter, Entered, Leave
from proxy.terminal import Stdio

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
ADMIN_LIMIT_S = 10.0
ADOPTION_EVERY_S = 0.2
GRACE_S = 5.0
ANSWERS: Sequence[type[Entered | Denied]] = (Entered, Denied)


class RunError(Exception):
    """The program was not started; one line with the cure."""


@dataclass(slots=True)
class Daemon:
    """The link to whichever daemon serves the bubble now, if any."""

    sockets: Sequence[Path]
    zone: str
    cooperative: bool
    link: socket.socket | None = None
    bubble: str = ""

    def present(self, pid: int, fds: Sequence[int]) -> Entered:
        """Show the bubble's namespaces to the daemon; RunError or LinkBroken if it is not served."""
        link = connect(self.sockets)
        try:
            ipc.send(link, Enter(self.zone, self.bubble, self.cooperative, pid), fds)
            answer, _ = ipc.receive(link, ANSWERS)
            if isinstance(answer, Denied):
                raise RunError(answer.reason)
        except BaseException:
            link.close()
            raise
        self.link, self.bubble = link, answer.bubble
        return answer

    def lost(self) -> None:
        """The daemon is gone; the zone refuses until another one adopts it."""
        if self.link is not None:
            self.link.close()
            self.link = None


def connect(sockets: Sequence[Path]) -> socket.socket:
    """A link to the first daemon that listens; RunError with the cure if there is none."""
    for path in sockets:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        link.settimeout(ADMIN_LIMIT_S)
        try:
            link.connect(str(path))
        except OSError:
            link.close()
            continue
        return link
    raise RunError(f"no daemon listens on {sockets[0]}; start one: zonegate up")


def run(view: bubble.View, sockets: Sequence[Path]) -> int:
    """Run a program in a new bubble of `view.zone`. Returns its exit code; 128+N for signal N."""
    daemon = Daemon(sockets, view.zone, view.share_home)
    connect(sockets).close()  # the cheapest check first
    stdio = Stdio()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _inner(view, stdio, theirs)
    theirs.close()
    stdio.started()
    try:
        return _outer(daemon, stdio, ours, pid)
    finally:
        stdio.close()
        daemon.lost()


# -- the inner process -------------------------------------------------------------------------------


def _inner(view: bubble.View, stdio: Stdio, link: socket.socket) -> None:
    """Make the namespaces, wait for the word, become the program's parent. Never returns."""
    code = 125
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
        outer = os.getppid()
        namespaces.enter_new(os.getuid(), os.getgid())
        prctl.die_with_parent(outer)
        namespaces.make_zone()
        fds = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "net")]
        socket.send_fds(link, [b"made"], fds)
        if link.recv(16) == b"go":
            code = _start(view, stdio)
    except namespaces.NamespaceError as error:
        with contextlib.suppress(OSError):
            link.send(b"!" + str(error).encode())
    except OSError as error:
        with contextlib.suppress(OSError):
            link.send(b"!" + str(error).encode())
    finally:
        os._exit(code)


def _start(view: bubble.View, stdio: Stdio) -> int:
    """Start bubblewrap on the program and wait for it, passing signals on to the program itself."""
    seccomp_fd = ipc.memory_file("seccomp", sandbox.bubble_filter())
    info_read, info_write = os.pipe2(os.O_CLOEXEC)
    command, fds = bubble.arguments(view, seccomp_fd, info_write)
    pid = os.fork()
    if pid == 0:
        _become(command, [seccomp_fd, info_write, *fds], stdio)
    os.close(info_write)
    while True:
        number = signal.sigwait({*FORWARDED, signal.SIGCHLD})
        if number != signal.SIGCHLD:
            _signal_program(info_read, number)
            continue
        done, status = os.waitpid(pid, os.WNOHANG)
        if done == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _become(command: list[str], fds: Sequence[int], stdio: Stdio) -> None:
    """In the child: the program's terminal as its own, the descriptors that bubblewrap reads, then exec."""
    try:
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
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.execvpe(command[0], command, {"PATH": sandbox.SYSTEM_PATH})
    except OSError as error:
        os.write(2, f"zonegate: {command[0]} cannot be started: {error.strerror}\n".encode())
    finally:
        os._exit(125)


def _close_others(kept: set[int]) -> None:
    low = 0
    for fd in sorted(kept):
        if low < fd:
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


_program_pid = 0


def _signal_program(info_read: int, number: int) -> None:
    """Send a signal to the program, which is the first child of the sandbox's init."""
    try:
        init = _sandbox_init(info_read)
        children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        os.kill(int(children[0]) if children else init, number)
    except (OSError, ValueError, KeyError):
        return  # it has not begun, or it has ended


def _sandbox_init(info_read: int) -> int:
    """The pid, as seen from here, of the sandbox's init; bubblewrap writes it once, at the start."""
    global _program_pid
    if not _program_pid:
        _program_pid = int(json.loads(os.read(info_read, 4096))["child-pid"])
    return _program_pid


# -- the outer process -------------------------------------------------------------------------------


def _outer(daemon: Daemon, stdio: Stdio, inner: socket.socket, pid: int) -> int:
    """Show the bubble to the daemon, let it start, keep it company. Returns the program's exit code."""
    word, fds, _, _ = socket.recv_fds(inner, 4096, 2)
    if word != b"made":
        os.waitpid(pid, 0)
        raise RunError(word[1:].decode() or "the bubble could not be made")
    try:
        daemon.present(pid, fds)
    except ipc.LinkBroken as error:
        raise RunError(f"the daemon went away: {error}") from error
    inner.send(b"go")
    company = _Company(daemon, stdio, pid, fds)
    with stdio.raw():
        code = company.keep()
        stdio.drain()
    ipc.close_all(fds)
    return code


class _Company:
    """The loop of the outer process: terminal, signals, daemon, and the end of the program."""

    def __init__(self, daemon: Daemon, stdio: Stdio, pid: int, fds: Sequence[int]) -> None:
        self._daemon, self._stdio, self._pid, self._fds = daemon, stdio, pid, fds
        self._selector = selectors.DefaultSelector()
        self._pidfd = os.pidfd_open(pid)
        self._kill_at: float | None = None

    def keep(self) -> int:
        """Until the program has ended; its exit code."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (*FORWARDED, signal.SIGWINCH):
            signal.signal(number, lambda *_: None)
        self._selector.register(self._pidfd, selectors.EVENT_READ, "end")
        self._selector.register(wake_read, selectors.EVENT_READ, "signal")
        self._watch_daemon()
        _register_quietly(self._stdio, self._selector)
        while True:
            for key, _ in self._selector.select(self._pause()):
                if key.data == "end":
                    return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
                if key.data == "signal":
                    self._pass_on(os.read(wake_read, 64))
                elif key.data == "daemon":
                    self._hear()
                else:
                    self._stdio.pump(key.fd, self._selector)
            self._tick()

    def _pause(self) -> float | None:
        return ADOPTION_EVERY_S if self._daemon.link is None or self._kill_at is not None else None

    def _pass_on(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._stdio.resize()
            else:
                os.kill(self._pid, number)

    def _watch_daemon(self) -> None:
        if self._daemon.link is not None:
            self._daemon.link.setblocking(False)
            self._selector.register(self._daemon.link, selectors.EVENT_READ, "daemon")

    def _hear(self) -> None:
        assert self._daemon.link is not None
        try:
            message, _ = ipc.receive(self._daemon.link, TO_COMMAND)
        except BlockingIOError:
            return
        except ipc.LinkBroken:
            self._selector.unregister(self._daemon.link)
            self._daemon.lost()
            return
        if isinstance(message, Leave) and self._kill_at is None:
            os.kill(self._pid, signal.SIGTERM)
            self._kill_at = time.monotonic() + GRACE_S

    def _tick(self) -> None:
        if self._kill_at is not None:
            if time.monotonic() >= self._kill_at:
                os.kill(self._pid, signal.SIGKILL)
        elif self._daemon.link is None:
            with contextlib.suppress(RunError, ipc.LinkBroken, OSError):
                self._daemon.present(self._pid, self._fds)
                self._watch_daemon()


def _register_quietly(stdio: Stdio, selector: selectors.BaseSelector) -> None:
    """Watch the terminal; a plain file as standard input cannot be watched and need not be."""
    with contextlib.suppress(PermissionError):
        stdio.register(selector)
