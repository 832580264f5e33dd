"""Named flows through a packet tunnel: resolved, each address judged, and a judged address dialled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from corporate_end import destination, echo
from leased import unconnected
from loopback import LOOPS, Run, pair, runner
from packet_end import Far, packet_tunnel

from proxy import resolving
from proxy.audit import EndRecord, Record, Segment, VerdictRecord, decode
from proxy.channel import PlainChannel
from proxy.egress import Egress
from proxy.flow import NEVER, UNKNOWN, Flow, Protocol, Refusal
from proxy.flow_table import FlowTable
from proxy.gate import Admission, Gate, NeedsAddress
from proxy.messages.worker import Lease
from proxy.packet_egress import PacketEgress
from proxy.passage import Passage
from proxy.policy import load
from proxy.visitor import Visitor

POLICY = b"""
policy: 1
name: resolving
define:
  zones: [corporate]
  destinations:
    site: [site.example, 10.77.0.0/16, "fd77::/16"]
    other: [other.example]
    bad: [10.77.66.0/24]
guards:
  - {id: no-bad, match: {to: bad}, at_most: block, because: it is closed}
rules:
  - {id: via-hq, match: {to: site, user: hq}, verdict: tunnel, via: hq}
  - {id: names, match: {to: [site, other]}, verdict: tunnel}
"""
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
HERE, THERE, CLOSED = "10.77.0.80", "10.77.0.81", "10.77.66.1"
NAME = "site.example"


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


def named(port: int = 7, name: str = NAME, user: str = "ana") -> Flow:
    return Flow(
        zone="corporate", user=user, port=port, at=NOON, name=name, protocol=Protocol.TCP, address=UNKNOWN
    )


class Passing:
    """A passage through a packet tunnel, and what was written down."""

    def __init__(self, *egresses: Egress, records: Path) -> None:
        self.gate = Gate(load(POLICY, "resolving.policy.yaml"), egresses)
        self._file = records
        segment = Segment(os.open(records, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), max_bytes=1 << 20)
        self.passage = Passage(self.gate, FlowTable(9), segment, lambda: NOON, lambda: "f")

    async def say(self, flow: Flow, words: bytes = b"hello") -> bytes:
        """What comes back for `words`, and then the end."""
        near, far = pair()
        visitor = Visitor("0-0123456789ab", "structural")
        passing = asyncio.create_task(self.passage.pass_through(PlainChannel(far), flow, visitor))
        client = PlainChannel(near)
        heard = b""
        try:
            await client.write(words)
            await client.write_eof()
            while data := await client.read():
                heard += data
        except ConnectionError:
            pass
        client.abort()
        await passing
        return heard

    def written(self) -> list[Record]:
        return [decode(line) for line in self._file.read_bytes().splitlines()]


@dataclass
class There:
    """A tunnel with an echo behind `HERE`, and a gate that uses it."""

    far: Far
    egress: PacketEgress
    passing: Passing


@asynccontextmanager
async def there(tmp_path: Path, *records: str) -> AsyncIterator[There]:
    far = Far({NAME: list(records)})
    async with destination(echo) as port, packet_tunnel(far) as (egress, _):
        far.servers[HERE, 7] = port
        yield There(far, egress, Passing(egress, records=tmp_path / "records"))


def connects(far: Far) -> list[str]:
    return [one.address for one in far.asked if one.transport == "tcp"]


def test_the_address_that_was_judged_is_dialled_and_recorded(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with there(tmp_path, f"60 A {HERE}") as world:
            assert await world.passing.say(named()) == b"hello"
            assert connects(world.far) == [HERE]
            verdict, end = world.passing.written()
            assert isinstance(verdict, VerdictRecord) and isinstance(end, EndRecord)
            assert (verdict.name, verdict.address) == (NAME, ip_address(HERE))
            assert (end.of.address, end.bytes_down) == (ip_address(HERE), 5)

    run(main())


@pytest.mark.parametrize(
    ("records", "because"),
    [
        ([f"60 A {CLOSED}"], "no-bad"),
        (["60 A 10.99.0.1"], "names"),
        (["60 A 169.254.169.254"], "name"),
        (["60 A 127.0.0.1"], "name"),
        (["60 AAAA ::ffff:127.0.0.1"], "name"),
        ([], "name"),
    ],
)
def test_an_address_that_is_not_admitted_is_not_dialled(
    run: Run, tmp_path: Path, records: list[str], because: str
) -> None:
    async def main() -> None:
        async with there(tmp_path, *records) as world:
            flow = named() if because != "names" else named(name="other.example")
            world.far.names["other.example"] = ["60 A 10.77.0.80"]  # a network that belongs to another name
            await world.passing.say(flow)
            assert connects(world.far) == []
            (verdict,) = world.passing.written()
            assert isinstance(verdict, VerdictRecord)
            assert (verdict.verdict.name, verdict.tunnel) == ("BLOCK", None)
            if because != "names":
                assert verdict.because.id == because

    run(main())


def test_of_several_addresses_only_the_admitted_are_tried(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with there(tmp_path, f"60 A {CLOSED}", f"60 A {HERE}", "60 A 127.0.0.1") as world:
            assert await world.passing.say(named()) == b"hello"
            assert connects(world.far) == [HERE]

    run(main())


def test_an_address_of_another_quota_is_no_second_choice(run: Run, tmp_path: Path) -> None:
    """A flow draws on the quotas of the address that it began with, and is not carried to another's."""
    counted = (
        b'    counted: {to: ["%s/32"], quota: {upload: 1GiB, per: user, every: day}}\nguards:' % HERE.encode()
    )
    policy = load(POLICY.replace(b"guards:", counted, 1), "resolving.policy.yaml")

    async def main() -> None:
        async with there(tmp_path, f"60 A {THERE}", f"60 A {HERE}") as world:
            world.passing.gate.policy = policy
            world.far.refused[THERE] = "Network is unreachable"
            await world.passing.say(named())
            assert connects(world.far) == [THERE]

    run(main())


def test_a_silent_address_does_not_hold_up_the_next(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with there(tmp_path, f"60 A {THERE}", f"60 A {HERE}", "60 AAAA fd77::80") as world:
            world.far.refused["fd77::80"] = "Network is unreachable"
            assert await world.passing.say(named()) == b"hello"
            assert connects(world.far)[-1] == HERE
            end = world.passing.written()[-1]
            assert isinstance(end, EndRecord) and end.of.address == ip_address(HERE)

    run(main())


def test_alternating_answers_without_a_lifetime(run: Run, tmp_path: Path) -> None:
    """A name that changes its address at every question: what is dialled is what was judged, each time."""

    async def main() -> None:
        async with there(tmp_path, f"0 A {HERE}") as world:
            assert await world.passing.say(named()) == b"hello"
            world.far.names[NAME] = [f"0 A {CLOSED}"]
            assert await world.passing.say(named()) != b"hello"
            assert connects(world.far) == [HERE]

    run(main())


def test_a_flow_whose_rules_changed_is_judged_with_its_address(run: Run) -> None:
    async def main() -> None:
        async with packet_tunnel(Far()) as (egress, _):
            gate = Gate(load(POLICY, "resolving.policy.yaml"), (egress,))
            assert isinstance(gate.ask(named()), NeedsAddress)
            good, bad = (replace(named(), address=ip_address(one)) for one in (HERE, CLOSED))
            assert isinstance(gate.ask(good), Admission) and gate.admits_still(good, "wg", NOON)
            assert isinstance(gate.ask(bad), Refusal) and not gate.admits_still(bad, "wg", NOON)
            assert not gate.admits_still(good, "other", NOON)

    run(main())


# -- zones of several kinds --------------------------------------------------------------------------


def mtls(**changes: Any) -> Egress:
    """An mtls tunnel that is attested."""
    clock = lambda: 1  # noqa: E731
    egress = unconnected(clock, "hq")
    egress.renew(replace(Lease("hq", "attested", "the pinned peer answers", "p", 1, 1 << 60), **changes))
    return egress


def test_the_first_attested_tunnel_in_the_zones_order(run: Run) -> None:
    async def main() -> None:
        async with packet_tunnel(Far()) as (egress, _):
            policy = load(POLICY, "resolving.policy.yaml")
            first = Gate(policy, (mtls(), egress)).ask(named())
            assert isinstance(first, Admission) and first.egress.name == "hq"
            other = Gate(policy, (egress, mtls())).ask(named())
            assert isinstance(other, NeedsAddress) and other.egress is egress
            down = mtls(state="down", deadline_ns=0)
            lost = Gate(policy, (down, egress)).ask(named())
            assert isinstance(lost, NeedsAddress) and lost.egress is egress
            back = Gate(policy, (mtls(), egress))
            known = replace(named(), address=ip_address(HERE))
            assert back.admits_still(known, "wg", NOON), "an open flow is not cut when an earlier one is back"

    run(main())


def test_via_narrows(run: Run) -> None:
    async def main() -> None:
        async with packet_tunnel(Far()) as (egress, _):
            policy = load(POLICY, "resolving.policy.yaml")
            chosen = Gate(policy, (egress, mtls())).ask(named(user="hq"))
            assert isinstance(chosen, Admission) and chosen.egress.name == "hq"
            refused = Gate(policy, (egress, mtls(state="down", deadline_ns=0))).ask(named(user="hq"))
            assert isinstance(refused, Refusal)

    run(main())


def test_a_peer_that_resolves_is_given_the_name(run: Run) -> None:
    async def main() -> None:
        egress = mtls()
        admission = Gate(load(POLICY, "resolving.policy.yaml"), (egress,)).ask(named())
        assert isinstance(admission, Admission) and admission.addresses == ()
        assert named().address is UNKNOWN and NEVER is not UNKNOWN
        with pytest.raises(Exception, match="the tunnel's holder is not there"):
            await resolving.dial(admission, named())

    run(main())
