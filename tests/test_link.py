"""Links: nobody waits to send, nobody is starved, and nothing is left open."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from descriptors import none_left, open_descriptors
from loopback import LOOPS, runner

from proxy import ipc, link
from proxy.link import Link
from proxy.messages.holding import Dial, Dialled, Serve

type Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


def ends() -> tuple[Link[Dialled], Link[Dialled]]:
    one, other = ipc.pair()
    return Link(one, [Dialled]), Link(other, [Dialled])


def test_messages_arrive_in_order_whether_or_not_they_must_wait(run: Run) -> None:
    async def main() -> None:
        one, other = ends()
        for number in range(2000):  # more than the kernel keeps
            one.send(Dialled(str(number)))
        for number in range(2000):
            assert await other.receive() == (Dialled(str(number)), [])
        one.close()
        other.close()

    run(main())


def test_waiting_descriptors_outlive_the_senders_own(run: Run) -> None:
    async def main() -> None:
        one, other = ends()
        for number in range(300):
            fd = ipc.memory_file("x", str(number).encode())
            one.send(Dialled("x" * 2000), [fd])
            os.close(fd)
        for number in range(300):
            _, fds = await other.receive()
            assert [ipc.read_file(fd) for fd in fds] == [str(number).encode()]
        one.close()
        other.close()

    before = open_descriptors()
    run(main())
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("size", "descriptors"), [(1, 0), (100_000, 0), (1, 8)], ids=["messages", "bytes", "descriptors"]
)
def test_a_peer_that_stops_reading_is_cut_off(run: Run, size: int, descriptors: int) -> None:
    async def main() -> None:
        one, other = ends()
        null = os.open("/dev/null", os.O_RDONLY)
        count = 0
        while not one.closed:
            one.send(Dialled("x" * size), [null] * descriptors)
            count += 1
            assert count < 20_000
        assert not one._queue
        one.send(Dialled("silent when closed"))
        os.close(null)
        other.close()

    before = open_descriptors()
    run(main())
    assert open_descriptors() == before


def test_no_descriptors_left_cuts_off_the_slow_reader_and_raises_nothing(run: Run) -> None:
    async def main() -> None:
        one, other = ends()
        null = os.open("/dev/null", os.O_RDONLY)
        while not one._queue:
            one.send(Dialled("x" * 1000))
        with none_left():
            one.send(Dialled(""), [null] * 9)
        assert one.closed
        os.close(null)
        other.close()

    before = open_descriptors()
    run(main())
    assert open_descriptors() == before


def test_a_reserve_of_descriptors_is_for_what_comes_when_no_other_is_left(run: Run) -> None:
    """Once: until it could be filled again the link says that it is short."""

    async def main() -> None:
        one, theirs = ipc.pair()
        sender, link = Link(one, [Dialled]), Link(theirs, [Serve], reserve=1)
        null = os.open("/dev/null", os.O_RDONLY)
        sender.send(Serve(), [null])
        with none_left():
            _, fds = await link.receive()
            assert len(fds) == 1 and link.is_short
            sender.send(Serve(), [null])
            with pytest.raises(ipc.LinkBroken, match="no descriptor is left"):
                await link.receive()
        ipc.close_all([*fds, null])
        sender.close()

    before = open_descriptors()
    run(main())
    assert open_descriptors() == before


def test_a_reserve_that_was_given_back_is_there_again(run: Run) -> None:
    async def main() -> None:
        one, theirs = ipc.pair()
        sender, link = Link(one, [Dialled]), Link(theirs, [Serve], reserve=1)
        null = os.open("/dev/null", os.O_RDONLY)
        with none_left():
            for _ in range(5):
                sender.send(Serve(), [null])
                _, fds = await link.receive()
                ipc.close_all(fds)
                assert not link.is_short
        sender.close()
        link.close()
        os.close(null)

    before = open_descriptors()
    run(main())
    assert open_descriptors() == before


def test_what_cannot_be_sent_is_the_senders_error_even_when_it_would_wait(run: Run) -> None:
    async def main() -> None:
        one, other = ends()
        while not one._queue:
            one.send(Dialled("x" * 1000))
        waiting = len(one._queue)
        for bad in (Dialled("x" * ipc.MAX_MESSAGE_BYTES), Dialled("\ud800")):
            with pytest.raises(ValueError, match=r"too long|surrogates"):
                one.send(bad)
        assert len(one._queue) == waiting
        one.close()
        other.close()

    run(main())


def test_a_flood_leaves_room_for_others(run: Run) -> None:
    async def main() -> None:
        one, other = ends()
        heard = turns = 0
        stop = False

        async def count_turns() -> None:
            nonlocal turns
            while not stop:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count_turns())
        for _ in range(200):
            one.send(Dialled(""))
        while heard < 200:
            await other.receive()
            heard += 1
        assert turns >= 200 // link.MESSAGES_PER_TURN - 1
        stop = True
        await counting
        one.close()
        other.close()

    run(main())


def test_close_wakes_who_waits(run: Run) -> None:
    async def main() -> None:
        one, other = ends()
        waiting = asyncio.create_task(other.receive())
        await asyncio.sleep(0)
        other.close()
        other.close()
        with pytest.raises(ipc.LinkBroken):
            await waiting
        with pytest.raises(ipc.LinkBroken):
            await other.receive()
        one.close()

    run(main())


def test_the_end_of_the_peer_ends_the_link(run: Run) -> None:
    async def main() -> None:
        one, other = ends()
        waiting = asyncio.create_task(other.receive())
        await asyncio.sleep(0)
        one.close()
        with pytest.raises(ipc.LinkBroken):
            await waiting
        assert other.closed

    run(main())


def test_a_cancelled_receive_loses_no_message(run: Run) -> None:
    async def main() -> None:
        one, other = ends()
        for number in range(100):
            waiting = asyncio.create_task(other.receive())
            for _ in range(number % 4):
                await asyncio.sleep(0)
            one.send(Dialled(str(number)))
            for _ in range(number % 3):
                await asyncio.sleep(0)
            waiting.cancel()
            try:
                heard = await waiting
            except asyncio.CancelledError:
                heard = await other.receive()
            assert heard == (Dialled(str(number)), [])
        one.close()
        other.close()

    run(main())


def test_nonsense_ends_the_link(run: Run) -> None:
    async def main() -> None:
        raw, theirs = ipc.pair()
        other = Link(theirs, [Dialled])
        socket.send_fds(raw, [ipc.encode(Dial(1))], [raw.fileno()])
        with pytest.raises(ipc.LinkBroken, match="'Dial' is not expected"):
            await other.receive()
        assert other.closed
        raw.close()

    run(main())


def test_who_hears_is_given_each_message_until_the_end(run: Run) -> None:
    async def main() -> None:
        one, other = ends()
        heard: list[str] = []
        for number in range(100):
            one.send(Dialled(str(number)))
        hearing = asyncio.create_task(other.hear(lambda message, _: heard.append(message.trouble)))
        while len(heard) < 100:
            await asyncio.sleep(0)
        one.send(Dialled("last"))
        one.close()
        await hearing
        assert heard == [*map(str, range(100)), "last"]
        assert other.closed
        await other.hear(lambda *_: None)  # it has ended already

    run(main())


def test_who_hears_is_told_of_nonsense(run: Run) -> None:
    async def main() -> None:
        raw, theirs = ipc.pair()
        other = Link(theirs, [Dialled])
        hearing = asyncio.create_task(other.hear(lambda *_: None))
        await asyncio.sleep(0)
        raw.send(ipc.encode(Dial(1)))
        with pytest.raises(ipc.LinkBroken, match="'Dial' is not expected"):
            await hearing
        assert other.closed
        raw.close()

    run(main())


def test_what_is_wrong_with_who_takes_is_raised_where_it_is_heard(run: Run) -> None:
    async def main() -> None:
        one, other = ends()

        def take(message: Dialled, _: list[int]) -> None:
            if message.trouble:
                other.close()  # as a send to a peer that has gone does
            raise OSError(message.trouble or "no descriptors left")

        hearing = asyncio.create_task(other.hear(take))
        await asyncio.sleep(0)
        one.send(Dialled(""))
        with pytest.raises(OSError, match="no descriptors left"):
            await hearing
        assert not other.closed
        hearing = asyncio.create_task(other.hear(take))
        await asyncio.sleep(0)
        one.send(Dialled("closed"))
        await hearing
        one.close()

    run(main())


def test_close_ends_hearing_and_a_cancelled_hearing_loses_no_message(run: Run) -> None:
    async def main() -> None:
        one, other = ends()
        heard: list[Dialled] = []
        hearing = asyncio.create_task(other.hear(lambda message, _: heard.append(message)))
        await asyncio.sleep(0)
        one.send(Dialled("one"))
        hearing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hearing
        if not heard:
            heard.append((await other.receive())[0])
        assert heard == [Dialled("one")]
        hearing = asyncio.create_task(other.hear(lambda message, _: heard.append(message)))
        await asyncio.sleep(0)
        other.close()
        await hearing
        one.close()

    run(main())


def test_a_peer_that_goes_with_words_unread_ends_hearing(run: Run) -> None:
    """The kernel reports that as an error, after which libuv watches the descriptor no more."""

    async def main() -> None:
        one, other = ends()
        heard: list[Dialled] = []
        hearing = asyncio.create_task(other.hear(lambda message, _: heard.append(message)))
        await asyncio.sleep(0)
        other.send(Dialled("never read"))
        for number in range(3):
            one.send(Dialled(str(number)))
        one.close()
        async with asyncio.timeout(60):
            await hearing
        assert other.closed

    run(main())
