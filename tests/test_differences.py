"""What an edited site and policy change, in words; and what only a new daemon can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy.certificates import issue_client, make_authority, write_issued
from proxy.demo.site import make_site
from proxy.differences import changed_tunnels, differences, not_reloadable
from proxy.site import Loaded, load_site

POLICY = """\
policy: 1
name: acme
define:
  zones: [corporate, lab]
  groups: [finance]
  destinations: {code: [git.corp.example]}
guards:
  - {id: proof, match: {zone: corporate}, unless: {tunnel: attested}, at_most: block}
rules:
  - {id: first, match: {to: code}, verdict: tunnel}
  - {id: second, match: {zone: lab}, verdict: tunnel}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    file = make_site(tmp_path, tmp_path / "run", 9).gate
    (tmp_path / "acme.yaml").write_text(POLICY)
    text = file.read_text()
    policy = next(line for line in text.splitlines() if line.startswith("policy:"))
    file.write_text(text.replace(policy, "policy: acme.yaml"))
    return file


@dataclass(frozen=True, slots=True)
class Edit:
    """An edit of a file, and what is said of it."""

    file: str
    old: str
    new: str
    said: tuple[str, ...]

    def __str__(self) -> str:
        return " and ".join(self.said) or "nothing"


SITE, ACME = "zonegate.yaml", "acme.yaml"
EDITS = [
    Edit(SITE, "zones:\n", "zones: # edited\n", ()),
    Edit(SITE, "zones:\n", "zones:\n  lab: {tunnels: [hq]}\n", ("added zone lab",)),
    Edit(SITE, "tunnels: [hq]", "tunnels: [hq], audit: counts", ("changed zone corporate",)),
    Edit(SITE, "{zones: [corporate]}", "{zones: [corporate], groups: [finance]}", ("changed person root",)),
    Edit(SITE, "people:\n", "people:\n  '@wheel': {zones: [corporate]}\n", ("added person @wheel",)),
    Edit(SITE, "people:\n", "limits: {flows: 5}\npeople:\n", ("changed limit flows",)),
    Edit(SITE, ":9\n", ":10\n", ("changed tunnel hq",)),
    Edit(ACME, "policy: 1\n", "# words\npolicy: 1\n", ("changed policy in its words alone",)),
    Edit(ACME, "at_most: block", "at_most: tunnel", ("changed guard proof",)),
    Edit(ACME, "id: proof", "id: shown", ("removed guard proof", "added guard shown")),
    Edit(
        ACME,
        "[git.corp.example]",
        "[git.corp.example, 10.0.0.0/8]",
        ("changed destination code", "changed rule first"),
    ),
    Edit(ACME, "rules:\n", "rules:\n  - {id: new, match: {}, verdict: block}\n", ("added rule new",)),
    Edit(ACME, "groups: [finance]", "groups: [finance, it]", ("added group it",)),
    Edit(
        ACME,
        "  - {id: second, match: {zone: lab}, verdict: tunnel}\n",
        "",
        ("removed rule second",),
    ),
    Edit(
        ACME,
        "rules:\n  - {id: first, match: {to: code}, verdict: tunnel}\n"
        "  - {id: second, match: {zone: lab}, verdict: tunnel}\n",
        "rules:\n  - {id: second, match: {zone: lab}, verdict: tunnel}\n"
        "  - {id: first, match: {to: code}, verdict: tunnel}\n",
        ("moved rule second",),
    ),
]


def edit(site: Path, change: Callable[[Path], object]) -> tuple[Loaded, Loaded]:
    old = load_site(site)
    change(site.parent)
    return old, load_site(site)


@pytest.mark.parametrize("row", EDITS, ids=str)
def test_an_edit_is_told(site: Path, row: Edit) -> None:
    def change(directory: Path) -> None:
        path = directory / row.file
        text = path.read_text()
        assert row.old in text
        path.write_text(text.replace(row.old, row.new))

    old, new = edit(site, change)
    assert tuple(map(str, differences(old, new))) == row.said
    assert not_reloadable(old, new) == []
    assert changed_tunnels(old, new) == ({"hq"} if "changed tunnel hq" in row.said else set())


def test_files_that_were_not_edited_are_not_different(site: Path) -> None:
    old, new = edit(site, lambda _: None)
    assert differences(old, new) == ()
    assert changed_tunnels(old, new) == set()


def test_a_new_certificate_of_a_tunnel_is_told_and_cuts_nothing(site: Path) -> None:
    def change(directory: Path) -> None:
        now = datetime.now(UTC)
        authority = make_authority("other", now=now, days=2)
        for name in ("laptop.key", "laptop.crt"):
            (directory / name).unlink()
        write_issued(issue_client(authority, "laptop", now=now, days=1), directory, "laptop")

    old, new = edit(site, change)
    assert [str(one) for one in differences(old, new)] == ["changed certificate of tunnel hq"]
    assert changed_tunnels(old, new) == set(), "it is taken into use by itself"


def test_other_roots_of_trust_are_told(site: Path) -> None:
    loaded = load_site(site)
    assert [str(one) for one in differences(loaded, replace(loaded, trust=b"x"))] == [
        "changed roots under trust"
    ]


def test_what_only_a_new_daemon_can_take_is_named(site: Path) -> None:
    def change(directory: Path) -> None:
        site.write_text(site.read_text().replace("state: ", "state: else"))

    assert not_reloadable(*edit(site, change)) == ["state"]
