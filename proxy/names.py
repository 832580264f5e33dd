"""The names carrier: answers the DNS of one bubble from sockets that it is given. Runs in the sealed worker.

Decides nothing: what a question means is in `questions`, which address a name has is the allocator's, and
it is asked through two callables. Touches sockets that exist already; it never makes, binds or connects
one, and never waits in a send. Never knows the policy, and no name is asked of any network.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from proxy.allocator import NameFault, Synthetic, is_synthetic, offset_of
from proxy.flow import Because, IPAddress, Origin, Refusal
from proxy.questions import MAX_QUERY_BYTES, AddressWanted, NameWanted, Wanted, understand

# linux/in.h, linux/in6.h; the socket module of some Python versions lacks them.
IP_PKTINFO = 8
IPV6_RECVPKTINFO, IPV6_PKTINFO = 49, 50
IPV6_TRANSPARENT, IPV6_FREEBIND = 75, 78
_IN_PKTINFO = struct.Struct("=i4s4s")  # interface, source of a reply, destination of a question
_IN6_PKTINFO = struct.Struct("=16si")
_LENGTH = struct.Struct("!H")
_CUT_SHORT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_ANCILLARY_BYTES = socket.CMSG_SPACE(max(_IN_PKTINFO.size, _IN6_PKTINFO.size))

_CACHED_NAMES = 8192
_PACKETS_PER_TURN = 32  # then the loop's other sockets have their turn

type _Ancillary = tuple[int, int, bytes]
type _Peer = tuple[Any, ...]

type AskAddress = Callable[[str, str], Awaitable[Synthetic | Refusal]]
type AskName = Callable[[str, IPAddress], Awaitable[str | None]]


class BubbleNames:
    """Both directions of the names of one bubble, remembered from what the allocator answered.

    `ask_address(bubble, name)` and `ask_name(bubble, address)` reach the allocator. When they raise or take
    longer than `patience_s` the answer is a refusal, sooner than a stub resolver gives up (5 s). At most
    `in_flight` questions wait at a time. What is remembered stays true while the bubble lives; drop the
    object with the bubble.
    """

    def __init__(
        self,
        bubble: str,
        ask_address: AskAddress,
        ask_name: AskName,
        *,
        patience_s: float = 3.0,
        in_flight: int = 256,
    ) -> None:
        self._bubble, self._ask_address, self._ask_name = bubble, ask_address, ask_name
        self._patience_s, self.in_flight, self._asking = patience_s, in_flight, 0
        self._addresses: dict[str, Synthetic] = {}
        self._names: dict[IPAddress, str] = {}

    async def address_of(self, name: str) -> Synthetic | Refusal:
        """The synthetic addresses of a canonical name."""
        if (known := self._addresses.get(name)) is not None:
            return known
        found = await self._patiently(lambda: self._ask_address(self._bubble, name))
        if isinstance(found, Synthetic):
            self._remember(name, found)
        return found

    async def name_of(self, address: IPAddress) -> str | Refusal:
        """The name that a program meant by a synthetic address; a refusal means: reset it."""
        if (known := self._names.get(address)) is not None:
            return known
        if not is_synthetic(address):
            return _unknown(address)
        found = await self._patiently(lambda: self._ask_name(self._bubble, address))
        if found is None:
            return _unknown(address)
        if isinstance(found, str) and (offset := offset_of(address)) is not None:
            self._remember(found, Synthetic.at(offset))
        return found

    def answer_known(self, wanted: Wanted) -> bytes | None:
        """The reply, if nobody need be asked."""
        match wanted:
            case AddressWanted():
                address = self._addresses.get(wanted.name)
                return None if address is None else wanted.answer(address)
            case NameWanted():
                name = self._names.get(wanted.address)
                return None if name is None else wanted.answer(name)

    async def answer(self, wanted: Wanted) -> bytes:
        """The reply, asked of the allocator where needed."""
        match wanted:
            case AddressWanted():
                return wanted.answer(await self.address_of(wanted.name))
            case NameWanted():
                return wanted.answer(await self.name_of(wanted.address))

    async def _patiently[T](self, ask: Callable[[], Awaitable[T]]) -> T | Refusal:
        if self._asking >= self.in_flight:
            return _unreachable("too many questions at once")
        self._asking += 1
        try:
            async with asyncio.timeout(self._patience_s):
                return await ask()
        except Exception as error:  # whatever the way to the allocator raises: there is no answer
            return _unreachable("no answer" if isinstance(error, TimeoutError) else f"{error!r:.80}")
        finally:
            self._asking -= 1

    def _remember(self, name: str, found: Synthetic) -> None:
        if len(self._addresses) >= _CACHED_NAMES:
            oldest = self._addresses.pop(next(iter(self._addresses)))
            self._names.pop(oldest.v4)
            self._names.pop(oldest.v6)
        self._addresses[name] = found
        self._names[found.v4] = self._names[found.v6] = name


def _unknown(address: IPAddress) -> Refusal:
    because = Because(Origin.GATE, NameFault.UNKNOWN, f"nothing in this bubble asked for a name at {address}")
    return Refusal(because, "ask for the name again, for instance by starting the program again")


def _unreachable(why: str) -> Refusal:
    because = Because(Origin.GATE, NameFault.UNREACHABLE, f"the gate's names cannot be asked: {why}")
    return Refusal(because, "see `zonegate status`")


class DatagramNames:
    """Answers one UDP socket, bound in the zone to the wildcard address with IP_PKTINFO, or with
    IPV6_RECVPKTINFO and IPV6_TRANSPARENT, until `close`. A reply leaves from the address that was asked.

    Raises ValueError for a socket on which that cannot be done. `dropped` counts questions without reply
    (too many in flight, or the reply did not fit into the socket); the program asks again.
    """

    def __init__(self, sock: socket.socket, names: BubbleNames) -> None:
        if sock.type != socket.SOCK_DGRAM or not _can_reply_from_any(sock):
            raise ValueError("the socket for DNS cannot reply from the address that was asked")
        self._sock, self._names = sock, names
        self._tasks: set[asyncio.Task[None]] = set()
        self.dropped = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    def close(self) -> None:
        """Stop answering and close the socket."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            for task in self._tasks:
                task.cancel()
            self._sock.close()

    def _readable(self) -> None:
        for _ in range(_PACKETS_PER_TURN):
            try:
                # MSG_DONTWAIT: whoever shares the socket could have made it blocking.
                packet, ancillary, flags, peer = self._sock.recvmsg(
                    MAX_QUERY_BYTES, _ANCILLARY_BYTES, socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of an earlier reply
                continue
            source = _reply_from(ancillary)
            if source is not None and not flags & _CUT_SHORT:
                self._take(packet, source, peer)

    def _take(self, packet: bytes, source: _Ancillary, peer: _Peer) -> None:
        reply = understand(packet)
        if isinstance(reply, AddressWanted | NameWanted):
            wanted, reply = reply, self._names.answer_known(reply)
            if reply is None:
                self._look_up(wanted, source, peer)
        if reply is not None:
            self._send(reply, source, peer)

    def _look_up(self, wanted: Wanted, source: _Ancillary, peer: _Peer) -> None:
        if len(self._tasks) >= self._names.in_flight:
            self.dropped += 1
            return
        task = self._loop.create_task(self._answer(wanted, source, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, wanted: Wanted, source: _Ancillary, peer: _Peer) -> None:
        self._send(await self._names.answer(wanted), source, peer)

    def _send(self, reply: bytes, source: _Ancillary, peer: _Peer) -> None:
        try:
            self._sock.sendmsg([reply], [source], socket.MSG_DONTWAIT, peer)
        except OSError:  # the socket's buffer is full, or the asker's address cannot be answered
            self.dropped += 1


def _can_reply_from_any(sock: socket.socket) -> bool:
    """Whether the socket tells where a question went, and may send from there.

    IPv4 takes any address that is routed as local for the source; IPv6 wants to be allowed to, and without
    it replies would vanish.
    """
    if sock.family == socket.AF_INET6:
        free = (IPV6_TRANSPARENT, IPV6_FREEBIND)
        may = any(sock.getsockopt(socket.IPPROTO_IPV6, option) for option in free)
        return may and bool(sock.getsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO))
    return sock.family == socket.AF_INET and bool(sock.getsockopt(socket.IPPROTO_IP, IP_PKTINFO))


def _reply_from(ancillary: list[tuple[int, int, bytes]]) -> _Ancillary | None:
    """What makes a reply leave from the address that the question was sent to; ip(7), ipv6(7).

    No interface is named: in a zone every address is local, and lo is all there is.
    """
    for level, kind, data in ancillary:
        if (level, kind, len(data)) == (socket.IPPROTO_IP, IP_PKTINFO, _IN_PKTINFO.size):
            destination = _IN_PKTINFO.unpack(data)[2]
            return level, kind, _IN_PKTINFO.pack(0, destination, bytes(4))
        if (level, kind, len(data)) == (socket.IPPROTO_IPV6, IPV6_PKTINFO, _IN6_PKTINFO.size):
            destination = _IN6_PKTINFO.unpack(data)[0]
            return level, kind, _IN6_PKTINFO.pack(destination, 0)
    return None


async def stream_names(
    sock: socket.socket, names: BubbleNames, *, idle_s: float = 10.0, in_flight: int = 16
) -> None:
    """Answer one accepted TCP connection (RFC 7766) until either side ends it, and close it.

    Questions may be pipelined; `in_flight` of them wait at a time, and answers come as they are ready. The
    connection ends when no whole question comes, or an answer is not taken, within `idle_s`. The caller
    bounds how many connections a bubble has.
    """
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    turn, room = asyncio.Lock(), asyncio.Semaphore(in_flight)

    async def send(reply: bytes) -> None:
        async with turn, asyncio.timeout(idle_s):
            await loop.sock_sendall(sock, _LENGTH.pack(len(reply)) + reply)

    async def look_up(wanted: Wanted) -> None:
        try:
            await send(await names.answer(wanted))
        finally:
            room.release()

    try:
        async with asyncio.TaskGroup() as answers, aclosing(_questions(sock, idle_s)) as packets:
            async for packet in packets:
                reply = understand(packet)
                if isinstance(reply, AddressWanted | NameWanted):
                    await room.acquire()
                    answers.create_task(look_up(reply))
                elif reply is None:
                    break
                else:
                    await send(reply)
    except* (OSError, EOFError, TimeoutError):
        pass
    finally:
        sock.close()


async def _questions(sock: socket.socket, idle_s: float) -> AsyncGenerator[bytes]:
    """The messages of one connection; raises OSError or TimeoutError, EOFError within a message."""
    loop = asyncio.get_running_loop()
    held = bytearray()
    while True:
        async with asyncio.timeout(idle_s):
            while (size := _message_size(held)) is None or len(held) < _LENGTH.size + size:
                piece = await loop.sock_recv(sock, MAX_QUERY_BYTES)
                if not piece:
                    if held:
                        raise EOFError
                    return
                held += piece
        yield bytes(held[_LENGTH.size : _LENGTH.size + size])
        del held[: _LENGTH.size + size]


def _message_size(held: bytearray) -> int | None:
    if len(held) < _LENGTH.size:
        return None
    size: int = _LENGTH.unpack_from(held)[0]
    if size > MAX_QUERY_BYTES:
        raise EOFError
    return size
