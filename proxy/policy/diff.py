"""What an edit of a policy means: the flows whose verdict changes, and whether any gets looser.

Two policies are cut into one space and compared piece by piece where they differ. A row is a pair of
deciding rules with an example flow, which both judges have answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from proxy.flow import Because, Flow, TunnelFact, Verdict
from proxy.policy.cover import AutoEngine
from proxy.policy.evaluate import Policy
from proxy.policy.plain import make_plain
from proxy.policy.prove import Disagreement
from proxy.policy.regions import Box, Cover, Piece, Regions, meet_all
from proxy.policy.space import Space


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


class _Comparison:
    def __init__(self, old: Policy, new: Policy) -> None:
        self.old, self.new = old, new
        self.space = Space([old.model, new.model])
        self.full = {name: axis.full for name, axis in self.space.axes.items()}
        self.engine = AutoEngine(self.full)
        self.before, self.after = Regions(self.space, 0), Regions(self.space, 1)

    def changes(self) -> Iterator[Change]:
        where = self.edited()
        if not where:
            return
        old_pieces = [p for p in self.before.pieces() if p.boxes]
        new_pieces = [p for p in self.after.pieces() if p.boxes]
        for one in old_pieces:
            near = list(meet_all(one.boxes, where))
            if not near:
                continue
            for two in new_pieces:
                if one.verdict is not two.verdict and (change := self._change(one, two, near)):
                    yield change

    def edited(self) -> list[Box]:
        """The flows that an edit could touch: those of every rule that is not as and where it was."""
        zones = self.space.axes["zone"]
        gone = zones.mask(self.old.zones) ^ zones.mask(self.new.zones)
        boxes: list[Box] = [{"zone": gone}] if gone else []
        boxes += _unlike(self.before.guards, self.after.guards, self.old.model.guards, self.new.model.guards)
        boxes += _unlike(
            self.before.rules, self.after.rules, self.old.model.enforced, self.new.model.enforced
        )
        old_in, new_in = self.before.built_in.boxes, self.after.built_in.boxes
        boxes += [b for b in (*old_in, *new_in) if (b in old_in) != (b in new_in)]
        return boxes

    def _change(self, one: Piece, two: Piece, near: Sequence[Box]) -> Change | None:
        for box in meet_all(near, two.boxes):
            escaped = self.engine.escape(box, (*one.covers, *two.covers))
            if escaped is not None:
                return self._replayed(escaped, one, two)
        return None

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


def _unlike(
    old: Sequence[Cover], new: Sequence[Cover], old_entries: Sequence[object], new_entries: Sequence[object]
) -> Iterator[Box]:
    """The boxes of what was added, removed, changed or moved; the longest common run of the rest stays."""
    one = [_essence(cover, entry) for cover, entry in zip(old, old_entries, strict=True)]
    two = [_essence(cover, entry) for cover, entry in zip(new, new_entries, strict=True)]
    for tag, i, j, k, n in SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        if tag != "equal":
            for cover in (*old[i:j], *new[k:n]):
                yield from cover.boxes


def _essence(cover: Cover, entry: object) -> tuple[object, ...]:
    """What decides, without the words that only explain."""
    verdict = getattr(entry, "verdict", None), getattr(entry, "at_most", None)
    boxes = tuple(tuple(sorted(box.items())) for box in cover.boxes)
    return *verdict, getattr(entry, "via", None), boxes
