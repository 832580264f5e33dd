"""UDP as programs use it: `datagrams.py WHAT HOST PORT [COUNT]`. Says what came back, in lines.

Standard library only. `echo` is the server at the other end.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
import time
from collections.abc import Callable

LIMIT_S = 60.0
AT_ONCE_S = 8.0  # waiting for what a client says, or for silence, takes longer


def connected(host: str, port: str) -> socket.socket:
    """A socket to the first address of a host."""
    family, kind, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
    sock = socket.socket(family, kind)
    sock.settimeout(LIMIT_S)
    sock.connect(address)
    return sock


def echo(host: str, port: str) -> str:
    """Say back whatever comes, for ever."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((host, int(port)))
    print("ready", flush=True)
    while True:
        data, client = sock.recvfrom(65536)
        sock.sendto(data, client)


def ask(host: str, port: str) -> str:
    """A few datagrams of all sizes, each answered."""
    with connected(host, port) as sock:
        for size in (1, 500, 1372, 9000):
            sock.send(b"x" * size)
            if sock.recv(65536) != b"x" * size:
                return "another answer"
    return "answered"


def many(host: str, port: str, count: str) -> str:
    """So many exchanges at once, none of which is given up."""
    left = {(sock := connected(host, port)).fileno(): (number, sock) for number in range(int(count))}
    ready = select.poll()
    answered = 0
    for fd, (number, sock) in left.items():
        ready.register(fd, select.POLLIN)
        sock.send(b"%d" % number)
    until = time.monotonic() + 60
    while left and time.monotonic() < until:
        found = ready.poll(1000)
        if not found:  # datagrams may be lost
            for number, sock in left.values():
                sock.send(b"%d" % number)
        for fd, _ in found:
            if fd in left:
                number, sock = left.pop(fd)
                answered += sock.recv(100) == b"%d" % number
                ready.unregister(fd)
    return f"answered {answered}"


def for_ever(host: str, port: str) -> str:
    """One exchange that goes on, and again when it was refused; a line for each datagram."""
    number = 0
    while True:
        try:
            with connected(host, port) as sock:
                sock.settimeout(1)
                while True:
                    number += 1
                    sock.send(b"%d" % number)
                    sock.recv(100)
                    print(f"answered {number}", flush=True)
                    time.sleep(0.05)
        except TimeoutError:
            print(f"silence {number}", flush=True)
        except OSError as error:
            print(f"refused {errno.errorcode.get(error.errno or 0, error)} {number}", flush=True)
            time.sleep(0.05)


def refused(host: str, port: str) -> str:
    """How one that may not be is refused."""
    began = time.monotonic()
    try:
        with connected(host, port) as sock:
            sock.send(b"canary")
            sock.recv(100)
            how = "answered"
    except OSError as error:
        how = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return f"{how} {'at once' if time.monotonic() - began < AT_ONCE_S else 'late'}"


WHAT: dict[str, Callable[..., str]] = {
    "echo": echo,
    "ask": ask,
    "many": many,
    "for-ever": for_ever,
    "refused": refused,
}

if __name__ == "__main__":
    print(WHAT[sys.argv[1]](*sys.argv[2:]), flush=True)
