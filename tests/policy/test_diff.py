"""Differences: each that is reported is real, and none is missed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from random import Random
from typing import Any

import pytest
import random_policies as random
from test_prove import possible_flow

from proxy.addresses import special
from proxy.flow import NEVER, Flow, Protocol, TunnelFact, Verdict
from proxy.policy import Policy
from proxy.policy.diff import compare
from proxy.policy.mutants import mutants
from proxy.policy.space import Space


@pytest.mark.parametrize("seed", range(45))
def test_every_edit_that_changes_a_flow_is_reported_and_every_report_is_a_flow(seed: int) -> None:
    """Every reported flow was replayed through both judges by `compare` itself, or it raises."""
    rng = Random(f"diff-{seed}")
    keys = random.policy(rng)
    old = random.load(keys)
    edited = {**keys, "rules": edit(rng, keys["rules"], "rule"), "guards": edit(rng, keys["guards"], "guard")}
    new = random.load(edited)
    changes = compare(old, new)
    pairs = {(change.old, change.new) for change in changes}
    for change in changes:
        assert old.judge(change.flow, change.tunnel).verdict is change.old
        assert new.judge(change.flow, change.tunnel).verdict is change.new
        assert change.old is not change.new
    for _ in range(400):
        flow, tunnel = possible_flow(rng), random.tunnel(rng)
        before, after = old.judge(flow, tunnel).verdict, new.judge(flow, tunnel).verdict
        if before is not after:
            assert (before, after) in pairs, (flow, tunnel)


def edit(rng: Random, entries: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    found = [dict(entry) for entry in entries]
    made = random.rule(rng, 90) if kind == "rule" else random.guard(rng, 90)
    match rng.choice(("add", "drop", "swap", "change", "widen", "none")):
        case "add":
            found.insert(rng.randint(0, len(found)), made)
        case "drop" if found:
            found.pop(rng.randrange(len(found)))
        case "swap" if len(found) > 1:
            i, j = rng.sample(range(len(found)), 2)
            found[i], found[j] = found[j], found[i]
        case "change" if found:
            for entry in rng.sample(found, rng.randint(1, min(2, len(found)))):
                entry["match"] = random.match(rng, 3)
        case "widen" if lists := [e for e in found if any(isinstance(v, list) for v in e["match"].values())]:
            entry = rng.choice(lists)
            key = rng.choice([key for key, value in entry["match"].items() if isinstance(value, list)])
            values = list(dict.fromkeys([*entry["match"][key], *random.VALUES[key]]))
            entry["match"] = {**entry["match"], key: values[: len(entry["match"][key]) + 1]}
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_mutant_without_a_difference_is_equivalent_on_every_flow_tried(seed: int) -> None:
    rng = Random(f"mutants-{seed}")
    policy = random.load(random.policy(rng, rules=4, guards=2))
    flows = [(possible_flow(rng), random.tunnel(rng)) for _ in range(150)]
    for mutant in mutants(policy.model):
        pairs = {(change.old, change.new) for change in compare(policy, mutant.policy)}
        for flow, tunnel in flows:
            before, after = policy.judge(flow, tunnel).verdict, mutant.policy.judge(flow, tunnel).verdict
            assert before is after or (before, after) in pairs, (mutant.what, flow, tunnel)


def test_nothing_changes_where_only_words_do() -> None:
    keys = random.policy(Random("words"))
    worded = {**keys, "guards": [{**g, "because": "other words"} for g in keys["guards"]]}
    assert compare(random.load(keys), random.load(worded)) == []


def test_looser_changes_come_first() -> None:
    base = {"policy": 1, "name": "p", "define": random.DEFINE}
    old = random.load({**base, "rules": [{"id": "a", "match": {"to": "code"}, "verdict": "direct"}]})
    new = random.load({**base, "rules": [{"id": "b", "match": {"to": "8.8.8.8"}, "verdict": "direct"}]})
    first, *_, last = compare(old, new)
    assert (first.old, first.new, first.after.id) == (Verdict.BLOCK, Verdict.DIRECT, "b")
    assert (last.old, last.new, last.before.id) == (Verdict.DIRECT, Verdict.BLOCK, "a")


def everywhere(policy: Policy) -> Iterator[tuple[Flow, TunnelFact | None]]:
    """A flow for every class of the space, of addresses none and an ordinary one."""
    space = Space([policy.model])
    examples = {name: axis.examples for name, axis in space.axes.items()}
    never = {name: len(examples[name]) - 1 for name in ("method", "path", "content_type")}
    https, http, ssh = map(examples["protocol"].index, (Protocol.HTTPS, Protocol.HTTP, Protocol.SSH))
    requests = [
        {"method": i, "path": 0, "content_type": 0, "protocol": protocol}
        for i, protocol in product(range(never["method"]), (https, http))
    ]
    requests.append({**never, "protocol": ssh})
    plain = next(i for i, a in enumerate(examples["address"]) if a is not NEVER and not special(a))
    free = [name for name in space.order if name not in (*never, "protocol", "address", "size")]
    for chosen in product(*(range(len(examples[name])) for name in free)):
        at = dict(zip(free, chosen, strict=True))
        named = examples["name"][at["name"]] is not NEVER
        for request, address in product(requests, (0, plain) if named else (plain,)):
            box = {**at, **request, "address": address, "size": min(1, at["transfer"])}
            yield space.flow({name: 1 << index for name, index in box.items()})


@pytest.mark.parametrize("seed", range(12))
def test_every_mutant_that_counts_as_equivalent_is_so_on_every_class_of_flows(seed: int) -> None:
    rng = Random(f"exhaustive-{seed}")

    def match() -> dict[str, object]:
        values = {"group": "a", "to": "code", "protocol": "https", "method": "GET", "tunnel": "attested"}
        return {name: values[name] for name in rng.sample(sorted(values), rng.randint(0, 2))}

    keys = {"policy": 1, "name": "p", "define": random.DEFINE}
    guards = [{"id": "g", "match": match(), "at_most": rng.choice(("block", "tunnel"))}]
    verdicts = ("block", "tunnel", "direct")
    rules = [{"id": f"r{i}", "match": match(), "verdict": rng.choice(verdicts)} for i in range(3)]
    policy = random.load({**keys, "guards": guards, "rules": rules})
    flows = list(everywhere(policy))
    assert len(flows) > 100
    for mutant in mutants(policy.model):
        differs = any(policy.judge(*at).verdict is not mutant.policy.judge(*at).verdict for at in flows)
        assert differs == bool(compare(policy, mutant.policy)), mutant.what
