"""The tunnels of one worker: what is leased of each, and the end of its flows when a lease ends.

Every byte asks the clock as well (see `egress`); here the flows are cut, so that no idle one stays open.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence

from proxy import ipc
from proxy.channel.contexts import client_context
from proxy.channel.plain import Backlog
from proxy.egress import Egress
from proxy.flow_table import FlowTable
from proxy.messages.holding import TunnelSetup
from proxy.messages.worker import Lease
from proxy.mtls_egress import MtlsEgress
from proxy.packet_egress import PacketEgress
from proxy.private import private_files


class Leases:
    """The tunnels by name, as `egresses`. `start` runs what goes on; `table` has the flows to be cut."""

    def __init__(
        self,
        setups: Sequence[TunnelSetup],
        given: Sequence[int],
        backlog: Backlog,
        table: FlowTable,
        start: Callable[[Coroutine[None, None, None]], None],
        end: Callable[[], None],
    ) -> None:
        """`given` are the descriptors of each tunnel in turn: CA, certificate and key of mtls; its holder.

        `end` ends this process, for another one to take its place.
        """
        self._table, self._start, self._end = table, start, end
        self.egresses: dict[str, Egress] = {}
        fds = iter(given)
        for setup in setups:
            self.egresses[setup.name] = _egress(setup, fds, backlog)
            self.connect_holder(setup.name, next(fds))

    def connect_holder(self, tunnel: str, fd: int) -> None:
        """Use a new link to the holder of a tunnel."""
        egress = self.egresses[tunnel]
        egress.connect_holder(socket.socket(fileno=fd))
        self._start(self._hear(egress))

    async def _hear(self, egress: Egress) -> None:
        """A holder that cannot be understood leaves no way back."""
        try:
            await egress.hear_holder()
        except ipc.LinkBroken:
            self._end()

    def show(self, tunnel: str, ca: int, certificate: int, key: int) -> None:
        """Use a new certificate for the connections that come."""
        egress = self.egresses[tunnel]
        if isinstance(egress, MtlsEgress):
            egress.show(_context(ca, certificate, key))

    def take(self, lease: Lease) -> None:
        """What is proved of a tunnel now. Flows of an earlier run of leases are cut."""
        egress = self.egresses[lease.tunnel]
        if not egress.leased or not lease.deadline_ns:
            self._cut(egress.name, lease.words)
        egress.renew(lease)
        if lease.deadline_ns:
            self._watch(egress)

    def _watch(self, egress: Egress) -> None:
        """Cut at the deadline; every byte asks the clock as well, so a late timer lets nothing through."""
        deadline_ns = egress.deadline_ns
        left_s = max(0.0, (deadline_ns - boot_ns()) / 1e9)

        def expired() -> None:
            if egress.deadline_ns == deadline_ns and not egress.leased:
                self._cut(egress.name, egress.words)

        asyncio.get_running_loop().call_later(left_s + 0.001, expired)

    def _cut(self, tunnel: str, words: str) -> None:
        self._table.cut(lambda flow: flow.tunnel == tunnel, f"tunnel {tunnel} lost: {words}")


def boot_ns() -> int:
    """CLOCK_BOOTTIME: it goes on while the machine sleeps, and nobody can set it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _egress(setup: TunnelSetup, given: Iterator[int], backlog: Backlog) -> Egress:
    if setup.packets is not None:
        return PacketEgress(setup.name, setup.packets, backlog, boot_ns)
    return MtlsEgress(setup, _context(next(given), next(given), next(given)), backlog, boot_ns)


def _context(ca: int, certificate: int, key: int) -> ssl.SSLContext:
    with private_files(certificate=ipc.read_file(certificate), key=ipc.read_file(key)) as files:
        return client_context(ca_pem=ipc.read_file(ca).decode(), **files)
