"""Hosts as people and protocols write them, brought to one form; and which addresses are special.

Pure: no resolver, no socket. What two programs could read in two ways (octal, hexadecimal and short
forms of IPv4, dots and cases of names, Unicode labels) is refused or brought to the one canonical form
before anything is judged.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import idna

from proxy.flow import IPAddress

type IPNetwork = IPv4Network | IPv6Network

_DOTTED = re.compile(r"(0|[1-9][0-9]{0,2})(\.(0|[1-9][0-9]{0,2})){3}")
# WHATWG URL, "ends in a number": what an IPv4 parser somewhere would take for an address.
_NUMERIC = re.compile(r"(0[xX][0-9a-fA-F]*|[0-9]+)")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_LABELS = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAX_NAME = 253

# RFC 6890 and its registries: every block that is not globally reachable or not one host's own address,
# with multicast (RFC 5771, RFC 4291), IPv4-compatible addresses and the tunnelled forms whose inner
# address cannot be known (RFC 8215).
SPECIAL: tuple[IPNetwork, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "100:0:0:1::/64",
        "2001::/23",
        "2001:db8::/32",
        "2620:4f:8000::/48",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_SIX_TO_FOUR = IPv6Network("2002::/16")  # RFC 3056
_TEREDO = IPv6Network("2001::/32")  # RFC 4380
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")  # RFC 2765, SIIT


def parse_host(text: str) -> str | IPAddress:
    """A host as typed, in its canonical form: an address, or a name in lower case A-labels.

    IPv6 may stand in brackets. Raises ValueError with the cure where the text is neither, or where two
    programs could read it as two hosts.
    """
    if text.startswith("[") and text.endswith("]"):
        return _ipv6(text[1:-1], text)
    if ":" in text:
        return _ipv6(text, text)
    dotless = text.removesuffix(".")
    if _NUMERIC.fullmatch(dotless.rpartition(".")[2]):
        return parse_ipv4(dotless)
    return parse_name(text)


def parse_ipv4(text: str) -> IPv4Address:
    """Four decimal numbers without leading zeros. Raises ValueError."""
    if not _DOTTED.fullmatch(text) or any(int(part) > 255 for part in text.split(".")):
        raise ValueError(f'"{text[:80]}" is not an address; write four decimal numbers, such as 192.0.2.1')
    return IPv4Address(text)


def _ipv6(text: str, shown: str) -> IPv6Address:
    if "%" in text:
        raise ValueError(f'"{shown[:80]}" has a scope; write the address without %')
    head, colon, tail = text.rpartition(":")
    try:
        if "." in tail:
            parse_ipv4(tail)
        return IPv6Address(head + colon + tail)
    except ValueError:
        raise ValueError(f'"{shown[:80]}" is not an address; write it as in 2001:db8::1') from None


def parse_name(text: str) -> str:
    """The canonical form of a domain name: lower case A-labels, no trailing dot. Raises ValueError."""
    name = text.removesuffix(".")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True, std3_rules=True, transitional=False).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            raise ValueError(f"{_quote(text)} is not a domain name; write its labels in ASCII") from None
    name = name.lower()
    if not name or len(name) > _MAX_NAME:
        raise ValueError(f"{_quote(text)} is not a domain name; it has 1 to {_MAX_NAME} characters")
    if not _LABELS.fullmatch(name):
        raise ValueError(f"{_quote(text)} is not a domain name; write letters, digits and hyphens")
    for label in name.split(".") if "xn--" in name else ():
        if label.startswith("xn--"):
            _check_a_label(label, text)
    if _NUMERIC.fullmatch(name.rpartition(".")[2]):
        raise ValueError(f"{_quote(text)} is not a domain name; a name does not end in a number")
    return name


def _check_a_label(label: str, text: str) -> None:
    """An A-label that does not decode, or not back to itself, is somebody's trick."""
    try:
        if idna.alabel(idna.ulabel(label)).decode("ascii") == label:
            return
    except (idna.IDNAError, UnicodeError):
        pass
    raise ValueError(f"{_quote(text)} has a broken xn-- label; write the name as it is registered")


def _quote(text: str) -> str:
    return '"' + "".join(c if c.isprintable() else "?" for c in text[:80]) + '"'


def inner(address: IPAddress) -> IPAddress:
    """The address that is meant: of mapped, NAT64, 6to4 and Teredo addresses the IPv4 one within."""
    if isinstance(address, IPv4Address):
        return address
    value = int(address)
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64 or address in _TRANSLATED:
        return IPv4Address(value & 0xFFFFFFFF)
    if address in _SIX_TO_FOUR:
        return IPv4Address((value >> 80) & 0xFFFFFFFF)
    if address in _TEREDO:
        return IPv4Address(~value & 0xFFFFFFFF)
    return IPv6Address(value)  # without a scope


def special(address: IPAddress) -> bool:
    """Whether an address, or the one within it, lies in a special-purpose range."""
    meant = inner(address)
    return any(meant.version == block.version and meant in block for block in SPECIAL)
