"""A WireGuard tunnel as the site file describes it.

Reads values and refuses what is wrong; opens no file. What it cannot know, such as whether the key fits the
gateway, is the attestation's to say.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network
from pathlib import Path

from proxy.addresses import IPNetwork, inner, parse_host
from proxy.flow import IPAddress
from proxy.messages.holding import Probe
from proxy.policy.reading import Reading, one_of
from proxy.policy.source import Node, Scalar

KEYS = (
    "kind", "private_key", "peer", "preshared_key", "endpoint", "addresses", "allowed", "dns", "mtu",
    "keepalive", "probe",
)  # fmt: skip
REQUIRED = ("kind", "private_key", "peer", "endpoint", "addresses")
DEFAULT_MTU, MTU_LEAST, MTU_MOST = 1420, 1280, 65_455  # IPv6 needs 1280 (RFC 8200, section 5)
DEFAULT_KEEPALIVE_S = 25
MAX_ADDRESSES, MAX_RESOLVERS, MAX_ALLOWED = 8, 4, 256
EVERYTHING = ("0.0.0.0/0", "::/0")
_ENDPOINT = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]+)):([0-9]{1,5})")
_PROBE = re.compile(r"(icmp|dns|tcp) +(\S+)")

type Interface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class WireguardTunnel:
    """One WireGuard tunnel. Paths are as the file says them, relative to the file.

    `allowed` are the networks that the peer may have, `dns` the tunnel's own resolvers.
    """

    name: str
    private_key: Path
    preshared_key: Path | None
    peer: str
    host: str | IPAddress
    port: int
    addresses: tuple[Interface, ...]
    allowed: tuple[IPNetwork, ...]
    dns: tuple[IPAddress, ...]
    mtu: int
    keepalive_s: int
    probe: Probe


def read_wireguard(
    reading: Reading, name: str, node: Node, path: Callable[[Node | None, str], Path | None]
) -> WireguardTunnel | None:
    """The tunnel of one entry under `tunnels`; what is wrong is told to `reading`."""
    what = f'tunnel "{name}"'
    keys = reading.mapping(node, what, KEYS, REQUIRED)

    def parsed[T](key: str, parse: Callable[[str], T]) -> T | None:
        return reading.parsed(keys[key], f"{key} of {what}", parse) if key in keys else None

    def listed[T](key: str, parse: Callable[[str], T], most: int) -> tuple[T, ...]:
        words = reading.words(keys[key], f"{key} of {what}") if key in keys else ()
        if len(words) > most:
            reading.problem(words[most], f"{what} has {len(words)} {key}; write at most {most}")
        return tuple(found for word in words if (found := _each(reading, word, f"{key} of {what}", parse)))

    def number(key: str, least: int, most: int, default: int) -> int:
        found = reading.integer(keys[key], f"{key} of {what}", least, most) if key in keys else default
        return default if found is None else found

    private_key = path(keys.get("private_key"), f"private_key of {what}")
    preshared_key = path(keys.get("preshared_key"), f"preshared_key of {what}")
    peer = parsed("peer", parse_key)
    endpoint = parsed("endpoint", parse_endpoint)
    addresses = listed("addresses", parse_interface, MAX_ADDRESSES)
    resolvers = listed("dns", parse_inside, MAX_RESOLVERS)
    allowed = listed("allowed", parse_network, MAX_ALLOWED) or tuple(map(ip_network, EVERYTHING))
    mtu = number("mtu", MTU_LEAST, MTU_MOST, DEFAULT_MTU)
    keepalive_s = number("keepalive", 0, 65_535, DEFAULT_KEEPALIVE_S)
    probe = parsed("probe", parse_probe)
    if probe is None and "probe" not in keys and "dns" not in keys:
        reading.problem(
            node, f"{what} has nothing to ask its peer; write a probe, such as probe: icmp 10.8.0.1, or dns"
        )
    if probe is None and resolvers:
        probe = Probe("dns", str(resolvers[0]), 53)
    if private_key is None or peer is None or endpoint is None or not addresses or probe is None:
        return None
    for asked in (probe.address, *map(str, resolvers)):
        if trouble := unreachable(asked, addresses, allowed):
            reading.problem(node, f"{what} asks {asked}, {trouble}")
    return WireguardTunnel(
        name, private_key, preshared_key, peer, *endpoint, addresses, allowed, resolvers, mtu, keepalive_s,
        probe,
    )  # fmt: skip


def _each[T](reading: Reading, word: Scalar, what: str, parse: Callable[[str], T]) -> T | None:
    try:
        return parse(word.text)
    except ValueError as error:
        reading.problem(word, f"{what} {error}")
        return None


def unreachable(asked: str, addresses: tuple[Interface, ...], allowed: tuple[IPNetwork, ...]) -> str:
    """Why an address cannot be asked through a tunnel, "" where it can."""
    address = ip_interface(asked).ip
    if any(address == own.ip for own in addresses):
        return "which is this device's own address; write one of the peer's side"
    if not any(own.version == address.version for own in addresses):
        return f"and has no IPv{address.version} address of its own; add one under addresses"
    if not any(network.version == address.version and address in network for network in allowed):
        return "which is in none of its allowed networks; add one under allowed"
    return ""


# -- values ------------------------------------------------------------------------------------------


def parse_key(text: str) -> str:
    """A key as WireGuard writes it: 32 bytes in base64, in the one form that there is of them."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except ValueError:
        decoded = b""
    if len(decoded) != 32 or base64.b64encode(decoded).decode() != text:
        raise ValueError(f'"{text[:60]}" is no WireGuard key; write what `wg pubkey` prints, 44 characters')
    return text


def parse_endpoint(text: str) -> tuple[str | IPAddress, int]:
    """`host:port`, the host a name or an address (IPv6 in brackets)."""
    found = _ENDPOINT.fullmatch(text)
    if not found or not 0 < int(found[3]) < 65_536:
        raise ValueError(
            f'"{text[:80]}" needs a host and a port; write host:port, such as vpn.corp.example:51820'
        )
    return parse_host(found[1] if found[1] is not None else found[2]), int(found[3])


def parse_interface(text: str) -> Interface:
    """An address of this device inside the tunnel, with or without its prefix length."""
    try:
        found = ip_interface(text)
    except ValueError:
        raise ValueError(f'"{text[:80]}" is no address; write it as in 10.8.0.2/32') from None
    _must_be_ordinary(found.ip, text)
    return found


def parse_network(text: str) -> IPNetwork:
    """A network that the peer may have."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f'"{text[:80]}" is no network; write it as in 10.8.0.0/24') from None


def parse_inside(text: str) -> IPAddress:
    """A literal address behind the peer."""
    host = parse_host(text)
    if isinstance(host, str):
        raise ValueError(f'"{host}" is a name; write the address that it has inside the tunnel')
    _must_be_ordinary(host, text)
    return host


def parse_probe(text: str) -> Probe:
    """`icmp ADDRESS`, `dns ADDRESS` or `tcp ADDRESS:PORT`: what only the peer's side can answer."""
    found = _PROBE.fullmatch(text.strip())
    if not found:
        kinds = ("icmp 10.8.0.1", "dns 10.8.0.53", "tcp 10.8.0.80:443")
        raise ValueError(f'"{text[:80]}" is no probe; write {one_of(kinds)}')
    if found[1] == "tcp":
        host, port = parse_endpoint(found[2])
        return Probe("tcp", str(parse_inside(str(host))), port)
    return Probe(found[1], str(parse_inside(found[2])), _PORTS[found[1]])


_PORTS: Mapping[str, int] = {"icmp": 0, "dns": 53}


def _must_be_ordinary(address: IPAddress, text: str) -> None:
    meant = inner(address)
    if meant.is_loopback or meant.is_link_local or meant.is_multicast or meant.is_unspecified:
        raise ValueError(f'"{text[:80]}" is an address that no tunnel leads to; write one behind the peer')
