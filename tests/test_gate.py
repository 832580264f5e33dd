"""The gate: what a flow is answered, whichever way policy and leases stand, and names that must agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest
from leased import SECOND_NS, Clock, unconnected

from proxy.egress import Egress
from proxy.first_bytes import Seen
from proxy.flow import NEVER, Flow, IPAddress, Origin, Protocol, Refusal
from proxy.gate import TUNNEL_CURE, Admission, Gate, Inspect, Wait, disagreement
from proxy.messages.worker import Lease
from proxy.policy import Policy, load

POLICY = b"""
policy: 1
name: gate
define:
  zones: [corporate]
  destinations: {secret: [secret.example]}
guards:
  - {id: nothing-secret, match: {to: secret}, at_most: block, because: it is secret}
rules:
  - {id: direct, match: {to: [direct.example], port: 80}, verdict: direct}
  - {id: web, match: {to: [web.example], protocol: http}, verdict: tunnel}
  - {id: read, match: {to: [read.example], protocol: http, method: GET}, verdict: tunnel}
  - {id: any, match: {to: [any.example]}, verdict: tunnel}
  - {id: literal, match: {to: [192.0.2.0/24]}, verdict: tunnel}
"""
WINDOWED = POLICY.replace(b"define:", b'define:\n  windows: {work: ["mon-fri 08:00-18:00"]}').replace(
    b"{to: [any.example]}", b"{to: [any.example], window: work}"
)
NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


def flow(name: str = "any.example", **changes: Any) -> Flow:
    made = Flow(zone="corporate", user="alice", port=80, at=NOW, name=name, protocol=Protocol.HTTP)
    return replace(made, **changes)


def literal(address: IPAddress) -> Flow:
    return replace(flow(), name=NEVER, address=address)


def leased(name: str = "hq") -> Egress:
    clock = Clock()
    egress = unconnected(clock, name)
    egress.renew(clock.lease(tunnel=name))
    return egress


def gate(*egresses: Egress, policy: bytes = POLICY) -> Gate:
    return Gate(load(policy, "gate.policy.yaml"), egresses or (leased(),))


# -- answers -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refused:
    sentence: str
    flow: Flow
    origin: Origin
    id: str
    words: str = ""

    def __str__(self) -> str:
        return self.sentence


REFUSED = [
    Refused("what no rule matches", flow("other.example"), Origin.DEFAULT, "default"),
    Refused("what a guard holds", flow("secret.example"), Origin.GUARD, "nothing-secret", "it is secret"),
    Refused("a direct verdict: there is no direct way out", flow("direct.example"), Origin.GATE, "no-direct"),
    Refused(
        "what only inspection could know",
        flow("read.example"),
        Origin.GATE,
        "needs-inspection",
        "depends on method",
    ),
    Refused("another zone's flow", flow(zone="other"), Origin.DEFAULT, "default"),
    Refused("an address that no rule grants", literal(ip_address("203.0.113.1")), Origin.DEFAULT, "default"),
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(case: Refused) -> None:
    answer = gate().ask(case.flow)
    assert isinstance(answer, Refusal)
    assert (answer.because.origin, answer.because.id) == (case.origin, case.id)
    assert case.words in str(answer)
    assert answer.tunnel == ""


def test_what_a_rule_grants_is_admitted_through_a_leased_tunnel() -> None:
    hq = leased()
    there = gate(hq)
    answer = there.ask(flow())
    assert isinstance(answer, Admission)
    assert (answer.egress, answer.policy, answer.judgement.because.id) == (hq, there.policy, "any")
    assert hq.admits(answer.grant)


def test_a_literal_address_is_judged_by_itself() -> None:
    answer = gate().ask(literal(ip_address("192.0.2.7")))
    assert isinstance(answer, Admission)
    assert answer.judgement.because.id == "literal"


def test_what_depends_on_the_protocol_waits_for_it_and_is_then_decided() -> None:
    unknown = Flow(zone="corporate", user="alice", port=80, at=NOW, name="web.example")
    there = gate()
    assert isinstance(there.ask(unknown), Wait)
    assert isinstance(there.ask(replace(unknown, protocol=Protocol.HTTP)), Admission)
    assert isinstance(there.ask(replace(unknown, protocol=Protocol.TLS)), Refusal)


# -- tunnels -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NotUp:
    sentence: str
    lease: Lease | None
    words: str

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        NotUp("never leased", None, "no proof of its peer has come yet"),
        NotUp("it is down", Lease("hq", "down", "it was reset", "", 0, 0), "it was reset"),
        NotUp("another peer", Lease("hq", "refused", "it is not pinned", "", 0, 0), "it is not pinned"),
        NotUp("its lease has run out", Lease("hq", "attested", "well", "p", 1, 2), "its lease has run out"),
        NotUp("a state that nobody knows", Lease("hq", "splendid", "well", "", 0, 0), "failed to judge"),
    ],
    ids=str,
)
def test_without_a_valid_lease_nothing_is_admitted_and_the_reason_is_said(case: NotUp) -> None:
    egress = unconnected(Clock())
    if case.lease:
        egress.renew(case.lease)
    answer = gate(egress).ask(flow())
    assert isinstance(answer, Refusal)
    assert case.words in str(answer)
    if case.lease is None or case.lease.state != "splendid":
        assert (answer.tunnel, answer.cure) == ("hq", TUNNEL_CURE)


def test_a_guards_own_words_stand_before_the_tunnels() -> None:
    guarded = POLICY.replace(
        b"guards:\n",
        b"guards:\n  - {id: proof, match: {zone: corporate}, unless: {tunnel: attested}, at_most: block, "
        b"because: proof or nothing}\n",
    )
    answer = gate(unconnected(Clock()), policy=guarded).ask(flow())
    assert isinstance(answer, Refusal)
    assert str(answer.because) == (
        "guard proof (proof or nothing; tunnel hq is not proved: no proof of its peer has come yet)"
    )


def test_without_any_tunnel_nothing_is_admitted() -> None:
    assert isinstance(Gate(load(POLICY, "p"), ()).ask(flow()), Refusal)


def test_the_first_tunnel_that_is_proved_is_taken() -> None:
    down, up, spare = unconnected(Clock(), "first"), leased("second"), leased("third")
    answer = gate(down, up, spare).ask(flow())
    assert isinstance(answer, Admission) and answer.egress is up


def test_a_lease_that_lapses_between_the_judgement_and_the_grant_admits_nothing() -> None:
    start = Clock()
    readings: Iterator[int] = iter((start.ns, start.ns + 3 * SECOND_NS))
    last = [start.ns]

    def clock() -> int:
        last[0] = next(readings, last[0])
        return last[0]

    egress = unconnected(clock)
    egress._lease = start.lease()  # as it was renewed before the first reading
    answer = gate(egress).ask(flow())
    assert isinstance(answer, Refusal)
    assert "lease has run out" in str(answer)


# -- open flows --------------------------------------------------------------------------------------


def test_an_open_flow_is_admitted_still_while_policy_and_tunnel_allow_it() -> None:
    hq = leased()
    there = gate(hq)
    assert there.admits_still(flow(), "hq", NOW)
    assert not there.admits_still(flow(), "other", NOW), "flows are not moved to another tunnel"
    assert not there.admits_still(flow("other.example"), "hq", NOW)
    there.policy = load(
        POLICY.replace(b"id: any, match: {to: [any.example]}", b"id: any, match: {to: [x.example]}"), "p"
    )
    assert not there.admits_still(flow(), "hq", NOW)


def test_an_open_flow_is_judged_by_the_time_that_it_is_now() -> None:
    there = gate(policy=WINDOWED)
    assert there.admits_still(flow(), "hq", NOW)
    assert not there.admits_still(flow(), "hq", NOW.replace(hour=18))
    without_zone = there.ask(flow(at=NOW.replace(tzinfo=None)))  # a fault of ours, and refused
    assert isinstance(without_zone, Refusal) and without_zone.because.id == "fault"


class Broken(Policy):
    def __init__(self) -> None:
        """Nothing that a judgement would need."""


def test_a_policy_that_raises_refuses() -> None:
    there = Gate(Broken(), (leased(),))
    answer = there.ask(flow())
    assert isinstance(answer, Refusal)
    assert (answer.because.origin, answer.because.id) == (Origin.GATE, "fault")
    assert not there.admits_still(flow(), "hq", NOW)


# -- names must agree --------------------------------------------------------------------------------

V4, V6 = ip_address("192.0.2.7"), ip_address("2001:db8::7")


@dataclass(frozen=True, slots=True)
class Claim:
    sentence: str
    asked: str | IPAddress
    seen: Seen
    refused: str = ""

    def __str__(self) -> str:
        return self.sentence


def claims(name: str | None, **more: Any) -> Seen:
    return Seen(Protocol.HTTPS, name, **more)


CLAIMS = [
    Claim("the same name", "any.example", claims("any.example")),
    Claim("in other letters, with the root's dot", "any.example", claims("ANY.Example.")),
    Claim("an international name in its two forms", "xn--bcher-kva.example", claims("bücher.example")),
    Claim("nothing is claimed", "any.example", claims(None)),
    Claim("the literal address that was asked for", V4, claims("192.0.2.7")),
    Claim("an IPv6 address in another form", V6, claims("2001:DB8:0:0::7")),
    Claim("fronting: another name", "any.example", claims("evil.example"), "names-disagree"),
    Claim("a name below it", "any.example", claims("www.any.example"), "names-disagree"),
    Claim("the name with more after it", "any.example", claims("any.example.evil"), "names-disagree"),
    Claim("an address where a name was asked for", "any.example", claims("192.0.2.7"), "names-disagree"),
    Claim("a name where an address was asked for", V4, claims("any.example"), "names-disagree"),
    Claim("another address", V4, claims("192.0.2.8"), "names-disagree"),
    Claim("an address in octal", V4, claims("0300.0.2.7"), "names-disagree"),
    Claim("an address as one number", V4, claims("3221225991"), "names-disagree"),
    Claim("a mapped address", V4, claims("::ffff:192.0.2.7"), "names-disagree"),
    Claim("nothing at all where a host stands", "any.example", claims(""), "names-disagree"),
    Claim("what is no host", "any.example", claims("any.example/x"), "names-disagree"),
    Claim("a hidden name", "any.example", claims(None, hidden=True), "hidden-name"),
    Claim("what is malformed", "any.example", claims("any.example", malformed="bad"), "malformed"),
]


@pytest.mark.parametrize("case", CLAIMS, ids=str)
def test_names_must_agree(case: Claim) -> None:
    asked = flow(case.asked) if isinstance(case.asked, str) else literal(case.asked)
    found = disagreement(asked, case.seen)
    assert (found.because.id if found else "") == case.refused


def test_a_long_claim_is_not_quoted_in_full() -> None:
    found = disagreement(flow(), claims("x" * 5000))
    assert found is not None and len(str(found)) < 300


def test_what_is_opaque_is_not_inspected_whatever_a_policy_wants() -> None:
    """The loader refuses such a policy; the gate does not rest on that."""
    text = b"""
policy: 1
name: opaque
define:
  zones: [corporate]
  destinations: {site: {to: site.example, quota: {upload: 1GiB, per: user, every: day}}}
rules: [{id: read, match: {to: site, method: GET}, verdict: tunnel}]
"""
    good = load(text, "opaque.yaml")
    (site,) = good.model.destinations
    pinned = Policy(replace(good.model, destinations=(replace(site, opaque=True),)), text)
    there = replace(flow("site.example"), protocol=Protocol.HTTPS)
    assert isinstance(Gate(good, (leased(),), inspects=True).ask(there), Inspect)
    answer = Gate(pinned, (leased(),), inspects=True).ask(there)
    assert isinstance(answer, Refusal) and answer.because.id == "needs-inspection"
