"""`zonegate run`: a program in a bubble of its own, and the process that stays beside it.

Two processes. The inner one (see inner) makes the bubble's namespaces and starts the program in them. The
outer one, this, keeps the person's terminal and the link to the daemon: it shows the daemon the namespaces,
passes signals on, and presents the bubble again when a new daemon comes up. Until the daemon has said yes
the program is not started; when the daemon is gone, the zone refuses by itself. Neither a hung daemon nor a
paused terminal holds the other up.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy import bubble, inner, ipc, trust
from proxy.inner import FORWARDED
from proxy.messages.admin import TO_COMMAND, Denied, Enter, Entered, Leave
from proxy.terminal import NotGiven, Stdio

ADMIN_LIMIT_S, ENTER_LIMIT_S = 10.0, 45.0  # a daemon that is busy may first have to start a worker
LOOK_EVERY_S = 0.2  # for a new daemon, and for the terminal's foreground
DENIED_PAUSE_S = 5.0
GRACE_S = 5.0
HIDDEN_MOST = 500  # each is an argument of bubblewrap's
ANSWERS: Sequence[type[Entered | Denied]] = (Entered, Denied)


class RunError(Exception):
    """The program was not started; one line with the cure."""


# -- the daemon --------------------------------------------------------------------------------------


def connect(sockets: Sequence[Path], limit_s: float = ADMIN_LIMIT_S) -> socket.socket:
    """A link to the first daemon that listens; RunError with the cure if there is none.

    A daemon is asked only if it is root's or the caller's own: another's could be an impostor, to whom the
    bubble's traffic would be given.
    """
    trouble = f"no daemon listens on {sockets[0]}; start one: zonegate up"
    for path in sockets:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        link.settimeout(limit_s)
        try:
            link.connect(str(path))
            _, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except PermissionError:
            trouble = f"you may not speak to the daemon on {path}; ask who runs it"
        except OSError:
            pass
        else:
            if uid in (0, os.getuid()):
                return link
            trouble = f"who listens on {path} is user {uid}, neither you nor root, and is not trusted"
        link.close()
    raise RunError(trouble)


@dataclass(slots=True)
class Daemon:
    """The link to whichever daemon serves the bubble now, if any. Only `present` ever waits."""

    sockets: Sequence[Path]
    zone: str
    cooperative: bool
    attached: str = ""
    link: socket.socket | None = None
    bubble: str = ""
    next_step_at: float = 0.0  # a new attempt without a link; the end of patience while unanswered
    answered: bool = False
    refused: str = ""

    def present(self, pid: int) -> Entered:
        """Show the daemon the process of the bubble, a child; RunError or LinkBroken if it is not served."""
        self.link = connect(self.sockets, ENTER_LIMIT_S)
        ipc.send(self.link, self._enter(pid))
        answer, _ = ipc.receive(self.link, ANSWERS)
        if isinstance(answer, Denied):
            raise RunError(answer.reason)
        self._served(answer)
        self.link.setblocking(False)
        return answer

    def look(self, pid: int, now: float) -> None:
        """Without a daemon, present the bubble to a new one; give up one that does not answer."""
        if self.answered or now < self.next_step_at:
            return
        self.lost(now)
        try:
            self.link = connect(self.sockets, 0)
            ipc.send(self.link, self._enter(pid))
        except (RunError, ipc.LinkBroken, OSError):
            self.lost(now)
        else:
            self.next_step_at = now + ENTER_LIMIT_S

    def hear(self, now: float) -> bool:
        """Take what the daemon says; whether it says that the bubble must end."""
        assert self.link is not None
        try:
            message, _ = ipc.receive(self.link, TO_COMMAND)
        except BlockingIOError:
            return False
        except ipc.LinkBroken:
            self.lost(now)
            return False
        if isinstance(message, Entered):
            self._served(message)
        elif isinstance(message, Denied):
            self._tell(message.reason)
            self.lost(now)
            self.next_step_at = now + DENIED_PAUSE_S
        return isinstance(message, Leave)

    def lost(self, now: float = 0.0) -> None:
        """The daemon is gone; the zone refuses until another one adopts it."""
        if self.link is not None:
            self.link.close()
        self.link, self.answered, self.next_step_at = None, False, now + LOOK_EVERY_S

    def _enter(self, pid: int) -> Enter:
        return Enter(self.zone, self.bubble, self.cooperative, pid, self.attached)

    def _served(self, answer: Entered) -> None:
        self.bubble, self.answered, self.refused = answer.bubble, True, ""

    def _tell(self, reason: str) -> None:
        """Say once why the program has no way out."""
        if reason != self.refused:
            self.refused = reason
            _say(f"this bubble is not served any more: {reason}")


def _say(words: str) -> None:
    """A line for the person, whose terminal may be in raw mode or gone."""
    with contextlib.suppress(OSError):
        os.write(2, f"zonegate: {words}\r\n".encode())


# -- the outer process -------------------------------------------------------------------------------


def run(view: bubble.View, sockets: Sequence[Path]) -> int:
    """Run a program in a new bubble of `view.zone`. Returns its exit code; 128+N for signal N."""
    connect(sockets).close()  # the cheapest check first
    view = _looked_through(view)
    daemon = Daemon(sockets, view.zone, view.cooperative)
    try:
        stdio = Stdio()
    except NotGiven as error:
        raise RunError(str(error)) from error
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    outer = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        inner.live(view, stdio, theirs, outer)
    theirs.close()
    with contextlib.ExitStack() as undo:
        undo.callback(stdio.close)
        undo.callback(daemon.lost)
        company = undo.enter_context(_Company(daemon, stdio, pid))
        undo.callback(ours.close)
        stdio.started()
        _await_made(ours)
        try:
            roots = _roots(daemon.present(pid))
        except ipc.LinkBroken as error:
            raise RunError(f"the daemon went away: {error}") from error
        ours.send(inner.GO + roots)
        return company.keep()


def _looked_through(view: bubble.View) -> bubble.View:
    """What is shared without the sockets in it; the person is told. RunError where there are too many."""
    view = bubble.looked_through(view)
    if len(view.hidden) > HIDDEN_MOST:
        raise RunError(f"there are {len(view.hidden)} sockets in what you --share; share less of it")
    if view.hidden:
        first, more = view.hidden[0], len(view.hidden) - 1
        others = f" and {more} more" if more else ""
        _say(f"a socket of the host is hidden from the program: {first}{others}; to give one: --share SOCKET")
    if view.unseen:
        _say("not all that you --share can be looked through for sockets of the host: it is only cooperative")
    return view


def _roots(entered: Entered) -> bytes:
    """The certificates that the bubble's programs are to trust."""
    roots = entered.roots.encode()
    if roots and not trust.is_roots(roots):
        raise RunError("the daemon gave as inspection CA what is no certificate")
    return roots


def _await_made(link: socket.socket) -> None:
    """Until the bubble's namespaces have been made; RunError when they could not be."""
    word = link.recv(4096)
    if word != b"made":
        raise RunError(word[1:].decode() or "the bubble could not be made")


class _Company:
    """The loop of the outer process: terminal, signals, daemon, and the end of the inner process."""

    def __init__(self, daemon: Daemon, stdio: Stdio, pid: int) -> None:
        self._daemon, self._stdio, self._pid = daemon, stdio, pid
        self._pidfd = os.pidfd_open(pid)
        self._kill_at: float | None = None
        self._watched: socket.socket | None = None
        self._reaped = False

    def __enter__(self) -> _Company:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever happens, no bubble stays without its company."""
        if not self._reaped:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._pidfd)

    def keep(self) -> int:
        """Until the program has ended; its exit code."""
        with selectors.DefaultSelector() as selector, _signals() as wake:
            for fileobj, what in ((self._pidfd, "end"), (wake, "signal"), (self._stdio, "terminal")):
                selector.register(fileobj, selectors.EVENT_READ, what)
            self._stdio.take_terminal()
            while True:
                self._watch_daemon(selector)
                for key, _ in selector.select(self._pause()):
                    match key.data:
                        case "signal":
                            self._pass_on(os.read(wake, 64))
                        case "daemon":
                            self._hear_daemon(time.monotonic())
                        case "terminal":
                            self._stdio.pump()
                        case "end":
                            code = self._reap()
                            self._daemon.lost()
                            self._drain(wake)
                            return self._told_of_loss(code)
                self._tick(time.monotonic())

    def _reap(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._reaped = True
        return code if code >= 0 else 128 - code

    def _drain(self, wake: int) -> None:
        """What the program wrote last, unless the person has no patience with a terminal that is paused."""
        with selectors.DefaultSelector() as selector:
            for fileobj in (self._stdio, wake):
                selector.register(fileobj, selectors.EVENT_READ)
            while self._stdio.drain():
                heard = any(key.fileobj == wake for key, _ in selector.select())
                if heard and any(number in FORWARDED for number in os.read(wake, 64)):
                    return

    def _told_of_loss(self, code: int) -> int:
        """The exit code, never that of success where a file has not taken what the program wrote."""
        if self._stdio.trouble:
            _say(f"not all that the program wrote could be written: {self._stdio.trouble}")
        return code or int(bool(self._stdio.trouble))

    def _pause(self) -> float | None:
        idle = self._daemon.answered and self._kill_at is None and not self._stdio.awaits_terminal
        return None if idle else LOOK_EVERY_S

    def _pass_on(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._stdio.resize()
            elif number == signal.SIGCONT:
                self._stdio.take_terminal(resumed=True)
            elif number in FORWARDED:
                signal.pidfd_send_signal(self._pidfd, number)

    def _hear_daemon(self, now: float) -> None:
        if self._daemon.link is not None and self._daemon.hear(now) and self._kill_at is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
            self._kill_at = now + GRACE_S

    def _watch_daemon(self, selector: selectors.BaseSelector) -> None:
        """Listen to the present daemon; epoll has forgotten a link that was closed."""
        if self._watched is not self._daemon.link:
            if self._watched is not None:
                selector.unregister(self._watched)
            if self._daemon.link is not None:
                selector.register(self._daemon.link, selectors.EVENT_READ, "daemon")
            self._watched = self._daemon.link

    def _tick(self, now: float) -> None:
        self._stdio.take_terminal()
        if self._kill_at is None:
            self._daemon.look(self._pid, now)
        elif now >= self._kill_at:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor from which the numbers of signals are read, which do nothing else meanwhile."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    heard = (*FORWARDED, signal.SIGWINCH, signal.SIGCONT)
    waking = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    before = [(number, signal.signal(number, lambda *_: None)) for number in heard]
    try:
        yield read
    finally:
        for number, handler in before:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(waking)
        os.close(read)
        os.close(write)
