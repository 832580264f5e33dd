"""A channel whose first bytes are looked at before they are given on.

What is carried may have been admitted on the word of a port, or without a word about the protocol: the
first thing that a side says must then not disprove it, nor claim another name. Only that side's direction
waits, and only for the bytes that decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy import first_bytes
from proxy.channel.around import Around
from proxy.channel.plain import Channel, NotAdmitted
from proxy.flow import Missing, Protocol
from proxy.flow_table import OpenFlow
from proxy.gate import disagreement

TIME_LIMIT_S = 10.0
# Where the server speaks first, a flow is dialled on the port's word and both sides are held to it.
SERVER_FIRST = {Protocol.SSH: b"SSH-"}


class Disproved(NotAdmitted):
    """The first bytes are not what the flow was admitted as; one line."""


class Vetted(Around):
    """`channel`, whose first bytes go through `vet`: it returns whether it has seen enough, and raises
    Disproved. `vet(data, True)` is the last call: nothing more will come."""

    __slots__ = ("_vet",)

    def __init__(self, channel: Channel, vet: Callable[[bytes, bool], bool]) -> None:
        super().__init__(channel)
        self._vet: Callable[[bytes, bool], bool] | None = vet

    async def read(self) -> bytes:
        """See Channel."""
        data = await self._channel.read()
        if self._vet is None:
            return data
        if not self._vet(data, not data) and data:
            try:
                async with asyncio.timeout(TIME_LIMIT_S):
                    data = await self._rest(data, self._vet)
            except TimeoutError:
                raise Disproved("its first message has no end") from None
        self._vet = None
        return data

    async def _rest(self, data: bytes, vet: Callable[[bytes, bool], bool]) -> bytes:
        """`data` and what follows it, until enough was seen or there is no more."""
        while True:
            more = await self._channel.read()
            data += more
            if vet(data, not more) or not more:
                return data


def vetted_client(client: Channel, entry: OpenFlow) -> Channel:
    """What a client whose protocol nobody waited for says first must not disprove what it was taken for."""
    expected = entry.flow.protocol
    if expected in SERVER_FIRST:
        return _held(client, entry, "client")

    def vet(data: bytes, ended: bool) -> bool:
        seen = first_bytes.recognise(data)
        if seen is None:
            return ended
        if seen.malformed and not seen.ambiguous and isinstance(expected, Missing):
            return True  # admitted as any TCP: what only looks like TLS or HTTP claims no name
        if (refusal := disagreement(entry.flow, seen)) is not None:
            _disprove(entry, refusal.because.text)
        return True

    return Vetted(client, vet)


def vetted_upstream(upstream: Channel, entry: OpenFlow) -> Channel:
    """A destination that speaks first is held to its protocol too."""
    return _held(upstream, entry, "server") if entry.flow.protocol in SERVER_FIRST else upstream


def _held(channel: Channel, entry: OpenFlow, side: str) -> Channel:
    """Not a byte passes but what the flow's protocol begins with, also when there is no more of it."""
    expected = entry.flow.protocol
    prefix = SERVER_FIRST[expected] if isinstance(expected, Protocol) else b""

    def vet(data: bytes, ended: bool) -> bool:
        if data[: len(prefix)] != prefix[: len(data)]:
            _disprove(entry, f"its port means {expected}, and its {side} speaks otherwise")
        return ended or len(data) >= len(prefix)

    return Vetted(channel, vet)


def _disprove(entry: OpenFlow, because: str) -> None:
    entry.cut_because = because
    raise Disproved(because)
