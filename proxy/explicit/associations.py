"""The associations of one SOCKS5 listener (RFC 1928, section 7): datagrams, each exchange judged as a flow.

The socket that a client sends to is the datagram holder's; here is a link to it for each association, on
which every message is a datagram with its header. What a client sends to one destination is one exchange, and
takes the way of every UDP exchange (see datagram_passage). Answers come back under the destination that was
asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from proxy import ipc
from proxy.channel.plain import Channel, PlainChannel
from proxy.datagram_passage import DatagramPassage
from proxy.exchange import Exchange
from proxy.exchanges import Exchanges
from proxy.explicit.headers import Target, read, written
from proxy.flow import Flow, IPAddress, Refusal
from proxy.link import Link
from proxy.messages.associations import Associate, Associated
from proxy.visitor import Visitor

MOST = 4096  # exchanges of one client, over all of its associations
HOLDER_LIMIT_S = 5.0
PER_TURN = 64  # then the loop's other sockets have their turn
DATAGRAM_BYTES = 65_536
GONE = "what holds the sockets of clients is not there at the moment"


class NoAssociation(Exception):
    """There is none to be had; one line in the user's words."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Whose datagrams they are: the client's address, how its flows are recorded, and made."""

    address: IPAddress
    visitor: Visitor
    new_flow: Callable[[str | IPAddress, int], Flow]


type Given = tuple[socket.socket, IPAddress, int]


class Association:
    """One association until `close`, or until the holder ends it, which `ended` tells. `address` and `port`
    are where its client may send to."""

    def __init__(self, given: Given, sender: Sender) -> None:
        self._link, self.address, self.port = given
        self.sender = sender
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def hear(self, take: Callable[[Target, bytes], None]) -> None:
        """Give every datagram of the client to `take` from now on."""
        self._loop.add_reader(self._link, self._readable, take)

    def _readable(self, take: Callable[[Target, bytes], None]) -> None:
        for _ in range(PER_TURN):
            try:
                data = self._link.recv(DATAGRAM_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._link)
                self.ended.set_result(None)
                return
            if (found := read(data)) is not None:
                take(*found)

    def answer(self, target: Target, data: bytes) -> None:
        """A destination has answered."""
        with contextlib.suppress(OSError):  # it is over, or full: a datagram may be lost
            self._link.send(written(target) + data, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """End it: the holder lets go of the client's socket. Safe to call twice."""
        if self._link.fileno() >= 0:
            self._loop.remove_reader(self._link)
            self._link.close()


type Key = tuple[Association, Target]


class Associations:
    """What the clients of one listener have associated. One address takes at most `most` places, half of them
    for what it has open, since what was just refused keeps its own; `room` says whether there is one more."""

    def __init__(self, passage: DatagramPassage, most: int, room: Callable[[], bool]) -> None:
        self._passage, self._most, self._room = passage, most, room
        self._holder: Link[Associated] | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Given]] = {}
        self._open: Counter[IPAddress] = Counter()
        self._exchanges: dict[IPAddress, Exchanges[Key]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._exchanges.values()))

    def refusal(self, flow: Flow) -> Refusal | None:
        """Why an association would be of no use to whoever's flow this is; None where it may be of some."""
        return self._passage.refusal(flow)

    async def open(self, client: Channel, sender: Sender, port: int) -> Association:
        """An association of a client that says that it will send from `port`, or 0. Raises NoAssociation."""
        if not isinstance(client, PlainChannel):
            raise NoAssociation("there is none under TLS")
        return Association(await self._asked(client, port), sender)

    async def carry(self, association: Association, client: Channel) -> None:
        """Carry what an association's client sends, until its connection or the holder has ended it."""
        address = association.sender.address
        exchanges = self._of_client(address)
        self._open[address] += 1
        gone = asyncio.create_task(_gone(client))
        try:
            association.hear(lambda target, data: exchanges.take((association, target), data))
            await asyncio.wait((gone, association.ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            association.close()
            exchanges.end(lambda key: key[0] is association)
            self._open[address] -= 1

    def _of_client(self, address: IPAddress) -> Exchanges[Key]:
        """The table of a client. Those of clients that have nothing open any more are forgotten."""
        for gone in [one for one, table in self._exchanges.items() if not (self._open[one] or len(table))]:
            self._exchanges.pop(gone).close()
            del self._open[gone]
        if (found := self._exchanges.get(address)) is None:
            room: Callable[[], bool] = lambda: len(made) < self._most and self._room()  # noqa: E731
            found = made = Exchanges(max(1, min(MOST, self._most // 2)), room, _new_exchange, self._serve)
            self._exchanges[address] = found
        return found

    async def _serve(self, key: Key, exchange: Exchange, first: bytes) -> None:
        sender, target = key[0].sender, key[1]
        flow = sender.new_flow(target.host, target.port)
        await self._passage.carry(exchange, first, flow, sender.visitor)

    def close(self) -> None:
        """Cut what is open, and let go of the holder."""
        for table in self._exchanges.values():
            table.close()
        if self._holder is not None:
            self._holder.close()

    # -- the holder --------------------------------------------------------------------------------

    def connect_holder(self, sock: socket.socket) -> None:
        """Use a new link to the listener's datagram holder. Who waited for the last one is not served."""
        if self._holder is not None:
            self._holder.close()
            self._fail_all()
        self._holder = Link(sock, [Associated])

    async def hear_holder(self) -> None:
        """Hand what the holder makes to those who wait; returns when it is gone."""
        holder = self._holder
        assert holder is not None
        try:
            while True:
                self._deliver(*await holder.receive())
        except ipc.LinkBroken:
            if self._holder is holder:
                self._holder = None
                self._fail_all()

    def _deliver(self, answer: Associated, fds: list[int]) -> None:
        waiter = self._waiting.pop(answer.number, None)
        if waiter is None or waiter.done():
            ipc.close_all(fds)
        elif fds:
            waiter.set_result((socket.socket(fileno=fds[0]), ip_address(answer.address), answer.port))
        else:
            waiter.set_exception(NoAssociation(answer.trouble or "no descriptor is left for it"))

    def _fail_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(NoAssociation(GONE))

    async def _asked(self, client: PlainChannel, port: int) -> Given:
        """A link to the socket of a client, and where that is."""
        waiter: asyncio.Future[Given] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        try:
            async with asyncio.timeout(HOLDER_LIMIT_S):
                if self._holder is None:
                    raise NoAssociation(GONE)
                self._waiting[number] = waiter
                self._holder.send(Associate(number, port), [client.fileno()])
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result()[0].close()  # it came in the moment in which nobody wanted it any more
            if isinstance(error, asyncio.CancelledError):
                raise
            raise NoAssociation("what holds the sockets of clients does not answer") from error
        finally:
            self._waiting.pop(number, None)


async def _gone(client: Channel) -> None:
    """Until a client's connection has ended. What it says there meanwhile is nothing."""
    with contextlib.suppress(ConnectionError):
        while await client.read():
            pass


def _new_exchange(key: Key) -> Exchange:
    """SOCKS knows no error for a datagram: one that may not be is lost."""
    association, target = key
    return Exchange(functools.partial(association.answer, target), lambda data: None)
