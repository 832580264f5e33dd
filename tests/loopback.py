"""Connected sockets on loopback, a site's certificates, and both event loops. No tests are here."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from proxy.certificates import Issued, issue_client, issue_server, make_authority, write_issued
from proxy.channel import Channel, client_context, server_context

type Run = Callable[[Coroutine[Any, Any, None]], None]

LOOPS = ("asyncio", "uvloop")


def runner(loop: str) -> Run:
    """Runs a coroutine to its end under `loop`; one that hangs fails after two minutes."""

    async def limited(main: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(120):
            await main

    def run(main: Coroutine[Any, Any, None]) -> None:
        (asyncio.run if loop == "asyncio" else uvloop.run)(limited(main))

    return run


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on loopback with small kernel buffers; the caller closes them."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    return client, server


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that nobody has, of those that the kernel gives to nobody who asks for any."""
    while True:
        port = random.randrange(20_000, 32_000)  # net.ipv4.ip_local_port_range begins behind them
        with socket.socket(type=kind) as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


async def turns(count: int = 50) -> None:
    """Let everything run that could run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def read_all(channel: Channel) -> bytes:
    """All bytes to the end of file."""
    parts = []
    while data := await channel.read():
        parts.append(data)
    return b"".join(parts)


class Site:
    """An authority, its gateway and its client, as files."""

    def __init__(self, directory: Path) -> None:
        now = datetime.now(UTC)
        self.directory = directory
        self.authority = make_authority("site", now=now)
        self.server = issue_server(self.authority, ["gate.example"], now=now)
        self.client = issue_client(self.authority, "laptop", now=now)
        self.server_files = write_issued(self.server, directory, "server")
        self.client_files = write_issued(self.client, directory, "client")

    def for_client(self, issued: Issued | None = None, directory: Path | None = None) -> ssl.SSLContext:
        """The context of `laptop`, or of another client whose files go to `directory`."""
        files = write_issued(issued, directory, "other") if issued and directory else self.client_files
        return client_context(ca_pem=self.authority.pem, certificate=files[0], key=files[1])

    def for_server(self, files: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """The context of the gateway, or of an impostor with other files."""
        certificate, key = files or self.server_files
        return server_context(client_ca_pem=self.authority.pem, certificate=certificate, key=key)
