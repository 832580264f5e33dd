"""The UDP exchanges of one bubble, or of one client of a listener: begun, found again, bounded, ended.

An exchange is known by its key. How datagrams come and go, and what becomes of an exchange, is for others to
say. Holds no socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable

from proxy.datagrams import REFUSED_S, DatagramTable
from proxy.exchange import Exchange
from proxy.relay import End, Ending

LOOK_S = 5.0


class Exchanges[K: Hashable]:
    """At most `most` exchanges, until `close`. `make` makes one, `serve` takes it to its end with its first
    datagram, `room` says whether there may be one more."""

    def __init__(
        self,
        most: int,
        room: Callable[[], bool],
        make: Callable[[K], Exchange],
        serve: Callable[[K, Exchange, bytes], Coroutine[None, None, None]],
    ) -> None:
        self._room, self._make, self._serve = room, make, serve
        self._loop = asyncio.get_running_loop()
        self._table: DatagramTable[K, Exchange] = DatagramTable(most)
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking = self._loop.call_later(LOOK_S, self._look)

    def __len__(self) -> int:
        return len(self._tasks)

    def take(self, key: K, data: bytes) -> None:
        """The program has sent a datagram."""
        now = self._loop.time()
        exchange = self._table.use(key, now)
        if exchange is None:
            exchange = self._make(key)
            if self._room():
                self._begin(key, exchange, data, now)
            else:
                exchange.refuse()
        exchange.from_client(data)

    def _begin(self, key: K, exchange: Exchange, data: bytes, now: float) -> None:
        exchange.used = lambda: self._table.use(key, self._loop.time())
        gives_way = self._table.add(key, exchange, now)
        if gives_way is not None:
            gives_way.end(Ending(End.FINISHED))
        task = self._loop.create_task(self._to_its_end(key, exchange, data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _to_its_end(self, key: K, exchange: Exchange, data: bytes) -> None:
        try:
            await self._serve(key, exchange, data)
            if exchange.refused:
                await asyncio.sleep(REFUSED_S)
        finally:
            exchange.end(Ending(End.FINISHED))
            self._table.remove(key, exchange)

    def _look(self) -> None:
        """End what was silent too long."""
        for exchange in self._table.silent(self._loop.time()):
            exchange.end(Ending(End.FINISHED))
        self._looking = self._loop.call_later(LOOK_S, self._look)

    def end(self, meant: Callable[[K], bool]) -> None:
        """End those with such keys, whose program has gone."""
        for key, exchange in self._table.all():
            if meant(key):
                exchange.end(Ending(End.FINISHED))

    def close(self) -> None:
        """Cut what is open."""
        self._looking.cancel()
        for task in self._tasks:
            task.cancel()
        for _, exchange in self._table.all():
            exchange.end(Ending(End.CUT))
