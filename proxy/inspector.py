"""The inspector: a worker that carries what has to be looked into. Wires inspection.

Sealed as a worker is, with tunnels, leases, policy and audit segment of its own. The only process that loads
mitmproxy, and with the supervisor the only one that has a key of the inspection CA. It listens to nobody: its
worker gives it the sockets of clients. When it dies, hangs or needs too much memory, its flows are cut.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address

from proxy import ipc
from proxy.channel.plain import PlainChannel
from proxy.flow import Protocol
from proxy.inspection.connection import InspectedConnection
from proxy.inspection.heads import Destination
from proxy.inspection.judging import Judging
from proxy.inspection.tls import TlsSides
from proxy.inspection_ca import Intermediate
from proxy.leaves import Leaves
from proxy.link import Link
from proxy.messages.inspection import Prepare, TakeFrom, TakeOver
from proxy.messages.worker import TO_WORKER, BubbleGone, Configure, ToWorker
from proxy.sealed import run
from proxy.visitor import Visitor
from proxy.worker import Worker, utc_now

MEMORY_BYTES, RESIDENT_BYTES, MEMORY_LOOK_S = 1 << 30, 768 << 20, 0.1
OF_A_FLOW = 2  # descriptors
TO_INSPECTOR = (*TO_WORKER, Prepare, TakeFrom)
type ToInspector = ToWorker | Prepare | TakeFrom


def main(arguments: Sequence[str]) -> None:
    """Work until the supervisor's end of the link (a descriptor, the first argument) is gone."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    run(arguments, TO_INSPECTOR, lambda *given: Inspector(*given).work())


class Inspector(Worker):
    """The wiring of one inspector."""

    def __init__(self, link: Link[ToWorker], configure: Configure, fds: list[int]) -> None:
        super().__init__(link, configure, fds)
        self._tls: TlsSides | None = None
        self._http2 = False
        self._flows: dict[asyncio.Task[None], tuple[InspectedConnection, str]] = {}
        self._start(self._stay_small())

    def _hear(self, message: ToInspector, fds: list[int]) -> None:
        match message:
            case Prepare():
                self._prepare(message, *map(ipc.read_file, fds))
            case TakeFrom():
                sock = socket.socket(fileno=fds[0])
                self._start(self._take_from(Link(sock, [TakeOver, BubbleGone], reserve=OF_A_FLOW)))
            case _:
                super()._hear(message, fds)

    def _prepare(self, message: Prepare, chain: bytes, key: bytes, trusted: bytes) -> None:
        """Verify by these roots from now on: what was verified by one that is not among them is cut."""
        before = self._tls
        self._tls = TlsSides(Leaves(Intermediate.read(chain, key), utc_now), trusted)
        self._http2 = message.http2
        if before is not None and not before.roots <= self._tls.roots:
            self._cut_where(lambda _: True, "a root of trust was taken away")

    async def _stay_small(self) -> None:
        """Cut every flow and end when it has grown too large, before memory runs out and anything may fail.

        Whatever goes wrong in here ends it as well. An inspector that cannot do even that falls silent.
        """
        try:
            while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < RESIDENT_BYTES:
                await asyncio.sleep(MEMORY_LOOK_S)
        finally:
            self._cut_where(lambda _: True, "the inspector needed too much memory")
            self._link.close()

    # -- flows -------------------------------------------------------------------------------------

    async def _take_from(self, worker: Link[TakeOver | BubbleGone]) -> None:
        """Take a worker's flows until that cannot go on, and end: for the next flow another one is started.

        Its worker is gone, or the way from it broke, or a fault of ours.
        """
        try:
            while True:
                message, fds = await worker.receive()
                if isinstance(message, BubbleGone):  # behind the last of its flows
                    self._forget(message.bubble)
                elif worker.is_short:
                    PlainChannel(socket.socket(fileno=fds[0]), self._backlog).abort()
                    ipc.close_all(fds[1:])
                else:
                    self._take(message, fds)
        except ipc.LinkBroken as error:
            self._cut_where(lambda _: True, f"the inspector hears nothing of its worker any more: {error}")
        except BaseException:
            self._cut_where(lambda _: True, "fault in the inspector")
            raise
        finally:
            worker.close()
            self._link.close()

    def _take(self, message: TakeOver, fds: list[int]) -> None:
        client = PlainChannel(socket.socket(fileno=fds[0]), self._backlog)
        try:
            client.unread(ipc.read_file(fds[1]))
            of_bubble = sum(bubble == message.bubble for _, bubble in self._flows.values())
            if len(self._flows) >= self._most or of_bubble >= max(1, self._most * 3 // 4):
                raise ValueError("it has too many flows already")
            connection = self._connection(client, message)
        except BaseException as error:
            client.abort()
            if isinstance(error, ValueError):
                return
            raise
        task = asyncio.create_task(connection.serve())
        self._flows[task] = connection, message.bubble
        task.add_done_callback(self._flows.pop)

    def _cut_where(self, lost: Callable[[str], bool], because: str) -> None:
        for connection, bubble in tuple(self._flows.values()):
            if lost(bubble):
                connection.cut(because)

    def _connection(self, client: PlainChannel, message: TakeOver) -> InspectedConnection:
        if self._tls is None:
            raise ValueError("an inspector is prepared before its first flow")
        address = ip_address(message.address) if message.address else None
        flow = self._new_flow(message.name or None, address, message.port)
        flow = replace(
            flow,
            user=message.user,
            groups=frozenset(message.groups),
            protocol=Protocol(message.protocol),
        )
        host = message.name or address
        if host is None:
            raise ValueError("a flow has a destination")
        visitor = Visitor(message.bubble, message.enforcement)
        judging = Judging(
            self._gate, self._table, self._passage.recorder, utc_now,
            flow=flow, visitor=visitor, number=message.number, accounts=self._accounts,
            addresses=tuple(map(ip_address, message.addresses)), through=message.tunnel or None,
        )  # fmt: skip
        destination = Destination(host, message.port, flow.protocol is Protocol.HTTPS)
        return InspectedConnection(client, destination, judging, self._tls, http2=self._http2)

    def _forget(self, bubble: str) -> None:
        self._cut_where(lambda of: of == bubble, "the bubble ended")
