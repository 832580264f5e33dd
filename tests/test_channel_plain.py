"""The plain channel: each direction by itself, back-pressure, resets, and what it may never do."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import select
import subprocess
import sys

import pytest
from loopback import LOOPS, Run, pair, read_all, runner, turns

from proxy.channel import Aborted, Backlog, NotAdmitted, PlainChannel, Reset, plain
from proxy.channel.plain import CHUNK_BYTES

BLOCK = b"x" * CHUNK_BYTES


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


async def fill(channel: PlainChannel) -> asyncio.Task[None]:
    """A task that writes more than the kernel takes, until it waits."""
    task = asyncio.create_task(channel.write(BLOCK * 64))
    await turns()
    assert not task.done()
    return task


def test_each_direction_ends_by_itself(run: Run) -> None:
    async def main() -> None:
        client, server = map(PlainChannel, pair())
        await client.write(b"b\na\n")
        await client.write_eof()
        assert await read_all(server) == b"b\na\n"
        assert await server.read() == b""
        await server.write(b"a\nb\n")
        await server.write_eof()
        assert await read_all(client) == b"a\nb\n"
        await client.close()
        await server.close()
        with pytest.raises(Aborted):
            await client.read()

    run(main())


def test_abort_resets_the_peer_and_wakes_who_waits(run: Run) -> None:
    async def main() -> None:
        ours, theirs = pair()
        channel = PlainChannel(ours)
        reading = asyncio.create_task(channel.read())
        writing = await fill(channel)
        channel.abort()
        for task in (reading, writing):
            with pytest.raises(Aborted):
                await task
        with theirs, pytest.raises(ConnectionResetError):
            while theirs.recv(65536):
                pass
        channel.abort()
        with pytest.raises(Aborted):
            await channel.write(b"x")
        with pytest.raises(Aborted):
            await channel.write_eof()

    run(main())


def test_a_reset_by_the_peer_reaches_reader_and_writer(run: Run) -> None:
    async def main() -> None:
        ours, theirs = pair()
        channel, peer = PlainChannel(ours), PlainChannel(theirs)
        reading = asyncio.create_task(channel.read())
        await turns()
        peer.abort()
        with pytest.raises(Reset):
            await reading
        with pytest.raises(Reset):
            await channel.write(b"x")

    run(main())


def test_bytes_in_front_of_a_reset_do_not_hide_it(run: Run) -> None:
    """libuv drops its registration with the first of them."""

    async def main() -> None:
        ours, theirs = pair()
        channel, peer = PlainChannel(ours), PlainChannel(theirs)
        await peer.write(b"first")
        assert await channel.read() == b"first"
        reading = asyncio.create_task(channel.read())
        await turns()
        await peer.write(b"last words")
        peer.abort()
        assert await reading == b"last words"
        with pytest.raises(Reset):
            await channel.read()

    run(main())


def test_nothing_is_read_while_nobody_waits(run: Run) -> None:
    async def main() -> None:
        ours, theirs = pair()
        channel, peer = PlainChannel(ours), PlainChannel(theirs)
        await peer.write(b"first")
        assert await channel.read() == b"first"
        writing = await fill(peer)
        await turns(500)
        assert not writing.done()
        channel.abort()
        with pytest.raises(Reset):
            await writing

    run(main())


def test_what_streams_is_taken_a_moment_later_and_nothing_else_is(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        ours, theirs = pair()
        channel, peer = PlainChannel(ours), PlainChannel(theirs)
        monkeypatch.setattr(plain, "_REST_S", 0.5)
        monkeypatch.setattr(plain, "_WINDOW_S", 1000.0)
        sending, came = asyncio.create_task(peer.write(BLOCK * 4)), 0
        while came < len(BLOCK * 4):
            came += len(await channel.read())
        await sending
        reading = asyncio.create_task(channel.read())
        await turns()
        await peer.write(b"one, ")
        await turns()
        assert not reading.done()
        await peer.write(b"two")
        assert await reading == b"one, two"

        monkeypatch.setattr(plain, "_WINDOW_S", 0.0)
        reading = asyncio.create_task(channel.read())
        await turns()
        await peer.write(b"three")
        await turns()
        assert reading.done() and await reading == b"three"

        monkeypatch.setattr(plain, "_WINDOW_S", 1000.0)
        reading = asyncio.create_task(channel.read())
        await turns()
        channel.abort()
        with pytest.raises(Aborted):
            await reading
        peer.abort()

    run(main())


def test_a_cancelled_read_loses_nothing(run: Run) -> None:
    async def main() -> None:
        ours, theirs = pair()
        channel = PlainChannel(ours)
        reading = asyncio.create_task(channel.read())
        await turns()
        theirs.sendall(b"precious")
        select.select([ours], [], [])
        channel._on_readable()  # the kernel's bytes are taken, the task has not run yet
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await channel.read() == b"precious"
        channel.abort()
        theirs.close()

    run(main())


def test_what_was_given_back_is_read_first(run: Run) -> None:
    async def main() -> None:
        client, server = map(PlainChannel, pair())
        await client.write(b"c")
        server.unread(b"b")
        server.unread(b"a")
        assert await server.read() == b"ab"
        assert await server.read() == b"c"
        client.abort()
        server.abort()

    run(main())


def test_the_guard_is_asked_before_every_send_and_no_byte_passes_it(run: Run) -> None:
    async def main() -> None:
        ours, theirs = pair()
        channel = PlainChannel(ours)
        channel.guard(lambda: False)
        with pytest.raises(NotAdmitted):
            await channel.write(b"secret")
        with theirs, pytest.raises(ConnectionResetError):
            theirs.recv(1)

    run(main())


def test_bytes_that_waited_are_not_sent_once_the_guard_says_no(run: Run) -> None:
    async def main() -> None:
        admitted = True
        ours, theirs = pair()
        channel, peer = PlainChannel(ours), PlainChannel(theirs)
        channel.guard(lambda: admitted)
        writing = await fill(channel)
        admitted = False
        got = 0
        with pytest.raises(Reset):
            while data := await peer.read():
                got += len(data)
        assert got < len(BLOCK) * 64
        with pytest.raises(NotAdmitted):
            await writing

    run(main())


def test_an_end_of_file_is_guarded_too(run: Run) -> None:
    async def main() -> None:
        ours, theirs = pair()
        channel = PlainChannel(ours)
        channel.guard(lambda: False)
        with pytest.raises(NotAdmitted):
            await channel.write_eof()
        with theirs, pytest.raises(ConnectionResetError):
            theirs.recv(1)

    run(main())


def test_a_giver_that_makes_the_socket_blocking_hangs_nobody(run: Run) -> None:
    async def main() -> None:
        ours, theirs = pair()
        shared = ours.dup()
        channel = PlainChannel(ours)
        flags = fcntl.fcntl(shared, fcntl.F_GETFL)
        fcntl.fcntl(shared, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
        reading = asyncio.create_task(channel.read())
        writing = await fill(channel)
        channel.abort()
        await asyncio.gather(reading, writing, return_exceptions=True)
        shared.close()
        theirs.close()

    run(main())


def test_what_waits_in_slow_connections_is_bounded_for_all_of_them(run: Run) -> None:
    async def main() -> None:
        backlog = Backlog(limit_bytes=96 * CHUNK_BYTES)
        ours, theirs = pair()
        channel = PlainChannel(ours, backlog)
        assert backlog.chunk_bytes() == CHUNK_BYTES
        writing = await fill(channel)
        assert 0 < backlog.held_bytes <= 64 * CHUNK_BYTES
        assert 4096 < backlog.chunk_bytes() < CHUNK_BYTES
        backlog.held_bytes += 1 << 40
        assert backlog.chunk_bytes() == 4096
        backlog.held_bytes -= 1 << 40
        channel.abort()
        with pytest.raises(Aborted):
            await writing
        assert backlog.held_bytes == 0
        theirs.close()

    run(main())


def test_two_readers_or_two_writers_are_a_mistake(run: Run) -> None:
    async def main() -> None:
        ours, theirs = pair()
        channel = PlainChannel(ours)
        reading = asyncio.create_task(channel.read())
        writing = await fill(channel)
        with pytest.raises(RuntimeError):
            await channel.read()
        with pytest.raises(RuntimeError):
            await channel.write(BLOCK)
        channel.abort()
        await asyncio.gather(reading, writing, return_exceptions=True)
        theirs.close()

    run(main())


def test_a_cancelled_write_keeps_nothing_registered(run: Run) -> None:
    async def main() -> None:
        ours, theirs = pair()
        backlog = Backlog()
        channel = PlainChannel(ours, backlog)
        writing = await fill(channel)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert backlog.held_bytes == 0
        channel.abort()
        theirs.close()

    run(main())


SEALED = """
import asyncio, errno, socket, sys
import pyseccomp, uvloop
from proxy.channel import PlainChannel

async def main():
    client, server = (PlainChannel(socket.socket(fileno=int(n))) for n in sys.argv[2:])
    await client.write(b"ping")
    await client.write_eof()
    assert await server.read() == b"ping"
    assert await server.read() == b""
    await server.write(b"pong")
    assert await client.read() == b"pong"
    client.abort()
    await server.close()

rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
for name in ("socket", "connect", "bind", "listen"):
    rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
rules.load()
try:
    socket.socket()
except PermissionError:
    (uvloop.run if sys.argv[1] == "uvloop" else asyncio.run)(main())
    print("carried")
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_works_where_seccomp_forbids_sockets(loop: str) -> None:
    one, other = pair()
    with one, other:
        numbers = (one.fileno(), other.fileno())
        sealed = subprocess.run(
            [sys.executable, "-c", SEALED, loop, *map(str, numbers)],
            pass_fds=numbers,
            capture_output=True,
            text=True,
            check=False,
        )
    assert sealed.stdout == "carried\n", sealed.stderr


IDLE = """
import asyncio, gc, os, socket, sys
import uvloop
from proxy.channel import Backlog, PlainChannel

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

async def main(count):
    pairs = [socket.socketpair() for _ in range(count)]
    backlog = Backlog()
    warm = asyncio.create_task(PlainChannel(pairs[0][0], backlog).read())
    await asyncio.sleep(0)
    gc.collect()
    before = resident()
    waiting = [asyncio.create_task(PlainChannel(ours, backlog).read()) for ours, _ in pairs[1:]]
    for _ in range(10):
        await asyncio.sleep(0)
    print((resident() - before) // count, flush=True)
    os._exit(0)

(uvloop.run if sys.argv[1] == "uvloop" else asyncio.run)(main(2000))
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_idle_connection_costs_little(loop: str) -> None:
    """Two thousand that wait for bytes; ten thousand must fit into 150 MiB with all else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4200), hard))
    done = subprocess.run([sys.executable, "-c", IDLE, loop], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) <= 6 * 1024
