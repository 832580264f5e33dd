"""The ingress of one bubble: real connections in a real zone made into flows, and what it may hold."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from descriptors import none_left, open_descriptors
from loopback import LOOPS, Run, runner
from own_namespaces import Zone, zone

from proxy import captured, doors, namespaces, posts
from proxy.allocator import Allocator, Synthetic
from proxy.captured import Captured
from proxy.channel import Backlog, Channel
from proxy.flow import NEVER, Flow, IPAddress, Refusal
from proxy.names import BubbleNames
from proxy.passage import Passage
from proxy.posts import Bubble
from proxy.visitor import Visitor

VISITOR = Visitor("0-0123456789ab", "structural")


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


@pytest.fixture(scope="module")
def there() -> Iterator[Zone]:
    with zone() as made:
        yield made


@dataclass
class Noted(Passage):
    """Answers every flow with what it was; `held` are kept open until `release`."""

    holds: bool = False
    flows: list[Flow] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def pass_through(self, client: Channel, flow: Flow, visitor: Visitor) -> None:
        assert visitor == VISITOR
        self.flows.append(flow)
        try:
            if self.holds:
                await self.release.wait()
            await client.write(flow.destination.encode())
            await client.write_eof()
            await client.read()
            await client.close()
        finally:
            client.abort()

    async def refuse(self, client: Channel, flow: Flow, refusal: Refusal, visitor: Visitor) -> None:
        self.refused.append(refusal.because.id)
        self.flows.append(flow)
        client.abort()


def new_flow(name: str | None, address: IPAddress | None, port: int) -> Flow:
    return Flow(
        zone="z",
        user="u",
        port=port,
        at=datetime(2026, 1, 5, tzinfo=UTC),
        name=NEVER if name is None else name,
        address=NEVER if address is None else address,
    )


@dataclass
class Ears:
    captured: Captured
    passage: Noted
    names: Allocator


@asynccontextmanager
async def ears(
    there: Zone, directory: Path, *, most: int = 100, room: Callable[[], bool] = lambda: True, **noted: Any
) -> AsyncIterator[Ears]:
    """The zone's ears, as a worker has them."""
    bubble = Bubble(VISITOR.bubble, "z", "u", os.getuid(), there.pid, "structural", tuple(there.fds))
    while True:
        try:
            fds = await doors.open_ears(bubble)
            break
        except posts.CrewError:  # the last test's connections are just ending
            await asyncio.sleep(0.01)
    allocator = Allocator(directory / "names", clock=lambda: 0.0, boot="boot")

    async def address_of(bubble: str, name: str) -> Synthetic | Refusal:
        return allocator.allocate(bubble, name)

    async def name_of(bubble: str, address: IPAddress) -> str | None:
        return allocator.name_of(bubble, address)

    passage = Noted(**noted)
    names = BubbleNames(VISITOR.bubble, address_of, name_of)
    listeners = [socket.socket(fileno=fd) for fd in fds]
    made = Captured(VISITOR, listeners, names, passage, new_flow, Backlog(), most, room)
    try:
        yield Ears(made, passage, allocator)
    finally:
        made.close()
        while len(made):
            await asyncio.sleep(0)
        allocator.close()


async def tcp(there: Zone, host: str, port: int = 80) -> Any:
    return await asyncio.to_thread(there.tcp, host, port)


# -- what becomes of a connection --------------------------------------------------------------------

LITERALS = ["192.0.2.7", "10.0.0.1", "169.254.169.254", "2001:db8::7", "100.64.0.2"]


@pytest.mark.parametrize("address", LITERALS)
def test_a_literal_address_is_where_the_program_wanted_to_go(
    run: Run, there: Zone, tmp_path: Path, address: str
) -> None:
    async def main() -> None:
        async with ears(there, tmp_path) as at:
            await tcp(there, address, 4321)
            (flow,) = at.passage.flows
            assert (flow.name, flow.address, flow.port) == (NEVER, ip_address(address), 4321)
            assert at.passage.refused == []

    run(main())


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_synthetic_address_is_the_name_that_was_asked_for(
    run: Run, there: Zone, tmp_path: Path, family: str
) -> None:
    async def main() -> None:
        async with ears(there, tmp_path) as at:
            found = at.names.allocate(VISITOR.bubble, "site.example")
            assert isinstance(found, Synthetic)
            assert await tcp(there, str(getattr(found, family)), 443) == b"site.example:443"
            (flow,) = at.passage.flows
            assert (flow.name, flow.address) == ("site.example", NEVER), "a synthetic address is never judged"

    run(main())


@dataclass(frozen=True, slots=True)
class Refused:
    sentence: str
    address: str
    because: str

    def __str__(self) -> str:
        return self.sentence


REFUSED = [
    Refused("a synthetic address that this bubble was never told", "198.18.200.200", "names-unknown"),
    Refused("one that another bubble was told", "198.18.1.0", "names-unknown"),
    Refused("one of IPv6", "fd00:7a67::ffff", "names-unknown"),
    Refused("one that stands for no name", "198.18.0.1", "names-unknown"),
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused_before_the_gate_is_asked(run: Run, there: Zone, tmp_path: Path, case: Refused) -> None:
    async def main() -> None:
        async with ears(there, tmp_path) as at:
            at.names.allocate("0-000000000000", "secret.example")
            assert await tcp(there, case.address) == "ConnectionResetError"
            assert at.passage.refused == [case.because]
            (flow,) = at.passage.flows
            assert (flow.name, flow.address) == (NEVER, NEVER)

    run(main())


@pytest.mark.parametrize(
    "address", [namespaces.OWN_V4, namespaces.OWN_V6, "127.0.0.1", "127.9.9.9", "::1", "64:ff9b::7f00:1"]
)
def test_the_gates_own_ports_lead_nowhere(run: Run, there: Zone, tmp_path: Path, address: str) -> None:
    async def main() -> None:
        async with ears(there, tmp_path) as at:
            assert await tcp(there, address, namespaces.GATE_PORT) == "ConnectionResetError"
            assert at.passage.refused == ["own-address"]

    run(main())


def test_names_are_answered_on_both_transports_and_lead_to_their_flow(
    run: Run, there: Zone, tmp_path: Path
) -> None:
    ask = (
        "import struct\n"
        "head, tail = struct.pack('!6H', 7, 256, 1, 0, 0, 0), struct.pack('!2H', 1, 1)\n"
        "query = head + b'\\4site\\7example\\0' + tail\n"
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(60)\n"
        "u.sendto(query, ('192.0.2.53', 53)); one = u.recv(512)[-4:]; u.close()\n"
        "t = socket.create_connection(('192.0.2.53', 53), 60)\n"
        "t.sendall(struct.pack('!H', len(query)) + query)\n"
        "two = t.recv(512)[-4:]; t.close(); said = (one == two, socket.inet_ntoa(one))"
    )

    async def main() -> None:
        async with ears(there, tmp_path) as at:
            same, address = await asyncio.to_thread(there.do, ask)
            assert same
            assert await tcp(there, address) == b"site.example:80"
            assert at.passage.flows[0].name == "site.example"

    run(main())


# -- bounds ------------------------------------------------------------------------------------------

OPEN = "held = [socket.create_connection(('192.0.2.7', 80), 60) for _ in range({})]; said = len(held)"
ENDED = """
said = 0
for sock in held:
    sock.settimeout(60)
    try:
        said += sock.recv(1) == b""
    except ConnectionResetError:
        said += 1
    sock.close()
"""


@pytest.mark.parametrize("bound", ["of the bubble", "of the worker"])
def test_what_is_over_the_bound_is_reset_at_once_and_the_rest_stays(
    run: Run, there: Zone, tmp_path: Path, bound: str
) -> None:
    async def main() -> None:
        made: list[Ears] = []
        full: dict[str, Any] = {"room": lambda: not made or len(made[0].captured) < 3}
        if bound == "of the bubble":
            full = {"most": 3}
        async with ears(there, tmp_path, holds=True, **full) as at:
            made.append(at)
            assert await asyncio.to_thread(there.do, OPEN.format(3)) == 3
            while len(at.passage.flows) < 3:
                await asyncio.sleep(0.001)
            assert await tcp(there, "192.0.2.7") == "ConnectionResetError"
            at.passage.release.set()
            await asyncio.to_thread(there.do, "for sock in held: sock.close()\nsaid = ''")
            while len(at.captured):
                await asyncio.sleep(0.001)
            assert await tcp(there, "192.0.2.7") == b"192.0.2.7:80"

    run(main())


def test_closing_cuts_what_is_open_and_leaves_no_descriptor(run: Run, there: Zone, tmp_path: Path) -> None:
    async def main() -> None:
        async with ears(there, tmp_path, holds=True) as at:
            await asyncio.to_thread(there.do, OPEN.format(5))
            while len(at.passage.flows) < 5:
                await asyncio.sleep(0.001)
            at.captured.close()
            assert await asyncio.to_thread(there.do, ENDED) == 5
            assert await tcp(there, "192.0.2.7") == "ConnectionRefusedError"

    before = open_descriptors()
    run(main())
    assert open_descriptors() <= before


def test_a_connection_of_the_very_moment_of_closing_is_reset_too(
    run: Run, there: Zone, tmp_path: Path
) -> None:
    async def main() -> None:
        async with ears(there, tmp_path, holds=True) as at:
            there.do(OPEN.format(3))  # they are accepted below, in the turn in which it is closed
            for listener in at.captured._listeners:
                at.captured._accept(listener, at.captured._serve)
            assert len(at.captured) == 3
            at.captured.close()
            while len(at.captured):
                await asyncio.sleep(0)
            assert await asyncio.to_thread(there.do, ENDED) == 3
            assert at.passage.flows == []

    run(main())


def test_without_descriptors_it_waits_and_goes_on(
    run: Run, there: Zone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "PAUSE_S", 0.01)

    async def main() -> None:
        async with ears(there, tmp_path) as at:
            with none_left():
                there.do(OPEN.format(1))
                for _ in range(100):
                    await asyncio.sleep(0)
                assert at.passage.flows == []
            while not at.passage.flows:
                await asyncio.sleep(0.001)
            there.do("held[0].close(); said = ''")

    run(main())
