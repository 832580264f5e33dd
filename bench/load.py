"""What is measured, by one program on either side of a gate: `load.py WHAT HOST PORT NUMBER`. Prints numbers.

Standard library only, for Debian's own Python. `echo` is the server at the other end, for TCP and UDP; in the
file that it has instead of a number it keeps when it heard the last byte of `held` (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable

TOGETHER = 100
BEAT = b"."
REQUEST = b"GET / HTTP/1.1\r\nHost: intranet.corp.example\r\nConnection: close\r\n\r\n"


def rounds(host: str, port: int, number: int) -> list[float]:
    """Small requests on one connection, each answered before the next: median ms, and the 99th percentile."""
    with socket.create_connection((host, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def one() -> None:
            sock.sendall(b"x" * 64)
            sock.recv(64)

        return _times(number, one)


def requests(host: str, port: int, number: int) -> list[float]:
    """Small requests, each by name and on a connection of its own: median ms, and the 99th percentile."""

    def one() -> None:
        with socket.create_connection((host, port)) as sock:
            sock.sendall(REQUEST)
            while sock.recv(65_536):
                pass

    return _times(number, one)


def connections(host: str, port: int, number: int) -> list[float]:
    """Connections, each opened, used for 64 bytes and closed: median ms, and the 99th percentile."""

    def one() -> None:
        with socket.create_connection((host, port)) as sock:
            sock.sendall(b"x" * 64)
            sock.recv(64)

    return _times(number, one)


def _times(number: int, what: Callable[[], None]) -> list[float]:
    times = []
    for _ in range(number):
        began = time.perf_counter()
        what()
        times.append((time.perf_counter() - began) * 1000)
    return [statistics.median(times), statistics.quantiles(times, n=100)[98]]


def exchanges(host: str, port: int, number: int) -> list[float]:
    """So many exchanges of UDP begun at once: how many were answered, and ms until the last of them was."""
    _all_descriptors()
    family, kind, _, _, there = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    left, ready = {}, select.epoll()
    for _ in range(number):
        sock = socket.socket(family, kind)
        sock.connect(there)
        left[sock.fileno()] = sock
        ready.register(sock, select.EPOLLIN)
    began = last = time.perf_counter()
    for sock in left.values():
        sock.send(b"x" * 64)
    while left and time.perf_counter() - began < 30:
        found = ready.poll(1)
        if not found:  # lost
            for sock in left.values():
                sock.send(b"x" * 64)
        for fd, _ in found:
            with contextlib.suppress(OSError):
                left[fd].recv(100)
            left.pop(fd).close()
            last = time.perf_counter()
    return [number - len(left), (last - began) * 1000]


def held(host: str, port: int, number: int) -> list[float]:
    """Open so many connections, each answered; say so; say a byte on one after the other, a thousand a
    second, until all are cut. How many, and when the last was, in seconds of CLOCK_MONOTONIC."""
    _all_descriptors()
    there = (socket.gethostbyname(host), port)
    kept, ready = {}, select.epoll()
    for first in range(0, number, TOGETHER):
        some = [socket.create_connection(there) for _ in range(min(TOGETHER, number - first))]
        for sock in some:
            sock.sendall(b"x" * 64)
        for sock in some:
            sock.recv(64)
            kept[sock.fileno()] = sock
            ready.register(sock, select.EPOLLRDHUP | select.EPOLLET)
    print("all open", flush=True)
    cut: set[int] = set()
    last = began = time.monotonic()
    for sock in itertools.cycle(kept.values()):
        if len(cut) == number or time.monotonic() - began > 60:
            return [len(cut), last]
        if found := ready.poll(0.001, number):
            last = time.monotonic()
            cut.update(fd for fd, _ in found)
        with contextlib.suppress(OSError):
            sock.send(BEAT)
    raise AssertionError("there is no connection")


def _all_descriptors() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Echo(asyncio.Protocol, asyncio.DatagramProtocol):
    def __init__(self, heard: int) -> None:
        self.heard = heard

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.strip(BEAT):
            self.transport.write(data)  # type: ignore[attr-defined]
        else:
            os.pwrite(self.heard, f"{time.monotonic():.6f}\n".encode(), 0)

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        self.transport.sendto(data, addr)  # type: ignore[attr-defined]


async def _serve(host: str, port: int, heard: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: _Echo(heard), host, port, backlog=4096)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((host, port))
    await loop.create_datagram_endpoint(lambda: _Echo(heard), sock=sock)
    print("ready", flush=True)
    await asyncio.Event().wait()


WHAT = {found.__name__: found for found in (rounds, requests, connections, exchanges, held)}

if __name__ == "__main__":
    what, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if what == "echo":
        _all_descriptors()
        asyncio.run(_serve(host, port, os.open(sys.argv[4], os.O_WRONLY | os.O_CREAT)))
    print(*WHAT[what](host, port, int(sys.argv[4])), flush=True)
    os._exit(0)  # thousands of sockets need no polite end
