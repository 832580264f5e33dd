"""What is seen on a link: every frame that is not the one connection which is allowed.

The kernel itself sorts out the allowed TCP connection (a classic BPF program, so that a fast download
drops nothing), and all the rest waits in the socket until it is asked for: a leak is never missed because
nobody looked in time.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
from dataclasses import dataclass

from lab import kernel

_ETH_P_ALL, _SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 3, 26, 33
_BUFFER_BYTES = 16 << 20
_ETHER_IPV4, _ETHER_ARP, _ETHER_IPV6 = 0x0800, 0x0806, 0x86DD
_MLD_REPORT = 143  # a kernel tells its router which groups its own addresses joined (RFC 3810)

# Classic BPF opcodes; linux/bpf_common.h.
_LDH, _LDB, _LD, _LDXMSH, _LDHX = 0x28, 0x30, 0x20, 0xB1, 0x48
_JEQ, _JSET, _RET = 0x15, 0x45, 0x06
_KEEP, _SORT_OUT = 19, 18


def _program(gateway: str, port: int, protocol: int) -> list[tuple[int, int, int, int]]:
    """Sort out TCP (or UDP) to and from the gateway's port, unless it is a fragment; keep all the rest."""
    address = int(ipaddress.IPv4Address(gateway))
    rows: list[tuple[int, int | None, int | None, int]] = [
        (_LDH, None, None, 12),
        (_JEQ, None, _KEEP, _ETHER_IPV4),
        (_LDB, None, None, 23),
        (_JEQ, None, _KEEP, protocol),
        (_LDH, None, None, 20),
        (_JSET, _KEEP, None, 0x3FFF),
        (_LDXMSH, None, None, 14),
        (_LD, None, None, 26),
        (_JEQ, None, 12, address),
        (_LDHX, None, None, 14),
        (_JEQ, _SORT_OUT, _KEEP, port),
        (_RET, None, None, 512),
        (_LD, None, None, 30),
        (_JEQ, None, _KEEP, address),
        (_LDHX, None, None, 16),
        (_JEQ, _SORT_OUT, _KEEP, port),
        (_RET, None, None, 512),
        (_RET, None, None, 512),
        (_RET, None, None, 0),
        (_RET, None, None, 512),
    ]
    return [
        (code, 0 if yes is None else yes - at - 1, 0 if no is None else no - at - 1, value)
        for at, (code, yes, no, value) in enumerate(rows)
    ]


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that should not have been there."""

    kind: str
    source: str
    target: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.kind} {self.source} > {self.target} {self.data[:48]!r}"


class Wire:
    """A link that is watched, from its making to `close`."""

    def __init__(
        self, network: int, device: str, gateway: str, port: int, protocol: int = socket.IPPROTO_TCP
    ) -> None:
        self.device = device
        with kernel.inside(network):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            rows = _program(gateway, port, protocol)
            code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
            program = struct.pack("HL", len(rows), ctypes.addressof(code))
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            self._sock.bind((device, _ETH_P_ALL))
        self.forget()

    def seen(self) -> list[Frame]:
        """Every strange frame since the last look."""
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                raw, (_, _, direction, *_) = self._sock.recvfrom(65536)
                if direction != socket.PACKET_OUTGOING:  # what the hostile side itself sends
                    frames.append(read_frame(raw))
        return [frame for frame in frames if frame.kind != "kernel's own"]

    def forget(self) -> None:
        """What was seen until now is of no interest."""
        self.seen()

    def close(self) -> None:
        """Watch no longer."""
        self._sock.close()


def read_frame(raw: bytes) -> Frame:
    """What a frame is, as far as a test or its message wants to know."""
    ether = int.from_bytes(raw[12:14])
    body = raw[14:]
    if ether == _ETHER_ARP and len(body) >= 28:
        return Frame("arp", socket.inet_ntoa(body[14:18]), socket.inet_ntoa(body[24:28]), b"")
    if ether == _ETHER_IPV4 and len(body) >= 20:
        ends = socket.inet_ntoa(body[12:16]), socket.inet_ntoa(body[16:20])
        return _transport(body[9], *ends, body[(body[0] & 15) * 4 :])
    if ether == _ETHER_IPV6 and len(body) >= 40:
        ends = _v6(body[8:24]), _v6(body[24:40])
        inner, after = body[6], body[40:]
        if inner == 0 and len(after) >= 8:  # hop-by-hop options, which a report of groups has
            inner, after = after[0], after[(after[1] + 1) * 8 :]
        if inner == socket.IPPROTO_ICMPV6 and after[:1] == bytes([_MLD_REPORT]) and ends[1] == "ff02::16":
            return Frame("kernel's own", *ends, b"")
        return _transport(inner, *ends, after)
    return Frame(f"ethertype {ether:04x}", raw[6:12].hex(), raw[:6].hex(), body[:64])


def _transport(protocol: int, source: str, target: str, after: bytes) -> Frame:
    names = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
    kind = names.get(protocol, f"protocol {protocol}")
    if protocol in (6, 17) and len(after) >= 8:
        ports = struct.unpack("!HH", after[:4])
        start = 8 if protocol == 17 else (after[12] >> 4) * 4 if len(after) > 12 else 20
        return Frame(kind, f"{source}:{ports[0]}", f"{target}:{ports[1]}", after[start:])
    return Frame(kind, source, target, after)


def _v6(packed: bytes) -> str:
    return str(ipaddress.IPv6Address(packed))
