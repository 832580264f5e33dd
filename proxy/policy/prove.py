"""Questions about all flows at once: claims, rules that decide nothing, guards that stop nothing, routes
that change within a connection.

Every answer that names a flow has been put to the judge first; a flow on which the two disagree is an
error of the program and said so, never shown as a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from proxy.flow import Because, Flow, Origin, TunnelFact, Verdict
from proxy.policy.cover import AutoEngine, BoxEngine, Engine, Z3Engine, shadowers
from proxy.policy.duties import SCAN
from proxy.policy.evaluate import Policy
from proxy.policy.examples import Claim, word
from proxy.policy.model import Match, Rule
from proxy.policy.plain import make_plain
from proxy.policy.regions import Box, Cover, Piece, Regions, meet_all
from proxy.policy.routes import forks
from proxy.policy.space import Space

type EngineName = Literal["auto", "boxes", "z3"]


class Disagreement(AssertionError):
    """The proof and the judge differ on a flow: a fault of zonegate, to be reported."""


@dataclass(frozen=True, slots=True)
class Witness:
    """A flow that shows something, as the judge answered it."""

    flow: Flow
    tunnel: TunnelFact | None
    verdict: Verdict
    because: Because


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be: where, what, and a flow that shows it where there is one."""

    kind: Literal["claim", "dead-rule", "dead-guard", "idle-guard", "unstable-route"]
    id: str
    message: str
    where: str
    witness: Witness | None = None


class Prover:
    """All questions about one policy. The space is cut once, for the policy and the claims given."""

    def __init__(self, policy: Policy, claims: Sequence[Claim] = (), engine: EngineName = "auto") -> None:
        more = [m for claim in claims for m in (claim.for_all, claim.unless) if m is not None]
        self.policy = policy
        self.space = Space([policy.model], more)
        self.regions = Regions(self.space)
        self.pieces = tuple(self.regions.pieces())
        self.full = {name: axis.full for name, axis in self.space.axes.items()}
        self.engine = make_engine(engine, self.full)

    def check(self, claim: Claim) -> list[Finding]:
        """What speaks against a claim: nothing where it holds for all flows."""
        if claim.no_dead_rules:
            return list(self.dead_rules())
        if claim.no_idle_guards:
            return list(self.idle_guards())
        witness = self.find(claim.for_all, claim.unless, frozenset(Verdict) - claim.allowed)
        if witness is None:
            return []
        asked = [match for match in (claim.for_all, claim.unless) if match is not None]
        witness = self.plain(witness, asked)
        message = f"not so: this flow gets {word(witness.verdict)}, by {witness.because}"
        return [Finding("claim", claim.id, message, str(claim.at), witness)]

    def find(self, for_all: Match, unless: Match | None, verdicts: Iterable[Verdict]) -> Witness | None:
        """A flow that matches and gets one of the verdicts."""
        wanted = set(verdicts)
        where = list(self.regions.of_match(for_all, grants=True))
        if unless is not None:
            where = list(meet_all(where, list(self.regions.outside(unless, grants=True))))
        for piece in self.pieces:
            if piece.verdict in wanted:
                for box in meet_all(where, piece.boxes):
                    escaped = self.engine.escape(box, piece.covers)
                    if escaped is not None:
                        return self.witness(escaped, piece.verdict)
        return None

    def witness(self, box: Box, verdict: Verdict) -> Witness:
        """The example of a box, once the judge has said the same. Raises Disagreement."""
        flow, tunnel = self.space.flow(box)
        judged = self.policy.judge(flow, tunnel)
        if judged.verdict is not verdict:
            got = word(judged.verdict)
            raise Disagreement(f"proved {word(verdict)}, judged {got} for {flow}; please report this")
        return Witness(flow, tunnel, verdict, judged.because)

    def plain(self, witness: Witness, asked: Sequence[Match] = ()) -> Witness:
        """The same with fewer facts: the judge says of them what it said."""

        def is_same(flow: Flow) -> bool:
            judged = self.policy.judge(flow, witness.tunnel)
            return (judged.verdict, judged.because) == (witness.verdict, witness.because)

        return replace(witness, flow=make_plain(witness.flow, is_same, asked))

    def example_of(self, identity: str) -> Witness | None:
        """A flow that a rule or guard decides, for whoever must write a test for it."""
        for piece in self.pieces:
            if piece.because.id != identity:
                continue
            for box in piece.boxes:
                for covers in (self._admitting(piece), piece.covers):
                    escaped = self.engine.escape(box, covers) if covers else None
                    if escaped is not None and self._decides(escaped, identity):
                        return self.plain(self.witness(escaped, piece.verdict))
        return None

    def _admitting(self, piece: Piece) -> tuple[Cover, ...]:
        """For a guard, what to leave out so that a rule would admit the flow otherwise."""
        return piece.covers if piece.because.origin is Origin.RULE else ()

    def _decides(self, box: Box, identity: str) -> bool:
        flow, tunnel = self.space.flow(box)
        return self.policy.judge(flow, tunnel).because.id == identity

    def dead_rules(self) -> Iterator[Finding]:
        """Rules that no flow reaches, with the rules that stand before them."""
        by_rule: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            by_rule.setdefault(piece.because.id, []).append(piece)
        for rule in self.policy.model.enforced:
            pieces = by_rule.get(rule.id, [])
            if any(self.engine.escape(b, p.covers) is not None for p in pieces for b in p.boxes):
                continue
            yield self._dead(rule, pieces)

    def _dead(self, rule: Rule, pieces: Sequence[Piece]) -> Finding:
        boxes = [box for piece in pieces for box in piece.boxes]
        covers = [cover for piece in pieces for cover in piece.covers]
        names = [cover.because.id for cover in shadowers(self.full, boxes, covers)]
        quoted = [_called(name) for name in names if name != "impossible"]
        if not quoted:
            message = f'rule "{rule.id}" can never decide: no flow has what it matches; remove it'
        else:
            together = " together" if len(quoted) > 1 else ""
            message = f'rule "{rule.id}" can never decide: shadowed by {_and(quoted)}{together}'
        return Finding("dead-rule", rule.id, message, str(rule.at))

    def idle_guards(self) -> Iterator[Finding]:
        """Guards that stop nothing which a rule would admit; dead where no flow has what they match."""
        regions, model = self.regions, self.policy.model
        for guard, cover in zip(model.guards, regions.guards, strict=True):
            if guard.implied or self._bites(guard.at_most, cover):
                continue
            if any(self.engine.escape(box, (regions.impossible,)) is not None for box in cover.boxes):
                message = f'guard "{guard.id}" never bites: no rule admits more than it allows'
                yield Finding("idle-guard", guard.id, message, str(guard.at))
            else:
                message = f'guard "{guard.id}" can never bite: no flow has what it matches; mend or remove it'
                yield Finding("dead-guard", guard.id, message, str(guard.at))

    def _bites(self, at_most: Verdict, guard: Cover) -> bool:
        regions = self.regions
        for i, (rule, cover) in enumerate(zip(self.policy.model.enforced, regions.rules, strict=True)):
            if rule.verdict > at_most:
                before = (regions.impossible, *regions.rules[:i])
                for box in meet_all(cover.boxes, guard.boxes):
                    if self.engine.escape(box, before) is not None:
                        return True
        return False

    def unstable_routes(self) -> Iterator[Finding]:
        """Connections of which one request would go one way and another request another way."""
        for fork in forks(self.pieces, self.full):
            first, second = fork.first, fork.second
            witness = self.witness(fork.first_box, first.verdict)
            self.witness(fork.second_box, second.verdict)
            message = (
                f"one connection could take two ways, {_way(first)} and {_way(second)}; only block may "
                f"depend on the request: make {first.because.id} and {second.because.id} agree"
            )
            yield Finding("unstable-route", first.because.id, message, first.because.where, witness)


def make_engine(name: EngineName, full: dict[str, int]) -> Engine:
    """The engine of a name."""
    match name:
        case "boxes":
            return BoxEngine(full, max_steps=50_000_000)
        case "z3":
            return Z3Engine(full)
        case "auto":
            return AutoEngine(full)


def _called(identity: str) -> str:
    """An entry as its author knows it: the guard that a scan implies is written nowhere."""
    stem = identity.removeprefix(SCAN)
    return f'"{identity}"' if stem == identity else f'the scan of destination "{stem}"'


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _way(piece: Piece) -> str:
    via = f" via {', '.join(piece.via)}" if piece.via else ""
    return f"{word(piece.verdict)}{via} by {piece.because.id}"
