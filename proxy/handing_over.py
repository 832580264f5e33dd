"""A worker's flows that have to be inspected: given to its inspector, or refused where there is none.

Asks for an inspector when the first such flow comes, and again after each one that has ended. What is given
is the client's socket and all that was read from it; nothing of it stays in the worker. Only the client of an
explicit listener with TLS of its own stays: what it says and hears is carried over a pair of sockets.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable

from proxy import ipc
from proxy.channel.plain import Backlog, Channel, PlainChannel, Truncated
from proxy.flow import Flow, Missing, Protocol, Refusal
from proxy.gate import Inspect, gate_refusal
from proxy.link import Link
from proxy.messages.inspection import TakeOver, WantInspector
from proxy.messages.worker import BubbleGone
from proxy.relay import Counts, relay
from proxy.visitor import Visitor

START_LIMIT_S = 15.0
CURE = "try again; see `zonegate status`"


class HandingOver:
    """The way from one worker to its inspector. `ask` tells the supervisor what is wanted."""

    def __init__(self, ask: Callable[[object], None], backlog: Backlog | None = None) -> None:
        self._ask, self._backlog = ask, backlog
        self._link: Link[TakeOver] | None = None
        self._waiting: list[asyncio.Future[str]] = []

    async def __call__(
        self, client: Channel, flow: Flow, first: bytes, visitor: Visitor, number: str, answer: Inspect
    ) -> Refusal | None:
        """Give a flow away; a Refusal where nobody takes it. Raises ConnectionError."""
        trouble = "" if self._is_there() else await self._come()
        if trouble:
            return gate_refusal("no-inspector", f"it has to be inspected, and {trouble}", CURE)
        message = TakeOver(
            number=number,
            bubble=visitor.bubble,
            user=flow.user,
            groups=tuple(sorted(flow.groups)),
            enforcement=visitor.enforcement,
            name=flow.name if isinstance(flow.name, str) else "",
            address="" if isinstance(flow.address, Missing) else str(flow.address),
            port=flow.port,
            protocol=flow.protocol.value if isinstance(flow.protocol, Protocol) else "",
            addresses=tuple(map(str, answer.addresses)),
            tunnel=answer.egress.name if answer.addresses else "",
        )
        if isinstance(client, PlainChannel):
            sock, unread = client.detach()
            self._give(message, sock, first + unread)
        else:
            here, there = socket.socketpair()
            carried = _Carried(here, self._backlog)
            try:
                self._give(message, there, first)
            except BaseException:
                carried.abort()
                raise
            await relay(client, carried, admitted=lambda: True, budgets=(), counts=Counts())
        return None

    def _give(self, message: TakeOver, sock: socket.socket, first: bytes) -> None:
        with sock:
            said = ipc.memory_file("first-bytes", first)
            try:
                if self._link is not None:
                    self._link.send(message, [sock.fileno(), said])
            finally:
                ipc.close_all([said])

    def forget(self, bubble: str) -> None:
        """A bubble has ended. Said behind its last flow, so that none that was on its way stays open."""
        if self._link is not None:
            self._link.send(BubbleGone(bubble))

    def _is_there(self) -> bool:
        return self._link is not None and not self._link.closed

    async def _come(self) -> str:
        """Ask for an inspector and wait for it; says why there is none."""
        arrival: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(arrival)
        if len(self._waiting) == 1:
            self._ask(WantInspector())
        try:
            async with asyncio.timeout(START_LIMIT_S):
                trouble = await arrival
        except TimeoutError:
            trouble = "its inspector does not start"
        finally:
            if arrival in self._waiting:
                self._waiting.remove(arrival)
        return trouble or ("" if self._is_there() else "its inspector has just ended")

    # -- what the supervisor says ------------------------------------------------------------------

    async def hear(self, sock: socket.socket) -> None:
        """An inspector is there: use it until it is gone."""
        link: Link[TakeOver] = Link(sock, [TakeOver])
        if self._link is not None:
            self._link.close()
        self._link = link
        self._tell("")
        try:
            while True:  # it has nothing to say
                await link.receive()
        except ipc.LinkBroken:
            link.close()

    def refused(self, reason: str) -> None:
        """There is no inspector."""
        self._tell(reason or "there is no inspector")

    def _tell(self, trouble: str) -> None:
        waiting, self._waiting = self._waiting, []
        for arrival in waiting:
            if not arrival.done():
                arrival.set_result(trouble)


class _Carried(PlainChannel):
    """This end of a connection whose other end an inspector has.

    Its Unix sockets know no reset, by which an inspector cuts: an end of file that comes with the end of
    everything is taken for one.
    """

    __slots__ = ("_finished",)

    def __init__(self, sock: socket.socket, backlog: Backlog | None) -> None:
        super().__init__(sock, backlog)
        self._finished = False

    async def write_eof(self) -> None:
        """See Channel."""
        self._finished = True
        await super().write_eof()

    async def read(self) -> bytes:
        """See Channel."""
        data = await super().read()
        if not data and not self._finished and self._is_gone():
            raise self.end(Truncated("the inspector cut it"))
        return data

    def _is_gone(self) -> bool:
        look = select.poll()
        look.register(self._sock, 0)
        return any(event & select.POLLHUP for _, event in look.poll(0))
