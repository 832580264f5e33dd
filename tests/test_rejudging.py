"""Open flows judged again: what is asked of the gate, and how often."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from proxy.flow import NEVER, Flow, Protocol
from proxy.flow_table import OpenFlow
from proxy.gate import Gate
from proxy.policy import load
from proxy.rejudging import lost_now

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
