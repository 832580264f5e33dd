"""The namespace of a packet tunnel: `lo`, the tunnel's device when it is there, and nothing else.

What the device does not take is unreachable, and nothing leaves by another device, before there is one and
after it is gone: the rules name the device and are never changed. Standard library only. Knows no tunnel's
kind, no flow and no event loop.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

from proxy import namespaces
from proxy.messages.holding import PacketSetup

# The two ends of the way of an ordinary user's tunnel over the loopback of its own namespace.
VPN_PORT, SHUTTLE_PORT = 51_820, 51_821
USER_TIMEOUT_MS = 10_000
_RTMGRP_LINK = 1  # linux/rtnetlink.h
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1  # netdevice(7)
_RUN_RULES, _RUN_LINKS = ("nft", "-f", "-"), ("ip", "-batch", "-")


def make(device: str) -> list[int]:
    """Move this process into a new namespace, shut; the descriptors that go with Made.

    Root of the host needs no user namespace. An ordinary user becomes root of one, with a /run of its own,
    since the VPN program stands there too. Raises NamespaceError, OSError.
    """
    ordinary = os.geteuid() != 0
    if ordinary:
        namespaces.enter_new(os.geteuid(), os.getegid())
        os.unshare(os.CLONE_NEWNS)
        namespaces.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", str(Path("/var/run").resolve())])
    else:
        os.unshare(os.CLONE_NEWNET)
    namespaces.run(_RUN_RULES, rules(device, ordinary=ordinary))
    namespaces.run(_RUN_LINKS, _links())
    names = ("net", "user", "mnt") if ordinary else ("net",)
    fds = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in names]
    return [*fds, _shuttle_end().detach()] if ordinary else fds


def rules(device: str, *, ordinary: bool) -> str:
    """One nftables transaction, before there is a device. An ordinary user's VPN program stands inside: its
    own datagrams go over `lo` between two ports and no others."""
    ports = f"udp sport {{ {VPN_PORT}, {SHUTTLE_PORT} }} udp dport {{ {VPN_PORT}, {SHUTTLE_PORT} }}"
    pair = f"ip saddr 127.0.0.1 ip daddr 127.0.0.1 {ports} accept"
    return f"""table inet zonegate {{
  chain out {{
    type filter hook output priority filter; policy drop;
    oifname "{device}" accept
    {f'oifname "lo" {pair}' if ordinary else ""}
  }}
  chain in {{
    type filter hook input priority filter; policy drop;
    iifname "{device}" accept
    {f'iifname "lo" {pair}' if ordinary else ""}
  }}
  chain through {{
    type filter hook forward priority filter; policy drop;
  }}
}}
"""


def _has_ipv6() -> bool:
    return Path("/proc/net/if_inet6").exists()


def _links() -> str:
    text = "link set lo up\nroute add unreachable 0.0.0.0/0 metric 4294967295\n"
    return text + ("route add unreachable ::/0 metric 4294967295\n" if _has_ipv6() else "")


def _shuttle_end() -> socket.socket:
    """Where the VPN program of an ordinary user sends; of anybody else nothing is heard."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.bind(("127.0.0.1", SHUTTLE_PORT))
    sock.connect(("127.0.0.1", VPN_PORT))
    return sock


def address(device: str, setup: PacketSetup) -> None:
    """Give the device its addresses and routes, and set it up. Raises NamespaceError."""
    interfaces = [ip_interface(text) for text in setup.addresses]
    if not _has_ipv6():
        interfaces = [interface for interface in interfaces if interface.version == 4]
    lines = [f"link set dev {device} mtu {setup.mtu} addrgenmode none"]
    for interface in interfaces:
        flags = "" if interface.version == 4 else " nodad"
        lines.append(f"addr add {interface.ip}/{interface.max_prefixlen} dev {device}{flags}")
    lines.append(f"link set dev {device} up")
    versions = {interface.version for interface in interfaces}
    for text in setup.allowed:
        if ip_network(text).version in versions:
            lines.append(f"route add {text} dev {device}")
    namespaces.run(_RUN_LINKS, "\n".join(lines) + "\n")


class Device:
    """The tunnel's device, watched: `gone` is asked again whenever `sock` is readable."""

    def __init__(self, name: str) -> None:
        """Raises OSError where it is not there."""
        self._name = name
        self._index = socket.if_nametoindex(name)
        self.sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
        self.sock.bind((0, _RTMGRP_LINK))
        self._asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def gone(self) -> str:
        """Why the device is not what it was, "" while it is; forgets the news that led to the question."""
        try:
            while True:
                self.sock.recv(65_536)
        except OSError:  # there is no more of it, or more than fitted: the device itself is asked anyway
            pass
        try:
            if socket.if_nametoindex(self._name) != self._index:
                return "another device has its name"
            answer = fcntl.ioctl(self._asking, _SIOCGIFFLAGS, struct.pack("16sh22x", self._name.encode(), 0))
        except OSError:
            return "its device is gone"
        return "" if struct.unpack("16sh22x", answer)[1] & _IFF_UP else "its device was set down"


def connecting(transport: str, host: str, port: int) -> socket.socket:
    """A socket of this namespace to an address behind the tunnel: TCP is connecting, UDP connected.

    Raises OSError, KeyError, ValueError.
    """
    to = ip_address(host)
    if to.is_loopback or to.is_link_local or to.is_multicast or to.is_unspecified:
        raise ValueError(f"no tunnel leads to {to}")
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    sock = socket.socket(family, kinds[transport] | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if transport == "tcp":
            _prepare_stream(sock)
        sock.connect((str(to), port))
    except BlockingIOError:
        return sock
    except BaseException:
        sock.close()
        raise
    return sock


def _prepare_stream(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
