"""A table of UDP exchanges: which are there, which were silent too long, which must give way.

Pure: it knows no socket and no clock. An exchange is known by its key, which names its two ends; one that is
used is young again. When there are too many, the one that was silent longest goes: a program starves itself
and nobody else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator

IDLE_S = 120.0  # RFC 4787, REQ-5: no less
REFUSED_S = 3.0  # a refusal stands so long without being judged and recorded again


class DatagramTable[K: Hashable, E]:
    """Exchanges by their keys, oldest use first."""

    def __init__(self, most: int, idle_s: float = IDLE_S) -> None:
        self._most, self._idle_s = most, idle_s
        self._rows: OrderedDict[K, tuple[float, E]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def use(self, key: K, now: float) -> E | None:
        """The exchange with this key, which has just been used; None if there is none."""
        row = self._rows.get(key)
        if row is None:
            return None
        self._rows[key] = (now, row[1])
        self._rows.move_to_end(key)
        return row[1]

    def add(self, key: K, exchange: E, now: float) -> E | None:
        """Take a new exchange in; the one that had to give way for it, if any."""
        self._rows[key] = (now, exchange)
        self._rows.move_to_end(key)
        if len(self._rows) <= self._most:
            return None
        return self._rows.popitem(last=False)[1][1]

    def remove(self, key: K, exchange: E) -> None:
        """Forget an exchange, unless another has its place."""
        row = self._rows.get(key)
        if row is not None and row[1] is exchange:
            del self._rows[key]

    def silent(self, now: float) -> Iterator[E]:
        """Those that were not used for too long; they are forgotten."""
        while self._rows:
            key, (used, exchange) = next(iter(self._rows.items()))
            if now - used < self._idle_s:
                return
            del self._rows[key]
            yield exchange

    def all(self) -> tuple[tuple[K, E], ...]:
        """Every exchange with its key."""
        return tuple((key, exchange) for key, (_, exchange) in self._rows.items())
