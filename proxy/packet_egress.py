"""A packet tunnel as a worker sees it: sockets that the tunnel's holder made in the tunnel's namespace.

Makes no socket and re-aims none. What is dialled is an address, which was judged; names are resolved before
(see resolving), by the tunnel's own resolvers over sockets of the same kind.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable
from errno import ENOTCONN
from functools import partial
from ipaddress import ip_address, ip_interface

from proxy import ipc
from proxy.addresses import inner
from proxy.allocator import OWN_NETWORKS
from proxy.channel.plain import Backlog, PlainChannel
from proxy.egress import NO_ROOM, DialFailed, Egress
from proxy.flow import IPAddress
from proxy.link import Link
from proxy.messages.holding import PacketSetup
from proxy.messages.packets import Connect, Connected
from proxy.resolver import Resolver, Unresolved

SOCKET_LIMIT_S, CONNECT_LIMIT_S = 5.0, 15.0
# What the holder is asked for at a time: its answers must fit into the link while this process is busy.
MAX_ASKED = 128


class PacketEgress(Egress):
    """One packet tunnel of a worker. It speaks to addresses only."""

    judges_names = False

    def __init__(self, name: str, setup: PacketSetup, backlog: Backlog, clock: Callable[[], int]) -> None:
        super().__init__(name, clock)
        self.setup = setup
        self._backlog = backlog
        self._link: Link[Connected] | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[socket.socket]] = {}
        self._room = asyncio.Semaphore(MAX_ASKED)
        own = [ip_interface(text).ip for text in setup.addresses]
        self._own = frozenset(own)
        versions = {address.version for address in own}
        self._resolver = Resolver(
            [ip_address(text) for text in setup.resolvers],
            [kind for version, kind in ((6, "AAAA"), (4, "A")) if version in versions],
            self._socket_of_resolver,
            clock,
        )

    def forget(self) -> None:
        """See Egress."""
        self._resolver.forget()

    def connect_holder(self, sock: socket.socket) -> None:
        """See Egress."""
        if self._link is not None:
            self._link.close()
            self._fail_all()
        self._link = Link(sock, [Connected])

    async def hear_holder(self) -> None:
        """See Egress."""
        link = self._link
        assert link is not None
        try:
            await link.hear(self._deliver)
        finally:
            if self._link is link:
                self._link = None
                self._fail_all()

    def _deliver(self, answer: Connected, fds: list[int]) -> None:
        waiter = self._waiting.pop(answer.number, None)
        if waiter is None or waiter.done():
            ipc.close_all(fds)
        elif fds:
            sock = socket.socket(fileno=fds[0])
            sock.setblocking(False)
            waiter.set_result(sock)
        else:
            waiter.set_exception(DialFailed(answer.trouble or f"{NO_ROOM} {self.name}"))

    def _fail_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(DialFailed("the tunnel's holder is gone"))

    async def open_socket(self, transport: str, address: IPAddress, port: int) -> socket.socket:
        """A socket inside the tunnel to a judged address: a TCP one is connecting, a UDP one hears from there
        alone. Raises DialFailed."""
        waiter: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        try:
            async with asyncio.timeout(SOCKET_LIMIT_S), self._room:
                if self._link is None or self._link.closed:
                    raise DialFailed("the tunnel's holder is not there")
                self._waiting[number] = waiter
                self._link.send(Connect(number, transport, str(address), port))
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().close()  # it came in the moment in which nobody wanted it any more
            if isinstance(error, asyncio.CancelledError):
                raise
            raise DialFailed(f"the tunnel's holder gave no socket in {SOCKET_LIMIT_S:g} s") from error
        finally:
            self._waiting.pop(number, None)

    async def connected(
        self, address: IPAddress, port: int, limit_s: float = CONNECT_LIMIT_S
    ) -> socket.socket:
        """A TCP socket whose connection stands. Raises DialFailed."""
        sock = await self.open_socket("tcp", address, port)
        try:
            async with asyncio.timeout(limit_s):
                await _writable(sock)
            trouble = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if trouble or not _has_peer(sock):
                raise DialFailed(f"{address} did not take the connection: {os.strerror(trouble or ENOTCONN)}")
        except TimeoutError as error:
            sock.close()
            raise DialFailed(f"{address} did not answer in {limit_s:g} s") from error
        except BaseException:
            sock.close()
            raise
        return sock

    async def _socket_of_resolver(self, transport: str, address: IPAddress, port: int) -> socket.socket:
        """A socket for one question. Raises OSError, also where only a clock ends the lease."""
        opened = self.connected if transport == "tcp" else partial(self.open_socket, "udp")
        try:
            self._must_be_leased()
            sock = await opened(address, port)
        except DialFailed as error:
            raise OSError(str(error)) from error
        try:
            self._must_be_leased()  # it may have taken seconds
        except DialFailed as error:
            sock.close()
            raise OSError(str(error)) from error
        return sock

    def _must_be_leased(self) -> None:
        if not self.leased:
            raise DialFailed(self.words)

    async def resolve(self, name: str) -> tuple[IPAddress, ...]:
        """See Egress. Without those that no tunnel leads to: a name that has no other is refused."""
        try:
            found = await self._resolver.addresses(name)
        except Unresolved as error:
            raise DialFailed(str(error)) from error
        behind = tuple(address for address in found if not self._is_near(address))
        if not behind:
            raise DialFailed(f"{name} has the address {found[0]}, which is not behind the tunnel")
        return behind

    def _is_near(self, address: IPAddress) -> bool:
        """Whether an address, or the one within it, means this machine, its link or the gate itself."""
        meant = inner(address)
        near = meant.is_loopback or meant.is_link_local or meant.is_multicast or meant.is_unspecified
        return near or meant in self._own or any(meant in network for network in OWN_NETWORKS)

    async def dial(self, host: str | IPAddress, port: int) -> PlainChannel:
        """See Egress. `host` is an address: a name is resolved, and its addresses judged, before."""
        if isinstance(host, str):
            raise DialFailed("a name has no address before it was resolved")
        return PlainChannel(await self.connected(host, port), self._backlog)

    def close(self) -> None:
        """See Egress."""
        if self._link is not None:
            self._link.close()


def _has_peer(sock: socket.socket) -> bool:
    """A socket that was never connected is writable too."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
