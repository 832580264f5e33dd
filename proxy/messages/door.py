"""A door to its supervisor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Opened:
    """The zone's listeners, in the order of namespaces.LISTENERS and DATAGRAM_EARS, or why there are none."""

    descriptors: ClassVar[tuple[int, int]] = (0, 10)

    trouble: str
