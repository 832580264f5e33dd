"""Small processes: what they inherit, and what they do not."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Coroutine
from typing import Any

import pytest
from descriptors import open_descriptors

from proxy import children, ipc, sandbox
from proxy.link import Link
from proxy.messages.worker import FROM_WORKER, FromWorker, Sealed

_TELL = """
import json, os, sys
fd = int(sys.argv[1])
found = []
for name in os.listdir("/proc/self/fd"):
    try:
        found.append([int(name), os.readlink(f"/proc/self/fd/{name}")])
    except OSError:
        pass
os.write(fd, json.dumps([found, dict(os.environ), os.getsid(0) == os.getpid()]).encode())
"""


def test_a_process_inherits_what_it_is_given_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "of the daemon")
    monkeypatch.setenv("LD_PRELOAD", "/nonexistent.so")

    async def main() -> Any:
        read, write = os.pipe()
        leaked = os.open("/dev/null", os.O_RDONLY)
        os.set_inheritable(leaked, True)
        process = await children.start([sys.executable, "-I", "-S", "-c", _TELL, str(write)], [write])
        os.close(write)
        assert await process.wait() == 0
        os.close(leaked)
        told = json.loads(os.read(read, 65536))
        os.close(read)
        return told, write, leaked

    (fds, environment, leads), given, leaked = asyncio.run(main())
    shown = {fd: path for fd, path in fds if not path.startswith("/proc/")}
    assert shown[0] == shown[1] == "/dev/null"
    assert set(shown) == {0, 1, 2, given} and leaked not in shown
    assert environment.items() >= children.ENVIRONMENT.items()
    assert set(environment) - set(children.ENVIRONMENT) <= {"LC_CTYPE"}
    assert leads, "what the terminal sends to the daemon is not sent to it"


@pytest.mark.parametrize("structural", [True, False], ids=["sealed", "as it is"])
def test_a_worker_says_whether_it_is_sealed(structural: bool) -> None:
    async def main() -> None:
        ours, theirs = ipc.pair()
        process = await children.start_sealed("worker", theirs, structural=structural)
        link: Link[FromWorker] = Link(ours, FROM_WORKER)
        assert await link.receive() == (Sealed(structural), [])
        link.close()
        assert await process.wait() == 0, "it ends by itself with its supervisor"

    asyncio.run(main())


@pytest.mark.parametrize("succeeds", [True, False], ids=["when it succeeds", "when it fails"])
def test_starting_leaves_no_descriptor_here(monkeypatch: pytest.MonkeyPatch, succeeds: bool) -> None:
    if not succeeds:
        monkeypatch.setattr(sandbox, "python_command", lambda *_, **__: ["/nonexistent/python"])

    async def one(starting: Coroutine[None, None, Process]) -> None:
        if succeeds:
            await children.end(await starting)
        else:
            with pytest.raises(FileNotFoundError):
                await starting

    async def main() -> None:
        for _ in range(2):
            ours, theirs = ipc.pair()
            await one(children.start_module("door", theirs))
            ours.close()
            assert theirs.fileno() < 0, "only the process has it"
            ours, theirs = ipc.pair()
            await one(children.start_sealed("worker", theirs, structural=False))
            ours.close()
            assert theirs.fileno() < 0

    before = open_descriptors()
    asyncio.run(main())
    assert open_descriptors() <= before


def test_ending_is_for_good_and_may_be_said_twice() -> None:
    async def main() -> None:
        process = await children.start(["/bin/sleep", "1000"], [])
        os.kill(process.pid, signal.SIGSTOP)
        await children.end(process)
        assert process.returncode == -signal.SIGKILL
        await children.end(process)
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)

    asyncio.run(main())


def ended(pipe: int, limit_s: float = 90) -> bool:
    """Whether nobody has the other end of a pipe, or soon will have let go of it."""
    readable = bool(select.select([pipe], [], [], limit_s)[0])
    with os.fdopen(pipe, "rb", buffering=0) as read:
        return readable and read.read(1) == b""


def test_a_process_is_ended_with_what_it_has_started() -> None:
    """bubblewrap's own child waits for ever for a bubblewrap that was killed while it set up."""

    async def main() -> bool:
        read, write = os.pipe()
        process = await children.start(
            ["sh", "-c", f"sleep 1000 & echo begun > /dev/fd/{write}; wait"], [write]
        )
        os.close(write)
        assert await asyncio.to_thread(os.read, read, 100) == b"begun\n"
        await children.end(process)
        return ended(read)

    assert asyncio.run(main()), "somebody has the pipe still"


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_who_is_cancelled_while_it_starts_leaves_no_process(steps: int) -> None:
    async def main() -> bool:
        read, write = os.pipe()
        starting = asyncio.create_task(children.start(["sleep", "1000"], [write]))
        for _ in range(steps):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            await children.end(starting.result())
        os.close(write)
        return ended(read)

    assert asyncio.run(main()), "somebody has the pipe still"
