"""Answers what workers ask about names: which synthetic address, and which name behind one.

A worker is answered only for bubbles that are its own; what no bubble of it was told, it does not learn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from ipaddress import ip_address

from proxy.allocator import Allocator, NameFault, Synthetic
from proxy.messages.worker import AddressAnswer, AskAddress, AskName, FromWorker, NameAnswer


def answer(
    allocator: Allocator, bubbles: Collection[str], message: FromWorker
) -> NameAnswer | AddressAnswer | None:
    """The answer to a question about names from a worker that has `bubbles`; None for another message."""
    match message:
        case AskName() if message.bubble in bubbles:
            found = allocator.allocate(message.bubble, message.name)
            if isinstance(found, Synthetic):
                return NameAnswer(message.question, str(found.v4), str(found.v6), "", "", "")
            because = found.because
            return NameAnswer(message.question, "", "", because.id, because.text, found.cure)
        case AskName():
            return NameAnswer(message.question, "", "", NameFault.UNKNOWN, "there is no such bubble", "")
        case AskAddress():
            name: str | None = None
            with contextlib.suppress(ValueError):
                if message.bubble in bubbles:
                    name = allocator.name_of(message.bubble, ip_address(message.address))
            return AddressAnswer(message.question, name or "")
        case _:
            return None
