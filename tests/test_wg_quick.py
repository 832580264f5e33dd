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
    *(
        Wrong(f"an empty {key}", old, "", f"{key} is empty; write what it is, or remove the line")
        for key, old in (
            ("PrivateKey", KEY), ("PresharedKey", PSK), ("MTU", "1380"), ("AllowedIPs", "0.0.0.0/0, ::/0"),
            ("Endpoint", "vpn.corp.example:51820"), ("Address", "10.8.0.2/32, fd08::2/128"),
            ("PublicKey", PEER), ("PersistentKeepalive", "25"), ("DNS", "10.8.0.53, corp.example"),
        )
    ),
    *(
        Wrong(f"a second {key}", f"{key} =", f"{key} = {first}\n{key} =", f"there is a second {key}; keep")
        for key, first in (
            ("MTU", "1400"), ("PrivateKey", PSK), ("PublicKey", KEY), ("Endpoint", "a.example:1"),
        )
    ),
    Wrong("a key as in YAML", "PrivateKey =", "PrivateKey:", 'wg0.conf:3: "PrivateKey" has no place'),
    Wrong("a key without its sign", f"PrivateKey = {KEY}", f"PrivateKey {KEY}", '"PrivateKey" has no place'),
    Wrong("a key alone", f"PrivateKey = {KEY}", KEY, 'wg0.conf:3: "…" has no place in [Interface]'),
    Wrong("a key before its section", "[Interface]", "", '"PrivateKey" stands before any section'),
    Wrong("a key as a number", "MTU = 1380", f"MTU = {KEY}", "wg0.conf:6: MTU"),
    Wrong("two keys in a line", KEY, f"{KEY}, {KEY}", "PrivateKey is no WireGuard key"),
    Wrong("no networks", "AllowedIPs = 0.0.0.0/0, ::/0", "", "there is no AllowedIPs; nothing is sent"),
    Wrong("an MTU that is too small", "1380", "100", "is no number from 1280 to 65455"),
    Wrong("an MTU that is off", "1380", "off", '"off" is no number'),
    Wrong("a keepalive that is too long", "= 25", "= 99999", '"99999" is no number from 0 to 65535'),
    Wrong("an address of loopback", "10.8.0.2/32", "127.0.0.1/8", "no tunnel leads to"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_is_refused(wrong: Wrong) -> None:
    assert wrong.old in GOOD
    with pytest.raises(NotImported) as caught:
        read(GOOD.replace(wrong.old, wrong.new, 1), "wg0.conf")
    assert wrong.words in str(caught.value)
    assert not any(words in str(caught.value) for words in ("secret", KEY[:20]))
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


def imported(file: Path, *options: str) -> tuple[int, str]:
    asked = ["tunnel", "import", str(file), "--name", "hq", "--keys", str(file.parent), *options]
    done = CliRunner().invoke(zonegate, asked)
    return done.exit_code, done.output


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_as_windows_writes_it_is_read(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "wg0.conf"
    file.write_bytes(GOOD.replace("\n", "\r\n").encode(encoding))
    code, said = imported(file)
    assert code == 0, said
    assert (tmp_path / "hq.key").read_text() == KEY + "\n"


MANY = ", ".join(f"10.8.0.{number}/32" for number in range(2, 15))
REFUSED: list[tuple[str, bytes, tuple[str, ...], str]] = [
    ("no text", b"\xff\x00\x80", (), "it is no text; save it as UTF-8"),
    ("UTF-16 without its mark", GOOD.encode("utf-16-le"), (), "it is no text; save it as UTF-8"),
    ("thirteen addresses", GOOD.replace("10.8.0.2/32", MANY).encode(), (), "write at most 8"),
    ("a resolver elsewhere", GOOD.replace("0.0.0.0/0, ::/0", "10.9.0.0/16").encode(), (), "asks 10.8.0.53"),
    ("a probe that is none", GOOD.encode(), ("--probe", "icmp foo"), '"foo" is a name'),
    ("nothing to ask", GOOD.replace("DNS = 10.8.0.53, corp.example", "").encode(), (), "--probe"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "options", "words"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_no_site_could_load_is_refused_and_leaves_nothing(
    tmp_path: Path, content: bytes, options: tuple[str, ...], words: str
) -> None:
    file = tmp_path / "wg0.conf"
    file.write_bytes(content)
    code, said = imported(file, *options)
    assert code == 2 and words in said and "Traceback" not in said, said
    assert said.startswith("zonegate: ") and KEY[:20] not in said and said.count("\n") == 1, said
    assert [path.name for path in tmp_path.iterdir()] == ["wg0.conf"]


def test_a_key_that_is_there_already_is_left_and_no_other_is_made(tmp_path: Path) -> None:
    (tmp_path / "wg0.conf").write_text(GOOD)
    (tmp_path / "hq.psk").write_text("mine")
    code, said = imported(tmp_path / "wg0.conf")
    assert code == 2 and "hq.psk is there already" in said
    assert not (tmp_path / "hq.key").exists() and (tmp_path / "hq.psk").read_text() == "mine"
