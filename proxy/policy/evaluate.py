"""The one judge: a compiled policy, a flow and a candidate tunnel in, a judgement out.

The daemon, `explain`, the tests of policies and the proofs all ask this and nothing else. It is pure: the
time is a fact of the flow, and what a rule does not state is blocked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256

from proxy.addresses import IPNetwork
from proxy.flow import (
    FAILED,
    NEVER,
    UNKNOWN,
    Because,
    Flow,
    Judgement,
    Missing,
    Origin,
    Stage,
    TunnelFact,
    TunnelState,
    Verdict,
)
from proxy.policy import trace as tracing
from proxy.policy.compile import NO_ADDRESS, NO_TUNNEL, compile_model, gate_outcome
from proxy.policy.dimensions import may_be_http
from proxy.policy.duties import Duties
from proxy.policy.model import REQUEST_ATTRIBUTES, App, Match, Model, Posture, Quota, Scan
from proxy.policy.residual import builtin, judge_partly
from proxy.policy.windows import next_edge

_NOTHING_CHANGES_FOR = timedelta(days=1)
_OF_HTTP = frozenset({"method", "path", "content_type"})


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a flow over all candidates: the judgement that counts and its tunnel.

    `verdict` None is a residual for `tunnel`, the first candidate that is not refused. Of a block,
    `tunnel` is the candidate that came closest, None where the zone has none.
    """

    verdict: Verdict | None
    judgement: Judgement
    tunnel: TunnelFact | None = None


class Policy:
    """A policy in force."""

    def __init__(self, model: Model, text: bytes, own: Iterable[IPNetwork] = ()) -> None:
        self.model = model
        self.hash = sha256(text).hexdigest()
        self._tables = compile_model(model, own)
        direct = [rule.match.zone for rule in self._tables.rules if rule.verdict is Verdict.DIRECT]
        self._duties = Duties(model.destinations)
        self._has_duties = bool(self._duties)
        self._edge: tuple[datetime, datetime, datetime | None] | None = None  # from, until, and the answer
        self._direct_zones = {zone for zones in direct for zone in (zones or model.zones)}

    def parts(self) -> list[object]:
        """The many small things that a policy is made of, for one who lets go of it a few at a time."""
        return [*self.model.rules, *self.model.destinations, *self._tables.deciders]

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def zones(self) -> tuple[str, ...]:
        return self.model.zones

    @property
    def apps(self) -> tuple[App, ...]:
        """The catalogue that a person is shown."""
        return self.model.apps

    @property
    def postures(self) -> tuple[Posture, ...]:
        return self.model.postures

    def judge(self, flow: Flow, tunnel: TunnelFact | None, *, trace: bool = False) -> Judgement:
        """What the policy says of a flow for one candidate tunnel, None where its zone has no tunnel.

        Raises ValueError for a flow whose time has no time zone.
        """
        judgement = self._judge(flow, tunnel)
        if self._has_duties and flow.method in (UNKNOWN, FAILED) and judgement.verdict:
            judgement = self._scanned(flow, judgement)
        if self._tables.reports:
            found = tuple(tracing.reports(self._tables, flow, tunnel))
            judgement = replace(judgement, reports=found) if found else judgement
        if trace:
            judgement = replace(judgement, trace=tuple(tracing.trace(self._tables, flow, tunnel)))
        return judgement

    def _scanned(self, flow: Flow, judgement: Judgement) -> Judgement:
        """What goes where something is looked for goes only by requests, each of which is judged."""
        scanning = [destination for destination in self._duties.of(flow) if destination.scan]
        if not scanning or not may_be_http(flow):
            return judgement
        because = Because(Origin.GATE, "undecided", "what is sent there is scanned")
        in_play = tuple(
            Because(Origin.GUARD, f"scan:{d.name}", "what goes there is scanned", str(d.at)) for d in scanning
        )
        return replace(
            judgement, verdict=None, because=because, in_play=in_play,
            waits_for=frozenset({"content"}), stage=Stage.REQUEST,
        )  # fmt: skip

    def scan(self, flow: Flow) -> Scan | None:
        """What is looked for in what is sent by a flow; None where nothing is."""
        return self._duties.scan(flow) if self._has_duties else None

    def quotas(self, flow: Flow) -> tuple[Quota, ...]:
        """How much a flow may carry in a period, whatever its verdict: every one of them counts."""
        if not self._has_duties:
            return ()
        return tuple(quota for destination in self._duties.of(flow) for quota in destination.quotas)

    def duties(self, flow: Flow) -> tuple[object, ...]:
        """What a flow is under as long as it is open: what is looked for in it, what it draws on."""
        if not self._has_duties:
            return ()
        scan, quotas = self.scan(flow), self.quotas(flow)
        if scan is None:
            return quotas
        names = {*scan.block, *scan.report}
        return (scan, *(pattern for pattern in self.model.patterns if pattern.name in names), *quotas)

    def is_opaque(self, flow: Flow) -> bool:
        """Whether a flow goes where nothing is ever looked into."""
        return any(destination.opaque for destination in self._duties.of(flow))

    def _judge(self, flow: Flow, tunnel: TunnelFact | None) -> Judgement:
        tables = self._tables
        name = flow.name
        if not isinstance(name, str) and (name is not NEVER or flow.address is NEVER):
            return NO_ADDRESS.judgement
        bits = tables.full
        for dimension in tables.always:
            bits &= dimension.look(flow, tunnel)
        pending = []
        for later in tables.later:
            found = later.look(flow, tunnel)
            if found is None:
                pending.append(later)
            else:
                bits &= found
        if pending or (isinstance(flow.address, Missing) and flow.address is not NEVER):
            return judge_partly(tables, flow, tunnel, bits, pending)
        return builtin(tables, flow, tables.decide(bits, tunnel)).judgement

    def decide(self, flow: Flow, candidates: Sequence[TunnelFact], *, trace: bool = False) -> Decision:
        """The first candidate, in the zone's order, that admits the flow or may yet.

        A tunnel that is not attested admits nothing, whatever the rules say. Where all refuse, the
        refusal that says most: of the tunnel that came furthest.
        """
        refused: list[Decision] = []
        for tunnel in candidates or (None,):
            judgement = self.judge(flow, tunnel, trace=trace)
            if judgement.verdict is Verdict.TUNNEL or (
                judgement.verdict is None and flow.zone not in self._direct_zones
            ):
                judgement = _through(tunnel, judgement)
            if judgement.verdict is not Verdict.BLOCK:
                return Decision(judgement.verdict, judgement, tunnel)
            refused.append(Decision(Verdict.BLOCK, judgement, tunnel))
        return furthest(refused)

    def next_edge(self, at: datetime) -> datetime | None:
        """The next instant at which a window opens or closes or a rule expires; None if never.

        Remembered, since every flow asks: it is the same for each instant before it.
        """
        if self._edge is None or not self._edge[0] <= at < self._edge[1]:
            model = self.model
            expiries = [r.expires for r in model.rules if r.expires and r.verdict is not Verdict.BLOCK]
            edge = next_edge(model.windows, expiries, model.timezone, at)
            self._edge = at, edge or at + _NOTHING_CHANGES_FOR, edge
        return self._edge[2]

    def may_be_unstable(self) -> bool:
        """Whether the rules' shape leaves room for a route that changes within a connection."""
        rules = [rule for rule in self._tables.rules if rule.verdict is not Verdict.BLOCK]
        routes = {(rule.verdict, rule.via) for rule in rules}
        if len(routes) < 2 and not any(verdict is Verdict.DIRECT for verdict, _ in routes):
            return False
        matches = [rule.match for rule in rules]
        ceilings = [guard for guard in self._tables.guards if guard.at_most is Verdict.TUNNEL]
        matches += [match for guard in ceilings for match in (guard.match, guard.unless) if match]
        return any(REQUEST_ATTRIBUTES & set(match.attributes()) for match in matches)

    def may_grant(self, flow: Flow) -> bool:
        """Whether some rule lets a flow of this zone, user, groups and protocol go, somewhere, at some time.
        Where it is False every such flow is blocked."""
        return any(
            rule.verdict is not Verdict.BLOCK and _may_concern(rule.match, flow)
            for rule in self._tables.rules
        )

    def needs_addresses(self, zone: str) -> bool:
        """Whether a named flow of the zone can be decided by its address: rules for networks that block."""
        blocking = [guard.match for guard in self._tables.guards]
        blocking += [rule.match for rule in self._tables.rules if rule.verdict is Verdict.BLOCK]
        return any(
            match.to is not None and match.to.networks and (match.zone is None or zone in match.zone)
            for match in blocking
        )


def _may_concern(match: Match, flow: Flow) -> bool:
    protocol = flow.protocol
    return (
        (match.zone is None or flow.zone in match.zone)
        and (match.user is None or flow.user in match.user)
        and (match.group is None or not flow.groups.isdisjoint(match.group))
        and (
            match.protocol is None
            or isinstance(protocol, Missing)
            or any(one.is_a(protocol) or protocol.is_a(one) for one in match.protocol)
        )
        and (may_be_http(flow) or not _OF_HTTP & set(match.attributes()))
    )


def _through(tunnel: TunnelFact | None, judgement: Judgement) -> Judgement:
    """A judgement that would use the tunnel, blocked where the tunnel cannot be used."""
    if tunnel is None:
        return judgement if judgement.verdict is None else NO_TUNNEL.judgement
    if tunnel.state is TunnelState.ATTESTED:
        return judgement
    text = f"tunnel {tunnel.name} is {tunnel.state}, not attested"
    blocked = gate_outcome("not-attested", text).judgement
    return replace(blocked, trace=judgement.trace, reports=judgement.reports)


def furthest(refused: Iterable[Decision]) -> Decision:
    """Of several refusals of one flow the one that says most."""
    return max(refused, key=_tells)


def _tells(decision: Decision) -> tuple[bool, bool]:
    """How much a refusal tells: an attested tunnel's more than a down one's, a rule's more than none."""
    attested = decision.tunnel is not None and decision.tunnel.state is TunnelState.ATTESTED
    origin = decision.judgement.because.origin
    return attested, origin is not Origin.DEFAULT and decision.judgement.because.id != "via"
