"""Findings, changes and decisions in words, and as plain values for programs.

Written for people who know nothing of solvers: what is wrong, and one flow on which it shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from proxy.flow import Because, Flow, Judgement, Missing, Stage, TunnelFact, Verdict
from proxy.policy.diff import Change
from proxy.policy.duty_diff import DutyChange
from proxy.policy.evaluate import Decision, Policy
from proxy.policy.examples import describe_flow, describe_tunnels, word
from proxy.policy.facts import ANY_TUNNEL
from proxy.policy.prove import Finding, Witness
from proxy.policy.reading import size_text


def tell_finding(finding: Finding) -> str:
    """A finding, with the flow that shows it."""
    told = f"  {finding.where}: {finding.message}" if finding.kind != "claim" else f"  {finding.message}"
    if finding.witness:
        told += f"\n    {tell_flow(finding.witness.flow, finding.witness.tunnel)}"
    return told


def tell_flow(flow: Flow, tunnel: TunnelFact | None) -> str:
    """A flow and its tunnel in one line."""
    name = f" {tunnel.name}" if tunnel and tunnel.name != ANY_TUNNEL else ""
    return f"{describe_flow(flow)}; {f'tunnel{name} {tunnel.state}' if tunnel else 'no tunnel'}"


def tell_changes(changes: Sequence[Change], duties: Sequence[DutyChange] = ()) -> Iterator[str]:
    """First whether anything is looser, then a row for each pair of deciding rules and each duty."""
    looser = [one.is_looser for one in changes] + [one.is_looser for one in duties]
    if not changes and not duties:
        yield "no flow gets another verdict"
        return
    yield f"looser: yes, {sum(looser)} of {len(looser)} changes" if any(looser) else "looser: no"
    for change in changes:
        sign = "+" if change.is_looser else "-"
        yield f"{sign} {word(change.old)} by {change.before.id} -> {word(change.new)} by {change.after.id}"
        yield f"    {tell_flow(change.flow, change.tunnel)}"
    for duty in duties:
        yield f"{'+' if duty.is_looser else '-'} {duty.text}"


def tell_decision(
    policy: Policy, flow: Flow, decision: Decision, candidates: Sequence[TunnelFact] = ()
) -> Iterator[str]:
    """What becomes of a flow and why, by the state of which tunnels; the carrier it gets and why."""
    judgement = decision.judgement
    yield f"{describe_flow(flow)}"
    if candidates:
        yield f"tunnels  {describe_tunnels(candidates)}"
    through = f" through {decision.tunnel.name}" if decision.tunnel and decision.verdict else ""
    yield f"verdict  {word(decision.verdict)}{through}"
    yield f"because  {judgement.because}{f'  ({judgement.because.where})' if judgement.because.where else ''}"
    carrier, why = carrier_of(judgement)
    yield f"carrier  {carrier}: {why}"
    for budget in judgement.budgets:
        yield f"budget   {budget.transfer} up to {size_text(budget.limit_bytes)}, by {budget.because}"
    for quota in policy.quotas(flow):
        bound = f"{quota.transfer} {size_text(quota.limit_bytes)} per {quota.per} every {quota.every}"
        yield f"quota    {bound}, of {quota.destination}"
    if scan := policy.scan(flow):
        found = [f"block {', '.join(scan.block)}"] if scan.block else []
        found += [f"report {', '.join(scan.report)}"] if scan.report else []
        yield f"scan     {'; '.join(found)}"
    for report in judgement.reports:
        yield f"report   {report}"
    yield "trace"
    yield from (f"  {line}" for line in judgement.trace)


def carrier_of(judgement: Judgement) -> tuple[str, str]:
    """What would carry a flow (relay, inspection, none yet), and what it follows from."""
    if judgement.verdict is Verdict.BLOCK:
        return "none", "the flow is blocked"
    if judgement.verdict is not None:
        return "relay", "nothing in play depends on what is inside"
    names = ", ".join(because.id for because in judgement.in_play) or "no rule"
    waits = ", ".join(sorted(judgement.waits_for))
    depend = "depends" if len(judgement.in_play) < 2 else "depend"
    if judgement.stage is Stage.REQUEST:
        return "inspection", f"{names} {depend} on {waits}"
    return "not settled yet", f"{names} {depend} on {waits}, known at {judgement.stage.name.lower()}"


def because_value(because: Because) -> dict[str, str]:
    return {"origin": str(because.origin), "id": because.id, "text": because.text, "where": because.where}


def flow_value(flow: Flow) -> dict[str, Any]:
    """The known facts of a flow as JSON would have them."""
    found: dict[str, Any] = {}
    for name in Flow.__dataclass_fields__:
        value = getattr(flow, name)
        if isinstance(value, Missing):
            continue
        if isinstance(value, frozenset):
            found[name] = sorted(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            found[name] = value
        else:
            found[name] = value.isoformat() if name == "at" else str(value)
    return found


def tunnel_value(tunnel: TunnelFact | None) -> dict[str, str] | None:
    return {"name": tunnel.name, "state": str(tunnel.state)} if tunnel else None


def witness_value(witness: Witness) -> dict[str, Any]:
    return {
        "flow": flow_value(witness.flow),
        "tunnel": tunnel_value(witness.tunnel),
        "verdict": word(witness.verdict),
        "because": because_value(witness.because),
    }


def finding_value(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "id": finding.id,
        "message": finding.message,
        "where": finding.where,
        "witness": witness_value(finding.witness) if finding.witness else None,
    }


def change_value(change: Change) -> dict[str, Any]:
    return {
        "looser": change.is_looser,
        "old": word(change.old),
        "new": word(change.new),
        "before": because_value(change.before),
        "after": because_value(change.after),
        "flow": flow_value(change.flow),
        "tunnel": tunnel_value(change.tunnel),
    }


def decision_value(flow: Flow, decision: Decision) -> dict[str, Any]:
    judgement = decision.judgement
    carrier, why = carrier_of(judgement)
    return {
        "flow": flow_value(flow),
        "tunnel": tunnel_value(decision.tunnel),
        "verdict": word(decision.verdict),
        "because": because_value(judgement.because),
        "waits_for": sorted(judgement.waits_for),
        "stage": judgement.stage.name.lower() if judgement.verdict is None else None,
        "in_play": [because_value(because) for because in judgement.in_play],
        "budgets": [{"transfer": str(b.transfer), "limit_bytes": b.limit_bytes} for b in judgement.budgets],
        "reports": list(judgement.reports),
        "carrier": carrier,
        "carrier_because": why,
        "trace": list(judgement.trace),
    }
