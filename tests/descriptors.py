"""What this process has open, and how it is when nothing more can be opened. No tests are here."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path


def open_descriptors() -> set[int]:
    """The numbers of this process's open descriptors."""
    found = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    return {fd for fd in found if _is_open(fd)}


def _is_open(fd: int) -> bool:
    """Not so for the one that listed the directory."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """This process cannot open another descriptor (EMFILE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 1, hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(2))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
