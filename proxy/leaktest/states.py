"""States of a daemon and its tunnels that its user can bring about, each undone when it is over.

All of them cut the flows of others too: they are made only when that was asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from proxy import ipc, pieces
from proxy.leaktest.places import LeaktestError
from proxy.messages.admin import Ask, Denied, Order
from proxy.run import connect

LEASE_GONE_S = 3.5
REASON = "zonegate leaktest"


class NotHere(Exception):
    """This state cannot be made from here; one line."""


def say(sockets: Sequence[Path], message: Ask | Order) -> dict[str, Any]:
    """The daemon's answer. RunError without a daemon, LeaktestError with its refusal."""
    with connect(sockets) as link:
        ipc.send(link, message)
        answer = pieces.receive(link)
    if isinstance(answer, Denied):
        raise LeaktestError(answer.reason)
    found: dict[str, Any] = json.loads(answer.text)
    if "error" in found:
        raise LeaktestError(str(found["error"]))
    return found


@contextlib.contextmanager
def stopped(link: socket.socket) -> Iterator[None]:
    """The daemon is stopped, and every lease of it has run out."""
    pid, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.getuid():
        raise NotHere("the daemon is another user's, who alone may stop it")
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(LEASE_GONE_S)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def locked(sockets: Sequence[Path], zone: str, locks: Sequence[object]) -> Iterator[None]:
    """The zone is locked, by who runs the daemon for everybody."""
    if locks:
        raise NotHere("there is a lock already, which is not this test's to open")
    _order(sockets, "lock", zone=zone, user="", reason=REASON)
    try:
        yield
    finally:
        _undo(sockets, f"zonegate unlock --zone {zone}", "unlock", zone=zone, user="")


@contextlib.contextmanager
def down(sockets: Sequence[Path], tunnels: Sequence[str]) -> Iterator[None]:
    """The tunnels are held down by hand."""
    with contextlib.ExitStack() as undo:
        for name in tunnels:
            _order(sockets, "tunnel-down", tunnel=name)
            undo.callback(_undo, sockets, f"zonegate tunnel up {name}", "tunnel-up", tunnel=name)
        yield


def _order(sockets: Sequence[Path], what: str, **parameters: str) -> None:
    try:
        say(sockets, Order(what, json.dumps(parameters)))
    except LeaktestError as error:
        raise NotHere(str(error)) from error


def _undo(sockets: Sequence[Path], by_hand: str, what: str, **parameters: str) -> None:
    try:
        _order(sockets, what, **parameters)
    except Exception as error:
        raise LeaktestError(f"this could not be undone ({error}); do it by hand: {by_hand}") from error
