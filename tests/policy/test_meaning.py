"""Sentences of the language that a reader would look up, one by one."""

# ruff: noqa: E501  # a row of a case table is one line

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from proxy.flow import FAILED, UNKNOWN, Protocol, Stage, Transfer, TunnelFact, TunnelState, Verdict
from proxy.policy import Policy, load
from proxy.policy.facts import make_situation
from proxy.policy.lint import Site, lint

HEAD = """\
policy: 1
name: meaning
define:
  zones: [corporate, personal]
  groups: [a, b]
  postures: {healthy: {managed: true, os_version: ">=14"}}
  destinations:
    code: [git.corp.example]
    servers: [10.20.0.0/16]
    both: [both.corp.example, 10.30.0.0/16, 8.8.4.0/24]
"""
UP, STALE = TunnelFact("hq", TunnelState.ATTESTED), TunnelFact("hq", TunnelState.STALE)
ANY_TUNNEL = "rules:\n  - {id: all, match: {}, verdict: tunnel}\n"


def policy(body: str) -> Policy:
    return load((HEAD + body).encode(), "meaning.policy.yaml")


@dataclass(frozen=True)
class Row:
    id: str
    body: str
    facts: dict[str, Any]
    verdict: Verdict | None
    by: str
    more: dict[str, Any] = field(default_factory=dict)


def guard(keys: str) -> str:
    return f"guards:\n  - {{id: g, {keys}, at_most: block}}\n" + ANY_TUNNEL


def rule(keys: str) -> str:
    return f"rules:\n  - {{id: r, {keys}}}\n"


ROWS = [
    Row("no rule matches: block", "rules: []\n", {}, Verdict.BLOCK, "default"),
    Row("an unknown zone has nothing", ANY_TUNNEL, {}, Verdict.BLOCK, "default", {"zone": "else"}),
    Row("a grant by name", rule("match: {to: code}, verdict: tunnel"), {"host": "git.corp.example"}, Verdict.TUNNEL, "r"),
    Row("a grant of a network is not for names in it", rule("match: {to: servers}, verdict: tunnel"), {"host": "x.test", "address": "10.20.0.1"}, Verdict.BLOCK, "default"),
    Row("a guard on a network is for names in it too", guard("match: {to: 8.8.0.0/16}"), {"host": "x.test", "address": "8.8.1.1"}, Verdict.BLOCK, "g"),
    Row("a name in another destination's network", ANY_TUNNEL, {"host": "x.test", "address": "10.20.0.1"}, Verdict.BLOCK, "rebinding"),
    Row("a public network of a destination is its own too", ANY_TUNNEL, {"host": "x.test", "address": "8.8.4.4"}, Verdict.BLOCK, "rebinding"),
    Row("a name that is listed with the network", ANY_TUNNEL, {"host": "both.corp.example", "address": "10.30.0.1"}, Verdict.TUNNEL, "all"),
    Row("a name that leads to the machine itself", ANY_TUNNEL, {"host": "x.test", "address": "127.0.0.1"}, Verdict.BLOCK, "rebinding"),
    Row("a name that leads to a mapped private address", ANY_TUNNEL, {"host": "x.test", "address": "::ffff:10.0.0.1"}, Verdict.BLOCK, "rebinding"),
    Row("NAT64 is judged by the address within", ANY_TUNNEL, {"host": "64:ff9b::7f00:1"}, Verdict.BLOCK, "special-purpose"),
    Row("6to4 is judged by the address within", ANY_TUNNEL, {"host": "2002:a9fe:a9fe::1"}, Verdict.BLOCK, "special-purpose"),
    Row("a literal in a destination's network", ANY_TUNNEL, {"host": "10.20.0.1"}, Verdict.TUNNEL, "all"),
    Row("0.0.0.0/0 names no special range", rule('match: {to: 0.0.0.0/0}, verdict: tunnel'), {"host": "169.254.169.254"}, Verdict.BLOCK, "special-purpose"),
    Row("the method of ssh is never there", guard("match: {method: GET}"), {"host": "x.test", "protocol": "ssh"}, Verdict.TUNNEL, "all"),
    Row("an exception on it is unmet", guard("match: {}, unless: {method: GET}"), {"host": "x.test", "protocol": "ssh"}, Verdict.BLOCK, "g"),
    Row("a request that is not seen yet", guard("match: {method: POST}"), {"host": "x.test"}, None, "undecided"),
    Row("an amount alone is a budget, not a residual", guard('match: {size: ">1KiB"}'), {"host": "x.test"}, Verdict.TUNNEL, "all"),
    Row("a path in another form is as good as none", guard("match: {path: /admin}"), {"host": "x.test", "path": "/a/%2e%2e/admin"}, Verdict.BLOCK, "g"),
    Row("a media type has parameters and capitals", guard("match: {content_type: text/html}"), {"host": "x.test", "content_type": "Text/HTML; charset=x"}, Verdict.BLOCK, "g"),
    Row("an expired grant is gone", rule('match: {}, expires: 2026-01-06, verdict: tunnel'), {"host": "x.test"}, Verdict.BLOCK, "default"),
    Row("an expired block stays", rule('match: {}, expires: 2026-01-06, verdict: block'), {"host": "x.test"}, Verdict.BLOCK, "r"),
    Row("an expired guard stays", guard("match: {}, expires: 2026-01-06"), {"host": "x.test"}, Verdict.BLOCK, "g"),
    Row("report mode decides nothing", rule("match: {}, verdict: block, mode: report") + "  - {id: all, match: {}, verdict: tunnel}\n", {"host": "x.test"}, Verdict.TUNNEL, "all"),
    Row("two groups pass both ways", guard("match: {group: a}, unless: {group: b}"), {"host": "x.test", "group": ("a", "b")}, Verdict.TUNNEL, "all"),
    Row("tls includes https", rule("match: {protocol: tls}, verdict: tunnel"), {"host": "x.test", "protocol": "https"}, Verdict.TUNNEL, "r"),
    Row("https does not include tls", rule("match: {protocol: https}, verdict: tunnel"), {"host": "x.test", "protocol": "tls"}, Verdict.BLOCK, "default"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_meaning(row: Row) -> None:
    facts = {"zone": "corporate", "host": "x.test", **row.facts}
    subject = policy(row.body)
    words = {key: value if isinstance(value, tuple) else (value,) for key, value in facts.items()}
    flow = replace(make_situation(subject.model, words).flow, **row.more)
    judged = subject.judge(flow, UP)
    assert (judged.verdict, judged.because.id) == (row.verdict, row.by)


def situation(subject: Policy, **facts: str) -> Any:
    words = {key: (value,) for key, value in {"zone": "corporate", **facts}.items()}
    return make_situation(subject.model, words).flow


def test_a_residual_says_what_it_waits_for_and_when_it_is_known() -> None:
    subject = policy(guard("match: {protocol: ssh}"))
    flow = replace(situation(subject, host="x.test"), protocol=UNKNOWN, address=UNKNOWN)
    judged = subject.judge(flow, UP)
    assert (judged.verdict, judged.waits_for, judged.stage) == (
        None,
        frozenset({"protocol", "address"}),
        Stage.FIRST_BYTES,
    )
    assert {because.id for because in judged.in_play} == {"g", "rebinding"}
    judged = subject.judge(replace(flow, protocol=Protocol.HTTPS), UP)
    assert (judged.waits_for, judged.stage) == (frozenset({"address"}), Stage.DIAL)
    settled = replace(flow, protocol=Protocol.HTTPS, address=ip_address("1.1.1.1"))
    assert subject.judge(settled, UP).verdict is Verdict.TUNNEL
    assert subject.judge(replace(settled, address=FAILED), UP).because.id == "no-address"


def test_a_bound_on_uploads_is_the_budget_of_an_opaque_flow() -> None:
    subject = policy(guard('match: {transfer: upload, size: ">10MiB"}'))
    budgets = subject.judge(situation(subject, host="x.test"), UP).budgets
    assert [(b.transfer, b.limit_bytes, b.because.id) for b in budgets] == [(Transfer.UPLOAD, 10 << 20, "g")]


def test_what_inspection_failed_to_give_counts_as_its_strictest_value() -> None:
    subject = policy(guard("match: {method: POST}"))
    flow = situation(subject, host="x.test")
    assert subject.judge(replace(flow, method=FAILED), UP).verdict is Verdict.BLOCK


def test_candidates_are_tried_in_order_narrowed_by_via_and_only_attested_ones_carry() -> None:
    subject = policy("rules:\n  - {id: r, match: {}, verdict: tunnel, via: [hq, lab]}\n")
    flow = situation(subject, host="x.test")
    other, lab = TunnelFact("other", TunnelState.ATTESTED), TunnelFact("lab", TunnelState.ATTESTED)
    decision = subject.decide(flow, [other, STALE, lab])
    assert (decision.verdict, decision.tunnel) == (Verdict.TUNNEL, lab)
    assert subject.decide(flow, [other]).judgement.because.id == "via"
    assert subject.decide(flow, [STALE]).judgement.because.id == "not-attested"
    assert subject.decide(flow, []).judgement.because.id == "via"
    assert policy(ANY_TUNNEL).decide(flow, []).judgement.because.id == "no-tunnel"


def test_a_tunnel_that_is_called_like_a_state_is_not_in_that_state() -> None:
    subject = policy(guard("match: {}, unless: {tunnel: attested}"))
    impostor = TunnelFact("attested", TunnelState.DOWN)
    assert subject.judge(situation(subject, host="x.test"), impostor).because.id == "g"


def test_the_gates_own_addresses_are_never_reached() -> None:
    own = [ip_network("192.0.2.7/32"), ip_network("9.9.9.9/32")]
    subject = load((HEAD + ANY_TUNNEL).encode(), "meaning.policy.yaml", own)
    for host, address in (("9.9.9.9", None), ("x.test", "9.9.9.9"), ("::ffff:9.9.9.9", None)):
        facts = {"host": host} | ({"address": address} if address else {})
        assert subject.judge(situation(subject, **facts), UP).because.id == "own-address"


def test_a_rule_in_report_mode_is_recorded() -> None:
    body = (
        rule("match: {method: POST}, verdict: block, mode: report")
        + "  - {id: all, match: {}, verdict: tunnel}\n"
    )
    subject = policy(body)
    flow = situation(subject, host="x.test")
    judged = subject.judge(flow, UP)
    assert (judged.verdict, judged.reports) == (Verdict.TUNNEL, ("r: undetermined",))
    assert subject.judge(replace(flow, method="POST"), UP).reports == ("r: block",)
    assert subject.judge(replace(flow, method="GET"), UP).reports == ()


def test_addresses_are_needed_where_a_network_can_block_a_name() -> None:
    assert not policy(rule("match: {to: servers}, verdict: tunnel")).needs_addresses("corporate")
    assert policy(rule("match: {to: servers}, verdict: block")).needs_addresses("corporate")
    one = policy(guard("match: {zone: personal, to: 8.8.8.8}"))
    assert one.needs_addresses("personal") and not one.needs_addresses("corporate")


def test_postures_are_met_by_every_need_and_by_no_missing_fact() -> None:
    [healthy] = policy("rules: []\n").postures
    assert healthy.is_met({"managed": True, "os_version": "14"})
    assert healthy.is_met({"managed": "true", "os_version": "14.2.1"})
    assert not healthy.is_met({"managed": True, "os_version": "13.9"})
    assert not healthy.is_met({"managed": True})
    assert not healthy.is_met({"managed": True, "os_version": "newest"})


def test_lints_say_what_is_doubtful() -> None:
    body = (
        "guards:\n"
        "  - {id: names, match: {to: code}, unless: {group: a}, at_most: block}\n"
        "  - {id: nets, match: {to: 8.8.8.8}, expires: 2026-01-01, at_most: block}\n"
        "rules:\n"
        "  - {id: get, match: {to: code, method: GET}, verdict: tunnel}\n"
        "  - {id: rest, match: {to: code}, verdict: tunnel}\n"
        "  - {id: nets-ok, match: {to: servers}, verdict: tunnel}\n"
        "  - {id: wide, match: {to: 0.0.0.0/1}, verdict: tunnel}\n"
    )
    found = "\n".join(map(str, lint(policy(body), Site(("corporate",), ("corporate",), date(2027, 1, 1)))))
    for words in (
        'rule "get" limits method, and "rest" admits the rest',
        'guard "names" speaks of names only, and rule "nets-ok" grants 10.20.0.0/16',
        '"0.0.0.0/1" has 0.0.0.0/1',
        '"nets" expired on 2026-01-01 and still blocks',
        '"get" needs method and zone corporate has no inspection',
        '"nets" needs addresses, which the tunnel of corporate does not tell',
    ):
        assert words in found
