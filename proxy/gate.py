"""The gate: a flow in, an admission or a refusal out, or what must be known first.

Asks the policy for each candidate tunnel of the zone, and the egress for a lease; decides nothing beside
them. Fails closed: whatever raises in here refuses. Touches no socket.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from proxy.addresses import parse_host
from proxy.egress import Egress, Grant
from proxy.first_bytes import Seen
from proxy.flow import (
    NEVER,
    UNKNOWN,
    Because,
    Flow,
    IPAddress,
    Judgement,
    Origin,
    Protocol,
    Refusal,
    Stage,
    Transfer,
    TunnelState,
    Verdict,
)
from proxy.policy import Policy
from proxy.policy.evaluate import Decision, furthest

INSPECTED = (Protocol.HTTP, Protocol.HTTPS)
NOTHING_GRANTED = "nothing-granted"
LOCK_CURE = "who locked it can open it: zonegate unlock"
TUNNEL_CURE = "see `zonegate status`; it opens by itself when the tunnel is back"


@dataclass(frozen=True, slots=True)
class Admission:
    """A flow may go, through this egress and under this right; a named one whose addresses were judged here
    to these and no others."""

    egress: Egress
    grant: Grant
    judgement: Judgement
    policy: Policy
    addresses: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class NeedsAddress:
    """Not decided: the name is to be resolved through this egress, and asked again with each address."""

    egress: Egress
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class Inspect:
    """Not decided by the connection: its requests have to be looked at, or what they are answered with.

    `judgement.in_play` names the rules and guards that want it; it would go through this egress, a named one
    whose addresses were judged here to these and no others.
    """

    egress: Egress
    grant: Grant
    judgement: Judgement
    policy: Policy
    addresses: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Not decided: the protocol must be proved by the client's first bytes."""

    judgement: Judgement


type Answer = Admission | Refusal | Wait | Inspect | NeedsAddress


class Gate:
    """The judge of one zone's flows. `policy` may be replaced at any time: one reference is swapped.

    While it is `locked`, which says by whom and why, nothing is admitted.
    """

    def __init__(self, policy: Policy, egresses: Sequence[Egress], *, inspects: bool = False) -> None:
        self.policy = policy
        self.locked = ""
        self._egresses = egresses
        self._inspects = inspects

    def ask(self, flow: Flow, through: str | None = None) -> Answer:
        """What may become of a flow now, through any tunnel of the zone or through one of them."""
        try:
            return self._ask(flow, [one for one in self._egresses if through in (None, one.name)])
        except Exception as error:  # whatever is wrong in a judgement, its flow is refused
            return gate_refusal("fault", f"the gate failed to judge it ({type(error).__name__})")

    def _ask(self, flow: Flow, egresses: Sequence[Egress]) -> Answer:
        if self.locked:
            return gate_refusal("locked", self.locked, LOCK_CURE)
        policy = self.policy
        decision = _decide(policy, flow, egresses)
        judgement = decision.judgement
        tunnel = decision.tunnel.name if decision.tunnel else ""
        if decision.verdict is None:
            egress = next(egress for egress in egresses if egress.name == tunnel)
            return self._residual(flow, judgement, policy, egress)
        if decision.verdict is Verdict.BLOCK:
            proved = decision.tunnel is None or decision.tunnel.state is TunnelState.ATTESTED
            if not proved:
                return self._not_up(judgement.because, tunnel)
            return Refusal(judgement.because, ask=policy.model.owner(judgement.because))
        if decision.verdict is Verdict.DIRECT:
            return gate_refusal(
                "no-direct", "the rule sends it directly, and this zone has no direct way out"
            )
        egress = next(egress for egress in self._egresses if egress.name == tunnel)
        grant = egress.grant()
        if grant is None:
            return self._not_up(judgement.because, tunnel)
        return Admission(egress, grant, judgement, policy)

    def _residual(self, flow: Flow, judgement: Judgement, policy: Policy, egress: Egress) -> Answer:
        early = judgement.stage <= Stage.FIRST_BYTES
        if flow.protocol is UNKNOWN and (early or self._looks(flow, judgement)):
            return Wait(judgement)
        if judgement.stage is Stage.DIAL and not egress.judges_names:
            return NeedsAddress(egress, judgement)
        looks = self._inspects and not policy.is_opaque(flow)  # a policy that needs both was refused at load
        if looks and judgement.stage is Stage.REQUEST and flow.protocol in INSPECTED:
            grant = egress.grant()
            if grant is None:
                return self._not_up(judgement.because, egress.name)
            return Inspect(egress, grant, judgement, policy)
        wanted = ", ".join(sorted(judgement.waits_for))
        return gate_refusal(
            "needs-inspection",
            f"{judgement.because} depends on {wanted}, which only inspection could know",
            "ask for a rule that does not depend on it",
        )

    def _looks(self, flow: Flow, judgement: Judgement) -> bool:
        """Whether it may have to be inspected, once its protocol and its address are known."""
        return self._inspects and bool(judgement.waits_for - {"address"} or self.policy.scan(flow))

    def refuses_all(self, flow: Flow, through: Collection[str]) -> Refusal | None:
        """Why no flow of this user and protocol may go now, whatever its destination, through any of these
        tunnels; None where one may have to be judged."""
        try:
            if self.locked:
                return gate_refusal("locked", self.locked, LOCK_CURE)
            if not self.policy.may_grant(flow):
                return gate_refusal(NOTHING_GRANTED, f"no rule grants {flow.protocol} to {flow.user}")
            among = [egress for egress in self._egresses if egress.name in through]
            if any(egress.leased for egress in among):
                return None
            return self._not_up(Because(Origin.GATE, "tunnel"), among[0].name)
        except Exception as error:
            return gate_refusal("fault", f"the gate failed to judge it ({type(error).__name__})")

    def _not_up(self, because: Because, tunnel: str) -> Refusal:
        egress = next((egress for egress in self._egresses if egress.name == tunnel), None)
        words = egress.words if egress else "it is not configured"
        said = f"{because.text}; " if because.text else ""
        text = f"{said}tunnel {tunnel} is not proved: {words}"
        return Refusal(replace(because, text=text), TUNNEL_CURE, tunnel)

    def admits_still(
        self,
        flow: Flow,
        tunnel: str,
        now: datetime,
        *,
        inspected: bool = False,
        duties: tuple[object, ...] | None = None,
    ) -> bool:
        """Whether an open flow would be admitted now, through the same tunnel, by the policy in force.

        One that is inspected may be one to inspect still; an upload that goes on may not. Nor may one
        of other `duties` than it was opened under: nobody begins to scan or to count in the middle.
        """
        if duties is not None and duties != self.policy.duties(flow):
            return False
        answer = self.ask(replace(flow, at=now), tunnel)
        if isinstance(answer, Inspect):
            return inspected and flow.transfer is not Transfer.UPLOAD
        return isinstance(answer, Admission)


def _decide(policy: Policy, flow: Flow, egresses: Sequence[Egress]) -> Decision:
    """The policy's decision over these tunnels in their order.

    What resolves names itself (an mtls gateway) judges their addresses itself: a policy that needs them was
    refused at load. Elsewhere the address is a fact that is not known yet.
    """
    if all(egress.judges_names for egress in egresses):
        return policy.decide(_far(flow), [egress.fact() for egress in egresses])
    refused = []
    for egress in egresses:
        decision = policy.decide(_far(flow) if egress.judges_names else flow, [egress.fact()])
        if decision.verdict is not Verdict.BLOCK:
            return decision
        refused.append(decision)
    return furthest(refused)


def _far(flow: Flow) -> Flow:
    """A flow whose address is learnt on the far side, if it has to be: here it never is."""
    unknown = isinstance(flow.name, str) and flow.address is UNKNOWN
    return replace(flow, address=NEVER) if unknown else flow


def gate_refusal(name: str, text: str, cure: str = "") -> Refusal:
    """A refusal of the gate's own."""
    return Refusal(Because(Origin.GATE, name, text), cure)


def disagreement(flow: Flow, seen: Seen) -> Refusal | None:
    """Names must agree: what the first bytes claim must be what the program asked for."""
    if seen.malformed:
        return gate_refusal("malformed", seen.malformed)
    if seen.hidden:
        return gate_refusal(
            "hidden-name", "its TLS hides the name of the server (ECH)", "switch ECH off in the program"
        )
    if seen.claimed is None:
        return None
    asked: str | IPAddress | object = flow.name if isinstance(flow.name, str) else flow.address
    try:
        claimed = parse_host(seen.claimed)
    except ValueError:
        return gate_refusal("names-disagree", f'it claims to speak to "{seen.claimed:.80}", which is no host')
    if claimed == asked:
        return None
    return gate_refusal("names-disagree", f"it connects to {asked} and claims to speak to {claimed}")
