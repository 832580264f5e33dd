"""Doors as the supervisor has them: a process that opens the ears of one bubble there, and ends.

What the process does is told in `door`; it is trusted with a bubble's namespaces and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from proxy import children, ipc
from proxy.link import Link
from proxy.messages.door import Opened
from proxy.posts import Bubble, CrewError

DOOR_LIMIT_S = 10.0


async def open_ears(bubble: Bubble, *, datagrams: bool = False) -> Sequence[int]:
    """The listening sockets of a bubble's namespace, which are the caller's to close. Raises CrewError."""
    ours, theirs = ipc.pair()
    words = ["datagrams"] if datagrams else []
    try:
        process = await children.start_module("door", theirs, *bubble.namespaces, words=words)
    except OSError as error:
        ours.close()
        raise CrewError(f"the door of the bubble cannot be started: {error.strerror}") from error
    link: Link[Opened] = Link(ours, [Opened])
    try:
        async with asyncio.timeout(DOOR_LIMIT_S):
            opened, fds = await link.receive()
    except (ipc.LinkBroken, TimeoutError) as error:
        raise CrewError(f"the door of the bubble failed: {error}") from error
    finally:
        link.close()
        await children.end(process)
    if opened.trouble:
        ipc.close_all(fds)
        raise CrewError(opened.trouble)
    return fds
