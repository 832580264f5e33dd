"""Whose flow it is, and how its client speaks to the gate itself.

A captured client knows of no gate; one that came to an explicit listener asked it something, and is answered
in the same protocol. Whoever carries a flow asks its visitor's manner, and knows no protocol of ingress.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from proxy.channel.plain import Channel
from proxy.refusals import Notice


class Manner(Protocol):
    """How a client speaks to the gate itself, before and while it speaks to its destination."""

    @property
    def trouble(self) -> str:
        """What ended the flow, where that is known better here than where bytes are carried."""

    async def proceed(self) -> None:
        """Let the client speak to its destination, if it was not let yet. Raises ConnectionError."""

    def shown(self, notice: Notice) -> bytes | None:
        """What the client reads of a refusal; None where it hears its destination already."""

    def upstream(self, channel: Channel) -> Channel:
        """The destination's side, as this client is to read it."""

    def given(self, client: Channel, first: bytes) -> tuple[Channel, bytes]:
        """The client's own connection, and what it said first, for whoever takes the flow over."""


class Captured:
    """The client knows of no gate: its first word is for its destination, and so is the answer to it."""

    trouble = ""

    async def proceed(self) -> None:
        """It never asked."""

    def shown(self, notice: Notice) -> bytes | None:
        """It hears its destination, or what speaks in its place."""
        return None

    def upstream(self, channel: Channel) -> Channel:
        """As it is."""
        return channel

    def given(self, client: Channel, first: bytes) -> tuple[Channel, bytes]:
        """As it came."""
        return client, first


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whose flow it is (a bubble; a listener and the client's address), how it came in, and under which
    promise it is enforced."""

    bubble: str
    enforcement: str
    manner: Manner = field(default_factory=Captured)
