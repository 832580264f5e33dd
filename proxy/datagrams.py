"""The table of a bubble's UDP exchanges: which are there, which were silent too long, which must give way.

Pure: it knows no socket and no clock. An exchange is known by its two ends; one that is used is young again.
When there are too many, the one that was silent longest goes: a program starves itself and nobody else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from proxy.ip_packets import End

IDLE_S = 120.0  # RFC 4787, REQ-5: no less
REFUSED_S = 3.0  # a refusal stands so long without being judged and recorded again

type Ends = tuple[End, End]


class DatagramTable[E]:
    """Exchanges by the program's end and the one that it sends to, oldest use first."""

    def __init__(self, most: int, idle_s: float = IDLE_S) -> None:
        self._most, self._idle_s = most, idle_s
        self._rows: OrderedDict[Ends, tuple[float, E]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def use(self, ends: Ends, now: float) -> E | None:
        """The exchange between two ends, which has just been used; None if there is none."""
        row = self._rows.get(ends)
        if row is None:
            return None
        self._rows[ends] = (now, row[1])
        self._rows.move_to_end(ends)
        return row[1]

    def add(self, ends: Ends, exchange: E, now: float) -> E | None:
        """Take a new exchange in; the one that had to give way for it, if any."""
        self._rows[ends] = (now, exchange)
        self._rows.move_to_end(ends)
        if len(self._rows) <= self._most:
            return None
        return self._rows.popitem(last=False)[1][1]

    def remove(self, ends: Ends, exchange: E) -> None:
        """Forget an exchange, unless another has its place."""
        row = self._rows.get(ends)
        if row is not None and row[1] is exchange:
            del self._rows[ends]

    def silent(self, now: float) -> Iterator[E]:
        """Those that were not used for too long; they are forgotten."""
        while self._rows:
            ends, (used, exchange) = next(iter(self._rows.items()))
            if now - used < self._idle_s:
                return
            del self._rows[ends]
            yield exchange

    def all(self) -> tuple[E, ...]:
        """Every exchange."""
        return tuple(exchange for _, exchange in self._rows.values())
