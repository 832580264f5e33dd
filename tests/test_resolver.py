"""Names asked through a tunnel, with a real resolver behind it, over UDP and TCP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from loopback import LOOPS, Run, runner
from packet_end import RESOLVER, SETUP, Far, packet_tunnel

from proxy import resolver
from proxy.egress import DialFailed
from proxy.messages.packets import Connect

NAME = "git.corp.example"


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


def addresses(*texts: str) -> tuple[object, ...]:
    return tuple(map(ip_address, texts))


def test_both_families_by_turns(run: Run) -> None:
    async def main() -> None:
        far = Far({NAME: ["60 A 10.77.0.80", "60 A 10.77.0.81", "60 AAAA fd77::80"]})
        async with packet_tunnel(far) as (egress, _):
            found = await egress.resolve(NAME)
            assert found == addresses("fd77::80", "10.77.0.80", "10.77.0.81")
        assert {(one.transport, one.address, one.port) for one in far.asked} == {("udp", RESOLVER, 53)}

    run(main())


def test_only_families_that_the_tunnel_has(run: Run) -> None:
    async def main() -> None:
        far = Far({NAME: ["60 A 10.77.0.80", "60 AAAA fd77::80"]})
        async with packet_tunnel(far, replace(SETUP, addresses=("10.8.0.2/32",))) as (egress, _):
            assert await egress.resolve(NAME) == addresses("10.77.0.80")
        assert far.questions == [f"{NAME}. A"]

    run(main())


def test_answers_are_kept_for_their_time_and_no_longer(run: Run) -> None:
    async def main() -> None:
        far = Far({NAME: ["60 A 10.77.0.80", "60 AAAA fd77::80"], "zero.example": ["0 A 10.77.0.80"]})
        async with packet_tunnel(far) as (egress, clock):
            egress.renew(clock.lease(61, tunnel="wg"))
            await asyncio.gather(*(egress.resolve(NAME) for _ in range(20)))
            await egress.resolve(NAME)
            assert len(far.questions) == 2, "one for each family"
            clock.ns += 60_000_000_000
            await egress.resolve(NAME)
            assert len(far.questions) == 4
            clock.ns = egress.deadline_ns
            egress.renew(clock.lease(tunnel="wg"))  # the lease had ended meanwhile
            await egress.resolve(NAME)
            assert len(far.questions) == 6, "what was learnt under another lease is forgotten"
            await egress.resolve("zero.example")
            await egress.resolve("zero.example")
            assert far.questions.count("zero.example. A") == 2

    run(main())


def test_a_long_answer_comes_by_tcp(run: Run) -> None:
    async def main() -> None:
        far = Far({NAME: ["60 A 10.77.0.80"]}, truncates=True)
        async with packet_tunnel(far) as (egress, _):
            assert await egress.resolve(NAME) == addresses("10.77.0.80")
        assert {one.transport for one in far.asked} == {"tcp", "udp"}

    run(main())


def test_aliases_are_followed(run: Run) -> None:
    async def main() -> None:
        far = Far({NAME: ["60 CNAME x.example."], "x.example": ["60 A 10.77.0.80"]})
        far.names["round.example"] = ["60 CNAME about.example."]
        far.names["about.example"] = ["60 CNAME round.example."]
        async with packet_tunnel(far) as (egress, _):
            assert await egress.resolve(NAME) == addresses("10.77.0.80")
            with pytest.raises(DialFailed, match="is an alias of an alias"):
                await egress.resolve("round.example")

    run(main())


def test_another_answer_first_does_not_count(run: Run) -> None:
    """Off-path guesses with another number are passed over; the right one is waited for."""

    async def main() -> None:
        far = Far({NAME: ["60 A 10.77.0.80"]})

        def junk(data: bytes) -> bytes:
            return bytes([data[0] ^ 1]) + data[1:]

        far.spoil = junk
        async with packet_tunnel(far) as (egress, _):
            asking = asyncio.create_task(egress.resolve(NAME))
            while not far.questions:
                await asyncio.sleep(0.001)
            far.spoil = lambda data: data
            assert await asking == addresses("10.77.0.80")
        assert len(far.questions) > 2

    run(main())


def _silent(far: Far) -> None:
    far.spoil = lambda _: None


def _unreachable(far: Far) -> None:
    far.refused[RESOLVER] = "Network is unreachable"


def _empty(far: Far) -> None:
    far.names[NAME] = []


def _failing(far: Far) -> None:
    far.spoil = lambda data: data[:3] + bytes([data[3] & 0xF0 | 2]) + data[4:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_silent, f"{RESOLVER} does not answer"),
        (_unreachable, "Network is unreachable"),
        (_empty, f"{NAME} has no address, says the tunnel's resolver"),
        (_failing, "says SERVFAIL"),
        (lambda far: far.names.clear(), f"{NAME} does not exist, says the tunnel's resolver"),
        (
            lambda far: far.names.update({NAME: ["60 A 127.0.0.1"]}),
            "127.0.0.1, which is not behind",
        ),
        (lambda far: far.names.update({NAME: ["60 A 169.254.169.254"]}), "is not behind the tunnel"),
        (lambda far: far.names.update({NAME: ["60 AAAA ::ffff:127.0.0.1"]}), "is not behind the tunnel"),
        (lambda far: far.names.update({NAME: ["60 AAAA fe80::1"]}), "is not behind the tunnel"),
        (lambda far: far.names.update({NAME: ["60 A 10.8.0.2"]}), "is not behind the tunnel"),
        (lambda far: far.names.update({NAME: ["60 A 198.18.1.1"]}), "is not behind the tunnel"),
        (lambda far: far.names.update({NAME: ["60 A 0.0.0.0"]}), "is not behind the tunnel"),
    ],
)
def test_a_name_that_leads_nowhere(
    run: Run, monkeypatch: pytest.MonkeyPatch, change: Callable[[Far], None], words: str
) -> None:
    monkeypatch.setattr(resolver, "TRIES_S", (0.05 if change is _silent else 30.0,))

    async def main() -> None:
        far = Far({NAME: ["60 A 10.77.0.80"]})
        change(far)
        async with packet_tunnel(far) as (egress, _):
            with pytest.raises(DialFailed) as caught:
                await egress.resolve(NAME)
            assert words in str(caught.value)

    run(main())


def test_a_tunnel_without_resolvers(run: Run) -> None:
    async def main() -> None:
        async with packet_tunnel(Far(), replace(SETUP, resolvers=())) as (egress, _):
            with pytest.raises(DialFailed, match="write one under dns"):
                await egress.resolve(NAME)

    run(main())


def test_a_lost_tunnel_leaves_nobody_waiting(run: Run) -> None:
    async def main() -> None:
        far = Far(spoil=lambda _: None)
        async with packet_tunnel(far) as (egress, clock):
            asking = asyncio.create_task(egress.resolve(NAME))
            while not far.questions:
                await asyncio.sleep(0.001)
            egress.renew(replace(clock.lease(tunnel="wg"), deadline_ns=0))
            with pytest.raises(DialFailed, match="was lost"):
                await asking
        assert all(isinstance(one, Connect) for one in far.asked)

    run(main())


class _Late(Far):
    """What lies behind a tunnel of which the lease ends meanwhile."""

    heard: Callable[[str], None]

    def answer(self, wire: bytes, *, may_be_long: bool) -> bytes | None:
        self.heard("question")
        return super().answer(wire, may_be_long=may_be_long)

    def connected(self, wanted: Connect) -> socket.socket:
        self.heard("socket")
        return super().connected(wanted)


@pytest.mark.parametrize(
    ("moment", "truncates"), [("socket", False), ("question", False), ("question", True)]
)
def test_nothing_is_asked_once_a_lease_has_run_out(
    run: Run, monkeypatch: pytest.MonkeyPatch, moment: str, truncates: bool
) -> None:
    """A supervisor that is stopped says nothing of it: only the clock does."""
    monkeypatch.setattr(resolver, "TRIES_S", (30.0, 30.0))

    async def main() -> None:
        far = _Late({NAME: ["60 A 10.77.0.80"]}, truncates=truncates)
        _failing(far)
        async with packet_tunnel(far, replace(SETUP, addresses=("10.8.0.2/32",))) as (egress, clock):

            def heard(what: str) -> None:
                if what == moment:
                    clock.ns = egress.deadline_ns

            far.heard = heard
            with pytest.raises(DialFailed, match="its lease has run out"):
                await egress.resolve(NAME)
        assert len(far.questions) == (1 if moment == "question" else 0)
        assert len(far.asked) == 1

    run(main())
