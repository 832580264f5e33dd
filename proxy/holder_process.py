"""The life of a process beside a gate: as many descriptors as it may have, until its link ends.

It ends at once and in no order: an orderly end would wait for every thread that still waits for a resolver.
What it started is told by the kernel (PR_SET_PDEATHSIG) or by its own link. Standard library only.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from proxy import ipc


def serve(link: str, body: Callable[[socket.socket], None]) -> NoReturn:
    """Run `body` with the link of that descriptor's number. Exit code 0 where the other end is gone."""
    sock = socket.socket(fileno=int(link))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    code = 1
    try:
        body(sock)
    except ipc.LinkBroken:
        code = 0
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
