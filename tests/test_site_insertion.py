"""A tunnel put into a site file: its lines stay, and it says what was meant, or it is left alone."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from test_site import POLICY
from test_wg_quick import GOOD, KEY

from proxy.cli import zonegate
from proxy.site import load_site
from proxy.site_insertion import NotInserted, with_tunnel

ENTRY = "  new:\n    kind: wireguard\n    mtu: 1400\n"


@dataclass(frozen=True, slots=True)
class Case:
    sentence: str
    text: str
    before: tuple[str, ...] = ("gw",)

    def __str__(self) -> str:
        return self.sentence


CASES = [
    Case("as init writes it", "zones:\n  corporate: {tunnels: [gw]}\ntunnels:\n  gw:\n    kind: mtls\n"),
    Case("a bare name", "zones:\n  corporate: {tunnels: gw}\ntunnels:\n  gw: {kind: mtls}\n"),
    Case("a list of lines", "zones:\n  corporate:\n    tunnels:\n      - gw\n\ntunnels:\n  gw: {a: b}\n"),
    Case("lines at the margin", "zones:\n  corporate:\n    tunnels:\n    - gw\ntunnels:\n  gw: {a: b}\n"),
    Case("four spaces", "tunnels:\n    gw:\n        a: b\nzones:\n    corporate: {tunnels: [gw]}\n"),
    Case("without a last newline", "zones: {corporate: {tunnels: [gw]}}\ntunnels:\n  gw:\n    kind: mtls"),
    Case("nothing yet", "zones: {corporate: {tunnels: []}}\ntunnels:\n  gw: {kind: mtls}\n", ()),
    Case("a comma at the end", "zones: {corporate: {tunnels: [gw, ]}}\ntunnels:\n  gw: {kind: mtls}\n"),
    Case("over lines", "zones: {corporate: {tunnels: [\n  gw\n]}}\ntunnels:\n  gw: {\n    kind: mtls\n  }\n"),
    Case(
        "comments everywhere",
        "# top\nzones:\n  # whose\n  corporate: {tunnels: [gw]} # one\n# below\ntunnels: # all\n"
        "  # the first\n  gw: # it\n    kind: mtls # kind\n    # its end\n\n# people\npeople: {}\n",
    ),
    Case(
        "a comment at the end, on the last tunnel's keys",
        "zones: {corporate: {tunnels: [gw]}}\n"
        "tunnels:\n  gw:\n    kind: mtls\n\n    # its end\n\n  # another: {}\n",
    ),
    Case(
        "a comment on the last line",
        "zones:\n  corporate: {tunnels: [gw]}\ntunnels:\n  gw:\n    kind: mtls\n    # its end",
    ),
    Case("quoted", 'zones: {"corporate": {"tunnels": ["gw"]}}\n"tunnels":\n  "gw": {kind: mtls}\n'),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_says_what_it_said_and_the_tunnel(case: Case) -> None:
    made = with_tunnel(case.text, "new", ENTRY)
    expected = yaml.safe_load(case.text)
    expected["tunnels"]["new"] = {"kind": "wireguard", "mtu": 1400}
    expected["zones"]["corporate"]["tunnels"] = [*case.before, "new"]
    assert yaml.safe_load(made.text) == expected, made.text
    assert (made.zone, made.before) == ("corporate", case.before)
    left = made.text.splitlines()
    assert "    # its end" not in left or left.index("    # its end") < left.index("  new:")
    kept = [line for line in case.text.splitlines() if "tunnels" not in line and "gw\n" not in line + "\n"]
    assert all(line in left for line in kept), "lines stay as they are"
    assert list(yaml.safe_load(made.text)["tunnels"]) == ["gw", "new"]


@pytest.mark.parametrize(
    ("text", "zone", "words"),
    [
        ("tunnels: {gw: {}}\nzones: {a: {tunnels: [gw]}}\n", "", "not one below the other"),
        ("tunnels: {}\nzones: {a: {tunnels: [gw]}}\n", "", "not one below the other"),
        ("zones: {a: {tunnels: [gw]}}\n", "", "not one below the other"),
        ("tunnels:\n  new: {}\nzones: {a: {tunnels: [new]}}\n", "", 'a tunnel "new" already'),
        ("tunnels:\n  gw: {}\nzones: {a: {tunnels: [gw]}, b: {tunnels: [gw]}}\n", "", "there are a, b"),
        ("tunnels:\n  gw: {}\nzones: {a: {tunnels: [gw]}}\n", "c", 'no zone "c"'),
        ("tunnels:\n  gw: {}\nzones: {a: {personal: true}}\n", "a", 'no zone "a" with tunnels'),
        ("tunnels:\n  gw: {}\n", "", "there are none"),
        ("tunnels: [\n", "", "it is no YAML"),
        ("", "", "not one below the other"),
    ],
)
def test_what_cannot_be_put_in_is_refused(text: str, zone: str, words: str) -> None:
    with pytest.raises(NotInserted) as caught:
        with_tunnel(text, "new", ENTRY, zone)
    assert words in str(caught.value)


SITE = """\
zonegate: 1
policy: zone.policy.yaml # the desk's
zones:
  corporate: {tunnels: [first]}
tunnels:
  first:
    kind: wireguard
    private_key: first.key
    peer: "%s"
    endpoint: vpn.corp.example:51820
    addresses: [10.9.0.2/32]
    dns: [10.9.0.53]

people:
  "*": {zones: [corporate]}
"""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A site with a tunnel, and a wg-quick file."""
    (tmp_path / "zone.policy.yaml").write_text(POLICY)
    (tmp_path / "first.key").touch(mode=0o600)
    (tmp_path / "first.key").write_text(KEY + "\n")
    (tmp_path / "zonegate.yaml").write_text(SITE % KEY)
    (tmp_path / "zonegate.yaml").chmod(0o640)
    (tmp_path / "wg0.conf").write_text(GOOD)
    load_site(tmp_path / "zonegate.yaml")
    return tmp_path


def run(there: Path, *options: str) -> tuple[int, str]:
    asked = ["tunnel", "import", str(there / "wg0.conf"), "--into", str(there / "zonegate.yaml"), *options]
    done = CliRunner().invoke(zonegate, asked)
    return done.exit_code, done.output


def names(there: Path) -> set[str]:
    return {path.name for path in there.iterdir()}


def test_the_command_puts_it_into_the_site_file(there: Path) -> None:
    code, said = run(there, "--name", "hq")
    assert code == 0, said
    assert "zone corporate takes it where first cannot be had" in said and "next: zonegate reload" in said
    site = load_site(there / "zonegate.yaml").site
    assert (set(site.tunnels), site.zones["corporate"].tunnels) == ({"first", "hq"}, ("first", "hq"))
    assert stat.S_IMODE((there / "zonegate.yaml").stat().st_mode) == 0o640
    assert stat.S_IMODE((there / "hq.key").stat().st_mode) == 0o600
    assert 'private_key: "hq.key"\n' in (there / "zonegate.yaml").read_text(), "relative to the site file"
    assert "policy: zone.policy.yaml # the desk's\n" in (there / "zonegate.yaml").read_text()
    assert names(there) == {
        *("zonegate.yaml", "zone.policy.yaml", "wg0.conf", "first.key", "hq.key", "hq.psk"),
    }


@pytest.mark.parametrize(
    ("options", "edit", "words"),
    [
        (("--name", "first2", "--zone", "lab"), ("", ""), 'no zone "lab"'),
        (("--name", "hq"), ("policy: zone.policy.yaml", "policy: none.yaml"), "none.yaml"),
        (("--name", "hq"), ("[10.9.0.2/32]", "[nonsense]"), "nonsense"),
        (("--name", "hq", "--probe", "icmp nowhere"), ("", ""), "nowhere"),
        (("--name", "hq"), ("{tunnels: [first]}", "{tunnels: [first, # one\n    ]}"), "by hand"),
    ],
    ids=[
        "another zone",
        "a policy that is not there",
        "a site that is wrong",
        "a wrong probe",
        "a comment in a list",
    ],
)
def test_what_would_not_load_changes_nothing(
    there: Path, options: tuple[str, ...], edit: tuple[str, str], words: str
) -> None:
    file = there / "zonegate.yaml"
    file.write_text(file.read_text().replace(*edit))
    text, before = file.read_text(), names(there)
    code, said = run(there, *options)
    assert code == 2 and words in said and ".new" not in said, said
    assert (file.read_text(), names(there)) == (text, before)


def test_without_a_resolver_a_probe_must_be_named(there: Path) -> None:
    (there / "wg0.conf").write_text(GOOD.replace("DNS = 10.8.0.53, corp.example\n", ""))
    code, said = run(there, "--name", "hq")
    assert code == 2 and "--probe" in said
    code, said = run(there, "--name", "hq", "--probe", "icmp 10.8.0.1")
    assert code == 0, said
    assert 'probe: "icmp 10.8.0.1"' in (there / "zonegate.yaml").read_text()
