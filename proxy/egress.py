"""A tunnel as a worker sees it: dial, while leased.

Makes no socket: the tunnel's holder makes them and hands them over; each kind of tunnel has its own way to
ask for one (mtls_egress, packet_egress). The lease is judged here against CLOCK_BOOTTIME, so that a stopped
supervisor or a sleeping machine cannot prolong it.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from proxy.channel.plain import Channel
from proxy.flow import IPAddress, TunnelFact, TunnelState
from proxy.messages.worker import Lease

NEVER_LEASED = "no proof of its peer has come yet"
NO_ROOM = "no descriptor is left here for a socket of tunnel"


class DialFailed(Exception):
    """The tunnel could not carry this flow; one line. `status` is the HTTP status with which the peer
    said so itself, 0 where it did not."""

    def __init__(self, words: str, *, status: int = 0) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True, slots=True)
class Grant:
    """The right of one flow to use one egress, from one unbroken run of leases."""

    generation: int
    peer: str
    proof_age_s: float


class Egress(ABC):
    """One tunnel of a worker. `clock` is CLOCK_BOOTTIME in nanoseconds.

    `judges_names` is whether the peer resolves names and judges their addresses; else it is done here.
    """

    judges_names: bool

    def __init__(self, name: str, clock: Callable[[], int]) -> None:
        self.name, self._clock = name, clock
        self._lease = Lease(name, TunnelState.DOWN, NEVER_LEASED, "", 0, 0)
        self._generation = 0

    # -- the lease ---------------------------------------------------------------------------------

    @property
    def leased(self) -> bool:
        """Whether the proof of the peer is fresh at this very moment."""
        return self._clock() < self._lease.deadline_ns

    @property
    def deadline_ns(self) -> int:
        """When the present lease ends; 0 is closed."""
        return self._lease.deadline_ns

    @property
    def words(self) -> str:
        """What is said of the tunnel now."""
        if self._lease.deadline_ns and not self.leased:
            return "its lease has run out: nothing was heard from the supervisor in time"
        return self._lease.words

    def fact(self) -> TunnelFact:
        """The tunnel as the policy sees it."""
        if self.leased:
            return TunnelFact(self.name, TunnelState.ATTESTED)
        state = TunnelState(self._lease.state)
        return TunnelFact(self.name, TunnelState.STALE if state is TunnelState.ATTESTED else state)

    def renew(self, lease: Lease) -> None:
        """Take a new lease. One that comes after the last has ended begins a new generation: flows that
        were admitted before the gap stay lost."""
        if not self.leased or not lease.deadline_ns:
            self._generation += 1
            self.forget()
        self._lease = lease

    def grant(self) -> Grant | None:
        """A right for one flow, None without a valid lease."""
        now_ns = self._clock()
        if now_ns >= self._lease.deadline_ns:
            return None
        return Grant(self._generation, self._lease.peer, (now_ns - self._lease.proof_at_ns) / 1e9)

    def admits(self, grant: Grant) -> bool:
        """Whether the flow that got this right may still pass a byte."""
        return grant.generation == self._generation and self._clock() < self._lease.deadline_ns

    @abstractmethod
    def forget(self) -> None:
        """Drop what was learnt or made ready under the leases until now."""

    # -- dialling ----------------------------------------------------------------------------------

    @abstractmethod
    def connect_holder(self, sock: socket.socket) -> None:
        """Use a new link to the tunnel's holder. Who waited for the last one is not served by this one."""

    @abstractmethod
    async def hear_holder(self) -> None:
        """Hand what the holder makes to those who wait; returns when the holder is gone.

        Raises LinkBroken where it is there and speaks nonsense: nobody gives another link to it.
        """

    async def resolve(self, name: str) -> tuple[IPAddress, ...]:
        """The addresses of a canonical name behind the peer; DialFailed in the user's words."""
        raise DialFailed(f"the peer of tunnel {self.name} resolves names itself")

    @abstractmethod
    async def dial(self, host: str | IPAddress, port: int) -> Channel:
        """A channel to a destination; DialFailed in the user's words."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the holder."""
