"""Proofs against the judge: what is claimed of all flows must hold for every flow that is tried, and
every counterexample is one. Both engines must give the same answers."""

from __future__ import annotations

from random import Random

import pytest
import random_policies as random

from proxy.flow import FAILED, NEVER, UNKNOWN, Flow, Origin, Protocol, Verdict
from proxy.policy import Policy
from proxy.policy.model import Match
from proxy.policy.prove import Prover


def policy(seed: str, rules: int = 6, guards: int = 3) -> Policy:
    rng = Random(seed)
    return random.load(random.policy(rng, rules=rules, guards=guards))


def is_possible(flow: Flow) -> bool:
    """Whether a random flow is one that the space holds: see `Regions._impossible`."""
    http = flow.protocol in (Protocol.HTTP, Protocol.HTTPS, Protocol.QUIC)
    asked = [flow.method, flow.path, flow.content_type]
    return (
        UNKNOWN not in asked
        and FAILED not in asked
        and (http or all(fact is NEVER for fact in asked))
        and (flow.transfer is NEVER) == (flow.size is NEVER)
        and flow.zone != "else"
    )


def possible_flow(rng: Random) -> Flow:
    from dataclasses import replace

    while True:
        flow = random.flow(rng)
        if flow.protocol not in (Protocol.HTTP, Protocol.HTTPS, Protocol.QUIC):
            flow = replace(flow, method=NEVER, path=NEVER, content_type=NEVER)
        if is_possible(flow):
            return flow


@pytest.mark.parametrize("seed", range(60))
def test_what_a_flow_gets_the_prover_finds_and_what_it_finds_the_judge_gives(seed: int) -> None:
    """`find` replays every witness through the judge and raises where the two differ."""
    subject, rng = policy(f"find-{seed}"), Random(seed)
    prover = Prover(subject)
    found = {verdict: prover.find(Match(), None, [verdict]) for verdict in Verdict}
    dead = {finding.id for finding in prover.dead_rules()}
    for _ in range(300):
        flow, tunnel = possible_flow(rng), random.tunnel(rng)
        judged = subject.judge(flow, tunnel)
        assert judged.verdict is not None
        assert found[judged.verdict] is not None, (flow, tunnel)
        assert judged.because.id not in dead, (flow, tunnel)


@pytest.mark.parametrize("seed", range(25))
def test_every_rule_that_is_not_dead_has_an_example_that_it_decides(seed: int) -> None:
    subject = policy(f"example-{seed}")
    prover = Prover(subject)
    dead = {finding.id for finding in prover.dead_rules()}
    for rule in subject.model.enforced:
        example = prover.example_of(rule.id)
        assert (example is None) == (rule.id in dead), rule
        if example is not None:
            assert example.because.id == rule.id and example.because.origin is Origin.RULE


@pytest.mark.parametrize("seed", range(20))
def test_the_box_cover_and_z3_agree(seed: int) -> None:
    subject = policy(f"engines-{seed}")
    boxes, z3 = Prover(subject, engine="boxes"), Prover(subject, engine="z3")
    assert list(boxes.dead_rules()) == list(z3.dead_rules())
    assert list(boxes.idle_guards()) == list(z3.idle_guards())
    for verdict in Verdict:
        one, two = boxes.find(Match(), None, [verdict]), z3.find(Match(), None, [verdict])
        assert (one is None) == (two is None)
