"""Inspection behind a tunnel that carries packets: the judged addresses, and the one that answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from inspected import NAME, Origin, World, inspected, whole_requests
from loopback import Site, runner
from packet_end import Far, packet_tunnel

from proxy.flow import UNKNOWN, Flow, Protocol, Refusal
from proxy.gate import Gate, Inspect, NeedsAddress, Wait
from proxy.packet_egress import PacketEgress
from proxy.policy import load
from proxy.resolving import resolve

HERE, THERE, OTHER = "10.77.0.80", "10.77.0.81", "10.78.0.80"
POLICY = b"""
policy: 1
name: behind
define:
  zones: [corporate]
  destinations: {site: [site.example, 10.77.0.0/16], archive: [10.77.0.81/32]}
guards:
  - {id: no-delete, match: {method: DELETE}, at_most: block}
  - {id: read-only, match: {to: archive, method: POST}, at_most: block}
rules: [{id: site, match: {to: site}, verdict: tunnel}]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@asynccontextmanager
async def behind(
    site: Site, tmp_path: Path, *addresses: str
) -> AsyncIterator[tuple[World, Far, PacketEgress]]:
    """A destination behind HERE and THERE, and a name that has these addresses."""
    far = Far({NAME: [f"60 A {','.join(addresses)}"]})
    async with (
        inspected(site, tmp_path, Origin(whole_requests())) as world,
        packet_tunnel(far) as (egress, _),
    ):
        far.servers |= {(HERE, world.port): world.port, (THERE, world.port): world.port}
        world.gate = Gate(load(POLICY, "p.yaml"), (world.tunnel.egress, egress), inspects=True)
        world.through = egress.name
        yield world, far, egress


def flow_of(world: World, protocol: Any = Protocol.HTTP) -> Flow:
    return Flow(
        zone="corporate", user="any", port=world.port, at=datetime.now(UTC), name=NAME, address=UNKNOWN,
        protocol=protocol,
    )  # fmt: skip


async def resolved(world: World, egress: PacketEgress) -> tuple[Inspect, Flow]:
    """What a worker does before it gives the flow to an inspector."""
    needs = world.gate.ask(flow_of(world), through=egress.name)
    assert isinstance(needs, NeedsAddress)
    answer, flow = await resolve(world.gate, flow_of(world), needs)
    assert isinstance(answer, Inspect) and answer.egress is egress
    return answer, flow


def dialled(far: Far) -> list[str]:
    return [one.address for one in far.asked if one.transport == "tcp"]


def test_addresses_are_judged_before_anything_is_looked_into(site: Site, tmp_path: Path) -> None:
    """Those that no rule grants, and those under which other requests are let through, are not spoken to."""

    async def main() -> None:
        async with behind(site, tmp_path, OTHER, HERE, THERE) as (world, far, egress):
            answer, flow = await resolved(world, egress)
            assert answer.addresses in ((ip_address(HERE),), (ip_address(THERE),))
            assert flow.address == answer.addresses[0]
            far.names[NAME] = [f"60 A {OTHER}"]
            egress.forget()
            needs = world.gate.ask(flow_of(world), through=egress.name)
            assert isinstance(needs, NeedsAddress)
            refused, _ = await resolve(world.gate, flow_of(world), needs)
            assert isinstance(refused, Refusal) and not dialled(far)

    runner("asyncio")(main())


def test_the_address_that_answers_is_the_connections(site: Site, tmp_path: Path) -> None:
    """It is on record, and the next request goes there too."""

    async def main() -> None:
        async with behind(site, tmp_path, HERE) as (world, far, _):
            world.addresses = (ip_address("10.77.0.79"), ip_address(HERE))
            far.refused["10.77.0.79"] = "no way there"
            reader, writer = await world.open(address=world.addresses[0])
            for _ in range(2):
                writer.write(world.request())
                assert b"fine" in await world.read(reader, b"fine\n")
            writer.close()
            await world.ended()
            assert dialled(far) == ["10.77.0.79", HERE]
            assert [end.of.address for end in world.ends()] == [ip_address(HERE)] * 2

    runner("asyncio")(main())


def test_a_request_that_the_address_that_answers_may_not_have(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with behind(site, tmp_path, HERE) as (world, far, _):
            world.addresses = (ip_address(HERE), ip_address(THERE))
            far.refused[HERE] = "no way there"
            reader, writer = await world.open(address=world.addresses[0])
            writer.write(world.request("POST", "/", "Content-Type: a/b", "Content-Length: 3", body=b"abc"))
            assert b"no longer admitted" in await world.read(reader, b"</html>\n")
            writer.close()
            await world.ended()
            assert dialled(far) == [HERE, THERE] and not world.origin.everything

    runner("asyncio")(main())


@contextmanager
def lost(egress: PacketEgress) -> Iterator[None]:
    """The tunnel is lost at this moment."""
    before = egress._lease
    egress._lease = type(before)(egress.name, "down", "it was lost", "", 0, 0)
    yield


def test_addresses_of_one_tunnel_are_of_no_use_in_another(site: Site, tmp_path: Path) -> None:
    """When it is lost a request is refused, although another tunnel would take the name."""

    async def main() -> None:
        async with behind(site, tmp_path, HERE) as (world, far, egress):
            world.addresses = (ip_address(HERE),)
            assert isinstance(world.gate.ask(flow_of(world)), Inspect), "the other one would"
            with lost(egress):
                heard = await world.say(world.request("GET", "/", "Connection: close"))
            assert b"503" in heard and not dialled(far) and not world.origin.everything

    runner("asyncio")(main())


def test_a_flow_whose_protocol_no_rule_asks_for_waits_for_no_first_bytes(site: Site, tmp_path: Path) -> None:
    """A server that speaks first behind such a tunnel is not kept waiting for nothing."""

    async def main() -> None:
        freely = POLICY.replace(b"method: DELETE", b"port: 2").replace(b", method: POST", b", port: 1")
        async with behind(site, tmp_path, HERE) as (world, _, egress):
            assert isinstance(world.gate.ask(flow_of(world, UNKNOWN), through=egress.name), Wait)
            world.gate.policy = load(freely, "p.yaml")
            assert isinstance(world.gate.ask(flow_of(world, UNKNOWN), through=egress.name), NeedsAddress)

    runner("asyncio")(main())
