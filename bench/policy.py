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
from proxy.policy.diff import Change, compare
from proxy.policy.evaluate import Policy
from proxy.policy.loader import read_model
from proxy.policy.model import Match, Model
from proxy.policy.prove import Prover

GROUPS = [f"group-{i}" for i in range(20)]
UP = TunnelFact("hq", TunnelState.ATTESTED)
SHARED = {2_000: 40}  # rules, and the destinations that people would share among them


def text(rules: int, places: int | None = None) -> bytes:
    """A policy of so many rules with two or three tests beside a destination.

    Each has a destination of its own, or they share so many, as in a file that people write; then some ask
    for the method, and each destination has its way.
    """
    rng = Random(rules)
    lines = ["policy: 1", "name: bench", "define:", "  zones: [corporate, lab]"]
    lines += [f"  groups: [{', '.join(GROUPS)}]", "  destinations:"]
    for i in range(places or rules):
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
        place = i if places is None else rng.randrange(places)
        tests = f"zone: corporate, to: place-{place}, group: {group}, protocol: {protocol}"
        if places is None:
            tests += ", port: [443, 8000-8099]"
        elif protocol == "https":
            tests += ", method: [GET, HEAD]"
        way = ", via: [branch]" if places is not None and verdict == "tunnel" and place % 2 else ""
        lines.append(f"  - {{id: rule-{i}, match: {{{tests}}}, verdict: {verdict}{way}}}")
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
        if size in SHARED:
            yield from of_people(size, SHARED[size])
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
            yield from differences(policy, source, size)


def of_people(size: int, places: int) -> Iterator[tuple[str, str]]:
    """Destinations that rules share, some rules by method, and routes that differ: all must be stable."""
    what, source = f"{size} rules to {places} places", text(size, places)
    yield f"{what}: load", f"{seconds(lambda: read_model(source, 'b')):.3f} s"
    model = read_model(source, "b")
    yield f"{what}: compile", f"{seconds(lambda: compile_model(model)):.3f} s"
    prover = Prover(Policy(model, b""))
    yield f"{what}: stable routes", f"{seconds(lambda: list(prover.unstable_routes()), 1):.2f} s"


def proofs(policy: Policy, size: int) -> Iterator[tuple[str, str]]:
    start = time.process_time()
    prover = Prover(policy)
    yield f"{size} rules: cut the space", f"{time.process_time() - start:.2f} s"
    never_direct = seconds(lambda: prover.find(Match(), None, [Verdict.DIRECT]), 1)
    yield f"{size} rules: never direct", f"{never_direct:.2f} s"
    yield f"{size} rules: dead rules", f"{seconds(lambda: list(prover.dead_rules()), 1):.2f} s"
    yield f"{size} rules: stable routes", f"{seconds(lambda: list(prover.unstable_routes()), 1):.2f} s"


def differences(policy: Policy, source: bytes, size: int) -> Iterator[tuple[str, str]]:
    """A verdict turned in the middle, and a guard that lets more through: every admitting rule is a row."""
    turned = source.splitlines()
    line = next(i for i, line in enumerate(turned) if b"id: rule-%d," % (size // 2) in line)
    verdicts = (b"block", b"tunnel") if b"verdict: block" in turned[line] else (b"tunnel", b"block")
    turned[line] = turned[line].replace(*verdicts)
    loosened = source.replace(b"{tunnel: attested}", b"{tunnel: [attested, stale]}")
    for what, edited in (("one rule", b"\n".join(turned)), ("one guard", loosened)):
        new = Policy(read_model(edited, "b"), b"")
        rows: list[Change] = []
        took_s = seconds(lambda new=new, rows=rows: rows.extend(compare(policy, new)), 1)  # type: ignore[misc]
        yield f"{size} rules: difference, {what}", f"{took_s:.2f} s, {len(rows)} rows"


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
