"""How fast policies load, compile, answer and are proved: a table, in CPU time of one core.

No thresholds here; what a machine can do is for people to judge.

python bench/policy.py [--quick]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from random import Random

from rich.console import Console
from rich.table import Table

from proxy.flow import NEVER, Flow, Protocol, TunnelFact, TunnelState, Verdict
from proxy.policy.compile import compile_model
from proxy.policy.evaluate import Policy
from proxy.policy.loader import read_model
from proxy.policy.model import Match, Model
from proxy.policy.prove import Prover

GROUPS = [f"group-{i}" for i in range(20)]
UP = TunnelFact("hq", TunnelState.ATTESTED)


def text(rules: int) -> bytes:
    """A policy of so many rules, each with a destination of its own and two or three more tests."""
    rng = Random(rules)
    lines = ["policy: 1", "name: bench", "define:", "  zones: [corporate, lab]"]
    lines += [f"  groups: [{', '.join(GROUPS)}]", "  destinations:"]
    for i in range(rules):
        names = f'host-{i}.corp.example, "*.app-{i}.corp.example"'
        network = f", 10.{i >> 8 & 255}.{i & 255}.0/24" if i % 4 == 0 else ""
        lines.append(f"    place-{i}: [{names}{network}]")
    lines += [
        "guards:",
        "  - {id: proof, match: {zone: corporate}, unless: {tunnel: attested}, at_most: block}",
        "  - {id: never-direct, match: {zone: corporate}, at_most: tunnel}",
        "rules:",
    ]
    for i in range(rules):
        group, protocol = rng.choice(GROUPS), rng.choice(("https", "ssh", "[http, https]", "tls"))
        verdict = rng.choice(("tunnel", "tunnel", "tunnel", "block"))
        tests = (
            f"zone: corporate, to: place-{i}, group: {group}, protocol: {protocol}, port: [443, 8000-8099]"
        )
        lines.append(f"  - {{id: rule-{i}, match: {{{tests}}}, verdict: {verdict}}}")
    return "\n".join(lines).encode()


def flows(rules: int, count: int) -> list[Flow]:
    rng = Random(rules + 1)
    return [
        Flow(
            zone="corporate",
            user="somebody",
            port=443,
            at=datetime(2026, 1, 7, 10, tzinfo=UTC),
            groups=frozenset(rng.sample(GROUPS, 3)),
            name=f"host-{rng.randrange(rules)}.corp.example",
            address=NEVER,
            protocol=Protocol.HTTPS,
            method=NEVER,
            path=NEVER,
            content_type=NEVER,
            transfer=NEVER,
            size=NEVER,
        )
        for _ in range(count)
    ]


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """The best of some runs: what the machine can do when nobody else wants it."""
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def decisions_per_s(policy: Policy, sample: list[Flow]) -> float:
    judge = policy.judge

    def work() -> None:
        for flow in sample:
            judge(flow, UP)

    return len(sample) / seconds(work, 5)


def rows(quick: bool) -> Iterator[tuple[str, str]]:
    for size in (10, 100, 2_000, 10_000):
        if quick and size > 100:
            continue
        source = text(size)
        model = None if len(source) > 1 << 20 else read_model(source, "bench.yaml")
        if model is None:
            model = merged_model(size)
            yield f"{size} rules: size", f"{len(source) / 1e6:.1f} MB (over the limit of one file)"
        else:
            yield f"{size} rules: load", f"{seconds(lambda s=source: read_model(s, 'b')):.3f} s"  # type: ignore[misc]
        yield f"{size} rules: compile", f"{seconds(lambda m=model: compile_model(m)):.3f} s"  # type: ignore[misc]
        policy = Policy(model, b"")
        yield f"{size} rules: decisions", f"{decisions_per_s(policy, flows(size, 20_000)):,.0f} /s"
        if size <= 2_000:
            yield from proofs(policy, size)


def proofs(policy: Policy, size: int) -> Iterator[tuple[str, str]]:
    start = time.process_time()
    prover = Prover(policy)
    yield f"{size} rules: cut the space", f"{time.process_time() - start:.2f} s"
    never_direct = seconds(lambda: prover.find(Match(), None, [Verdict.DIRECT]), 1)
    yield f"{size} rules: never direct", f"{never_direct:.2f} s"
    yield f"{size} rules: dead rules", f"{seconds(lambda: list(prover.dead_rules()), 1):.2f} s"


def merged_model(rules: int) -> Model:
    """A model too long for one file, put together from parts of one."""
    half = read_model(text(rules // 4), "bench.yaml")
    copies = [
        replace(rule, id=f"{rule.id}-{n}", match=replace(rule.match, user=(f"user-{n}",)))
        for n in range(4)
        for rule in half.rules
    ]
    return replace(half, rules=tuple(copies))


def main() -> None:
    table = Table("what", "figure", title="policies, one core")
    for what, figure in rows("--quick" in sys.argv[1:]):
        table.add_row(what, figure)
    Console().print(table)


if __name__ == "__main__":
    main()
