"""A worker's flows that have to be inspected: given to its inspector, or refused where there is none.

Asks for an inspector when the first such flow comes, and again after each one that has ended. What is given
is the client's socket and all that was read from it; nothing of it stays in the worker.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from proxy import ipc
from proxy.channel.plain import PlainChannel
from proxy.flow import Flow, Missing, Protocol, Refusal
from proxy.gate import gate_refusal
from proxy.link import Link
from proxy.messages.inspection import TakeOver, WantInspector
from proxy.messages.worker import BubbleGone
from proxy.visitor import Visitor

START_LIMIT_S = 15.0
CURE = "try again; see `zonegate status`"


class HandingOver:
    """The way from one worker to its inspector. `ask` tells the supervisor what is wanted."""

    def __init__(self, ask: Callable[[object], None]) -> None:
        self._ask = ask
        self._link: Link[TakeOver] | None = None
        self._waiting: list[asyncio.Future[str]] = []

    async def __call__(
        self, client: PlainChannel, flow: Flow, first: bytes, visitor: Visitor, number: str
    ) -> Refusal | None:
        """Give a flow away; a Refusal where nobody takes it."""
        trouble = "" if self._is_there() else await self._come()
        if trouble:
            return gate_refusal("no-inspector", f"it has to be inspected, and {trouble}", CURE)
        assert self._link is not None
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
        )
        sock, unread = client.detach()
        with sock:
            said = ipc.memory_file("first-bytes", first + unread)
            try:
                self._link.send(message, [sock.fileno(), said])
            finally:
                ipc.close_all([said])
        return None

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
