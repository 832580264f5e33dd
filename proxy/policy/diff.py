"""What an edit of a policy means: the flows whose verdict changes, and whether any gets looser.

Two policies are cut into one space and compared piece by piece where they differ. A row is a pair of
deciding rules with an example flow, which both judges have answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property, reduce
from itertools import zip_longest
from operator import or_

from proxy.flow import Because, Flow, Origin, TunnelFact, Verdict
from proxy.policy.cover import AutoEngine, touching
from proxy.policy.evaluate import Policy
from proxy.policy.plain import make_plain
from proxy.policy.prove import Disagreement
from proxy.policy.regions import Box, Cover, Piece, Regions, disjoint, key_of, meet
from proxy.policy.space import Space

_NO_RULE = -1


@dataclass(frozen=True, slots=True)
class Change:
    """Flows that `before` decided and `after` decides otherwise, with one of them."""

    old: Verdict
    new: Verdict
    before: Because
    after: Because
    flow: Flow
    tunnel: TunnelFact | None

    @property
    def is_looser(self) -> bool:
        return self.new > self.old


def compare(old: Policy, new: Policy) -> list[Change]:
    """Every pair of deciding reasons whose flows changed, looser ones first; nothing where none did."""
    comparison = _Comparison(old, new)
    changes: dict[tuple[str, str, Verdict, Verdict], Change] = {}
    for change in comparison.changes():
        key = (change.before.id, change.after.id, change.old, change.new)
        changes.setdefault(key, change)
    return sorted(changes.values(), key=lambda c: (not c.is_looser, c.old, c.new))


@dataclass(frozen=True)
class _Part:
    """A box of a piece as far as an edit could touch it.

    `kept` is the number in the new policy of a rule that is as and where it was, and the same for no rule
    in both; None for what the edit concerns.
    """

    piece: Piece
    box: Box
    kept: int | None

    @cached_property
    def names(self) -> int:
        """The classes of names that the box holds."""
        return self.box.get("name", -1)

    @cached_property
    def left_out(self) -> Mapping[frozenset[tuple[str, int]], Box]:
        """What of the piece is left out here, by what is equal for equal boxes."""
        return {key_of(box): box for box in touching(self.box, self.piece.covers)}


class _Comparison:
    """Two policies in one space. What both say is not looked at: a box that guards of both block, and a flow
    that one rule decides in the old policy and another in the new one where both rules are kept."""

    def __init__(self, old: Policy, new: Policy) -> None:
        self.old, self.new = old, new
        self.space = Space([old.model, new.model])
        self.full = {name: axis.full for name, axis in self.space.axes.items()}
        self.engine = AutoEngine(self.full)
        self.before, self.after = Regions(self.space, 0), Regions(self.space, 1)
        self.kept: dict[int, int] = {}
        self.where: list[Box] = []
        self._hold_together()

    def _hold_together(self) -> None:
        """Find the rules that are kept, and where anything else could give a flow another verdict."""
        zones = self.space.axes["zone"]
        if gone := zones.mask(self.old.zones) ^ zones.mask(self.new.zones):
            self.where.append({"zone": gone})
        for at_most in (Verdict.BLOCK, Verdict.TUNNEL):
            self.where += _differences(_stopped(self.before, at_most), _stopped(self.after, at_most))
        old, new = _said(self.before), _said(self.after)
        for tag, i, j, k, n in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if tag == "equal":
                self.kept.update(zip(range(i, j), range(k, n), strict=True))
            for one, two in zip_longest(old[i:j], new[k:n]) if tag != "equal" else ():
                self.where += _edits(one, two)

    def changes(self) -> Iterator[Change]:
        """Each two parts that give a flow two verdicts, with such a flow."""
        new = list(self._parts(self.after, {number: number for number in self.kept.values()}))
        by_rule: dict[int | None, list[_Part]] = {}
        for part in new:
            by_rule.setdefault(part.kept, []).append(part)
        edited = by_rule.get(None, [])
        for one in self._parts(self.before, self.kept):
            for two in new if one.kept is None else (*by_rule.get(one.kept, ()), *edited):
                if one.piece.verdict is not two.piece.verdict and one.names & two.names:
                    yield from self._change(one, two)

    def _parts(self, regions: Regions, kept: Mapping[int, int]) -> Iterator[_Part]:
        blocked = _stopped(self.before, Verdict.BLOCK).keys() & _stopped(self.after, Verdict.BLOCK).keys()
        where = [(box.get("name", -1), box) for box in self.where]
        for piece in regions.pieces() if where else ():
            number = _NO_RULE if piece.because.origin is Origin.DEFAULT else None
            if piece.rule is not None:
                number = kept.get(piece.rule)
            for box in piece.boxes:
                if number is not None or key_of(box) not in blocked:
                    names = box.get("name", -1)
                    near = [edit for others, edit in where if names & others and not disjoint(box, edit)]
                    narrow = meet(box, _hull(near)) if near else None
                    if narrow is not None:
                        yield _Part(piece, narrow, number)

    def _change(self, one: _Part, two: _Part) -> Iterator[Change]:
        both = meet(one.box, two.box)
        if both is None:
            return
        left_out = Cover(two.piece.because, tuple({**one.left_out, **two.left_out}.values()))
        escaped = self.engine.escape(both, (left_out,))
        if escaped is not None:
            yield self._replayed(escaped, one.piece, two.piece)

    def _replayed(self, box: Box, one: Piece, two: Piece) -> Change:
        flow, tunnel = self.space.flow(box)
        before, after = self.old.judge(flow, tunnel), self.new.judge(flow, tunnel)
        if before.verdict is not one.verdict or after.verdict is not two.verdict:
            raise Disagreement(f"the comparison and the judge differ on {flow}; please report this")

        def is_same(less: Flow) -> bool:
            judged = self.old.judge(less, tunnel), self.new.judge(less, tunnel)
            return [(j.verdict, j.because) for j in judged] == [
                (j.verdict, j.because) for j in (before, after)
            ]

        plain = make_plain(flow, is_same)
        return Change(one.verdict, two.verdict, before.because, after.because, plain, tunnel)


def _stopped(regions: Regions, at_most: Verdict) -> dict[frozenset[tuple[str, int]], Box]:
    """The boxes in which guards, and what is built in, allow so much and no more."""
    guards = zip(regions.guards, regions.model.guards, strict=True)
    covers = [cover for cover, guard in guards if guard.at_most is at_most]
    if at_most is Verdict.BLOCK:
        covers.append(regions.built_in)
    return {key_of(box): box for cover in covers for box in cover.boxes}


type _Said = tuple[Verdict, tuple[str, ...] | None, tuple[frozenset[tuple[str, int]], ...]]


def _said(regions: Regions) -> list[_Said]:
    """What decides of each rule, without the words that only explain."""
    rules = zip(regions.rules, regions.model.enforced, strict=True)
    return [(rule.verdict, rule.via, tuple(map(key_of, cover.boxes))) for cover, rule in rules]


def _edits(one: _Said | None, two: _Said | None) -> Iterator[Box]:
    """Where one rule in the place of another, or of none, could matter."""
    old, new = ({key: dict(key) for key in said[2]} if said else {} for said in (one, two))
    if one and two and one[:2] == two[:2]:
        yield from _differences(old, new)
    else:
        yield from (*old.values(), *new.values())


def _differences(
    old: Mapping[frozenset[tuple[str, int]], Box], new: Mapping[frozenset[tuple[str, int]], Box]
) -> Iterator[Box]:
    """Boxes that hold whatever lies in some of the one and not of the other.

    Of two boxes that differ in one dimension, only what differs there.
    """
    gone = [box for key, box in old.items() if key not in new]
    come = [box for key, box in new.items() if key not in old]
    for box in gone:
        for other in come:
            unlike = [name for name in box if box[name] != other.get(name)]
            if box.keys() == other.keys() and len(unlike) == 1:
                come.remove(other)
                yield {**box, unlike[0]: box[unlike[0]] ^ other[unlike[0]]}
                break
        else:
            yield box
    yield from come


def _hull(boxes: Sequence[Box]) -> Box:
    """One box that holds them all."""
    first, *rest = boxes
    names = [name for name in first if all(name in box for box in rest)]
    return {name: reduce(or_, (box[name] for box in boxes)) for name in names}
