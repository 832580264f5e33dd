"""The captured ingress of one bubble: accepts what its zone hands over, and makes a Flow of it.

A connection's own address is its original destination. A synthetic one is the name that the program asked
for; anything else is a literal address. Holds the bubble's listening sockets, and bounds what it may have
open, so that one bubble can starve neither the worker nor another.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

from proxy import namespaces
from proxy.addresses import inner
from proxy.allocator import is_synthetic
from proxy.captured_datagrams import OWN, CapturedDatagrams
from proxy.channel.plain import Backlog, PlainChannel
from proxy.datagram_passage import DatagramPassage
from proxy.flow import Flow, IPAddress, Refusal
from proxy.gate import gate_refusal
from proxy.names import BubbleNames, DatagramNames, stream_names
from proxy.passage import Passage
from proxy.visitor import Visitor

ACCEPTED_PER_TURN = 64
MAX_NAME_STREAMS = 64
PAUSE_S = 0.1
_RESET = struct.pack("ii", 1, 0)

type NewFlow = Callable[[str | None, IPAddress | None, int], Flow]
type Serve = Callable[[socket.socket], Coroutine[None, None, None]]


class Captured:
    """One bubble in a worker, until `close`. `room` says whether the worker can take one more flow."""

    def __init__(
        self,
        visitor: Visitor,
        listeners: Sequence[socket.socket],
        names: BubbleNames,
        passage: Passage,
        new_flow: NewFlow,
        backlog: Backlog,
        most: int,
        room: Callable[[], bool],
        datagrams: DatagramPassage | None = None,
    ) -> None:
        self.visitor = visitor
        self._names, self._passage, self._new_flow = names, passage, new_flow
        self._backlog, self._most, self._room = backlog, most, room
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._name_streams = 0
        self._closed = False
        ears = (*namespaces.LISTENERS, *namespaces.DATAGRAM_EARS)
        by_name: Mapping[str, socket.socket] = dict(zip(ears, listeners, strict=False))
        self._listeners = [by_name[name] for name in namespaces.LISTENERS if not name.startswith("dns")]
        self._name_listeners = [by_name["dns-tcp4"], by_name["dns-tcp6"]]
        self._datagrams = [DatagramNames(by_name[name], names) for name in ("dns4", "dns6")]
        for listener in (*self._listeners, *self._name_listeners):
            listener.setblocking(False)
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener, self._serve)
        for listener in self._name_listeners:
            self._loop.add_reader(listener, self._accept, listener, self._serve_names)

        self._exchanges: CapturedDatagrams | None = None
        if datagrams is not None and "udp4" in by_name:
            self._exchanges = CapturedDatagrams(visitor, by_name, names, datagrams, new_flow, self._has_room)

    def __len__(self) -> int:
        return len(self._tasks) + (len(self._exchanges) if self._exchanges is not None else 0)

    def _has_room(self) -> bool:
        return len(self) < self._most and self._room()

    def close(self) -> None:
        """Hear no more and cut what is open. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for listener in (*self._listeners, *self._name_listeners):
            self._loop.remove_reader(listener)
            listener.close()
        for datagrams in self._datagrams:
            datagrams.close()
        if self._exchanges is not None:
            self._exchanges.close()
        for task in self._tasks:
            task.cancel()

    def _accept(self, listener: socket.socket, serve: Serve) -> None:
        for _ in range(ACCEPTED_PER_TURN):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # that client has gone already
            except OSError:  # no descriptor or memory left: let others end first
                self._loop.remove_reader(listener)
                self._loop.call_later(PAUSE_S, self._resume, listener, serve)
                return
            if not self._has_room():
                _reset(sock)
                continue
            task = self._loop.create_task(serve(sock))
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._ended, sock))

    def _ended(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        """One that was cut before its first step has closed nothing yet."""
        self._tasks.discard(task)
        if sock.fileno() >= 0:
            _reset(sock)

    def _resume(self, listener: socket.socket, serve: Serve) -> None:
        if not self._closed:
            self._loop.add_reader(listener, self._accept, listener, serve)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            address, port = _original_destination(sock)
        except (OSError, ValueError):
            _reset(sock)
            return
        client = PlainChannel(sock, self._backlog)
        name: str | Refusal | None = None
        if is_synthetic(address):
            name = await self._names.name_of(address)
        elif (meant := inner(address)) in OWN or meant.is_loopback:
            name = gate_refusal("own-address", "it is the gate's own address in this zone")
        judged = None if is_synthetic(address) else address
        if isinstance(name, Refusal):
            await self._passage.refuse(client, self._new_flow(None, judged, port), name, self.visitor)
        else:
            await self._passage.pass_through(client, self._new_flow(name, judged, port), self.visitor)

    async def _serve_names(self, sock: socket.socket) -> None:
        if self._name_streams >= MAX_NAME_STREAMS:
            _reset(sock)
            return
        self._name_streams += 1
        try:
            await stream_names(sock, self._names)
        finally:
            self._name_streams -= 1


def _original_destination(sock: socket.socket) -> tuple[IPAddress, int]:
    """Where the program wanted to go: with TPROXY, the address of the accepted socket itself."""
    host, port = sock.getsockname()[:2]
    kind = IPv6Address if sock.family == socket.AF_INET6 else IPv4Address
    return kind(socket.inet_pton(sock.family, host.partition("%")[0])), port


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
