"""Is there a point of a box outside some other boxes? The one question that every proof comes down to.

Two answers that must agree: a box cover that needs nothing but arithmetic and is exact for policies of a
few hundred rules and most larger ones, and z3 (`zonegate[prove]`) where that would take too long.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from importlib.util import find_spec
from operator import or_
from typing import TYPE_CHECKING, Any, Protocol

from proxy.policy.regions import Box, Cover, disjoint

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_STEPS = 200_000


class TooHard(Exception):
    """The box cover gave up; z3 does not."""


class Engine(Protocol):
    """A way to answer; `full` holds the set of all classes of each dimension."""

    def escape(self, box: Box, covers: Sequence[Cover]) -> Box | None:
        """A part of the box that lies outside every cover, None where there is none."""


def touching(box: Box, covers: Iterable[Cover]) -> list[Box]:
    """The parts of the covers that share something with a box."""
    names = box.get("name", -1)
    near = (cover for cover in covers if cover.names & names)
    return [part for cover in near for part in cover.boxes if not disjoint(box, part)]


@dataclass(slots=True)
class BoxEngine:
    """Cuts the box along each cover in turn and goes on with what sticks out."""

    full: Mapping[str, int]
    max_steps: int = MAX_STEPS
    steps: int = field(default=0, init=False)

    def escape(self, box: Box, covers: Sequence[Cover]) -> Box | None:
        self.steps = 0
        return self._escape(box, touching(box, covers))

    def _escape(self, box: Box, covers: list[Box]) -> Box | None:
        """Raises TooHard past the limit of steps."""
        self.steps += 1 + len(covers) // 16
        if self.steps > self.max_steps:
            raise TooHard
        box, near = self._easier(box, [cover for cover in covers if not disjoint(box, cover)])
        if not near:
            return box
        # the cover that leaves the fewest pieces: often one that holds the box wholly
        cut = min(near, key=lambda cover: self._pieces(box, cover))
        rest = dict(box)
        for name, mask in cut.items():
            have = rest.get(name, self.full[name])
            if outside := have & ~mask:
                found = self._escape({**rest, name: outside}, [c for c in near if c is not cut])
                if found is not None:
                    return found
            rest[name] = have & mask
        return None

    def _easier(self, box: Box, covers: list[Box]) -> tuple[Box, list[Box]]:
        """The same question with fewer covers.

        Where a value of one dimension is in none of the covers that test it, those covers can be left
        out together: the box is covered if and only if the others cover it at that value.
        """
        while covers:
            for name in {name for cover in covers for name in cover}:
                have = box.get(name, self.full[name])
                free = have & ~reduce(or_, (cover[name] for cover in covers if name in cover))
                if free:
                    box = {**box, name: free}
                    covers = [cover for cover in covers if name not in cover]
                    break
            else:
                break
        return box, covers

    def _pieces(self, box: Box, cover: Box) -> int:
        return sum(1 for name, mask in cover.items() if box.get(name, self.full[name]) & ~mask)


class Z3Engine:
    """Each dimension a whole number, each set of classes a few ranges of it."""

    def __init__(self, full: Mapping[str, int]) -> None:
        import z3

        self._z3: Any = z3
        self.full = full
        self._solver = z3.SolverFor("QF_FD")
        self._axes: dict[str, Any] = {}
        self._tests: dict[tuple[str, int], Any] = {}

    def escape(self, box: Box, covers: Sequence[Cover]) -> Box | None:
        near = touching(box, covers)
        names = {name for part in (box, *near) for name in part}
        z3, solver = self._z3, self._solver
        solver.push()
        try:
            for name in names:
                solver.add(z3.ULE(self._axis(name), self.full[name].bit_length() - 1))
            for name, mask in box.items():
                solver.add(self._test(name, mask))
            for cover in near:
                tests = [self._test(name, mask) for name, mask in cover.items()]
                solver.add(z3.Not(z3.And(tests)) if tests else z3.BoolVal(False))
            if solver.check() != z3.sat:
                return None
            model = solver.model()
            return {name: 1 << model.eval(self._axis(name), True).as_long() for name in names}
        finally:
            solver.pop()

    def _axis(self, name: str) -> Any:
        if name not in self._axes:
            width = max(1, self.full[name].bit_length().bit_length())
            self._axes[name] = self._z3.BitVec(name, width)
        return self._axes[name]

    def _test(self, name: str, mask: int) -> Any:
        found = self._tests.get((name, mask))
        if found is None:
            z3, axis = self._z3, self._axis(name)
            runs = [self._run(axis, low, high) for low, high in _runs(mask & self.full[name])]
            found = self._tests[name, mask] = z3.Or(runs) if runs else z3.BoolVal(False)
        return found

    def _run(self, axis: Any, low: int, high: int) -> Any:
        z3 = self._z3
        return axis == low if low == high else z3.And(z3.UGE(axis, low), z3.ULE(axis, high))


def _runs(mask: int) -> Iterable[tuple[int, int]]:
    """The runs of neighbouring bits, each as its first and last."""
    at = 0
    while mask:
        skip = (mask & -mask).bit_length() - 1
        at, mask = at + skip, mask >> skip
        length = (~mask & -~mask).bit_length() - 1
        yield at, at + length - 1
        at, mask = at + length, mask >> length


class AutoEngine:
    """The box cover, and z3 for what it gives up on."""

    def __init__(self, full: Mapping[str, int]) -> None:
        self._full = full
        self._boxes = BoxEngine(full)
        self._z3: Z3Engine | None = None

    def escape(self, box: Box, covers: Sequence[Cover]) -> Box | None:
        """Raises TooHard where it takes z3 and that is not installed."""
        try:
            return self._boxes.escape(box, covers)
        except TooHard:
            if not has_z3():
                raise TooHard("this policy needs z3 to be proved; install zonegate[prove]") from None
            self._z3 = self._z3 or Z3Engine(self._full)
            return self._z3.escape(box, covers)


def has_z3() -> bool:
    """Whether the extra `prove` is installed."""
    return "z3" in sys.modules or find_spec("z3") is not None


def shadowers(full: Mapping[str, int], boxes: Sequence[Box], covers: Sequence[Cover]) -> list[Cover]:
    """A small set of covers that together hold all the boxes, found by leaving out one after another."""
    engine = AutoEngine(full)
    needed = [cover for cover in covers if any(touching(box, [cover]) for box in boxes)]
    for cover in list(reversed(needed)):
        without = [c for c in needed if c is not cover]
        if all(engine.escape(box, without) is None for box in boxes):
            needed = without
    return needed
