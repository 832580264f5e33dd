"""The carrier of datagrams: one exchange between a program's end and a destination, through a tunnel.

Datagrams pass whole or not at all, each only while the flow is admitted, and none beyond a budget. It is
given a connected socket and the two ways to the program, makes none, and never waits in a send: a datagram
that does not fit, or that `vet` does not want, is dropped, as a network would.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Sequence

from proxy.flow import Budget, Transfer
from proxy.ip_packets import MAX_PAYLOAD
from proxy.relay import Counts, End, Ending

MAX_WAITING, MAX_WAITING_BYTES = 16, 64 * 1024  # while it is judged and its socket is made
PER_TURN = 32  # then the loop's other sockets have their turn


class Exchange:
    """One exchange. `to_client` sends the program a datagram, `refuse` an error about one of its own."""

    def __init__(self, to_client: Callable[[bytes], None], refuse: Callable[[bytes], None]) -> None:
        self._to_client, self._refuse = to_client, refuse
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Ending] = self._loop.create_future()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._upstream: socket.socket | None = None
        self._admitted: Callable[[], bool] = lambda: False
        self._budgets: Sequence[Budget] = ()
        self._counts = Counts()
        self.refused = False
        self.vet: Callable[[bytes], bool] = lambda data: True
        self._news = asyncio.Event()
        self.used: Callable[[], object] = lambda: None

    def begin(
        self, upstream: socket.socket, admitted: Callable[[], bool], budgets: Sequence[Budget], counts: Counts
    ) -> None:
        """Carry from now on, first what the program has sent meanwhile; `upstream` is closed at the end."""
        if self.ended.done():
            upstream.close()
            return
        upstream.setblocking(False)
        self._upstream, self._admitted, self._budgets, self._counts = upstream, admitted, budgets, counts
        self._loop.add_reader(upstream, self._from_upstream)
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            self.from_client(data)

    def from_client(self, data: bytes) -> None:
        """The program has sent a datagram."""
        if self.refused or self.ended.done():
            self._refuse(data)
        elif self._upstream is not None:
            if self.vet(data) and self._may_pass(Transfer.UPLOAD, len(data)):
                self._send(self._upstream, data)
        elif len(self._waiting) < MAX_WAITING and self._waiting_bytes + len(data) <= MAX_WAITING_BYTES:
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            self._news.set()

    async def first(self) -> AsyncGenerator[bytes]:
        """What the program sends before `begin`, each datagram as it comes; they are carried later."""
        seen = 0
        while True:
            while seen < len(self._waiting):
                yield self._waiting[seen]
                seen += 1
            self._news.clear()
            await self._news.wait()

    def _send(self, upstream: socket.socket, data: bytes) -> None:
        try:
            upstream.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except ConnectionRefusedError:  # the error of an earlier one
            self._refuse(data)
        except OSError:  # too long for the tunnel, no way there now: as a network would drop it
            pass

    def _from_upstream(self) -> None:
        for _ in range(PER_TURN):
            if self._upstream is None:
                return
            try:
                data = self._upstream.recv(MAX_PAYLOAD, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self._refuse(b"")
                continue
            except OSError:
                self.end(Ending(End.UPSTREAM_RESET))
                return
            self.used()
            if self._may_pass(Transfer.DOWNLOAD, len(data)):
                self._to_client(data)

    def _may_pass(self, transfer: Transfer, size: int) -> bool:
        """Ask before each datagram whether the flow is admitted and its budgets have room for it."""
        if not self._admitted():
            self.end(Ending(End.NOT_ADMITTED))
            return False
        so_far = self._counts.uploaded if transfer is Transfer.UPLOAD else self._counts.downloaded
        for budget in self._budgets:
            if budget.transfer is transfer and so_far + size > budget.limit_bytes:
                self.end(Ending(End.BUDGET, budget.because))
                return False
        self._counts.add(transfer, size)
        return True

    def refuse(self) -> None:
        """It may not be: what the program has sent, and what it sends yet, is refused at once."""
        self.refused = True
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            self._refuse(data)

    def end(self, ending: Ending) -> None:
        """End it; unless it was just silent, the program is told. Safe to call twice."""
        if self._upstream is not None:
            self._loop.remove_reader(self._upstream)
            self._upstream.close()
            self._upstream = None
        if not self.ended.done():
            self.ended.set_result(ending)
            if ending.end is not End.FINISHED:
                self.refused = True
                self._refuse(b"")
