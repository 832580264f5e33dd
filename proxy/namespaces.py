"""Network namespaces: making a zone out of nothing but a loopback device, and opening its ears.

A zone's namespace has `lo` and no other device. A `local default` route (AnyIP) brings every packet to
the namespace itself, and one rule hands each TCP connection to the gate's listener with its original
destination intact. Without a listener the same rule falls through to a reset: a dead gate refuses at once.
There is no path to close because none was made.

Standard library only: the holder and the door import it. Knows no policy, no flow and no tunnel.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

GATE_PORT = 15001
DNS_PORT = 53
# The zone's own addresses: carrier-grade NAT (RFC 6598) and a unique local address (RFC 4193).
OWN_V4, OWN_V6 = "100.64.0.1", "fd00:7a67:1::1"
BACKLOG, EAR_BYTES = 4096, 4 << 20

SO_NETNS_COOKIE = 71  # linux/socket.h, since 5.14
SO_RCVBUFFORCE = 33  # socket(7)
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
IP_PKTINFO, IPV6_RECVPKTINFO = 8, 49
IP_ORIGDSTADDR, IPV6_ORIGDSTADDR = 20, 74  # as an option they ask for it: linux/in.h, linux/in6.h
SIOCGIFFLAGS, IFF_UP = 0x8913, 1
NS_GET_USERNS, NS_GET_OWNER_UID = 0xB701, 0xB704  # ioctl_ns(2)

# Tunnel modules of the kernel put these into every namespace: they are down, and lead to where lo leads.
KERNELS_OWN = frozenset((
    "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0",
))  # fmt: skip

# In the order in which the door sends them.
LISTENERS = ("tcp4", "tcp6", "dns4", "dns6", "dns-tcp4", "dns-tcp6")
# After them, in a zone with a tunnel that carries packets. Elsewhere the kernel refuses datagrams at once.
DATAGRAM_EARS = ("udp4", "udp6", "reply4", "reply6")


class NamespaceError(Exception):
    """The kernel or a tool refused; the message is one line and says the cure where there is one."""


# Input of `ip -batch -` that makes lo the way to everywhere and nowhere. `src` matters: without it the
# source equals the destination and replies are captured again.
LINK_V4 = f"""link set lo up
addr replace {OWN_V4}/32 dev lo
route replace local 0.0.0.0/0 dev lo src {OWN_V4}
"""
LINK_V6 = f"addr replace {OWN_V6}/128 dev lo nodad\n"
ROUTE_V6 = f"route replace local ::/0 dev lo src {OWN_V6}\n"
# The kernel makes an IPv6 address usable in a work queue of its own, a moment after it was added.
ROUTE_V6_TRIES, ROUTE_V6_PAUSE_S = 100, 0.02


def capture_rules() -> str:
    """The zone's one nftables transaction. What it does not name is refused at once, not left to time out.

    A zone that was made before has its rules replaced in its chains, which stay: a table that is deleted and
    made again may let packets through between the two. A device that somebody adds later leads nowhere.

    No error is ever sent for a multicast; one that is dropped on its way out is an error of the send itself.
    """
    return f"""table inet zonegate
flush table inet zonegate
table inet zonegate {{
  chain capture {{
    type filter hook prerouting priority mangle; policy drop;
    ip daddr {{ {OWN_V4}, 127.0.0.0/8 }} accept
    ip6 daddr {{ {OWN_V6}, ::1 }} accept
    udp dport {DNS_PORT} accept
    tcp dport {DNS_PORT} accept
    meta l4proto {{ tcp, udp }} tproxy to :{GATE_PORT} accept
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}
  chain stay {{
    type filter hook output priority filter; policy accept;
    oifname != "lo" drop
  }}
  chain refuse_groups {{
    type filter hook output priority filter; policy accept;
    ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} drop
    ip6 daddr ff00::/8 drop
  }}
}}
"""


def enter_new(uid: int, gid: int) -> None:
    """Move this single-threaded process into a new user and network namespace, as root of both.

    `uid` and `gid` are those of the caller outside; user_namespaces(7) wants setgroups denied first.
    """
    try:
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
    except OSError as error:
        raise NamespaceError(
            f"the kernel gives no user namespace ({os.strerror(error.errno or 0)}); "
            "allow them: sysctl -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1"
        ) from error
    # The parent's namespace allows setgroups only with a capability there; this one gives it up.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1\n")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1\n")


def make_zone() -> None:
    """Set this process's (new) network namespace up as a zone. NamespaceError leaves it without a way out."""
    ipv6 = Path("/proc/net/if_inet6").exists()
    if ipv6:
        _allow_ipv6()
    run(["ip", "-batch", "-"], LINK_V4 + (LINK_V6 if ipv6 else ""))
    run(["nft", "-f", "-"], capture_rules())
    for tries_left in reversed(range(ROUTE_V6_TRIES if ipv6 else 0)):
        try:
            return run(["ip", "-batch", "-"], ROUTE_V6)
        except NamespaceError:
            if not tries_left:
                raise
            time.sleep(ROUTE_V6_PAUSE_S)
    return None


def _allow_ipv6() -> None:
    """Undo a host's ban of IPv6 in this namespace: refused at once is better than not there at all."""
    switch = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
    with contextlib.suppress(OSError):  # a container may have it read-only; then adding an address says so
        if switch.read_text().strip() != "0":
            switch.write_text("0")


def run(command: Sequence[str], text: str = "") -> None:
    """Run one of the system's tools with `text` as its input; NamespaceError with its first complaint."""
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    try:
        done = subprocess.run(
            command, input=text, text=True, capture_output=True, env={"PATH": path, "LC_ALL": "C"}, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NamespaceError(f"{command[0]} could not be run ({error}); is it installed?") from error
    if done.returncode:
        first = (done.stderr.strip() or "no message").splitlines()[0]
        raise NamespaceError(f"{command[0]} refused: {first}")


def enter(user_fd: int, net_fd: int) -> None:
    """Move this single-threaded process into an existing zone, given by the descriptors of its namespaces.

    Root of the host enters the network namespace alone; an ordinary user must become root of the user
    namespace first, which the kernel allows to the user who made it.
    """
    try:
        os.setns(net_fd, os.CLONE_NEWNET)
    except PermissionError:
        os.setns(user_fd, os.CLONE_NEWUSER)
        os.setns(net_fd, os.CLONE_NEWNET)


def _must_be_namespace(fd: int) -> None:
    """OSError (EINVAL) for the descriptor of anything else.

    A file of a user's own file system (FUSE) answers fstat and ioctl when that user likes, or never; its
    name is told by the kernel alone, and a name without a slash is no file's.
    """
    if not re.fullmatch(r"(net|user):\[\d+\]", str(Path(f"/proc/self/fd/{fd}").readlink())):
        raise OSError(errno.EINVAL, "it is not a namespace")


def owner_uid(net_fd: int) -> int:
    """The user, as seen from here, who made the user namespace that owns this network namespace."""
    _must_be_namespace(net_fd)
    user_fd = fcntl.ioctl(net_fd, NS_GET_USERNS)
    try:
        buffer = bytearray(4)
        fcntl.ioctl(user_fd, NS_GET_OWNER_UID, buffer)
        return int(struct.unpack("I", buffer)[0])
    finally:
        os.close(user_fd)


def is_own_network(net_fd: int) -> bool:
    """Whether a descriptor names the network namespace of this very process."""
    _must_be_namespace(net_fd)
    here = Path("/proc/self/ns/net").stat()
    there = os.fstat(net_fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def only_loopback() -> bool:
    """Whether no device but lo is up in the namespace of this process: the structural claim, looked at.

    Tunnel modules of the kernel (sit, ip6tnl, gre) put a device of their own into every namespace. It is
    down and leads nowhere but into that namespace, in which no program may bring it up.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return not any(_is_up(sock, name) for _, name in socket.if_nameindex() if name != "lo")


def ways_out() -> list[str]:
    """Devices by which the namespace of this process could be left, now or once they are brought up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        names = [name for _, name in socket.if_nameindex() if name != "lo"]
        return [name for name in names if name not in KERNELS_OWN or _is_up(sock, name)]


def _is_up(sock: socket.socket, name: str) -> bool:
    """netdevice(7): SIOCGIFFLAGS."""
    answer = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sh22x", name.encode(), 0))
    return bool(struct.unpack("16sh22x", answer)[1] & IFF_UP)


def cookie(sock: socket.socket) -> int:
    """The kernel's number for the network namespace in which a socket was made."""
    return int(struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])


def open_listeners() -> list[socket.socket]:
    """The gate's ears in this namespace, non-blocking, in the order of LISTENERS.

    Where the kernel has no IPv6, the IPv6 ones are IPv4 sockets that nothing reaches.
    """
    made: list[socket.socket] = []
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        made.append(_listener(family, anywhere, GATE_PORT, transparent=True))
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        made.append(_datagrams(family, anywhere, DNS_PORT))
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        made.append(_listener(family, anywhere, DNS_PORT, transparent=False))
    return made


def open_datagram_ears() -> list[socket.socket]:
    """The gate's ears for UDP, in the order of DATAGRAM_EARS: two that hear and two that answer.

    Those that answer send whole packets and hear nothing (raw(7), IPPROTO_RAW), by lo and no other device.
    """
    made: list[socket.socket] = []
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        sock, usable = _socket(family, socket.SOCK_DGRAM)
        _transparent(sock)
        _make_room(sock)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_ORIGDSTADDR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_ORIGDSTADDR, 1)
        sock.bind((anywhere, GATE_PORT) if usable else ("127.0.0.1", 0))
        made.append(sock)
    for family in (socket.AF_INET, socket.AF_INET6):
        sock, _ = _socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        made.append(sock)
    return made


def _socket(
    family: socket.AddressFamily, kind: socket.SocketKind, protocol: int = 0
) -> tuple[socket.socket, bool]:
    try:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT or family != socket.AF_INET6:
            raise
        again = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        return again, False
    if family == socket.AF_INET6 and kind != socket.SOCK_RAW:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock, True


def _make_room(sock: socket.socket) -> None:
    """For what all programs of a bubble send while the worker is busy: as much as this process may have."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, EAR_BYTES)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EAR_BYTES)


def _transparent(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def _listener(family: socket.AddressFamily, address: str, port: int, *, transparent: bool) -> socket.socket:
    sock, usable = _socket(family, socket.SOCK_STREAM)
    if transparent:
        _transparent(sock)
    if usable:
        sock.bind((address, port))
        sock.listen(BACKLOG)
    else:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
    return sock


def _datagrams(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    sock, usable = _socket(family, socket.SOCK_DGRAM)
    _transparent(sock)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    sock.bind((address, port) if usable else ("127.0.0.1", 0))
    return sock
