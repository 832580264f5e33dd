"""`zonegate attach`: a network namespace that was there before becomes a zone, and what stays beside it.

Two processes, as with `zonegate run`. The keeper enters the namespace, sees that nothing leads out of it,
makes it a zone, and stays, so that it lasts: and goes on looking whether a device comes. The outer one, this,
presents the keeper to the daemon, and to the next one. When either ends, the namespace stays what it is then:
a zone without ears, from which nothing goes anywhere. Only root may: the namespace is nobody's who asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from proxy import ipc, namespaces, pieces, prctl
from proxy.messages.admin import Ask, Denied
from proxy.run import LOOK_EVERY_S, Daemon, RunError, connect

NAMED = Path("/run/netns")
LOOK_FOR_DEVICES_S = 0.5


class AttachError(Exception):
    """Nothing is attached, or nothing is any more; one line with the cure."""


@dataclass(frozen=True, slots=True)
class Target:
    """A network namespace (a descriptor), and what a person calls it.

    `apart` says whether its programs were seen to have files and processes of their own: else they see the
    Unix sockets of the host, and can ask others to act for them.
    """

    network: int
    words: str
    apart: bool


def named(name: str) -> Target:
    """The namespace that `ip netns` calls so."""
    if not name or "/" in name or name in (".", ".."):
        raise AttachError(f'"{name}" is no name of a network namespace; see: ip netns')
    try:
        network = os.open(NAMED / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise AttachError(f"{NAMED / name}: {error.strerror}; see: ip netns") from error
    return _checked(Target(network, f"netns {name}", False))


def of_process(pid: int) -> Target:
    """The namespace of a process, which must live while it is looked at."""
    try:
        pidfd = os.pidfd_open(pid)
        try:
            network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            apart = all(
                _differs(f"/proc/{pid}/ns/{kind}", f"/proc/self/ns/{kind}") for kind in ("mnt", "pid")
            )
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            if ended.poll(0):
                os.close(network)
                raise AttachError(f"process {pid} has ended")
        finally:
            os.close(pidfd)
    except (OSError, OverflowError) as error:
        words = error.strerror if isinstance(error, OSError) else "no such process"
        raise AttachError(f"the network of process {pid} cannot be opened: {words}") from error
    return _checked(Target(network, f"process {pid}", apart))


def _differs(one: str, other: str) -> bool:
    return not Path(one).samefile(other)


def _checked(target: Target) -> Target:
    """The namespace, if it is not that of this host: then everything here would be captured."""
    for pid in ("self", "1"):
        with contextlib.suppress(OSError):  # a sandbox may hide the first process
            if _is(f"/proc/{pid}/ns/net", target.network):
                os.close(target.network)
                raise AttachError(f"{target.words} is in this host's own network, which cannot be a zone")
    return target


def _is(path: str, fd: int) -> bool:
    return os.path.samestat(Path(path).stat(), os.fstat(fd))


# -- the keeper --------------------------------------------------------------------------------------


def _keep(target: Target, link: socket.socket, outer: int) -> NoReturn:
    """Make the namespace a zone and say `made`, or `!` and why not; stay until the outer process is gone."""
    try:
        os.setsid()  # Ctrl-C is the outer process's to act on
        prctl.die_with_parent(outer)
        try:
            os.setns(target.network, os.CLONE_NEWNET)
        except OSError as error:
            raise AttachError(f"{target.words} is no network namespace: {error.strerror}") from error
        _must_lead_nowhere(target)
        namespaces.make_zone()
        link.send(b"made")
        ended = select.poll()
        ended.register(link, select.POLLIN)
        while not ended.poll(LOOK_FOR_DEVICES_S * 1000):
            _must_lead_nowhere(target)
    except Exception as error:
        with contextlib.suppress(OSError):
            link.send(f"!{error or repr(error)}".encode()[:4096])
    finally:
        os._exit(0)


def _must_lead_nowhere(target: Target) -> None:
    ways = namespaces.ways_out()
    if ways:
        raise AttachError(
            f"{target.words} has device {', '.join(ways)}, which would be a way out; "
            "start its programs without a network, or take the device away"
        )


# -- the outer process -------------------------------------------------------------------------------


def attach(target: Target, zone: str, sockets: Sequence[Path], say: Callable[[str], None]) -> None:
    """Serve a namespace as a zone until SIGINT, SIGTERM, or a daemon that ends its bubbles.

    `say` hears what becomes of it. Raises AttachError, RunError when it is not served, or not any more.
    """
    connect(sockets).close()  # the cheapest check first
    daemon = Daemon(sockets, zone, not target.apart, target.words)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    outer = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _keep(target, theirs, outer)
    theirs.close()
    with contextlib.ExitStack() as undo:
        undo.callback(_end, pid)
        undo.callback(daemon.lost)
        undo.callback(ours.close)
        _hear_keeper(ours)
        try:
            served = daemon.present(pid)
        except ipc.LinkBroken as error:
            raise RunError(f"the daemon went away: {error}") from error
        say(f"{target.words} is zone {served.zone} ({served.enforcement}), as bubble {served.bubble}")
        with _interrupts(), contextlib.suppress(KeyboardInterrupt):
            _stay(daemon, pid, ours, target, say)
        say(f"{target.words} is detached: nothing that it sends goes anywhere")


def _hear_keeper(link: socket.socket) -> None:
    """`made`; AttachError with anything else that the keeper says, and when it has ended."""
    word = link.recv(4096)
    if word != b"made":
        raise AttachError(word[1:].decode(errors="replace") or "who held the namespace was ended")


def _stay(
    daemon: Daemon, pid: int, keeper: socket.socket, target: Target, say: Callable[[str], None]
) -> None:
    """Until the daemon says that it takes its bubbles with it. AttachError when the keeper has ended."""
    served = True
    while True:
        link = daemon.link
        for fd in _readable([keeper, *([link] if link else [])]):
            if fd == keeper.fileno():
                _hear_keeper(keeper)
            elif link is not None and daemon.hear(time.monotonic()):
                return
        daemon.look(pid, time.monotonic())
        if daemon.answered != served:
            served = daemon.answered
            now = "served again" if served else "shut in: no daemon is there"
            say(f"{target.words} is {now}")


def _readable(links: Sequence[socket.socket]) -> list[int]:
    ready = select.poll()
    for link in links:
        ready.register(link, select.POLLIN)
    return [fd for fd, _ in ready.poll(LOOK_EVERY_S * 1000)]


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [(number, signal.signal(number, signal.default_int_handler)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


# -- detaching ---------------------------------------------------------------------------------------


def detach(target: Target, sockets: Sequence[Path]) -> str:
    """End the `zonegate attach` that serves this namespace; the bubble that it was."""
    with connect(sockets) as link:
        ipc.send(link, Ask("status", "{}"))
        answer = pieces.receive(link)
    if isinstance(answer, Denied):
        raise RunError(answer.reason)
    for bubble in json.loads(answer.text)["bubbles"]:
        if bubble["attached"] and _end_beside(int(bubble["pid"]), target.network):
            return str(bubble["id"])
    raise AttachError(f"{target.words} is not attached; see: zonegate status")


def _end_beside(outer: int, network: int) -> bool:
    """End a process if a child of it is in this network namespace."""
    try:
        pidfd = os.pidfd_open(outer)
        try:
            children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
            if not any(_is(f"/proc/{one}/ns/net", network) for one in children):
                return False
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        finally:
            os.close(pidfd)
    except OSError:
        return False
    return True
