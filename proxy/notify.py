"""What a daemon says to its service manager (sd_notify(3)) and to its log. Standard library only."""

from __future__ import annotations

import contextlib
import os
import socket
import sys


def ready() -> None:
    """Everything is up."""
    _notify("READY=1")


def stopping() -> None:
    """The daemon ends by intent."""
    _notify("STOPPING=1")


def say(line: str) -> None:
    """One line to standard error, where the journal reads it."""
    print(f"zonegate: {line}", file=sys.stderr, flush=True)


def _notify(text: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text.encode(), address)
