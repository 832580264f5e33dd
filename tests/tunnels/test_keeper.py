"""A real holder in a process of its own, against a real gateway: what is judged of what it sees, and when."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from corporate_end import CorporateEnd, corporate_end
from gates import gone
from loopback import Site

from proxy import children, ipc
from proxy.certificates import issue_client, make_authority, write_issued
from proxy.flow import TunnelState
from proxy.link import Link
from proxy.messages.holding import Dial, Dialled, TunnelSetup
from proxy.site import Secret, TunnelFiles
from proxy.tunnels.base import MAX_AGE_NS, Attestation
from proxy.tunnels.keeper import Keeper

LIMIT_S = 90


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def run(main: Callable[[], Any]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await main()

    asyncio.run(limited())


def files(site: Site, client: Any = None, ca: str = "") -> TunnelFiles:
    issued = client or site.client
    return TunnelFiles((ca or site.authority.pem).encode(), issued.pem.encode(), Secret(issued.key_pem))


def setup(site: Site, port: int, pins: tuple[str, ...] = (), name: str = "gate.example") -> TunnelSetup:
    return TunnelSetup("hq", "127.0.0.1", port, name, pins or (site.server.pin,), False)


@dataclass
class Kept:
    """A keeper at work, and everything that it said."""

    keeper: Keeper
    said: list[Attestation] = field(default_factory=list)

    async def until(self, *states: TunnelState) -> Attestation:
        """The first judgement from now on that is one of these."""
        seen = len(self.said)
        while True:
            for judged in self.said[seen:]:
                if judged.state in states:
                    return judged
            seen = len(self.said)
            await asyncio.sleep(0.005)

    @property
    def holder(self) -> int:
        assert self.keeper._holder is not None
        return self.keeper._holder.process.pid


@asynccontextmanager
async def keeping(what: TunnelSetup, given: TunnelFiles) -> AsyncIterator[Kept]:
    kept = Kept(Keeper(what, given))

    async def listen() -> None:
        async for judged in kept.keeper.keep():
            assert judged == kept.keeper.now
            kept.said.append(judged)

    task = asyncio.create_task(listen())
    try:
        yield kept
        assert not task.done() or task.result() is None
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


ATTESTED, DOWN, REFUSED, STALE = (
    TunnelState.ATTESTED,
    TunnelState.DOWN,
    TunnelState.REFUSED,
    TunnelState.STALE,
)


# -- proved ------------------------------------------------------------------------------------------


def test_a_pinned_peer_that_answers_is_attested_and_its_proof_is_renewed(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            corporate_end(site, tmp_path) as end,
            keeping(setup(site, end.address[1]), files(site)) as kept,
        ):
            assert kept.keeper.now == Attestation(DOWN, "not started")
            before = now_ns()
            first = await kept.until(ATTESTED)
            assert first.peer == site.server.pin
            assert before < first.proof_at_ns < now_ns()
            assert first.deadline_ns == first.proof_at_ns + MAX_AGE_NS
            second = await kept.until(ATTESTED)
            while second.proof_at_ns == first.proof_at_ns:
                second = await kept.until(ATTESTED)
            assert second.deadline_ns > first.deadline_ns
            assert {judged.state for judged in kept.said} <= {TunnelState.CONNECTING, ATTESTED}

    run(main)


def test_held_down_by_hand_it_stays_down_until_it_is_let_go(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            corporate_end(site, tmp_path) as end,
            keeping(setup(site, end.address[1]), files(site)) as kept,
        ):
            await kept.until(ATTESTED)
            holder = kept.holder
            kept.keeper.hold_down("held down by ana")
            down = await kept.until(DOWN)
            assert (down.words, down.deadline_ns) == ("held down by ana", 0)
            while not gone(holder):
                await asyncio.sleep(0.01)
            seen = len(kept.said)
            await asyncio.sleep(0.5)
            assert kept.keeper.serve() is None
            assert {judged.state for judged in kept.said[seen:]} <= {DOWN}
            kept.keeper.let_go()
            await kept.until(ATTESTED)

    run(main)


def test_the_holder_is_nobody_and_was_given_no_key_to_see(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            corporate_end(site, tmp_path) as end,
            keeping(setup(site, end.address[1]), files(site)) as kept,
        ):
            await kept.until(ATTESTED)
            proc = Path("/proc", str(kept.holder))
            status = proc.joinpath("status").read_text()
            if os.getuid() == 0:
                assert "Uid:\t65534\t65534\t65534\t65534" in status
            shown = proc.joinpath("cmdline").read_bytes() + proc.joinpath("environ").read_bytes()
            assert b"PRIVATE" not in shown
            assert not any("memfd" in str(fd.readlink()) for fd in proc.joinpath("fd").iterdir())

    run(main)


# -- impostors ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Impostor:
    """`change` gives the holder's setup and files, or another gateway's certificate."""

    sentence: str
    words: str
    state: TunnelState = REFUSED
    pins: tuple[str, ...] = ()
    name: str = "gate.example"
    other_ca: bool = False
    other_client: bool = False
    of_a_client: bool = False

    def __str__(self) -> str:
        return self.sentence


OTHER = "sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
IMPOSTORS = [
    Impostor("a key that is not pinned, though all else is right", "not pinned", pins=(OTHER,)),
    Impostor("a certificate for another name", "does not verify", name="other.example"),
    Impostor("a certificate of another authority", "does not verify", other_ca=True),
    Impostor("a client's certificate as a server's", "does not verify", of_a_client=True),
    Impostor("a gateway that does not know our certificate", "", DOWN, other_client=True),
]  # fmt: skip


@pytest.mark.parametrize("case", IMPOSTORS, ids=str)
def test_impostors_are_never_attested(site: Site, tmp_path: Path, case: Impostor) -> None:
    now = datetime.now(UTC)
    authority = make_authority("another", now=now)
    given = files(
        site,
        issue_client(authority, "laptop", now=now) if case.other_client else None,
        authority.pem if case.other_ca else "",
    )
    pins = case.pins
    gateway = site
    if case.of_a_client:
        issued = issue_client(site.authority, "gate.example", now=now)
        pins = (issued.pin,)
        gateway = object.__new__(Site)
        gateway.__dict__ |= site.__dict__ | {"server_files": write_issued(issued, tmp_path, "impostor")}

    async def main() -> None:
        async with (
            corporate_end(gateway, tmp_path) as end,
            keeping(setup(site, end.address[1], pins, case.name), given) as kept,
        ):
            judged = await kept.until(case.state)
            assert case.words in judged.words
            assert judged.deadline_ns == 0
            assert ATTESTED not in {one.state for one in kept.said}

    run(main)


# -- lost --------------------------------------------------------------------------------------------


def test_a_gateway_that_is_not_there_is_down_and_attested_when_it_is(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            port = reserved.getsockname()[1]
            async with keeping(setup(site, port), files(site)) as kept:
                judged = await kept.until(DOWN)
                assert "cannot be reached" in judged.words and judged.deadline_ns == 0

    run(main)


def test_a_gateway_that_resets_is_lost_at_once(site: Site, tmp_path: Path) -> None:
    """Nobody waits for the lease to run out when the peer itself says that it goes."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as undo:
            end: CorporateEnd = await undo.enter_async_context(corporate_end(site, tmp_path))
            async with keeping(setup(site, end.address[1]), files(site)) as kept:
                attested = await kept.until(ATTESTED)
                lost = asyncio.create_task(kept.until(DOWN))
                await undo.aclose()
                judged = await lost
                assert judged.deadline_ns == 0 and now_ns() < attested.proof_at_ns + 10 * MAX_AGE_NS

    run(main)


def test_a_holder_that_is_stopped_proves_nothing_and_its_proof_runs_out(site: Site, tmp_path: Path) -> None:
    """The clock is news too: no message comes, and the judgement changes all the same."""

    async def main() -> None:
        async with (
            corporate_end(site, tmp_path) as end,
            keeping(setup(site, end.address[1]), files(site)) as kept,
        ):
            attested = await kept.until(ATTESTED)
            os.kill(kept.holder, signal.SIGSTOP)
            stale = await kept.until(STALE)
            assert stale.deadline_ns == 0
            assert now_ns() >= attested.deadline_ns
            os.kill(kept.holder, signal.SIGCONT)
            await kept.until(ATTESTED)

    run(main)


def test_a_holder_that_dies_is_followed_by_another(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            corporate_end(site, tmp_path) as end,
            keeping(setup(site, end.address[1]), files(site)) as kept,
        ):
            await kept.until(ATTESTED)
            first = kept.holder
            down = asyncio.create_task(kept.until(DOWN))
            os.kill(first, signal.SIGKILL)
            assert (await down).words == "its holder is not running"
            await kept.until(ATTESTED)
            assert (kept.holder != first, kept.keeper.generation) == (True, 2)

    run(main)


def test_a_machine_that_gives_no_process_leaves_the_tunnel_down_until_it_does(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    start_module = children.start_module

    async def scarce(*arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            arguments[1].close()
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await start_module(*arguments)

    monkeypatch.setattr(children, "start_module", scarce)

    async def main() -> None:
        async with (
            corporate_end(site, tmp_path) as end,
            keeping(setup(site, end.address[1]), files(site)) as kept,
        ):
            await kept.until(ATTESTED)
            assert kept.said[0] == Attestation(DOWN, "its holder is not running")
            assert kept.keeper.generation == 1

    run(main)


# -- renewed -----------------------------------------------------------------------------------------


def test_a_new_certificate_is_proved_and_then_used_without_a_gap(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            corporate_end(site, tmp_path) as end,
            keeping(setup(site, end.address[1]), files(site)) as kept,
        ):
            await kept.until(ATTESTED)
            first, seen = kept.holder, len(kept.said)
            other = issue_client(site.authority, "laptop", now=datetime.now(UTC))
            given = files(site, other)
            assert await kept.keeper.renew(given) == ""
            later = await kept.until(ATTESTED)
            while kept.holder == first:
                later = await kept.until(ATTESTED)
            assert {judged.state for judged in kept.said[seen:]} == {ATTESTED}
            assert (kept.keeper.files, kept.keeper.generation) == (given, 2)
            assert later.deadline_ns > now_ns()
            with pytest.raises(ProcessLookupError):
                os.kill(first, 0)
            assert {guest.client.fingerprint for guest in end.gateway.guests} == {other.fingerprint}

    run(main)


def test_a_certificate_that_the_gateway_refuses_changes_nothing(site: Site, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    rogue = files(site, issue_client(make_authority("another", now=now), "laptop", now=now))

    async def main() -> None:
        async with (
            corporate_end(site, tmp_path) as end,
            keeping(setup(site, end.address[1]), files(site)) as kept,
        ):
            await kept.until(ATTESTED)
            first = kept.holder
            assert "refused this client" in await kept.keeper.renew(rogue)
            await kept.until(ATTESTED)
            assert (kept.holder, kept.keeper.generation) == (first, 1)
            assert {judged.state for judged in kept.said} <= {TunnelState.CONNECTING, ATTESTED}

    run(main)


def test_a_new_certificate_gets_a_tunnel_up_that_the_old_one_did_not(site: Site, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    rogue = files(site, issue_client(make_authority("another", now=now), "laptop", now=now))

    async def main() -> None:
        async with (
            corporate_end(site, tmp_path) as end,
            keeping(setup(site, end.address[1]), rogue) as kept,
        ):
            await kept.until(DOWN)
            assert await kept.keeper.renew(files(site)) == ""
            await kept.until(ATTESTED)

    run(main)


def test_a_renewal_while_the_holder_is_being_started_again_wins(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come at once: one holder is left, and it is the one with the new certificate."""
    given = files(site, issue_client(site.authority, "laptop", now=datetime.now(UTC)))

    async def main() -> None:
        async with (
            corporate_end(site, tmp_path) as end,
            keeping(setup(site, end.address[1]), files(site)) as kept,
        ):
            await kept.until(ATTESTED)
            renewing = asyncio.create_task(kept.keeper.renew(given))
            os.kill(kept.holder, signal.SIGKILL)
            assert await renewing == ""
            while kept.keeper.files is not given:
                await asyncio.sleep(0.005)
            await kept.until(ATTESTED)
            while len({guest.client.fingerprint for guest in end.gateway.guests}) > 1:
                await asyncio.sleep(0.005)

    run(main)


# -- what it serves ----------------------------------------------------------------------------------


def test_a_worker_gets_connected_sockets_while_there_is_a_holder_and_nothing_else(
    site: Site, tmp_path: Path
) -> None:
    async def main() -> None:
        async with corporate_end(site, tmp_path) as end:
            what = setup(site, end.address[1])
            assert Keeper(what, files(site)).serve() is None
            async with keeping(what, files(site)) as kept:
                await kept.until(ATTESTED)
                ours = kept.keeper.serve()
                assert ours is not None
                link: Link[Dialled] = Link(ours, [Dialled])
                link.send(Dial(2))
                answer, fds = await link.receive()
                assert (answer.trouble, len(fds)) == ("", 2)
                for fd in fds:
                    with socket.socket(fileno=fd) as sock:
                        assert sock.getpeername() == end.address
                holder = kept.holder
            await link_ends(link)
            with pytest.raises(ProcessLookupError):
                os.kill(holder, 0)
            assert kept.keeper.serve() is None

    run(main)


async def link_ends(link: Link[Dialled]) -> None:
    """A worker hears that the holder of its tunnel is gone."""
    with pytest.raises(ipc.LinkBroken):
        await link.receive()
