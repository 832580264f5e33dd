"""The allow-list, row by row, and against a plain reading of its rules."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.addresses import IPNetwork, inner
from proxy.gateway.judge import (
    SENSITIVE,
    Allowance,
    Client,
    Refused,
    judge_addresses,
    judge_host,
)

LAPTOP = Client("laptop", "sha256:" + "a" * 64, "1f")


def entry(
    names: str = "", networks: str = "", ports: tuple[tuple[int, int], ...] = ((443, 443),), clients: str = ""
) -> Allowance:
    return Allowance(
        tuple(names.split()),
        tuple(ip_network(text) for text in networks.split()),
        ports,
        tuple(clients.split()),
        "gateway.yaml:1:1",
    )


@dataclass(frozen=True)
class Host:
    id: str
    allow: Allowance
    host: str
    admitted: bool
    port: int = 443


HOSTS = (
    Host("the very name", entry("git.example"), "git.example", True),
    Host("another name", entry("git.example"), "tig.example", False),
    Host("a name below", entry("git.example"), "a.git.example", False),
    Host("below a suffix", entry("*.example"), "a.b.example", True),
    Host("the suffix itself", entry("*.example"), "example", False),
    Host("a name that only ends alike", entry("*.corp.example"), "evilcorp.example", False),
    Host("any name", entry("*"), "whatever.test", True),
    Host("another port", entry("*"), "git.example", False, 22),
    Host("the last port of a range", entry("*", ports=((1, 22),)), "git.example", True, 22),
    Host("for this client by name", entry("*", clients="x laptop"), "git.example", True),
    Host("for this client by fingerprint", entry("*", clients=LAPTOP.fingerprint), "git.example", True),
    Host("for another client", entry("*", clients="laptop2"), "git.example", False),
    Host("a literal in a network", entry(networks="10.0.0.0/8"), "10.1.2.3", True),
    Host("a literal outside", entry(networks="10.0.0.0/8"), "11.1.2.3", False),
    Host("a literal, where only names are allowed", entry("*"), "10.1.2.3", False),
    Host("a literal, where names in a network are", entry("*", "10.0.0.0/8"), "10.1.2.3", False),
    Host("a name, where only literals are", entry(networks="10.0.0.0/8"), "git.example", False),
    Host("a mapped literal is its inner address", entry(networks="10.0.0.0/8"), "::ffff:10.1.2.3", True),
    Host("a mapped literal outside", entry(networks="10.0.0.0/8"), "::ffff:11.1.2.3", False),
)


@pytest.mark.parametrize("case", HOSTS, ids=lambda case: case.id)
def test_host(case: Host) -> None:
    try:
        host = ip_address(case.host)
    except ValueError:
        judged = judge_host([case.allow], LAPTOP, case.host, case.port)
    else:
        judged = judge_host([case.allow], LAPTOP, host, case.port)
    assert (not isinstance(judged, Refused)) is case.admitted
    if isinstance(judged, Refused):
        assert judged.status == 403


@dataclass(frozen=True)
class Address:
    id: str
    networks: str
    address: str
    admitted: bool
    own: bool = False


ADDRESSES = (
    Address("a public one, no network asked for", "", "93.184.216.34", True),
    Address("a private one, no network asked for", "", "10.0.0.5", True),
    Address("outside the networks", "10.0.0.0/8", "192.168.0.1", False),
    Address("loopback, unasked", "", "127.0.0.1", False),
    Address("loopback in a network of everything", "0.0.0.0/0", "127.0.0.1", False),
    Address("loopback that is named", "127.0.0.1/32", "127.0.0.1", True),
    Address("loopback whose block is named", "127.0.0.0/8", "127.0.0.1", True),
    Address("the own host by 0.0.0.0", "0.0.0.0/0", "0.0.0.0", False),
    Address("link-local", "0.0.0.0/0", "169.254.1.1", False),
    Address("metadata", "", "169.254.169.254", False),
    Address("metadata that is named", "169.254.169.254/32", "169.254.169.254", True),
    Address("metadata of another cloud", "100.0.0.0/8", "100.100.100.200", False),
    Address("metadata on a public address", "168.0.0.0/8", "168.63.129.16", False),
    Address("IPv6 metadata in a private network", "fd00::/8", "fd00:ec2::254", False),
    Address("a gate's synthetic address", "", "198.18.0.7", False),
    Address("multicast", "", "224.0.0.1", False),
    Address("broadcast", "", "255.255.255.255", False),
    Address("IPv6 loopback", "::/0", "::1", False),
    Address("IPv6 loopback that is named", "::1/128", "::1", True),
    Address("IPv6 link-local", "::/0", "fe80::1", False),
    Address("loopback, mapped", "0.0.0.0/0 ::/0", "::ffff:127.0.0.1", False),
    Address("loopback, by NAT64", "0.0.0.0/0 ::/0", "64:ff9b::7f00:1", False),
    Address("loopback, by 6to4", "0.0.0.0/0 ::/0", "2002:7f00:1::", False),
    Address("metadata, by 6to4", "0.0.0.0/0 ::/0", "2002:a9fe:a9fe::", False),
    Address("a good one by NAT64", "10.0.0.0/8", "64:ff9b::a00:5", True),
    Address("the gateway's own", "10.0.0.0/8", "10.0.0.1", False, own=True),
    Address("the gateway's own, no network asked for", "", "10.0.0.1", False, own=True),
    Address("the gateway's own, written out", "10.0.0.1/32", "10.0.0.1", True, own=True),
    Address("loopback is own, and its block named", "127.0.0.0/8", "127.0.0.9", True, own=True),
)


@pytest.mark.parametrize("case", ADDRESSES, ids=lambda case: case.id)
def test_address(case: Address) -> None:
    judged = judge_addresses([entry("*", case.networks)], [ip_address(case.address)], lambda _: case.own)
    assert (judged == (ip_address(case.address),)) is case.admitted


def test_only_the_good_ones_of_several_are_dialled() -> None:
    addresses = [ip_address(text) for text in ("127.0.0.1", "10.0.0.5", "169.254.169.254", "10.0.0.6")]
    assert judge_addresses([entry("*")], addresses, lambda _: False) == (addresses[1], addresses[3])


def test_no_address_is_no_connection() -> None:
    assert isinstance(judge_addresses([entry("*")], [], lambda _: False), Refused)


NETWORKS = st.one_of(
    st.ip_addresses(v=4).flatmap(
        lambda ip: st.integers(0, 32).map(lambda n: ip_network(f"{ip}/{n}", strict=False))
    ),
    st.sampled_from(SENSITIVE),
    st.just(ip_network("0.0.0.0/0")),
    st.just(ip_network("::/0")),
)
IPS = st.one_of(st.ip_addresses(), *(st.ip_addresses(network=network) for network in SENSITIVE))


@given(st.lists(NETWORKS, max_size=4), IPS, st.booleans())
def test_a_sensitive_or_own_address_needs_its_name(
    networks: list[IPNetwork], address: object, own: bool
) -> None:
    """The rule as a person would check it, one address at a time."""
    ip = ip_address(str(address))
    meant = inner(ip)
    allow = Allowance(("*",), tuple(networks), ((1, 65535),), (), "")
    admitted = not isinstance(judge_addresses([allow], [ip], lambda _: own), Refused)
    around = [net for net in networks if net.version == meant.version and meant in net]
    if networks and not around:
        assert not admitted
    for block in SENSITIVE:
        if block.version == meant.version and meant in block:
            named = any(all(end in block for end in (net[0], net[-1])) for net in around)
            assert named or not admitted
            return
    if own:
        assert admitted == any(net.num_addresses == 1 for net in around)
    else:
        assert admitted == (not networks or bool(around))
