"""The compiled evaluator against the plain reading of the language, on random policies and flows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

import naive_policy as naive
import pytest
import random_policies as random

from proxy.flow import (
    FAILED,
    NEVER,
    UNKNOWN,
    Flow,
    Judgement,
    Protocol,
    Transfer,
    TunnelFact,
    TunnelState,
    Verdict,
)
from proxy.policy import Policy, load
from proxy.policy.facts import make_situation

POLICIES, FLOWS = 700, 150
LATER = ("protocol", "address", "method", "path", "content_type", "transfer", "size")


def policies(seed: int, count: int) -> list[tuple[Random, Policy]]:
    found = []
    for i in range(count):
        rng = Random(f"{seed}/{i}")
        found.append((rng, random.load(random.policy(rng))))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_compiled_equals_naive_where_every_fact_is_known(seed: int) -> None:
    """4 seeds of POLICIES / 4 policies, FLOWS flows each: over 100,000 cases."""
    for rng, policy in policies(seed, POLICIES // 4):
        for _ in range(FLOWS):
            flow, tunnel = random.flow(rng), random.tunnel(rng)
            judged = policy.judge(flow, tunnel)
            assert (judged.verdict, judged.because.id) == naive.judge(policy.model, flow, tunnel), (
                flow,
                tunnel,
            )


def test_a_settled_verdict_holds_whatever_the_missing_facts_turn_out_to_be() -> None:
    settled = residual = 0
    for rng, policy in policies(5, 120):
        for _ in range(40):
            flow, tunnel = random.flow(rng, missing=0.3), random.tunnel(rng)
            if not 1 <= sum(getattr(flow, name) in (UNKNOWN, FAILED) for name in LATER) <= 3:
                continue
            judged = policy.judge(flow, tunnel)
            if flow.address is FAILED:
                assert judged.verdict in (Verdict.BLOCK, None)
                continue
            wanted = naive.verdicts(policy.model, flow, tunnel)
            if judged.verdict is None:
                residual += 1
                assert len(wanted) > 1 and judged.waits_for, (flow, tunnel, wanted)
            elif not judged.budgets:
                settled += 1
                explained = wanted == {judged.verdict} or only_strictest_is_left(judged, flow, wanted)
                assert explained, (flow, tunnel, judged, wanted)
    assert settled > 1000 and residual > 50


def only_strictest_is_left(judged: Judgement, flow: Flow, wanted: set[Verdict]) -> bool:
    """A direction or an amount that no inspection will ever tell counts as its strictest.

    And a flow that starts in the tunnel stays there, however much it carries (an unstable route, which
    is no error before it is proved).
    """
    if wanted == {Verdict.TUNNEL, Verdict.DIRECT}:
        return judged.verdict is Verdict.TUNNEL and flow.size is UNKNOWN
    opaque = flow.protocol not in (Protocol.HTTP, Protocol.HTTPS, Protocol.QUIC, UNKNOWN)
    return opaque and UNKNOWN in (flow.transfer, flow.size) and judged.verdict is min(wanted)


def test_a_budget_is_the_last_byte_at_which_the_verdict_holds() -> None:
    budgets = 0
    for rng, policy in policies(6, 300):
        for _ in range(40):
            flow, tunnel = random.flow(rng), random.tunnel(rng)
            opened = replace(flow, transfer=UNKNOWN, size=UNKNOWN)
            judged = policy.judge(opened, tunnel)
            if judged.verdict in (None, Verdict.BLOCK):
                continue
            limits = {budget.transfer: budget.limit_bytes for budget in judged.budgets}
            for transfer in Transfer:
                for size in (0, 1, 1024, 1025, 1 << 20, (1 << 20) + 1, 1 << 50):
                    full = naive.judge(policy.model, replace(flow, transfer=transfer, size=size), tunnel)
                    if size <= limits.get(transfer, size):
                        assert full[0] >= judged.verdict
                    elif size == limits[transfer] + 1:
                        budgets += 1
                        assert full[0] < judged.verdict
    assert budgets > 20


def stays_in_tunnel(settled: set[Verdict], direct: Judgement) -> bool:
    return settled == {Verdict.TUNNEL} and direct.verdict is Verdict.DIRECT


def unknown(flow: Flow, names: Iterable[str]) -> Flow:
    facts: dict[str, Any] = dict.fromkeys(names, UNKNOWN)
    return replace(flow, **facts)


def test_staged_evaluation_ends_where_direct_evaluation_does() -> None:
    """Facts arrive in the order of their stages; what was settled on the way stays."""
    for rng, policy in policies(7, 250):
        for _ in range(20):
            flow, tunnel = random.flow(rng), random.tunnel(rng)
            direct = policy.judge(flow, tunnel)
            staged = unknown(flow, LATER) if isinstance(flow.name, str) else flow
            settled: set[Verdict] = set()
            for name in LATER:
                judged = policy.judge(staged, tunnel)
                if judged.verdict is not None and not judged.budgets:
                    settled.add(judged.verdict)
                staged = replace(staged, **{name: getattr(flow, name)})
            assert policy.judge(staged, tunnel) == direct
            http = flow.protocol in (Protocol.HTTP, Protocol.HTTPS, Protocol.QUIC)
            if http and NEVER not in (flow.transfer, flow.size, flow.content_type):
                assert settled <= {direct.verdict} or stays_in_tunnel(settled, direct), (flow, tunnel)


def test_a_guard_that_decides_some_requests_only_is_not_why_none_is_let_in() -> None:
    """With the method open, a default block and a guard agree on the verdict, not on the reason."""
    made = load(
        b"""
policy: 1
name: reasons
define: {zones: [corporate], destinations: {intranet: ["*.corp.example"]}}
guards: [{id: no-delete, match: {to: intranet, method: DELETE}, at_most: block}]
rules: [{id: web, match: {to: intranet, port: 80}, verdict: tunnel}]
""",
        "reasons.policy.yaml",
    )
    up = TunnelFact("hq", TunnelState.ATTESTED)
    for port, method, reason in (
        (81, "", "default"),
        (81, "DELETE", "no-delete"),
        (80, "DELETE", "no-delete"),
    ):
        facts = {"host": "a.corp.example", "port": str(port), "protocol": "http", "method": method}
        asked = {name: (value,) for name, value in facts.items() if value}
        judged = made.judge(make_situation(made.model, asked).flow, up)
        assert judged.verdict is Verdict.BLOCK and reason in (judged.because.id, judged.because.origin)
