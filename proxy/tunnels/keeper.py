"""Keeps one tunnel up: starts its holder, judges what it saw, says so, and starts it again when it ends.

Judges with `attest` and nothing else. Gives news as an async iterator; knows neither zone nor worker.

A new certificate is proved by a second holder beside the first. Once the pinned peer has answered it it takes
the first one's place, and what was proved goes on without a gap.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass

from proxy import children, ipc
from proxy.certificates import spki_pin
from proxy.flow import TunnelState
from proxy.link import Link
from proxy.messages.holding import Evidence, Hold, Serve, TunnelSetup
from proxy.messages.packets import HoldPackets, PacketEvidence
from proxy.site import TunnelFiles, TunnelKeys
from proxy.tunnels.base import Attestation, attest
from proxy.tunnels.packets import attest_packets

PROBE_EVERY_MS, PROBE_LIMIT_MS = 1000, 1000
RESTART_PAUSE_S = 0.2
PROOF_LIMIT_S = 10.0
HANDOVER_S = 1.0  # workers that are given the new holder may still wait for sockets of the old one
NOBODY = 65534
UNREADABLE = "unreadable"
NOT_YET = Attestation(TunnelState.DOWN, "not started")


@dataclass(slots=True, eq=False)
class Holder:
    """One holder process: what it was given, and what it saw last."""

    link: Link[Evidence | PacketEvidence]
    process: Process
    files: TunnelKeys
    seen: Evidence | PacketEvidence | None = None

    async def end(self) -> None:
        """End the process; safe to call twice."""
        self.link.close()
        await children.end(self.process)


class Keeper:
    """One tunnel. `now` is what is proved of it at present; `generation` counts its holders."""

    def __init__(self, setup: TunnelSetup, files: TunnelKeys) -> None:
        self.setup, self.files = setup, files
        self.now = NOT_YET
        self.generation = 0
        self.shown = ""
        """The certificate that the peer showed last, DER in base64."""
        self._holder: Holder | None = None
        self._heir: Holder | None = None
        self._heir_came = asyncio.Event()
        self._held = ""
        self._let_go = asyncio.Event()

    @property
    def certificate(self) -> bytes:
        """The certificate that is shown to the peer, PEM; empty where keys alone are."""
        return self.files.certificate if isinstance(self.files, TunnelFiles) else b""

    def hold_down(self, words: str) -> None:
        """Take it down, and keep it down until `let_go`; `words` say by whom."""
        self._held = words
        self._let_go.clear()
        if self._holder is not None:
            self._holder.link.close()

    def let_go(self) -> None:
        """Let it come up again."""
        self._held = ""
        self._let_go.set()

    def serve(self) -> socket.socket | None:
        """A worker's end of a new link to the holder, None while there is no holder."""
        if self._holder is None or self._holder.link.closed:
            return None
        theirs, ours = ipc.pair()
        self._holder.link.send(Serve(), [theirs.fileno()])
        theirs.close()
        return ours

    async def keep(self) -> AsyncIterator[Attestation]:
        """Every judgement that differs from the one before or prolongs it, for ever."""
        try:
            while True:
                if self._held:
                    yield self._judge(None)
                    await self._let_go.wait()
                with contextlib.suppress(OSError):  # no process or descriptor is left: later there may be
                    self._holder = holder = await self._next()
                    self.files = holder.files
                    self.generation += 1
                    async for judged in self._watch(holder):
                        if self._held:
                            break
                        yield judged
                if self._heir is None or self._held:
                    yield self._judge(None)  # before anybody waits for the end of a process
                    await self._end()
                    await asyncio.sleep(0 if self._held else RESTART_PAUSE_S)
        finally:
            await self._end()

    async def renew(self, files: TunnelFiles) -> str:
        """Take other files into use once they are proved; one line of why not, "" when they are."""
        other: Holder | None
        try:
            other = await self._start(files)
        except OSError as error:
            return f"no process can be started to try them: {error.strerror}"
        try:
            if words := await self._prove(other):
                return words
            before, self._heir = self._holder, other
            self._heir_came.set()
            other = before
            await asyncio.sleep(HANDOVER_S)
            return ""
        finally:
            if other is not None:
                await other.end()

    async def _prove(self, holder: Holder) -> str:
        words = "it gave no answer"
        try:
            async with asyncio.timeout(PROOF_LIMIT_S):
                while True:
                    seen, fds = await holder.link.receive()
                    ipc.close_all(fds)
                    if isinstance(seen, PacketEvidence):
                        return "only an mtls tunnel has certificates"
                    judged = attest(seen, _peer(seen), self.setup.pins, NOT_YET, _boot_ns())
                    holder.seen, words = seen, judged.words
                    if judged.state is TunnelState.ATTESTED:
                        return ""
                    if seen.broken or judged.state is TunnelState.REFUSED:
                        return words
        except (TimeoutError, ipc.LinkBroken):
            return words

    async def _next(self) -> Holder:
        """The heir, where there is one; else a new holder. Raises OSError."""
        if heir := self._take_heir():
            return heir
        started = await self._start(self.files)
        if heir := self._take_heir():  # it came meanwhile
            await started.end()
            return heir
        return started

    def _take_heir(self) -> Holder | None:
        heir, self._heir = self._heir, None
        self._heir_came.clear()
        return heir

    async def _start(self, files: TunnelKeys) -> Holder:
        """Raises OSError where the machine gives no process or no descriptor."""
        ours, theirs = ipc.pair()
        ipc.refuse_descriptors(ours)
        setup = self.setup
        packets = setup.packets is not None
        link = Link[Evidence | PacketEvidence](ours, [PacketEvidence if packets else Evidence])
        fds: list[int] = []
        try:
            process = await children.start_module("wireguard" if packets else "holder", theirs)
        except BaseException:
            link.close()
            raise
        holder = Holder(link, process, files)
        how = (setup, PROBE_EVERY_MS, PROBE_LIMIT_MS, NOBODY)
        try:
            for content in files.contents():
                fds.append(ipc.memory_file("tunnel", content))
            link.send(HoldPackets(*how) if packets else Hold(*how), fds)
        except BaseException:
            await holder.end()
            raise
        finally:
            ipc.close_all(fds)
        return holder

    async def _end(self) -> None:
        """End every holder."""
        ended, self._holder, self._heir = (self._holder, self._heir), None, None
        for holder in filter(None, ended):
            await holder.end()

    async def _watch(self, holder: Holder) -> AsyncIterator[Attestation]:
        """Judgements until the holder is gone or has an heir. The clock is heard too: silence is news."""
        waiting = asyncio.ensure_future(holder.link.receive())
        replaced = asyncio.ensure_future(self._heir_came.wait())
        try:
            while True:
                if holder.seen is not None:
                    yield self._judge(holder.seen)
                done, _ = await asyncio.wait(
                    {waiting, replaced}, timeout=self._until_change_s(), return_when=asyncio.FIRST_COMPLETED
                )
                if replaced in done:
                    return
                if waiting in done:
                    try:
                        holder.seen, fds = waiting.result()
                    except ipc.LinkBroken:
                        return
                    ipc.close_all(fds)
                    waiting = asyncio.ensure_future(holder.link.receive())
        finally:
            for task in (waiting, replaced):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, ipc.LinkBroken):
                    await task

    def _until_change_s(self) -> float:
        """When the judgement would change if nothing were heard."""
        if self.now.state is TunnelState.ATTESTED:
            return max(0.01, (self.now.deadline_ns - _boot_ns()) / 1e9 + 0.001)
        return 1.0

    def _judge(self, seen: Evidence | PacketEvidence | None) -> Attestation:
        if isinstance(seen, PacketEvidence):
            self.now = attest_packets(seen, self.setup.pins, _boot_ns())
            return self.now
        self.shown = (seen.certificate if seen else "") or self.shown
        self.now = attest(seen, _peer(seen), self.setup.pins, self.now, _boot_ns())
        if seen is None and self._held:
            self.now = Attestation(TunnelState.DOWN, self._held)
        return self.now


def _peer(seen: Evidence | None) -> str:
    """The pin of the certificate that the peer showed, "" where it showed none."""
    return _pin(seen.certificate) if seen is not None and seen.certificate else ""


def _pin(certificate: str) -> str:
    try:
        return spki_pin(base64.b64decode(certificate, validate=True))
    except ValueError:
        return UNREADABLE


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
