"""Channels to a gateway that are kept ready, so that a flow waits for no handshake.

A few, for a few seconds after the last use, and none while nobody asks. One is given out only if its peer
has been silent since and nothing was dropped meanwhile. Knows neither leases nor what a channel is for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from proxy.channel.tls import TlsChannel

KEPT = 4
KEPT_FOR_S = 4.0  # a gateway ends a client that asks for nothing, usually after 10 s
LOOK_S = 0.5


class KeptChannels:
    """`make` makes a new channel; who finds none here makes one too, and hears why there is none."""

    def __init__(self, make: Callable[[], Awaitable[TlsChannel]]) -> None:
        self._make = make
        self._ready: deque[tuple[float, TlsChannel]] = deque()
        self._drops = 0
        self._used_at = 0.0
        self._used = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    def take(self) -> TlsChannel | None:
        """A channel that nobody has used, if one is ready; there will be more for a while."""
        self._used_at = asyncio.get_running_loop().time()
        self._used.set()
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep())
        while self._ready:
            born, channel = self._ready.popleft()
            if self._used_at - born < KEPT_FOR_S and channel.is_silent():
                return channel
            channel.abort()
        return None

    def drop(self) -> None:
        """Reset those that are ready, and those that are being made: they belong to what was before."""
        self._drops += 1
        while self._ready:
            self._ready.popleft()[1].abort()

    def close(self) -> None:
        """Keep none any more."""
        if self._keeping is not None:
            self._keeping.cancel()
        self.drop()

    async def _keep(self) -> None:
        """Replace what is taken and what grows old, until nothing was taken for a while."""
        loop = asyncio.get_running_loop()
        try:
            while loop.time() - self._used_at < KEPT_FOR_S:
                while self._ready and loop.time() - self._ready[0][0] >= KEPT_FOR_S:
                    self._ready.popleft()[1].abort()
                while len(self._ready) < KEPT:
                    await self._add()
                self._used.clear()
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._used.wait()
                except TimeoutError:
                    continue
        except Exception:
            return  # who takes next makes one, and hears why it cannot be made
        finally:
            self.drop()

    async def _add(self) -> None:
        drops = self._drops
        channel = await self._make()
        if drops == self._drops:
            self._ready.append((asyncio.get_running_loop().time(), channel))
        else:
            channel.abort()
