"""A WireGuard tunnel in the site file: what it says, and a table of what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from proxy.config import read_site
from proxy.messages.holding import Probe
from proxy.policy.source import Problems
from proxy.site import setup_of
from proxy.wireguard_config import KEYS, WireguardTunnel

FILE = Path("/etc/zonegate/zonegate.yaml")
KEY = "A" * 42 + "E="
LINES = {
    "kind": "wireguard",
    "private_key": "wg.key",
    "peer": f'"{KEY}"',
    "endpoint": "vpn.corp.example:51820",
    "addresses": '[10.8.0.2/32, "fd08::2/128"]',
    "dns": "[10.8.0.53]",
}


def read(lines: dict[str, str]) -> WireguardTunnel:
    tunnel = "".join(f"    {key}: {value}\n" for key, value in lines.items())
    text = f"zonegate: 1\npolicy: p.yaml\nzones: {{corporate: {{tunnels: hq}}}}\ntunnels:\n  hq:\n{tunnel}"
    found = read_site(text.encode(), FILE).tunnels["hq"]
    assert isinstance(found, WireguardTunnel)
    return found


def test_what_is_read() -> None:
    assert read(LINES) == WireguardTunnel(
        name="hq",
        private_key=FILE.parent / "wg.key",
        preshared_key=None,
        peer=KEY,
        host="vpn.corp.example",
        port=51820,
        addresses=(ip_interface("10.8.0.2/32"), ip_interface("fd08::2/128")),
        allowed=(ip_network("0.0.0.0/0"), ip_network("::/0")),
        dns=(ip_address("10.8.0.53"),),
        mtu=1420,
        keepalive_s=25,
        probe=Probe("dns", "10.8.0.53", 53),
    )


def test_everything_said() -> None:
    said = {
        "preshared_key": "psk",
        "endpoint": '"[2001:db8::7]:1"',
        "mtu": "1280",
        "keepalive": "0",
        "allowed": "[10.8.0.0/16]",
        "probe": "icmp 10.8.0.1",
        "dns": "[10.8.0.53, 10.8.0.54]",
    }
    found = read({**LINES, **said})
    assert found.preshared_key == FILE.parent / "psk"
    assert (found.host, found.port, found.mtu, found.keepalive_s) == (ip_address("2001:db8::7"), 1, 1280, 0)
    assert (found.allowed, found.probe) == ((ip_network("10.8.0.0/16"),), Probe("icmp", "10.8.0.1", 0))
    assert setup_of(found).pins == (KEY,)


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ("icmp 10.8.0.1", Probe("icmp", "10.8.0.1", 0)),
        ("dns fd08::53", Probe("dns", "fd08::53", 53)),
        ("tcp 10.8.0.80:443", Probe("tcp", "10.8.0.80", 443)),
        ("tcp [fd08::80]:443", Probe("tcp", "fd08::80", 443)),
    ],
)
def test_probes(text: str, probe: Probe) -> None:
    assert read({**LINES, "probe": f'"{text}"'}).probe == probe


@dataclass(frozen=True, slots=True)
class Wrong:
    sentence: str
    key: str
    value: str
    words: str

    def __str__(self) -> str:
        return self.sentence


WRONG = [
    Wrong("a key that is short", "peer", '"AAAA"', "is no WireGuard key; write what `wg pubkey` prints"),
    Wrong("a key in a second spelling", "peer", f'"{"A" * 42}F="', "is no WireGuard key"),
    Wrong("an endpoint without a port", "endpoint", "vpn.corp.example", "needs a host and a port"),
    Wrong("an endpoint that is octal", "endpoint", "010.0.0.1:51820", "is not an address"),
    Wrong("an address that is none", "addresses", "[10.8.0]", "is no address"),
    Wrong("an address of loopback", "addresses", "[127.0.0.1/8]", "is an address that no tunnel leads to"),
    Wrong("no address", "addresses", "[]", "is an empty list"),
    Wrong("a resolver by name", "dns", "[dns.corp.example]", "is a name; write the address"),
    Wrong("a resolver on loopback", "dns", '["::1"]', "that no tunnel leads to"),
    Wrong("a resolver that is mapped", "dns", '["::ffff:127.0.0.1"]', "that no tunnel leads to"),
    Wrong("too many resolvers", "dns", "[10.8.0.1, 10.8.0.2, 10.8.0.3, 10.8.0.4, 10.8.0.5]", "at most 4"),
    Wrong("an MTU too small for IPv6", "mtu", "1279", "is not a whole number from 1280"),
    Wrong("a probe of another kind", "probe", "http 10.8.0.1", "is no probe; write icmp 10.8.0.1"),
    Wrong("a probe of oneself", "probe", "icmp 10.8.0.2", "which is this device's own address"),
    Wrong("a probe of the metadata address", "probe", "icmp 169.254.169.254", "no tunnel leads to"),
    Wrong("a probe that is not routed", "allowed", "[10.9.0.0/16]", "in none of its allowed networks"),
    Wrong("a command", "post_up", "iptables -A", 'unknown key "post_up"'),
    Wrong("a key that is not a file", "private_key", "", "is empty"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_is_wrong(wrong: Wrong) -> None:
    with pytest.raises(Problems) as caught:
        read({**LINES, wrong.key: wrong.value})
    assert wrong.words in str(caught.value)


def test_a_tunnel_that_has_nothing_to_ask() -> None:
    lines = {key: value for key, value in LINES.items() if key != "dns"}
    with pytest.raises(Problems, match=r"nothing to ask its peer; write a probe, such as probe: icmp"):
        read(lines)


def test_a_probe_of_a_family_without_an_address() -> None:
    with pytest.raises(Problems, match="has no IPv6 address of its own"):
        read({**LINES, "addresses": "[10.8.0.2/32]", "probe": '"icmp fd08::1"'})


def test_the_page_says_every_key_and_its_example_is_read() -> None:
    page = (Path(__file__).parents[1] / "docs/wireguard.md").read_text()
    assert {f"| `{key}` |" for key in KEYS} <= set(re.findall(r"^\| `\w+` \|", page, re.MULTILINE))
    example = page.split("```yaml\n")[1].split("```")[0]
    found = read_site(f"zonegate: 1\npolicy: p.yaml\n{example}".encode(), FILE).tunnels["hq"]
    assert isinstance(found, WireguardTunnel) and found.probe == Probe("icmp", "10.8.0.1", 0)
