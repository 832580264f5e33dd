"""A channel around another, which does everything as that one does; who needs something else says it anew."""

from __future__ import annotations

from collections.abc import Callable

from proxy.channel.plain import Channel


class Around:
    """`channel`, as it is. A Channel."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def read(self) -> bytes:
        """See Channel."""
        return await self._channel.read()

    def unread(self, data: bytes) -> None:
        """See Channel."""
        self._channel.unread(data)

    async def write(self, data: bytes) -> None:
        """See Channel."""
        await self._channel.write(data)

    async def write_eof(self) -> None:
        """See Channel."""
        await self._channel.write_eof()

    def guard(self, admitted: Callable[[], bool]) -> None:
        """See Channel."""
        self._channel.guard(admitted)

    async def drain(self, time_limit_s: float) -> None:
        """See Channel."""
        await self._channel.drain(time_limit_s)

    def abort(self) -> None:
        """See Channel."""
        self._channel.abort()

    async def close(self) -> None:
        """See Channel."""
        await self._channel.close()
