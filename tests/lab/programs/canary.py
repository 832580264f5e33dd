"""Attempts to get a byte out past the gate: `canary.py WHAT ADDRESS ...`. Says what came of each.

Each attempt is what a program of no privileges can do; none is expected to work in a bubble, and each is
seen on the wire when the same program runs outside of one.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import socket
import struct
import sys
import time
from collections.abc import Callable

MARK = b"canary-of-the-lab"
LIMIT_S = 0.4
KEPT = 20
_ICMP_FILTER_FREE = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _outcome(attempt: Callable[[], str]) -> str:
    try:
        return attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)


def ping(address: str) -> str:
    """An echo request from an unprivileged ICMP socket, or a raw one."""
    family = _family(address)
    request = struct.pack("!BBHHH", 8 if family == socket.AF_INET else 128, 0, 0, 1, 1) + MARK
    total = sum(struct.unpack(f"!{len(request) // 2}H", request[: len(request) // 2 * 2]))
    total += request[-1] << 8 if len(request) % 2 else 0
    total = (total >> 16) + (total & 0xFFFF)
    request = request[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + request[4:]

    def attempt(kind: int) -> str:
        with socket.socket(family, kind, _ICMP_FILTER_FREE[family]) as sock:
            sock.settimeout(LIMIT_S)
            sock.sendto(request, (address, 0))
            sock.recv(2000)
            return "answered"

    first = _outcome(lambda: attempt(socket.SOCK_DGRAM))
    return first if first not in ("EACCES", "EPERM") else _outcome(lambda: attempt(socket.SOCK_RAW))


def datagram(address: str, port: str = "9", size: str = "0") -> str:
    """A UDP datagram, of a size that is sent in fragments if that is asked for."""

    def attempt() -> str:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.sendto(MARK + bytes(int(size)), (address, int(port)))
            return "sent"

    return _outcome(attempt)


def stream(address: str, port: str = "9") -> str:
    """A TCP connection, and the mark on it."""

    def attempt() -> str:
        with socket.create_connection((address, int(port)), LIMIT_S) as sock:
            sock.sendall(MARK)
            return "answered" if sock.recv(1) else "closed"

    return _outcome(attempt)


def bound_to_device(address: str) -> str:
    """SO_BINDTODEVICE to everything that may be there: it ignores routes and asks for neighbours."""
    said = []
    names = ["lo", "up0", "eth0", "wlan0", "wg0", "tun0", *(name for _, name in socket.if_nameindex())]
    for name in dict.fromkeys(names):
        for target in (address, neighbour(address)):

            def attempt(name: str = name, target: str = target) -> str:
                with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
                    sock.sendto(MARK, (target, 9))
                    return "sent"

            said.append(f"{name}:{_outcome(attempt)}")
    return " ".join(said)


def neighbour(address: str) -> str:
    """An address on the device's own link, which nobody has."""
    return "2001:db8:1::77" if ":" in address else "10.200.1.77"


def raw_frame(_address: str) -> str:
    """Raw sockets: a frame past every rule, and an IP packet with a source of its own."""
    said = []
    for name in {"lo", "up0", *(name for _, name in socket.if_nameindex())}:

        def attempt(name: str = name) -> str:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
                sock.bind((name, 0x88B5))  # an EtherType for local experiments
                sock.send(b"\xff" * 6 + bytes(6) + b"\x88\xb5" + MARK + bytes(64))
                return "sent"

        said.append(f"{name}:{_outcome(attempt)}")

    def raw_ip() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:
            sock.sendto(struct.pack("!HHHH", 9, 9, 8 + len(MARK), 0) + MARK, ("198.51.100.80", 0))
            return "sent"

    return " ".join([*said, f"raw-ip:{_outcome(raw_ip)}"])


def discovery(_address: str) -> str:
    """What finds things on a local network: multicast and broadcast, IPv4 and IPv6."""
    targets = (
        ("224.0.0.251", 5353), ("239.255.255.250", 1900), ("255.255.255.255", 67), ("10.200.1.255", 137),
        ("224.0.0.252", 5355), ("ff02::fb", 5353), ("ff02::1", 9), ("ff05::c", 1900),
    )  # fmt: skip
    said = []
    for address, port in targets:
        said.append(datagram(address, str(port)))
        family = _family(address)
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            level, option = (
                (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF)
                if family == socket.AF_INET6
                else (socket.IPPROTO_IP, socket.IP_MULTICAST_IF)
            )
            index = struct.pack("i", 2) if family == socket.AF_INET6 else socket.inet_aton("10.200.1.2")
            sock.setsockopt(level, option, index)
            sock.sendto(MARK, (address, port))
    return " ".join(said)


def question(address: str) -> str:
    """A DNS question of UDP and of TCP to a resolver of the program's choice, and DNS over TLS's port."""
    asked = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\x06canary\x06pastes\x07example\0\0\1\0\1"

    def by_datagram() -> str:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
            sock.settimeout(LIMIT_S)
            sock.sendto(asked, (address, 53))
            return "real" if bytes([198, 51, 100, 80]) in sock.recv(2000) else "synthetic"

    def by_stream() -> str:
        with socket.create_connection((address, 53), LIMIT_S) as sock:
            sock.sendall(struct.pack("!H", len(asked)) + asked)
            return "real" if bytes([198, 51, 100, 80]) in sock.recv(2000) else "synthetic"

    return f"udp:{_outcome(by_datagram)} tcp:{_outcome(by_stream)} dot:{stream(address, '853')}"


def everything(address: str) -> str:
    """Each of the others once, for a loop that goes on while processes die."""
    return f"{datagram(address)} {stream(address, '80')} {question('192.0.2.53')} {ping(address)}"


def loop(address: str) -> str:
    """`everything` until it is told to end by the end of its input; a line for each round."""
    rounds = 0
    while True:
        found = f"{everything(address)} | {everything('2001:db8:80::80')}"
        rounds += 1
        print(f"round {rounds} {found}", flush=True)


def steady(address: str, address6: str) -> str:
    """A way out tried every 10 ms, in turn and waiting for none; a line for every ten of them."""
    question = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\x06canary\x06pastes\x07example\0\0\1\0\1"
    kept: collections.deque[socket.socket] = collections.deque(maxlen=KEPT)
    for tried in itertools.count(1):
        to = (address, address6)[tried % 2]
        with contextlib.suppress(OSError), socket.socket(_family(to), socket.SOCK_DGRAM) as sock:
            sock.sendto(question, (to, 53)) if tried % 4 < 2 else sock.sendto(MARK, (to, 9))
        with contextlib.suppress(OSError):  # no descriptor is left
            kept.append(socket.socket(_family(to), socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            kept[-1].connect((to, 80))
        for sock in kept:
            with contextlib.suppress(OSError):
                sock.send(MARK)
        if tried % 10 == 0:
            print(f"tried {tried}", flush=True)
        time.sleep(0.01)
    return ""


def from_outside(address: str) -> str:
    """A program of the host, every 10 ms: by each device that somebody put there, to an address of the zone.

    A line for every ten times, with how many datagrams were sent.
    """
    sent = 0
    for tried in itertools.count(1):
        for _, name in socket.if_nameindex():
            if name not in ("lo", "up0"):
                with contextlib.suppress(OSError), socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
                    sock.sendto(MARK, (address, 9))
                    sent += 1
        if tried % 10 == 0:
            print(f"tried {tried} sent {sent}", flush=True)
        time.sleep(0.01)
    return ""


def flood(address: str) -> str:
    """Datagrams without a pause, by the device that somebody put there; a line when it begins."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"up0")
        print("begun", flush=True)
        while True:
            with contextlib.suppress(OSError):
                sock.sendto(MARK, (address, 9))


WHAT: dict[str, Callable[..., str]] = {
    "ping": ping,
    "datagram": datagram,
    "stream": stream,
    "device": bound_to_device,
    "raw": raw_frame,
    "discovery": discovery,
    "question": question,
    "everything": everything,
    "loop": loop,
    "steady": steady,
    "from-outside": from_outside,
    "flood": flood,
}

if __name__ == "__main__":
    print(WHAT[sys.argv[1]](*sys.argv[2:]), flush=True)
