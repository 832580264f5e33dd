"""One connection, two requests: never two ways. Against every pair of requests on random policies."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from random import Random

import naive_policy as naive
import pytest
import random_policies as random
from test_prove import possible_flow

from proxy.flow import Flow, Protocol, Transfer, TunnelFact, Verdict
from proxy.policy import Policy
from proxy.policy.prove import Prover


def requests(flow: Flow) -> list[Flow]:
    """The requests that one https connection could carry."""
    return [
        replace(flow, method=method, path=path, content_type=media, transfer=transfer, size=size)
        for method, path, media, transfer, size in product(
            ("GET", "POST"), ("/", "/api/v1/x"), ("text/html", "application/json"), Transfer, (0, 1 << 30)
        )
    ]


def ways(policy: Policy, flow: Flow, tunnel: TunnelFact | None) -> set[Verdict]:
    return {naive.judge(policy.model, request, tunnel)[0] for request in requests(flow)} - {Verdict.BLOCK}


@pytest.mark.parametrize("seed", range(40))
def test_a_connection_with_two_ways_is_always_found(seed: int) -> None:
    """The prover replays both requests of what it finds; what it does not find must not be there."""
    rng = Random(f"stable-{seed}")
    policy = random.load(random.policy(rng))
    found = list(Prover(policy).unstable_routes())
    if found:
        assert policy.may_be_unstable()
        return
    for _ in range(60):
        flow, tunnel = replace(possible_flow(rng), protocol=Protocol.HTTPS), random.tunnel(rng)
        assert len(ways(policy, flow, tunnel)) <= 1, (flow, tunnel)


def test_some_of_the_random_policies_are_unstable_and_some_are_not() -> None:
    found = [
        bool(list(Prover(random.load(random.policy(Random(f"stable-{seed}")))).unstable_routes()))
        for seed in range(40)
    ]
    assert any(found) and not all(found)
