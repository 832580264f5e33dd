"""The datagrams of one bubble: takes what its zone hands over, and answers as the destination would.

Each datagram comes with its original destination. Replies, and errors for what is refused, are whole packets
on a raw socket of the zone, whose only device is lo: no socket is needed for each destination. Holds the
bubble's ears, and bounds what it may have open.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import struct
from collections.abc import Callable, Mapping
from ipaddress import ip_address

from proxy import namespaces
from proxy.addresses import inner
from proxy.allocator import is_synthetic
from proxy.datagram_passage import DatagramPassage
from proxy.datagrams import REFUSED_S, DatagramTable, Ends
from proxy.exchange import Exchange
from proxy.flow import Flow, IPAddress, Refusal
from proxy.gate import gate_refusal
from proxy.ip_packets import MAX_PAYLOAD, End, datagram, refusal
from proxy.names import BubbleNames
from proxy.relay import End as Why
from proxy.relay import Ending
from proxy.visitor import Visitor

MOST = 4096  # exchanges of one bubble
PER_TURN = 64
LOOK_S = 5.0
OWN = frozenset({ip_address(namespaces.OWN_V4), ip_address(namespaces.OWN_V6)})
_ANCILLARY_BYTES = socket.CMSG_SPACE(28)
_IN, _IN6 = struct.Struct("=2s2s4s8x"), struct.Struct("=2s2s4s16s4s")

type NewFlow = Callable[[str | None, IPAddress | None, int], Flow]


class CapturedDatagrams:
    """The UDP ears of one bubble, by their names in namespaces.DATAGRAM_EARS, until `close`."""

    def __init__(
        self,
        visitor: Visitor,
        ears: Mapping[str, socket.socket],
        names: BubbleNames,
        passage: DatagramPassage,
        new_flow: NewFlow,
        room: Callable[[], bool],
    ) -> None:
        self._visitor, self._names, self._passage = visitor, names, passage
        self._new_flow, self._room = new_flow, room
        self._loop = asyncio.get_running_loop()
        self._table: DatagramTable[Exchange] = DatagramTable(MOST)
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies = {4: ears["reply4"], 6: ears["reply6"]}
        self._ears = [ears["udp4"], ears["udp6"]]
        self._closed = False
        for ear in self._ears:
            self._loop.add_reader(ear, self._readable, ear)
        self._looking = self._loop.call_later(LOOK_S, self._look)

    def __len__(self) -> int:
        return len(self._tasks)

    def close(self) -> None:
        """Hear no more and cut what is open. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._looking.cancel()
        for task in self._tasks:
            task.cancel()
        for exchange in self._table.all():
            exchange.end(Ending(Why.CUT))
        for ear in self._ears:
            self._loop.remove_reader(ear)
        for sock in (*self._ears, *self._replies.values()):
            sock.close()

    def _look(self) -> None:
        """End what was silent too long."""
        for exchange in self._table.silent(self._loop.time()):
            exchange.end(Ending(Why.FINISHED))
        self._looking = self._loop.call_later(LOOK_S, self._look)

    # -- from the program --------------------------------------------------------------------------

    def _readable(self, ear: socket.socket) -> None:
        for _ in range(PER_TURN):
            try:
                data, ancillary, flags, peer = ear.recvmsg(MAX_PAYLOAD, _ANCILLARY_BYTES, socket.MSG_DONTWAIT)
            except OSError:  # nothing more, or the error of an earlier one
                return
            client = End(ip_address(peer[0].partition("%")[0]), peer[1])
            target = _original_destination(ancillary)
            # An address that is not the zone's own one would have the answer captured again.
            if target is not None and client.address in OWN and not flags & socket.MSG_TRUNC:
                self._take((client, target), data)

    def _take(self, ends: Ends, data: bytes) -> None:
        now = self._loop.time()
        exchange = self._table.use(ends, now)
        if exchange is None:
            if not self._room():
                self._refuse(ends, data)
                return
            exchange = Exchange(functools.partial(self._reply, ends), functools.partial(self._refuse, ends))
            exchange.used = lambda: self._table.use(ends, self._loop.time())
            gives_way = self._table.add(ends, exchange, now)
            if gives_way is not None:
                gives_way.end(Ending(Why.FINISHED))
            task = self._loop.create_task(self._serve(ends, exchange, data))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        exchange.from_client(data)

    async def _serve(self, ends: Ends, exchange: Exchange, first: bytes) -> None:
        target = ends[1]
        address = target.address
        name: str | Refusal | None = None
        if is_synthetic(address):
            name = await self._names.name_of(address)
        elif (meant := inner(address)) in OWN or meant.is_loopback:
            name = gate_refusal("own-address", "it is the gate's own address in this zone")
        judged = None if is_synthetic(address) else address
        try:
            if isinstance(name, Refusal):
                flow = self._new_flow(None, judged, target.port)
                self._passage.refuse(exchange, flow, name, self._visitor)
            else:
                flow = self._new_flow(name, judged, target.port)
                await self._passage.carry(exchange, first, flow, self._visitor)
            if exchange.refused:
                await asyncio.sleep(REFUSED_S)
        finally:
            exchange.end(Ending(Why.FINISHED))
            self._table.remove(ends, exchange)

    # -- to the program ----------------------------------------------------------------------------

    def _reply(self, ends: Ends, data: bytes) -> None:
        client, target = ends
        self._send(client, datagram(target, client, data))

    def _refuse(self, ends: Ends, data: bytes) -> None:
        client, target = ends
        self._send(client, refusal(client, target, data))

    def _send(self, client: End, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # no room, or the zone has gone: a datagram may be lost
            sock = self._replies[client.address.version]
            sock.sendto(packet, socket.MSG_DONTWAIT, (str(client.address), 0))


def _original_destination(ancillary: list[tuple[int, int, bytes]]) -> End | None:
    """ip(7), IP_RECVORIGDSTADDR: a sockaddr."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, namespaces.IP_ORIGDSTADDR) and len(data) >= _IN.size:
            _, port, packed = _IN.unpack_from(data)
            return End(ip_address(packed), int.from_bytes(port))
        if (level, kind) == (socket.IPPROTO_IPV6, namespaces.IPV6_ORIGDSTADDR) and len(data) >= _IN6.size:
            _, port, _, packed, _ = _IN6.unpack_from(data)
            return End(ip_address(packed), int.from_bytes(port))
    return None
