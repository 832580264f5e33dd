"""What a daemon says to its service manager (sd_notify(3)) and to its log. Standard library only."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from typing import TextIO

MOST_CHARACTERS = 1000  # which a pipe that can be written to takes whole (PIPE_BUF)


def ready() -> None:
    """Everything is up."""
    _notify("READY=1")


def reloading() -> None:
    """Files are read again; `ready` follows, whether or not they are taken."""
    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The daemon ends by intent."""
    _notify("STOPPING=1")


def say(line: str) -> None:
    """One line to standard error, where the journal reads it.

    Nobody may be there to read, or may have stopped: a terminal after Ctrl-S, a full pipe. Then it is lost;
    leases do not wait for a reader.
    """
    with contextlib.suppress(OSError):
        if _takes(sys.stderr):
            print(f"zonegate: {line[:MOST_CHARACTERS]}", file=sys.stderr, flush=True)


def _takes(stream: TextIO) -> bool:
    """Whether a line can be written now, or fails at once."""
    ready = select.poll()
    try:
        ready.register(stream.fileno(), select.POLLOUT)
    except ValueError:  # it is no file
        return True
    return bool(ready.poll(0))


def ends_with_terminal() -> bool:
    """Whether this process has a terminal and was not told to outlive it, as by nohup(1)."""
    return signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and has_terminal()


def has_terminal() -> bool:
    """Whether this process has a controlling terminal; one that was hung up is none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _notify(text: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text.encode(), address)
