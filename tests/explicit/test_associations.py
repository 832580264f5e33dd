"""UDP ASSOCIATE: a client's datagrams through a real holder, a real policy and the sockets of a tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from descriptors import open_descriptors
from explicit_world import PASSWORD, PEOPLE, password_lines
from loopback import LOOPS, Run, runner
from packet_end import Echo, Far, packet_tunnel
from quic_client import first_flight

from proxy import datagram_holder, exchanges, ipc
from proxy.audit import EndRecord, Record, Segment, VerdictRecord, decode
from proxy.channel import Backlog
from proxy.datagram_holder import Desk
from proxy.datagram_passage import DatagramPassage
from proxy.explicit import associations as module
from proxy.explicit.associations import Associations
from proxy.explicit.headers import Target, read, written
from proxy.explicit.listener import Explicit
from proxy.explicit.logins import Failures, Login, Logins
from proxy.explicit.web import House
from proxy.flow import NEVER, UNKNOWN, Flow, IPAddress, Verdict
from proxy.flow_table import FlowTable
from proxy.gate import Gate
from proxy.link import Link
from proxy.messages.associations import Associate, HoldAssociations
from proxy.packet_egress import PacketEgress
from proxy.passage import Passage
from proxy.policy import load

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
POLICY = b"""
policy: 1
name: datagrams
define:
  zones: [corporate]
  groups: [staff]
  destinations:
    time: [time.example, 10.8.0.9, "fd08::9"]
    quic: [quic.example, 10.8.0.9]
    small: [10.8.0.7]
    web: [web.example]
guards:
  - {id: little, match: {to: small, transfer: upload, size: ">1KiB"}, at_most: block}
rules:
  - {id: time, match: {to: time, protocol: udp, group: staff}, verdict: tunnel}
  - {id: quic, match: {to: quic, protocol: quic, group: staff}, verdict: tunnel}
  - {id: small, match: {to: small, protocol: udp, group: staff}, verdict: tunnel}
  - {id: web, match: {to: web, protocol: https}, verdict: tunnel}
"""
NO_UDP = b"""
policy: 1
name: no-datagrams
define: {zones: [corporate], groups: [staff], destinations: {web: [web.example]}}
rules:
  - {id: web, match: {to: web, protocol: https}, verdict: tunnel}
  - {id: bobs, match: {to: web, protocol: udp, user: bob}, verdict: tunnel}
  - {id: gets, match: {to: web, method: GET}, verdict: tunnel}
  - {id: no, match: {protocol: udp}, verdict: block}
"""
TIME = Target("time.example", 123)
LITERAL = Target(ip_address("10.8.0.9"), 123)


@pytest.fixture
def run() -> Run:
    """The loop that a worker has; what is different in the other one is tried once."""
    return runner("uvloop")


@pytest.fixture(scope="module")
def lines() -> str:
    return password_lines()


@dataclass
class Client:
    """A client that has associated, or was told why not: `code`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    code: int = -1
    to: tuple[str, int] = ("", 0)
    sock: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def send(self, target: Target, data: bytes) -> None:
        self.sock.sendto(written(target) + data, self.to)

    async def hear(self) -> tuple[Target, bytes]:
        found = read(await asyncio.get_running_loop().sock_recv(self.sock, 70_000))
        assert found is not None
        return found

    async def ask(self, target: Target, data: bytes) -> bytes:
        """What is answered, under the name that was asked."""
        self.send(target, data)
        source, said = await self.hear()
        assert source == target
        return said

    def silent(self) -> bool:
        """Whether nothing came."""
        with contextlib.suppress(BlockingIOError):
            self.sock.recv(1)
            return False
        return True

    async def ended(self) -> bytes:
        """What is said on its connection to the end."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""

    def close(self) -> None:
        self.writer.transport.abort()
        self.sock.close()


@dataclass
class World:
    """A SOCKS5 listener with its holder, the gate, and what is behind the tunnel."""

    gate: Gate
    table: FlowTable
    explicit: Explicit
    associations: Associations
    listener: socket.socket
    egress: PacketEgress
    clock: Any
    far: Far
    echo: Echo
    file: Path
    rooms: list[bool]
    holder: asyncio.Task[None] | None = None
    clients: list[Client] = field(default_factory=list)

    def hold(self) -> None:
        """Have a holder, as the supervisor does."""
        ours, theirs = ipc.pair()
        hold = HoldAssociations(*self.listener.getsockname()[:2])
        self._desk = Link[Associate](theirs, [Associate])
        self.holder = asyncio.create_task(Desk(hold, self._desk).serve())
        self.associations.connect_holder(ours)
        self.hearing = asyncio.create_task(self.associations.hear_holder())

    async def lose_holder(self) -> None:
        """Only its link: an association's own end is tested with the process."""
        self._desk.close()
        assert self.holder is not None
        await asyncio.gather(self.holder, self.hearing, return_exceptions=True)

    async def connect(
        self, said: bytes = b"\0\0\0\0", port: int = 0, *, kind: int = 1, login: bytes = b""
    ) -> Client:
        """A client that asks for an association."""
        client = Client(*await asyncio.open_connection(*self.listener.getsockname()[:2]))
        self.clients.append(client)
        client.sock.bind(("127.0.0.1", 0))
        client.sock.setblocking(False)
        client.writer.write(b"\5\1" + (b"\2" + login if login else b"\0"))
        assert await client.reader.readexactly(2) == (b"\5\2" if login else b"\5\0")
        if login:
            assert await client.reader.readexactly(2) == b"\1\0"
        client.writer.write(bytes((5, 3, 0, kind)) + said + port.to_bytes(2))
        answer = await client.reader.readexactly(10)
        assert answer[0] == 5 and answer[3] == 1
        client.code = answer[1]
        client.to = (str(ip_address(answer[4:8])), int.from_bytes(answer[8:]))
        return client

    def records(self) -> list[Record]:
        return [decode(line) for line in self.file.read_bytes().splitlines()]

    def verdicts(self) -> list[VerdictRecord]:
        return [one for one in self.records() if isinstance(one, VerdictRecord)]

    async def ends(self) -> list[EndRecord]:
        """The ends, once nothing is open."""
        while len(self.table):
            await asyncio.sleep(0.005)
        return [one for one in self.records() if isinstance(one, EndRecord)]


@asynccontextmanager
async def world(
    directory: Path, lines: str = "", *, policy: bytes = POLICY, packets: bool = True, most: int = 50
) -> AsyncIterator[World]:
    far, echo = Far(), Echo()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: echo, ("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    far.servers = {(host, 123): port for host in ("10.8.0.9", "10.8.0.7", "fd08::9")}
    far.servers["10.8.0.9", 443] = port
    far.names = {"time.example": ["60 A 10.8.0.9"], "quic.example": ["60 A 10.8.0.9"]}
    async with packet_tunnel(far) as (egress, clock):
        gate, table = Gate(load(policy, "datagrams.policy.yaml"), [egress]), FlowTable(100)
        file = directory / "records"
        fd = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        numbers = map("f{}".format, itertools.count(1))
        passage = Passage(gate, table, Segment(fd, max_bytes=1 << 20), lambda: NOW, lambda: next(numbers))
        datagrams = DatagramPassage(passage, gate, table, [egress] if packets else [])
        rooms: list[bool] = []
        held = Associations(datagrams, most, lambda: not rooms)
        contents = json.dumps({"people": PEOPLE, "passwords": lines}).encode()
        logins = Logins("corporate", contents, Failures(lambda: 0.0))
        house = House("socks", "passwords" if lines else "none", logins, passage, new_flow, held)
        listener = socket.create_server(("127.0.0.1", 0))
        explicit = Explicit("socks5", listener, house, None, Backlog(), 50, lambda: True)
        made = World(gate, table, explicit, held, listener, egress, clock, far, echo, file, rooms)
        made.hold()
        try:
            yield made
        finally:
            for client in made.clients:
                client.close()
            explicit.close()
            held.close()
            while len(explicit):
                await asyncio.sleep(0.005)
            await made.lose_holder()
            transport.close()
            os.close(fd)


def new_flow(login: Login, host: str | IPAddress | None, port: int) -> Flow:
    flow = Flow(zone="corporate", user=login.name, groups=login.groups, port=port, at=NOW, address=NEVER)
    if isinstance(host, IPv4Address | IPv6Address):
        return replace(flow, address=host)
    return flow if host is None else replace(flow, name=host, address=UNKNOWN)


type Scene = Callable[[World], Any]


def play(run: Run, directory: Path, scene: Scene, **options: Any) -> None:
    async def main() -> None:
        async with world(directory, **options) as at:
            await scene(at)

    run(main())


# -- carried -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("host", ["time.example", "10.8.0.9", "fd08::9"])
def test_datagrams_are_carried_and_recorded(loop: str, tmp_path: Path, host: str) -> None:
    """By name, IPv4 and IPv6; the answer comes under what was asked for, and the flow is somebody's."""

    async def scene(at: World) -> None:
        client = await at.connect()
        assert (client.code, client.to[0]) == (0, "127.0.0.1")
        named = host.endswith("example")
        target = Target(host if named else ip_address(host), 123)
        for data in (b"one", b"x" * 9000):
            assert await client.ask(target, data) == data.upper()
        (verdict,) = at.verdicts()
        assert (verdict.verdict, verdict.because.id, str(verdict.protocol)) == (Verdict.TUNNEL, "time", "udp")
        assert (verdict.user, verdict.bubble) == ("anonymous", "socks@127.0.0.1")
        assert (verdict.name, str(verdict.address)) == (
            host if named else None, "10.8.0.9" if named else host,
        )  # fmt: skip
        assert verdict.enforcement == "cooperative"
        client.writer.close()
        (end,) = await at.ends()
        assert (end.bytes_up, end.bytes_down, end.why) == (9003, 9003, "finished by both ends")

    play(runner(loop), tmp_path, scene)


def test_each_destination_is_an_exchange_of_its_own(run: Run, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        client = await at.connect()
        for target in (TIME, LITERAL, TIME, LITERAL):
            assert await client.ask(target, b"a") == b"A"
        assert len(at.verdicts()) == len(at.table) == 2

    play(run, tmp_path, scene)


def test_a_login_is_whose_flow_it_is(run: Run, tmp_path: Path, lines: str) -> None:
    """The rules grant it to the staff, as which alice is known; bob hears at once that he has nothing."""

    def login(name: bytes) -> bytes:
        return b"\1" + bytes((len(name),)) + name + bytes((len(PASSWORD),)) + PASSWORD

    async def scene(at: World) -> None:
        client = await at.connect(login=login(b"alice"))
        assert await client.ask(TIME, b"a") == b"A"
        assert at.verdicts()[-1].user == "alice"
        client = await at.connect(login=login(b"bob"))
        assert client.code == 7
        assert (at.verdicts()[-1].user, at.verdicts()[-1].because.id) == ("bob", "nothing-granted")

    play(run, tmp_path, scene, lines=lines)


def test_quic_is_carried_under_the_name_that_was_asked_for(run: Run, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        client, target = await at.connect(), Target("quic.example", 443)
        for data in first_flight("quic.example"):
            client.send(target, data)
        assert (await client.hear())[0] == target
        assert str(at.verdicts()[0].protocol) == "quic"
        other = await at.connect()
        for data in first_flight("other.example"):
            other.send(target, data)
        while len(at.verdicts()) < 2:
            await asyncio.sleep(0.005)
        assert at.verdicts()[1].because.id == "names-disagree"

    play(run, tmp_path, scene)


@pytest.mark.parametrize(
    ("said", "port", "kind"),
    [
        (b"\0\0\0\0", 0, 1),
        (b"\x7f\0\0\1", -1, 1),
        (b"\0\0\0\0", -1, 1),
        (b"\x0a\0\0\1", 9, 1),
        (bytes(16), -1, 4),
        (b"\x010", 0, 3),
    ],
    ids=[
        "nothing",
        "its own end",
        "its port",
        "another address than is seen here",
        "IPv6",
        "what PySocks says",
    ],
)
def test_what_a_client_declares_of_itself(
    run: Run, tmp_path: Path, said: bytes, port: int, kind: int
) -> None:
    async def scene(at: World) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.bind(("127.0.0.1", 0))
            own.setblocking(False)
            client = await at.connect(said, own.getsockname()[1] if port < 0 else port, kind=kind)
            client.sock.close()
            client.sock = own
            assert await client.ask(TIME, b"a") == b"A"

    play(run, tmp_path, scene)


def test_another_port_than_was_declared_is_not_heard(run: Run, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        client = await at.connect(b"\x7f\0\0\1", 9)
        client.send(TIME, b"a")
        other = await at.connect()
        assert await other.ask(TIME, b"b") == b"B"
        assert client.silent() and at.echo.heard == [b"b"]

    play(run, tmp_path, scene)


# -- refused -----------------------------------------------------------------------------------------


def refused(run: Run, tmp_path: Path, code: int, because: str, scene: Scene, **options: Any) -> None:
    async def whole(at: World) -> None:
        await scene(at)
        client = await at.connect()
        assert client.code == code and client.to == ("0.0.0.0", 0)
        assert await client.ended() == b""
        (verdict,) = at.verdicts()
        assert (verdict.verdict, verdict.because.id, str(verdict.protocol)) == (Verdict.BLOCK, because, "udp")

    play(run, tmp_path, whole, **options)


async def nothing(at: World) -> None:
    """Nothing is done before."""


def test_without_a_tunnel_that_carries_datagrams_it_is_refused(run: Run, tmp_path: Path) -> None:
    refused(run, tmp_path, 7, "no-datagrams", nothing, packets=False)


def test_where_no_rule_grants_datagrams_it_is_refused(run: Run, tmp_path: Path) -> None:
    refused(run, tmp_path, 7, "nothing-granted", nothing, policy=NO_UDP)


def test_without_a_proved_peer_it_is_refused(run: Run, tmp_path: Path) -> None:
    async def stale(at: World) -> None:
        at.clock.ns += 10_000_000_000

    refused(run, tmp_path, 3, "tunnel", stale)


def test_a_lock_refuses_it(run: Run, tmp_path: Path) -> None:
    async def lock(at: World) -> None:
        at.gate.locked = "locked by root"

    refused(run, tmp_path, 2, "locked", lock)


def test_without_a_holder_it_fails(run: Run, tmp_path: Path) -> None:
    refused(run, tmp_path, 1, "no-association", World.lose_holder)


def test_too_many_associations_of_one_client(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagram_holder, "MOST_OF_CLIENT", 1)

    async def scene(at: World) -> None:
        first = await at.connect()
        assert (first.code, (await at.connect()).code) == (0, 1)
        assert "too many" in at.verdicts()[0].because.text
        first.close()
        while (await at.connect()).code:
            await asyncio.sleep(0.005)

    play(run, tmp_path, scene)


@pytest.mark.parametrize(
    ("target", "because"),
    [
        (Target("other.example", 123), "default"),
        (Target(ip_address("10.8.0.66"), 123), "default"),
        (Target("web.example", 443), "default"),
        (Target(ip_address("127.0.0.1"), 123), "default"),
        (Target(ip_address("198.18.0.1"), 123), "default"),
        (Target("gone.example", 123), "default"),
    ],
    ids=str,
)
def test_what_may_not_be_is_recorded_once_and_goes_nowhere(
    run: Run, tmp_path: Path, target: Target, because: str
) -> None:
    async def scene(at: World) -> None:
        client = await at.connect()
        client.send(target, b"x")
        client.send(target, b"x")
        assert await client.ask(TIME, b"a") == b"A", "others go on"
        (verdict, _) = at.verdicts()
        assert (verdict.verdict, verdict.because.id) == (Verdict.BLOCK, because)
        assert client.silent() and at.echo.heard == [b"a"]
        assert [one.address for one in at.far.asked if one.port != 53] == ["10.8.0.9"]

    play(run, tmp_path, scene)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"\0\0\1" + written(TIME)[3:] + b"x",
        b"\0\1\0" + written(TIME)[3:] + b"x",
        written(TIME)[:-1],
    ],
    ids=["nothing", "no header", "a fragment", "reserved bytes", "half a header"],
)
def test_what_is_no_datagram_is_dropped(run: Run, tmp_path: Path, data: bytes) -> None:
    async def scene(at: World) -> None:
        client = await at.connect()
        client.sock.sendto(data, client.to)
        assert await client.ask(TIME, b"a") == b"A"
        assert at.echo.heard == [b"a"] and len(at.verdicts()) == 1

    play(run, tmp_path, scene)


# -- bounded, cut and ended --------------------------------------------------------------------------


def test_it_lasts_as_long_as_its_connection(run: Run, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        client = await at.connect()
        client.writer.write(b"what is said here is nothing")
        assert await client.ask(TIME, b"a") == b"A"
        before = len(open_descriptors())
        client.writer.close()
        await at.ends()
        while len(at.explicit):
            await asyncio.sleep(0.005)
        client.sock.connect(client.to)
        while True:  # until nobody has that port any more
            try:
                client.sock.send(b"x")
                client.sock.recv(1)
            except BlockingIOError:
                await asyncio.sleep(0.005)
            except ConnectionRefusedError:
                break
        assert len(open_descriptors()) < before

    play(run, tmp_path, scene)


def test_a_holder_that_ends_ends_them(run: Run, tmp_path: Path) -> None:
    """The client hears so: its connection ends."""

    async def scene(at: World) -> None:
        client = await at.connect()
        assert await client.ask(TIME, b"a") == b"A"
        (association,) = [
            key[0] for key, _ in at.associations._exchanges[ip_address("127.0.0.1")]._table.all()
        ]
        association._link.shutdown(socket.SHUT_RDWR)
        assert await client.ended() == b""
        assert [end.why for end in await at.ends()] == ["finished by both ends"]
        await at.lose_holder()
        at.hold()
        assert await (await at.connect()).ask(TIME, b"a") == b"A", "with the next holder as before"

    play(run, tmp_path, scene)


def test_a_cut_ends_one_exchange_and_the_next_datagram_begins_another(run: Run, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        client = await at.connect()
        assert await client.ask(TIME, b"a") == b"A"
        assert at.table.cut(lambda _: True, "killed by root") == 1
        assert [end.why for end in await at.ends()] == ["cut by the gate: killed by root"]
        client.send(TIME, b"b")
        await asyncio.sleep(0)
        assert b"b" not in at.echo.heard and client.silent()

    play(run, tmp_path, scene)


def test_a_lease_that_runs_out_lets_no_datagram_through(run: Run, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        client = await at.connect()
        assert await client.ask(TIME, b"a") == b"A"
        at.clock.ns += 10_000_000_000
        client.send(TIME, b"b")
        (end,) = await at.ends()
        assert end.why == "no longer admitted" and at.echo.heard == [b"a"]

    play(run, tmp_path, scene)


def test_a_budget_is_kept_to_the_datagram(run: Run, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        client, small = await at.connect(), Target(ip_address("10.8.0.7"), 123)
        assert await client.ask(small, b"x" * 600) == b"X" * 600
        assert await client.ask(small, b"y" * 424) == b"Y" * 424
        client.send(small, b"z")
        (end,) = await at.ends()
        assert end.why.startswith("budget used up") and len(at.echo.heard) == 2

    play(run, tmp_path, scene)


def test_the_oldest_of_a_client_gives_way(run: Run, tmp_path: Path) -> None:
    """Over all of its associations together."""

    async def scene(at: World) -> None:
        first = await at.connect()
        assert await first.ask(TIME, b"a") == b"A"
        for _ in range(3):
            assert await (await at.connect()).ask(TIME, b"a") == b"A"
        while len(at.table) > 3:
            await asyncio.sleep(0.005)
        assert len(at.verdicts()) == 4
        assert await first.ask(TIME, b"a") == b"A"
        assert len(at.verdicts()) == 5, "it began anew"

    play(run, tmp_path, scene, most=6)


def test_a_worker_that_is_full_takes_no_more(run: Run, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        client = await at.connect()
        assert await client.ask(TIME, b"a") == b"A"
        at.rooms.append(False)
        client.send(LITERAL, b"b")
        assert await client.ask(TIME, b"c") == b"C"
        assert at.echo.heard == [b"a", b"c"] and len(at.verdicts()) == 1

    play(run, tmp_path, scene)


def test_what_is_silent_too_long_ends(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "LOOK_S", 0.01)

    async def scene(at: World) -> None:
        client = await at.connect()
        assert await client.ask(TIME, b"a") == b"A"
        at.associations._exchanges[ip_address("127.0.0.1")]._table._idle_s = 0.05
        await at.ends()
        assert await client.ask(TIME, b"a") == b"A", "the association stays"

    play(run, tmp_path, scene)


def test_a_holder_that_says_nothing_is_not_waited_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOLDER_LIMIT_S", 0.05)

    async def scene(at: World) -> None:
        assert at.holder is not None
        at.holder.cancel()
        client = await at.connect()
        assert client.code == 1 and "does not answer" in at.verdicts()[0].because.text

    play(run, tmp_path, scene)
