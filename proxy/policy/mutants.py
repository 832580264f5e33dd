"""Small faults put into a policy on purpose: a test file that no fault can slip through tests something.

A mutant is the policy with one rule dropped, one verdict changed, or one guard lifted. It is killed by a
test that fails or a claim that no longer holds. One that changes no flow's verdict is equivalent, and
nothing could kill it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from proxy.flow import Flow, Verdict
from proxy.policy.diff import compare
from proxy.policy.evaluate import Policy
from proxy.policy.examples import Suite, describe_flow, run
from proxy.policy.model import Guard, Mode, Model, Rule
from proxy.policy.prove import Prover
from proxy.policy.source import Where


@dataclass(frozen=True, slots=True)
class Mutant:
    """A policy with one fault."""

    what: str
    at: Where
    policy: Policy


@dataclass(frozen=True, slots=True)
class Survivor:
    """A fault that no test notices, and a flow on which it shows."""

    mutant: Mutant
    flow: Flow
    old: Verdict
    new: Verdict

    def __str__(self) -> str:
        change = f"{self.old.name.lower()} becomes {self.new.name.lower()}"
        return f"{self.mutant.at}: {self.mutant.what} survives: {change} for {describe_flow(self.flow)}"


def mutants(model: Model) -> Iterator[Mutant]:
    """Each rule dropped, each verdict changed to each other one, each guard and each exception lifted."""
    for i, rule in enumerate(model.rules):
        if rule.mode is Mode.ENFORCE:
            rest = (*model.rules[:i], *model.rules[i + 1 :])
            yield _mutant(f'dropping rule "{rule.id}"', rule.at, replace(model, rules=rest))
            for verdict in Verdict:
                if verdict is not rule.verdict:
                    yield _flipped(model, i, rule, verdict)
    for i, guard in enumerate(model.guards):
        if guard.implied:
            continue
        others = (*model.guards[:i], *model.guards[i + 1 :])
        yield _mutant(f'lifting guard "{guard.id}"', guard.at, replace(model, guards=others))
        if guard.unless is not None:
            yield _without_exception(model, i, guard)


def _flipped(model: Model, i: int, rule: Rule, verdict: Verdict) -> Mutant:
    via = rule.via if verdict is Verdict.TUNNEL else None
    rules = (*model.rules[:i], replace(rule, verdict=verdict, via=via), *model.rules[i + 1 :])
    return _mutant(f'rule "{rule.id}" saying {verdict.name.lower()}', rule.at, replace(model, rules=rules))


def _without_exception(model: Model, i: int, guard: Guard) -> Mutant:
    guards = (*model.guards[:i], replace(guard, unless=None), *model.guards[i + 1 :])
    return _mutant(f'guard "{guard.id}" without its exception', guard.at, replace(model, guards=guards))


def _mutant(what: str, at: Where, model: Model) -> Mutant:
    return Mutant(what, at, Policy(model, b""))


def survivors(suite: Suite) -> Iterator[Survivor]:
    """The faults that neither the examples nor the claims of a suite notice."""
    for mutant in mutants(suite.policy.model):
        if any(run(mutant.policy, case).failures for case in suite.cases):
            continue
        changes = compare(suite.policy, mutant.policy)
        if not changes or _refuted(suite, mutant):
            continue
        change = changes[0]
        yield Survivor(mutant, change.flow, change.old, change.new)


def _refuted(suite: Suite, mutant: Mutant) -> bool:
    claims = [claim for claim in suite.claims if not claim.no_dead_rules and not claim.no_idle_guards]
    if not claims:
        return False
    prover = Prover(mutant.policy, claims)
    return any(prover.check(claim) for claim in claims)
