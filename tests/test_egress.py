"""A tunnel as a worker sees it: what a lease allows and until when, and sockets that its holder gives."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from corporate_end import destination, echo
from descriptors import none_left
from leased import SECOND_NS, Clock, leased, setup, trusting_nobody, unconnected
from loopback import LOOPS, Run, Site, runner, turns

from proxy import ipc, kept, mtls_egress
from proxy.channel import Backlog
from proxy.egress import DialFailed
from proxy.flow import TunnelFact, TunnelState
from proxy.link import Link
from proxy.messages.holding import Dial, Dialled
from proxy.messages.worker import Lease
from proxy.mtls_egress import MtlsEgress


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


# -- the lease ---------------------------------------------------------------------------------------


def test_without_a_lease_there_is_no_right() -> None:
    there = unconnected(Clock())
    assert (there.grant(), there.leased, there.deadline_ns) == (None, False, 0)
    assert there.fact() == TunnelFact("hq", TunnelState.DOWN)
    assert there.words == "no proof of its peer has come yet"


def test_a_lease_gives_a_right_with_the_peer_and_the_age_of_its_proof() -> None:
    clock = Clock()
    there = unconnected(clock)
    there.renew(clock.lease(peer="sha256:gateway"))
    clock.ns += SECOND_NS // 2
    grant = there.grant()
    assert grant is not None
    assert (grant.peer, grant.proof_age_s) == ("sha256:gateway", 0.5)
    assert there.admits(grant)
    assert there.fact() == TunnelFact("hq", TunnelState.ATTESTED)


def test_a_lease_ends_at_its_deadline_and_not_a_nanosecond_later() -> None:
    clock = Clock()
    there = unconnected(clock)
    there.renew(clock.lease())
    grant = there.grant()
    assert grant is not None
    clock.ns = there.deadline_ns - 1
    assert there.admits(grant) and there.leased and there.grant() is not None
    clock.ns += 1
    assert (there.admits(grant), there.grant()) == (False, None)
    assert there.fact() == TunnelFact("hq", TunnelState.STALE)
    assert "lease has run out" in there.words


@dataclass(frozen=True, slots=True)
class Renewal:
    sentence: str
    sleep_s: float
    closed_between: bool
    kept: bool

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        Renewal("a lease that is renewed in time keeps its flows", 1.0, False, True),
        Renewal("a flow from before a lapse stays lost when the tunnel is back", 3.0, False, False),
        Renewal(
            "a flow from before the tunnel was closed stays lost, however short it was", 0.0, True, False
        ),
    ],
    ids=str,
)
def test_generations(case: Renewal) -> None:
    clock = Clock()
    there = unconnected(clock)
    there.renew(clock.lease())
    grant = there.grant()
    assert grant is not None
    clock.ns += int(case.sleep_s * SECOND_NS)
    if case.closed_between:
        there.renew(Lease("hq", "down", "it was reset", "", 0, 0))
        assert not there.admits(grant)
    there.renew(clock.lease())
    assert there.admits(grant) is case.kept
    fresh = there.grant()
    assert fresh is not None and there.admits(fresh)


@pytest.mark.parametrize("state", [state for state in TunnelState if state is not TunnelState.ATTESTED])
def test_a_tunnel_that_is_not_leased_says_its_state_and_why(state: TunnelState) -> None:
    there = unconnected(Clock())
    there.renew(Lease("hq", state, "in these words", "", 0, 0))
    assert there.fact() == TunnelFact("hq", state)
    assert there.words == "in these words"
    assert there.grant() is None


def test_attested_without_a_deadline_is_not_attested() -> None:
    there = unconnected(Clock())
    there.renew(Lease("hq", "attested", "it says so", "sha256:peer", 1, 0))
    assert there.fact().state is TunnelState.STALE
    assert there.grant() is None


# -- dialling ----------------------------------------------------------------------------------------


def test_a_dialled_channel_carries_to_the_destination(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with leased(site, tmp_path) as there, destination(echo) as port:
            channel = await there.egress.dial("site.example", port)
            await channel.write(b"through the tunnel")
            assert await channel.read() == b"through the tunnel"
            channel.abort()

    run(main())


def test_a_socket_that_the_gateway_lets_go_of_without_a_word_is_replaced_once(
    run: Run, site: Site, tmp_path: Path
) -> None:
    """As one does that was restarted: what the holder had kept ready leads nowhere."""

    async def main() -> None:
        gone = await asyncio.start_server(lambda _, writer: writer.transport.abort(), "127.0.0.1", 0)
        async with gone, leased(site, tmp_path) as there, destination(echo) as port:
            good, there.holder.address = there.holder.address, gone.sockets[0].getsockname()

            async def before() -> None:
                if there.holder.dials == 2:
                    there.holder.address = good

            there.holder.before = before
            channel = await there.egress.dial("site.example", port)
            await channel.write(b"through the tunnel")
            assert await channel.read() == b"through the tunnel"
            channel.abort()

    run(main())


@dataclass(frozen=True, slots=True)
class Failure:
    sentence: str
    host: str
    words: str
    status: int = 0
    pins: tuple[str, ...] | None = None
    trouble: str = ""

    def __str__(self) -> str:
        return self.sentence


FAILURES = [
    Failure("a destination that the gateway does not allow is its word", "wan.example", "403", 403),
    Failure("a name that the gateway does not know is its word", "nowhere.example", "the gateway", 502),
    Failure("a peer whose key is not pinned gets no request", "site.example", "pin", pins=("sha256:other",)),
    Failure("what the holder says is passed on", "site.example", "it is far", trouble="it is far away"),
]


@pytest.mark.parametrize("case", FAILURES, ids=str)
def test_failures_are_told(run: Run, site: Site, tmp_path: Path, case: Failure) -> None:
    async def main() -> None:
        async with leased(site, tmp_path, pins=case.pins) as there, destination(echo) as port:
            there.holder.trouble = case.trouble
            with pytest.raises(DialFailed, match=case.words) as failed:
                await there.egress.dial(case.host, port)
            assert failed.value.status == case.status

    run(main())


def test_a_host_that_no_request_may_contain_is_refused(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with leased(site, tmp_path) as there:
            with pytest.raises(ValueError, match="write it as"):
                await there.egress.dial("Site.Example\r\nx: y", 80)

    run(main())


def test_without_a_holder_dialling_fails_at_once(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(DialFailed, match="holder is not there"):
            await unconnected(Clock()).dial("site.example", 80)

    run(main())


# -- holders that misbehave --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def by_hand() -> AsyncIterator[tuple[MtlsEgress, Link[Dial]]]:
    """A tunnel and the holder's end of its link."""
    there = MtlsEgress(setup(), trusting_nobody(), Backlog(), Clock())
    ours, theirs = ipc.pair()
    holder: Link[Dial] = Link(theirs, [Dial])
    there.connect_holder(ours)
    hearing = asyncio.create_task(there.hear_holder())
    try:
        yield there, holder
    finally:
        holder.close()
        there.close()
        await hearing


def plain_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


async def ended(sock: socket.socket) -> None:
    """Until the other end of a pair is closed everywhere."""
    assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
    sock.close()


def test_a_holder_that_goes_away_fails_who_waits(run: Run) -> None:
    async def main() -> None:
        async with by_hand() as (there, holder):
            dials = [asyncio.create_task(there.dial("site.example", 80)) for _ in range(3)]
            for _ in dials:
                await holder.receive()
            holder.close()
            for dial in dials:
                with pytest.raises(DialFailed, match="holder is gone"):
                    await dial

    run(main())


def test_a_holder_that_cannot_be_heard_is_told_of(run: Run) -> None:
    """It goes on, so that nobody gives a new link to it: whoever asks must not stay without for ever."""

    async def main() -> None:
        there = MtlsEgress(setup(), trusting_nobody(), Backlog(), Clock())
        ours, theirs = ipc.pair()
        there.connect_holder(ours)
        hearing = asyncio.create_task(there.hear_holder())
        with theirs:
            theirs.send(b"what no holder says")
            with pytest.raises(ipc.LinkBroken, match="not JSON"):
                await hearing

    run(main())


def test_a_flow_without_a_descriptor_for_its_socket_is_refused_and_the_link_goes_on(run: Run) -> None:
    async def main() -> None:
        there = MtlsEgress(setup(), trusting_nobody(), Backlog(), Clock())
        ours, theirs = ipc.pair()
        holder = Link(theirs, [Dial])
        there.connect_holder(ours)
        gateway = socket.socketpair()
        trouble = ""

        async def serve() -> None:
            with contextlib.suppress(ipc.LinkBroken):
                while True:
                    await holder.receive()
                    holder.send(Dialled(trouble), [] if trouble else [gateway[0].fileno()])

        tasks = [asyncio.create_task(there.hear_holder()), asyncio.create_task(serve())]
        with none_left(), pytest.raises(DialFailed, match="no descriptor is left here for a socket of tun"):
            await there.dial("site.example", 1)
        trouble = "it is far away"
        with pytest.raises(DialFailed, match=trouble):
            await there.dial("site.example", 1)
        holder.close()
        there.close()
        await asyncio.gather(*tasks)
        for end in gateway:
            end.close()

    run(main())


def test_who_waited_for_the_last_holder_asks_the_new_one(run: Run) -> None:
    """A holder that is replaced, for a new certificate say, costs no flow; and none is one socket short."""

    async def main() -> None:
        async with by_hand() as (there, holder):
            dials = [asyncio.create_task(there.dial("site.example", 80))]
            await holder.receive()
            ours, theirs = ipc.pair()
            following: Link[Dial] = Link(theirs, [Dial])
            there.connect_holder(ours)
            hearing = asyncio.create_task(there.hear_holder())
            dials.append(asyncio.create_task(there.dial("site.example", 80)))
            serving = asyncio.create_task(_hear_and_hang_up(following))
            for dial in dials:
                with pytest.raises(DialFailed, match="handshake"):
                    await dial
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            following.close()
            await hearing

    run(main())


async def _hear_and_hang_up(holder: Link[Dial]) -> None:
    """A holder whose gateway ends each connection once it was spoken to in TLS."""
    while True:
        await holder.receive()
        given, kept = plain_pair()
        holder.send(Dialled(""), [given.fileno()])
        given.close()
        hello = await asyncio.get_running_loop().sock_recv(kept, 1)
        kept.close()
        assert hello == b"\x16"


def test_a_holder_that_is_silent_is_waited_for_no_longer_than_a_while(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mtls_egress, "SOCKET_LIMIT_S", 0.01)
    monkeypatch.setattr(kept, "KEPT", 0)  # nobody else asks

    async def main() -> None:
        async with by_hand() as (there, holder):
            with pytest.raises(DialFailed, match="no socket in 0"):
                await there.dial("site.example", 80)
            given, far = plain_pair()
            await holder.receive()
            holder.send(Dialled(""), [given.fileno()])
            given.close()
            await ended(far)  # what comes too late is closed, not kept

    run(main())


@pytest.mark.parametrize("how", ["cancelled", "out of time"])
def test_a_socket_that_comes_in_the_moment_in_which_nobody_wants_it_is_closed(
    run: Run, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(mtls_egress, "SOCKET_LIMIT_S", 0.0 if how == "out of time" else 60)
    monkeypatch.setattr(kept, "KEPT", 0)

    async def main() -> None:
        async with by_hand() as (there, holder):
            loop = asyncio.get_running_loop()
            given, kept = plain_pair()
            dial = asyncio.create_task(there.dial("site.example", 80))

            def deliver() -> None:
                there._deliver(Dialled(""), [given.detach()])
                if how == "cancelled":
                    dial.cancel()

            loop.call_soon(deliver)  # after the first step of `dial`, and before its time is over
            with pytest.raises(DialFailed if how == "out of time" else asyncio.CancelledError):
                await dial
            await ended(kept)
            await holder.receive()

    run(main())


def test_an_answer_to_nobody_is_closed(run: Run) -> None:
    async def main() -> None:
        async with by_hand() as (_, holder):
            given, kept = plain_pair()
            holder.send(Dialled(""), [given.fileno()])
            given.close()
            await ended(kept)
            holder.send(Dialled("no"))
            await turns()

    run(main())
