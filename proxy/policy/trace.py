"""The way to a verdict, for people: what each guard and rule met and on which attribute it missed.

It is read off the same tables that decided; nothing is evaluated a second time in another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from proxy.flow import Flow, TunnelFact
from proxy.policy.compile import Tables
from proxy.policy.dimensions import Later


def trace(tables: Tables, flow: Flow, tunnel: TunnelFact | None) -> Iterator[str]:
    """A line for each guard and each rule up to the first that matches for certain."""
    bits = _all_bounds(tables, flow, tunnel)
    width = len(tables.guards)
    for i, guard in enumerate(tables.guards):
        matches, why = _state(bits, 1 << i)
        if matches is False:
            yield f"guard {guard.id}: does not apply, {why}"
            continue
        if guard.unless is not None:
            excepted, unless_why = _state(bits, 1 << (width + i))
            if excepted:
                yield f"guard {guard.id}: lifted by its exception"
                continue
            if excepted is None:
                matches, why = None, unless_why
        verb = "caps at" if matches else "may cap at"
        yield f"guard {guard.id}: {verb} {guard.at_most.name.lower()}{f', {why}' if matches is None else ''}"
    for i, rule in enumerate(tables.rules):
        matches, why = _state(bits, 1 << (2 * width + i))
        if matches:
            yield f"rule {rule.id}: matches, {rule.verdict.name.lower()}"
            return
        yield f"rule {rule.id}: {'passed over' if matches is False else 'may match'}, {why}"
    yield "no rule matches: block"


def reports(tables: Tables, flow: Flow, tunnel: TunnelFact | None) -> Iterator[str]:
    """What each rule in report mode that matches would have said; undetermined where a fact is missing."""
    bits = _all_bounds(tables, flow, tunnel)
    first = 2 * len(tables.guards) + len(tables.rules)
    for i, rule in enumerate(tables.reports):
        matches, _ = _state(bits, 1 << (first + i))
        if matches is not False:
            yield f"{rule.id}: {rule.verdict.name.lower() if matches else 'undetermined'}"


type _Bounds = tuple[int, int]


def _all_bounds(tables: Tables, flow: Flow, tunnel: TunnelFact | None) -> dict[str, _Bounds]:
    """For each attribute, the rows that pass for certain and those that may."""
    found = {d.name: (bits, bits) for d in tables.always for bits in (d.look(flow, tunnel),)}
    return found | {d.name: _bounds(d, flow, tunnel) for d in tables.later}


def _bounds(dimension: Later, flow: Flow, tunnel: TunnelFact | None) -> _Bounds:
    bits = dimension.look(flow, tunnel)
    if bits is not None:
        return bits, bits
    spread = dimension.spread(flow)
    return spread.sure, spread.maybe


def _state(bits: Mapping[str, _Bounds], row: int) -> tuple[bool | None, str]:
    """Whether a row matches (None: that is open), and the attributes on which it misses or waits."""
    missed = [name for name, (_, maybe) in bits.items() if not maybe & row]
    if missed:
        return False, f"missed on {', '.join(missed)}"
    waiting = [name for name, (sure, _) in bits.items() if not sure & row]
    if waiting:
        return None, f"waits for {', '.join(waiting)}"
    return True, ""
