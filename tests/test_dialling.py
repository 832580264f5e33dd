"""Dialling: many at once, bounded, warm when it can be, and nothing left open."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from descriptors import open_descriptors
from loopback import LOOPS, runner, turns

from proxy import dialling, ipc
from proxy.dialling import PeerBroken, WarmSockets, connect, serve
from proxy.link import Link
from proxy.messages.holding import Dial, Dialled

type Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    run = runner(request.param)
    run(turns())  # a loop's library may keep some descriptors of its own
    before = open_descriptors()
    yield run
    assert open_descriptors() == before


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    ours = Clock()
    monkeypatch.setattr(dialling, "time", ours)
    return ours


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def at(listener: socket.socket) -> tuple[str, int]:
    host, port = listener.getsockname()
    return host, port


# -- connect -----------------------------------------------------------------------------------------


def test_a_connected_socket_waits_for_nothing_and_is_not_inherited(run: Run, listener: socket.socket) -> None:
    async def main() -> None:
        with await connect(*at(listener), 5.0) as sock:
            assert not os.get_blocking(sock.fileno())
            assert not os.get_inheritable(sock.fileno())
            assert sock.getpeername() == listener.getsockname()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(main())


def addresses(*found: tuple[str, int]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def resolve(*_: object) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, address) for address in found]

    return resolve


def test_a_dead_address_does_not_eat_the_time_of_the_next(
    run: Run, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = dialling._connected

    async def unless_dead(to: Any) -> socket.socket:
        if to[3] == ("192.0.2.1", 1):
            await asyncio.Event().wait()
        return await connected(to)

    monkeypatch.setattr(dialling, "_connected", unless_dead)
    monkeypatch.setattr(dialling, "_addresses", addresses(("192.0.2.1", 1), at(listener)))

    async def main() -> None:
        (await connect("gate.example", 1, 2.0)).close()

    run(main())


def test_a_refusing_address_is_followed_by_the_next(
    run: Run, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        dead = at(gone)

    async def main() -> None:
        monkeypatch.setattr(dialling, "_addresses", addresses(dead, at(listener)))
        (await connect("gate.example", 1, 5.0)).close()
        monkeypatch.setattr(dialling, "_addresses", addresses(dead, dead))
        with pytest.raises(PeerBroken, match=r"^gate\.example:1 cannot be reached: Connection refused$"):
            await connect("gate.example", 1, 5.0)
        monkeypatch.setattr(dialling, "_addresses", addresses())
        with pytest.raises(PeerBroken, match=r"^gate\.example:1 cannot be reached: it has no address$"):
            await connect("gate.example", 1, 5.0)

    run(main())


def test_silence_is_said_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(_: object) -> socket.socket:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(dialling, "_connected", silent)

    async def main() -> None:
        with pytest.raises(PeerBroken, match=r"^192\.0\.2\.1:1 did not answer in 0\.01 s$"):
            await connect("192.0.2.1", 1, 0.01)

    run(main())


def test_a_literal_is_not_asked_of_a_resolver(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", None)
        (await connect(*at(listener), 5.0)).close()
        with pytest.raises(TypeError):
            await connect("gate.example", 1, 5.0)

    asyncio.run(main())


def test_a_cancelled_connect_leaves_nothing_open(run: Run, listener: socket.socket) -> None:
    async def main() -> None:
        for rounds in range(6):
            task = asyncio.create_task(connect(*at(listener), 5.0))
            await turns(rounds)
            task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(result, socket.socket):
                result.close()

    run(main())


# -- warm sockets ------------------------------------------------------------------------------------


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def accepted(listener: socket.socket) -> list[socket.socket]:
    found = []
    while True:
        try:
            found.append(listener.accept()[0])
        except BlockingIOError:
            return found


def test_after_the_first_use_sockets_are_kept_warm(run: Run, listener: socket.socket, clock: Clock) -> None:
    async def main() -> None:
        warm = WarmSockets(*at(listener))
        with await warm.take():
            pass
        await until(lambda: len(warm._ready) == dialling.WARM_SOCKETS)
        waiting = [sock.getsockname() for _, sock in warm._ready]
        for _ in range(3):  # and replaced as they are used
            with await warm.take() as sock:
                assert sock.getsockname() == waiting.pop(0)
            await until(lambda: len(warm._ready) == dialling.WARM_SOCKETS)
        warm.close()
        await turns()
        for sock in accepted(listener):
            sock.close()

    run(main())


def test_an_old_or_ended_or_talking_socket_is_not_handed_out(
    run: Run, listener: socket.socket, clock: Clock
) -> None:
    async def main() -> None:
        warm = WarmSockets(*at(listener))
        with await warm.take():
            pass
        await until(lambda: len(warm._ready) == dialling.WARM_SOCKETS)
        ends = {sock.getpeername(): sock for sock in accepted(listener)}
        ended, talking, _, good = (sock.getsockname() for _, sock in warm._ready)
        ends[ended].close()
        ends[talking].send(b"hello")
        for _, sock in list(warm._ready)[:2]:  # the kernel has told of both
            select.select([sock], [], [])
        warm._ready[2] = (clock.now - dialling.WARM_FOR_S, warm._ready[2][1])
        with await warm.take() as sock:
            assert sock.getsockname() == good
        warm.close()
        await turns()
        for end in [*ends.values(), *accepted(listener)]:
            end.close()

    run(main())


def test_without_use_they_are_let_go(
    run: Run, listener: socket.socket, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "WARM_LOOK_S", 0.001)

    async def main() -> None:
        warm = WarmSockets(*at(listener))
        with await warm.take():
            pass
        await until(lambda: len(warm._ready) == dialling.WARM_SOCKETS)
        clock.now += dialling.WARM_FOR_S
        await until(lambda: not warm._ready)
        assert warm._keeping is not None
        await warm._keeping
        for sock in accepted(listener):
            sock.close()

    run(main())


def test_a_gateway_that_is_gone_is_not_dialled_for_nobody(run: Run, listener: socket.socket) -> None:
    async def main() -> None:
        warm = WarmSockets(*at(listener))
        listener.close()
        for _ in range(3):
            with pytest.raises(PeerBroken):
                await warm.take()
        assert warm._keeping is None
        warm.close()

    run(main())


# -- serving a worker --------------------------------------------------------------------------------


class SlowSockets(WarmSockets):
    """Each dial waits for its turn to be allowed."""

    def __init__(self) -> None:
        super().__init__("gate.example", 1)
        self.waiting: list[asyncio.Future[socket.socket]] = []

    async def take(self) -> socket.socket:
        self.waiting.append(asyncio.get_running_loop().create_future())
        return await self.waiting[-1]


async def served(warm: WarmSockets) -> tuple[Link[Dialled], asyncio.Task[None]]:
    ours, theirs = ipc.pair()
    return Link(ours, [Dialled]), asyncio.create_task(serve(Link(theirs, [Dial]), warm))


def test_a_slow_dial_holds_up_no_other(run: Run) -> None:
    async def main() -> None:
        warm = SlowSockets()
        worker, serving = await served(warm)
        worker.send(Dial(1))
        worker.send(Dial(1))
        await until(lambda: len(warm.waiting) == 2)
        one, other = socket.socketpair()
        warm.waiting[1].set_result(one)
        answer, fds = await worker.receive()
        assert (answer, len(fds)) == (Dialled(""), 1)
        ipc.close_all(fds)
        warm.waiting[0].set_exception(PeerBroken("too slow"))
        assert await worker.receive() == (Dialled("too slow"), [])
        worker.close()
        other.close()
        await serving

    run(main())


def test_some_of_many_may_fail(run: Run) -> None:
    async def main() -> None:
        warm = SlowSockets()
        worker, serving = await served(warm)
        worker.send(Dial(3))
        await until(lambda: len(warm.waiting) == 3)
        one, other = socket.socketpair()
        warm.waiting[0].set_exception(PeerBroken("no"))
        warm.waiting[1].set_result(one)
        warm.waiting[2].set_exception(PeerBroken("nor this"))
        answer, fds = await worker.receive()
        assert (answer, len(fds)) == (Dialled("no"), 1)
        ipc.close_all(fds)
        worker.close()
        other.close()
        await serving

    run(main())


def test_beyond_the_bound_a_worker_is_answered_at_once(run: Run) -> None:
    async def main() -> None:
        warm = SlowSockets()
        worker, serving = await served(warm)
        for _ in range(dialling.MAX_DIALLING // ipc.MAX_DESCRIPTORS):
            worker.send(Dial(ipc.MAX_DESCRIPTORS))
        worker.send(Dial(1))
        answer, fds = await worker.receive()
        assert (answer.trouble, fds) == (
            f"{dialling.MAX_DIALLING} connections to the gateway are being made already",
            [],
        )
        await until(lambda: len(warm.waiting) == dialling.MAX_DIALLING)
        for future in warm.waiting:
            future.set_exception(PeerBroken("enough"))
        for _ in range(dialling.MAX_DIALLING // ipc.MAX_DESCRIPTORS):
            assert (await worker.receive())[0] == Dialled("enough")
        worker.send(Dial(1))  # and there is room again
        await until(lambda: len(warm.waiting) == dialling.MAX_DIALLING + 1)
        worker.close()
        await serving

    run(main())


@pytest.mark.parametrize("count", [0, -1, -(1 << 62), 1 << 62])
def test_a_silly_count_is_no_trouble(run: Run, count: int) -> None:
    async def main() -> None:
        warm = SlowSockets()
        worker, serving = await served(warm)
        worker.send(Dial(count))
        if count <= 0:
            assert await worker.receive() == (Dialled(""), [])
        else:
            await until(lambda: len(warm.waiting) == ipc.MAX_DESCRIPTORS)
        worker.close()
        await serving

    run(main())


def test_a_worker_that_goes_away_leaves_nothing_behind(run: Run) -> None:
    async def main() -> None:
        warm = SlowSockets()
        worker, serving = await served(warm)
        worker.send(Dial(2))
        await until(lambda: len(warm.waiting) == 2)
        one, other = socket.socketpair()
        warm.waiting[0].set_result(one)
        worker.close()
        await serving
        assert warm.waiting[1].cancelled()
        other.close()

    run(main())
