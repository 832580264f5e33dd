"""The corporate end of the demonstration as a WireGuard peer: a namespace of its own with an intranet site, a
resolver and wireguard-go.

A socket on the host's loopback was opened outside and handed in: its datagrams are the only thing that the
namespace shares with the machine, and this process carries them. Standard library only. Arguments: the
descriptor of that socket, and the directory with the peer's configuration.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from proxy import namespaces, prctl
from proxy.demo.corporate import INTRANET, NAME, serve_site

DEVICE, PORT = "peer", 51_820
PEER_ADDRESS, OWN_ADDRESS = "10.20.1.1", "10.20.1.2"
START_LIMIT_S = 10.0
_A, _NXDOMAIN = 1, 3


def main(arguments: Sequence[str]) -> None:
    """Make the namespace and what stands in it, and carry the tunnel's datagrams until ended."""
    outside = socket.socket(fileno=int(arguments[0]))
    directory = Path(arguments[1])
    parent = os.getppid()
    namespaces.enter_new(os.getuid(), os.getgid())
    os.unshare(os.CLONE_NEWNS)
    prctl.die_with_parent(parent)
    namespaces.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", str(Path("/var/run").resolve())])
    namespaces.run(["ip", "-batch", "-"], f"link set lo up\naddr add {INTRANET}/32 dev lo\n")
    _child(lambda: serve_site(INTRANET))
    _child(answer_names)
    _child(lambda: os.execvp("wireguard-go", ["wireguard-go", "-f", DEVICE]))
    _until_there()
    namespaces.run(["wg", "setconf", DEVICE, str(directory / "peer.conf")])
    namespaces.run(["ip", "-batch", "-"], f"addr add {PEER_ADDRESS}/24 dev {DEVICE}\nlink set {DEVICE} up\n")
    carry(outside)


def _child(work: Callable[[], object]) -> None:
    parent = os.getpid()
    if os.fork() == 0:
        prctl.die_with_parent(parent)
        work()
        os._exit(0)


def _until_there() -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            return namespaces.run(["wg", "show", DEVICE])
        except namespaces.NamespaceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def answer_names() -> None:
    """Be the resolver behind the tunnel, which knows one name."""
    known = b"".join(bytes([len(label)]) + label.encode() for label in NAME.split(".")) + b"\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((INTRANET, 53))
        while True:
            asked, sender = sock.recvfrom(4096)
            name, kind = asked[12 : 12 + len(known)].lower(), asked[12 + len(known) : 14 + len(known)]
            found = name == known and kind == struct.pack("!H", _A)
            code = 0x8180 if name == known else 0x8180 | _NXDOMAIN
            question = asked[12 : asked.find(b"\0", 12) + 5]
            record = struct.pack("!HHHIH", 0xC00C, _A, 1, 60, 4) + socket.inet_aton(INTRANET)
            head = asked[:2] + struct.pack("!HHHHH", code, 1, int(found), 0, 0)
            sock.sendto(head + question + (record if found else b""), sender)


def carry(outside: socket.socket) -> None:
    """Carry datagrams between the last one who sent any from outside, and wireguard-go."""
    inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    inside.connect(("127.0.0.1", PORT))
    sender = None
    while True:
        ready, _, _ = select.select([outside, inside], [], [])
        try:
            if outside in ready:
                data, sender = outside.recvfrom(65_536)
                inside.send(data)
            if inside in ready:
                data = inside.recv(65_536)
                if sender is not None:
                    outside.sendto(data, sender)
        except OSError:  # nobody listens at one end: what is lost is sent again
            continue
