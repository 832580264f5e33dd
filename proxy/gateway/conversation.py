"""One client that has proved its certificate: its requests, and the tunnel that one of them becomes.

It decides nothing about destinations (`dial` and `judge` do) nor about who is welcome (`server` does).
After a refusal nothing more is read as a request: what follows was meant for a tunnel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from proxy.channel import Backlog, Channel, PlainChannel
from proxy.channel.head import BadHead, read_head
from proxy.gateway.dial import Dialer
from proxy.gateway.judge import Client, Refused
from proxy.gateway.log import Log, LogUnwritable
from proxy.gateway.requests import ALIVE, CONNECTED, Alive, Connect, parse_request, refusal
from proxy.relay import Counts, relay

REQUEST_LIMIT_S = 10.0
_LINGER_LIMIT_S = 2.0
_LINGER_BYTES = 64 * 1024


@dataclass(slots=True, eq=False)
class Guest:
    """An open connection of a client. `peer` is the address that it came from."""

    number: int
    client: Client
    peer: str
    channel: Channel
    upstream: Channel | None = None
    counts: Counts = field(default_factory=Counts)
    requests: int = 0
    cut_because: str = ""

    def cut(self, because: str) -> None:
        """Reset both sides at once; the first reason is the one that counts."""
        self.cut_because = self.cut_because or because
        self.channel.abort()
        if self.upstream is not None:
            self.upstream.abort()

    @property
    def moved(self) -> int:
        """A number that changes whenever anything is asked or carried."""
        return self.requests + self.counts.uploaded + self.counts.downloaded


@dataclass(frozen=True, slots=True)
class House:
    """What conversations share. `why_unwelcome` is asked for each request."""

    dialer: Dialer
    log: Log
    backlog: Backlog
    why_unwelcome: Callable[[Client], str]


async def converse(guest: Guest, house: House) -> None:
    """Answer a guest until it is gone. Its channel is closed then. Raises nothing but CancelledError."""
    try:
        while (request := await _next_request(guest)) is not None:
            if why := house.why_unwelcome(guest.client):
                request = Refused(403, why)
            match request:
                case Alive():
                    async with asyncio.timeout(REQUEST_LIMIT_S):
                        await guest.channel.write(ALIVE)
                case Connect():
                    await _tunnel(guest, request, house)
                    return
                case Refused():
                    _note(house.log, guest, "refused", because=request.because)
                    await turn_away(guest.channel, request)
                    return
        await guest.channel.close()
    except (ConnectionError, TimeoutError):
        pass  # it went away, or reads nothing: there is nobody to tell
    finally:
        guest.channel.abort()


async def turn_away(channel: Channel, refused: Refused) -> None:
    """Answer with a refusal and close, once the client has had the chance to read it. Never raises.

    Closing over bytes that were not read would reset the connection, and the answer could be lost.
    """
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(_LINGER_LIMIT_S):
            await channel.write(refusal(refused))
            await channel.write_eof()
            left = _LINGER_BYTES
            while left > 0 and (data := await channel.read()):
                left -= len(data)
    await channel.close()


async def _next_request(guest: Guest) -> Connect | Alive | Refused | None:
    """The next request, or None at the end. Waiting for its first byte is bounded by the idle limit."""
    first = await guest.channel.read()
    if not first:
        return None
    guest.requests += 1
    try:
        async with asyncio.timeout(REQUEST_LIMIT_S):
            return parse_request(await read_head(guest.channel, first))
    except TimeoutError:
        return Refused(408, f"the request did not arrive within {REQUEST_LIMIT_S:g} s")
    except BadHead as error:
        return Refused(400, str(error))


async def _tunnel(guest: Guest, wanted: Connect, house: House) -> None:
    addresses = await house.dialer.judge(guest.client, wanted)
    if isinstance(addresses, Refused):
        _note(house.log, guest, "refused", to=str(wanted), because=addresses.because)
        await turn_away(guest.channel, addresses)
        return
    try:  # the record comes before the connection: what is not written down does not happen
        shown = " ".join(map(str, addresses))
        house.log.write("connect", **_who(guest), to=str(wanted), addresses=shown)
    except LogUnwritable:
        await turn_away(guest.channel, Refused(503, "the gateway cannot write its log"))
        return
    sock = await house.dialer.dial(addresses, wanted.port)
    if isinstance(sock, Refused):
        _note(house.log, guest, "failed", to=str(wanted), because=sock.because)
        await turn_away(guest.channel, sock)
        return
    guest.upstream = PlainChannel(sock, house.backlog)
    since = time.monotonic()
    why = "the gateway stopped"
    try:
        why = await _carry(guest, guest.upstream)
    finally:
        guest.upstream.abort()
        _note(
            house.log,
            guest,
            "end",
            to=str(wanted),
            because=guest.cut_because or why,
            bytes_up=guest.counts.uploaded,
            bytes_down=guest.counts.downloaded,
            duration_s=round(time.monotonic() - since, 3),
        )


async def _carry(guest: Guest, upstream: Channel) -> str:
    """Carry bytes until the tunnel ends; why it did."""
    try:
        async with asyncio.timeout(REQUEST_LIMIT_S):
            await guest.channel.write(CONNECTED)
    except (ConnectionError, TimeoutError):
        return "the client went away"
    return str(
        await relay(
            guest.channel,
            upstream,
            admitted=lambda: not guest.cut_because,
            budgets=(),
            counts=guest.counts,
        )
    )


def _who(guest: Guest) -> dict[str, str | int]:
    client = guest.client
    return {
        "connection": guest.number,
        "client": client.name,
        "certificate": client.fingerprint,
        "from": guest.peer,
    }


def _note(log: Log, guest: Guest, what: str, **facts: str | int | float) -> None:
    log.note(what, **_who(guest), **facts)
