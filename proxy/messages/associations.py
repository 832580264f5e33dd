"""The datagram holder of a SOCKS5 listener with its supervisor, and with the worker that it serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class HoldAssociations:
    """To a new holder, once: where the listener listens. One descriptor, its link to the worker."""

    descriptors: ClassVar[tuple[int, int]] = (1, 1)

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Alive:
    """From a holder, each second: it does not hang."""


@dataclass(frozen=True, slots=True)
class Associate:
    """A UDP socket for a client, please: for whoever is connected at the other end of this descriptor, a
    connection that the listener accepted. `port` is the one that the client says it will use, 0 if it does
    not say."""

    descriptors: ClassVar[tuple[int, int]] = (1, 1)

    number: int
    port: int


@dataclass(frozen=True, slots=True)
class Associated:
    """The answer to Associate: where the client may send to, or why nowhere. One descriptor: a link on which
    each message is a datagram, the client's or one to it; the association lasts until one end is closed."""

    descriptors: ClassVar[tuple[int, int]] = (0, 1)

    number: int
    address: str
    port: int
    trouble: str
