"""Which rules and guards no test flow was decided by, each with a flow that would be, ready to paste."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from proxy.flow import Missing, TunnelFact
from proxy.policy.evaluate import Policy
from proxy.policy.examples import word
from proxy.policy.facts import ANY_TUNNEL, ANYBODY
from proxy.policy.model import Model
from proxy.policy.prove import Prover, Witness
from proxy.policy.source import Where


@dataclass(frozen=True, slots=True)
class Gap:
    """A rule or guard that decided no test flow, and a test that it would decide."""

    id: str
    kind: str
    at: Where
    example: str

    def __str__(self) -> str:
        head = f"{self.at}: {self.kind} {self.id} decided no test flow; one that it would decide:"
        return f"{head}\n    {self.example}"


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of a policy's rules and guards decided a test flow."""

    policy: Policy
    decided: int
    total: int
    gaps: tuple[Gap, ...]

    @property
    def percent(self) -> float:
        return 100.0 * self.decided / self.total if self.total else 100.0


def measure(policy: Policy, decided: Collection[str]) -> Coverage:
    """The coverage by the ids that decided some flow. What can decide none is not counted: see `prove`."""
    model = policy.model
    entries = [("guard", g) for g in model.guards if not g.implied] + [("rule", r) for r in model.enforced]
    missing = [(kind, entry) for kind, entry in entries if entry.id not in decided]
    prover = Prover(policy) if missing else None
    gaps = []
    for kind, entry in missing:
        witness = prover.example_of(entry.id) if prover else None
        if witness is not None:
            gaps.append(Gap(entry.id, kind, entry.at, paste(witness, model)))
    total = len(entries) - len(missing) + len(gaps)
    return Coverage(policy, total - len(gaps), total, tuple(gaps))


def paste(witness: Witness, model: Model) -> str:
    """A flow as a line of a test file."""
    facts = ", ".join(f"{key}: {value}" for key, value in _facts(witness, model))
    identity = witness.because.id
    verdict = word(witness.verdict)
    return f"- {{id: {identity} decides, flow: {{{facts}}}, expect: {verdict}, by: {identity}}}"


def _facts(witness: Witness, model: Model) -> Iterator[tuple[str, str]]:
    """What must be said: not the only zone, nor the time where no hour or day matters."""
    flow = witness.flow
    if len(model.zones) > 1:
        yield "zone", flow.zone
    if flow.user != ANYBODY:
        yield "user", flow.user
    for key, members in (("group", flow.groups), ("posture", flow.postures)):
        if members:
            yield key, f"[{', '.join(sorted(members))}]"
    yield "host", flow.name if isinstance(flow.name, str) else f'"{flow.address}"'
    if isinstance(flow.name, str) and not isinstance(flow.address, Missing):
        yield "address", f'"{flow.address}"'
    yield "port", str(flow.port)
    yield "protocol", str(flow.protocol)
    yield _tunnel(witness.tunnel)
    for key in ("device", "method", "path", "content_type", "transfer"):
        value = getattr(flow, key)
        if not isinstance(value, Missing):
            yield key, f'"{value}"' if "/" in value else str(value)
    if not isinstance(flow.size, Missing):
        yield "size", str(flow.size)
    if model.windows or any(rule.expires for rule in model.rules):
        yield "time", f'"{flow.at.astimezone(model.timezone):%Y-%m-%d %H:%M}"'


def _tunnel(tunnel: TunnelFact | None) -> tuple[str, str]:
    if tunnel is None:
        return "tunnel", "none"
    if tunnel.name == ANY_TUNNEL:
        return "tunnel", str(tunnel.state)
    return "tunnels", f"{{{tunnel.name}: {tunnel.state}}}"
