"""The directory of users: what it says, and that nobody who needs nothing of it waits for it."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import pwd
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy import commands, directory
from proxy.directory import Directory, DirectorySilent, User, identity
from proxy.locks import Locks
from proxy.messages.admin import Answer, Ask, Denied, Order

ME = os.geteuid()
NOBODY_HERE = 4_242_424


def test_a_user_of_the_system_has_a_login_and_groups() -> None:
    me = pwd.getpwuid(ME)
    found = identity(ME)
    assert (found.uid, found.login) == (ME, me.pw_name)
    assert grp.getgrgid(me.pw_gid).gr_name in found.groups


def test_a_user_whom_the_system_does_not_know_has_a_number_and_no_groups() -> None:
    assert identity(NOBODY_HERE) == User(NOBODY_HERE, f"#{NOBODY_HERE}", ())


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A directory that does not answer until it is set."""
    event = threading.Event()

    def hang(_: object) -> None:
        event.wait()
        raise KeyError("nobody")

    monkeypatch.setattr(directory, "LIMIT_S", 0.05)
    monkeypatch.setattr(directory, "pwd", SimpleNamespace(getpwuid=hang, getpwnam=hang))
    yield event
    event.set()


async def silent(there: Directory) -> None:
    with pytest.raises(DirectorySilent, match="does not answer"):
        await there.user(ME)


def test_a_directory_that_hangs_is_given_up(hung: threading.Event) -> None:
    """Its thread stays, and is counted until it ends."""

    async def main() -> None:
        there = Directory()
        await silent(there)
        with pytest.raises(DirectorySilent):
            await there.uid_of("alice")
        assert there._threads == 2
        hung.set()
        while there._threads:
            await asyncio.sleep(0.001)
        with pytest.raises(KeyError):
            await there.uid_of("alice")

    asyncio.run(main())


def test_no_more_than_a_few_threads_wait_for_it(
    hung: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(directory, "MOST_THREADS", 3)

    def identity(uid: int) -> User:
        started.append(uid)
        hung.wait()
        raise KeyError(uid)

    monkeypatch.setattr(directory, "identity", identity)

    async def main() -> None:
        there = Directory()
        await asyncio.gather(*(silent(there) for _ in range(10)))

    asyncio.run(main())
    assert len(started) == 3


def test_a_login_is_known_without_it(hung: threading.Event, tmp_path: Path) -> None:
    there = Directory()
    file = tmp_path / "passwd"
    file.write_text("root:x:0:0::/:\nof-file:x:4242424:1::/:\n\x1b[2J:x:7:7::/:\nshort\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "PASSWD", file)
        assert there.at_once(NOBODY_HERE) == User(NOBODY_HERE, "of-file", ())
        assert there.at_once(7).login == "#7"
        there._logins[NOBODY_HERE] = "told"
        assert there.at_once(NOBODY_HERE).login == "told"
        file.unlink()
        assert there.at_once(0).login == "#0"


def test_what_it_told_is_remembered() -> None:
    there = Directory()
    told = asyncio.run(there.user(ME))
    assert told == identity(ME) and there.at_once(ME) == User(ME, told.login, ())


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (Order("lock", "{}"), '"cut": 0'),
        (Order("unlock", "{}"), "nothing of that is locked"),
        (Order("lock", '{"user": "#4711"}'), '"uid": 4711'),
        (Order("lock", '{"user": "alice"}'), 'does not answer; write "#uid" instead of a name'),
        (Order("kill", '{"flow": "f1"}'), '"cut": 0'),
        (Ask("flows", "{}"), '"flows": []'),
        (Ask("explain", "{}"), "does not answer"),
    ],
)
def test_orders_do_not_wait_for_it(
    hung: threading.Event, tmp_path: Path, message: Order | Ask, answer: str
) -> None:
    """But those that name somebody by name, or ask what somebody's groups decide: they are told."""

    async def main() -> Answer | Denied:
        there = Directory()
        daemon: Any = SimpleNamespace(
            directory=there,
            locks=Locks(tmp_path / "locks.json", "now"),
            workers={},
            loaded=SimpleNamespace(site=SimpleNamespace(zones={})),
        )
        said = await commands.answer(cast(commands.Daemon, daemon), ME, message)
        assert there._threads == ("does not answer" in answer)
        return said

    said = asyncio.run(main())
    assert answer in (said.text if isinstance(said, Answer) else said.reason), json.dumps(str(said))
