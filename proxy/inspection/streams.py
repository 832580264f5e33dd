"""A channel with the two faces that mitmproxy wants: a reader, and a writer that takes bytes at once.

What was taken and cannot be sent yet is bounded by `drain`, which mitmproxy awaits before it reads on. It
knows no HTTP; it never waits for a peer longer than a moment when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

from proxy.channel.plain import Channel

HIGH_WATER_BYTES = 256 * 1024
LINGER_S, LINGER_BYTES = 2.0, 1 << 20


class Stream:
    """Reader and writer of one connection. `may_read` is awaited before each read: it holds the peer back."""

    def __init__(self, channel: Channel, may_read: Callable[[], Awaitable[None]]) -> None:
        self._channel, self._may_read = channel, may_read
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._eof = self._closing = self._over = False
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._sender = asyncio.create_task(self._send())

    # -- what mitmproxy calls ----------------------------------------------------------------------

    async def read(self, limit: int) -> bytes:
        """The next bytes, b"" at the end of file. Raises ConnectionError."""
        await self._may_read()
        return await self._channel.read()

    def write(self, data: bytes) -> None:
        """Take bytes to be sent."""
        if not self._over and not self._closing:
            self._queue.append(data)
            self._queued_bytes += len(data)
            if self._queued_bytes > HIGH_WATER_BYTES:
                self._room.clear()
            self._work.set()

    async def drain(self) -> None:
        """Return when there is room for more."""
        await self._room.wait()

    def write_eof(self) -> None:
        """End this direction once everything is sent."""
        self._eof = True
        self._work.set()

    def is_closing(self) -> bool:
        """Whether nothing more is taken."""
        return self._closing or self._over

    def close(self) -> None:
        """Send what was taken, then end the connection."""
        self._closing = True
        self._work.set()

    def get_extra_info(self, name: str, default: object = None) -> object:
        """asyncio's question for addresses; nothing here depends on them."""
        return ("0.0.0.0", 0) if name in ("peername", "sockname") else default

    # -- what the gate calls -----------------------------------------------------------------------

    def abort(self) -> None:
        """Reset the connection at once; what waits to be sent is dropped."""
        self._over = True
        self._queue.clear()
        self._channel.abort()
        self._room.set()
        self._work.set()

    async def ended(self) -> None:
        """Return when the connection has ended; it is over a moment after `close`."""
        self.close()
        try:
            async with asyncio.timeout(LINGER_S):
                await asyncio.shield(self._sender)
        except TimeoutError:
            pass  # it does not take what it is sent
        finally:
            self._sender.cancel()
            self.abort()

    # -- sending -----------------------------------------------------------------------------------

    async def _send(self) -> None:
        try:
            while not self._over:
                if self._queue:
                    data = self._queue.popleft()
                    await self._channel.write(data)
                    self._queued_bytes -= len(data)
                    if self._queued_bytes <= HIGH_WATER_BYTES:
                        self._room.set()
                elif self._closing:
                    await self._finish()
                    return
                elif self._eof:
                    self._eof = False
                    await self._channel.write_eof()
                else:
                    self._work.clear()
                    await self._work.wait()
        except ConnectionError:
            pass  # the reader hears of it as well
        finally:
            self._over = True
            self._queue.clear()
            self._room.set()

    async def _finish(self) -> None:
        """End a connection so that what was sent last is read (RFC 9112, section 9.6)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._channel.write_eof()
                left = LINGER_BYTES
                while left > 0 and (data := await self._channel.read()):
                    left -= len(data)
                await self._channel.close()
