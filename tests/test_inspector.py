"""An inspector in the test's own event loop: which of its flows end when something is taken away."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loopback import pair, runner

from proxy import inspector, ipc
from proxy.certificates import Issued, make_authority
from proxy.inspector import TO_INSPECTOR, Inspector
from proxy.link import Link
from proxy.messages.inspection import InspectorDoor, Prepare, TakeFrom, TakeOver
from proxy.messages.worker import (
    FROM_WORKER,
    TO_WORKER,
    BubbleGone,
    Configure,
    FromWorker,
    Listen,
    Serving,
)
from proxy.worker import Worker

POLICY = b"""
policy: 1
name: inspector
define: {zones: [corporate]}
rules: [{id: all, match: {method: GET}, verdict: tunnel}]
"""
CONFIGURE = Configure(
    zone="corporate",
    user="ana",
    groups=(),
    policy_name="inspector",
    policy_file="inspector.policy.yaml",
    enforcement="structural",
    tunnels=(),
    counted_only=True,
    max_flows=100,
    segment_bytes=1 << 20,
    inspects=True,
)
NOW = datetime.now(UTC)
CA, ONE, TWO = (make_authority(name, now=NOW) for name in ("inspection", "one", "two"))
run = runner("uvloop")


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process has needed, with the tests before, is not the inspector's."""
    monkeypatch.setattr(inspector, "RESIDENT_BYTES", 1 << 40)


class World:
    """The two that speak to an inspector: its supervisor and its worker."""

    def __init__(self, there: Inspector, supervisor: Link[FromWorker]) -> None:
        self.inspector, self.supervisor = there, supervisor
        ours, theirs = ipc.pair()
        supervisor.send(TakeFrom(), [theirs.fileno()])
        theirs.close()
        self.worker: Link[TakeOver] = Link(ours, [TakeOver])

    def prepare(self, *roots: Issued) -> None:
        trusted = "".join(root.pem for root in roots).encode()
        fds = [ipc.memory_file("t", content) for content in (CA.pem.encode(), CA.key_pem, trusted)]
        self.supervisor.send(Prepare(http2=False), fds)
        ipc.close_all(fds)

    def give(self, bubble: str = "b1", said: int | None = None) -> socket.socket:
        """Hand a flow over; the program's end of it."""
        near, far = pair()
        message = TakeOver("f1", bubble, "ana", (), "structural", "site.example", "", 80, "http")
        first = ipc.memory_file("said", b"") if said is None else said
        self.worker.send(message, [far.fileno(), first])
        ipc.close_all([first])
        far.close()
        near.setblocking(False)
        return near

    async def has(self, flows: int) -> None:
        while len(self.inspector._flows) != flows:
            await asyncio.sleep(0.005)


def given(directory: Path) -> list[int]:
    """The descriptors of a Configure."""
    return [ipc.memory_file("policy", POLICY), os.open(directory / "records", os.O_CREAT | os.O_WRONLY)]


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ours, theirs = ipc.pair()
    heard: Sequence[type[Any]] = TO_INSPECTOR
    there = Inspector(Link(theirs, heard), CONFIGURE, given(tmp_path))
    working = asyncio.create_task(there.work())
    made = World(there, Link(ours, FROM_WORKER))
    made.prepare(ONE, TWO)
    try:
        yield made
    finally:
        made.worker.close()
        made.supervisor.close()
        await working


async def ended(program: socket.socket) -> bool:
    try:
        return not await asyncio.get_running_loop().sock_recv(program, 1)
    except ConnectionError:
        return True


async def served(program: socket.socket) -> bool:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(program, b"DELETE / HTTP/1.1\r\nHost: site.example\r\n\r\n")
    return (await loop.sock_recv(program, 8)).startswith(b"HTTP/1.1")


@pytest.mark.parametrize("roots", [(ONE,), (CA,), (TWO, CA)])
def test_what_was_verified_by_a_root_that_is_gone_is_cut(tmp_path: Path, roots: tuple[Issued, ...]) -> None:
    async def main() -> None:
        async with world(tmp_path) as there:
            with there.give() as program:
                await there.has(1)
                there.prepare(*roots)
                assert await ended(program)
            with there.give() as program:
                assert await served(program)

    run(main())


def test_one_more_root_cuts_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as there:
            with there.give() as program, there.give("b2") as other:
                await there.has(2)
                there.prepare(TWO, ONE, CA)
                there.supervisor.send(BubbleGone("b2"))  # heard behind it
                assert await ended(other)
                assert await served(program)

    run(main())


def test_a_flow_of_a_bubble_that_is_known_to_be_gone_ends(tmp_path: Path) -> None:
    """The supervisor's word may come before the worker's last flows: the worker's own comes behind them."""

    async def main() -> None:
        async with world(tmp_path) as there:
            there.supervisor.send(BubbleGone("b1"))
            await asyncio.sleep(0)
            with there.give() as program, there.give("b2") as other:
                there.worker.send(BubbleGone("b1"))
                assert await ended(program)
                assert await served(other)
            with there.give() as program:  # the same bubble is back
                assert await served(program)

    run(main())


def test_a_flow_that_comes_when_no_descriptor_is_left_ends_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with world(tmp_path) as there:
            with there.give() as program:
                await there.has(1)
                with monkeypatch.context() as shortage, there.give("b2") as other:
                    shortage.setattr(Link, "is_short", True)
                    assert await ended(other)
                with there.give("b2") as other:
                    assert await served(other)
                assert await served(program)

    run(main())


def test_a_bubble_that_comes_when_no_descriptor_is_left_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        ours, theirs = ipc.pair()
        heard: Sequence[type[Any]] = TO_WORKER
        worker = Worker(Link(theirs, heard), CONFIGURE, given(tmp_path))
        working = asyncio.create_task(worker.work())
        supervisor = Link(ours, FROM_WORKER)
        monkeypatch.setattr(Link, "is_short", True)
        supervisor.send(Listen("b1", "structural"), [ours.fileno()] * 6)
        assert await supervisor.receive() == (
            Serving("b1", "its worker has no descriptor left; try again"),
            [],
        )
        assert not worker._bubbles
        supervisor.close()
        await working

    run(main())


def test_a_worker_says_to_its_inspector_that_a_bubble_has_ended(tmp_path: Path) -> None:
    async def main() -> None:
        ours, theirs = ipc.pair()
        heard: Sequence[type[Any]] = TO_WORKER
        worker = Worker(Link(theirs, heard), CONFIGURE, given(tmp_path))
        captured: Any = SimpleNamespace(close=lambda: None)
        worker._bubbles["b1"] = captured
        working = asyncio.create_task(worker.work())
        supervisor = Link(ours, FROM_WORKER)
        near, far = ipc.pair()
        supervisor.send(InspectorDoor(), [far.fileno()])
        far.close()
        while not worker._handing_over._is_there():
            await asyncio.sleep(0.001)
        supervisor.send(BubbleGone("b1"))
        door = Link(near, [BubbleGone])
        assert await door.receive() == (BubbleGone("b1"), [])
        for link in (door, supervisor):
            link.close()
        await working

    run(main())


def test_a_way_from_the_worker_that_breaks_ends_the_process(tmp_path: Path) -> None:
    """It would be of no use, and the worker is given no other one while it lives."""

    async def main() -> None:
        async with world(tmp_path) as there:
            with there.give() as program:
                await there.has(1)
                there.worker.sock.send(b"what no worker says")
                assert await ended(program)
            while True:
                try:
                    await there.supervisor.receive()
                except ipc.LinkBroken:
                    break

    run(main())


def test_a_fault_in_taking_flows_ends_the_process_and_with_it_all_of_them(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as there:
            with there.give() as program, there.give("b2", os.open(tmp_path, os.O_RDONLY)) as other:
                assert await ended(program)
                assert await ended(other)
            while True:
                try:
                    await there.supervisor.receive()
                except ipc.LinkBroken:
                    break

    run(main())
