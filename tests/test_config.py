"""The site file: what it says, and a table of what is wrong with it, each with its place and cure."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import MAX_FLOWS, MAX_NAMES, Person, Site, Tunnel, Zone, read_site
from proxy.policy.source import Problems

FILE = Path("/etc/zonegate/zonegate.yaml")
PIN = "sha256:" + "A" * 43 + "="
GOOD = f"""\
zonegate: 1
policy: corporate.policy.yaml
zones:
  corporate: {{tunnels: [hq, branch]}}
  personal: {{tunnels: hq, audit: counts}}
tunnels:
  hq:
    kind: mtls
    gateway: gw.corp.example:8443
    ca: ca.crt
    pins: ["{PIN}"]
    certificate: /keys/me.crt
    key: me.key
  branch:
    kind: mtls
    gateway: "[2001:db8::1]:443"
    server_name: branch.corp.example
    ca: ca.crt
    pins: "{PIN}"
    certificate: me.crt
    key: me.key
    judges_addresses: true
    must_admit: "[2001:db8::5]:443"
people:
  ana: {{zones: [corporate, personal], groups: [staff]}}
  "@dev": {{zones: corporate, groups: dev}}
  "#1001": {{zones: personal}}
  "*": {{zones: personal, groups: [guest]}}
limits: {{flows: 100, names: 50}}
"""


def site(text: str = GOOD) -> Site:
    return read_site(text.encode(), FILE)


def problems(text: str) -> list[str]:
    with pytest.raises(Problems) as caught:
        site(text)
    return [str(problem) for problem in caught.value.problems]


def test_a_good_file() -> None:
    found = site()
    at = Path("/etc/zonegate")
    hq = Tunnel(
        name="hq",
        host="gw.corp.example",
        port=8443,
        server_name="gw.corp.example",
        ca=at / "ca.crt",
        pins=(PIN,),
        certificate=Path("/keys/me.crt"),
        key=at / "me.key",
        judges_addresses=False,
    )
    branch = replace(
        hq,
        name="branch",
        host=ip_address("2001:db8::1"),
        port=443,
        server_name="branch.corp.example",
        certificate=at / "me.crt",
        judges_addresses=True,
        must_admit="[2001:db8::5]:443",
    )
    assert found == Site(
        FILE,
        at / "corporate.policy.yaml",
        None,
        None,
        {
            "corporate": Zone("corporate", ("hq", "branch"), False),
            "personal": Zone("personal", ("hq",), True),
        },
        {"hq": hq, "branch": branch},
        (
            Person("ana", ("corporate", "personal"), ("staff",)),
            Person("@dev", ("corporate",), ("dev",)),
            Person("#1001", ("personal",), ()),
            Person("*", ("personal",), ("guest",)),
        ),
        {},
        100,
        50,
    )


def test_what_is_not_said_has_its_default() -> None:
    found = site(GOOD.replace("limits: {flows: 100, names: 50}\n", ""))
    assert (found.max_flows, found.max_names, found.run, found.state) == (MAX_FLOWS, MAX_NAMES, None, None)
    found = site(GOOD + "run: /run/other\nstate: state\n")
    assert (found.run, found.state) == (Path("/run/other"), Path("/etc/zonegate/state"))


@dataclass(frozen=True, slots=True)
class Wrong:
    sentence: str
    old: str
    new: str
    said: str  # a part of the only problem

    def __str__(self) -> str:
        return self.sentence


WRONG = [
    Wrong(
        "an unknown key", "limits:", "limit:", 'unknown key "limit" in the site file; did you mean "limits"?'
    ),
    Wrong("an unknown version", "zonegate: 1", "zonegate: 2", 'version of the site file cannot be "2"'),
    Wrong("no version", "zonegate: 1\n", "", 'the site file has no "zonegate"; add it'),
    Wrong("no policy", "policy: corporate.policy.yaml\n", "", 'has no "policy"'),
    Wrong("an empty policy", "corporate.policy.yaml", '""', "policy is empty"),
    Wrong(
        "a policy that is a map", "policy: corporate.policy.yaml", "policy: {a: b}", "policy must be one text"
    ),
    Wrong(
        "an unknown kind", "kind: mtls\n    gateway: gw", "kind: openvpn\n    gateway: gw", "kind of tunnel"
    ),
    Wrong("a gateway without port", "gw.corp.example:8443", "gw.corp.example", "needs a host and a port"),
    Wrong("a gateway without host", "gw.corp.example:8443", '":8443"', "needs a host and a port"),
    Wrong("a port beyond the last", "8443", "65536", "needs a host and a port"),
    Wrong("port 0", "8443", "0", "needs a host and a port"),
    Wrong("a port of other digits", "8443", "８４４３", "needs a host and a port"),
    Wrong("a port of very many digits", "8443", "9" * 5000, "needs a host and a port"),
    Wrong("IPv6 without brackets", '"[2001:db8::1]:443"', '"2001:db8::1:443"', "needs a host and a port"),
    Wrong("half a bracket", '"[2001:db8::1]:443"', '"[2001:db8::1:443"', "needs a host and a port"),
    Wrong(
        "brackets around a name",
        '"[2001:db8::1]:443"',
        '"[gw.example]:443"',
        "brackets around what is no IPv6",
    ),
    Wrong("an octal address", "gw.corp.example:8443", "0177.0.0.1:8443", "gateway of tunnel"),
    Wrong("a server name that is none", "branch.corp.example", "a_b..c", "server_name of tunnel"),
    Wrong("a pin that is none", f'["{PIN}"]', "[sha256:abc]", '"sha256:abc" is no pin'),
    Wrong("no pins", f'["{PIN}"]', "[]", "pins of tunnel"),
    Wrong("a pin twice", f'["{PIN}"]', f'["{PIN}", "{PIN}"]', "is written twice"),
    Wrong("no key", "    key: me.key\n  branch", "  branch", 'tunnel "hq" has no "key"'),
    Wrong("yes is no truth", "judges_addresses: true", "judges_addresses: yes", "judges_addresses"),
    Wrong(
        "what must be admitted has no port", '"[2001:db8::5]:443"', "corp.example", "needs a host and a port"
    ),
    Wrong("a tunnel that is not there", "[hq, branch]", "[hq, brunch]", 'did you mean "branch"?'),
    Wrong("an audit that is none", "audit: counts", "audit: none", "audit of zone"),
    Wrong(
        "no tunnels",
        "corporate: {tunnels: [hq, branch]}",
        "corporate: {}",
        'zone "corporate" has no "tunnels"',
    ),
    Wrong(
        "a zone in capitals",
        "  personal:",
        "  Home: {tunnels: hq}\n  personal:",
        '"Home" is no name of a zone',
    ),
    Wrong(
        "a zone that leads elsewhere",
        "  personal:",
        "  ../x: {tunnels: hq}\n  personal:",
        "is no name of a zone",
    ),
    Wrong(
        "a zone that is not there",
        "[corporate, personal]",
        "[corporat, personal]",
        'did you mean "corporate"?',
    ),
    Wrong("nobody", "ana:", '"a b":', '"a b" is nobody'),
    Wrong("a number without #", '"#1001"', '"#10x"', "is nobody"),
    Wrong("a person twice", '"#1001"', '"ana"', "ana"),
    Wrong("no limit", "flows: 100", "flows: 0", "from 1 to"),
    Wrong("too high a limit", "flows: 100", "flows: 99999999", "from 1 to"),
    Wrong("an octal limit", "flows: 100", "flows: 0100", "flows"),
]


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_what_is_wrong_is_said_once_with_its_place(case: Wrong) -> None:
    assert GOOD.count(case.old) >= 1
    found = problems(GOOD.replace(case.old, case.new, 1))
    assert len(found) == 1, found
    assert case.said in found[0]
    assert "\n" not in found[0]


def test_problems_are_told_together_and_have_lines() -> None:
    text = (
        GOOD.replace("8443", "0", 1)
        .replace("[hq, branch]", "[hq, nothing]")
        .replace("flows: 100", "flows: x")
    )
    with pytest.raises(Problems) as caught:
        site(text)
    lines = sorted(problem.line for problem in caught.value.problems)
    assert lines == [4, 9, 29]


def test_a_tunnel_with_a_problem_is_not_called_unknown_as_well() -> None:
    assert len(problems(GOOD.replace("gw.corp.example:8443", "gw"))) == 1


@pytest.mark.parametrize(
    "text", ["", "a", "[]", "zonegate: 1\nzonegate: 1\n", GOOD + "people: {}\n", "\0", "a: &x b"]
)
def test_what_is_no_site_is_refused(text: str) -> None:
    assert problems(text)


def test_a_truncated_file_is_refused_or_lets_fewer_people_in() -> None:
    whole = site()
    for length in range(len(GOOD)):
        try:
            found = site(GOOD[:length])
        except Problems:
            continue
        if not found.people:
            continue  # nobody may enter, or the user whose daemon it is
        assert (found.zones, found.tunnels) == (whole.zones, whole.tunnels)
        assert found.people == whole.people[: len(found.people)]


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_rubbish_raises_problems_and_nothing_else(rubbish: bytes, place: int) -> None:
    data = GOOD.encode()
    with contextlib.suppress(Problems):
        read_site(data[:place] + rubbish + data[place:], FILE)


# -- who may enter -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    sentence: str
    zone: str
    uid: int
    login: str
    groups: tuple[str, ...]
    allowed: tuple[str, ...] | None

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        Entry("by name", "corporate", 1, "ana", (), ("guest", "staff")),
        Entry("by group", "corporate", 1, "bob", ("dev",), ("dev", "guest")),
        Entry("by both", "corporate", 1, "ana", ("dev",), ("dev", "guest", "staff")),
        Entry("by number", "personal", 1001, "bob", (), ("guest",)),
        Entry("as anybody", "personal", 1, "bob", (), ("guest",)),
        Entry("not without a row", "corporate", 1001, "bob", ("staff",), None),
        Entry("not into a zone that is not there", "lab", 1, "ana", ("dev",), None),
        Entry("a group's name is no login", "corporate", 1, "@dev", (), None),
        Entry("a number is no login", "personal", 1, "#1001", (), ("guest",)),
        Entry("a login is no group", "corporate", 1, "dev", ("ana",), None),
        Entry("root is nobody special", "corporate", 0, "root", (), None),
    ],
    ids=str,
)
def test_who_may_enter(case: Entry) -> None:
    assert site().may_enter(case.zone, case.uid, case.login, case.groups) == case.allowed


def test_a_zone_has_no_more_tunnels_than_one_message_can_bring() -> None:
    names = [f"t{at}" for at in range(16)]
    start = GOOD.index("  hq:")
    tunnel = GOOD[start : GOOD.index("\n", GOOD.index("    key:", start))]
    many = "\n".join(tunnel.replace("  hq:", f"  {name}:") for name in names)
    zone = f"zones:\n  corporate: {{tunnels: [{', '.join(names)}]}}"
    found = problems(f"zonegate: 1\npolicy: p\n{zone}\ntunnels:\n{many}\n")
    assert len(found) == 1 and 'zone "corporate" has 16 tunnels; write at most 15' in found[0]


def test_a_zone_that_inspects_needs_a_ca() -> None:
    text = GOOD.replace("audit: counts}", "audit: counts, inspect: true}")
    found = site(text + "inspection: ca\n")
    assert [zone.name for zone in found.zones.values() if zone.inspects] == ["personal"]
    assert found.inspection == Path("/etc/zonegate/ca")
    assert ["zonegate ca create" in problem for problem in problems(text)] == [True]
