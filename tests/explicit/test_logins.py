"""Who may log in, and how often somebody may fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from explicit_world import PASSWORD, PEOPLE, password_lines

from proxy import passwords
from proxy.explicit.logins import Failures, Login, Logins
from proxy.flow import Refusal

HERE, THERE = ip_address("192.0.2.7"), ip_address("192.0.2.8")


@pytest.fixture(scope="module")
def lines() -> str:
    return password_lines()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def logins(lines: str, clock: Callable[[], float] | None = None, people: Any = PEOPLE) -> Logins:
    contents = json.dumps({"people": people, "passwords": lines}).encode()
    return Logins("corporate", contents, Failures(clock or Clock()))


def answered(answer: Login | Refusal) -> str:
    return answer.name if isinstance(answer, Login) else answer.because.id


def test_who_shows_the_right_password_has_the_groups_of_the_sites_people(lines: str) -> None:
    async def main() -> None:
        made = logins(lines)
        assert await made.check(HERE, "alice", PASSWORD) == Login("alice", frozenset({"staff"}))
        assert answered(await made.check(HERE, "alice", b"wrong")) == "login"
        assert answered(await made.check(HERE, "nobody", PASSWORD)) == "login"
        assert answered(await made.check(HERE, "alice\0", PASSWORD)) == "login"

    asyncio.run(main())


def test_a_right_password_gives_no_way_into_another_zone(lines: str) -> None:
    assert answered(asyncio.run(logins(lines).check(HERE, "mallory", PASSWORD))) == "not-admitted"


def test_rows_of_the_systems_users_and_groups_fit_no_login(lines: str) -> None:
    rows = [["#-1", ["corporate"], []], ["@staff", ["corporate"], []], ["#0", ["corporate"], []]]
    made = logins(lines, people=rows)
    for name in ("alice", "#-1", "#0", "@staff", "*", "", "x" * 65):
        assert answered(made.known(name)) == "not-admitted"
    everybody = logins(lines, people=[["*", ["corporate"], ["staff"]]])
    assert everybody.known("@staff") == Login("@staff", frozenset({"staff"}))


def test_failures_are_limited_by_address_and_forgiven_with_time(lines: str) -> None:
    async def main() -> None:
        clock = Clock()
        made = logins(lines, clock)
        failed = [answered(await made.check(HERE, "nobody", b"x")) for _ in range(Failures.BURST)]
        assert set(failed) == {"login"}
        assert answered(await made.check(HERE, "alice", PASSWORD)) == "too-many-logins"
        assert answered(await made.check(THERE, "alice", PASSWORD)) == "alice"
        clock.now += Failures.EVERY_S
        assert answered(await made.check(HERE, "alice", PASSWORD)) == "alice"
        assert answered(await made.check(HERE, "alice", PASSWORD)) == "alice"  # no failure, so no limit
        assert answered(await made.check(HERE, "alice", b"x")) == "login"
        assert answered(await made.check(HERE, "alice", PASSWORD)) == "too-many-logins"

    asyncio.run(main())


def test_a_host_with_many_ipv6_addresses_is_one_address() -> None:
    failures = Failures(Clock())
    tried = [failures.may_try(ip_address(f"2001:db8::{number}")) for number in range(1, 30)]
    assert tried.count(True) == Failures.BURST
    assert failures.may_try(ip_address("2001:db8:0:1::1"))


def test_the_memory_of_failures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failures, "MOST", 8)
    failures = Failures(Clock())
    for number in range(100):
        assert failures.may_try(ip_address(number))
    assert len(failures._spent) == 8


def test_many_connections_with_one_password_compare_it_once(
    lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0
    matches = passwords.Entry.matches

    def counted(entry: passwords.Entry, password: bytes) -> bool:
        nonlocal compared
        compared += 1
        return matches(entry, password)

    async def main() -> None:
        monkeypatch.setattr(passwords.Entry, "matches", counted)
        made = logins(lines)
        many = range(3 * Failures.BURST)
        found = await asyncio.gather(*(made.check(HERE, "alice", PASSWORD) for _ in many))
        assert {answered(one) for one in found} == {"alice"}
        await made.check(HERE, "alice", PASSWORD)
        assert compared == 1
        await made.check(HERE, "alice", b"x")
        await made.check(HERE, "nobody", b"x")
        assert compared == 3, "an unknown login costs as much as a known one"

    asyncio.run(main())


def test_who_gives_up_waiting_leaves_the_comparison_to_the_others(lines: str) -> None:
    async def main() -> None:
        made = logins(lines)
        first = asyncio.create_task(made.check(HERE, "alice", PASSWORD))
        second = asyncio.create_task(made.check(HERE, "alice", PASSWORD))
        await asyncio.sleep(0)
        first.cancel()
        assert answered(await second) == "alice"

    asyncio.run(main())
