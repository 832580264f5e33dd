"""From a model to tables: every test of every rule and guard becomes a bit in the table of its attribute.

The rows, from the lowest bit: what each guard matches, what each guard excepts, the rules that decide in
their order, the rules that are only recorded. A row's bit survives the AND over all attributes where all
its tests hold, so the first matching rule is the lowest bit that is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_

from proxy.addresses import SPECIAL as SPECIAL_RANGES
from proxy.addresses import IPNetwork
from proxy.flow import Because, Flow, Judgement, Missing, Origin, TunnelFact, Verdict
from proxy.policy import model as m
from proxy.policy.dimensions import (
    Always,
    Later,
    Memberships,
    Paths,
    Places,
    Ports,
    Protocols,
    Request,
    Sizes,
    Transfers,
    Tunnels,
    Users,
    Words,
    Zones,
)
from proxy.policy.lines import Line, Names, merged, network_bounds, point, sweep
from proxy.policy.rows import Row
from proxy.policy.windows import is_open, local_minute


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a decision comes to: made once for each rule and guard, handed out for every flow."""

    verdict: Verdict
    judgement: Judgement

    @classmethod
    def of(cls, verdict: Verdict, because: Because) -> Outcome:
        return cls(verdict, Judgement(verdict, because))


def gate_outcome(identity: str, text: str) -> Outcome:
    """A block that no rule states: one of the built-in reasons."""
    return Outcome.of(Verdict.BLOCK, Because(Origin.GATE, identity, text))


DEFAULT = Outcome.of(Verdict.BLOCK, Because(Origin.DEFAULT, "default", "no rule matches"))
REBINDING = gate_outcome(
    m.REBINDING, "the name's address lies in a network that no destination lists with it"
)
SPECIAL = gate_outcome(m.SPECIAL, "a special-purpose address that no destination names")
OWN = gate_outcome(m.OWN, "an address of the gate itself")
NO_TUNNEL = gate_outcome(m.NO_TUNNEL, "the verdict is tunnel and the zone has none")
NO_ADDRESS = gate_outcome(m.NO_ADDRESS, "the address of the destination could not be known")


@dataclass(frozen=True, slots=True)
class Decider:
    """A rule's outcome, and the tunnels that it is for."""

    outcome: Outcome
    via: frozenset[str] | None
    elsewhere: Outcome


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of a piece of the line of addresses before any rule is asked.

    `owners` are the destinations (as bits) whose names may have an address here.
    """

    own: bool
    special: bool
    claimed: bool
    owners: int


class Claims:
    """Rebinding: which addresses belong to a destination, to nobody, or to the gate."""

    def __init__(self, destinations: Iterable[m.Destination], own: Iterable[IPNetwork]) -> None:
        wide: list[tuple[int, int, int]] = []
        narrow: list[tuple[int, int, int]] = []
        listed: dict[str, int] = {}
        self.destinations = tuple(d for d in destinations if d.to.networks)
        for index, destination in enumerate(self.destinations):
            bit = 1 << index
            networks = destination.to.networks
            wide += _pieces(networks, bit)
            narrow += _pieces((n for n in networks if _is_special(n)), bit)
            for name in destination.to.names:
                listed[name] = listed.get(name, 0) | bit
        lines = (
            sweep(_pieces(own, 1), 0),
            sweep(_pieces(SPECIAL_RANGES, 1), 0),
            sweep(wide, 0),
            sweep(narrow, 0),
        )
        starts = tuple(sorted({start for line in lines for start in line.starts}))
        self.line = Line(starts, tuple(_claim(*(line.at(start) for line in lines)) for start in starts))
        self._listed = Names(listed, 0)

    def outcome(self, flow: Flow) -> Outcome | None:
        """The built-in block of a flow whose address is known, None where there is none."""
        if isinstance(flow.address, Missing):
            return None
        return self.outcome_of(self.line.at(point(flow.address)), flow.name)

    def outcome_of(self, claim: Claim, name: str | Missing) -> Outcome | None:
        """The built-in block of a name, or of no name, at a piece of the line."""
        if claim.own:
            return OWN
        if not isinstance(name, str):
            return SPECIAL if claim.special and not claim.owners else None
        if not claim.claimed or claim.owners & self._listed.at(name):
            return None
        return REBINDING


def _claim(own: int, special: int, wide: int, narrow: int) -> Claim:
    owners = narrow if special else wide
    return Claim(bool(own), bool(special), bool(special or wide), owners)


def _is_special(network: IPNetwork) -> bool:
    bounds = network_bounds(network)
    spans = map(network_bounds, SPECIAL_RANGES)
    return any(span.low <= bounds.low and bounds.high <= span.high for span in spans)


def _pieces(networks: Iterable[IPNetwork], bit: int) -> list[tuple[int, int, int]]:
    return [(b.low, b.high, bit) for b in merged(map(network_bounds, networks))]


class Times:
    """Windows and expiry. The answer for one minute is kept, since flows come in their order."""

    name = "window"

    def __init__(self, rows: tuple[Row, ...], model: m.Model, grants: dict[int, m.Rule]) -> None:
        self._timezone = model.timezone
        self._base = reduce(or_, (row.bit for row in rows if row.match.window is None), 0)
        self._windows = [
            (
                window,
                reduce(or_, (r.bit for r in rows if r.match.window and window.name in r.match.window), 0),
            )
            for window in model.windows
        ]
        self._expiring = [(rule.expires, bit) for bit, rule in grants.items() if rule.expires]
        self._kept: tuple[int, int] = (-1, 0)

    @property
    def is_needed(self) -> bool:
        return bool(self._expiring) or any(bits for _, bits in self._windows)

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int:
        minute = int(flow.at.timestamp() // 60)
        kept, bits = self._kept
        if minute != kept:
            bits = self._bits(flow)
            self._kept = (minute, bits)
        return bits

    def _bits(self, flow: Flow) -> int:
        minute, day = local_minute(flow.at, self._timezone)
        bits = self._base
        for window, rows in self._windows:
            if rows and is_open(window, minute):
                bits |= rows
        for last_day, row in self._expiring:
            if day > last_day:
                bits &= ~row
        return bits


@dataclass(frozen=True, slots=True)
class Tables:
    """A compiled policy. Guards lie at the lowest bits, so that a rule is found by one shift."""

    guards: tuple[m.Guard, ...]
    rules: tuple[m.Rule, ...]
    reports: tuple[m.Rule, ...]
    full: int
    always: tuple[Always, ...]
    later: tuple[Later, ...]
    transfers: Transfers
    sizes: Sizes
    claims: Claims
    deciders: tuple[Decider, ...]
    ceilings: tuple[Outcome, ...]
    block_guards: int

    def decide(self, bits: int, tunnel: TunnelFact | None) -> Outcome:
        """The strictest of the first matching rule and every guard that bites. Built-ins come later."""
        width = len(self.guards)
        rules = bits >> (2 * width)
        index = (rules & -rules).bit_length() - 1
        decided = False
        outcome = DEFAULT
        if 0 <= index < len(self.deciders):
            decider = self.deciders[index]
            outcome, decided = decider.outcome, True
            if decider.via is not None and (tunnel is None or tunnel.name not in decider.via):
                outcome, decided = decider.elsewhere, False
        if width and not (decided and outcome.verdict is Verdict.BLOCK):
            mask = (1 << width) - 1
            bites = bits & mask & ~(bits >> width)
            if blocks := bites & self.block_guards:
                return self.ceilings[(blocks & -blocks).bit_length() - 1]
            if bites and outcome.verdict is Verdict.DIRECT:
                outcome = self.ceilings[(bites & -bites).bit_length() - 1]
        if outcome.verdict is Verdict.TUNNEL and tunnel is None:
            return NO_TUNNEL
        return outcome


def compile_model(model: m.Model, own: Iterable[IPNetwork] = ()) -> Tables:
    """The tables of a model. `own` are the gate's own addresses, to which nothing may lead."""
    guards, rules, reports = model.guards, model.enforced, model.reported
    width = len(guards)
    shift = 2 * width
    rows = [Row(1 << i, guard.match, grants=False) for i, guard in enumerate(guards)]
    rows += [
        Row(1 << (width + i), guard.unless, grants=True)
        for i, guard in enumerate(guards)
        if guard.unless is not None
    ]
    granting: dict[int, m.Rule] = {}
    for i, rule in enumerate((*rules, *reports)):
        grants = rule.verdict is not Verdict.BLOCK
        rows.append(Row(1 << (shift + i), rule.match, grants))
        if grants:
            granting[1 << (shift + i)] = rule
    always, later, transfers, sizes = _dimensions(tuple(rows), model, granting)
    return Tables(
        guards=guards,
        rules=rules,
        reports=reports,
        full=reduce(or_, (row.bit for row in rows), 0),
        always=always,
        later=later,
        transfers=transfers,
        sizes=sizes,
        claims=Claims(model.destinations, own),
        deciders=tuple(map(_decider, rules)),
        ceilings=tuple(Outcome.of(guard.at_most, guard.reason) for guard in guards),
        block_guards=reduce(or_, (1 << i for i, g in enumerate(guards) if g.at_most is Verdict.BLOCK), 0),
    )


def _decider(rule: m.Rule) -> Decider:
    via = frozenset(rule.via) if rule.via is not None else None
    text = f"rule {rule.id} goes via {', '.join(rule.via or ())} only"
    elsewhere = Outcome.of(Verdict.BLOCK, Because(Origin.GATE, m.VIA, text, str(rule.at)))
    return Decider(Outcome.of(rule.verdict, rule.reason), via, elsewhere)


def _dimensions(
    rows: tuple[Row, ...], model: m.Model, granting: dict[int, m.Rule]
) -> tuple[tuple[Always, ...], tuple[Later, ...], Transfers, Sizes]:
    """The tables of every attribute that some row tests: those always known, and those known later."""
    used = {attribute for row in rows for attribute in row.match.attributes()}
    times = Times(rows, model, granting)
    always: list[Always] = [Zones(rows, model.zones)]
    if times.is_needed:
        always.append(times)
    known: dict[str, Always] = {
        "user": Users(rows),
        "group": Memberships(rows, "group", lambda flow: flow.groups),
        "posture": Memberships(rows, "posture", lambda flow: flow.postures),
        "port": Ports(rows),
        "tunnel": Tunnels(rows),
    }
    later: dict[str, Later] = {
        "to": Places(rows),
        "device": Words(rows, "device", lambda flow: flow.device),
        "protocol": Protocols(rows),
        "method": Request(Words(rows, "method", lambda flow: flow.method)),
        "path": Request(Paths(rows)),
        "content_type": Request(Words(rows, "content_type", _media_type)),
        "transfer": (transfers := Transfers(rows)),
        "size": (sizes := Sizes(rows)),
    }
    always += [dimension for name, dimension in known.items() if name in used]
    return tuple(always), tuple(d for name, d in later.items() if name in used), transfers, sizes


def _media_type(flow: Flow) -> str | Missing:
    """The media type alone: lower case, without parameters (RFC 9110 section 8.3.1)."""
    value = flow.content_type
    return value if isinstance(value, Missing) else value.partition(";")[0].strip().lower()
