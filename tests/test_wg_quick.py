"""A wg-quick file: what is taken from it, what is left out and said, and what is refused by name."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli import zonegate
from proxy.config import read_site
from proxy.wg_quick import NotImported, read
from proxy.wireguard_config import WireguardTunnel

KEY, PEER, PSK = ("A" * 42 + letter + "=" for letter in "EIM")
GOOD = f"""\
# from the portal
[Interface]
PrivateKey = {KEY}
Address = 10.8.0.2/32, fd08::2/128
DNS = 10.8.0.53, corp.example
MTU = 1380
ListenPort = 51820
Table = off

[Peer]
PublicKey = {PEER}
PresharedKey = {PSK}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = vpn.corp.example:51820   # the one in the office
PersistentKeepalive = 25
"""


def test_what_is_taken_is_a_tunnel_of_a_site_file() -> None:
    found = read(GOOD, "wg0.conf")
    assert (found.private_key, found.preshared_key) == (KEY, PSK)
    snippet = found.snippet("hq", "hq.key", "hq.psk")
    assert KEY not in snippet and PSK not in snippet
    text = f"zonegate: 1\npolicy: p.yaml\nzones: {{corporate: {{tunnels: hq}}}}\ntunnels:\n{snippet}"
    tunnel = read_site(text.encode(), Path("/etc/zonegate/zonegate.yaml")).tunnels["hq"]
    assert isinstance(tunnel, WireguardTunnel)
    assert (tunnel.peer, tunnel.host, tunnel.port, tunnel.mtu) == (PEER, "vpn.corp.example", 51820, 1380)
    assert [str(one) for one in tunnel.addresses] == ["10.8.0.2/32", "fd08::2/128"]
    assert [str(one) for one in tunnel.dns] == ["10.8.0.53"]
    assert len(tunnel.allowed) == 2


def test_what_is_left_out_is_said() -> None:
    notes = "\n".join(read(GOOD, "wg0.conf").notes)
    for word in ("ListenPort", "Table", "corp.example"):
        assert word in notes


@dataclass(frozen=True, slots=True)
class Wrong:
    sentence: str
    old: str
    new: str
    words: str

    def __str__(self) -> str:
        return self.sentence


WRONG = [
    *(
        Wrong(f"{word} is a command", "MTU = 1380", f"{word} = sh", f"wg0.conf:6: {word} is a command")
        for word in ("PreUp", "PostUp", "PreDown", "PostDown", "postup")
    ),
    Wrong("two peers", "Endpoint", "[Peer]\nEndpoint", "there are several peers"),
    Wrong("no peer", f"PublicKey = {PEER}", "", "there is no PublicKey"),
    Wrong("a key that is none", KEY, "secret", "wg0.conf:3: PrivateKey is no WireGuard key"),
    Wrong("an unknown key", "MTU = 1380", "Jc = 4", 'wg0.conf:6: "Jc" has no place in [Interface]; remove'),
    Wrong("an unknown section", "[Peer]", "[Friend]", "is no section"),
    Wrong("a key misspelt", "MTU", "Adress", 'did you mean "address"?'),
    Wrong("no value", "MTU = 1380", "MTU", '"MTU" has no place in [Interface]; write KEY = VALUE'),
    Wrong("an endpoint without a port", ":51820   #", " #", "needs a host and a port"),
    Wrong("an MTU that is none", "1380", "{a: b}", "is no number"),
    Wrong("an address of loopback", "10.8.0.2/32", "127.0.0.1/8", "no tunnel leads to"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_is_refused(wrong: Wrong) -> None:
    assert wrong.old in GOOD
    with pytest.raises(NotImported) as caught:
        read(GOOD.replace(wrong.old, wrong.new, 1), "wg0.conf")
    assert wrong.words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert all("; " in line or "did you mean" in line for line in str(caught.value).splitlines()), "a cure"


@pytest.mark.parametrize(("old", "new"), [("[Peer]", "[Friend]"), ("[Interface]", "")])
def test_what_follows_from_a_section_that_is_none_is_not_said(old: str, new: str) -> None:
    with pytest.raises(NotImported) as caught:
        read(GOOD.replace(old, new, 1), "wg0.conf")
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_writes_keys_for_their_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "wg0.conf").write_text(GOOD)
    asked = ["tunnel", "import", str(tmp_path / "wg0.conf"), "--name", "hq", "--keys", str(tmp_path)]
    done = CliRunner().invoke(zonegate, asked)
    assert done.exit_code == 0, done.output
    assert KEY not in done.output and "  hq:\n    kind: wireguard\n" in done.output
    for name, key in (("hq.key", KEY), ("hq.psk", PSK)):
        assert (tmp_path / name).read_text() == key + "\n"
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    again = CliRunner().invoke(zonegate, asked)
    assert again.exit_code == 2 and "is there already" in again.output


def test_the_command_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "owned"
    (tmp_path / "wg0.conf").write_text(GOOD.replace("MTU = 1380", f"PostUp = touch {canary}"))
    asked = ["tunnel", "import", str(tmp_path / "wg0.conf"), "--keys", str(tmp_path)]
    done = CliRunner().invoke(zonegate, asked)
    assert done.exit_code == 2 and "PostUp is a command" in done.output
    assert not canary.exists() and not list(tmp_path.glob("*.key"))
