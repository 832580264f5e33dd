"""One end of a link under an event loop: how supervisor and worker speak without ever waiting to send.

A peer that stops reading (stopped, hung, hostile) fills its socket, then a bounded queue, and is then
cut off: it can delay nobody else. A peer that never stops sending is heard a few messages at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from proxy import ipc

MAX_QUEUED, MAX_QUEUED_BYTES, MAX_QUEUED_DESCRIPTORS = 4096, 4 << 20, 512
MESSAGES_PER_TURN = 16  # then the loop's other sockets have their turn


class Link[M]:
    """One end of a link under an event loop. Sending never waits: a peer that stops reading is cut off.

    One task at a time receives. `reserve` is how many descriptors are kept for what comes when no other is
    left: who finds afterwards that the link `is_short` gives back what came, and says so.
    """

    def __init__(self, sock: socket.socket, accepted: Sequence[type[M]], *, reserve: int = 0) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._reserve = _Reserve(reserve) if reserve else None
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._queued_bytes = self._queued_descriptors = 0
        self._closed = False
        self._heard_in_turn = 0
        self._waiting: asyncio.Future[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether the link is of no more use."""
        return self._closed

    @property
    def is_short(self) -> bool:
        """Whether no descriptor is left but those that came."""
        return self._reserve is not None and not self._reserve.fill()

    def send(self, message: object, fds: Sequence[int] = ()) -> None:
        """Queue one message. The descriptors are duplicated if they must wait. Silent when closed.

        ValueError if it is no message that can be sent.
        """
        data = ipc.packed(message, fds)
        if self._closed:
            return
        if self._queue:
            self._enqueue(data, fds)
            return
        try:
            ipc.transmit(self.sock, data, fds)
        except ipc.LinkBroken:
            self.close()
        except BlockingIOError:
            self._loop.add_writer(self.sock, self._flush)
            self._enqueue(data, fds)

    def _enqueue(self, data: bytes, fds: Sequence[int]) -> None:
        self._queued_bytes += len(data)
        self._queued_descriptors += len(fds)
        kept: list[int] = []
        self._queue.append((data, kept))
        if (
            len(self._queue) > MAX_QUEUED
            or self._queued_bytes > MAX_QUEUED_BYTES
            or self._queued_descriptors > MAX_QUEUED_DESCRIPTORS
        ):
            self.close()
            return
        try:
            for fd in fds:
                kept.append(os.dup(fd))
        except OSError:  # no descriptors are left: who reads slowly is who must go
            self.close()

    def _flush(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                ipc.transmit(self.sock, data, fds)
            except BlockingIOError:
                return
            except ipc.LinkBroken:
                self.close()
                return
            self._queue.popleft()
            self._queued_bytes -= len(data)
            self._queued_descriptors -= len(fds)
            ipc.close_all(fds)
        self._loop.remove_writer(self.sock)

    async def hear(self, take: Callable[[M, list[int]], None]) -> None:
        """Give `take` each message and its descriptors, until the link has ended. LinkBroken for nonsense.

        One message in a turn of the loop, however many there are; what `take` raises is raised here.
        """
        if self._closed:
            return
        self._waiting = ended = self._loop.create_future()
        self._loop.add_reader(self.sock, self._hear_one, take, ended)
        try:
            await ended
        except ipc.PeerGone:
            return
        finally:
            if not self._closed:
                self._loop.remove_reader(self.sock)

    def _hear_one(self, take: Callable[[M, list[int]], None], ended: asyncio.Future[None]) -> None:
        if ended.done():
            return  # nobody hears any more: the message is another's
        try:
            heard = self._next()
        except BlockingIOError:
            return
        except Exception as error:
            ended.set_exception(error)  # before it is closed, which would be a good end
            self.close()
            return
        try:
            take(*heard)
        except Exception as error:
            if not ended.done():
                ended.set_exception(error)

    def _next(self) -> tuple[M, list[int]]:
        if self._reserve is None:
            return ipc.receive(self.sock, self._accepted)
        if ipc.brings_descriptors(self.sock):
            self._reserve.clear()
        try:
            return ipc.receive(self.sock, self._accepted)
        finally:
            self._reserve.fill()

    async def receive(self) -> tuple[M, list[int]]:
        """The next message and its descriptors; ipc.LinkBroken when there will be none."""
        if self._heard_in_turn >= MESSAGES_PER_TURN:
            self._heard_in_turn = 0
            await asyncio.sleep(0)
        while not self._closed:
            try:
                heard = self._next()
            except BlockingIOError:
                self._heard_in_turn = 0
                await self._readable()
            except BaseException:
                self.close()
                raise
            else:
                self._heard_in_turn += 1
                return heard
        raise ipc.PeerGone("the link is closed")

    async def _readable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._waiting = ready
        self._loop.add_reader(self.sock, _wake, ready)
        try:
            await ready
        finally:
            if not self._closed:
                self._loop.remove_reader(self.sock)

    def close(self) -> None:
        """End the link; a pending receive raises. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self.sock)
        self._loop.remove_writer(self.sock)
        self.sock.close()
        if self._reserve is not None:
            self._reserve.clear()
            self._reserve = None
        while self._queue:
            ipc.close_all(self._queue.popleft()[1])
        if self._waiting is not None:
            _wake(self._waiting)


class _Reserve:
    """Descriptors of nothing, which are let go of where others are needed."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._fds: list[int] = []
        self.fill()

    def fill(self) -> bool:
        """Have all of them, if they can be had; whether they could."""
        with contextlib.suppress(OSError):
            while len(self._fds) < self._count:
                self._fds.append(os.memfd_create("reserve"))
        return len(self._fds) >= self._count

    def clear(self) -> None:
        """Let go of them."""
        ipc.close_all(self._fds)
        self._fds.clear()


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
