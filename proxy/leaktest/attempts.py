"""The table of attempts: what is tried, what should come of it, and by which signs its packets are known.

Pure. Targets are documentation addresses (RFC 5737, RFC 3849), resolvers and metadata services that
everybody knows, and what the host itself has. The letter and number of a row are those of docs/threats.md.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from inspect import signature
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from proxy.leaktest import calls
from proxy.leaktest.capture import ARP, IPV4, IPV6, Sign
from proxy.leaktest.ground import Ground

RESOLVERS = ("1.1.1.1", "8.8.8.8", "9.9.9.9", "2606:4700:4700::1111")
METADATA = ("169.254.169.254", "169.254.169.253", "100.100.100.200", "168.63.129.16", "fd00:ec2::254")
GROUPS = (
    ("224.0.0.251", 5353), ("224.0.0.252", 5355), ("239.255.255.250", 1900), ("ff02::fb", 5353),
    ("ff02::1:3", 5355), ("ff02::c", 1900), ("ff02::1:2", 547),
)  # fmt: skip
WITHIN = (
    "::ffff:{0}", "::{0}", "::ffff:0:{0}", "64:ff9b::{1}", "64:ff9b:1::{1}", "2002:{1}::1", "2001:0:{1}::1",
)  # fmt: skip
USUAL_DEVICES = ("eth0", "up0", "wlan0", "wg0", "tun0")
KERNEL_FILES = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper", "/proc/sys/net/ipv4/ip_forward",
)  # fmt: skip
ON_LINK = "10.254.78.1"  # the other end of the control's way out
DEVICE_FILES = (
    "/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock", "/dev/kvm", "/dev/uinput", "/dev/uhid", "/dev/fuse",
    "/dev/kmsg", "/dev/mem", "/dev/rfkill",
)  # fmt: skip
MPTCP, SMC, SCTP, UDP_LITE, GRE, ESP, OWN_HEADER = 262, 256, 132, 136, 47, 50, 255
# Families of sockets (linux/socket.h). Four are those of ordinary programs: unix, inet, inet6, netlink.
FAMILIES = {"AF_PACKET": 17, "AF_BLUETOOTH": 31, "AF_ALG": 38, "AF_VSOCK": 40, "AF_XDP": 44}
ORDINARY, FAMILIES_KNOWN = (1, 2, 10, 16), 46
# Calls, what each is given, and the error by which the kernel itself refuses that.
CALLS: tuple[tuple[str, tuple[int, ...], int], ...] = (
    ("io_uring_setup", (1, 0), errno.EFAULT),
    ("bpf", (7, 0, 1 << 20), errno.E2BIG),
    ("userfaultfd", (1 | 1 << 20,), errno.EINVAL),
    ("keyctl", (0xFFFF,), errno.EOPNOTSUPP),
    ("add_key", (0, 0, 0, 0, 0), errno.EFAULT),
    ("request_key", (0, 0, 0, 0), errno.EFAULT),
    ("perf_event_open", (0, 0, -1, -1, 1 << 40), errno.EINVAL),
    ("name_to_handle_at", (-1, 0, 0, 0, 1 << 30), errno.EINVAL),
)
# Options of a loose and a strict source route (RFC 791), and a segment routing header (RFC 8754).
_LOOSE, _STRICT, _SEGMENTS = 0x83, 0x89, 4


class Scope(Enum):
    """What an attempt is about, which says where it can be tried."""

    NETWORK = "the network namespace"
    SANDBOX = "the files and processes that a program sees"


class Control(Enum):
    """Where an attempt must be seen to get out."""

    OPEN = "a namespace with a way out"
    HOST = "the host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One way out. `needs` names what a machine may lack, on which it is then no way out."""

    number: int
    row: str
    title: str
    expected: str
    probe: str
    arguments: Mapping[str, Any]
    scope: Scope = Scope.NETWORK
    control: Control = Control.OPEN
    needs: str = ""
    signs: tuple[Sign, ...] = field(default=(), repr=False)


def prefix(nonce: str) -> bytes:
    """What every mark of a test begins with."""
    return f"zgleak-{nonce}-".encode()


class Table:
    """Attempts as they are added, each with a number, a mark and signs of its own."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.rows: list[Attempt] = []
        self._random = random.Random(ground.nonce)
        self._last = self._random.sample(range(10, 255), k=245)

    def add(self, row: str, title: str, probe: str, expected: str = "refused", **more: Any) -> None:
        """One attempt; what is no field of Attempt is an argument of its probe."""
        number = len(self.rows)
        own = {name: more.pop(name) for name in ("scope", "control", "needs") if name in more}
        signs = list(more.pop("signs", ()))
        if probe in ("tcp", "fast_open"):
            more["source_port"] = self._random.randrange(10_000, 32_000)
            signs.append(_tcp_sign(more["address"], more["port"], more["source_port"]))
        if "mark" in signature(calls.PROBES[probe]).parameters:
            more["mark"] = (prefix(self.ground.nonce) + b"%03d" % number).decode()
        found = tuple(Sign(sign.kind, sign.offset, sign.content, number) for sign in signs)
        self.rows.append(
            Attempt(
                number=number,
                row=row,
                title=title,
                expected=expected,
                probe=probe,
                arguments=more,
                signs=found,
                **own,
            )
        )

    def address(self, *, six: bool = False) -> str:
        """A documentation address that nobody else asks for, and no other attempt."""
        if six:
            return str(ip_address((0x20010DB8 << 96) + self._random.getrandbits(64)))
        return f"{self._random.choice(('198.51.100', '203.0.113'))}.{self._last.pop()}"


def attempts(ground: Ground) -> tuple[Attempt, ...]:
    """Every attempt on this ground."""
    table = Table(ground)
    for part in (_devices, _addresses, _protocols, _groups, _names, _host_addresses):
        part(table)
    for part in (_host_files, _kernel, _others):
        part(table)
    return tuple(table.rows)


# -- the parts of the table --------------------------------------------------------------------------


def _devices(table: Table) -> None:
    ground = table.ground
    table.add("N2", "a device beside lo", "devices", "none")
    names = [*ground.devices, *USUAL_DEVICES]
    for six in (False, True):
        kind = "IPv6" if six else "IPv4"
        far, near = table.address(six=six), table.address(six=six)
        signs = [*_neighbour_signs(far), *_neighbour_signs(near)]
        sweep: dict[str, Any] = {"names": names, "address": far, "neighbour": near, "signs": signs}
        table.add("N2", f"bound to every device, {kind}", "device_sweep", **sweep)
        target = table.address(six=six)
        table.add("N2", f"every device by its number, {kind}", "index_sweep", address=target,
                  signs=_neighbour_signs(target))  # fmt: skip
        sources = [one for one in ground.addresses if (":" in one) == six]
        if sources:
            table.add("N2", f"from the host's own {kind} address", "source_sweep", sources=sources,
                      address=table.address(six=six))  # fmt: skip
    table.add("N5", "frames by a packet socket", "packet")
    for six in (False, True):
        table.add("N5", f"raw {'IPv6' if six else 'IPv4'}", "raw", address=table.address(six=six))
    for name, protocol in (("GRE", GRE), ("ESP", ESP)):
        table.add("N5", f"raw {name}", "raw", address=table.address(), protocol=protocol)
    table.add("N5", "raw IPv4, from somebody else's address", "raw", address=table.address(),
              protocol=OWN_HEADER, source=table.address())  # fmt: skip


def _addresses(table: Table) -> None:
    for six, name in ((False, "IPv4"), (True, "IPv6")):
        row = "N12" if six else "N1"
        for port, says in ((80, "http"), (443, "tls"), (22, "mark")):
            address = table.address(six=six)
            table.add(row, f"TCP {port}, {name}", "tcp", address=address, port=port, says=says)
        table.add(row, f"UDP 123, {name}", "udp", address=table.address(six=six), port=123)
        table.add("N11", f"echo request, {name}", "ping", address=table.address(six=six))
        table.add("N11", f"fragments, {name}", "udp", address=table.address(six=six), port=9, size=5000)
    for address, port in table.ground.gateways:
        place = f"the tunnel's endpoint {address}"
        table.add("N4", f"TCP to {place}", "tcp", address=address, port=port)
        table.add("N4", f"UDP to {place}", "udp", address=address, port=port)
        table.add("N4", f"echo request to {place}", "ping", address=address)
    for within in WITHIN:
        four = ip_address("203.0.113.7").packed
        address = within.format("203.0.113.7", f"{four[:2].hex()}:{four[2:].hex()}")
        table.add("N13", f"UDP to {address}", "udp", address=address, port=9)
        table.add("N13", f"TCP to {address}", "tcp", address=address, port=80)


def _protocols(table: Table) -> None:
    table.add("N1", "TCP Fast Open", "fast_open", address=table.address(), port=443)
    table.add("N1", "Multipath TCP", "tcp", address=table.address(), port=443, protocol=MPTCP, needs="MPTCP")
    table.add("B5", "SMC", "tcp", address=table.address(), port=443, protocol=SMC, needs="SMC")
    sctp = table.address()
    table.add("B5", "SCTP", "tcp", address=sctp, port=9, protocol=SCTP, needs="SCTP", signs=_target(sctp))
    table.add("B5", "UDP-Lite", "udp", address=table.address(), port=9, protocol=UDP_LITE, needs="UDP-Lite")
    for name, kind in (("loose", _LOOSE), ("strict", _STRICT)):
        value = (bytes([kind, 7, 4]) + socket.inet_aton(ON_LINK) + b"\0").hex()
        table.add("N11", f"a {name} source route", "udp", address=table.address(), port=9,
                  options=[(0, 4, value)], needs="source routes")  # fmt: skip
    last, first = table.address(six=True), table.address(six=True)
    segments = socket.inet_pton(socket.AF_INET6, last) + socket.inet_pton(socket.AF_INET6, first)
    header = bytes([0, 4, _SEGMENTS, 1, 1, 0, 0, 0]) + segments
    table.add("N11", "a routing header, IPv6", "udp", address=last, port=9,
              options=[(41, 57, header.hex())], needs="segment routing")  # fmt: skip


def _groups(table: Table) -> None:
    for address, port in GROUPS:
        probe = "group" if ":" in address else "udp"  # of IPv6, a device must be named
        table.add("N11", f"multicast {address}", probe, address=address, port=port)
    fresh = f"239.255.{random.Random(table.ground.nonce).randrange(1, 250)}.77"
    packed = socket.inet_aton(fresh)
    signs = [Sign(IPV4, 16, packed, 0), Sign(IPV4, 36, packed, 0)]  # IGMP v2 and v3 (RFC 3376)
    table.add("N11", "joining a group, IPv4", "group", address=fresh, port=1900, signs=signs)
    six = "ff05::" + f"{random.Random(table.ground.nonce).getrandbits(32):08x}"[:4] + ":77"
    packed = socket.inet_pton(socket.AF_INET6, six)
    signs = [Sign(IPV6, 24, packed, 0), Sign(IPV6, 60, packed, 0)]  # MLDv2 (RFC 3810), after its option
    table.add("N11", "joining a group, IPv6", "group", address=six, port=1900, signs=signs)
    table.add("N11", "broadcast 255.255.255.255", "udp", address="255.255.255.255", port=67)


def _names(table: Table) -> None:
    ground = table.ground
    table.add("D2", "the system's resolver", "resolve", "answered by the gate")
    for address in dict.fromkeys([*ground.resolvers, *ground.routers, *RESOLVERS]):
        expected = "answered by the gate"
        table.add("D1", f"DNS over UDP to {address}", "udp", expected, address=address, port=53, says="dns")
        table.add("D1", f"DNS over TCP to {address}", "tcp", expected, address=address, port=53,
                  says="dns-tcp")  # fmt: skip
        table.add("D3", f"DNS over TLS to {address}", "tcp", address=address, port=853, says="tls")
        table.add("D3", f"DNS over QUIC to {address}", "udp", address=address, port=853)
    for address in RESOLVERS:
        table.add("D3", f"DNS over HTTPS to {address}", "tcp", address=address, port=443, says="tls")
        table.add("D3", f"QUIC to {address}", "udp", address=address, port=443)
        table.add("D3", f"DNS on port 5353 of {address}", "udp", address=address, port=5353, says="dns")


def _host_addresses(table: Table) -> None:
    ground = table.ground
    for address in ground.routers:
        table.add("N11", f"TCP 80 of the router {address}", "tcp", address=address, port=80, says="http")
        for port in (1900, 5351):  # UPnP, and PCP (RFC 6887): who opens holes
            table.add("N11", f"UDP {port} of the router {address}", "udp", address=address, port=port)
    for address in METADATA:
        table.add("I10", f"metadata service {address}", "tcp", address=address, port=80, says="http")
    local = {"127.0.0.1": ("0.0.0.0", "::ffff:127.0.0.1"), "::1": ("::",)}
    spelled = [(other, port) for address, port in ground.listening for other in local.get(address, ())]
    for address, port in (*ground.listening, *spelled):
        for probe in ("tcp", "udp"):
            table.add("I10", f"the host's own {address}, {probe.upper()}", probe, address=address, port=port,
                      control=Control.HOST)  # fmt: skip
    table.add("B1", "an abstract Unix socket of the host", "unix", path=ground.unix_made[0],
              control=Control.HOST)  # fmt: skip
    table.add("B5", "vsock, out of a virtual machine", "vsock", port=ground.vsock_port,
              scope=Scope.SANDBOX, control=Control.HOST, needs="vsock host")  # fmt: skip


def _host_files(table: Table) -> None:
    ground = table.ground
    inside: dict[str, Any] = {"scope": Scope.SANDBOX, "control": Control.HOST, "expected": "not there"}
    if ground.daemon:
        table.add("B6", "the daemon's own socket", "packets", path=ground.daemon, **inside)
    directories = [str(Path(path).parent) for path in ground.unix_made[1:]]
    table.add("B3", "a file in the home and the directories of the host", "written", directories=directories,
              **inside)  # fmt: skip
    for path in ground.unix_made[1:]:
        table.add("B1", f"a Unix socket below {path.split('/zonegate')[0]}", "unix", path=path, **inside)
    if ground.unix_found:
        title = f"{len(ground.unix_found)} Unix sockets of the host in sight"
        table.add("B1", title, "unix_in_sight", paths=list(ground.unix_found), **inside)
    table.add("B7", "a descriptor of the caller's", "inherited", fd=ground.inherited, **inside)
    table.add("B4", "the host's network, by a process in it", "network_of_others",
              link=ground.network, **inside)  # fmt: skip
    inside["expected"] = "refused"
    table.add("B4", "files that steer the kernel", "files", paths=list(KERNEL_FILES),
              needs="rights of root", **inside)  # fmt: skip


def _kernel(table: Table) -> None:
    """What the kernel is asked past any network; the filter of a bubble answers in its place."""
    inside: dict[str, Any] = {"scope": Scope.SANDBOX, "control": Control.HOST}
    for name, number in FAMILIES.items():
        table.add("B5", f"asking for {name}", "families", "not there", numbers=[number], needs=name, **inside)
    others = sorted({*range(FAMILIES_KNOWN)} - {*ORDINARY, *FAMILIES.values()})
    title = f"asking for {len(others)} other families of sockets"
    table.add("B5", title, "families", "not there", numbers=others, **inside)
    table.add("B5", "AF_VSOCK by the calls of 32-bit programs", "other_abi", family=FAMILIES["AF_VSOCK"],
              needs="32-bit programs", **inside)  # fmt: skip
    for name, given, answer in CALLS:
        table.add("B5", name, "call", name=name, arguments=list(given), answer=answer, needs=name, **inside)
    table.add("B5", "device files of the host", "writable", "not there", paths=list(DEVICE_FILES),
              needs="device files for this user", **inside)  # fmt: skip
    table.add("B2", "typing into a terminal (TIOCSTI)", "typed", needs="TIOCSTI", **inside)
    table.add("B2", "asking for TIOCLINUX, TIOCSTI", "typing_requests", **inside)


def _others(table: Table) -> None:
    """Processes of the host, by their numbers there, and their memory."""
    inside: dict[str, Any] = {"scope": Scope.SANDBOX, "control": Control.HOST, "expected": "not there"}
    pid, name = table.ground.process
    whom: dict[str, Any] = {"pid": pid, "name": name, **inside}
    table.add("B4", "a signal to a process of the host", "signalled", **whom)
    needs = "tracing of one's own processes"
    table.add("B4", "tracing a process of the host", "traced", needs=needs, **whom)
    table.add("B4", "reading a process of the host", "read", needs=needs, **whom)
    table.add("B4", "a descriptor of a process of the host", "taken", fd=table.ground.inherited, needs=needs,
              **whom)  # fmt: skip
    table.add("B4", "shared memory of the host", "shared_memory", key=table.ground.memory_key,
              needs="System V memory", **inside)  # fmt: skip


# -- signs -------------------------------------------------------------------------------------------


def _tcp_sign(address: str, port: int, source_port: int) -> Sign:
    """Destination, then ports: they follow each other where a packet has no options."""
    ip = ip_address(address)
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    kind, offset = (IPV4, 16) if ip.version == 4 else (IPV6, 24)
    return Sign(kind, offset, ip.packed + source_port.to_bytes(2) + port.to_bytes(2), 0)


def _target(address: str) -> list[Sign]:
    ip = ip_address(address)
    return [Sign(*((IPV4, 16) if ip.version == 4 else (IPV6, 24)), ip.packed, 0)]


def _neighbour_signs(address: str) -> list[Sign]:
    """Who asks a link for an address: ARP (RFC 826), neighbour solicitation (RFC 4861)."""
    ip = ip_address(address)
    return [Sign(ARP, 24, ip.packed, 0)] if ip.version == 4 else [Sign(IPV6, 48, ip.packed, 0)]
