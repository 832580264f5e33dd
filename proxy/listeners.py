"""The explicit listeners as the supervisor has them: bound, handed to a worker, told of in `status`.

The listening sockets stay here as well: while a worker is replaced its clients wait, and nobody else on the
machine can take the address and ask for their passwords. Reads nothing from them.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy import ipc
from proxy.config import Listener, Person
from proxy.messages.worker import ListenExplicit
from proxy.site import ListenerFiles, Loaded, SiteError

BACKLOG = 1024
USER = "explicit"  # whose worker serves them: nobody of this machine
UID = -2  # -1 is everybody, see locks
WORDS = "its clients can go around the gate"


@dataclass(frozen=True, slots=True)
class Ear:
    """A listener with its socket and what its worker needs to know."""

    listener: Listener
    files: ListenerFiles
    people: tuple[Person, ...]
    sock: socket.socket

    def message(self) -> tuple[ListenExplicit, list[int]]:
        """What its worker is told; the descriptors are the caller's, but for the first."""
        one, files = self.listener, self.files
        who = {
            "people": [(person.who, person.zones, person.groups) for person in self.people],
            "passwords": files.passwords.reveal().decode("ascii", "replace"),
        }
        contents = [json.dumps(who).encode()]
        if one.clients:
            contents += [files.clients, files.certificate, files.key.reveal()]
        fds = [self.sock.fileno(), *(ipc.memory_file("listener", content) for content in contents)]
        return ListenExplicit(one.name, one.kind, one.auth), fds

    def close(self) -> None:
        """Hear no more."""
        self.sock.close()


def open_ears(loaded: Loaded, there: Iterable[Ear] = ()) -> tuple[Ear, ...]:
    """Bind every listener of a site, but for addresses on which ears are `there`: those keep their sockets.

    Raises SiteError with the cure; nothing more is bound then.
    """
    bound = {(ear.listener.address, ear.listener.port): ear.sock for ear in there}
    new: list[socket.socket] = []
    ears: list[Ear] = []
    try:
        for name, listener in sorted(loaded.site.listeners.items()):
            sock = bound.get((listener.address, listener.port))
            if sock is None:
                new.append(sock := _bound(listener))
            ears.append(Ear(listener, loaded.listeners[name], loaded.site.people, sock))
    except SiteError:
        for sock in new:
            sock.close()
        raise
    return tuple(ears)


def of_zone(ears: Iterable[Ear], zone: str) -> tuple[Ear, ...]:
    """Those whose clients are in a zone."""
    return tuple(ear for ear in ears if ear.listener.zone == zone)


def close_all(ears: Iterable[Ear], but: Iterable[Ear] = ()) -> None:
    """Hear no more on any, but for the sockets of others."""
    kept = [ear.sock for ear in but]
    for ear in ears:
        if ear.sock not in kept:
            ear.close()


def status(listeners: Mapping[str, Listener]) -> list[dict[str, Any]]:
    """What `status` says of them."""
    return [
        {
            "name": one.name,
            "kind": one.kind.value,
            "address": one.shown,
            "zone": one.zone,
            "auth": one.auth,
            "enforcement": "cooperative",
            "words": "; ".join([WORDS, *_weaknesses(one)]),
        }
        for one in listeners.values()
    ]


def _weaknesses(one: Listener) -> list[str]:
    if one.auth == "none":
        return ["every program of this machine may use it, unasked"]
    if one.auth == "passwords" and not one.address.is_loopback:
        return ["its passwords cross the network readable"]
    return []


# A client that is gone without a word is noticed within 90 s: its UDP associations end with its connection.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


def _bound(listener: Listener) -> socket.socket:
    family = socket.AF_INET6 if listener.address.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for level, option, value in _KEEPALIVE:  # of every connection that it accepts
            sock.setsockopt(level, option, value)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(listener.address), listener.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        cure = "give it another address or port"
        raise SiteError(
            f'listener "{listener.name}" cannot listen on {listener.shown}: {error.strerror}; {cure}'
        ) from error
    return sock
