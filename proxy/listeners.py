"""The explicit listeners as the supervisor has them: bound, handed to a worker, told of in `status`.

The listening sockets stay here as well: while a worker is replaced its clients wait, and nobody else on the
machine can take the address and ask for their passwords. Reads nothing from them.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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


def open_ears(loaded: Loaded) -> tuple[Ear, ...]:
    """Bind every listener of a site. Raises SiteError with the cure; nothing is bound then."""
    ears: list[Ear] = []
    try:
        for name, listener in loaded.site.listeners.items():
            sock = _bound(listener)
            ears.append(Ear(listener, loaded.listeners[name], loaded.site.people, sock))
    except SiteError:
        close_all(ears)
        raise
    return tuple(ears)


def renewed(ears: Iterable[Ear], loaded: Loaded) -> tuple[Ear, ...]:
    """The same listeners with what a reload found in their files."""
    return tuple(
        replace(ear, files=loaded.listeners[ear.listener.name], people=loaded.site.people) for ear in ears
    )


def close_all(ears: Iterable[Ear]) -> None:
    """Hear no more on any."""
    for ear in ears:
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


def _bound(listener: Listener) -> socket.socket:
    family = socket.AF_INET6 if listener.address.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # of every connection that it accepts
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
