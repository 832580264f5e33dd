"""Keeps one tunnel up: starts its holder, judges what it saw, says so, and starts it again when it ends.

Judges with `attest` and nothing else. Gives news as an async iterator; knows neither zone nor worker.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator

from proxy import children, ipc
from proxy.certificates import spki_pin
from proxy.flow import TunnelState
from proxy.link import Link
from proxy.messages.holding import Evidence, Hold, Serve, TunnelSetup
from proxy.messages.packets import HoldPackets, PacketEvidence
from proxy.site import TunnelKeys
from proxy.tunnels.base import Attestation, attest
from proxy.tunnels.packets import attest_packets

PROBE_EVERY_MS, PROBE_LIMIT_MS = 1000, 1000
RESTART_PAUSE_S = 0.2
NOBODY = 65534
UNREADABLE = "unreadable"


class Keeper:
    """One tunnel. `now` is what is proved of it at present; `generation` counts its holders."""

    def __init__(self, setup: TunnelSetup, files: TunnelKeys) -> None:
        self.setup, self._files = setup, files
        self.now = Attestation(TunnelState.DOWN, "not started")
        self.generation = 0
        self._link: Link[Evidence | PacketEvidence] | None = None
        self._process: Process | None = None

    def serve(self) -> socket.socket | None:
        """A worker's end of a new link to the holder, None while there is no holder."""
        if self._link is None or self._link.closed:
            return None
        theirs, ours = ipc.pair()
        self._link.send(Serve(), [theirs.fileno()])
        theirs.close()
        return ours

    async def keep(self) -> AsyncIterator[Attestation]:
        """Every judgement that differs from the one before or prolongs it, for ever."""
        try:
            while True:
                with contextlib.suppress(OSError):  # no process or descriptor is left: later there may be
                    await self._start()
                    async for judged in self._watch():
                        yield judged
                await self._end()
                yield self._judge(None)
                await asyncio.sleep(RESTART_PAUSE_S)
        finally:
            await self._end()

    async def _start(self) -> None:
        """Raises OSError where the machine gives no process or no descriptor."""
        ours, theirs = ipc.pair()
        ipc.refuse_descriptors(ours)
        setup = self.setup
        packets = setup.packets is not None
        self._link = link = Link[Evidence | PacketEvidence](ours, [PacketEvidence if packets else Evidence])
        self._process = await children.start_module("wireguard" if packets else "holder", theirs)
        how = (setup, PROBE_EVERY_MS, PROBE_LIMIT_MS, NOBODY)
        fds: list[int] = []
        try:
            for content in self._files.contents():
                fds.append(ipc.memory_file("tunnel", content))
            link.send(HoldPackets(*how) if packets else Hold(*how), fds)
        finally:
            ipc.close_all(fds)
        self.generation += 1

    async def _end(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            await children.end(self._process)
        self._link = self._process = None

    async def _watch(self) -> AsyncIterator[Attestation]:
        """Judgements until the holder is gone. The clock is heard too: silence is news."""
        assert self._link is not None
        seen: Evidence | PacketEvidence | None = None
        waiting = asyncio.ensure_future(self._link.receive())
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=self._until_change_s())
                if done:
                    try:
                        seen, fds = waiting.result()
                    except ipc.LinkBroken:
                        return
                    ipc.close_all(fds)
                    waiting = asyncio.ensure_future(self._link.receive())
                if seen is not None:
                    yield self._judge(seen)
        finally:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, ipc.LinkBroken):
                await waiting

    def _until_change_s(self) -> float:
        """When the judgement would change if nothing were heard."""
        if self.now.state is TunnelState.ATTESTED:
            return max(0.01, (self.now.deadline_ns - _boot_ns()) / 1e9 + 0.001)
        return 1.0

    def _judge(self, seen: Evidence | PacketEvidence | None) -> Attestation:
        if isinstance(seen, PacketEvidence):
            self.now = attest_packets(seen, self.setup.pins, _boot_ns())
            return self.now
        peer = _pin(seen.certificate) if seen is not None and seen.certificate else ""
        self.now = attest(seen, peer, self.setup.pins, self.now, _boot_ns())
        return self.now


def _pin(certificate: str) -> str:
    try:
        return spki_pin(base64.b64decode(certificate, validate=True))
    except ValueError:
        return UNREADABLE


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
