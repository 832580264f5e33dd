"""What a destination asks beside a verdict: what is scanned, how much may go, what is never looked into."""

# ruff: noqa: E501  # a row of a case table is one line

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import naive_policy as naive
import pytest
import random_policies as random
from test_schemas import SCHEMAS, as_editor, is_valid

from proxy.flow import FAILED, Flow, Stage, Transfer, TunnelFact, TunnelState, Verdict
from proxy.policy import Policy, Problems, load
from proxy.policy.coverage import measure
from proxy.policy.duties import unseen
from proxy.policy.duty_diff import compare_duties
from proxy.policy.facts import make_situation
from proxy.policy.inspected import Scope, inspected
from proxy.policy.lint import Site, lint
from proxy.policy.model import Quota, Scan
from proxy.policy.mutants import mutants
from proxy.policy.prove import Prover
from proxy.policy.telling import tell_decision

HEAD = """\
policy: 1
name: duties
define:
  zones: [corporate]
  patterns:
    projects: {words: [Bluebird, "project  heron"]}
  destinations:
    code: [git.corp.example]
"""
ALL = "rules:\n  - {id: all, match: {}, verdict: tunnel}\n"
UP = TunnelFact("hq", TunnelState.ATTESTED)
SHARING = (
    '    sharing: {to: ["*.drop.example", 192.0.2.0/24], scan: {block: [card-numbers], report: [projects]}}\n'
)


def policy(destinations: str, body: str = ALL) -> Policy:
    return load((HEAD + destinations + body).encode(), "duties.policy.yaml")


def problems(destinations: str, body: str = ALL) -> str:
    with pytest.raises(Problems) as raised:
        policy(destinations, body)
    return str(raised.value)


def flow(made: Policy, **facts: str) -> Flow:
    return make_situation(made.model, {key: (value,) for key, value in facts.items()}).flow


# -- scans -------------------------------------------------------------------------------------------


def test_a_scan_is_looked_up_by_name_and_by_address() -> None:
    made = policy(SHARING)
    wanted = Scan(("card-numbers",), ("projects",))
    assert made.scan(flow(made, host="a.drop.example")) == wanted
    assert made.scan(flow(made, host="192.0.2.7")) == wanted
    assert made.scan(flow(made, host="a.other.example", address="192.0.2.7")) == wanted
    assert made.scan(flow(made, host="drop.example")) is None
    assert made.model.patterns[0].words == ("Bluebird", "project heron")


def test_destinations_that_overlap_add_up_and_block_wins() -> None:
    made = policy(SHARING + "    one: {to: a.drop.example, scan: [projects, iban]}\n")
    found = made.scan(flow(made, host="a.drop.example"))
    assert found == Scan(("card-numbers", "projects", "iban"), ())


def test_what_goes_where_something_is_scanned_waits_for_its_requests() -> None:
    made = policy(SHARING)
    asked = made.judge(flow(made, host="a.drop.example"), UP)
    assert (asked.verdict, asked.stage) == (None, Stage.REQUEST)
    assert [because.id for because in asked.in_play] == ["scan:sharing"]
    assert made.judge(flow(made, host="a.drop.example", method="POST"), UP).verdict is Verdict.TUNNEL
    assert made.judge(flow(made, host="git.corp.example"), UP).verdict is Verdict.TUNNEL
    failed = replace(flow(made, host="a.drop.example"), method=FAILED)
    assert made.judge(failed, UP).verdict is None
    lines = list(
        tell_decision(
            made, flow(made, host="a.drop.example"), made.decide(flow(made, host="a.drop.example"), [UP])
        )
    )
    assert "scan     block card-numbers; report projects" in lines
    assert any(line.startswith("carrier  inspection: scan:sharing") for line in lines)


def test_what_is_scanned_keeps_the_bound_on_its_size() -> None:
    """Addresses of one name that have other bounds are judged otherwise, and are not taken for each other."""
    made = policy(
        SHARING,
        "guards:\n  - {id: small, match: {to: sharing, transfer: upload, size: '>1KiB'}, at_most: block}\n"
        + ALL,
    )
    judged = made.judge(flow(made, host="a.drop.example"), UP)
    assert judged.verdict is None and [budget.transfer for budget in judged.budgets] == [Transfer.UPLOAD]


def test_what_cannot_be_scanned_does_not_go_unless_it_is_only_reported() -> None:
    made = policy(SHARING)
    for protocol in ("ssh", "tls", "tcp", "quic"):
        judged = made.judge(flow(made, host="a.drop.example", protocol=protocol), UP)
        assert (judged.verdict, judged.because.id) == (Verdict.BLOCK, "scan:sharing"), protocol
    reported = policy(SHARING.replace("block: [card-numbers], ", ""))
    assert reported.judge(flow(reported, host="a.drop.example", protocol="ssh"), UP).verdict is Verdict.TUNNEL


def test_proofs_know_what_a_scan_keeps_out_and_nobody_has_to_test_it() -> None:
    made = policy(SHARING)
    prover = Prover(made)
    assert not list(prover.dead_rules()) and not list(prover.idle_guards())
    assert prover.example_of("all") is not None
    assert not [gap.id for gap in measure(made, {"all"}).gaps]
    assert not [one.what for one in mutants(made.model) if "scan:" in one.what]
    assert not lint(policy(SHARING.replace(", 192.0.2.0/24", "")))


# -- quotas ------------------------------------------------------------------------------------------


def test_quotas_of_a_destination() -> None:
    made = policy(
        '    bulk: {to: "*.bulk.example", quota: {upload: 1GiB, download: 2GiB, per: user, every: day}}\n'
        "    one: {to: a.bulk.example, quota: [{upload: 1MiB, per: zone, every: hour}]}\n"
    )
    assert made.quotas(flow(made, host="a.bulk.example")) == (
        Quota("bulk", Transfer.UPLOAD, 1 << 30, "user", "day"),
        Quota("bulk", Transfer.DOWNLOAD, 2 << 30, "user", "day"),
        Quota("one", Transfer.UPLOAD, 1 << 20, "zone", "hour"),
    )
    assert not made.quotas(flow(made, host="git.corp.example"))
    assert made.judge(flow(made, host="a.bulk.example"), UP).verdict is Verdict.TUNNEL


# -- opaque ------------------------------------------------------------------------------------------

PINNED = "    pinned: {to: pinned.corp.example, opaque: true}\n"


def rules(*lines: str) -> str:
    return "rules:\n" + "".join(f"  - {{{line}}}\n" for line in lines)


def guards(*lines: str) -> str:
    return "guards:\n" + "".join(f"  - {{{line}}}\n" for line in lines) + ALL


@dataclass(frozen=True)
class Needs:
    id: str
    body: str
    says: str


NEEDS = [
    Needs("a rule that asks a method there", rules("id: r, match: {to: pinned, method: GET}, verdict: tunnel"), 'rule "r" needs method of "pinned", which is opaque; decide "pinned" in a rule above it'),
    Needs("a rule for a wildcard above it", rules('id: r, match: {to: "*.corp.example", path: /a}, verdict: block'), 'rule "r" needs path of "pinned"'),
    Needs("a rule for anywhere", rules("id: r, match: {content_type: text/html}, verdict: tunnel"), 'rule "r" needs content_type'),
    Needs("a guard with an exception", guards("id: g, match: {zone: corporate}, unless: {method: GET}, at_most: block"), 'guard "g" needs method of "pinned"'),
    Needs("a guard on a direction", guards("id: g, match: {transfer: upload}, at_most: block"), 'guard "g" needs transfer of "pinned"'),
    Needs("a bound of nothing", guards('id: g, match: {transfer: upload, size: ">=0B"}, at_most: block'), 'guard "g" needs size, transfer'),
    Needs("a bound that a request lifts", guards('id: g, match: {transfer: upload, size: ">1MiB"}, unless: {method: PUT}, at_most: block'), 'guard "g" needs method, size, transfer'),
]  # fmt: skip


@pytest.mark.parametrize("case", NEEDS, ids=lambda case: case.id)
def test_what_would_need_a_look_into_an_opaque_place_is_refused(case: Needs) -> None:
    said = problems(PINNED, case.body)
    assert case.says in said and said.startswith("duties.policy.yaml:")


FINE = [
    guards('id: g, match: {to: pinned, transfer: upload, size: ">1MiB"}, at_most: block'),
    guards("id: g, match: {to: code, method: POST}, at_most: block"),
    rules("id: p, match: {to: pinned}, verdict: tunnel", 'id: r, match: {to: "*.corp.example", method: GET}, verdict: tunnel'),
    rules("id: r, match: {method: GET}, verdict: tunnel, mode: report", "id: all, match: {}, verdict: tunnel"),
]  # fmt: skip


@pytest.mark.parametrize("body", FINE)
def test_an_opaque_place_is_never_inspected(body: str) -> None:
    made = policy(PINNED, body)
    there = flow(made, host="pinned.corp.example")
    judged = made.judge(there, UP)
    assert judged.verdict is not None and made.is_opaque(there)
    assert not made.is_opaque(flow(made, host="git.corp.example"))


def test_a_place_that_is_opaque_and_scanned_is_refused() -> None:
    assert '"pinned" is opaque and "all" is scanned' in problems(
        PINNED + '    all: {to: "*.corp.example", scan: iban}\n'
    )


# -- words -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    id: str
    text: str
    says: str
    seen: bool = False  # an editor sees it too


BAD = [
    Bad("an unknown pattern", "{to: a.example, scan: card-number}", '"card-number" is not a pattern of this policy; did you mean "card-numbers"?'),
    Bad("a scan for nothing", "{to: a.example, scan: {}}", "looks for nothing"),
    Bad("a pattern twice", "{to: a.example, scan: {block: iban, report: iban}}", '"iban" is under block and report'),
    Bad("an unknown key", "{to: a.example, scann: iban}", 'unknown key "scann"', seen=True),
    Bad("no hosts", "{scan: iban}", 'has no "to"', seen=True),
    Bad("a quota of nothing", "{to: a.example, quota: {per: user, every: day}}", "bounds nothing"),
    Bad("a quota for nobody", "{to: a.example, quota: {upload: 1GiB, every: day}}", 'has no "per"', seen=True),
    Bad("a quota in another unit", "{to: a.example, quota: {upload: 1GB, per: user, every: day}}", '"1GB" is not a size', seen=True),
    Bad("a quota for a fortnight", "{to: a.example, quota: {upload: 1GiB, per: user, every: fortnight}}", 'cannot be "fortnight"', seen=True),
    Bad("a quota for a device", "{to: a.example, quota: {upload: 1GiB, per: device, every: day}}", 'cannot be "device"', seen=True),
    Bad("two quotas for one thing", "{to: a.example, quota: [{upload: 1GiB, per: user, every: day}, {upload: 2GiB, per: user, every: day}]}", "two quotas"),
    Bad("an opaque maybe", "{to: a.example, opaque: maybe}", 'cannot be "maybe"', seen=True),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_a_mistake_is_told_with_its_cure(bad: Bad) -> None:
    text = f"    x: {bad.text}\n"
    assert bad.says in problems(text)
    assert is_valid(as_editor(HEAD + text + ALL), SCHEMAS["policy-1.json"]) is not bad.seen


@pytest.mark.parametrize(
    ("words", "says"),
    [("[abc]", "3 letters"), ("[]", "empty list"), ('["-dashed-"]', "begin and end"), (json.dumps([f"word{i}" for i in range(101)]), "at most 100")],
)  # fmt: skip
def test_words_that_would_be_found_everywhere_are_refused(words: str, says: str) -> None:
    assert says in _pattern_problems(f"p: {{words: {words}}}")
    assert "is built in" in _pattern_problems("iban: {words: [abcd]}")


def _pattern_problems(line: str) -> str:
    with pytest.raises(Problems) as raised:
        load((HEAD.replace("  destinations:", f"    {line}\n  destinations:") + ALL).encode(), "p.yaml")
    return str(raised.value)


def test_an_editor_takes_what_the_loader_takes() -> None:
    text = SHARING + PINNED + "    bulk: {to: b.example, quota: {upload: 1GiB, per: user, every: day}}\n"
    policy(text)
    assert is_valid(as_editor(HEAD + text + ALL), SCHEMAS["policy-1.json"])


# -- what an edit changes, and what the CA is bound to -----------------------------------------------

QUOTA = "    bulk: {to: b.example, quota: {upload: %s, per: user, every: day}}\n"


@dataclass(frozen=True)
class Edit:
    id: str
    old: str
    new: str
    text: str
    looser: bool


EDITS = [
    Edit("a pattern less", SHARING, SHARING.replace("block: [card-numbers], ", ""), "sharing: no longer blocks card-numbers", True),
    Edit("a pattern more", SHARING, SHARING.replace("[card-numbers]", "[card-numbers, iban]"), "sharing: blocks iban", False),
    Edit("a larger quota", QUOTA % "1GiB", QUOTA % "2GiB", "bulk: upload per user every day up to 2GiB", True),
    Edit("a smaller quota", QUOTA % "2GiB", QUOTA % "1GiB", "bulk: upload per user every day up to 1GiB", False),
    Edit("a quota that is gone", QUOTA % "1GiB", "", "bulk: no longer upload per user every day up to", True),
    Edit("a quota that is new", "", QUOTA % "1GiB", "bulk: upload per user every day up to 1GiB", False),
    Edit("a place that becomes opaque", "", PINNED, "pinned: opaque", True),
    Edit("hosts that are no longer scanned", SHARING, SHARING.replace(", 192.0.2.0/24", ""), "sharing: no longer holds 192.0.2.0/24", True),
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.id)
def test_an_edit_of_what_is_asked_is_told(edit: Edit) -> None:
    found = compare_duties(policy(edit.old).model, policy(edit.new).model)
    assert [(change.text, change.is_looser) for change in found] == [(edit.text, edit.looser)]


def test_words_taken_away_are_looser() -> None:
    less = HEAD.replace("Bluebird, ", "")
    one, two = (load((head + ALL).encode(), "p.yaml").model for head in (HEAD, less))
    assert [(c.text, c.is_looser) for c in compare_duties(one, two)] == [
        ("pattern projects: 1 words fewer", True)
    ]


SCOPES = [
    ("nothing asks", "", ALL, ((), ())),
    ("a scanned place that is granted", SHARING, ALL, (("*.drop.example",), ("192.0.2.0/24",))),
    ("a scanned place that nobody may reach", SHARING.replace(", 192.0.2.0/24", ""), rules("id: r, match: {to: code}, verdict: tunnel"), ((), ())),
    ("a rule that asks", "", rules("id: r, match: {to: code, method: GET}, verdict: tunnel", "id: s, match: {to: a.example}, verdict: tunnel"), (("git.corp.example",), ())),
    ("a guard over all", "", "guards:\n  - {id: g, match: {}, unless: {method: GET}, at_most: block}\n" + rules("id: s, match: {to: a.example}, verdict: tunnel"), (("a.example",), ())),
    ("a guard over a part", "", "guards:\n  - {id: g, match: {to: a.corp.example, method: PUT}, at_most: block}\n" + rules('id: s, match: {to: "*.corp.example"}, verdict: tunnel'), (("a.corp.example",), ())),
    ("a rule before a wider one", "", rules('id: r, match: {to: "*.a.example", path: /x}, verdict: block', "id: s, match: {to: [b.a.example, c.example]}, verdict: tunnel"), (("b.a.example",), ())),
    ("any host", "", rules("id: r, match: {method: GET}, verdict: tunnel"), (None, None)),
    ("another zone", SHARING, rules("id: r, match: {zone: corporate, method: GET}, verdict: tunnel"), ((), ())),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sentence", "destinations", "body", "wanted"), SCOPES, ids=[row[0] for row in SCOPES]
)
def test_what_the_inspection_ca_is_bound_to(
    sentence: str, destinations: str, body: str, wanted: tuple[tuple[str, ...] | None, tuple[str, ...] | None]
) -> None:
    zones = ["else"] if sentence == "another zone" else ["corporate"]
    found = inspected(policy(destinations, body).model, zones)
    names, networks = wanted
    assert found.names == names
    assert (None if found.networks is None else tuple(map(str, found.networks))) == networks
    assert bool(found) is (found != Scope((), ()))


def test_the_guide_shows_what_loads() -> None:
    guide = (Path(__file__).parents[2] / "docs/policy-guide.md").read_text()
    shown = re.search(r"```yaml\n(define:\n  patterns:.*?)```", guide, re.DOTALL)
    assert shown is not None
    text = "policy: 1\nname: guide\n" + shown[1].replace("define:", "define:\n  zones: [corporate]") + ALL
    made = load(text.encode(), "guide.yaml")
    assert made.scan(flow(made, host="a.dropzone.example")) == Scan(
        ("card-numbers", "private-keys"), ("projects",)
    )
    assert made.is_opaque(flow(made, host="pinned.bank.example"))


@pytest.mark.parametrize(
    ("destination", "granted", "escapes"),
    [
        ("{to: [192.0.2.0/24], quota: {upload: 1MiB, per: user, every: day}}", "code", True),
        ("{to: [192.0.2.0/24], scan: [iban]}", "code", True),
        ("{to: [192.0.2.0/24], opaque: true}", "code", True),
        ("{to: [192.0.2.0/24], scan: [iban]}", "place", False),
        ("{to: [git.corp.example, 192.0.2.0/24], scan: [iban]}", "code", False),
        ('{to: ["*.corp.example", 192.0.2.0/24], scan: [iban]}', "code", False),
        ('{to: ["*.corp.example", 192.0.2.0/24], scan: [iban]}', '"*.other.example"', True),
        ("{to: [a.example], scan: [iban]}", "code", False),
        ("{to: [192.0.2.0/24]}", "code", False),
    ],
)
def test_what_networks_ask_is_escaped_by_names_that_they_do_not_list(
    destination: str, granted: str, escapes: bool
) -> None:
    rules = f"rules:\n  - {{id: one, match: {{to: {granted}}}, verdict: tunnel}}\n"
    made = policy(f"    place: {destination}\n", rules)
    assert [one.name for one in unseen(made.model, "corporate")] == (["place"] if escapes else [])
    doubts = [str(one) for one in lint(made, Site(resolved_remotely=["corporate"]))]
    assert any('"place" asks of its networks is not kept' in line for line in doubts) is escapes


def test_a_zone_that_may_go_anywhere_goes_to_names_that_no_destination_lists() -> None:
    assert unseen(policy(SHARING).model, "corporate")
    assert not unseen(policy(SHARING, ALL.replace("{}", "{zone: corporate}")).model, "lab")
    assert not unseen(policy(SHARING, ALL.replace("tunnel", "block")).model, "corporate")


def test_a_scan_where_nothing_is_inspected_is_a_doubt() -> None:
    found = [str(one) for one in lint(policy(SHARING), Site(without_inspection=["corporate"]))]
    assert any('"sharing" is scanned and zone corporate has no inspection' in line for line in found)


def test_a_scan_is_called_by_its_destination_which_is_what_was_written() -> None:
    drop = '    drop: {to: ["*.drop.example"], scan: [iban]}\n'
    nets = "rules:\n  - {id: nets, match: {to: nets, port: 443}, verdict: tunnel}\n"
    warned = [str(one) for one in lint(policy(drop + "    nets: {to: 10.0.0.0/8}\n", nets))]
    said = 'destination "drop" is scanned and speaks of names only, and rule "nets" grants 10.0.0.0/8'
    assert any(said in line and line.endswith("to the destination") for line in warned), warned
    dead = "rules:\n  - {id: drop-ssh, match: {to: drop, protocol: ssh}, verdict: tunnel}\n"
    found = [one.message for one in Prover(policy(drop, dead)).dead_rules()]
    assert found == ['rule "drop-ssh" can never decide: shadowed by the scan of destination "drop"']
    assert not any("scan:" in line for line in (*warned, *found))


def test_random_policies_with_scans_are_judged_as_they_read_and_proved_as_they_are_judged() -> None:
    kept = 0
    for i in range(60):
        rng = Random(f"scans/{i}")
        keys = random.policy(rng)
        scanned = {"to": ["git.corp.example", "*.net.example", "10.20.0.0/24"], "scan": ["iban"]}
        define: dict[str, Any] = random.DEFINE
        keys["define"] = {**define, "destinations": {**define["destinations"], "scanned": scanned}}
        made = random.load(keys)
        for _ in range(60):
            there, tunnel = random.flow(rng), random.tunnel(rng)
            judged = made.judge(there, tunnel)
            assert (judged.verdict, judged.because.id) == naive.judge(made.model, there, tunnel)
            kept += judged.because.id == "scan:scanned"
        if i < 8:
            list(Prover(made).dead_rules())  # a Disagreement is raised
    assert kept > 20
