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
from proxy.exchange import Exchange
from proxy.exchanges import Exchanges
from proxy.flow import Flow, IPAddress, Refusal
from proxy.gate import gate_refusal
from proxy.ip_packets import MAX_PAYLOAD, End, datagram, refusal
from proxy.names import BubbleNames
from proxy.visitor import Visitor

MOST = 4096  # exchanges of one bubble
PER_TURN = 64
OWN = frozenset({ip_address(namespaces.OWN_V4), ip_address(namespaces.OWN_V6)})
_ANCILLARY_BYTES = socket.CMSG_SPACE(28)
_IN, _IN6 = struct.Struct("=2s2s4s8x"), struct.Struct("=2s2s4s16s4s")

type Ends = tuple[End, End]  # the program's, and the one that it sends to
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
        self._new_flow = new_flow
        self._loop = asyncio.get_running_loop()
        self._exchanges = Exchanges(MOST, room, self._new_exchange, self._serve)
        self._replies = {4: ears["reply4"], 6: ears["reply6"]}
        self._ears = [ears["udp4"], ears["udp6"]]
        self._closed = False
        for ear in self._ears:
            self._loop.add_reader(ear, self._readable, ear)

    def __len__(self) -> int:
        return len(self._exchanges)

    def close(self) -> None:
        """Hear no more and cut what is open. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._exchanges.close()
        for ear in self._ears:
            self._loop.remove_reader(ear)
        for sock in (*self._ears, *self._replies.values()):
            sock.close()

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
                self._exchanges.take((client, target), data)

    def _new_exchange(self, ends: Ends) -> Exchange:
        return Exchange(functools.partial(self._reply, ends), functools.partial(self._refuse, ends))

    async def _serve(self, ends: Ends, exchange: Exchange, first: bytes) -> None:
        target = ends[1]
        address = target.address
        name: str | Refusal | None = None
        if is_synthetic(address):
            name = await self._names.name_of(address)
        elif (meant := inner(address)) in OWN or meant.is_loopback:
            name = gate_refusal("own-address", "it is the gate's own address in this zone")
        judged = None if is_synthetic(address) else address
        if isinstance(name, Refusal):
            flow = self._new_flow(None, judged, target.port)
            self._passage.refuse(exchange, flow, name, self._visitor)
        else:
            flow = self._new_flow(name, judged, target.port)
            await self._passage.carry(exchange, first, flow, self._visitor)

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
