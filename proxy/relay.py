"""The carrier of opaque TCP: bytes from one channel to another, both ways, until both have ended.

It asks whether the flow is still admitted before every send, keeps budgets to the byte, passes each end
of file on by itself, and resets both sides whenever a flow does not end well. It knows neither policy
nor tunnels, reads no byte that it carries, and does nothing at all while a flow is idle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, assert_never

from proxy.channel.plain import Channel, NotAdmitted, Truncated
from proxy.flow import Because, Budget, Transfer

DRAIN_LIMIT_S = 5.0


class End(StrEnum):
    """Why a flow ended. Only FINISHED left both sides otherwise than by reset."""

    FAULT = "fault in the gate"
    FINISHED = "finished by both ends"
    NOT_ADMITTED = "no longer admitted"
    BUDGET = "budget used up"
    QUOTA = "quota used up"
    CUT = "cut by the gate"
    CLIENT_RESET = "reset by the client"
    CLIENT_TRUNCATED = "client's TLS truncated"
    UPSTREAM_RESET = "reset by the destination"
    UPSTREAM_TRUNCATED = "destination's or gateway's TLS truncated"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a flow ended. `because` names the budget of BUDGET, `fault` the exception of FAULT."""

    end: End
    because: Because | None = None
    fault: Exception | None = None

    def __str__(self) -> str:
        return f"{self.end} ({self.because})" if self.because else str(self.end)


@dataclass(slots=True)
class Counts:
    """Bytes taken from each side to be carried, as the client sees them; may be read at any time."""

    uploaded: int = 0
    downloaded: int = 0

    def add(self, transfer: Transfer, carried: int) -> None:
        """Count `carried` bytes of one direction."""
        match transfer:
            case Transfer.UPLOAD:
                self.uploaded += carried
            case Transfer.DOWNLOAD:
                self.downloaded += carried
            case _:
                assert_never(transfer)


class Meter(Protocol):
    """A bound on bytes that others share, asked before each piece goes on."""

    async def allow(self, transfer: Transfer, wanted: int) -> int:
        """How many of these bytes may go; fewer than are wanted ends the flow."""

    def because(self, transfer: Transfer) -> Because:
        """Why no more may go."""


async def relay(
    client: Channel,
    upstream: Channel,
    *,
    admitted: Callable[[], bool],
    budgets: Sequence[Budget],
    counts: Counts,
    meter: Meter | None = None,
) -> Ending:
    """Carry bytes between `client` and `upstream` until the flow ends, and say how it did.

    On return, and on cancellation, neither has an open socket. `abort` on either or both, from anywhere,
    is how a flow is cut (`End.CUT`). Raises nothing but CancelledError.
    """
    flow = _Flow(client, upstream, counts, meter)
    client.guard(admitted)
    upstream.guard(admitted)
    download = asyncio.ensure_future(
        _carry(flow, upstream, client, Transfer.DOWNLOAD, tightest(budgets, Transfer.DOWNLOAD))
    )
    try:
        await _carry(flow, client, upstream, Transfer.UPLOAD, tightest(budgets, Transfer.UPLOAD))
        await download
    except asyncio.CancelledError:
        flow.stop(Ending(End.CUT))
        download.cancel()
        raise
    if flow.ending is None:
        await client.close()
        await upstream.close()
        return Ending(End.FINISHED)
    return flow.ending


class _Flow:
    """What the two directions share: the two channels, and the first reason to stop."""

    __slots__ = ("client", "counts", "ending", "meter", "upstream")

    def __init__(self, client: Channel, upstream: Channel, counts: Counts, meter: Meter | None) -> None:
        self.meter = meter
        self.client = client
        self.upstream = upstream
        self.counts = counts
        self.ending: Ending | None = None

    def stop(self, ending: Ending) -> None:
        """Reset both sides; the first ending is the one that counts."""
        if self.ending is None:
            self.ending = ending
        self.client.abort()
        self.upstream.abort()

    def blame(self, channel: Channel, error: ConnectionError) -> Ending:
        """What an error of `channel` means for the flow."""
        match error, channel is self.client:
            case NotAdmitted(), _:
                return Ending(End.NOT_ADMITTED)
            case ConnectionAbortedError(), _:
                return Ending(End.CUT)
            case Truncated(), True:
                return Ending(End.CLIENT_TRUNCATED)
            case Truncated(), False:
                return Ending(End.UPSTREAM_TRUNCATED)
            case _, True:
                return Ending(End.CLIENT_RESET)
            case _:
                return Ending(End.UPSTREAM_RESET)


async def _carry(
    flow: _Flow, source: Channel, sink: Channel, transfer: Transfer, budget: Budget | None
) -> None:
    """One direction, to its end of file or to the end of the flow. Raises nothing but CancelledError."""
    left = budget.limit_bytes if budget is not None else 0
    at = source
    try:
        while True:
            at = source
            data = await source.read()
            at = sink
            if not data:
                await sink.write_eof()
                return
            over = budget is not None and len(data) > left
            if over:
                data = data[:left]
            allowed = len(data) if flow.meter is None else await flow.meter.allow(transfer, len(data))
            spent = allowed < len(data)
            data = data[:allowed]
            left -= len(data)
            flow.counts.add(transfer, len(data))
            if data:
                await sink.write(data)
            if spent and flow.meter is not None:
                flow.stop(Ending(End.QUOTA, flow.meter.because(transfer)))
                return
            if over and budget is not None:
                flow.stop(Ending(End.BUDGET, budget.because))
                return
    except ConnectionError as error:
        if isinstance(error, Truncated) and at is source:
            await sink.drain(DRAIN_LIMIT_S)  # what came is authentic; a reset would take back the last of it
        flow.stop(flow.blame(at, error))
    except Exception as error:
        flow.stop(Ending(End.FAULT, fault=error))


def tightest(budgets: Sequence[Budget], transfer: Transfer) -> Budget | None:
    """The budget of one direction that is used up first, None without one."""
    mine = [budget for budget in budgets if budget.transfer is transfer]
    return min(mine, key=lambda budget: budget.limit_bytes, default=None)
