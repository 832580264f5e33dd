"""A tunnel of a worker with a real gateway behind it, in the test's own event loop. No tests are here.

The holder here is the test's: it really connects to the gateway, counts what it is asked for, and lets a
test do something in the moment between the judgement of a flow and its dialling.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from corporate_end import ALLOW_LOOPBACK, CorporateEnd, corporate_end
from loopback import Site

from proxy import ipc
from proxy.channel import Backlog
from proxy.link import Link
from proxy.messages.holding import Dial, Dialled, TunnelSetup
from proxy.messages.worker import Lease
from proxy.mtls_egress import MtlsEgress

ALLOW = f"{ALLOW_LOOPBACK}\n  - {{networks: [127.0.0.0/8], ports: [1-65535]}}"
SECOND_NS = 1_000_000_000


@dataclass
class Clock:
    """CLOCK_BOOTTIME, set by hand."""

    ns: int = 100 * SECOND_NS

    def __call__(self) -> int:
        return self.ns

    def lease(self, seconds: float = 2.5, tunnel: str = "hq", peer: str = "sha256:peer") -> Lease:
        """A lease of a tunnel that was proved this very moment."""
        return Lease(
            tunnel, "attested", "the pinned peer answers", peer, self.ns, self.ns + int(seconds * 1e9)
        )


def setup(name: str = "hq", pins: tuple[str, ...] = ("sha256:pin",), port: int = 1) -> TunnelSetup:
    """A tunnel's setup; what dials is not here, so host and port are only said."""
    return TunnelSetup(name, "127.0.0.1", port, "gate.example", pins, False)


def trusting_nobody() -> ssl.SSLContext:
    """TLS as a tunnel has it, but for an authority: no handshake succeeds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def unconnected(clock: Callable[[], int], name: str = "hq") -> MtlsEgress:
    """A tunnel that has no holder."""
    return MtlsEgress(setup(name), trusting_nobody(), Backlog(), clock)


class Holder:
    """Answers Dial with connected sockets to `address`, after `before`. `dials` counts the questions."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.dials = 0
        self.before: Callable[[], Awaitable[None]] | None = None
        self.trouble = ""

    async def serve(self, link: Link[Dial]) -> None:
        """Until the other end is gone."""
        with contextlib.suppress(ipc.LinkBroken):
            while True:
                await link.receive()
                self.dials += 1
                if self.before is not None:
                    await self.before()
                if self.trouble:
                    link.send(Dialled(self.trouble))
                    continue
                with socket.create_connection(self.address) as sock:
                    link.send(Dialled(""), [sock.fileno()])


@dataclass
class Leased:
    """A tunnel, its clock, its holder, and the gateway at its end."""

    egress: MtlsEgress
    clock: Clock
    holder: Holder
    end: CorporateEnd

    def lease(self, seconds: float = 2.5) -> None:
        """Prove the peer."""
        self.egress.renew(self.clock.lease(seconds, peer=self.end.site.server.pin))


@asynccontextmanager
async def connected(egress: MtlsEgress, holder: Holder) -> AsyncIterator[None]:
    """`egress` with `holder` at the other end of its link."""
    ours, theirs = ipc.pair()
    theirs_link: Link[Dial] = Link(theirs, [Dial])
    egress.connect_holder(ours)
    tasks = [asyncio.create_task(holder.serve(theirs_link)), asyncio.create_task(egress.hear_holder())]
    try:
        yield
    finally:
        theirs_link.close()
        egress.close()
        await asyncio.gather(*tasks)


@asynccontextmanager
async def leased(
    site: Site, directory: Path, *, pins: tuple[str, ...] | None = None
) -> AsyncIterator[Leased]:
    """A tunnel whose lease has just begun, to a gateway that allows loopback."""
    clock = Clock()
    async with corporate_end(site, directory, allow=ALLOW) as gateway:
        pinned = (site.server.pin,) if pins is None else pins
        port = gateway.address[1]
        egress = MtlsEgress(setup("hq", pinned, port), site.for_client(), Backlog(), clock)
        holder = Holder(gateway.address)
        async with connected(egress, holder):
            there = Leased(egress, clock, holder, gateway)
            there.lease()
            yield there
