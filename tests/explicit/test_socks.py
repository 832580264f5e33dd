"""Conversations of SOCKS5 over real sockets, through a real tunnel, with what was written down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from corporate_end import echo
from explicit_world import PASSWORD, explicitly, password_lines
from first_words import hello
from loopback import Run, Site, runner

from proxy.explicit import socks
from proxy.flow import NEVER, Verdict

type Make = Callable[..., Any]

NO_LOGIN, WITH_LOGIN = b"\5\1\0", b"\5\1\2"
SUCCEEDED, FAILED, NOT_ALLOWED, NO_NETWORK, NO_HOST = (bytes((5, code, 0, 1)) + bytes(6) for code in range(5))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def lines() -> str:
    return password_lines()


@pytest.fixture
def run() -> Run:
    return runner("uvloop")  # the worker's


@pytest.fixture
def proxy(site: Site, tmp_path: Path) -> Make:
    return partial(explicitly, site, tmp_path, serve=echo, kind="socks5")


def named(name: str | bytes, port: int, command: int = 1) -> bytes:
    raw = name if isinstance(name, bytes) else name.encode()
    return bytes((5, command, 0, 3, len(raw))) + raw + port.to_bytes(2)


def addressed(address: str, port: int) -> bytes:
    packed = ip_address(address).packed
    return bytes((5, 1, 0, 1 if len(packed) == 4 else 4)) + packed + port.to_bytes(2)


def login(name: bytes, password: bytes) -> bytes:
    return b"\1" + bytes((len(name),)) + name + bytes((len(password),)) + password


@pytest.mark.parametrize("at", [1, 3, 1000])
def test_what_is_admitted_is_carried_however_it_is_cut_into_pieces(run: Run, proxy: Make, at: int) -> None:
    async def main() -> None:
        async with proxy() as there:
            whole = NO_LOGIN + named("Site.Example.", there.port) + b"\0hello"
            pieces = [whole[start : start + at] for start in range(0, len(whole), at)]
            assert await there.say(*pieces, end=True) == b"\5\0" + SUCCEEDED + b"\0hello"
            await there.quiet()
            (verdict,) = there.verdicts()
            assert (verdict.name, verdict.user, verdict.enforcement) == (
                "site.example", "anonymous", "cooperative",
            )  # fmt: skip
            assert there.ends()[0].why == "finished by both ends"

    run(main())


def test_an_address_is_an_address_however_it_is_sent(run: Run, proxy: Make) -> None:
    async def main() -> None:
        async with proxy() as there:
            for asked in (addressed("127.0.0.1", there.port), named("127.0.0.1", there.port)):
                assert await there.say(NO_LOGIN, asked, b"\0x", end=True) == b"\5\0" + SUCCEEDED + b"\0x"
            for asked in (addressed("::1", there.port), named("[::1]", there.port), named("::1", there.port)):
                assert await there.say(NO_LOGIN, asked) == b"\5\0" + NOT_ALLOWED
            await there.quiet()
            found = [(record.name, str(record.address)) for record in there.verdicts()]
            assert found == [(None, "127.0.0.1")] * 2 + [(None, "::1")] * 3

    run(main())


@dataclass(frozen=True, slots=True)
class Refused:
    sentence: str
    asked: bytes
    answer: bytes
    recorded: bool = True

    def __str__(self) -> str:
        return self.sentence


REFUSED = [
    Refused("no rule", named("other.example", 80), NOT_ALLOWED),
    Refused("an address of no rule", addressed("10.0.0.1", 80), NOT_ALLOWED),
    Refused("what the gateway does not allow", named("wan.example", 80), NOT_ALLOWED),
    Refused("what the gateway cannot reach", named("site.example", 1), NO_HOST),
    Refused("BIND", named("site.example", 80, 2), bytes((5, 7, 0, 1)) + bytes(6)),
    Refused("UDP ASSOCIATE", named("site.example", 80, 3), bytes((5, 7, 0, 1)) + bytes(6)),
    Refused("an unknown command", named("site.example", 80, 9), bytes((5, 7, 0, 1)) + bytes(6)),
    Refused("an unknown type of address", b"\5\1\0\2xxxx\0\0", bytes((5, 8, 0, 1)) + bytes(6), False),
    Refused("an empty name", named("", 80), FAILED),
    Refused("a name with a NUL", named(b"site.example\0.evil", 80), FAILED),
    Refused("a name that is not ASCII", named("bücher.example", 80), FAILED),
    Refused("a short form of an address", named("127.1", 80), FAILED),
    Refused("a user before the name", named("me@site.example", 80), FAILED),
    Refused("a name with its port", named("site.example:80", 80), FAILED),
    Refused("port 0", named("site.example", 0), FAILED),
    Refused("a reserved byte that is not 0", b"\5\1\1\3\1a\0\1", FAILED, False),
    Refused("another version", b"\4\1\0\3\1a\0\1", FAILED, False),
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_refusal_is_a_code_and_nothing_behind_it_is_heard(run: Run, proxy: Make, case: Refused) -> None:
    async def main() -> None:
        async with proxy() as there:
            behind = NO_LOGIN + named("site.example", there.port)
            assert await there.say(NO_LOGIN, case.asked, behind) == b"\5\0" + case.answer
            await there.quiet()
            assert len(there.verdicts()) == case.recorded

    run(main())


def test_a_tunnel_that_is_not_proved_is_a_network_that_is_not_there(run: Run, proxy: Make) -> None:
    async def main() -> None:
        async with proxy() as there:
            there.tunnel.clock.ns += 10**10
            assert await there.say(NO_LOGIN, named("site.example", 80)) == b"\5\0" + NO_NETWORK

    run(main())


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"\4\1\0\x50\0\0\0\1a\0site\0", b""),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
        (b"\5\0", b"\5\xff"),
        (b"\5\1\2", b"\5\xff"),
        (b"\5\2\1\x80", b"\5\xff"),
    ],
    ids=["SOCKS4", "HTTP", "no method", "a login that nobody asks for", "unknown methods"],
)
def test_another_greeting_ends_the_connection(run: Run, proxy: Make, said: bytes, heard: bytes) -> None:
    async def main() -> None:
        async with proxy() as there:
            assert await there.say(said) == heard

    run(main())


def test_logins_are_asked_for_and_checked(run: Run, proxy: Make, lines: str) -> None:
    async def main() -> None:
        async with proxy(auth="passwords", lines=lines) as there:
            asked = named("site.example", there.port) + b"\0x"
            right = login(b"alice", PASSWORD)
            assert await there.say(NO_LOGIN, asked) == b"\5\xff"
            assert await there.say(WITH_LOGIN, b"\2\1a\1b", asked) == b"\5\2\1\1"
            assert await there.say(WITH_LOGIN, login(b"alice", b"x"), asked) == b"\5\2\1\1"
            assert await there.say(WITH_LOGIN, login(b"", b""), asked) == b"\5\2\1\1"
            assert await there.say(WITH_LOGIN, login(b"mallory", PASSWORD), asked) == b"\5\2\1\1"
            heard = await there.say(b"\5\2\0\2", right, asked, end=True)
            assert heard == b"\5\2\1\0" + SUCCEEDED + b"\0x"
            await there.quiet()
            found = [(record.user, record.verdict) for record in there.verdicts()]
            block = Verdict.BLOCK
            assert found == [("alice", block), ("", block), ("mallory", block), ("alice", Verdict.TUNNEL)]
            assert there.verdicts()[0].name is None and there.verdicts()[0].address in (None, NEVER)

    run(main())


def test_who_fails_too_often_is_not_heard_and_fills_no_records(run: Run, proxy: Make, lines: str) -> None:
    async def main() -> None:
        async with proxy(auth="passwords", lines=lines) as there:
            for _ in range(15):
                assert await there.say(WITH_LOGIN, login(b"alice", b"x")) == b"\5\2\1\1"
            assert await there.say(WITH_LOGIN, login(b"alice", PASSWORD)) == b"\5\2\1\1"
            assert len(there.verdicts()) == 10

    run(main())


def test_nothing_in_a_tunnel_names_another_destination(run: Run, proxy: Make, lines: str) -> None:
    """I1, I9."""

    async def main() -> None:
        async with proxy() as there:
            evil = hello("evil.example")
            with suppress(ConnectionError):
                heard = await there.say(NO_LOGIN, named("site.example", there.port), evil)
                assert heard == b"\5\0" + SUCCEEDED
            await there.quiet()
            assert "claims to speak to evil.example" in there.ends()[0].why

    run(main())


def test_who_is_slow_makes_room(run: Run, proxy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socks, "HANDSHAKE_LIMIT_S", 0.1)

    async def main() -> None:
        async with proxy() as there:
            for said in (b"", b"\5", NO_LOGIN, NO_LOGIN + b"\5\1\0\3\xff"):
                assert await there.say(said) in (b"", b"\5\0")
            await there.quiet()

    run(main())


def test_half_a_handshake_and_the_end(run: Run, proxy: Make) -> None:
    async def main() -> None:
        async with proxy() as there:
            whole = NO_LOGIN + named("site.example", there.port)
            for length in range(len(whole)):
                assert await there.say(whole[:length], end=True) in (b"", b"\5\0")
            await asyncio.sleep(0)
            assert there.records() == []

    run(main())
