"""Files that must be refused, with the place and the cure; never a traceback, never a guess."""

# ruff: noqa: E501  # a row of a case table is one line

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import random_policies as random

from proxy.policy import Policy, Problems, load
from proxy.policy.diff import compare
from proxy.policy.loader import read_model
from proxy.policy.source import MAX_BYTES, Map, Scalar, read

SHIPPED = Path(__file__).parents[2] / "policies"
BASE = """\
policy: 1
name: acme
define:
  zones: [corporate]
  groups: [finance]
  destinations:
    intranet: [corp.example, "*.corp.example"]
rules:
"""


@dataclass(frozen=True)
class Bad:
    id: str
    text: str
    says: str


YAML = [
    Bad("an empty file", "", "1:1: the file is empty"),
    Bad("a comment only", "# nothing\n", "the file is empty"),
    Bad("a byte order mark", "\ufeffpolicy: 1", "1:1: the file starts with a byte order mark"),
    Bad("a null character", "a: b\0", "1:5: character U+0000 is not allowed"),
    Bad("a lone carriage return", "a: b\rc: d", "1:5: character U+000D"),
    Bad("a line break that only YAML 1.1 knows", "a: b\u0085c: d", "1:5: character U+0085"),
    Bad("a bidirectional override", "a: b\u202ec", "1:5: character U+202E"),
    Bad("an override as an escape", 'a: "b\\u202e"', "1:4: character U+202E is not allowed in a value"),
    Bad("a duplicate key", "verdict: a\nverdict: b", '2:1: duplicate key "verdict", first on line 1'),
    Bad("a duplicate key in quotes", 'a: 1\n"a": 2', '2:1: duplicate key "a", first on line 1'),
    Bad("an anchor", "a: &x 1", "1:4: anchor &x is not allowed"),
    Bad("an alias", "a: &x 1\nb: *x", "2:4: alias *x is not allowed"),
    Bad("a merge key", "<<: {a: 1}", "1:1: a merge key << is not allowed"),
    Bad("a tag", "a: !!python/object:os.system x", "1:4: tag "),
    Bad("a local tag", "a: !x y", '1:4: tag "!x" is not allowed'),
    Bad("a directive", "%YAML 1.1\n---\na: 1", "1:1: a % directive is not allowed"),
    Bad("two documents", "a: 1\n---\nb: 2", "2:1: a second document is not allowed"),
    Bad("a list as a key", "? [a]\n: b", "1:3: a key must be one word"),
    Bad("too deep", "[" * 30, "1:21: deeper than 20 levels"),
    Bad("an open bracket", "a: [1, 2", "this is not YAML"),
    Bad("a tab as indentation", "a:\n\tb: 1", "2:1: this is not YAML"),
    Bad("a bomb of aliases", "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]", "1:4: anchor &a"),
]


@pytest.mark.parametrize("bad", YAML, ids=lambda bad: bad.id)
def test_yaml_that_two_readers_could_read_in_two_ways_is_refused(bad: Bad) -> None:
    with pytest.raises(Problems) as raised:
        read(bad.text.encode(), "f.yaml")
    assert bad.says in str(raised.value)


def rule(match: str, verdict: str = "tunnel", more: str = "") -> str:
    return f"{BASE}  - {{id: x, match: {{{match}}}, verdict: {verdict}{more}}}\n"


def guard(keys: str) -> str:
    return BASE.replace("rules:", f"guards:\n  - {{id: g, match: {{}}, {keys}}}\nrules: []")


WORDS = [
    Bad("a mistyped key", rule("protcol: ssh"), '9:21: unknown key "protcol" in match of rule "x"; did you mean "protocol"?'),
    Bad("a verdict of another product", rule("", "allow"), 'verdict "allow" is not a verdict; write block, tunnel or direct'),
    Bad("a destination that nobody defined", rule("to: intranett"), '"intranett" is not a destination, a domain or a CIDR; did you mean "intranet"?'),
    Bad("host bits", rule("to: 10.99.0.7/16"), "10.99.0.7/16 has host bits set; write 10.99.0.0/16 or 10.99.0.7/32"),
    Bad("a size without a comparison", rule("size: 25MB"), '"25MB" needs a comparison and a binary unit, such as "<=25MiB"'),
    Bad("a public suffix", rule('to: "*.co.uk"'), '"*.co.uk" spans a public suffix and would match unrelated owners'),
    Bad("a shared hosting domain", rule('to: "*.github.io"'), "spans a public suffix"),
    Bad("a wildcard inside", rule('to: "a.*.corp.example"'), "* may only be the whole first label"),
    Bad("a bare word", rule("to: localhost"), '"localhost" is not a destination'),
    Bad("an octal address", rule("to: 010.0.0.1"), "write four decimal numbers"),
    Bad("a short address", rule("to: 10.1"), "write four decimal numbers"),
    Bad("mapped addresses", rule('to: "::ffff:10.0.0.0/104"'), "write the IPv4 network"),
    Bad("a zone that nobody defined", rule("zone: corporat"), '"corporat" is not a zone of this policy; did you mean "corporate"?'),
    Bad("a group that nobody defined", rule("group: it"), '"it" is not a group of this policy'),
    Bad("a port beyond", rule("port: 70000"), "above 65535"),
    Bad("a port with a zero", rule("port: 022"), "is not a port"),
    Bad("ports backwards", rule("port: 90-80"), "write 80-90"),
    Bad("a protocol", rule("protocol: ftp"), '"ftp" is not a protocol'),
    Bad("a method in small letters", rule("method: get"), "write it in capitals"),
    Bad("a path with a star", rule('path: "/a*"'), "covers all below it"),
    Bad("a path with dots", rule('path: "/a/../b"'), "write plain segments"),
    Bad("a media type", rule("content_type: JSON"), "is not a media type"),
    Bad("a state with a typing error", rule("tunnel: atested"), 'did you mean "attested"?'),
    Bad("a date", rule("", more=", expires: 31.3.2027"), "write it as in 2027-03-31"),
    Bad("a day that is not", rule("", more=", expires: 2027-02-30"), "is not a date"),
    Bad("via without a tunnel", rule("", "block", ", via: [hq]"), "remove via or write tunnel"),
    Bad("a mode", rule("", more=", mode: audit"), 'mode cannot be "audit"; write enforce or report'),
    Bad("a guard that allows direct", guard("at_most: direct"), "write block or tunnel"),
    Bad("an empty exception", guard("unless: {}, at_most: block"), "never bites"),
    Bad("an empty list", rule("port: []"), "is an empty list"),
    Bad("a value twice", rule("port: [80, 80]"), '"80" is written twice'),
    Bad("no verdict", BASE + "  - {id: x, match: {}}", 'rule "x" has no "verdict"; add it'),
    Bad("an id twice", rule("") + "  - {id: x, match: {}, verdict: block}\n", 'id "x" is taken on line 9'),
    Bad("a built-in id", BASE + "  - {id: rebinding, match: {}, verdict: block}", "is a built-in reason"),
    Bad("a version", rule("").replace("policy: 1", "policy: 2"), 'the version of the language cannot be "2"'),
    Bad("a time zone", "timezone: Europe/Berlinn\n" + rule(""), '"Europe/Berlinn" is not a time zone'),
    Bad("a time zone that is a path", "timezone: ../../etc/passwd\n" + rule(""), "is not a time zone"),
    Bad("a time zone that is a folder", "timezone: Europe\n" + rule(""), "is not a time zone"),
    Bad("a window", rule("").replace("rules:", "  windows: {w: mon-fri 7-19}\nrules:"), 'as in "mon-fri 07:00-19:00"'),
    Bad("an empty posture", rule("").replace("rules:", "  postures: {p: {}}\nrules:"), "needs nothing"),
    Bad("guards below rules", BASE + "  []\nguards: []", "move them above"),
    Bad("a list where a map is", "[]", "the policy must be a map"),
]  # fmt: skip


@pytest.mark.parametrize("bad", WORDS, ids=lambda bad: bad.id)
def test_words_that_are_not_of_the_language_are_refused_with_the_cure(bad: Bad) -> None:
    with pytest.raises(Problems) as raised:
        load(bad.text.encode(), "acme.policy.yaml")
    assert bad.says in str(raised.value)


def test_all_problems_are_told_at_once_in_the_order_of_the_file_with_carets() -> None:
    text = rule("protcol: ssh, to: nowhere", "allow") + "  - {id: x, match: {port: 99999}, verdict: tunnel}\n"
    with pytest.raises(Problems) as raised:
        load(text.encode(), "acme.policy.yaml")
    assert [problem.line for problem in raised.value.problems] == [9, 9, 9, 10, 10]
    first, line, caret, *_ = raised.value.render().splitlines()
    assert first.startswith("acme.policy.yaml:9:21: ")
    assert line[caret.index("^") :].startswith("protcol")


def test_words_stay_what_was_written() -> None:
    node = read(b"a: no\nb: 22:22\nc: 014\nd: 1e3\ne: ~\nf: 2027-03-31", "f.yaml")
    assert isinstance(node, Map)
    values = [value.text for _, value in node.entries if isinstance(value, Scalar)]
    assert values == ["no", "22:22", "014", "1e3", "~", "2027-03-31"]


@pytest.mark.parametrize("name", ["corporate", "contractor", "dual-persona"])
def test_a_file_cut_at_any_byte_is_refused_or_grants_no_more(name: str) -> None:
    """A prefix of a policy may be a policy; it admits nothing that the whole does not."""
    whole = (SHIPPED / f"{name}.policy.yaml").read_bytes()
    full = load(whole, name)
    seen = set()
    for end in range(len(whole)):
        try:
            cut = load(whole[:end], name)
        except Problems:
            continue
        if cut.model.rules not in seen:
            seen.add(cut.model.rules)
            assert not any(change.is_looser for change in compare(full, cut)), whole[:end].decode()
    assert seen


def test_noise_is_refused_and_never_a_traceback() -> None:
    rng = Random(0)
    whole = (SHIPPED / "corporate.policy.yaml").read_bytes()
    accepted = 0
    for _ in range(1500):
        noisy = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            noisy[rng.randrange(len(noisy))] = rng.choice(b"{}[]:,-\"'#&*!|> \n\tab0\xff\x00")
        try:
            load(bytes(noisy), "noise.yaml")
            accepted += 1
        except Problems as problems:
            assert problems.problems
    assert accepted < 1500


HUGE = [
    b"a" * (10 << 20),
    b"- a\n" * (MAX_BYTES // 4),
    b"[" * MAX_BYTES,
    b'"' + b"\\u0041" * 170_000 + b'"',
    b"rules:\n" + b"  - {id: a, match: {}, verdict: block}\n" * 100_000,
    (BASE + "".join(f"  - {{id: r{i}, matsch: {{}}, verdict: block}}\n" for i in range(20_000))).encode(),
]


@pytest.mark.parametrize(
    "text", HUGE, ids=["10 MiB", "items", "brackets", "escapes", "100,000 rules", "errors"]
)
def test_a_huge_file_is_refused_with_few_words(text: bytes) -> None:
    with pytest.raises(Problems) as raised:
        load(text, "huge.yaml")
    assert 1 <= len(raised.value.problems) <= 100


def test_the_same_policy_in_block_and_flow_style_is_the_same_policy() -> None:
    keys = random.policy(Random("styles"))
    one, two = json.dumps(keys).encode(), json.dumps(keys, indent=2).encode()
    ours, theirs = (Policy(read_model(text, "a"), text) for text in (one, two))
    assert [rule.match for rule in ours.model.rules] == [rule.match for rule in theirs.model.rules]
