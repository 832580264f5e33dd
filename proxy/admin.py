"""The admin socket: who speaks to the daemon, and what may be said.

A peer is known by the kernel's word (SO_PEERCRED). One in another user namespace, such as a program in a
bubble, is refused whatever it says: the law is not administered from inside. Decides nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from proxy import ipc
from proxy.link import Link
from proxy.messages.admin import TO_SUPERVISOR, Denied, ToSupervisor

BACKLOG = 128
MAX_PEERS, MAX_PEERS_OF_USER = 1024, 256
REFUSED_OF_USER = 16  # who has too much is told so at most this often at a time
PAUSE_S = 0.1
LINGER_S = 2.0


class AdminError(Exception):
    """The admin socket cannot be had; one line with the cure."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A command on the other end. `link` is closed when it has gone or is sent away."""

    link: Link[ToSupervisor]
    pid: int
    uid: int
    gid: int


class AdminSocket:
    """Listens on `path`; each peer that may speak at all is given to `serve` in a task of its own."""

    def __init__(self, path: Path, serve: Callable[[Peer], Awaitable[None]]) -> None:
        self._path, self._serve = path, serve
        self._tasks: set[asyncio.Task[None]] = set()
        self._of_user: Counter[int] = Counter()
        self._sock = _listen(path)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock, self._accept)

    def close(self) -> None:
        """Take no new peer; those that are there stay until `hang_up`."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        self._sock.close()
        self._path.unlink(missing_ok=True)

    async def hang_up(self) -> None:
        """Close every link."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor or memory left: let others end first
            self._loop.remove_reader(self._sock)
            self._loop.call_later(PAUSE_S, self._resume)
            return
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if not self._has_room(uid):
            sock.close()
            return
        self._of_user[uid] += 1
        task = self._loop.create_task(self._welcome(sock, pid, uid, gid))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _has_room(self, uid: int) -> bool:
        """Others, all together or by coming again and again, never keep out who may stop the daemon."""
        others = self._of_user.total() - self._of_user[os.geteuid()]
        if uid == os.geteuid():
            return len(self._tasks) - others < MAX_PEERS
        return others < MAX_PEERS and self._of_user[uid] < MAX_PEERS_OF_USER + REFUSED_OF_USER

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept)

    async def _welcome(self, sock: socket.socket, pid: int, uid: int, gid: int) -> None:
        link: Link[ToSupervisor] = Link(sock, TO_SUPERVISOR)
        try:
            reason = _stranger(pid, uid)
            if not reason and self._of_user[uid] > MAX_PEERS_OF_USER:
                reason = "you have too many bubbles and commands here already; end some"
            if reason:
                link.send(Denied(reason))
                await _until_gone(link)
                return
            await self._serve(Peer(link, pid, uid, gid))
        except ipc.LinkBroken:
            return
        finally:
            self._of_user[uid] -= 1
            link.close()


async def _until_gone(link: Link[ToSupervisor]) -> None:
    """Let a peer read its refusal: closing over a question that was not read would reset the link first."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while True:
                _, fds = await link.receive()
                ipc.close_all(fds)


def _stranger(pid: int, uid: int) -> str:
    """Why this peer is not served at all; empty if it is."""
    if os.geteuid() not in (0, uid):
        return "this daemon serves only the user who runs it"
    try:
        theirs = Path(f"/proc/{pid}/ns/user").stat()
        ours = Path("/proc/self/ns/user").stat()
    except OSError:
        return "this daemon cannot see who you are; run the command on the host, outside every sandbox"
    if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
        return "you are in another user namespace, such as a bubble; run the command outside of it"
    return ""


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`; a dead daemon's is replaced, a living one's is an error."""
    _own_directory(path.parent)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as other:
            if other.connect_ex(str(path)) == 0:
                raise AdminError(f"another daemon listens on {path}; stop it first: zonegate stop")
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        if os.geteuid() == 0:
            path.chmod(0o666)  # every user may ask; who may do what is judged by the kernel's word
        ipc.refuse_descriptors(sock)  # whoever is accepted inherits it
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise AdminError(f"{path}: cannot listen there: {error.strerror or error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _own_directory(directory: Path) -> None:
    """The directory of the socket: ours, and nobody else may put a socket of that name there."""
    try:
        directory.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise AdminError(f"{directory}: cannot be made: {error.strerror}") from error
    if found.st_uid != os.geteuid() or found.st_mode & 0o022 or not directory.is_dir():
        raise AdminError(f"{directory} must be a directory of your own that nobody else may write to")
