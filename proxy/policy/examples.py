"""Policy tests: a file of example flows with the verdict that each must get, and claims to be proved.

Reads the file into values and runs the examples through the one judge. The claims are answered by
`prove`. Opens no file: whoever calls it reads the policy that the test file names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from proxy.flow import Because, Flow, Missing, Origin, TunnelFact, Verdict
from proxy.policy import facts as said
from proxy.policy.evaluate import Decision, Policy
from proxy.policy.grammar import MATCH as MATCH_KEYS
from proxy.policy.grammar import Key, Table, choice, many, named, required, table, text
from proxy.policy.kinds import refuse_other_kinds
from proxy.policy.matching import MatchReader, Vocabulary
from proxy.policy.model import Match
from proxy.policy.reading import Reading
from proxy.policy.source import Map, Node, Scalar, Where

EXPECTATIONS: Mapping[str, Verdict | None] = {
    "block": Verdict.BLOCK,
    "tunnel": Verdict.TUNNEL,
    "direct": Verdict.DIRECT,
    "undetermined": None,
}
_VALUE = {"anyOf": [{"type": "string"}, {"type": "number"}]}
_FACTS: Table = {
    key: Key(named(choice("attested", "stale", "down"), ".") if key == "tunnels" else many(_VALUE), doc)
    for key, doc in said.KEYS.items()
}
CASE: Table = {
    "id": Key(text(), "a sentence that says what is expected", required=True),
    "flow": Key(table(_FACTS), "the facts of the flow, beside what is given for all"),
    "each": Key(
        named({"type": "array", "items": _VALUE, "minItems": 1}, "."), "facts that take each value in turn"
    ),
    "expect": Key(choice(*EXPECTATIONS), "the verdict", required=True),
    "by": Key(text(), "the rule, guard or built-in reason that must have decided"),
    "through": Key(text(), "the tunnel that must carry it"),
}
CLAIM: Table = {
    "id": Key(text(), "what is claimed", required=True),
    "for_all": Key(table(MATCH_KEYS), "the flows that it is claimed of; all where it is not given"),
    "except": Key(table(MATCH_KEYS), "but these"),
    "never": Key(many(choice("block", "tunnel", "direct")), "verdicts that none of them gets"),
    "only": Key(many(choice("block", "tunnel", "direct")), "verdicts, of which each of them gets one"),
    "no_dead_rules": Key({"enum": [True, "true"]}, "every rule decides some flow"),
    "no_idle_guards": Key({"enum": [True, "true"]}, "every guard stops some flow that a rule admits"),
}
SUITE: Table = {
    "policy_test": Key({"enum": [1, "1"]}, "the version of this format", required=True),
    "policy": Key(text(), "the policy, relative to this file", required=True),
    "given": Key(table(_FACTS), "facts of every flow that does not say otherwise"),
    "tests": Key({"type": "array", "items": table(CASE)}, "example flows"),
    "prove": Key({"type": "array", "items": table(CLAIM)}, "claims over all flows"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One example: a situation and what must become of it."""

    id: str
    facts: Mapping[str, tuple[str, ...]]
    situation: said.Situation
    expect: Verdict | None
    by: str
    through: str
    at: Where


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim over all flows that match `for_all` and not `unless`; verdicts that they may get."""

    id: str
    for_all: Match
    unless: Match | None
    allowed: frozenset[Verdict]
    no_dead_rules: bool
    no_idle_guards: bool
    at: Where


@dataclass(frozen=True, slots=True)
class Suite:
    """A test file."""

    file: str
    policy: Policy
    cases: tuple[Case, ...]
    claims: tuple[Claim, ...]


def policy_path(text: bytes, filename: str) -> Scalar:
    """The path of the policy that a test file names, and where it does. Raises Problems."""
    reading = Reading(text, filename)
    refuse_other_kinds(reading, "policy_test")
    top = reading.mapping(reading.root, "the test file", SUITE, required(SUITE))
    path = reading.word(top["policy"], "the policy") if "policy" in top else None
    reading.finish()
    assert path is not None
    return path


def read_suite(text: bytes, filename: str, policy: Policy) -> Suite:
    """The tests of a file for the policy that it names. Raises Problems."""
    reading = Reading(text, filename)
    suite = _Reader(reading, policy).suite()
    reading.finish()
    return suite


class _Reader:
    def __init__(self, reading: Reading, policy: Policy) -> None:
        self.r, self.policy = reading, policy
        self.m = MatchReader(reading, Vocabulary.of(policy.model))
        self.ids: set[str] = set()
        self.given: Node | None = None

    def suite(self) -> Suite:
        top = self.r.mapping(self.r.root, "the test file", SUITE, required(SUITE))
        if "policy_test" in top:
            self.r.choice(top["policy_test"], "the version of the format", ("1",))
        self.given = top.get("given")
        given = self._facts(self.given, "given") if self.given else {}
        tests = self.r.items(top["tests"], '"tests"') if "tests" in top else ()
        claims = self.r.items(top["prove"], '"prove"') if "prove" in top else ()
        cases = [case for node in tests for case in self._cases(node, given)]
        return Suite(
            self.r.filename, self.policy, tuple(cases), tuple(c for n in claims if (c := self._claim(n)))
        )

    def _facts(self, node: Node, what: str) -> dict[str, tuple[str, ...]]:
        found = self.r.mapping(node, what, said.KEYS)
        return {key: self._values(key, value, f"{key} of {what}") for key, value in found.items()}

    def _values(self, key: str, node: Node, what: str) -> tuple[str, ...]:
        if key == "tunnels" and isinstance(node, Map):
            return tuple(f"{name.text}={self.r.text(value, what)}" for name, value in node.entries)
        return self.r.texts(node, what)

    def _cases(self, node: Node, given: Mapping[str, tuple[str, ...]]) -> Iterator[Case]:
        found = self.r.mapping(node, "a test", CASE, required(CASE))
        name = self._id(found)
        expect = self.r.choice(found["expect"], "expect", EXPECTATIONS) if "expect" in found else None
        if name is None or expect is None:
            return
        what = f'test "{name}"'
        own = self._facts(found["flow"], f"flow of {what}") if "flow" in found else {}
        by = self.r.text(found["by"], "by") if "by" in found else ""
        through = self.r.text(found["through"], "through") if "through" in found else ""
        self._check_by(found.get("by"), by or "")
        for suffix, each in self._each(found.get("each"), what):
            facts = {**given, **own, **each}
            if "tunnels" in own and "tunnel" not in own:
                facts.pop("tunnel", None)
            try:
                situation = said.make_situation(self.policy.model, facts)
            except said.FactError as error:
                self._wrong(error, what, node, found)
                return
            yield Case(
                name + suffix, facts, situation, EXPECTATIONS[expect], by or "", through or "", node.at
            )

    def _wrong(self, error: said.FactError, what: str, test: Node, found: Mapping[str, Node]) -> None:
        """A problem where the fact was written; what is given for all is said once, and not for each test."""
        for place in (found.get("each"), found.get("flow"), self.given):
            if isinstance(place, Map) and (value := place.get(error.key)) is not None:
                self.r.problem(value, f"{'given' if place is self.given else what}: {error}")
                return
        self.r.problem(test, f"{what}: {error}")

    def _id(self, found: Mapping[str, Node]) -> str | None:
        word = self.r.word(found["id"], "id") if "id" in found else None
        if word and word.text in self.ids:
            self.r.problem(word, f'id "{word.text}" is taken; choose another')
        if word:
            self.ids.add(word.text)
        return word.text if word else None

    def _check_by(self, node: Node | None, by: str) -> None:
        model = self.policy.model
        known = [entry.id for entry in (*model.guards, *model.rules)]
        built_in = (
            "default",
            "rebinding",
            "special-purpose",
            "via",
            "no-tunnel",
            "not-attested",
            "undecided",
        )
        if node is not None and by and by not in (*known, *built_in):
            self.r.problem(node, f'"{by}" is not a rule or guard of {model.name}; write an id of the policy')

    def _each(self, node: Node | None, what: str) -> Iterator[tuple[str, dict[str, tuple[str, ...]]]]:
        if node is None:
            yield "", {}
            return
        found = self.r.mapping(node, f"each of {what}", said.KEYS)
        values = {key: self.r.texts(value, f"{key} of each") for key, value in found.items()}
        for chosen in product(*values.values()):
            pairs = dict(zip(values, chosen, strict=True))
            suffix = ",".join(f"{key}={value}" for key, value in pairs.items())
            yield f"[{suffix}]", {key: (value,) for key, value in pairs.items()}

    def _claim(self, node: Node) -> Claim | None:
        found = self.r.mapping(node, "a claim", CLAIM, required(CLAIM))
        name = self._id(found)
        for_all = self.m.match(found["for_all"], "for_all") if "for_all" in found else Match()
        unless = self.m.match(found["except"], "except") if "except" in found else None
        kinds = [key for key in ("never", "only", "no_dead_rules", "no_idle_guards") if key in found]
        if len(kinds) != 1:
            self.r.problem(
                node, "a claim has one of never, only, no_dead_rules and no_idle_guards; write one"
            )
            return None
        kind = kinds[0]
        allowed = frozenset(Verdict)
        if kind in ("never", "only"):
            words = self.r.words(found[kind], kind)
            verdicts = {EXPECTATIONS[w.text] for w in words if self._is_verdict(w, kind)}
            allowed = frozenset(v for v in Verdict if (v in verdicts) == (kind == "only"))
        else:
            self.r.choice(found[kind], kind, ("true",))
        if name is None or for_all is None:
            return None
        return Claim(
            name, for_all, unless, allowed, kind == "no_dead_rules", kind == "no_idle_guards", node.at
        )

    def _is_verdict(self, word: Scalar, kind: str) -> bool:
        return self.r.choice(word, kind, ("block", "tunnel", "direct")) is not None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an example."""

    case: Case
    decision: Decision
    failures: tuple[str, ...]

    @property
    def because(self) -> Because:
        return self.decision.judgement.because


def run(policy: Policy, case: Case, *, trace: bool = False) -> Result:
    """One example through the judge."""
    situation = case.situation
    decision = policy.decide(situation.flow, situation.candidates, trace=trace)
    got, because = decision.verdict, decision.judgement.because
    failures = []
    if got is not case.expect:
        failures.append(f"expected {word(case.expect)}, got {word(got)}, by {because}")
    if case.by and because.id != case.by:
        failures.append(f"expected it by {case.by}, it was by {because}")
    if case.through and (decision.tunnel is None or decision.tunnel.name != case.through):
        carried = decision.tunnel.name if decision.tunnel else "no tunnel"
        failures.append(f"expected it through {case.through}, it went through {carried}")
    return Result(case, decision, tuple(failures))


def word(verdict: Verdict | None) -> str:
    """A verdict as policies write it."""
    return "undetermined" if verdict is None else verdict.name.lower()


def describe(policy: Policy, case: Case) -> str:
    """A failed example for its author: the flow, expected and got, and the way to the verdict."""
    result = run(policy, case, trace=True)
    lines = [f"{case.at}: {case.id}", f"  flow      {describe_flow(case.situation.flow)}"]
    if case.situation.candidates:
        lines.append(f"  tunnels   {describe_tunnels(case.situation.candidates)}")
    lines += [f"  {failure}" for failure in result.failures]
    if result.because.where:
        lines.append(f"  decided   {result.because.where}")
    places = {entry.id: entry.at for entry in (*policy.model.guards, *policy.model.rules)}
    lines.append("  the way to it:")
    for step in result.decision.judgement.trace:
        identity = step.split(":")[0].partition(" ")[2]
        at = f"  ({places[identity]})" if identity in places else ""
        lines.append(f"    {step}{at}")
    return "\n".join(lines)


def describe_tunnels(tunnels: Iterable[TunnelFact]) -> str:
    """Tunnels with their states, in one line."""
    return ", ".join(f"{tunnel.name} ({tunnel.state})" for tunnel in tunnels)


def describe_flow(flow: Flow) -> str:
    """A flow in one line, without what is not known of it."""
    protocol = flow.protocol.value if not isinstance(flow.protocol, Missing) else "?"
    parts = [f"{flow.zone}: {flow.user} to {flow.destination} by {protocol}"]
    if flow.groups:
        parts.append(f"groups {', '.join(sorted(flow.groups))}")
    if flow.postures:
        parts.append(f"postures {', '.join(sorted(flow.postures))}")
    if isinstance(flow.name, str) and not isinstance(flow.address, Missing):
        parts.append(f"at {flow.address}")
    named = {"device": flow.device, "method": flow.method, "path": flow.path}
    named |= {"content_type": flow.content_type, "transfer": flow.transfer}
    parts += [f"{key} {value}" for key, value in named.items() if not isinstance(value, Missing)]
    if not isinstance(flow.size, Missing):
        parts.append(f"size {flow.size} B")
    return "; ".join(parts) + f"; {flow.at:%a %Y-%m-%d %H:%M} UTC"


def covered(results: list[Result]) -> frozenset[str]:
    """The ids of the rules and guards that decided some example."""
    kinds = (Origin.RULE, Origin.GUARD)
    return frozenset(r.because.id for r in results if r.because.origin in kinds)
