"""Control groups of the lab: processes that are frozen all at once, or get no more memory.

As the machine has them: version 2, or the controller of version 1 beside it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from lab import kernel

_numbers = itertools.count()


class Group:
    """Processes that were moved into a group of their own; at its end they go where they came from."""

    controller = ""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        root, self._version = _mounted(self.controller)
        self._back = root / _own(root, self.controller if self._version == 1 else "")
        self._directory = self._back / f"zonegate-lab-{os.getpid()}-{next(_numbers)}"

    def __enter__(self) -> Self:
        self._directory.mkdir()
        self._move(self._directory)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()
        self._pids = [int(word) for word in (self._directory / "cgroup.procs").read_text().split()]
        self._move(self._back)
        kernel.until("its group is empty", self._removed)

    def _move(self, there: Path) -> None:
        for pid in self._pids:
            if kernel.is_alive(pid):
                (there / "cgroup.procs").write_text(str(pid))

    def _removed(self) -> bool:
        try:
            self._directory.rmdir()
        except OSError:  # who was killed is not quite gone yet
            return False
        return True

    def _release(self) -> None:
        """Have them go on."""

    def _set(self, of_two: str, of_one: str, value: str) -> None:
        (self._directory / (of_two if self._version == 2 else of_one)).write_text(value)


class Freezer(Group):
    """A group that is frozen and thawed as a whole."""

    controller = "freezer"

    def freeze(self) -> None:
        """Have all of it stand still."""
        self._set("cgroup.freeze", "freezer.state", "1" if self._version == 2 else "FROZEN")
        kernel.until("all of it is frozen", self._is_frozen)

    def thaw(self) -> None:
        """Have all of it go on."""
        self._set("cgroup.freeze", "freezer.state", "0" if self._version == 2 else "THAWED")

    _release = thaw

    def _is_frozen(self) -> bool:
        if self._version == 2:
            return "frozen 1" in (self._directory / "cgroup.events").read_text()
        return (self._directory / "freezer.state").read_text() == "FROZEN\n"


class NoMemory(Group):
    """A group that gets no page more than it has: who asks for one is killed by the kernel."""

    controller = "memory"

    def __enter__(self) -> Self:
        super().__enter__()
        self._limit("0")
        return self

    def _release(self) -> None:
        self._limit("max" if self._version == 2 else "-1")

    def _limit(self, value: str) -> None:
        self._set("memory.max", "memory.limit_in_bytes", value)


def _mounted(controller: str) -> tuple[Path, int]:
    """Where a controller is, and the version of its control groups."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and controller in options.split(","):
            return Path(place), 1
        if kind == "cgroup2" and (controller == "freezer" or controller in _of_two(Path(place))):
            return Path(place), 2
    raise AssertionError(f"the lab needs control groups with {controller}")


def _of_two(place: Path) -> list[str]:
    return (place / "cgroup.subtree_control").read_text().split()


def _own(root: Path, controller: str) -> str:
    """Our own group: below it there is room. Of version 2 it is the root, the only one that may have both."""
    if not controller:
        return ""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, place = line.split(":", 2)
        if controller in names.split(",") and (root / place.lstrip("/")).is_dir():
            return place.lstrip("/")
    return ""
