"""A worker as its supervisor has it: sealed, told of bubbles and leases, replaced; and its records."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from first_words import request
from own_namespaces import Zone, zone

from proxy import chain, children, crew, doors, ipc, posts, sandbox
from proxy.audit import VerdictRecord, decode
from proxy.crew import Worker
from proxy.demo.site import make_site
from proxy.flow import Verdict
from proxy.link import Link
from proxy.messages.worker import FROM_WORKER, FromWorker, Lease, Listen, Report, Serving, WantSegment
from proxy.posts import Bubble, CrewError, Post
from proxy.segments import Segments
from proxy.site import load_site, setup_of
from proxy.tunnels.keeper import Keeper

LIMIT_S = 90
AWAY = b"HTTP/1.1 503"


class Ground:
    """A site, a post, and workers for it."""

    def __init__(self, directory: Path) -> None:
        self.loaded = load_site(make_site(directory, directory / "run", 9).gate)
        hq = self.loaded.site.tunnels["hq"]
        setup = setup_of(hq)
        self.keepers = {"hq": Keeper(setup, self.loaded.files["hq"])}
        self.audit = directory / "audit"
        self.segments = Segments(self.audit, clock=lambda: datetime.now(UTC))
        self.post = Post("corporate", "alice", os.getuid(), ())

    def worker(self, answer: Callable[[FromWorker], object | None] = lambda _: None, **more: Any) -> Worker:
        options = {"structural": True, "number": "w1", **more}
        return Worker(self.post, self.loaded, self.keepers, self.segments, answer, **options)

    @asynccontextmanager
    async def at_work(self, **more: Any) -> AsyncIterator[Worker]:
        """A worker that is heard."""
        worker = self.worker(**more)
        hearing: asyncio.Task[None] | None = None
        try:
            await worker.start()
            hearing = asyncio.create_task(worker.hear())
            yield worker
        finally:
            await worker.end()
            if hearing is not None:
                await hearing

    def bubble(self, there: Zone, name: str = "0-0123456789ab") -> Bubble:
        """The zone as a bubble at the post."""
        found = Bubble(name, "corporate", "alice", os.getuid(), there.pid, "structural", tuple(there.fds))
        self.post.bubbles[name] = found
        return found

    def sealed(self) -> int:
        """How many segments are in the chain."""
        manifest = self.audit / chain.MANIFEST
        return len(manifest.read_text().splitlines()) if manifest.exists() else 0

    def verdicts(self) -> list[VerdictRecord]:
        files = sorted(self.audit.glob("*.jsonl"))
        records = [decode(line) for file in files for line in file.read_bytes().splitlines()]
        return [record for record in records if isinstance(record, VerdictRecord)]


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def run(main: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await main()

    asyncio.run(limited())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def visit(there: Zone, host: str = "192.0.2.1") -> Any:
    """What a program in the zone hears when it asks a web server."""
    return await asyncio.to_thread(there.tcp, host, 80, request(host))


# -- started -----------------------------------------------------------------------------------------


def test_a_worker_that_is_not_sealed_is_not_let_in(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "sealed", lambda command, fd: command)

    async def main() -> None:
        worker = ground.worker()
        with pytest.raises(CrewError, match="able to make sockets"):
            await worker.start()
        await worker.end()
        assert list(ground.audit.iterdir()) == [], "it was given nothing"

    run(main)


def test_without_structural_enforcement_it_works_and_says_so(ground: Ground) -> None:
    async def main() -> None:
        async with ground.at_work(structural=False) as worker:
            assert worker.enforcement == "cooperative"
            await until(lambda: worker.report.policy_hash)

    run(main)


def test_a_worker_that_ends_at_once_is_an_error_in_words(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "python_command", lambda *_: ["/bin/true"])
    monkeypatch.setattr(sandbox, "sealed", lambda command, fd: command)

    async def main() -> None:
        worker = ground.worker()
        with pytest.raises(CrewError, match="the worker of zone corporate did not start"):
            await worker.start()
        await worker.end()

    run(main)


def test_a_tunnel_that_ends_while_a_worker_starts_is_an_error_in_words(ground: Ground) -> None:
    """A reload may take it away at any moment; the worker's successor has what is there then."""

    async def main() -> None:
        ground.keepers.clear()
        worker = ground.worker()
        with pytest.raises(CrewError, match="reloaded while the worker of zone corporate started"):
            await worker.start()
        await worker.end()
        assert not ground.audit.exists() or list(ground.audit.iterdir()) == [], "it was given nothing"

    run(main)


def test_it_reports_the_policy_that_is_in_force(ground: Ground) -> None:
    async def main() -> None:
        async with ground.at_work() as worker:
            await until(lambda: worker.report.policy_hash == ground.loaded.policy.hash)
            other = ground.loaded.policy_text + b"# another\n"
            await worker.answers.replace_policy(other, "another.yaml")
            await until(lambda: worker.report.policy_hash not in ("", ground.loaded.policy.hash))

    run(main)


def test_a_worker_that_hangs_is_ended(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "SILENT_S", 0.5)

    async def main() -> None:
        worker = ground.worker()
        try:
            await worker.start()
            for pid in below(worker.pid):
                os.kill(pid, signal.SIGSTOP)
            with pytest.raises(CrewError, match="the worker of zone corporate has hung"):
                await worker.hear()
        finally:
            await worker.end()

    run(main)


def below(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for one in found:
        found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return found


# -- bubbles -----------------------------------------------------------------------------------------


def test_a_zone_refuses_by_itself_until_it_is_served_and_again_when_its_worker_has_died(
    ground: Ground,
) -> None:
    async def main() -> None:
        with zone() as there:
            assert await visit(there) == "ConnectionRefusedError"
            bubble = ground.bubble(there)
            async with ground.at_work() as worker:
                await worker.serve(bubble)
                page = await visit(there)
                assert page.startswith(AWAY) and b"no proof of its peer" in page
                os.kill(worker.pid, signal.SIGKILL)
                await until(lambda: worker._link is None or worker._link.closed)
                with pytest.raises(CrewError):
                    worker._served.clear()
                    await worker.serve(bubble)
            while await visit(there) != "ConnectionRefusedError":  # the kernel closes what a dead worker had
                pass
            async with ground.at_work() as following:
                await following.serve(bubble)
                assert (await visit(there)).startswith(AWAY)
        verdicts = ground.verdicts()
        assert {(one.verdict, one.bubble, one.user) for one in verdicts} == {
            (Verdict.BLOCK, "0-0123456789ab", "alice")
        }
        assert chain.verify(ground.audit).problems == ()

    run(main)


def test_a_bubble_that_is_asked_for_twice_is_served_once(ground: Ground) -> None:
    async def main() -> None:
        with zone() as there:
            bubble = ground.bubble(there)
            async with ground.at_work() as worker:
                await asyncio.gather(worker.serve(bubble), worker.serve(bubble), worker.serve(bubble))
                assert (await visit(there)).startswith(AWAY)

    run(main)


def test_a_bubble_that_is_forgotten_is_heard_no_more(ground: Ground) -> None:
    async def main() -> None:
        with zone() as there:
            bubble = ground.bubble(there)
            async with ground.at_work() as worker:
                await worker.serve(bubble)
                worker.forget(bubble.id)
                while await visit(there) != "ConnectionRefusedError":
                    pass

    run(main)


def test_a_bubble_that_has_left_its_post_is_not_served(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of its descriptors may be another bubble's by then."""
    doors: list[object] = []
    start_module = children.start_module

    async def counted(*arguments: Any, **more: Any) -> Any:
        doors.append(arguments)
        return await start_module(*arguments, **more)

    monkeypatch.setattr(children, "start_module", counted)

    async def main() -> None:
        with zone() as there:
            bubble = ground.bubble(there)
            ground.post.bubbles.clear()
            async with ground.at_work() as worker:
                with pytest.raises(CrewError, match="the bubble has ended"):
                    await worker.serve(bubble)
                assert doors == []
                ground.bubble(there)
                with pytest.raises(CrewError, match="the bubble has ended"):
                    await worker.serve(bubble)  # another of the same name is not the same

    run(main)


def test_a_bubble_that_leaves_while_its_ears_are_opened_is_not_served(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ears = doors.open_ears

    async def and_leaves(bubble: Bubble, *, datagrams: bool) -> Any:
        found = await open_ears(bubble, datagrams=datagrams)
        ground.post.bubbles.clear()
        return found

    monkeypatch.setattr(crew, "open_ears", and_leaves)

    async def main() -> None:
        with zone() as there:
            bubble = ground.bubble(there)
            async with ground.at_work() as worker:
                with pytest.raises(CrewError, match="the bubble has ended"):
                    await worker.serve(bubble)
                assert await visit(there) == "ConnectionRefusedError"

    run(main)


def test_a_namespace_that_cannot_be_served_is_an_error_in_words_and_can_be_tried_again(
    ground: Ground,
) -> None:
    async def main() -> None:
        with zone() as there:
            bubble = ground.bubble(there)
            taken = "s = socket.create_server(('0.0.0.0', 15001)); said = ''"
            there.do(taken)
            async with ground.at_work() as worker:
                with pytest.raises(CrewError, match="cannot be served"):
                    await worker.serve(bubble)
                there.do("s.close(); said = ''")
                await worker.serve(bubble)
                assert (await visit(there)).startswith(AWAY)

    run(main)


def test_a_door_that_cannot_be_started_is_an_error_in_words(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(_: str, theirs: socket.socket, *__: int, words: list[str]) -> None:
        theirs.close()
        raise BlockingIOError(11, "Resource temporarily unavailable")

    async def main() -> None:
        with zone() as there:
            bubble = ground.bubble(there)
            async with ground.at_work() as worker:
                monkeypatch.setattr(children, "start_module", none)
                with pytest.raises(CrewError, match="cannot be started: Resource temporarily unavailable"):
                    await worker.serve(bubble)

    run(main)


# -- leases ------------------------------------------------------------------------------------------


def test_what_is_said_of_a_tunnel_is_what_its_flows_hear(ground: Ground) -> None:
    """The policy grants the catalogue only; a rule for an address is added for this."""
    text = ground.loaded.policy_text + b"  - {id: net, match: {to: [192.0.2.0/24]}, verdict: tunnel}\n"

    async def main() -> None:
        with zone() as there:
            bubble = ground.bubble(there)
            async with ground.at_work() as worker:
                await worker.answers.replace_policy(text, "more.yaml")
                await worker.serve(bubble)
                assert b"no proof of its peer has come yet" in await visit(there)
                worker.lease(Lease("hq", "down", "it was reset", "", 0, 0))
                assert b"it was reset" in await visit(there)
                now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                worker.lease(Lease("hq", "attested", "it answers", "sha256:p", now_ns, now_ns + 60 * 10**9))
                assert b"holder is not there" in await visit(there), "leased, and there is nobody to dial"
                worker.lease(Lease("hq", "attested", "it answers", "sha256:p", now_ns, now_ns))
                assert b"lease has run out" in await visit(there)

    run(main)


# -- segments ----------------------------------------------------------------------------------------


def test_a_full_segment_is_followed_by_another_and_sealed(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "SEGMENT_BYTES", 1)

    async def main() -> None:
        async with ground.at_work() as worker:
            await until(lambda: ground.sealed() >= 1)
            assert worker.report.segments >= 1
        assert chain.verify(ground.audit).problems == ()
        assert ground.sealed() == len(list(ground.audit.glob("*.jsonl")))

    run(main)


def test_a_segment_is_sealed_only_when_its_worker_says_that_it_has_left_it(ground: Ground) -> None:
    """Reports that were under way say nothing: what is written after the seal looks like a forgery."""

    async def main() -> None:
        worker = ground.worker()
        ours, theirs = ipc.pair()
        link: Link[FromWorker] = Link(ours, FROM_WORKER)
        os.close(worker._series.begin())
        for asked in (1, 2):
            worker._hear(link, WantSegment())
            for _ in range(5):
                worker._hear(link, Report(0, 0, 0, 0, 0, "", "", asked - 1))
            assert ground.sealed() == asked - 1
            worker._hear(link, Report(0, 0, 0, 0, 0, "", "", asked))
            assert ground.sealed() == asked
        worker._hear(link, Report(0, 0, 0, 0, 0, "", "", 1 << 40))
        assert ground.sealed() == 2, "a worker that was taken over cannot have its present one sealed"
        await worker.end()
        assert ground.sealed() == 3
        link.close()
        theirs.close()

    run(main)


def test_when_there_is_no_next_segment_flows_are_denied_and_it_is_said(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "SEGMENT_BYTES", 1)

    async def main() -> None:
        async with ground.at_work() as worker:
            (ground.audit / chain.MANIFEST).write_text("not a manifest\n")
            await until(lambda: worker.report.audit_trouble)
            assert chain.MANIFEST in worker.report.audit_trouble

    run(main)


# -- what a user can have started --------------------------------------------------------------------


def test_a_user_has_a_few_doors_opened_at_a_time_however_many_bubbles_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opening = most = 0

    async def door(_: Bubble, *, datagrams: bool) -> list[int]:
        nonlocal opening, most
        opening += 1
        most = max(most, opening)
        await asyncio.sleep(0)
        opening -= 1
        return []

    async def main() -> list[BaseException | None]:
        ids = [f"1000-{number}" for number in range(20)]
        there = {name: Bubble(name, "corporate", "alice", 1000, 1, "structural", ()) for name in ids}
        post = Post("corporate", "alice", 1000, (), there)
        nothing: Any = None  # the worker is never started
        worker = Worker(post, nothing, nothing, nothing, lambda _: None, structural=True, number="1")
        return await asyncio.gather(*map(worker.serve, there.values()), return_exceptions=True)

    monkeypatch.setattr(crew, "open_ears", door)
    answers = asyncio.run(main())
    assert all(isinstance(answer, CrewError) for answer in answers)
    assert most == posts.DOORS_AT_ONCE


def test_why_a_worker_does_not_serve_a_bubble_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def door(_: Bubble, *, datagrams: bool) -> list[int]:
        return [os.dup(0) for _ in range(6)]

    async def main() -> None:
        bubble = Bubble("1000-1", "corporate", "alice", 1000, 1, "structural", ())
        nothing: Any = None  # the worker is never started
        post = Post("corporate", "alice", 1000, (), {bubble.id: bubble})
        worker = Worker(post, nothing, nothing, nothing, lambda _: None, structural=True, number="1")
        worker._link = Link[FromWorker](here, FROM_WORKER)
        process = Link[Listen](there, [Listen])
        hearing = asyncio.create_task(worker.hear())
        asking = asyncio.create_task(worker.serve(bubble))
        ipc.close_all((await process.receive())[1])
        process.send(Serving(bubble.id, "it has no room"))
        with pytest.raises(CrewError, match="it has no room"):
            await asking
        process.close()
        await hearing

    here, there = ipc.pair()
    monkeypatch.setattr(crew, "open_ears", door)
    run(main)
