"""An inspector with its supervisor, and with the worker that gives it flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class WantInspector:
    """A worker has a flow that must be inspected, and nobody to give it to."""


@dataclass(frozen=True, slots=True)
class InspectorDoor:
    """To a worker: a link to its inspector; one descriptor."""

    descriptors: ClassVar[tuple[int, int]] = (1, 1)


@dataclass(frozen=True, slots=True)
class NoInspector:
    """To a worker: there is none, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """To an inspector, before its first flow, and again when its CA is renewed. Descriptors: the chain and
    the key that sign certificates for clients, and the roots that destinations must be verified by, PEM."""

    descriptors: ClassVar[tuple[int, int]] = (3, 3)

    http2: bool


@dataclass(frozen=True, slots=True)
class TakeFrom:
    """To an inspector: the other end of a worker's InspectorDoor; one descriptor."""

    descriptors: ClassVar[tuple[int, int]] = (1, 1)


@dataclass(frozen=True, slots=True)
class TakeOver:
    """From a worker to its inspector: a flow that has to be inspected. Descriptors: the client's socket, and
    a memory file of what was read from it. An absent name or address is empty. Where its addresses were
    judged it is spoken to at these and no others, and through this `tunnel` alone."""

    descriptors: ClassVar[tuple[int, int]] = (2, 2)

    number: str
    bubble: str
    user: str
    groups: tuple[str, ...]
    enforcement: str
    name: str
    address: str
    port: int
    protocol: str
    addresses: tuple[str, ...] = ()
    tunnel: str = ""
