"""A packet tunnel of a worker without a tunnel: a holder that connects to servers of the test. No tests here.

The holder keeps its promise, sockets that are connected; which loopback server stands behind which address of
the tunnel is a table. A resolver answers over UDP and TCP from a table of names.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from leased import Clock

from proxy import ipc
from proxy.channel.plain import Backlog
from proxy.link import Link
from proxy.messages.holding import PacketSetup, Probe
from proxy.messages.packets import Connect, Connected
from proxy.packet_egress import PacketEgress

RESOLVER = "10.8.0.53"
SETUP = PacketSetup(
    ("10.8.0.2/32", "fd08::2/128"), ("0.0.0.0/0", "::/0"), (RESOLVER,), 1420, 25, Probe("dns", RESOLVER, 53)
)


@dataclass
class Far:
    """What lies behind the tunnel. `names` are records as `ttl kind data`, by name; `servers` the loopback
    ports behind addresses; what is in none of them does not answer."""

    names: dict[str, list[str]] = field(default_factory=dict)
    servers: dict[tuple[str, int], int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    asked: list[Connect] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    spoil: Callable[[bytes], bytes | None] = lambda data: data
    truncates: bool = False
    _silent: list[socket.socket] = field(default_factory=list)

    def answer(self, wire: bytes, *, may_be_long: bool) -> bytes | None:
        """What the resolver says to a question, None for nothing."""
        question = dns.message.from_wire(wire)
        name, kind = question.question[0].name, question.question[0].rdtype
        self.questions.append(f"{name} {dns.rdatatype.to_text(kind)}")
        message = dns.message.make_response(question)
        if self.truncates and not may_be_long:
            message.flags |= dns.flags.TC
            return message.to_wire()
        rows = self.names.get(str(name).rstrip("."))
        if rows is None:
            message.set_rcode(dns.rcode.NXDOMAIN)
        for ttl, said, data in (row.split() for row in rows or ()):
            if said in (dns.rdatatype.to_text(kind), "CNAME"):
                message.answer.append(dns.rrset.from_text(name, int(ttl), "IN", said, *data.split(",")))
        return self.spoil(message.to_wire())

    def connected(self, wanted: Connect) -> socket.socket:
        """A socket as the real holder makes it."""
        self.asked.append(wanted)
        if words := self.refused.get(wanted.address):
            raise OSError(words)
        port = self.servers.get((wanted.address, wanted.port))
        kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[wanted.transport]
        sock = socket.socket(socket.AF_INET, kind)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(("127.0.0.1", port or self.silent()))
        return sock

    def silent(self) -> int:
        """A port of loopback that answers no connection: its one place is taken."""
        if not self._silent:
            listener, first = socket.socket(), socket.socket()
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            first.connect(listener.getsockname())
            self._silent += [listener, first]
        return int(self._silent[0].getsockname()[1])

    def close(self) -> None:
        """Forget it."""
        for sock in self._silent:
            sock.close()

    async def hold(self, link: Link[Connect]) -> None:
        """Be the holder, until the other end is gone."""
        with contextlib.suppress(ipc.LinkBroken):
            while True:
                wanted, _ = await link.receive()
                try:
                    with self.connected(wanted) as sock:
                        link.send(Connected(wanted.number, ""), [sock.fileno()])
                except OSError as error:
                    link.send(Connected(wanted.number, str(error)))


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, far: Far) -> None:
        self._far = far

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # uvloop's is not derived from it

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        if said := self._far.answer(data, may_be_long=False):
            self._transport.sendto(said, addr)


async def _resolver(far: Far) -> tuple[asyncio.DatagramTransport, asyncio.Server]:
    loop = asyncio.get_running_loop()

    async def by_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2))
        said = far.answer(await reader.readexactly(size), may_be_long=True) or b""
        writer.write(len(said).to_bytes(2) + said)
        writer.close()

    while True:
        transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(far), ("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        try:
            server = await asyncio.start_server(by_tcp, "127.0.0.1", port)
            break
        except OSError:  # of TCP somebody else has that port
            transport.close()
    far.servers[RESOLVER, 53] = port
    return transport, server


@asynccontextmanager
async def packet_tunnel(
    far: Far, setup: PacketSetup = SETUP, name: str = "wg"
) -> AsyncIterator[tuple[PacketEgress, Clock]]:
    """A tunnel whose lease has just begun, with `far` behind it."""
    clock = Clock()
    egress = PacketEgress(name, setup, Backlog(), clock)
    ours, theirs = ipc.pair()
    link: Link[Connect] = Link(theirs, [Connect])
    egress.connect_holder(ours)
    transport, server = await _resolver(far)
    tasks = [asyncio.create_task(far.hold(link)), asyncio.create_task(egress.hear_holder())]
    egress.renew(clock.lease(tunnel=name))
    try:
        yield egress, clock
    finally:
        link.close()
        egress.close()
        far.close()
        transport.close()
        server.close()
        await asyncio.gather(*tasks)


class Echo(asyncio.DatagramProtocol):
    """A server that says back what it hears, in capitals; `heard` is what came."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.heard.append(data)
        self.transport.sendto(data.upper(), addr)
