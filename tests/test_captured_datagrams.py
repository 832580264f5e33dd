"""The datagrams of one bubble, in a real zone, with a real policy and a tunnel's sockets: carried, refused at
once, bounded and cut."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from descriptors import open_descriptors
from loopback import LOOPS, Run, free_port, runner
from own_namespaces import Zone, zone
from packet_end import Echo, Far, packet_tunnel
from quic_client import first_flight

from proxy import captured_datagrams, doors, exchanges, namespaces, posts
from proxy.allocator import Allocator, Synthetic
from proxy.audit import EndRecord, Record, Segment, VerdictRecord, decode
from proxy.captured import Captured
from proxy.channel import Backlog
from proxy.datagram_passage import DatagramPassage
from proxy.egress import Egress
from proxy.flow import NEVER, UNKNOWN, Flow, IPAddress, Refusal, Verdict
from proxy.flow_table import FlowTable
from proxy.gate import Gate
from proxy.names import BubbleNames
from proxy.packet_egress import PacketEgress
from proxy.passage import Passage
from proxy.policy import load
from proxy.posts import Bubble
from proxy.visitor import Visitor

VISITOR = Visitor("0-0123456789ab", "structural")
NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
POLICY = b"""
policy: 1
name: datagrams
define:
  zones: [corporate]
  destinations:
    time: [time.example, 10.8.0.9, "fd08::9"]
    quic: [quic.example, 10.8.0.9]
    small: [10.8.0.7]
    web: [web.example]
    read: [read.example, 10.8.0.8]
guards:
  - {id: little, match: {to: small, transfer: upload, size: ">1KiB"}, at_most: block}
  - {id: kept, match: {to: read, method: DELETE}, at_most: block}
rules:
  - {id: time, match: {to: time, protocol: udp}, verdict: tunnel}
  - {id: quic, match: {to: quic, protocol: quic}, verdict: tunnel}
  - {id: small, match: {to: small, protocol: udp}, verdict: tunnel}
  - {id: web, match: {to: web, protocol: https}, verdict: tunnel}
  - {id: read, match: {to: read, port: 443}, verdict: tunnel}
"""
ASK = """
sock = socket.socket(socket.AF_INET6 if ':' in {host!r} else socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(60)
sock.connect(({host!r}, {port}))
said = []
for data in {says!r}:
    try:
        sock.send(data)
        said.append(sock.recv(65536))
    except OSError as error:
        said.append(type(error).__name__ if error.errno is None else errno.errorcode[error.errno])
sock.close()
"""
QUIC = b"\xc3\0\0\0\1" + bytes(1195)


@pytest.fixture
def run() -> Run:
    """The loop that a worker has; what is different in the other one is tried once."""
    return runner("uvloop")


@pytest.fixture(scope="module")
def there() -> Iterator[Zone]:
    with zone() as made:
        made.do("import errno; said = 0")
        yield made


@dataclass
class World:
    """A bubble's datagrams, the gate that judges them, and what is behind the tunnel."""

    zone: Zone
    gate: Gate
    table: FlowTable
    passage: Passage
    captured: Captured
    names: Allocator
    egress: PacketEgress
    clock: Any
    far: Far
    echo: Echo
    file: Path

    async def ask(self, host: str, port: int, *says: bytes) -> Any:
        """What a program hears to each of its datagrams, on one socket."""
        return await asyncio.to_thread(self.zone.do, ASK.format(host=host, port=port, says=says))

    def records(self) -> list[Record]:
        return [decode(line) for line in self.file.read_bytes().splitlines()]

    def verdicts(self) -> list[VerdictRecord]:
        return [one for one in self.records() if isinstance(one, VerdictRecord)]

    async def ends(self) -> list[EndRecord]:
        """The ends, once every flow has one."""
        while any(one.verdict is Verdict.TUNNEL for one in self.verdicts()) and len(self.table):
            await asyncio.sleep(0.01)
        return [one for one in self.records() if isinstance(one, EndRecord)]

    def named(self, name: str) -> str:
        """The synthetic address of a name."""
        found = self.names.allocate(VISITOR.bubble, name)
        assert isinstance(found, Synthetic)
        return str(found.v4)


def new_flow(name: str | None, address: IPAddress | None, port: int) -> Flow:
    return Flow(
        zone="corporate",
        user="u",
        port=port,
        at=NOW,
        name=NEVER if name is None else name,
        address=address if address is not None else NEVER if name is None else UNKNOWN,
    )


@asynccontextmanager
async def world(there: Zone, directory: Path, *, packets: bool = True) -> AsyncIterator[World]:
    far = Far()
    loop = asyncio.get_running_loop()
    echo = Echo()
    transport, _ = await loop.create_datagram_endpoint(lambda: echo, ("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    for host in ("10.8.0.9", "10.8.0.7", "fd08::9"):
        far.servers[host, 123] = port
    far.servers["10.8.0.9", 443] = port
    far.names = {"time.example": ["60 A 10.8.0.9"], "quic.example": ["60 A 10.8.0.9"],
                 "read.example": ["60 A 10.8.0.8"]}  # fmt: skip
    async with packet_tunnel(far) as (egress, clock):
        egresses: list[Egress] = [egress]
        gate = Gate(load(POLICY, "datagrams.policy.yaml"), egresses)
        table = FlowTable(100)
        file = directory / "records"
        fd = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        numbers = map("f{}".format, itertools.count(1))
        passage = Passage(gate, table, Segment(fd, max_bytes=1 << 20), lambda: NOW, lambda: next(numbers))
        names = Allocator(directory / "names", clock=lambda: 0.0, boot="boot")

        async def address_of(bubble: str, name: str) -> Synthetic | Refusal:
            return names.allocate(bubble, name)

        async def name_of(bubble: str, address: IPAddress) -> str | None:
            return names.name_of(bubble, address)

        bubble = Bubble(VISITOR.bubble, "z", "u", os.getuid(), there.pid, "structural", tuple(there.fds))
        while True:
            try:
                fds = await doors.open_ears(bubble, datagrams=packets)
                break
            except posts.CrewError:  # the last test's connections are just ending
                await asyncio.sleep(0.01)
        captured = Captured(
            VISITOR,
            [socket.socket(fileno=one) for one in fds],
            BubbleNames(VISITOR.bubble, address_of, name_of),
            passage,
            new_flow,
            Backlog(),
            50,
            lambda: True,
            DatagramPassage(passage, gate, table, [egress]),
        )
        try:
            yield World(there, gate, table, passage, captured, names, egress, clock, far, echo, file)
        finally:
            captured.close()
            while len(captured):
                await asyncio.sleep(0)
            names.close()
            transport.close()
            os.close(fd)


type Scene = Callable[[World], Any]


def play(run: Run, there: Zone, directory: Path, scene: Scene, **options: Any) -> None:
    async def main() -> None:
        async with world(there, directory, **options) as at:
            await scene(at)

    run(main())


# -- carried -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("host", ["10.8.0.9", "fd08::9"])
def test_a_datagram_to_an_address_and_its_answer(loop: str, there: Zone, tmp_path: Path, host: str) -> None:
    """The answer comes from where the program had sent to; what is dialled is what was judged."""

    async def scene(at: World) -> None:
        assert await at.ask(host, 123, b"one", b"two", b"x" * 9000) == [b"ONE", b"TWO", b"X" * 9000]
        (verdict,) = at.verdicts()
        assert (verdict.verdict, verdict.because.id, verdict.tunnel) == (Verdict.TUNNEL, "time", "wg")
        assert (str(verdict.address), verdict.port, str(verdict.protocol)) == (host, 123, "udp")
        assert [(one.transport, one.address, one.port) for one in at.far.asked] == [("udp", host, 123)]
        at.captured.close()
        (end,) = await at.ends()
        assert (end.bytes_up, end.bytes_down) == (9006, 9006)

    play(runner(loop), there, tmp_path, scene)


def test_a_name_is_resolved_through_the_tunnel_and_judged(run: Run, there: Zone, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        assert await at.ask(at.named("time.example"), 123, b"ping") == [b"PING"]
        (verdict,) = at.verdicts()
        assert (verdict.name, str(verdict.address)) == ("time.example", "10.8.0.9")
        assert "time.example. A" in at.far.questions

    play(run, there, tmp_path, scene)


def test_each_program_has_its_own_exchange(run: Run, there: Zone, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        assert await at.ask("10.8.0.9", 123, b"a") == [b"A"]
        assert await at.ask("10.8.0.9", 123, b"b") == [b"B"]
        assert len(at.verdicts()) == 2 and len(at.table) == 2

    play(run, there, tmp_path, scene)


def test_quic_is_carried_where_a_rule_settles_it(run: Run, there: Zone, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        first = first_flight("quic.example")
        said = await at.ask(at.named("quic.example"), 443, *first)
        assert said == [one.upper() for one in first], str(at.verdicts()[0].because)
        assert str(at.verdicts()[0].protocol) == "quic"

    play(run, there, tmp_path, scene)


def test_quic_must_claim_the_name_that_was_asked_for(run: Run, there: Zone, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        said = await at.ask(at.named("quic.example"), 443, *first_flight("other.example"))
        assert said == ["EHOSTUNREACH"] and at.verdicts()[0].because.id == "names-disagree"
        assert await at.ask(at.named("quic.example"), 443, QUIC) == ["EHOSTUNREACH"]
        assert at.verdicts()[1].because.id == "malformed"
        assert not at.echo.heard

    play(run, there, tmp_path, scene)


def test_a_second_connection_between_the_same_ends_does_not_pass(
    run: Run, there: Zone, tmp_path: Path
) -> None:
    """It could claim another name. What is no beginning passes: another datagram comes after it."""

    async def scene(at: World) -> None:
        good, other = first_flight("quic.example")[0], first_flight("other.example")[0]
        task = asyncio.create_task(at.ask(at.named("quic.example"), 443, good))
        assert await task == [good.upper()]
        exchanges = at.captured._exchanges
        assert exchanges is not None
        ((_, exchange),) = exchanges._exchanges._table.all()
        exchange.from_client(other)
        exchange.from_client(b"short")
        while b"short" not in at.echo.heard:
            await asyncio.sleep(0)
        assert at.echo.heard == [good, b"short"]

    play(run, there, tmp_path, scene)


def test_what_began_otherwise_goes_on_as_no_quic(run: Run, there: Zone, tmp_path: Path) -> None:
    """Its name would be compared with nothing."""

    async def scene(at: World) -> None:
        assert await at.ask(at.named("time.example"), 123, b"junk") == [b"JUNK"]
        exchanges = at.captured._exchanges
        assert exchanges is not None
        ((_, exchange),) = exchanges._exchanges._table.all()
        exchange.from_client(first_flight("other.example")[0])
        exchange.from_client(b"short")
        while b"short" not in at.echo.heard:
            await asyncio.sleep(0)
        assert at.echo.heard == [b"junk", b"short"]

    play(run, there, tmp_path, scene)


# -- refused, at once --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "port", "says", "because"),
    [
        ("10.8.0.66", 123, b"ping", "default"),
        ("2001:db8::66", 123, b"ping", "default"),
        ("web.example", 443, QUIC, "default"),
        ("quic.example", 443, b"no quic", "default"),
        # HTTP/3 may be in it, which the guard would have to look into
        ("read.example", 443, first_flight("read.example")[0], "needs-inspection"),
        ("127.0.0.9", 123, b"ping", ""),
    ],
)
def test_what_may_not_be_is_refused_at_once(
    run: Run, there: Zone, tmp_path: Path, target: str, port: int, says: bytes, because: str
) -> None:
    """As a router would: a program that hears so falls back to TCP. One record, and nothing is dialled."""

    async def scene(at: World) -> None:
        host = at.named(target) if target.endswith("example") else target
        said = await at.ask(host, port, says, says)
        if because:
            assert said == ["EHOSTUNREACH" if ":" not in host else "EACCES"] * 2
            (verdict,) = at.verdicts()
            assert (verdict.verdict, verdict.because.id) == (Verdict.BLOCK, because)
        else:  # its own loopback, where nobody listens
            assert said == ["ECONNREFUSED"] * 2
        assert not [one for one in at.far.asked if one.port != 53]

    play(run, there, tmp_path, scene)


def test_without_a_proved_peer_all_is_refused(run: Run, there: Zone, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        at.clock.ns += 10_000_000_000
        assert await at.ask("10.8.0.9", 123, b"ping") == ["EHOSTUNREACH"]
        assert not at.echo.heard

    play(run, there, tmp_path, scene)


def test_a_zone_without_such_a_tunnel_has_no_ears_for_it(run: Run, there: Zone, tmp_path: Path) -> None:
    """The kernel refuses, as it does while there is no daemon."""

    async def scene(at: World) -> None:
        assert await at.ask("10.8.0.9", 123, b"ping") == ["EHOSTUNREACH"]
        assert not at.records()

    play(run, there, tmp_path, scene, packets=False)


# -- bounded and cut ---------------------------------------------------------------------------------


def test_a_lease_that_runs_out_lets_no_datagram_through(run: Run, there: Zone, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        task = asyncio.create_task(at.ask("10.8.0.9", 123, b"one", b"two"))
        while not at.echo.heard:
            await asyncio.sleep(0)
        at.clock.ns += 10_000_000_000
        assert (await task)[-1] == "EHOSTUNREACH"
        assert at.echo.heard == [b"one"]
        (end,) = await at.ends()
        assert end.why == "no longer admitted"

    play(run, there, tmp_path, scene)


def test_a_cut_ends_it_and_the_program_hears_so(run: Run, there: Zone, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        assert await at.ask("10.8.0.9", 123, b"one") == [b"ONE"]
        assert at.table.cut(lambda _: True, "tunnel wg lost: gone") == 1
        (end,) = await at.ends()
        assert end.why == "cut by the gate: tunnel wg lost: gone" and not len(at.table)

    play(run, there, tmp_path, scene)


def test_a_budget_is_kept_to_the_datagram(run: Run, there: Zone, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        said = await at.ask("10.8.0.7", 123, b"x" * 600, b"y" * 424, b"z")
        assert said[:2] == [b"X" * 600, b"Y" * 424] and said[2] == "EHOSTUNREACH"
        assert at.echo.heard == [b"x" * 600, b"y" * 424]
        (end,) = await at.ends()
        assert end.why.startswith("budget used up")

    play(run, there, tmp_path, scene)


def test_the_oldest_gives_way_and_nothing_is_left_open(
    run: Run, there: Zone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured_datagrams, "MOST", 3)

    async def scene(at: World) -> None:
        for _ in range(8):
            assert await at.ask("10.8.0.9", 123, b"a") == [b"A"]
        while len(at.table) > 3:
            await asyncio.sleep(0)
        before = len(open_descriptors())
        at.captured.close()
        await at.ends()
        assert len(open_descriptors()) < before
        assert [one.why for one in await at.ends()].count("finished by both ends") == 5

    play(run, there, tmp_path, scene)


def test_what_is_silent_too_long_ends(
    run: Run, there: Zone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges, "LOOK_S", 0.01)

    async def scene(at: World) -> None:
        datagrams = at.captured._exchanges
        assert datagrams is not None
        assert await at.ask("10.8.0.9", 123, b"a") == [b"A"]
        table = datagrams._exchanges._table
        idle_s, table._idle_s = table._idle_s, 0.01
        while len(at.table):
            await asyncio.sleep(0.01)
        table._idle_s = idle_s
        assert await at.ask("10.8.0.9", 123, b"a") == [b"A"]

    play(run, there, tmp_path, scene)


def test_a_destination_that_is_not_there_is_told(run: Run, there: Zone, tmp_path: Path) -> None:
    async def scene(at: World) -> None:
        at.far.servers["10.8.0.9", 99] = free_port(socket.SOCK_DGRAM)
        assert await at.ask("10.8.0.9", 99, b"a") == ["EHOSTUNREACH"]

    play(run, there, tmp_path, scene)


def test_the_ears_that_answer_hear_nothing_and_send_by_lo_alone() -> None:
    """They are raw, so they are bound to the one device that a zone has, whatever comes to it later."""
    with zone() as made:
        code = (
            f"import sys; sys.path.insert(0, {str(Path(namespaces.__file__).parents[1])!r})\n"
            "from proxy import namespaces\nears = namespaces.open_datagram_ears()[2:]\n"
            "said = [(int(one.type), one.proto, one.getsockopt(1, 25, 16).rstrip(b'\\0')) for one in ears]"
        )
        assert made.do(code) == [(3, 255, b"lo"), (3, 255, b"lo")]
