"""Example flows say what their answer turns on and no more, and what is pasted from them still passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.flow import UNKNOWN, TunnelState
from proxy.policy import Policy, load
from proxy.policy.coverage import measure
from proxy.policy.diff import compare
from proxy.policy.examples import read_suite, run
from proxy.policy.files import load_policy
from proxy.policy.prove import Prover
from proxy.policy.telling import tell_changes, tell_finding

POLICIES = sorted((Path(__file__).parents[2] / "policies").glob("*.policy.yaml"))
NARROW = b"""\
policy: 1
name: narrow
define:
  zones: [corporate]
  groups: [eng, ops]
  destinations: {code: [git.corp.example]}
  windows: {office: "mon-fri 07:00-19:00"}
guards:
  - {id: big, match: {to: code, transfer: upload, size: ">10MiB"}, at_most: block}
rules:
  - {id: post, match: {to: code, group: eng, method: POST, path: /a}, verdict: tunnel, via: [hq]}
  - {id: hours, match: {to: code, group: ops, window: office}, verdict: tunnel, via: [hq]}
"""


def examples(policy: Policy) -> dict[str, str]:
    """What coverage proposes where nothing is tested."""
    return {gap.id: gap.example for gap in measure(policy, ()).gaps}


@pytest.mark.parametrize("path", [*POLICIES, None], ids=lambda path: path.stem if path else "narrow")
def test_each_example_is_short_and_is_decided_by_what_it_is_for(path: Path | None) -> None:
    policy = load_policy(path) if path else load(NARROW, "narrow.policy.yaml")
    found = examples(policy)
    assert found
    text = "policy_test: 1\npolicy: x\ntests:\n" + "".join(f"  {line}\n" for line in found.values())
    suite = read_suite(text.encode(), "x.test.yaml", policy)
    for case, line in zip(suite.cases, found.values(), strict=True):
        assert run(policy, case).failures == (), line
        noise = ("/some", "x-other", "size: 0", "somebody")
        assert len(line) < 250 and not any(word in line for word in noise), line


def test_what_decides_is_said_and_nothing_beside() -> None:
    found = examples(load(NARROW, "narrow.policy.yaml"))
    assert "group: [eng]" in found["post"] and "method: POST" in found["post"] and '"/a"' in found["post"]
    assert f"tunnels: {{hq: {TunnelState.ATTESTED}}}" in found["post"]
    assert "transfer: upload" in found["big"] and "size: " in found["big"] and "method" not in found["big"]
    assert "time: " in found["hours"] and "zone: " not in found["hours"]


def test_a_counterexample_keeps_what_the_claim_speaks_of() -> None:
    """A flow that shows something of POSTs must be seen to be one, whatever decides it."""
    claim = "{id: c, for_all: {to: code, method: POST, transfer: download, group: ops}, never: block}"
    text = f"policy_test: 1\npolicy: x\nprove:\n  - {claim}\n"
    suite = read_suite(text.encode(), "x.test.yaml", load(NARROW, "narrow.policy.yaml"))
    told = "\n".join(map(tell_finding, Prover(suite.policy, suite.claims).check(suite.claims[0])))
    assert "method POST" in told and "groups ops" in told
    assert "download" in told and "path" not in told and "content_type" not in told


def test_a_change_is_shown_by_a_flow_of_few_facts() -> None:
    old = load(NARROW, "narrow.policy.yaml")
    new = load(NARROW.replace(b", window: office}", b"}"), "narrow.policy.yaml")
    (change,) = compare(old, new)
    assert change.flow.groups == {"ops"} and change.flow.method is UNKNOWN and change.flow.size is UNKNOWN
    told = "\n".join(tell_changes([change]))
    assert "transfer" not in told and "tunnel hq attested" in told
