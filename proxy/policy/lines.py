"""Where a number or a name falls: lines cut into pieces, and domain names under wildcards.

These are the tables beneath the dimensions. What they hold are sets of rows (or of destinations) as big
integers; what the bits mean is not known here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proxy.addresses import IPNetwork, inner
from proxy.flow import IPAddress
from proxy.policy.model import Bounds

_IPV6_OFFSET = 1 << 32


@dataclass(frozen=True, slots=True)
class Line[T]:
    """A line of whole numbers cut into pieces, each with a value."""

    starts: tuple[int, ...]
    values: tuple[T, ...]

    def at(self, point: int) -> T:
        return self.values[bisect_right(self.starts, point) - 1]


def sweep(pieces: Iterable[tuple[int, int, int]], base: int) -> Line[int]:
    """The line of (low, high, bits), on which `base` is set throughout.

    Pieces that share a bit must not overlap.
    """
    toggles = defaultdict[int, int](int)
    for low, high, bits in pieces:
        toggles[low] ^= bits
        toggles[high + 1] ^= bits
    starts, values, current = [0], [base], base
    for start in sorted(toggles):
        current ^= toggles[start]
        if start == 0:
            values[0] = current
        elif current != values[-1]:
            starts.append(start)
            values.append(current)
    return Line(tuple(starts), tuple(values))


def merged(bounds: Iterable[Bounds]) -> list[Bounds]:
    """The same numbers without overlaps."""
    found: list[Bounds] = []
    for piece in sorted(bounds, key=lambda b: (b.low, b.high)):
        if found and piece.low <= found[-1].high + 1:
            found[-1] = Bounds(found[-1].low, max(found[-1].high, piece.high))
        else:
            found.append(piece)
    return found


class Names:
    """Domain patterns to bits: the exact name, else the longest wildcard above it."""

    def __init__(self, patterns: Mapping[str, int], base: int) -> None:
        self.base = base
        self._wild: dict[str, int] = {}
        self._exact: dict[str, int] = {}
        wildcards = {pattern[2:]: bits for pattern, bits in patterns.items() if pattern.startswith("*.")}
        for suffix in sorted(wildcards, key=len):
            self._wild[suffix] = wildcards[suffix] | self._above(suffix)
        for pattern, bits in patterns.items():
            if not pattern.startswith("*."):
                self._exact[pattern] = bits | self._above(pattern)

    def _above(self, name: str) -> int:
        dot = name.find(".")
        while dot >= 0:
            if (bits := self._wild.get(name[dot + 1 :])) is not None:
                return bits
            dot = name.find(".", dot + 1)
        return self.base

    def at(self, name: str) -> int:
        bits = self._exact.get(name)
        return self._above(name) if bits is None else bits


def point(address: IPAddress) -> int:
    """Where an address (the one within it) lies on the one line of IPv4 and then IPv6."""
    meant = inner(address)
    return int(meant) if meant.version == 4 else int(meant) + _IPV6_OFFSET


def network_bounds(network: IPNetwork) -> Bounds:
    """A network on the one line of addresses."""
    low = int(network.network_address) + (0 if network.version == 4 else _IPV6_OFFSET)
    return Bounds(low, low + network.num_addresses - 1)
