"""Attempts to get out by a network, as a program would make them; `calls` has those past any network.

Runs by itself: standard library only, nothing of ours.

A line of JSON on standard input is a round, `[[number, probe, arguments], ...]`; all of it is tried at once,
and a line of JSON says what came of each. What got through begins with `reached` or `answered`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIMIT_S = 0.8
IP_FREEBIND, IP_UNICAST_IF, IPV6_UNICAST_IF, IPV6_FREEBIND = 15, 50, 76, 78
IPV6_RTHDR = 57
ETHERTYPE = 0x88B5  # for local experiments (IEEE 802)
SYNTHETIC_V4, SYNTHETIC_V6 = bytes([198, 18]), b"\xfd\x00\x7a\x67"
WORDS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.EHOSTUNREACH: "refused: unreachable",
    errno.ENETUNREACH: "refused: no route",
    errno.EACCES: "refused: not permitted",
    errno.EPERM: "refused: not permitted",
    errno.ENODEV: "refused: no such device",
    errno.ENXIO: "refused: no such device",
    errno.EADDRNOTAVAIL: "refused: no such address",
    errno.EAFNOSUPPORT: "not there",
    errno.EPROTONOSUPPORT: "not there",
    errno.ESOCKTNOSUPPORT: "not there",
    errno.ENOPROTOOPT: "not there",
    errno.ENOENT: "not there",
    errno.ENOTDIR: "not there",
    errno.EBADF: "not there",
    errno.ESRCH: "not there",
    errno.ENOSYS: "not there",
}


def outcome(attempt: Callable[[], str]) -> str:
    """What came of an attempt, in a word or two."""
    try:
        return attempt()
    except TimeoutError:
        return "silence"
    except OSError as error:
        return WORDS.get(error.errno or 0) or f"refused: {error.strerror or error}"


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# -- what is said, and what is heard -----------------------------------------------------------------


def question(mark: str) -> bytes:
    """A DNS question for the address of a name that has the mark in it."""
    labels = [mark.encode(), b"zonegate-leaktest", b"example"]
    name = b"".join(bytes([len(label)]) + label for label in labels)
    return b"\x5a\x47\x01\0\0\1\0\0\0\0\0\0" + name + b"\0\0\1\0\1"


def client_hello(mark: str) -> bytes:
    """A TLS ClientHello whose server name has the mark in it (RFC 8446, section 4.1.2)."""
    name = f"{mark}.zonegate-leaktest.example".encode()
    server = struct.pack("!HBH", len(name) + 3, 0, len(name)) + name
    extensions = struct.pack("!HH", 0, len(server)) + server
    extensions += b"\0\x2b\0\x03\x02\x03\x04" + b"\0\x0a\0\x04\0\x02\0\x1d" + b"\0\x0d\0\x04\0\x02\x04\x03"
    body = b"\x03\x03" + os.urandom(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    body += struct.pack("!H", len(extensions)) + extensions
    hello = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + struct.pack("!H", len(hello)) + hello


def said(what: str, mark: str) -> bytes:
    match what:
        case "dns":
            return question(mark)
        case "dns-tcp":
            return struct.pack("!H", len(question(mark))) + question(mark)
        case "tls":
            return client_hello(mark)
        case "http":
            return f"GET /{mark} HTTP/1.1\r\nHost: zonegate-leaktest.example\r\n\r\n".encode()
    return mark.encode()


def heard(what: str, answer: bytes) -> str:
    """Whose answer it is, by what it says: the gate's own words, or somebody else's."""
    if not answer:
        return "refused: closed"
    if what.startswith("dns"):
        own = SYNTHETIC_V4 in answer[-4:] or SYNTHETIC_V6 in answer[-16:]
        refused = len(answer) > 5 and bool(answer[(5 if what == "dns-tcp" else 3)] & 0x0F)
        return "answered by the gate" if own else "refused" if refused else "answered"
    if b"zonegate" in answer.lower() or (what == "tls" and answer[0] == 0x15):
        return "refused by the gate"
    return "answered"


# -- probes ------------------------------------------------------------------------------------------


def tcp(address: str, port: int, mark: str, source_port: int, says: str = "mark", protocol: int = 0) -> str:
    """A TCP connection, or one of another protocol of streams, and something said on it."""
    with socket.socket(family_of(address), socket.SOCK_STREAM, protocol) as sock:
        sock.settimeout(LIMIT_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # only what recognises it on a wire depends on it
            sock.bind(("", source_port))
        sock.connect((address, port))
        sock.sendall(said(says, mark))
        return heard(says, sock.recv(4096))


def fast_open(address: str, port: int, mark: str, source_port: int) -> str:
    """TCP whose first packet brings data (RFC 7413)."""
    with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
        sock.settimeout(LIMIT_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            sock.bind(("", source_port))
        with contextlib.suppress(BlockingIOError):  # without a cookie the data follow the handshake
            sock.sendto(mark.encode(), socket.MSG_FASTOPEN, (address, port))
        return heard("mark", sock.recv(4096))


def udp(
    address: str, port: int, mark: str, says: str = "mark", size: int = 0,
    options: Iterable[tuple[int, int, str]] = (), source: str = "", scope: int = 0, protocol: int = 0,
) -> str:  # fmt: skip
    """A datagram, from a source and with socket options of its own; an option's value is hexadecimal."""
    family = family_of(address)
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(LIMIT_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for level, option, value in options:
            sock.setsockopt(level, option, bytes.fromhex(value))
        if source:
            sock.bind((source, 0))
        sock.connect((address, port, 0, scope) if family == socket.AF_INET6 else (address, port))
        sock.send(said(says, mark) + bytes(size))
        return heard(says, sock.recv(4096))


def sweep(attempts: Iterable[tuple[str, Callable[[], str]]]) -> str:
    """The outcomes of several attempts, each said once; one that got through comes first."""
    found: dict[str, str] = {}
    for name, attempt in attempts:
        found.setdefault(outcome(attempt), name)
    through = [f"{word} ({name})" for word, name in found.items() if word.startswith(("reached", "answered"))]
    return ", ".join(through or sorted(found)) or "not there"


def own_devices() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def device_sweep(names: list[str], address: str, neighbour: str, mark: str) -> str:
    """SO_BINDTODEVICE to every device that may be there: it ignores routes, and asks for neighbours."""

    def send(name: str, target: str) -> str:
        with socket.socket(family_of(target), socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
            sock.sendto(mark.encode(), (target, 9))
            return "into its own lo" if name == "lo" else f"sent by {name}"

    every = dict.fromkeys([*names, *own_devices()])
    return sweep((n, lambda n=n, t=t: send(n, t)) for n in every for t in (address, neighbour))  # type: ignore[misc]


def index_sweep(address: str, mark: str) -> str:
    """Devices by their numbers: IP_UNICAST_IF, IPV6_UNICAST_IF, a scope."""
    four = family_of(address) == socket.AF_INET
    level, option = (0, IP_UNICAST_IF) if four else (41, IPV6_UNICAST_IF)

    def send(index: int, *, scoped: bool) -> str:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
            if not scoped:
                sock.setsockopt(level, option, struct.pack("!I", index))
            target = (address, 9) if four else (address, 9, 0, index if scoped else 0)
            sock.sendto(mark.encode(), target)
            return "sent"

    kinds = (False,) if four else (False, True)
    return sweep((str(n), lambda n=n, k=k: send(n, scoped=k)) for n in range(1, 65) for k in kinds)  # type: ignore[misc]


def source_sweep(sources: list[str], address: str, mark: str) -> str:
    """A source address of the host's own, whether it is there or not (IP_FREEBIND)."""

    def send(source: str) -> str:
        family = family_of(source)
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.1)
            option = (41, IPV6_FREEBIND) if family == socket.AF_INET6 else (0, IP_FREEBIND)
            sock.setsockopt(*option, 1)
            sock.bind((source, 0))
            sock.connect((address, 9))
            sock.send(mark.encode())
            return heard("mark", sock.recv(100))

    return sweep((source, lambda s=source: send(s)) for source in sources)  # type: ignore[misc]


def group(address: str, port: int, mark: str) -> str:
    """Join a group, which the kernel tells its routers, and send to it by every device."""
    family = family_of(address)
    packed = socket.inet_pton(family, address)

    def send(index: int) -> str:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            number = struct.pack("=I", index)
            if family == socket.AF_INET6:
                sock.setsockopt(41, socket.IPV6_JOIN_GROUP, packed + number)
                sock.setsockopt(41, socket.IPV6_MULTICAST_IF, number)
            else:
                sock.setsockopt(0, socket.IP_ADD_MEMBERSHIP, packed + bytes(4) + number)
                sock.setsockopt(0, socket.IP_MULTICAST_IF, bytes(8) + number)
            sock.sendto(mark.encode(), (address, port))
            return "sent"

    return sweep((str(index), lambda i=index: send(i)) for index, _ in socket.if_nameindex())  # type: ignore[misc]


def ping(address: str, mark: str) -> str:
    """An echo request."""
    family = family_of(address)
    protocol = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    request = struct.pack("!BBHHH", 128 if family == socket.AF_INET6 else 8, 0, 0, 1, 1) + mark.encode()

    def send(kind: int) -> str:
        with socket.socket(family, kind, protocol) as sock:
            sock.settimeout(LIMIT_S)
            sock.connect((address, 0))
            sock.send(request)
            sock.recv(2000)
            return "answered"

    first = outcome(lambda: send(socket.SOCK_DGRAM))
    return outcome(lambda: send(socket.SOCK_RAW)) if first == "refused: not permitted" else first


def raw(address: str, mark: str, protocol: int = socket.IPPROTO_UDP, source: str = "") -> str:
    """An IP packet that the program makes itself; with a source, its header too."""
    datagram = struct.pack("!HHHH", 9, 9, 8 + len(mark), 0) + mark.encode()
    if source:  # RFC 791, section 3.1; the kernel fills in the length and the sums
        ends = socket.inet_aton(source) + socket.inet_aton(address)
        datagram = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0) + ends + datagram
    with socket.socket(family_of(address), socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(0.2)
        sock.connect((address, 0))
        sock.send(datagram)
        return heard("mark", sock.recv(100))


def packet(mark: str) -> str:
    """Frames past every rule for IP, by every device."""

    def send(name: str) -> str:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((name, ETHERTYPE))
            sock.send(b"\xff" * 6 + bytes(6) + struct.pack("!H", ETHERTYPE) + mark.encode() + bytes(64))
            return "into its own lo" if name == "lo" else f"sent by {name}"

    return sweep((name, lambda n=name: send(n)) for name in own_devices())  # type: ignore[misc]


def resolve(mark: str) -> str:
    """The system's own resolver, with all its helpers (nscd, systemd-resolved)."""
    try:
        found = socket.getaddrinfo(f"{mark}.zonegate-leaktest.example", 80, proto=socket.IPPROTO_TCP)
    except OSError:
        return "refused: no such name"
    packed = socket.inet_pton(found[0][0], str(found[0][4][0]))
    return "answered by the gate" if packed.startswith((SYNTHETIC_V4, SYNTHETIC_V6)) else "answered"


def devices() -> str:
    """Every device but lo that is up."""
    up = [name for name in own_devices() if name != "lo" and _is_up(name)]
    return f"reached: {', '.join(up)}" if up else "none"


def _is_up(name: str) -> bool:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, 0x8913, struct.pack("16sh22x", name.encode(), 0))  # SIOCGIFFLAGS
    return bool(struct.unpack("16sh22x", answer)[1] & 1)


# -- what lies on the host itself --------------------------------------------------------------------


def unix(path: str) -> str:
    """A Unix socket of the host: these cross network namespaces where the file is seen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(LIMIT_S)
        sock.connect(path.replace("@", "\0", 1))
        return "reached"


def unix_in_sight(paths: list[str]) -> str:
    """Which of the host's listening Unix sockets can be seen; none is spoken to."""
    names = Path("/proc/net/unix")
    here = {line.split()[-1] for line in names.read_text().splitlines()} if names.exists() else set()

    def seen(path: str) -> bool:
        with contextlib.suppress(OSError):
            return path in here if path.startswith("@") else stat.S_ISSOCK(Path(path).stat().st_mode)
        return False

    found = [path for path in paths if seen(path)]
    return f"reached: {len(found)}, {found[0]}" if found else "not there"


def network_of_others(link: str) -> str:
    """A process in the host's network whose namespace could be entered (setns)."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and str(Path(entry, "ns/net").readlink()) == link:
                os.close(os.open(entry / "ns/net", os.O_RDONLY))
                return "reached"
    return "not there"


def files(paths: list[str]) -> str:
    """Files through which the kernel of the host is told what to do; they are opened and not written."""

    def open_it(path: str) -> str:
        os.close(os.open(path, os.O_WRONLY))
        return "reached"

    return sweep((path, lambda p=path: open_it(p)) for path in paths)  # type: ignore[misc]


def inherited(fd: int, mark: str) -> str:
    """A socket that the caller had open."""
    os.write(fd, mark.encode())
    return "reached"


def vsock(port: int, mark: str) -> str:
    """The way from a virtual machine to its host, which no network namespace bounds."""

    def send(cid: int) -> str:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
            sock.settimeout(LIMIT_S)
            sock.connect((cid, port))
            sock.sendall(mark.encode())
            return "reached"

    return sweep((str(cid), lambda c=cid: send(c)) for cid in (1, 2))  # type: ignore[misc]


NETWORK_PROBES: dict[str, Callable[..., str]] = {
    probe.__name__: probe
    for probe in (
        tcp, fast_open, udp, device_sweep, index_sweep, source_sweep, group, ping, raw, packet, resolve,
        devices, unix, unix_in_sight, network_of_others, files, inherited, vsock,
    )
}  # fmt: skip


def tried(probe: Callable[..., str], arguments: dict[str, object]) -> str:
    try:
        return outcome(lambda: probe(**arguments))
    except Exception as error:
        return f"failed: {error!r}"


def main(probes: Mapping[str, Callable[..., str]]) -> None:
    """Rounds of these probes until the input ends."""
    os.environ["RES_OPTIONS"] = "timeout:1 attempts:1"  # resolv.conf(5): a resolver that is silent, once
    for line in sys.stdin:
        attempts = json.loads(line)
        with ThreadPoolExecutor(max(1, len(attempts))) as pool:
            running = [
                (number, pool.submit(tried, probes[probe], given)) for number, probe, given in attempts
            ]
            print(json.dumps({number: found.result() for number, found in running}), flush=True)
