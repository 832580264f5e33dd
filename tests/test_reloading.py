"""A daemon that goes on: other files taken whole or not at all, locks that outlive it, bubbles that wait."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from first_words import request
from gates import LIMIT_S, Gate, Guest, entered, gate, until
from own_namespaces import Zone, zone

from proxy import ipc, orders, passwords, reloading
from proxy.config import Site
from proxy.directory import Directory, DirectorySilent, User
from proxy.locks import Locks
from proxy.messages.admin import Answer, Ask, Denied, Order
from proxy.posts import Post
from proxy.site import load_site

OWN = """\
policy: 1
name: own
define: {zones: [corporate]}
rules:
  - {id: intranet, match: {to: [intranet.corp.example]}, verdict: tunnel}
"""
SHUT = "ConnectionRefusedError"


@pytest.fixture
def there() -> Iterator[Gate]:
    """A daemon whose policy lies beside its site file."""
    with gate() as made:
        text = made.config.read_text()
        line = next(line for line in text.splitlines() if line.startswith("policy:"))
        (made.directory / "own.policy.yaml").write_text(OWN)
        made.config.write_text(text.replace(line, "policy: own.policy.yaml"))
        yield made


@pytest.fixture(scope="module")
def ground() -> Iterator[Zone]:
    with zone() as made:
        yield made


def tell(there: Gate, message: object) -> Any:
    """What the daemon answers: a value, or the words of a refusal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(LIMIT_S)
        link.connect(str(there.socket))
        ipc.send(link, message)
        accepted: list[type[Answer | Denied]] = [Answer, Denied]
        answer, _ = ipc.receive(link, accepted)
        return answer.reason if isinstance(answer, Denied) else json.loads(answer.text)


def order(there: Gate, what: str, **parameters: Any) -> Any:
    return tell(there, Order(what, json.dumps(parameters)))


def status(there: Gate) -> Any:
    return tell(there, Ask("status", "{}"))


def edit(there: Gate, name: str, old: str, new: str) -> None:
    path = there.directory / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def heard_by(ground: Zone, host: str = "192.0.2.1") -> str:
    """What a program in the zone is told when it asks a web server."""
    answer = ground.tcp(host, 80, request(host))
    return answer.decode() if isinstance(answer, bytes) else str(answer)


GRANT = "  - {id: lab-net, match: {to: [192.0.2.0/24]}, verdict: tunnel}\n"
POLICY, SITE = "own.policy.yaml", "zonegate.yaml"


def ready_again(there: Gate) -> None:
    words, _, more = there.heard().partition("\n")
    assert words == "RELOADING=1" and more.startswith("MONOTONIC_USEC=")
    assert there.heard() == "READY=1"


# -- files -------------------------------------------------------------------------------------------


def test_an_edited_policy_is_taken_and_judges_at_once_while_bubbles_and_workers_stay(
    there: Gate, ground: Zone
) -> None:
    there.up()
    guest = entered(there, ground)
    workers = there.workers()
    before = status(there)
    assert "no rule matches" in heard_by(ground)
    path = there.directory / POLICY
    path.write_text(path.read_text().rstrip() + "\n" + GRANT)
    would = order(there, "reload", check=True)
    assert [one["name"] for one in would["changes"]] == ["lab-net"]
    assert status(there)["policy"] == before["policy"], "and nothing was done"
    found = order(there, "reload")
    assert found["lines"] == [
        "added rule lab-net",
        f"zone corporate of {found['workers'][0]['user']}: judged by the new policy; 0 flows cut",
    ]
    assert "tunnel hq is not proved" in heard_by(ground)
    after = status(there)
    assert after["policy"]["hash"] == found["policy"]["hash"] != before["policy"]["hash"]
    assert there.workers() == workers
    assert [one["id"] for one in after["bubbles"]] == [guest.bubble]
    ready_again(there)
    guest.leave()


def test_sighup_reloads_and_what_is_wrong_changes_nothing_and_is_told(there: Gate, ground: Zone) -> None:
    there.up()
    guest = entered(there, ground)
    before = status(there)
    edit(there, POLICY, "policy: 1", "policy: 2")
    there.daemon.send_signal(signal.SIGHUP)
    ready_again(there)
    failed = status(there)["reload"]["failed"]
    assert "own.policy.yaml:" in failed["words"]
    assert status(there)["policy"] == before["policy"]
    assert "nothing was changed" in order(there, "reload")
    code, out, _ = there.run("reload")
    assert (code, out) == (2, "")
    edit(there, POLICY, "policy: 2", "policy: 1")
    assert order(there, "reload")["lines"] == ["no difference"]
    assert status(there)["reload"]["failed"] is None
    assert "no rule matches" in heard_by(ground)
    guest.leave()
    there.daemon.terminate()
    code, said = there.ended()
    assert code == 0
    assert "own.policy.yaml:" in said and "nothing was changed" in said


def test_a_tunnel_that_changed_replaces_the_worker_and_one_that_is_new_comes_up(
    there: Gate, ground: Zone
) -> None:
    there.up()
    guest = entered(there, ground)
    workers = there.workers()
    edit(there, SITE, "127.0.0.1:", "127.0.0.2:")
    (row,) = order(there, "reload")["workers"]
    assert (row["what"], row["why"]) == ("replaced", "tunnel hq changed")
    assert there.workers() != workers
    assert status(there)["tunnels"]["hq"]["gateway"].startswith("127.0.0.2:")
    until(lambda: "no rule matches" in heard_by(ground))
    text = (there.directory / SITE).read_text()
    begin, end = text.index("  hq:"), text.index("people:")
    second = text[begin:end].replace("  hq:", "  second:")
    edit(there, SITE, "people:", second + "people:")
    found = order(there, "reload")
    assert found["lines"] == ["added tunnel second"], "a tunnel that no zone has concerns nobody"
    assert set(status(there)["tunnels"]) == {"hq", "second"}
    edit(there, SITE, second, "")
    assert order(there, "reload")["lines"] == ["removed tunnel second"]
    assert set(status(there)["tunnels"]) == {"hq"}
    guest.leave()


def test_who_may_not_enter_any_more_is_told_and_may_come_back(there: Gate, ground: Zone) -> None:
    there.up()
    guest = entered(there, ground)
    site = (there.directory / SITE).read_text()
    people = site[site.index("people:") :]
    edit(there, SITE, people, 'people:\n  "#4711": {zones: [corporate]}\n')
    (row,) = order(there, "reload")["workers"]
    assert (row["what"], row["bubbles"]) == ("dismissed", [guest.bubble])
    refused = guest.hear()
    assert isinstance(refused, Denied) and 'may not enter zone "corporate" any more' in refused.reason
    guest.leave()
    until(lambda: heard_by(ground) == SHUT)
    until(lambda: not status(there)["workers"])
    assert [one["id"] for one in status(there)["waiting"]] == [guest.bubble]
    again = Guest(there, ground, again=guest.bubble).answer
    assert isinstance(again, Denied) and "may not enter" in again.reason
    (there.directory / SITE).write_text(site)
    order(there, "reload")
    returned = entered(there, ground, again=guest.bubble)
    assert returned.bubble == guest.bubble
    assert "no rule matches" in heard_by(ground)
    assert status(there)["waiting"] == []
    returned.leave()


def test_a_zone_that_is_gone_ends_and_a_state_cannot_move(there: Gate, ground: Zone) -> None:
    edit(there, SITE, "zones:\n", "zones:\n  lab: {tunnels: [hq]}\n")
    edit(there, SITE, "{zones: [corporate]}", "{zones: [corporate, lab]}")
    edit(there, POLICY, "zones: [corporate]", "zones: [corporate, lab]")
    there.up()
    guest = Guest(there, ground, name="lab")
    edit(there, SITE, "  lab: {tunnels: [hq]}\n", "")
    edit(there, SITE, "[corporate, lab]", "[corporate]")
    edit(there, SITE, "state: ", "state: else")
    assert "state cannot change while it runs" in order(there, "reload")
    assert len(status(there)["bubbles"]) == 1, "all or nothing"
    edit(there, SITE, "state: else", "state: ")
    rows = {row["zone"]: row["what"] for row in order(there, "reload")["workers"]}
    assert rows == {"corporate": "kept", "lab": "dismissed"}
    refused = guest.hear()
    assert isinstance(refused, Denied) and 'zone "lab" is not in' in refused.reason
    guest.leave()
    assert "lab" not in status(there)["zones"]
    again = entered(there, ground, again=guest.bubble)  # else a stop would end this process for it
    assert again.bubble == guest.bubble, "and elsewhere it is welcome"
    again.leave()


def test_a_worker_that_does_not_say_that_it_is_locked_is_replaced(there: Gate, ground: Zone) -> None:
    """Stopped, it would go on as before when it is continued."""
    there.up()
    guest = entered(there, ground)
    (sandbox,) = there.workers()
    stopped = [sandbox, *_below(sandbox)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    found = order(there, "lock")
    assert "did not answer" in found["trouble"][0] and "it was ended" in found["trouble"][0]
    until(lambda: "locked by" in heard_by(ground))
    assert sandbox not in there.workers()
    guest.leave()


def _below(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += map(int, task.joinpath("children").read_text().split())
    return found[1:]


# -- locks -------------------------------------------------------------------------------------------


def test_a_lock_refuses_in_words_outlives_sigkill_and_is_opened_again(there: Gate, ground: Zone) -> None:
    there.up()
    guest = entered(there, ground)
    code, out, _ = there.run("lock", "--reason", "laptop lost")
    assert (code, out) == (0, "locked; 0 flows cut\n")
    there.daemon.kill()
    there.daemon.wait()
    guest.leave()
    there.up()
    assert [one["reason"] for one in status(there)["locks"]] == ["laptop lost"]
    guest = entered(there, ground, again=guest.bubble)  # else a stop would end this process for it
    assert "blocked by gate locked" in heard_by(ground) and "laptop lost" in heard_by(ground)
    code, out, _ = there.run("explain", "--to", "http://intranet.corp.example/")
    assert "verdict  block" in out and "because  gate locked" in out
    code, out, _ = there.run("status")
    assert code == 1 and "every zone is locked by" in out and "zonegate unlock" in out
    assert there.run("unlock") == (0, "opened 1 lock\n", "")
    assert "no rule matches" in heard_by(ground)
    assert status(there)["locks"] == []
    guest.leave()


def test_a_torn_list_of_locks_is_a_locked_gate(there: Gate, ground: Zone) -> None:
    state = there.directory / "state"
    state.mkdir(mode=0o700)
    (state / "locks.json").write_text('[{"zone": ""')
    there.up()
    guest = entered(there, ground)
    assert "locks.json cannot be read" in heard_by(ground)
    order(there, "unlock")
    assert "no rule matches" in heard_by(ground)
    guest.leave()


# -- a bubble that waits -----------------------------------------------------------------------------


def test_a_bubble_that_waits_for_a_daemon_is_told(there: Gate) -> None:
    there.up()
    program = there.start("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    (bubble,) = status(there)["bubbles"]
    assert there.run("stop", "--keep-bubbles")[0] == 0
    there.ended()
    code, _, said = there.run("status")
    assert code == 2
    assert said.splitlines()[0] == (
        f"zonegate: bubble {bubble['id']} (pid {program.pid}) waits for a daemon, shut in"
    )
    program.terminate()
    program.wait()


def test_a_bubble_that_is_refused_says_so_and_a_stop_ends_it(there: Gate) -> None:
    there.up()
    program = there.start("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    site = (there.directory / SITE).read_text()
    edit(there, SITE, site[site.index("people:") :], 'people:\n  "#4711": {zones: [corporate]}\n')
    order(there, "reload")
    assert program.stderr is not None
    said = program.stderr.readline()
    assert "this bubble is not served any more" in said and "may not enter" in said
    assert there.run("stop")[0] == 0
    assert program.wait(LIMIT_S) != 0


def test_listeners_come_and_go_with_a_reload_all_of_them_or_none(there: Gate) -> None:
    """An address of this process alone, so that nobody else has its ports."""
    address = f"127.66.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
    site = there.config.read_text().replace("people:\n", 'people:\n  "*": {zones: [corporate]}\n')

    def with_listeners(*rows: str) -> None:
        listed = "".join(f"  {row.replace('AT', address)}\n" for row in rows)
        there.config.write_text(f"{site.rstrip()}\nlisten:\n{listed}" if rows else site)

    def hears(port: int) -> bool:
        with socket.socket() as client:
            return client.connect_ex((address, port)) == 0

    web = 'web: {kind: http, address: "AT:3128", zone: corporate, auth: none}'
    more = 'more: {kind: http, address: "AT:3129", zone: corporate, auth: none}'
    socks = 'more: {kind: socks5, address: "AT:1080", zone: corporate, auth: none}'
    with_listeners()
    there.up()
    assert not status(there)["listeners"] and not hears(3128)
    with_listeners(web)
    assert order(there, "reload", check=True)["lines"] == ["added listener web"] and not hears(3128)
    assert order(there, "reload")["lines"] == ["added listener web"]
    assert _page(address, 3128).startswith(b"HTTP/1.1 503 ")
    with socket.create_server((address, 1080)):
        with_listeners(more, socks.replace("more", "socks"))
        refused = order(there, "reload")
        assert f"cannot listen on {address}:1080" in refused and "nothing was changed" in refused
        assert hears(3128) and not hears(3129), "all or nothing"
        assert [row["name"] for row in status(there)["listeners"]] == ["web"]
    with_listeners(socks, web)
    found = order(there, "reload")
    assert [(row["what"], row["why"]) for row in found["workers"] if row["user"] == "explicit"] == [
        ("replaced", "its listeners changed")
    ]
    assert hears(1080) and _page(address, 3128).startswith(b"HTTP/1.1 503 ")
    with_listeners(web.replace("auth: none", "auth: {passwords: people.passwd}"))
    (there.directory / "people.passwd").touch(mode=0o600)
    (there.directory / "people.passwd").write_text(passwords.line("alice", b"x") + "\n")
    assert set(order(there, "reload")["lines"][:2]) == {"removed listener more", "changed listener web"}
    assert _page(address, 3128).startswith(b"HTTP/1.1 407 ")
    until(lambda: not hears(1080))
    with_listeners()
    assert "no listener of zone corporate is left" in order(there, "reload")["lines"][-1]
    until(lambda: not hears(3128))


def _page(address: str, port: int) -> bytes:
    with socket.create_connection((address, port), LIMIT_S) as client:
        client.sendall(b"GET http://intranet.example/ HTTP/1.1\r\nHost: intranet.example\r\n\r\n")
        return client.recv(65536)


def test_a_post_that_comes_while_others_are_judged_is_judged_too(there: Gate) -> None:
    """Or its worker would go on by files that are not in force any more."""
    loaded = load_site(there.config)
    posts = [Post("corporate", "early", os.geteuid(), ())]

    async def user(uid: int) -> User:
        if len(posts) == 1:
            posts.append(Post("corporate", "late", 4711, ()))
        return User(uid, "nobody-here", ())

    directory = SimpleNamespace(user=user)
    daemon = SimpleNamespace(
        loaded=loaded, workers={}, ears=(), posts=lambda: tuple(posts), directory=directory
    )
    told = asyncio.run(reloading.Reloads(cast(reloading.Daemon, daemon)).reload(check=True))
    assert [row["user"] for row in told["workers"]] == ["early", "late"]


def test_a_directory_that_does_not_answer_lets_nothing_be_changed(there: Gate) -> None:
    async def user(_: int) -> User:
        raise DirectorySilent("the directory does not answer")

    post = Post("corporate", "early", os.geteuid(), ())
    daemon = SimpleNamespace(
        loaded=load_site(there.config),
        workers={},
        ears=(),
        posts=lambda: (post,),
        directory=SimpleNamespace(user=user),
    )
    with pytest.raises(orders.OrderRefused, match=r"^the directory does not answer\nnothing was changed"):
        asyncio.run(reloading.Reloads(cast(reloading.Daemon, daemon)).reload())


@pytest.mark.parametrize("at", ["reloaded", "replace_policy", "nothing"])
def test_a_worker_that_cannot_be_given_a_policy_does_not_go_on_with_the_old_one(
    there: Gate, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor may be left to give it with: no reason to leave it, or the others, as they were."""
    monkeypatch.setattr(Site, "may_enter", lambda *_: ())

    class Going:
        def __init__(self, post: Post, fault: str) -> None:
            self.post, self.fault, self.did = post, fault, list[str]()
            self.answers = self

        def _do(self, what: str) -> int:
            self.did.append(what)
            if what == self.fault:
                raise OSError(24, "Too many open files")
            return 0

        def reloaded(self, loaded: object) -> None:
            self._do("reloaded")

        async def replace_policy(self, text: bytes, file: str) -> int:
            return self._do("replace_policy")

        def retire(self) -> None:
            self.did.append("retire")

    posts = [Post("corporate", f"#{uid}", uid, ()) for uid in (os.geteuid(), 4711)]
    workers = {(post.zone, post.uid): Going(post, fault) for post, fault in zip(posts, (at, ""), strict=True)}
    daemon = SimpleNamespace(
        loaded=load_site(there.config), workers=workers, ears=(), posts=lambda: tuple(posts),
        adopt=lambda *_: None, man_listeners=lambda: None, directory=Directory(),
    )  # fmt: skip
    policy = daemon.loaded.site.policy
    policy.write_text(policy.read_text() + "# another\n")
    told = asyncio.run(reloading.Reloads(cast(reloading.Daemon, daemon)).reload())
    one, other = (worker.did for worker in workers.values())
    assert ("retire" in one) is (at != "nothing")
    assert other == ["reloaded", "replace_policy"]
    assert [row["what"] for row in told["workers"]][1] == "policy"


def test_no_lock_of_another_opens_a_worker_that_a_reload_ends(tmp_path: Path) -> None:
    opened: list[str] = []

    class Going:
        loaded: object = None
        locked = "the site was reloaded"

        async def unlock(self) -> None:
            opened.append("unlock")

    site = SimpleNamespace(zones={"corporate": None, "other": None})
    for in_force, then in ((False, []), (True, ["unlock"])):
        daemon = SimpleNamespace(
            loaded=SimpleNamespace(site=site),
            workers={("corporate", 4711): Going()},
            locks=Locks(tmp_path / "locks.json", "now"),
            lease_again=lambda worker: None,
        )
        if in_force:
            daemon.workers["corporate", 4711].loaded = daemon.loaded
        me = User(os.geteuid(), "me", ())
        asyncio.run(orders.carry_out(cast(orders.Daemon, daemon), "lock", {"zone": "other"}, me))
        assert opened == then


def test_orders_of_many_at_once_leave_one_state(there: Gate) -> None:
    """Locks, openings and reloads from many commands: the file, the memory and the answer agree."""
    there.up()

    async def main() -> None:
        kinds = [("lock", {}), ("unlock", {}), ("reload", {}), ("lock", {"zone": "corporate"})] * 5
        await asyncio.gather(*(asyncio.to_thread(order, there, what, **more) for what, more in kinds))

    asyncio.run(main())
    kept = json.loads((there.directory / "state" / "locks.json").read_text())
    assert [row["zone"] for row in kept] == [row["zone"] for row in status(there)["locks"]]
