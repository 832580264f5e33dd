"""IP packets that the gate makes itself: datagrams that come from anywhere, and the errors of refused ones.

Pure: values in, bytes out. A zone's replies come from the address and port that a program sent to, of which
no socket can have more than one; so their headers are written here (RFC 768, 791, 8200), and those of the
errors (RFC 792, 4443) with which the kernel tells a program at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from proxy.flow import IPAddress

UDP, ICMP, ICMPV6 = 17, 1, 58
HOPS = 64
MAX_PAYLOAD = 65_507  # what fits an IPv4 packet beside its headers
_ADMIN_PROHIBITED = {4: (3, 13), 6: (1, 1)}  # destination unreachable: administratively prohibited
_SAID_OF_IT = 8 + 128  # how much of the refused packet comes back beyond its IP header


@dataclass(frozen=True, slots=True)
class End:
    """An address and a port."""

    address: IPAddress
    port: int


def datagram(source: End, target: End, payload: bytes) -> bytes:
    """A whole IP packet with one UDP datagram. ValueError for a payload that does not fit."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"{len(payload)} bytes are no datagram")
    length = 8 + len(payload)
    body = struct.pack("!HHHH", source.port, target.port, length, 0) + payload
    if target.address.version == 6:  # which has no datagram without a checksum
        total = checksum(_pseudo(source.address, target.address, UDP, length) + body)
        body = body[:6] + total.to_bytes(2) + payload
    return _header(source.address, target.address, UDP, length) + body


def refusal(client: End, target: End, payload: bytes) -> bytes:
    """The error that a router sends whom it forbids to send `payload` to `target`: it comes to the client."""
    sent = datagram(client, target, payload[:_SAID_OF_IT])
    kind, code = _ADMIN_PROHIBITED[target.address.version]
    body = struct.pack("!BBHI", kind, code, 0, 0) + sent
    protocol = ICMP
    covered = body
    if target.address.version == 6:
        protocol = ICMPV6
        covered = _pseudo(target.address, client.address, ICMPV6, len(body)) + body
    body = body[:2] + checksum(covered).to_bytes(2) + body[4:]
    return _header(target.address, client.address, protocol, len(body)) + body


def _header(source: IPAddress, target: IPAddress, protocol: int, length: int) -> bytes:
    if isinstance(target, IPv4Address):  # its checksum and number are the kernel's to write (raw(7))
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, HOPS, protocol, 0)
        head += source.packed + target.packed
        return head[:10] + checksum(head).to_bytes(2) + head[12:]
    return struct.pack("!IHBB", 6 << 28, length, protocol, HOPS) + source.packed + target.packed


def _pseudo(source: IPAddress, target: IPAddress, protocol: int, length: int) -> bytes:
    """RFC 8200, section 8.1."""
    return source.packed + target.packed + struct.pack("!II", length, protocol)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071), never 0: the sum of 16-bit words is their remainder modulo 65,535."""
    total = int.from_bytes(data + b"\0" * (len(data) % 2)) % 0xFFFF
    return 0xFFFF - total
