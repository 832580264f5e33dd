"""A gateway of a site on loopback, in the test's own event loop. No tests are here."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loopback import Site

from proxy.channel import PlainChannel, TlsChannel, connect_through, tls_client
from proxy.gateway.config import read_config
from proxy.gateway.dial import Dialer
from proxy.gateway.log import Log
from proxy.gateway.revoked import Revocations
from proxy.gateway.server import Gateway
from proxy.gateway.service import listen, tls
from proxy.policy.source import Problems

ALLOW_LOOPBACK = '{names: ["*"], networks: [127.0.0.0/8], ports: [1-65535]}'


@dataclass
class CorporateEnd:
    """A running gateway, and what a test needs to speak to it."""

    site: Site
    gateway: Gateway
    address: tuple[str, int]
    revoked: Path
    log: Log
    log_file: Path

    def knock(self) -> socket.socket:
        """A plain connection to it."""
        sock = socket.socket()
        sock.connect(self.address)
        return sock

    async def connect(self, context: ssl.SSLContext | None = None) -> TlsChannel:
        """An authenticated connection to it."""
        sock = self.knock()
        return await tls_client(
            sock, context or self.site.for_client(), "gate.example", {self.site.server.pin}, 30
        )

    async def tunnel(self, host: str, port: int, context: ssl.SSLContext | None = None) -> TlsChannel:
        """A tunnel through it."""
        channel = await self.connect(context)
        await connect_through(channel, host, port, 90)
        return channel

    def revoke(self, entry: str) -> None:
        """Write one more line into the file of revocations, in place as `echo >>` does."""
        with self.revoked.open("a") as file:
            file.write(entry + "\n")

    def lines(self, what: str = "") -> list[dict[str, Any]]:
        """The log so far, or the lines of one kind."""
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines()]
        return [line for line in lines if not what or line["what"] == what]

    async def eventually(self, condition: Callable[[], object]) -> None:
        """Go on when `condition` holds; the test's time limit bounds the wait."""
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def corporate_end(
    site: Site, directory: Path, *, allow: str = ALLOW_LOOPBACK, more: str = "", handshake_limit_s: float = 90
) -> AsyncIterator[CorporateEnd]:
    """A gateway that allows `allow` (an entry of the list) and is configured further by `more`."""
    ca = directory / "ca.crt"
    ca.write_text(site.authority.pem)
    revoked = directory / "revoked"
    revoked.touch()
    text = f"""
gateway: 1
listen: 127.0.0.1:0
certificate: {site.server_files[0]}
key: {site.server_files[1]}
clients: {{ca: ca.crt, revoked: revoked}}
allow:
  - {allow}
resolver: hosts
hosts: {{site.example: 127.0.0.1, two.example: [127.0.0.9, 127.0.0.1], wan.example: 203.0.113.9}}
log: gateway.log
{more}
"""
    try:
        config = read_config(text.encode(), directory / "gateway.yaml")
    except Problems as problems:
        raise AssertionError(problems.render()) from None
    with ExitStack() as undo:
        log = Log(config.log.path, lambda: datetime.now(UTC))
        undo.callback(log.close)
        dialer = Dialer(config.allowances, config.hosts, None)
        undo.callback(dialer.close)
        revocations = Revocations(revoked, time.time)
        gateway = Gateway(
            tls(config), config.limits, dialer, log, revocations, handshake_limit_s=handshake_limit_s
        )
        listener = undo.enter_context(listen(config.listen[0]))
        stop = asyncio.Event()
        serving = asyncio.create_task(gateway.serve([listener], stop))
        try:
            yield CorporateEnd(site, gateway, listener.getsockname(), revoked, log, config.log.path)
        finally:
            stop.set()
            await serving


@asynccontextmanager
async def destination(serve: Callable[[PlainChannel], Awaitable[None]]) -> AsyncIterator[int]:
    """A server on loopback; gives its port. `serve` is called for each connection."""
    with socket.socket() as listener:
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        async def one(sock: socket.socket) -> None:
            channel = PlainChannel(sock)
            try:
                await serve(channel)
            except ConnectionError:
                pass
            finally:
                channel.abort()

        async def accept() -> None:
            while True:
                sock, _ = await loop.sock_accept(listener)
                task = asyncio.create_task(one(sock))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        accepting = asyncio.create_task(accept())
        try:
            yield listener.getsockname()[1]
        finally:
            for task in (accepting, *tasks):
                task.cancel()
            await asyncio.gather(accepting, *tasks, return_exceptions=True)


async def sort(channel: PlainChannel) -> None:
    """Answers only after the end of file, as sort(1) does."""
    parts = []
    while data := await channel.read():
        parts.append(data)
    await channel.write(b"\n".join(sorted(b"".join(parts).split(b"\n"))))
    await channel.write_eof()
    await channel.close()


async def echo(channel: PlainChannel) -> None:
    """Gives back whatever comes."""
    while data := await channel.read():
        await channel.write(data)
    await channel.write_eof()
    await channel.close()
