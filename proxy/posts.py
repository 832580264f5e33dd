"""What stays when a worker is replaced: the post of a zone and user, and the bubbles that it serves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from proxy.listeners import Ear

DOORS_AT_ONCE = 4


class CrewError(Exception):
    """A post cannot be served: its worker or a door failed; one line."""


@dataclass(slots=True, eq=False)
class Bubble:
    """One bubble: its namespaces (descriptors), and the worker that serves it.

    `attached` says which network namespace it is that was there before, and is empty otherwise.
    """

    id: str
    zone: str
    user: str
    uid: int
    pid: int
    enforcement: str
    namespaces: tuple[int, ...]
    attached: str = ""


@dataclass(slots=True, eq=False)
class Post:
    """A zone and a user, with their bubbles, or the explicit listeners of a zone."""

    zone: str
    user: str
    uid: int
    groups: tuple[str, ...]
    bubbles: dict[str, Bubble] = field(default_factory=dict)
    ears: tuple[Ear, ...] = ()
    # A door is a process of the daemon's user: no other user may have it start more than a few.
    doors: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DOORS_AT_ONCE))
