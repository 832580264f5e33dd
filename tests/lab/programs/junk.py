"""Junk: to a Unix socket (`unix PATH`, hex lines on stdin), in a zone (`zone NAME`), of names (`names N`)."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys

LIMIT_S = 60.0


def unix(path: str) -> None:
    """Each line in a connection of its own; says how each ended."""
    for line in sys.stdin.read().split("\n"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(LIMIT_S)
            sock.connect(path)
            try:
                sock.send(bytes.fromhex(line))
                while sock.recv(65536):
                    pass
                print("closed", flush=True)
            except ConnectionError:
                print("closed", flush=True)
            except TimeoutError:
                print("open", flush=True)


def zone(name: str) -> None:
    """Datagrams and streams of junk to the resolver, and first bytes of no protocol to ports of each."""
    pieces = [
        b"",
        b"\0",
        b"\xff" * 12,
        os.urandom(300),
        os.urandom(4096),
        b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\xc0\x0c",
    ]
    for family, resolver in ((socket.AF_INET, "100.64.0.1"), (socket.AF_INET6, "fd00:7a67:1::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            for piece in pieces * 50:
                sock.sendto(piece, (resolver, 53))
        for piece in pieces:
            _stream(resolver, 53, struct.pack("!H", len(piece)) + piece)
            _stream(resolver, 53, piece)
    for port in (22, 80, 443, 7000, 15001):
        for piece in (*pieces, b"\x16\x03\x01\xff\xff", b"GET / HTTP/1.1\r\n" + b"x" * 70_000, b"SSH-9.9"):
            _stream(name, port, piece)
    print("done", flush=True)


def _stream(host: str, port: int, piece: bytes) -> None:
    with contextlib.suppress(OSError), socket.create_connection((host, port), LIMIT_S) as sock:
        sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(1)
        while sock.recv(65536):
            pass


def names(count: str, stay: str = "") -> None:
    """Asks for many names and says when the first was refused."""
    for number in range(int(count)):
        try:
            socket.getaddrinfo(f"n{number}.example", 80, socket.AF_INET)
        except OSError:
            print(f"names: refused after {number}", flush=True)
            break
    else:
        print("names: all told", flush=True)
    if stay:
        sys.stdin.read()


if __name__ == "__main__":
    {"unix": unix, "zone": zone, "names": names}[sys.argv[1]](*sys.argv[2:])
