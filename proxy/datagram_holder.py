"""The datagram holder of one SOCKS5 listener: has the UDP sockets of its clients, in the network of the host.

From a socket there datagrams can be sent to anybody, so no worker has one. For each association (RFC 1928,
section 7) a worker shows this process the client's connection, and only what the kernel says of that is
believed: it was accepted at the listener's address, and the client is who is at its other end. Datagrams go
to that address alone, and to the one port that it has sent from. What is in them is for the worker to read:
this process knows no login, no destination and no policy.

Standard library only. Argument: the descriptor of its link to the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from proxy import holder_process, ipc, prctl
from proxy.link import Link
from proxy.messages.associations import Alive, Associate, Associated, HoldAssociations
from proxy.messages.worker import Sealed
from proxy.namespaces import cookie

MOST, MOST_OF_CLIENT = 1024, 256
OTHER_DESCRIPTORS = 64
PER_TURN = 64  # then the loop's other sockets have their turn
DATAGRAM_BYTES = 65_536
BEAT_S = 1.0


class NoAssociation(Exception):
    """There is none for this; one line."""


def main(arguments: Sequence[str]) -> None:
    """Serve until the supervisor's or the worker's end of a link is gone. Does not return."""
    holder_process.serve(arguments[0], _begin)


def _begin(sock: socket.socket) -> None:
    prctl.no_core_dump()
    ipc.send(sock, Sealed(is_sealed()))
    hold, fds = ipc.receive(sock, [HoldAssociations])
    asyncio.Runner().run(_hold(sock, hold, socket.socket(fileno=fds[0])))


def is_sealed() -> bool:
    """Whether this process can make datagram sockets and no others."""
    for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM)):
        try:
            socket.socket(family, kind).close()
        except PermissionError:
            continue
        return False
    return True


async def _hold(sock: socket.socket, hold: HoldAssociations, worker: socket.socket) -> None:
    supervisor: Link[HoldAssociations] = Link(sock, [])
    desk = Desk(hold, Link(worker, [Associate]))
    tasks = [asyncio.create_task(one) for one in (supervisor.receive(), desk.serve(), _beat(supervisor))]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _beat(supervisor: Link[HoldAssociations]) -> None:
    """Say again and again that this process does not hang."""
    while True:
        supervisor.send(Alive())
        await asyncio.sleep(BEAT_S)


class Desk:
    """Where a worker asks for associations of one listener."""

    def __init__(self, hold: HoldAssociations, worker: Link[Associate]) -> None:
        self._hold, self._worker = hold, worker
        self._of_client: Counter[str] = Counter()
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(MOST, (descriptors - OTHER_DESCRIPTORS) // 2)

    async def serve(self) -> None:
        """Answer until the worker is gone. Raises LinkBroken."""
        while True:
            wanted, fds = await self._worker.receive()
            try:
                self._associate(wanted, fds[0])
            except NoAssociation as error:
                self._refuse(wanted, str(error))
            except OSError as error:
                self._refuse(wanted, error.strerror or str(error))

    def _refuse(self, wanted: Associate, trouble: str) -> None:
        self._worker.send(Associated(wanted.number, "", 0, trouble))

    def _associate(self, wanted: Associate, shown: int) -> None:
        own, client = ends_of(shown, self._hold)
        if self._of_client.total() >= self._most or self._of_client[client] >= MOST_OF_CLIENT:
            raise NoAssociation("there are too many associations")
        if not 0 <= wanted.port < 65_536:
            raise NoAssociation("there is no such port")
        family = socket.AF_INET6 if len(own) == 4 else socket.AF_INET
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.bind((own[0], 0, *own[2:]))
            ours, theirs = ipc.pair()
            undo.enter_context(ours)
            with theirs:
                address, port = sock.getsockname()[:2]
                self._worker.send(
                    Associated(wanted.number, address.partition("%")[0], port, ""), [theirs.fileno()]
                )
            self._of_client[client] += 1
            Association(sock, ours, client, wanted.port, lambda: self._ended(client))
            undo.pop_all()

    def _ended(self, client: str) -> None:
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]


def ends_of(fd: int, hold: HoldAssociations) -> tuple[tuple[str, int, int, int] | tuple[str, int], str]:
    """The own end, as an address to bind to, and the client's host, of a connection that was accepted at the
    listener. Takes the descriptor. Raises NoAssociation for anything else, OSError."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        ipc.close_all([fd])
        raise
    with sock:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.proto != socket.IPPROTO_TCP:
            raise NoAssociation("what was shown is no connection of a client")
        with socket.socket(sock.family, socket.SOCK_DGRAM) as here:
            if cookie(sock) != cookie(here):
                raise NoAssociation("what was shown is of another network")
        own, listener = sock.getsockname(), ip_address(hold.address)
        at_listener = listener.is_unspecified or ip_address(own[0].partition("%")[0]) == listener
        if own[1] != hold.port or not at_listener:
            raise NoAssociation("what was shown was not accepted by the listener")
        return own, sock.getpeername()[0]  # a listening socket has no peer


class Association:
    """One client's datagrams, both ways, until an end of `link` is closed; then `ended` is called, once."""

    def __init__(
        self, sock: socket.socket, link: socket.socket, client: str, port: int, ended: Callable[[], None]
    ) -> None:
        self._sock, self._link, self._ended = sock, link, ended
        self._client, self._port = client, port
        self._back_to: tuple[str, int] | tuple[str, int, int, int] | None = None
        self._loop = asyncio.get_running_loop()
        for one in (sock, link):
            one.setblocking(False)
        self._loop.add_reader(sock, self._from_client)
        self._loop.add_reader(link, self._from_worker)

    def _from_client(self) -> None:
        for _ in range(PER_TURN):
            try:
                data, sender = self._sock.recvfrom(DATAGRAM_BYTES)
            except OSError:  # nothing more, or the error of an earlier one
                return
            if not data or sender[0] != self._client or sender[1] != (self._port or sender[1]):
                continue
            self._port, self._back_to = sender[1], sender
            try:
                self._link.send(data)
            except BlockingIOError:
                pass  # the worker is behind: a datagram may be lost
            except OSError:
                self._end()
                return

    def _from_worker(self) -> None:
        for _ in range(PER_TURN):
            try:
                data = self._link.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._end()
                return
            if self._back_to is not None:
                with contextlib.suppress(OSError):  # too long, no room: it is lost
                    self._sock.sendto(data, self._back_to)

    def _end(self) -> None:
        for one in (self._sock, self._link):
            self._loop.remove_reader(one)
            one.close()
        self._ended()
