"""Unix sockets below a directory, which is looked through without following a link.

They cross network namespaces: whoever sees one can ask who listens there to act outside. Knows no bubble.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MOST_ENTRIES = 500_000  # a second or so


@dataclass(frozen=True, slots=True)
class Found:
    """The sockets, in order. Not `whole` where something was too large, or could not be listed."""

    sockets: tuple[Path, ...]
    whole: bool = True


def below(directories: Iterable[Path], most: int = MOST_ENTRIES) -> Found:
    """The sockets in directories and below them."""
    sockets: set[Path] = set()
    waiting = [str(directory) for directory in directories]
    whole = True
    while waiting:
        directory = waiting.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    most -= 1
                    if most < 0:
                        return Found(tuple(sorted(sockets)), whole=False)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False) and stat.S_ISSOCK(_mode(entry)):
                        sockets.add(Path(entry.path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            whole = whole and not _may_be_passed(directory)
        except OSError:
            whole = False
    return Found(tuple(sorted(sockets)), whole)


def _may_be_passed(directory: str) -> bool:
    """Who may not list it may still pass through it, to a name that is known, or open it to themselves."""
    try:
        return os.access(directory, os.X_OK) or os.lstat(directory).st_uid == os.geteuid()
    except OSError:
        return True


def _mode(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:  # it has gone meanwhile, and what comes after it has not
        return 0
