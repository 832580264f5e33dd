"""The datagram holder of a SOCKS5 listener, as the supervisor has it: started, given to the worker, replaced.

It stands beside the worker that serves the listener. When it ends the associations that it held have ended,
and clients hear so, for their connections end as well. Reads nothing of what passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

from proxy import children, ipc, notify
from proxy.config import Listener
from proxy.link import Link
from proxy.messages.associations import Alive, HoldAssociations
from proxy.messages.worker import Sealed

READY_LIMIT_S = 15.0
SILENT_S, SILENT_TIMES = 20.0, 3  # it says each second that it does not hang
PAUSE_S, PAUSE_MOST_S, STEADY_S = 0.1, 5.0, 10.0


async def hold(listener: Listener, give: Callable[[str, int], None], *, structural: bool) -> NoReturn:
    """Have a holder for a listener, for ever, another one when it ends. `give` is called with the listener's
    name and a link to the holder for the worker, a descriptor that stays ours."""
    loop = asyncio.get_running_loop()
    pause_s = PAUSE_S
    while True:
        began = loop.time()
        try:
            await _hold_once(listener, give, structural=structural)
        except (ipc.LinkBroken, TimeoutError, OSError) as error:
            pause_s = PAUSE_S if loop.time() - began > STEADY_S else min(pause_s * 2, PAUSE_MOST_S)
            notify.say(f"the datagram holder of listener {listener.name} ended ({error}); a new one comes")
        await asyncio.sleep(pause_s)


async def _hold_once(listener: Listener, give: Callable[[str, int], None], *, structural: bool) -> None:
    """The life of one holder. Raises why it ended: ipc.LinkBroken, TimeoutError, OSError."""
    ours, theirs = ipc.pair()
    ipc.refuse_descriptors(ours)
    with ours:
        link: Link[Sealed | Alive] = Link(ours, [Sealed, Alive])
        process = await children.start_datagram_holder(theirs, structural=structural)
        try:
            async with asyncio.timeout(READY_LIMIT_S):
                said, _ = await link.receive()
            if not isinstance(said, Sealed):
                raise ipc.LinkBroken("it did not say whether it is sealed")
            if structural and not said.structural:
                raise ipc.LinkBroken("it found itself able to make sockets that it has no use for")
            one, other = ipc.pair()
            with one, other:
                link.send(HoldAssociations(str(listener.address), listener.port), [one.fileno()])
                give(listener.name, other.fileno())
            await _hear(link)
        finally:
            link.close()
            await children.end(process)


async def _hear(link: Link[Sealed | Alive]) -> NoReturn:
    """Hear that it does not hang, until it is gone. Raises ipc.LinkBroken, also where it has hung."""
    silent = 0
    while silent < SILENT_TIMES:
        try:
            async with asyncio.timeout(SILENT_S):
                await link.receive()
            silent = 0
        except TimeoutError:
            silent += 1  # or it was this process that stood still: then the next look hears it
    raise ipc.LinkBroken("it has hung")
