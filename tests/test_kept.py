"""Channels kept ready: given out once, only while their peer is silent, and never across a drop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from corporate_end import destination, echo
from leased import SECOND_NS, leased
from loopback import LOOPS, Run, Site, pair, runner

from proxy import kept
from proxy.channel import TlsChannel
from proxy.channel.tls import tls_client, tls_server
from proxy.kept import KEPT, KeptChannels


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


@dataclass
class Peer:
    """Makes channels; the other ends of them are in `ends`."""

    site: Site
    ends: list[TlsChannel] = field(default_factory=list)
    asked: int = 0
    broken: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def make(self) -> TlsChannel:
        self.asked += 1
        await self.gate.wait()
        if self.broken:
            raise ConnectionError("it is gone")
        ours, theirs = pair()
        pins = {self.site.server.pin}
        sides = [
            asyncio.create_task(tls_client(ours, self.site.for_client(), "gate.example", pins, 90)),
            asyncio.create_task(tls_server(theirs, self.site.for_server(), 90)),
        ]
        try:
            made, end = await asyncio.gather(*sides)
        except BaseException:
            for side in await asyncio.gather(*sides, return_exceptions=True):
                if isinstance(side, TlsChannel):
                    side.abort()
            ours.close()
            theirs.close()
            raise
        self.ends.append(end)
        return made

    async def until_made(self, count: int) -> None:
        while len(self.ends) < count:
            await asyncio.sleep(0.001)


async def until_ready(channels: KeptChannels) -> None:
    """All that are kept are there."""
    while len(channels._ready) < KEPT:
        await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """None grows old, however slow the machine is."""
    monkeypatch.setattr(kept, "KEPT_FOR_S", 1000)


@asynccontextmanager
async def keeping(site: Site) -> AsyncIterator[tuple[KeptChannels, Peer]]:
    peer = Peer(site)
    peer.gate.set()
    channels = KeptChannels(peer.make)
    try:
        yield channels, peer
    finally:
        channels.close()
        await asyncio.sleep(0)
        for end in peer.ends:
            end.abort()


def test_after_the_first_use_there_are_some_and_each_is_given_once(run: Run, site: Site) -> None:
    async def main() -> None:
        async with keeping(site) as (channels, peer):
            assert channels.take() is None and not peer.ends, "nobody has asked before"
            await until_ready(channels)
            given = [channels.take() for _ in range(KEPT)]
            assert None not in given and len(set(given)) == KEPT
            await until_ready(channels)
            more = channels.take()
            assert more is not None and more not in given
            await more.write(b"for use")
            assert await peer.ends[KEPT].read() == b"for use"
            for channel in (*given, more):
                if channel is not None:
                    channel.abort()

    run(main())


@pytest.mark.parametrize("what", ["ends", "resets", "speaks"])
def test_one_whose_peer_was_not_silent_is_not_given(run: Run, site: Site, what: str) -> None:
    async def main() -> None:
        async with keeping(site) as (channels, peer):
            channels.take()
            await until_ready(channels)
            for end in peer.ends[: KEPT - 1]:
                if what == "ends":
                    await end.close()
                elif what == "resets":
                    end.abort()
                else:
                    await end.write(b"unasked")
            given = channels.take()
            assert given is not None
            await given.write(b"alive")
            assert await peer.ends[KEPT - 1].read() == b"alive"
            given.abort()

    run(main())


def test_what_is_dropped_is_reset_also_while_it_is_made(run: Run, site: Site) -> None:
    async def main() -> None:
        async with keeping(site) as (channels, peer):
            channels.take()
            await until_ready(channels)
            peer.gate.clear()
            first = channels.take()
            assert first is not None
            first.abort()
            while peer.asked <= KEPT:  # until its successor is being made
                await asyncio.sleep(0.001)
            channels.drop()
            peer.gate.set()
            for end in list(peer.ends):
                with pytest.raises(ConnectionError):
                    await end.read()
            await peer.until_made(KEPT + 1)
            with pytest.raises(ConnectionError):
                await peer.ends[KEPT].read()

    run(main())


def test_none_is_kept_when_nobody_asks_any_more(
    run: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "KEPT_FOR_S", 0.2)
    monkeypatch.setattr(kept, "LOOK_S", 0.05)

    async def main() -> None:
        async with keeping(site) as (channels, peer):
            channels.take()
            await peer.until_made(1)
            for end in peer.ends:  # also those that replace the old ones
                with pytest.raises(ConnectionError):
                    await end.read()
            while len(asyncio.all_tasks()) > 2:  # this one, and the time limit's
                await asyncio.sleep(0.01)
            assert channels.take() is None

    run(main())


def test_a_peer_that_cannot_be_reached_is_not_asked_without_end(run: Run, site: Site) -> None:
    async def main() -> None:
        async with keeping(site) as (channels, peer):
            peer.broken = True
            assert channels.take() is None
            await asyncio.sleep(0.02)
            assert not peer.ends
            peer.broken = False
            assert channels.take() is None
            await peer.until_made(KEPT)

    run(main())


# -- under leases ------------------------------------------------------------------------------------


def test_a_channel_from_before_a_gap_is_never_used(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with leased(site, tmp_path) as there, destination(echo) as port:
            (await there.egress.dial("site.example", port)).abort()
            while there.holder.dials < 1 + KEPT:
                await asyncio.sleep(0.001)
            await there.end.eventually(lambda: len(there.end.gateway.guests) >= KEPT)
            there.clock.ns += 10 * SECOND_NS  # the lease ends, and nobody says so
            there.lease()
            async with asyncio.timeout(90):
                await there.end.eventually(lambda: not there.end.gateway.guests)
            channel = await there.egress.dial("site.example", port)
            await channel.write(b"again")
            assert await channel.read() == b"again"
            channel.abort()

    run(main())
