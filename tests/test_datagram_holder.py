"""The datagram holder, in its own sealed process: it believes the kernel, and sends to its clients alone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest
from own_namespaces import Zone, zone

from proxy import associating, children, datagram_holder, ipc
from proxy.config import Listener, ListenerKind
from proxy.datagram_holder import Desk
from proxy.link import Link
from proxy.messages.associations import Alive, Associate, Associated, HoldAssociations
from proxy.messages.worker import Sealed

LIMIT_S = 60.0
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"


def run(main: Any) -> None:
    """A coroutine, to its end; one that hangs fails."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await main

    asyncio.run(limited())


@dataclass
class Client:
    """A client of the listener: its connection, at both ends."""

    connection: socket.socket
    accepted: socket.socket

    def close(self) -> None:
        self.connection.close()
        self.accepted.close()


@dataclass
class Held:
    """A listener and its holder, as a worker has them."""

    listener: socket.socket
    link: Link[Associated]
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    open: list[socket.socket] = field(default_factory=list)

    def client(self) -> Client:
        connection = socket.create_connection(self.listener.getsockname()[:2])
        accepted, _ = self.listener.accept()
        self.open += [connection, accepted]
        return Client(connection, accepted)

    async def ask(self, shown: int, port: int = 0) -> tuple[Associated, socket.socket | None]:
        self.link.send(Associate(next(self.numbers), port), [shown])
        answer, fds = await self.link.receive()
        if not fds:
            return answer, None
        found = socket.socket(fileno=fds[0])
        found.setblocking(False)
        self.open.append(found)
        return answer, found

    async def associate(self, client: Client, port: int = 0) -> tuple[tuple[str, int], socket.socket]:
        answer, found = await self.ask(client.accepted.fileno(), port)
        assert found is not None, answer
        return (answer.address, answer.port), found

    def sender(self, address: str = HERE) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, 0))
        sock.setblocking(False)
        self.open.append(sock)
        return sock


@asynccontextmanager
async def held(address: str = HERE, bound: str = "") -> AsyncIterator[Held]:
    """With the desk in this process."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((bound or address, 0), family=family) as listener:
        ours, theirs = ipc.pair()
        hold = HoldAssociations(bound or address, listener.getsockname()[1])
        link: Link[Associated] = Link(ours, [Associated])
        task = asyncio.create_task(Desk(hold, Link(theirs, [Associate])).serve())
        made = Held(listener, link)
        try:
            yield made
        finally:
            link.close()
            with contextlib.suppress(ipc.LinkBroken):
                await task
            for sock in made.open:
                sock.close()


async def heard(sock: socket.socket) -> bytes:
    """What comes next."""
    return await asyncio.get_running_loop().sock_recv(sock, 70_000)


@pytest.mark.parametrize("address", [HERE, "::1"])
@pytest.mark.parametrize("declares", [False, True])
def test_datagrams_pass_both_ways(address: str, declares: bool) -> None:
    async def main() -> None:
        async with held(address) as at:
            client, sender = at.client(), at.sender(address)
            to, link = await at.associate(client, sender.getsockname()[1] if declares else 0)
            assert to[0] == address
            for size in (1, 1372, 65_000):
                sender.sendto(b"x" * size, to)
                assert await heard(link) == b"x" * size
                link.send(b"y" * size)
                assert await heard(sender) == b"y" * size

    run(main())


def test_a_listener_at_every_address_is_answered_where_the_client_came_to() -> None:
    async def main() -> None:
        async with held(bound="0.0.0.0") as at:
            to, link = await at.associate(at.client())
            assert to[0] == HERE
            at.sender().sendto(b"x", to)
            assert await heard(link) == b"x"

    run(main())


@pytest.mark.parametrize("declares", [False, True])
def test_only_the_clients_address_and_its_port_are_heard(declares: bool) -> None:
    """Another address never; another port not once one was declared or has sent."""

    async def main() -> None:
        async with held() as at:
            client, sender, other, stranger = at.client(), at.sender(), at.sender(), at.sender(ELSEWHERE)
            to, link = await at.associate(client, sender.getsockname()[1] if declares else 0)
            stranger.sendto(b"of a stranger", to)
            if not declares:
                sender.sendto(b"first", to)
                assert await heard(link) == b"first"
            for strange in (other, stranger):
                strange.sendto(b"strange", to)
            sender.sendto(b"", to)
            sender.sendto(b"again", to)
            assert await heard(link) == b"again"
            link.send(b"answer")
            assert await heard(sender) == b"answer"
            for strange in (other, stranger):
                with pytest.raises(BlockingIOError):
                    strange.recv(100)

    run(main())


def test_nothing_is_sent_to_who_has_sent_nothing() -> None:
    """Not even to the port that was declared: a worker could declare any."""

    async def main() -> None:
        async with held() as at:
            client, sender = at.client(), at.sender()
            to, link = await at.associate(client, sender.getsockname()[1])
            link.send(b"too soon")
            sender.sendto(b"x", to)
            assert await heard(link) == b"x"
            link.send(b"now")
            assert await heard(sender) == b"now"
            with pytest.raises(BlockingIOError):
                sender.recv(100)

    run(main())


def _elsewhere(at: Held) -> socket.socket:
    other = socket.create_server((HERE, 0))
    at.open += [other, socket.create_connection(other.getsockname())]
    at.open.append(other.accept()[0])
    return at.open[-1]


SHOWN: dict[str, Callable[[Held], socket.socket]] = {
    "the client's own end": lambda at: at.client().connection,
    "what another listener accepted": _elsewhere,
    "a connection out of here": lambda at: socket.create_connection(at.listener.getsockname()),
    "the listener": lambda at: at.listener.dup(),
    "a socket of datagrams": lambda at: at.sender(),
    "a Unix socket": lambda at: socket.socket(socket.AF_UNIX),
    "one that is connected to nobody": lambda at: socket.socket(),
}


@pytest.mark.parametrize("what", SHOWN)
def test_what_is_no_connection_of_a_client_gets_nothing(what: str) -> None:
    async def main() -> None:
        async with held() as at:
            shown = SHOWN[what](at)
            at.open.append(shown)
            answer, found = await at.ask(shown.fileno())
            assert found is None and answer.trouble

    run(main())


def test_what_is_no_socket_gets_nothing() -> None:
    async def main() -> None:
        async with held() as at:
            with tempfile.TemporaryFile() as file:
                answer, found = await at.ask(file.fileno())
            assert found is None and answer.trouble
            _, found = await at.ask(at.client().accepted.fileno(), 65_536)
            assert found is None
            await at.associate(at.client())

    run(main())


@pytest.fixture(scope="module")
def there() -> Iterator[Zone]:
    with zone() as made:
        yield made


def test_a_connection_of_another_network_gets_nothing(there: Zone) -> None:
    """With the very addresses of the listener's: that is what a worker has of its tunnels and its zones."""

    async def main() -> None:
        async with held() as at:
            port = at.listener.getsockname()[1]
            fd = _accepted_elsewhere(there, port)
            with socket.socket(fileno=fd) as shown:
                assert shown.getsockname() == (HERE, port)
                answer, found = await at.ask(shown.fileno())
            assert found is None and "another network" in answer.trouble

    run(main())


def _accepted_elsewhere(there: Zone, port: int) -> int:
    """A connection in the zone's network that looks like one of the listener's."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as meeting:
        path = f"{directory}/meeting"
        meeting.bind(path)
        meeting.listen()
        there.do(
            f"listener = socket.create_server(('{HERE}', {port}))\n"
            f"first = socket.create_connection(('{HERE}', {port}))\n"
            "second = listener.accept()[0]\n"
            f"way = socket.socket(socket.AF_UNIX); way.connect({path!r})\n"
            "socket.send_fds(way, [b'x'], [second.fileno()]); said = 0"
        )
        with meeting.accept()[0] as way:
            return int(socket.recv_fds(way, 1, 1)[1][0])


def test_an_association_ends_with_either_end_of_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """And makes room for another one."""
    monkeypatch.setattr(datagram_holder, "MOST_OF_CLIENT", 2)

    async def main() -> None:
        async with held() as at:
            client, sender = at.client(), at.sender()
            (to, first), (_, second) = [await at.associate(client) for _ in range(2)]
            answer, found = await at.ask(client.accepted.fileno())
            assert found is None and answer.trouble == "there are too many associations"
            first.close()
            while found is None:  # it is noticed in its turn
                _, found = await at.ask(client.accepted.fileno())
            sender.connect(to)
            sender.send(b"x")
            with pytest.raises(ConnectionRefusedError):  # nobody has that port any more
                await heard(sender)
            second.shutdown(socket.SHUT_WR)
            assert await heard(second) == b""

    run(main())


def test_there_is_a_bound_for_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram_holder, "MOST", 1)

    async def main() -> None:
        async with held() as at:
            await at.associate(at.client())
            assert (await at.ask(at.client().accepted.fileno()))[1] is None

    run(main())


# -- the process -------------------------------------------------------------------------------------


@asynccontextmanager
async def process(
    listener: socket.socket, *, structural: bool = True
) -> AsyncIterator[tuple[Process, Any, Held]]:
    ours, theirs = ipc.pair()
    started = await children.start_datagram_holder(theirs, structural=structural)
    supervisor: Link[Sealed | Alive] = Link(ours, [Sealed, Alive])
    one, other = ipc.pair()
    made = Held(listener, Link(one, [Associated]))
    try:
        assert await supervisor.receive() == (Sealed(structural), [])
        with other:
            supervisor.send(HoldAssociations(*listener.getsockname()), [other.fileno()])
        yield started, supervisor, made
    finally:
        supervisor.close()
        made.link.close()
        await children.end(started)
        for sock in made.open:
            sock.close()


@pytest.mark.parametrize("structural", [True, False], ids=["sealed", "as it is"])
def test_the_process_says_whether_it_is_sealed_and_carries(structural: bool) -> None:
    async def main() -> None:
        with socket.create_server((HERE, 0)) as listener:
            async with process(listener, structural=structural) as (_, _, at):
                sender = at.sender()
                to, link = await at.associate(at.client())
                sender.sendto(b"x", to)
                assert await heard(link) == b"x"
                link.send(b"y")
                assert await heard(sender) == b"y"

    run(main())


@pytest.mark.parametrize("whose", ["supervisor", "worker"])
def test_the_process_ends_with_either_of_its_links(whose: str) -> None:
    async def main() -> None:
        with socket.create_server((HERE, 0)) as listener:
            async with process(listener) as (started, supervisor, at):
                _, link = await at.associate(at.client())
                (supervisor if whose == "supervisor" else at.link).close()
                assert await started.wait() == 0
                assert await heard(link) == b"", "and its associations with it"

    run(main())


def test_a_process_that_hangs_is_ended_and_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(associating, "SILENT_S", 0.5)
    started: list[Process] = []
    given = asyncio.Queue[int]()
    start = children.start_datagram_holder

    async def watched(link: socket.socket, *, structural: bool) -> Process:
        started.append(await start(link, structural=structural))
        return started[-1]

    monkeypatch.setattr(children, "start_datagram_holder", watched)
    told: list[str] = []
    monkeypatch.setattr("proxy.notify.say", told.append)

    async def main() -> None:
        none = (None, None, None, None)
        listener = Listener("socks", ListenerKind.SOCKS5, ip_address(HERE), 1080, "corporate", *none)
        task = asyncio.create_task(
            associating.hold(listener, lambda _, fd: given.put_nowait(os.dup(fd)), structural=False)
        )
        try:
            os.close(await given.get())
            os.kill(started[0].pid, signal.SIGSTOP)
            async with asyncio.timeout(LIMIT_S):
                os.close(await given.get())
                assert await started[0].wait() != 0
            assert "it has hung" in told[0] and len(started) == 2
        finally:
            task.cancel()
            await asyncio.wait([task])

    run(main())
