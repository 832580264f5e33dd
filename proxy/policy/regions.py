"""What each rule and guard covers of the space of flows, as boxes; and a policy as a list of pieces.

A box is a set of classes for some dimensions and everything in the others. A piece is a part of the space
that gets one verdict for one reason: its boxes, less what comes before it. The pieces of a policy cover
the space, so any question about all flows is a question about boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import or_

from proxy.flow import NEVER, Because, Origin, Verdict
from proxy.policy import compile as c
from proxy.policy.dimensions import HTTP
from proxy.policy.lines import network_bounds, point
from proxy.policy.model import Guard, Match, Model, Rule, To
from proxy.policy.space import NONE, Space

type Box = Mapping[str, int]

# Attributes whose test is one set of classes of the dimension of the same name.
_PLAIN = ("user", "device", "port", "protocol", "method", "path", "content_type", "transfer")


@dataclass(frozen=True, slots=True)
class Cover:
    """Boxes that belong to one rule, guard or built-in reason, to be left out.

    `names` are the classes of names that any of the boxes holds (-1: all): most rules are told apart
    by it at once.
    """

    because: Because
    boxes: tuple[Box, ...]
    names: int = -1


@dataclass(frozen=True, slots=True)
class Piece:
    """The flows in `boxes` and outside every cover: they get one verdict for one reason.

    `rule` is the number of the rule that decides there or is capped, None where it is none.
    """

    verdict: Verdict
    because: Because
    boxes: tuple[Box, ...]
    covers: tuple[Cover, ...]
    via: tuple[str, ...] | None = None
    rule: int | None = None


def _cover(because: Because, boxes: tuple[Box, ...]) -> Cover:
    return Cover(because, boxes, names_of(boxes))


def names_of(boxes: Iterable[Box]) -> int:
    """The classes of names that any of the boxes holds, -1 for all."""
    return reduce(or_, (box.get("name", -1) for box in boxes), 0)


def key_of(box: Box) -> frozenset[tuple[str, int]]:
    """What is equal for equal boxes, and can be a key."""
    return frozenset(box.items())


def meet(a: Box, b: Box) -> Box | None:
    """What two boxes share, None where that is nothing."""
    found = dict(a)
    for name, mask in b.items():
        mask &= found.get(name, mask)
        if not mask:
            return None
        found[name] = mask
    return found


def disjoint(a: Box, b: Box) -> bool:
    """Whether two boxes share nothing."""
    for name, mask in b.items():  # noqa: SIM110  # the innermost loop of every proof
        if name in a and not a[name] & mask:
            return True
    return False


def meet_all(*many: Iterable[Box]) -> Iterator[Box]:
    """What one box of each shares, for every choice."""
    for chosen in product(*many):
        box: Box | None = {}
        for part in chosen:
            box = meet(box, part) if box is not None else None
        if box is not None:
            yield box


class Regions:
    """The boxes of one model in a space, which may be cut for other models too."""

    def __init__(self, space: Space, index: int = 0) -> None:
        self.space, self.index = space, index
        self.model: Model = space.models[index]
        self.none = space.axes["name"].classes[NEVER]
        self.impossible = Cover(Because(Origin.GATE, "impossible"), tuple(self._impossible()))
        self.built_in = Cover(c.REBINDING.judgement.because, tuple(self._built_in()))
        self.rules = tuple(_cover(r.reason, tuple(self.of_rule(r))) for r in self.model.enforced)
        self.guards = tuple(Cover(g.reason, tuple(self.of_guard(g))) for g in self.model.guards)

    def _mask(self, axis: str, values: Iterable[object]) -> int:
        return self.space.axes[axis].mask(values)

    def _not(self, axis: str, mask: int) -> int:
        return self.space.axes[axis].full & ~mask

    def of_match(self, match: Match, *, grants: bool) -> Iterator[Box]:
        """The flows that match. Zones that the model does not define match nothing."""
        return meet_all(*(parts for parts, _ in self._tests(match, grants)))

    def outside(self, match: Match, *, grants: bool) -> Iterator[Box]:
        """The flows that do not match."""
        for _, parts in self._tests(match, grants):
            yield from parts

    def _tests(self, match: Match, grants: bool) -> Iterator[tuple[list[Box], list[Box]]]:
        """For each attribute that is tested, the boxes that pass and the boxes that do not."""
        if match.to is not None:
            yield self._to(match.to, grants)  # first: it tells most rules apart
        zones = self._mask("zone", match.zone if match.zone is not None else self.model.zones)
        yield self._one("zone", zones)
        for name in _PLAIN:
            if (values := getattr(match, name)) is not None:
                yield self._one(name, self._mask(name, values))
        if match.size is not None:
            yield self._one("size", self._mask("size", [match.size]))
        if match.tunnel is not None:
            yield self._one("tunnel", self._mask("tunnel", match.tunnel))
        if match.window is not None:
            yield self._one("window", self._mask("window", [(self.index, name) for name in match.window]))
        for kind in ("group", "posture"):
            if (members := getattr(match, kind)) is not None:
                yield [{f"{kind}:{m}": 2} for m in members], [{f"{kind}:{m}": 1 for m in members}]

    def _one(self, axis: str, mask: int) -> tuple[list[Box], list[Box]]:
        rest = self._not(axis, mask)
        return [{axis: mask}] if mask else [], [{axis: rest}] if rest else []

    def _to(self, to: To, grants: bool) -> tuple[list[Box], list[Box]]:
        names = self._mask("name", to.names)
        addresses = self._mask("address", map(network_bounds, to.networks))
        elsewhere = self._not("address", addresses)
        nameless: Box = {"name": self.none, "address": addresses} if grants else {"address": addresses}
        passing: list[Box] = ([{"name": names}] if names else []) + ([nameless] if addresses else [])
        named = self._not("name", names | self.none)
        if grants:
            failing: list[Box] = [{"name": named}, {"name": self.none, "address": elsewhere}]
        else:
            failing = [{"name": named | self.none, "address": elsewhere}]
        return passing, failing

    def of_rule(self, rule: Rule) -> Iterator[Box]:
        """The flows that a rule matches, when it has not expired."""
        grants = rule.verdict is not Verdict.BLOCK
        for box in self.of_match(rule.match, grants=grants):
            if rule.expires and grants:
                live = self._not("window", self._mask("window", [(self.index, rule.expires)]))
                inside = meet(box, {"window": live}) if live else None
                if inside is not None:
                    yield inside
            else:
                yield box

    def of_guard(self, guard: Guard) -> Iterator[Box]:
        """The flows on which a guard bites."""
        matched = list(self.of_match(guard.match, grants=False))
        if guard.unless is None:
            return iter(matched)
        return meet_all(matched, list(self.outside(guard.unless, grants=True)))

    def _impossible(self) -> Iterator[Box]:
        """What no flow is: nameless without an address, a method in ssh, a size without a direction."""
        yield {"name": self.none, "address": 1}
        http = self._mask("protocol", HTTP)
        never = {name: self._mask(name, [NEVER]) for name in ("method", "path", "content_type")}
        for name, mask in never.items():
            if rest := self._not(name, mask):
                yield {"protocol": self._not("protocol", http), name: rest}
        for name in ("method", "path"):
            yield {"protocol": http, name: never[name]}
        yield {"transfer": 1, "size": self._not("size", 1)}
        yield {"transfer": self._not("transfer", 1), "size": 1}

    def _built_in(self) -> Iterator[Box]:
        """Rebinding, and special-purpose addresses that nobody named."""
        claims = c.Claims(self.model.destinations, ())
        names, addresses = self.space.axes["name"], self.space.axes["address"]
        runs: dict[c.Claim, int] = {}
        for i, address in enumerate(addresses.examples):
            if address is not NEVER:
                claim = claims.line.at(point(address))
                runs[claim] = runs.get(claim, 0) | 1 << i
        for claim, mask in runs.items():
            owners = (d for i, d in enumerate(claims.destinations) if claim.owners >> i & 1)
            exempt = self._mask("name", (name for owner in owners for name in owner.to.names))
            named = names.full & ~self.none & ~exempt if claim.claimed else 0
            nameless = self.none if claim.special and not claim.owners else 0
            if blocked := named | nameless:
                yield {"name": blocked, "address": mask}

    def pieces(self) -> Iterator[Piece]:
        """The whole policy, strictest reasons first."""
        base = (self.impossible,)
        paired = zip(self.guards, self.model.guards, strict=True)
        blocks = [cover for cover, guard in paired if guard.at_most is Verdict.BLOCK]
        ceilings = [g for g in self.guards if g not in blocks]
        for guard in (*blocks, self.built_in):
            yield Piece(Verdict.BLOCK, guard.because, guard.boxes, base)
        stopped = (*base, *blocks, self.built_in)
        tunnels = self.space.axes["tunnel"]
        none = tunnels.classes[NONE]
        for i, (rule, cover) in enumerate(zip(self.model.enforced, self.rules, strict=True)):
            before = self.rules[:i]
            if rule.verdict is Verdict.BLOCK:
                yield Piece(Verdict.BLOCK, rule.reason, cover.boxes, (*base, *before), rule=i)
                continue
            covers = (*stopped, *before)
            if rule.verdict is Verdict.TUNNEL:
                usable = self._mask("tunnel", rule.via) if rule.via else tunnels.full & ~none
                boxes = self._within(cover, "tunnel", usable)
                yield Piece(Verdict.TUNNEL, rule.reason, boxes, covers, rule.via, i)
                rest = self._within(cover, "tunnel", tunnels.full & ~usable)
                yield Piece(Verdict.BLOCK, c.NO_TUNNEL.judgement.because, rest, (*base, *before), rule=i)
                continue
            yield Piece(Verdict.DIRECT, rule.reason, cover.boxes, (*covers, *ceilings), rule=i)
            for guard in ceilings:
                boxes = tuple(meet_all(cover.boxes, guard.boxes))
                for part, verdict in ((tunnels.full & ~none, Verdict.TUNNEL), (none, Verdict.BLOCK)):
                    capped = Cover(guard.because, boxes)
                    within = self._within(capped, "tunnel", part)
                    yield Piece(verdict, guard.because, within, covers, rule=i)
        yield Piece(Verdict.BLOCK, c.DEFAULT.judgement.because, ({},), (*base, *self.rules))

    def _within(self, cover: Cover, axis: str, mask: int) -> tuple[Box, ...]:
        return tuple(meet_all(cover.boxes, [{axis: mask}])) if mask else ()
