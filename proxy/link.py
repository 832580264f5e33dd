"""One end of a link under an event loop: how supervisor and worker speak without ever waiting to send.

A peer that stops reading (stopped, hung, hostile) fills its socket, then a bounded queue, and is then
cut off: it can delay nobody else.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Iterable, Sequence

from proxy import ipc

MAX_QUEUED = 4096


class Link[M]:
    """One end of a link under an event loop. Sending never waits: a peer that stops reading is cut off."""

    def __init__(self, sock: socket.socket, accepted: Sequence[type[M]]) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[object, list[int]]] = deque()
        self._closed = False
        self._waiting: asyncio.Future[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether the link is of no more use."""
        return self._closed

    def send(self, message: object, fds: Iterable[int] = ()) -> None:
        """Queue one message. The descriptors are duplicated if they must wait. Silent when closed."""
        if self._closed:
            return
        if not self._queue:
            try:
                ipc.send(self.sock, message, fds)
                return
            except ipc.LinkBroken:
                self.close()
                return
            except BlockingIOError:
                self._loop.add_writer(self.sock, self._flush)
        if len(self._queue) >= MAX_QUEUED:
            self.close()
            return
        self._queue.append((message, [os.dup(fd) for fd in fds]))

    def _flush(self) -> None:
        while self._queue:
            message, fds = self._queue[0]
            try:
                ipc.send(self.sock, message, fds)
            except BlockingIOError:
                return
            except ipc.LinkBroken:
                self.close()
                return
            self._queue.popleft()
            ipc.close_all(fds)
        self._loop.remove_writer(self.sock)

    async def receive(self) -> tuple[M, list[int]]:
        """The next message and its descriptors; ipc.LinkBroken when there will be none."""
        while not self._closed:
            try:
                return ipc.receive(self.sock, self._accepted)
            except BlockingIOError:
                await self._readable()
            except ipc.LinkBroken:
                self.close()
                raise
        raise ipc.LinkBroken("the link is closed")

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
        while self._queue:
            ipc.close_all(self._queue.popleft()[1])
        if self._waiting is not None:
            _wake(self._waiting)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
