"""Run by test_names in new user, network and mount namespaces: a zone, its sealed server, and clients.

Arguments: asyncio or uvloop, and a folder. Prints one JSON object: question to what a program printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyseccomp
import uvloop

from proxy.allocator import Allocator, Synthetic
from proxy.flow import Because, IPAddress, Origin, Refusal
from proxy.names import (
    IP_PKTINFO,
    IPV6_RECVPKTINFO,
    IPV6_TRANSPARENT,
    BubbleNames,
    DatagramNames,
    stream_names,
)

OWN = {"4": "100.64.0.1/32", "6": "fd00:7a67:1::1/128"}
NOWHERE = {"4": "0.0.0.0/0", "6": "::/0"}
FAMILIES = (socket.AF_INET, socket.AF_INET6)
SEALED = ("socket", "connect", "bind", "listen")


def set_up() -> None:
    """As the door does: lo is the way to everywhere, and every address is local."""
    run("ip link set lo up")
    for family, own in OWN.items():
        run(f"ip -{family} addr add {own} dev lo" + (" nodad" if family == "6" else ""))
        route = f"ip -{family} route add local {NOWHERE[family]} dev lo src {own.partition('/')[0]}"
        for _ in range(100):  # an IPv6 address becomes usable a moment after it was added
            if not (trouble := run(route)):
                break
            time.sleep(0.02)
        else:
            raise RuntimeError(trouble)


def run(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=90, check=False)
    return (done.stdout + done.stderr).strip()


def open_sockets() -> tuple[list[socket.socket], list[socket.socket]]:
    datagrams, listeners = [], []
    for family in FAMILIES:
        udp = socket.socket(family, socket.SOCK_DGRAM)
        tcp = socket.socket(family, socket.SOCK_STREAM)
        for sock in (udp, tcp):
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
            udp.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        else:
            udp.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        for sock in (udp, tcp):
            sock.bind(("", 53))
            sock.setblocking(False)
        tcp.listen()
        datagrams.append(udp)
        listeners.append(tcp)
    return datagrams, listeners


def seal(sample: socket.socket) -> str:
    """Forbid what makes or turns a socket; gives what was tried and is forbidden."""
    rules: Any = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for call in SEALED:
        rules.add_rule(pyseccomp.ERRNO(1), call)
    rules.load()
    tries: dict[str, Callable[[], object]] = {
        "socket": lambda: socket.socket(),
        "connect": lambda: sample.connect(("127.0.0.1", 53)),
        "bind": lambda: sample.bind(("", 54)),
        "listen": lambda: sample.listen(),
    }
    forbidden = []
    for call, attempt in tries.items():
        try:
            attempt()
        except PermissionError:
            forbidden.append(call)
    return " ".join(forbidden)


async def serve(folder: Path, ready: int) -> None:
    datagrams, listeners = open_sockets()
    allocator = Allocator(folder / "names", clock=lambda: 0.0, boot="boot")

    async def ask_address(bubble: str, name: str) -> Synthetic | Refusal:
        if name.startswith("full"):
            return Refusal(Because(Origin.GATE, "names-quota", "too many names"), "leave the bubble")
        return allocator.allocate(bubble, name)

    async def ask_name(bubble: str, address: IPAddress) -> str | None:
        return allocator.name_of(bubble, address)

    names = BubbleNames("b1", ask_address, ask_name)
    loop = asyncio.get_running_loop()
    with socket.socket() as sample:
        forbidden = seal(sample)
    servers = [DatagramNames(sock, names) for sock in datagrams]
    streams: set[asyncio.Task[None]] = set()

    async def accept(listener: socket.socket) -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            streams.add(loop.create_task(stream_names(sock, names)))

    os.write(ready, forbidden.encode() or b"nothing")
    os.close(ready)
    await asyncio.gather(*(accept(listener) for listener in listeners))
    assert servers


def ask(folder: Path) -> dict[str, str]:
    said = {}
    for resolver in ("8.8.8.8", "2001:4860:4860::8888", "192.0.2.53", "127.0.0.1"):
        for transport in ("+notcp", "+tcp"):
            for kind in ("A", "AAAA"):
                dig = f"dig @{resolver} {transport} +short +tries=1 Intranet.Example {kind}"
                said[f"{kind} {resolver} {transport}"] = run(dig)
    said["refused"] = run("dig @8.8.8.8 +tries=1 full.example A")
    for name, content in (
        ("resolv.conf", "nameserver 192.0.2.53\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
    ):
        (folder / name).write_text(content)
        run(f"mount --bind {folder / name} {Path('/etc', name).resolve()}")
    said["getent ahosts"] = run("getent ahosts intranet.example")
    for address in ("198.18.1.0", "fd00:7a67::100"):
        said[f"getent hosts {address}"] = run(f"getent hosts {address}")
    return said


def main() -> None:
    set_up()
    folder = Path(sys.argv[2])
    factory = uvloop.new_event_loop if sys.argv[1] == "uvloop" else asyncio.new_event_loop
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(serve(folder, writer))
    os.close(writer)
    sealed = os.read(reader, 100).decode()
    said = ask(folder) | {"sealed": sealed}
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said["after the end"] = run("dig @8.8.8.8 +tries=1 +time=1 intranet.example A")
    print(json.dumps(said))


main()
