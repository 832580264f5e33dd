"""The door: enters one zone's namespace, opens the gate's ears there, hands them over and ends.

Run by the supervisor for each bubble (and again for each new worker), so that nobody else ever holds
the ears: the giver of a socket shares its status flags and could make an accept hang.
Standard library only. Arguments: descriptors of the link, the user namespace and the network namespace, and
`datagrams` if their ears are to be opened too.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

from proxy import ipc, namespaces
from proxy.messages.door import Opened

DATAGRAMS = "datagrams"


def main(arguments: Sequence[str]) -> None:
    """Answer Opened with the listeners, or with the trouble in one line."""
    link_fd, user_fd, net_fd = (int(argument) for argument in arguments[:3])
    link = socket.socket(fileno=link_fd)
    try:
        namespaces.enter(user_fd, net_fd)
        if not namespaces.only_loopback():
            raise OSError("another device than lo is up in it, so it could be left by another way")
        listeners = namespaces.open_listeners()
        if DATAGRAMS in arguments[3:]:
            listeners += namespaces.open_datagram_ears()
    except OSError as error:
        answer, listeners = Opened(f"the namespace of the bubble cannot be served: {error}"), []
    else:
        answer = Opened("")
    with contextlib.suppress(ipc.LinkBroken):  # nobody waits for it any more
        ipc.send(link, answer, [listener.fileno() for listener in listeners])
