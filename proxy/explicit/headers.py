"""The header of each datagram of SOCKS5 (RFC 1928, section 7), read and written.

Pure. Whatever could be understood in two ways is no datagram; nor is a fragment, which the RFC lets a relay
drop.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from proxy.addresses import parse_host
from proxy.flow import IPAddress

_V4, _NAME, _V6 = 1, 3, 4
_LENGTHS = {_V4: 4, _V6: 16}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a datagram is to go: a canonical name or an address, and a port."""

    host: str | IPAddress
    port: int


def read(data: bytes) -> tuple[Target, bytes] | None:
    """Where a client's datagram is to go, and what is to go there; None where it is none."""
    if len(data) < 5 or data[:3] != b"\0\0\0":  # reserved, and the number of a fragment
        return None
    kind = data[3]
    start, length = (5, data[4]) if kind == _NAME else (4, _LENGTHS.get(kind, 0))
    end = start + length
    if not length or len(data) < end + 2:
        return None
    raw, port = data[start:end], int.from_bytes(data[end : end + 2])
    try:
        host = parse_host(raw.decode("ascii")) if kind == _NAME else ip_address(raw)
    except ValueError:
        return None
    return (Target(host, port), data[end + 2 :]) if port else None


def written(target: Target) -> bytes:
    """The header of a datagram that comes from there."""
    match target.host:
        case IPv4Address() | IPv6Address() as address:
            kind, raw = (_V4 if address.version == 4 else _V6), address.packed
        case name:
            kind, raw = _NAME, bytes((len(name),)) + name.encode("ascii")
    return bytes((0, 0, 0, kind)) + raw + target.port.to_bytes(2)
