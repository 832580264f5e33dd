"""An mtls tunnel as a worker sees it: sockets to the gateway, on them TLS with its certificate, and CONNECT.

Makes no socket: the tunnel's holder connects them and hands them over.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable

from proxy.channel.connect import ConnectionEnded, ConnectRefused, connect_through
from proxy.channel.plain import Backlog
from proxy.channel.tls import SaidNothing, TlsChannel, tls_client
from proxy.egress import NO_ROOM, DialFailed, Egress
from proxy.flow import IPAddress
from proxy.kept import KeptChannels
from proxy.link import Link
from proxy.messages.holding import Dial, Dialled, TunnelSetup

TLS_LIMIT_S, CONNECT_LIMIT_S, SOCKET_LIMIT_S = 5.0, 15.0, 5.0


class MtlsEgress(Egress):
    """One mtls tunnel of a worker. The gateway resolves names, and judges their addresses by its own list."""

    judges_names = True

    def __init__(
        self, setup: TunnelSetup, context: ssl.SSLContext, backlog: Backlog, clock: Callable[[], int]
    ) -> None:
        super().__init__(setup.name, clock)
        self.setup, self._context, self._backlog = setup, context, backlog
        self._link: Link[Dialled] | None = None
        self._waiting: deque[asyncio.Future[socket.socket]] = deque()
        self._kept = KeptChannels(self._handshaken)

    def forget(self) -> None:
        """See Egress."""
        self._kept.drop()

    def connect_holder(self, sock: socket.socket) -> None:
        """See Egress."""
        if self._link is not None:
            self._link.close()
        self._link = Link(sock, [Dialled])
        self._kept.drop()
        self._fail_all()

    def show(self, context: ssl.SSLContext) -> None:
        """Show another certificate from the next connection on."""
        self._context = context
        self._kept.drop()

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

    def _deliver(self, answer: Dialled, fds: list[int]) -> None:
        for fd in fds:
            sock = socket.socket(fileno=fd)
            sock.setblocking(False)
            while self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_result(sock)
                    break
            else:
                sock.close()
        if not fds:
            self._fail(answer.trouble or f"{NO_ROOM} {self.name}")

    def _fail(self, words: str) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(DialFailed(words))
                return

    def _fail_all(self) -> None:
        while self._waiting:
            self._fail("the tunnel's holder is gone")

    async def _socket(self) -> socket.socket:
        """A socket of the holder; of the one that follows it, if it is replaced meanwhile."""
        while True:
            asked = self._link
            try:
                return await self._ask(asked)
            except DialFailed:
                if self._link is asked or self._link is None:
                    raise

    async def _ask(self, link: Link[Dialled] | None) -> socket.socket:
        if link is None or link.closed:
            raise DialFailed("the tunnel's holder is not there")
        waiter: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        link.send(Dial(1))
        try:
            async with asyncio.timeout(SOCKET_LIMIT_S):
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().close()  # it came in the moment in which nobody wanted it any more
            if isinstance(error, asyncio.CancelledError):
                raise
            raise DialFailed(f"the tunnel's holder gave no socket in {SOCKET_LIMIT_S:g} s") from error

    async def dial(self, host: str | IPAddress, port: int) -> TlsChannel:
        """A channel to a destination behind the gateway; DialFailed in the user's words."""
        kept = self._kept.take()
        try:
            if kept is not None:
                # In the very moment in which the gateway had enough of waiting: once more, from the start.
                with contextlib.suppress(ConnectionEnded):
                    await connect_through(kept, host, port, CONNECT_LIMIT_S)
                    return kept
            channel = await self._handshaken()
            await connect_through(channel, host, port, CONNECT_LIMIT_S)
        except ConnectRefused as error:
            raise DialFailed(str(error), status=error.status) from error
        except ConnectionError as error:
            raise DialFailed(str(error)) from error
        return channel

    async def _handshaken(self) -> TlsChannel:
        """A channel to the pinned gateway that nothing was asked of yet.

        The holder keeps sockets ready; one that a gateway lets go of without a word is worth a second try.
        """
        try:
            return await self._shake_hands()
        except SaidNothing:
            return await self._shake_hands()

    async def _shake_hands(self) -> TlsChannel:
        sock = await self._socket()
        pins = frozenset(self.setup.pins)
        name, limit_s = self.setup.server_name, TLS_LIMIT_S
        return await tls_client(sock, self._context, name, pins, limit_s, self._backlog)

    def close(self) -> None:
        """See Egress."""
        self._kept.close()
        if self._link is not None:
            self._link.close()
