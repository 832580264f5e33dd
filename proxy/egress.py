"""A tunnel as a worker sees it: dial, while leased.

Makes no socket: the tunnel's holder connects them and hands them over. What a worker adds is TLS under the
pinned key, its client certificate and CONNECT. The lease is judged here against CLOCK_BOOTTIME, so that a
stopped supervisor or a sleeping machine cannot prolong it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from proxy import ipc
from proxy.channel.connect import ConnectionEnded, ConnectRefused, connect_through
from proxy.channel.plain import Backlog
from proxy.channel.tls import TlsChannel, tls_client
from proxy.flow import IPAddress, TunnelFact, TunnelState
from proxy.kept import KeptChannels
from proxy.link import Link
from proxy.messages.holding import Dial, Dialled, TunnelSetup
from proxy.messages.worker import Lease

TLS_LIMIT_S, CONNECT_LIMIT_S, SOCKET_LIMIT_S = 5.0, 15.0, 5.0
NEVER_LEASED = "no proof of its peer has come yet"


class DialFailed(Exception):
    """The tunnel could not carry this flow; one line. `by_gateway`: the peer said so itself."""

    def __init__(self, words: str, *, by_gateway: bool = False) -> None:
        super().__init__(words)
        self.by_gateway = by_gateway


@dataclass(frozen=True, slots=True)
class Grant:
    """The right of one flow to use one egress, from one unbroken run of leases."""

    generation: int
    peer: str
    proof_age_s: float


class Egress:
    """One tunnel of a worker. `clock` is CLOCK_BOOTTIME in nanoseconds."""

    def __init__(
        self, setup: TunnelSetup, context: ssl.SSLContext, backlog: Backlog, clock: Callable[[], int]
    ) -> None:
        self.name = setup.name
        self._setup, self._context, self._backlog, self._clock = setup, context, backlog, clock
        self._lease = Lease(setup.name, TunnelState.DOWN, NEVER_LEASED, "", 0, 0)
        self._generation = 0
        self._link: Link[Dialled] | None = None
        self._waiting: deque[asyncio.Future[socket.socket]] = deque()
        self._kept = KeptChannels(self._handshaken)

    # -- the lease ---------------------------------------------------------------------------------

    @property
    def leased(self) -> bool:
        """Whether the proof of the peer is fresh at this very moment."""
        return self._clock() < self._lease.deadline_ns

    @property
    def deadline_ns(self) -> int:
        """When the present lease ends; 0 is closed."""
        return self._lease.deadline_ns

    @property
    def words(self) -> str:
        """What is said of the tunnel now."""
        if self._lease.deadline_ns and not self.leased:
            return "its lease has run out: nothing was heard from the supervisor in time"
        return self._lease.words

    def fact(self) -> TunnelFact:
        """The tunnel as the policy sees it."""
        if self.leased:
            return TunnelFact(self.name, TunnelState.ATTESTED)
        state = TunnelState(self._lease.state)
        return TunnelFact(self.name, TunnelState.STALE if state is TunnelState.ATTESTED else state)

    def renew(self, lease: Lease) -> None:
        """Take a new lease. One that comes after the last has ended begins a new generation: flows that
        were admitted before the gap stay lost."""
        if not self.leased or not lease.deadline_ns:
            self._generation += 1
            self._kept.drop()
        self._lease = lease

    def grant(self) -> Grant | None:
        """A right for one flow, None without a valid lease."""
        now_ns = self._clock()
        if now_ns >= self._lease.deadline_ns:
            return None
        return Grant(self._generation, self._lease.peer, (now_ns - self._lease.proof_at_ns) / 1e9)

    def admits(self, grant: Grant) -> bool:
        """Whether the flow that got this right may still pass a byte."""
        return grant.generation == self._generation and self._clock() < self._lease.deadline_ns

    # -- dialling ----------------------------------------------------------------------------------

    def connect_holder(self, link: Link[Dialled]) -> None:
        """Use a new link to the tunnel's holder. Who waited for the last one is not served by this one."""
        if self._link is not None:
            self._link.close()
            self._fail_all()
        self._kept.drop()
        self._link = link

    async def hear_holder(self) -> None:
        """Hand the sockets that the holder connects to those who wait; returns when the holder is gone."""
        link = self._link
        assert link is not None
        try:
            while True:
                answer, fds = await link.receive()
                self._deliver(answer, fds)
        except ipc.LinkBroken:
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
            self._fail(answer.trouble or "the tunnel's holder gave no socket")

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
        if self._link is None or self._link.closed:
            raise DialFailed("the tunnel's holder is not there")
        waiter: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._link.send(Dial(1))
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
            raise DialFailed(str(error), by_gateway=True) from error
        except ConnectionError as error:
            raise DialFailed(str(error)) from error
        return channel

    async def _handshaken(self) -> TlsChannel:
        """A channel to the pinned gateway that nothing was asked of yet."""
        sock = await self._socket()
        pins = frozenset(self._setup.pins)
        name, limit_s = self._setup.server_name, TLS_LIMIT_S
        return await tls_client(sock, self._context, name, pins, limit_s, self._backlog)

    def close(self) -> None:
        """Let go of the holder, and of the channels that are ready."""
        self._kept.close()
        if self._link is not None:
            self._link.close()
