"""Open flows judged again: what is asked of the gate, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from leased import Clock, unconnected
from loopback import runner

from proxy import rejudging
from proxy.flow import NEVER, Flow, Protocol
from proxy.flow_table import FlowTable, OpenFlow
from proxy.gate import Gate
from proxy.messages.worker import Done, NewPolicy
from proxy.policy import load
from proxy.rejudging import Rejudging, lost_now

NOW = datetime(2026, 1, 5, 10, tzinfo=UTC)
FLOW = Flow(zone="corporate", user="ana", port=443, at=NOW, name="git.corp.example", protocol=Protocol.HTTPS)
ADDRESS = replace(FLOW, name=NEVER, address=ip_address("10.0.0.1"), port=22)
POLICY = load(
    b"policy: 1\nname: p\ndefine: {zones: [corporate]}\nrules:\n"
    b"  - {id: all, match: {zone: corporate}, verdict: tunnel}\n",
    "p.yaml",
)


def opened(flow: Flow) -> OpenFlow:
    return OpenFlow(id="w-1", bubble="b", flow=flow, tunnel="hq", policy="", reset=lambda: None)


def test_flows_that_differ_only_in_their_time_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Flow] = []

    def admits_still(self: Gate, flow: Flow, *_: object, **__: object) -> bool:
        judged.append(flow)
        return flow.port != 22

    monkeypatch.setattr(Gate, "admits_still", admits_still)
    flows = [replace(FLOW, at=NOW - timedelta(seconds=number)) for number in range(50)]
    is_lost = lost_now(Gate(POLICY, ()), NOW)
    found = [is_lost(opened(flow)) for flow in (*flows, ADDRESS, replace(FLOW, user="bob"))]
    assert found == [False] * 50 + [True, False]
    assert len(judged) == 3


# -- the clock on the wall, and what fails -----------------------------------------------------------

OFFICE = b"""
policy: 1
name: office
timezone: UTC
define:
  zones: [corporate]
  windows: {office: mon-fri 09:00-17:00}
rules:
  - {id: office, match: {window: office}, verdict: tunnel}
"""


class Watched:
    """One open flow, the clock on the wall, and what is answered."""

    def __init__(self) -> None:
        clock = Clock()
        egress = unconnected(clock)
        egress.renew(clock.lease())
        self.at = NOW
        self.gate = Gate(load(OFFICE, "office.yaml"), [egress])
        self.table = FlowTable(9)
        self.cut: list[str] = []
        self.flow = replace(opened(FLOW), reset=lambda: self.cut.append(self.flow.cut_because))
        self.table.add(self.flow)
        self.said: list[object] = []
        self.tasks: list[asyncio.Task[object]] = []
        self.rejudging = Rejudging(self.gate, self.table, lambda: self.at, self.said.append, self._start)

    def _start(self, work: Coroutine[None, None, object]) -> None:
        self.tasks.append(asyncio.create_task(work))


@pytest.mark.parametrize(
    "set_to", [NOW + timedelta(hours=8), NOW + timedelta(days=900, hours=14), NOW - timedelta(hours=2)]
)
def test_a_clock_that_is_set_to_a_time_outside_of_the_window_cuts(
    set_to: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards or back, or because the machine slept: nobody tells a sealed worker."""
    monkeypatch.setattr(rejudging, "LOOK_S", 0.001)

    async def main() -> None:
        there = Watched()
        there.rejudging.await_edge()
        there.at += timedelta(minutes=1)
        looked = there.rejudging._looking
        while there.rejudging._looking is looked:
            await asyncio.sleep(0.001)
        assert not there.cut and not there.tasks, "nothing is judged while the time goes on as it should"
        there.at = set_to
        while not there.cut:
            await asyncio.sleep(0.001)
        assert there.cut == ["its time is over"]

    runner("asyncio")(main())


def test_a_policy_that_fails_in_any_way_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def load_beside(text: bytes, file: str) -> None:
        raise MemoryError(text)

    async def main() -> None:
        there = Watched()
        await there.rejudging.replace_policy(NewPolicy(1, "p.yaml"), b"policy: 2")
        monkeypatch.setattr(rejudging, "load_beside", load_beside)
        await there.rejudging.replace_policy(NewPolicy(2, "p.yaml"), b"x")
        first, second = there.said
        assert isinstance(first, Done) and "p.yaml:1" in first.trouble
        assert isinstance(second, Done) and second.trouble == "it failed: MemoryError(b'x')"
        assert not there.cut and there.gate.policy.name == "office"

    runner("asyncio")(main())
