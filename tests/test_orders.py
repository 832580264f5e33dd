"""Who may order what, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import orders
from proxy.answers import NoAnswer
from proxy.directory import Directory, User
from proxy.locks import EVERYBODY, Lock, Locks
from proxy.messages.worker import FlowPage, FlowRow
from proxy.orders import OrderRefused, carry_out, flows

ME = os.geteuid()
OWNER, ALICE, MALLORY = User(ME, "owner", ()), User(ME + 1, "alice", ()), User(ME + 2, "mallory", ())


def row(number: int, user: str = "alice", **more: Any) -> FlowRow:
    known = FlowRow(f"w-{number}", user, "b", "git.corp.example:443", "https", "hq", 1.0, 1, 2, "rule git")
    return replace(known, **more)


@dataclass
class Worker:
    """A worker that keeps a list of what it is told; `hung` answers nothing."""

    zone: str
    user: User
    rows: list[FlowRow] = field(default_factory=list)
    hung: bool = False
    locked: str = ""
    retired: bool = False
    cuts: list[dict[str, Any]] = field(default_factory=list)
    leased: bool = True
    ears: tuple[str, ...] = ()
    loaded: Any = None

    @property
    def post(self) -> Any:
        return SimpleNamespace(zone=self.zone, user=self.user.login, ears=self.ears)

    @property
    def answers(self) -> Any:
        return SimpleNamespace(cut=self.cut, flows=self.page)

    async def cut(self, because: str, **what: Any) -> int:
        if self.hung:
            raise NoAnswer("the worker did not answer in 3 s")
        self.cuts.append({"because": because, **what})
        return len(self.rows)

    async def page(self, after: int, most: int) -> FlowPage:
        if self.hung:
            raise NoAnswer("the worker has ended")
        found = self.rows[after : after + 2]
        return FlowPage(0, tuple(found), after + 2 if len(found) == 2 else 0)

    async def lock(self, words: str) -> int:
        self.locked, self.leased = words, False
        return await self.cut(words)

    async def unlock(self) -> None:
        self.locked = ""

    def retire(self) -> None:
        self.retired = True


class Daemon:
    """What orders need of a supervisor."""

    def __init__(self, directory: Path, *workers: Worker) -> None:
        self.locks = Locks(directory / "locks.json", "now")
        self.directory = Directory()
        self.workers: Any = {(one.zone, one.user.uid): one for one in workers}
        zones = {name: SimpleNamespace(counted_only=name == "personal") for name in ("corporate", "personal")}
        self.loaded: Any = SimpleNamespace(site=SimpleNamespace(zones=zones))
        for worker in workers:
            worker.loaded = self.loaded

    def lease_again(self, worker: Any) -> None:
        worker.leased = True

    def do(self, what: str, asker: User = OWNER, /, **parameters: Any) -> dict[str, Any]:
        return asyncio.run(carry_out(self, what, parameters, asker))

    def told(self, user: User) -> list[dict[str, Any]]:
        async def all_pages() -> list[dict[str, Any]]:
            found, after = [], None
            while True:
                page = await flows(self, {"after": after}, user)
                found += page["flows"]
                after = page["next"]
                if after is None:
                    return found

        return asyncio.run(all_pages())


@pytest.fixture
def alice() -> Worker:
    return Worker("corporate", ALICE, [row(1), row(2), row(3)])


@pytest.fixture
def mallory() -> Worker:
    return Worker("corporate", MALLORY, [row(4, "mallory")])


@pytest.fixture
def daemon(tmp_path: Path, alice: Worker, mallory: Worker) -> Daemon:
    return Daemon(tmp_path, alice, mallory)


# -- flows -------------------------------------------------------------------------------------------


def test_everybody_is_told_their_own_flows_and_the_owner_all(daemon: Daemon, alice: Worker) -> None:
    assert [one["id"] for one in daemon.told(OWNER)] == ["w-1", "w-2", "w-3", "w-4"]
    assert [one["id"] for one in daemon.told(ALICE)] == ["w-1", "w-2", "w-3"]
    assert {one["user"] for one in daemon.told(MALLORY)} == {"mallory"}
    alice.hung = True
    assert [one["id"] for one in daemon.told(OWNER)] == ["w-4"]


def test_of_a_zone_that_is_only_counted_nobody_else_is_told_the_destinations(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, Worker("personal", ALICE, [row(1)]))
    (seen,), (own,) = daemon.told(OWNER), daemon.told(ALICE)
    assert (seen["destination"], seen["because"]) == ("not recorded", "not recorded")
    assert own["destination"] == "git.corp.example:443"


def test_a_worker_that_was_taken_over_writes_nothing_to_a_terminal_and_fills_no_message(
    daemon: Daemon, alice: Worker
) -> None:
    junk = "\x1b[2J\n" + "𝄞" * 20_000
    alice.rows = [row(1, id=junk, destination=junk, because=junk, tunnel=junk, protocol=junk, bubble=junk)]
    (seen,) = daemon.told(ALICE)
    assert all(str(value).isprintable() and len(str(value)) < 300 for value in seen.values())
    assert len(repr(seen).encode()) * orders.FLOWS_OF_PAGE < 128 * 1024


@pytest.mark.parametrize("after", [7, "x", [], ["a", 1], ["a", 1, -1], ["a", 1, 1 << 70], [1, 1, 1]])
def test_a_page_that_cannot_be_is_refused(daemon: Daemon, after: object) -> None:
    with pytest.raises(OrderRefused, match="no such page"):
        asyncio.run(flows(daemon, {"after": after}, OWNER))


# -- kill --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "to, host, port",
    [
        ("git.corp.example", "git.corp.example", 0),
        ("GIT.corp.example.:443", "git.corp.example", 443),
        ("*.corp.example:22", "*.corp.example", 22),
        ("192.0.2.1:80", "192.0.2.1", 80),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
        ("2001:db8::1", "2001:db8::1", 0),
        ("[2001:db8::1]", "2001:db8::1", 0),
    ],
)
def test_a_destination_is_read_as_it_is_judged(
    daemon: Daemon, alice: Worker, to: str, host: str, port: int
) -> None:
    assert daemon.do("kill", to=to)["cut"] == 4
    assert alice.cuts == [{"because": "killed by owner", "flow": "", "host": host, "port": port, "user": ""}]


@pytest.mark.parametrize(
    "to", ["0x7f.1", "a:b:c", "git.corp.example:", "git:99999", "git:" + "9" * 5000, "a b"]
)
def test_what_is_no_destination_cuts_nothing(daemon: Daemon, alice: Worker, to: str) -> None:
    with pytest.raises(OrderRefused):
        daemon.do("kill", to=to)
    assert alice.cuts == []


def test_a_user_kills_only_what_is_theirs(daemon: Daemon, alice: Worker, mallory: Worker) -> None:
    assert daemon.do("kill", MALLORY, to="git.corp.example")["cut"] == 1
    assert alice.cuts == []
    with pytest.raises(OrderRefused, match="only the user who runs the daemon"):
        daemon.do("kill", MALLORY, user="alice")
    assert daemon.do("kill", OWNER, user=f"#{ALICE.uid}")["cut"] == 3
    assert len(mallory.cuts) == 1


def test_who_logged_in_at_a_listener_is_told_apart_there(tmp_path: Path, alice: Worker) -> None:
    listener = Worker("corporate", User(-2, "explicit", ()), [row(7, "carol")], ears=("proxy",))
    daemon = Daemon(tmp_path, alice, listener)
    daemon.do("kill", OWNER, user="carol-of-nowhere")
    assert (alice.cuts, listener.cuts[0]["user"]) == ([], "carol-of-nowhere")
    daemon.do("kill", OWNER, user=f"#{ALICE.uid}")
    assert (len(alice.cuts), len(listener.cuts)) == (1, 2)
    with pytest.raises(OrderRefused, match="only the user who runs the daemon"):
        daemon.do("kill", ALICE, user="carol-of-nowhere")


def test_nothing_named_is_nothing_killed(daemon: Daemon, alice: Worker) -> None:
    for wrong in ({}, {"flow": 7}, {"to": "a\nb"}):
        with pytest.raises(OrderRefused):
            daemon.do("kill", **wrong)
    with pytest.raises(OrderRefused, match="can do"):
        daemon.do("explode")
    assert alice.cuts == []


def test_a_worker_that_does_not_answer_is_told(daemon: Daemon, alice: Worker) -> None:
    alice.hung = True
    found = daemon.do("kill", to="git.corp.example")
    assert found["cut"] == 1
    assert found["trouble"] == ["zone corporate of alice: the worker did not answer in 3 s"]


# -- locks -------------------------------------------------------------------------------------------


def test_the_owner_locks_everybody_and_it_is_on_the_disk_when_it_is_answered(
    daemon: Daemon, alice: Worker, mallory: Worker, tmp_path: Path
) -> None:
    found = daemon.do("lock", reason="lost")
    assert (found["cut"], found["trouble"]) == (4, [])
    assert (alice.leased, mallory.leased) == (False, False)
    assert "locked by owner" in alice.locked and alice.locked.endswith(": lost")
    assert Locks(tmp_path / "locks.json", "later").over("corporate", ALICE.uid) == alice.locked
    daemon.do("unlock")
    assert (alice.locked, alice.leased) == ("", True)
    assert Locks(tmp_path / "locks.json", "later").in_force == ()


def test_a_user_locks_and_opens_only_their_own(daemon: Daemon, alice: Worker, mallory: Worker) -> None:
    daemon.do("lock", ALICE)
    assert (bool(alice.locked), mallory.locked) == (True, "")
    with pytest.raises(OrderRefused, match="nothing of that is locked"):
        daemon.do("unlock", MALLORY)
    with pytest.raises(OrderRefused, match="name other users"):
        daemon.do("unlock", MALLORY, user="alice")
    assert alice.locked
    daemon.do("unlock", ALICE)
    assert not alice.locked


def test_what_the_owner_locked_nobody_else_opens(daemon: Daemon, alice: Worker) -> None:
    daemon.do("lock")
    with pytest.raises(OrderRefused, match="everybody was locked by owner"):
        daemon.do("unlock", ALICE)
    daemon.do("unlock")
    daemon.do("lock", user=f"#{ALICE.uid}")
    with pytest.raises(OrderRefused, match="who locked it can open it"):
        daemon.do("unlock", ALICE)
    daemon.do("lock", ALICE)
    daemon.do("unlock", ALICE)
    assert "locked by owner" in alice.locked, "one's own lock is gone, and the other one is not"
    with pytest.raises(OrderRefused, match="nothing of that is locked"):
        daemon.do("unlock")
    daemon.do("unlock", user=f"#{ALICE.uid}")
    assert not alice.locked


def test_a_zone_is_not_opened_under_a_lock_of_all(daemon: Daemon, alice: Worker) -> None:
    daemon.do("lock")
    with pytest.raises(OrderRefused, match="leave out --zone"):
        daemon.do("unlock", zone="corporate")
    assert alice.locked


@pytest.mark.parametrize(
    "wrong", [{"zone": "corporat"}, {"reason": "x" * 201}, {"reason": "a\nb"}, {"zone": 7}]
)
def test_a_lock_that_cannot_be_is_refused(daemon: Daemon, alice: Worker, wrong: dict[str, Any]) -> None:
    with pytest.raises(OrderRefused):
        daemon.do("lock", **wrong)
    assert not alice.locked


def test_a_worker_that_does_not_say_that_it_is_locked_is_ended(daemon: Daemon, alice: Worker) -> None:
    alice.hung = True
    found = daemon.do("lock")
    assert alice.retired and not alice.leased
    assert found["trouble"] == ["zone corporate of alice: the worker did not answer in 3 s; it was ended"]


def test_a_lock_that_cannot_be_kept_is_in_force_and_says_so(
    daemon: Daemon, alice: Worker, tmp_path: Path
) -> None:
    (tmp_path / ".locks.json").mkdir()
    assert "a restart would open it" in daemon.do("lock")["trouble"][0]
    assert alice.locked
    with pytest.raises(OrderRefused, match="it stays locked"):
        daemon.do("unlock")
    assert alice.locked


def test_a_lock_of_a_zone_that_is_gone_can_be_opened(daemon: Daemon) -> None:
    daemon.locks.add(Lock("lab", EVERYBODY, "owner", ME, "", "now"))
    assert len(daemon.do("unlock", zone="lab")["unlocked"]) == 1
