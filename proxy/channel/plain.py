"""One connected socket as an asyncio thing, each direction ended on its own.

It reads only while somebody waits for bytes, so that a slow writer elsewhere holds the sender back
through TCP, and it keeps no buffer. It may touch its own socket and nothing else of the network, and
never learns whose bytes they are.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

CHUNK_BYTES = 256 * 1024
_SMALL_CHUNK_BYTES = 4096
_DRAIN_LOOK_S = 0.01
# A fast stream comes in packets, and to wake for each costs more than to carry it: while so much comes in so
# short a time (100 Mbit/s), the next look is a moment later. What is slower, or asks and is answered, never
# waits.
_WINDOW_BYTES, _WINDOW_S = 256 * 1024, 0.02
_REST_S = 0.002
# Whoever shares the open file description can clear O_NONBLOCK behind our back.
_RECEIVING, _SENDING = int(socket.MSG_DONTWAIT), int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER: on, 0 s
_FINISH_ON_CLOSE = struct.pack("ii", 0, 0)


class Reset(ConnectionResetError):
    """The peer, or the network, ended the connection without finishing it."""


class Truncated(Reset):
    """TCP ended where TLS had not: an attacker can do that, so it is no end of file (RFC 8446, 6.1)."""


class Aborted(ConnectionAbortedError):
    """This side ended the connection."""


class NotAdmitted(Aborted):
    """The guard said no when bytes were about to be sent; the connection was reset."""


class Backlog:
    """Bytes that the channels of one process hold because peers read slowly; it keeps them few.

    One program that opens thousands of downloads and reads none would otherwise make a chunk wait in
    each. As more waits, less is read at once: with the default at most about 64 MiB wait in 8,000
    connections.
    """

    __slots__ = ("_limit_bytes", "held_bytes")

    def __init__(self, limit_bytes: int = 32 * 1024 * 1024) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    @contextmanager
    def holding(self, held_bytes: int) -> Iterator[None]:
        """Count bytes that wait."""
        self.held_bytes += held_bytes
        try:
            yield
        finally:
            self.held_bytes -= held_bytes

    def chunk_bytes(self) -> int:
        """How much may be read at once now."""
        share = (self._limit_bytes - self.held_bytes) // 64
        return min(CHUNK_BYTES, max(_SMALL_CHUNK_BYTES, share))


class Channel(Protocol):
    """Bytes both ways. At most one task reads and one writes at a time.

    Every method raises ConnectionError once the channel is over: `Reset`, `Truncated`, `Aborted` or
    `NotAdmitted`. A channel that raised has no open socket any more.
    """

    async def read(self) -> bytes:
        """The next bytes, never more than CHUNK_BYTES at once; b"" at the peer's end of file."""

    def unread(self, data: bytes) -> None:
        """Give `data` back, to be read first."""

    async def write(self, data: bytes) -> None:
        """Return when the kernel has taken all of `data`."""

    async def write_eof(self) -> None:
        """End this direction; reading goes on."""

    def guard(self, admitted: Callable[[], bool]) -> None:
        """Ask `admitted` before each send from now on, also of bytes that waited; False resets."""

    async def drain(self, time_limit_s: float) -> None:
        """Wait until the peer has taken what was written, it is over, or time is. Never raises."""

    def abort(self) -> None:
        """Reset the connection at once. Tasks that wait on it get `Aborted`. Never raises."""

    async def close(self) -> None:
        """Let go of a connection whose bytes are all sent. Never raises."""


class PlainChannel:
    """A channel over a connected stream socket, which it owns from now on.

    Give the channels of one process one `backlog`; without it each holds up to CHUNK_BYTES.
    `read_bytes` bounds a single read further.
    """

    __slots__ = (
        "_admitted",
        "_armed",
        "_eof",
        "_looked",
        "_loop",
        "_over",
        "_read_bytes",
        "_reader",
        "_sock",
        "_streams",
        "_unread",
        "_window_began_s",
        "_window_bytes",
        "_writer",
        "backlog",
    )

    def __init__(
        self, sock: socket.socket, backlog: Backlog | None = None, read_bytes: int = CHUNK_BYTES
    ) -> None:
        sock.setblocking(False)
        # Unless it ends well it ends by a reset, also where this process is killed: without one, half a
        # download would look like a whole one.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        with suppress(OSError):  # not TCP. Waiting for company (RFC 896) costs 40 ms where answers are small
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self.backlog = backlog or Backlog()
        self._read_bytes = read_bytes
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._armed = False
        self._looked = False
        self._streams = False
        self._window_bytes, self._window_began_s = 0, 0.0
        self._eof = False
        self._unread = b""
        self._over: ConnectionError | None = None
        self._admitted: Callable[[], bool] | None = None

    async def read(self) -> bytes:
        """See Channel."""
        self.raise_if_over()
        if not self._unread and not self._eof:
            # libuv forgets a descriptor once it has reported an error on it, and under a reset there may
            # still be bytes: where an earlier wait has registered, look before waiting again.
            if self._looked and self._take():
                await asyncio.sleep(0)  # a fast sender must not keep the loop to itself
            else:
                await self._until_there_is_more()
            self.raise_if_over()
        data, self._unread = self._unread, b""
        return data

    def poll(self) -> bytes | None:
        """What is there without waiting; None for nothing yet. Else as `read`."""
        self.raise_if_over()
        if not self._unread and not self._eof and not self._take():
            return None
        self.raise_if_over()
        data, self._unread = self._unread, b""
        return data

    def unread(self, data: bytes) -> None:
        """See Channel."""
        self._unread = data + self._unread

    async def write(self, data: bytes) -> None:
        """See Channel."""
        view = memoryview(data)
        while True:
            view = view[self.send(view) :]
            if not view:
                return
            with self.backlog.holding(len(view)):
                await self._until_writable()

    def send(self, data: bytes | memoryview) -> int:
        """Give the kernel what it takes now of `data`; how many bytes that was. Raises ConnectionError."""
        self.raise_if_over()
        self._ask_guard()
        try:
            return self._sock.send(data, _SENDING)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise self.end(Reset(*error.args)) from None

    async def write_eof(self) -> None:
        """See Channel."""
        self.raise_if_over()
        self._ask_guard()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self.end(Reset(*error.args)) from None

    def guard(self, admitted: Callable[[], bool]) -> None:
        """See Channel."""
        self._admitted = admitted

    async def drain(self, time_limit_s: float) -> None:
        """See Channel."""
        deadline = self._loop.time() + time_limit_s
        while self._over is None and self.unsent() and self._loop.time() < deadline:
            await asyncio.sleep(_DRAIN_LOOK_S)  # the kernel gives no sign of it

    def unsent(self) -> int:
        """Bytes that the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)))[0])
        except OSError:
            return 0

    def abort(self) -> None:
        """See Channel."""
        if self._over is None:
            self._let_go(Aborted("the connection was cut on this side"))

    def fileno(self) -> int:
        """The descriptor of its socket, to be shown and not to be used; -1 when it is over."""
        return self._sock.fileno()

    def detach(self) -> tuple[socket.socket, bytes]:
        """Give the socket itself away, as it is, with what was given back unread, and be over.

        Raises ConnectionError.
        """
        self.raise_if_over()
        given = self._sock.dup(), self._unread
        self._let_go(Aborted("the connection was given away"))
        return given

    async def close(self) -> None:
        """See Channel."""
        if self._over is None:
            with suppress(OSError):  # the peer may have reset it
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FINISH_ON_CLOSE)
            self._let_go(Aborted("the connection is closed"))

    def end(self, why: ConnectionError) -> ConnectionError:
        """Reset the connection unless it is over, because of `why`; give back why it is over."""
        if self._over is None:
            self._let_go(why)
        return self._over_again()

    def raise_if_over(self) -> None:
        """Raise what ended the channel, if it has ended."""
        if self._over is not None:
            raise self._over_again()

    def _let_go(self, why: ConnectionError) -> None:
        self._over = why
        self._unread = b""
        self._disarm()
        if self._writer is not None:
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._admitted = None
        _wake(self._reader)
        _wake(self._writer)

    def _take(self) -> bool:
        """Take what the kernel has; whether there is something to say: bytes, an end, an error."""
        try:
            wanted = min(self._read_bytes, self.backlog.chunk_bytes())
            self._unread = self._sock.recv(wanted, _RECEIVING)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.end(Reset(*error.args))
            return True
        self._measure(len(self._unread))
        if not self._unread:
            self._eof = True
            self._disarm()
        return True

    def _on_readable(self) -> None:
        if self._reader is None or self._reader.done():
            self._disarm()  # nobody waits: the kernel's buffer fills and holds the sender back
        elif self._take():
            _wake(self._reader)

    async def _until_there_is_more(self) -> None:
        if self._streams and self._loop.time() - self._window_began_s < _WINDOW_S:
            self._disarm()
            await asyncio.sleep(_REST_S)
            if self._over is not None or self._take():
                return
        await self._until_readable()

    def _measure(self, came_bytes: int) -> None:
        self._window_bytes += came_bytes
        if self._window_bytes >= _WINDOW_BYTES:
            now_s = self._loop.time()
            self._streams = now_s - self._window_began_s < _WINDOW_S
            self._window_bytes, self._window_began_s = 0, now_s

    async def _until_readable(self) -> None:
        if self._reader is not None:
            raise RuntimeError("two tasks read one channel")
        self._reader = self._loop.create_future()
        if not self._armed:
            self._armed = self._looked = True
            self._loop.add_reader(self._sock.fileno(), self._on_readable)
        try:
            await self._reader
        finally:
            self._reader = None

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._loop.remove_reader(self._sock.fileno())

    async def _until_writable(self) -> None:
        if self._writer is not None:
            raise RuntimeError("two tasks write one channel")
        self._writer = self._loop.create_future()
        descriptor = self._sock.fileno()
        self._loop.add_writer(descriptor, self._on_writable)
        try:
            await self._writer
        finally:
            self._writer = None
            if self._over is None:
                self._loop.remove_writer(descriptor)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        _wake(self._writer)

    def _ask_guard(self) -> None:
        if self._admitted is not None and not self._admitted():
            raise self.end(NotAdmitted("not admitted any more"))

    def _over_again(self) -> ConnectionError:
        """Why it is over, as an exception of its own: one object raised twice would pile up tracebacks."""
        if self._over is None:
            raise RuntimeError("the channel is not over")
        return type(self._over)(*self._over.args)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
