"""The life of a sealed process: it looks whether it is sealed, is configured once, and works.

It says whether it can make sockets before it is given anything, and ends when its supervisor is gone. What
its work is it is told by whoever wires it.
"""

from __future__ import annotations

import gc
import resource
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import uvloop

from proxy import ipc, prctl
from proxy.link import Link
from proxy.messages.worker import Configure, Sealed

RESERVE = 10  # what one message of a supervisor brings at most
ROOM_BYTES = 16 << 20  # in a segment that is full, until the next one is there

# Makes the worker from its link and what it was given, in a running loop; the work is still to be awaited.
type Begin = Callable[[Link[Any], Configure, list[int]], Coroutine[Any, Any, None]]


def run(arguments: Sequence[str], accepted: Sequence[type[Any]], begin: Begin) -> None:
    """Work until the supervisor's end of the link (a descriptor, the first argument) is gone.

    `accepted` are the messages that it hears after it was configured.
    """
    sock = socket.socket(fileno=int(arguments[0]))
    prctl.no_core_dump()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        ipc.send(sock, Sealed(is_sealed()))
        configure, fds = ipc.receive(sock, [Configure])
        most = configure.segment_bytes + ROOM_BYTES
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # nothing here may raise it again
        uvloop.run(_work(sock, accepted, configure, fds, begin))
    except ipc.LinkBroken:
        return


def is_sealed() -> bool:
    """Whether this process cannot make a socket of any kind; what it has was handed to it."""
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
        except PermissionError:
            continue
        return False
    return True


async def _work(
    sock: socket.socket,
    accepted: Sequence[type[Any]],
    configure: Configure,
    fds: list[int],
    begin: Begin,
) -> None:
    work = begin(Link(sock, accepted, reserve=RESERVE), configure, fds)
    gc.collect()
    gc.freeze()
    await work
