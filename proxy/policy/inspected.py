"""Which hosts a policy may ever have looked into: what the inspection CA is bound to.

A flow is inspected only where some rule would let it go and something in play asks for what is in its
requests. So what is granted is met with what asks; the answer may be wider than what is ever inspected and
is never narrower.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from proxy.addresses import IPNetwork
from proxy.flow import Verdict
from proxy.policy.model import REQUEST_ATTRIBUTES, Entry, Guard, Match, Model, To
from proxy.policy.values import domain_matches


@dataclass(frozen=True, slots=True)
class Scope:
    """Hosts: domain patterns and networks. None is no bound: any host."""

    names: tuple[str, ...] | None
    networks: tuple[IPNetwork, ...] | None

    def __bool__(self) -> bool:
        return self.names != () or self.networks != ()


def inspected(model: Model, zones: Collection[str]) -> Scope:
    """The hosts that may be inspected in any of `zones`."""
    names: dict[str, None] = {}
    networks: dict[IPNetwork, None] = {}
    for to in _places(model, zones):
        if to is None:
            return Scope(None, None)
        names |= dict.fromkeys(to.names)
        networks |= dict.fromkeys(to.networks)
    return Scope(tuple(sorted(names)), tuple(sorted(networks, key=lambda n: (n.version, n))))


def _places(model: Model, zones: Collection[str]) -> Iterator[To | None]:
    """What is granted, met with what asks before it or above it; None is everywhere."""
    asking: list[To | None] = [guard.match.to for guard in model.guards if _asks(guard)]
    asking += [destination.to for destination in model.destinations if destination.scan]
    for rule in model.enforced:
        if rule.verdict is Verdict.BLOCK or not _concerns(rule.match, zones):
            asking += [rule.match.to] if _asks(rule) else []
            continue
        if _asks(rule):
            asking.append(rule.match.to)
            yield rule.match.to
            continue
        for to in asking:
            yield _meet(rule.match.to, to)


def _asks(entry: Entry) -> bool:
    matches = [entry.match, *([entry.unless] if isinstance(entry, Guard) and entry.unless else [])]
    return any(REQUEST_ATTRIBUTES & set(match.attributes()) for match in matches)


def _concerns(match: Match, zones: Collection[str]) -> bool:
    return match.zone is None or any(zone in match.zone for zone in zones)


def _meet(granted: To | None, asking: To | None) -> To | None:
    """The hosts of both. One that is asked about by its address may be granted by any name."""
    if granted is None or asking is None:
        return asking if granted is None else granted
    if asking.networks:
        names = granted.names
    else:
        names = tuple(n for one in granted.names for two in asking.names if (n := narrower(one, two)))
    networks = [_narrower(one, two) for one in granted.networks for two in asking.networks]
    return To(names, tuple(network for network in networks if network))


def meet(one: To, two: To) -> bool:
    """Whether two places have a host in common: a name that matches both, or an address."""
    return any(narrower(a, b) for a in one.names for b in two.names) or any(
        _narrower(a, b) for a in one.networks for b in two.networks
    )


def narrower(one: str, two: str) -> str:
    """What two domain patterns have in common; "" where that is nothing."""
    for wide, narrow in ((one, two), (two, one)):
        if wide == narrow or (wide.startswith("*.") and domain_matches(wide, narrow.removeprefix("*."))):
            return narrow
    return ""


def _narrower(one: IPNetwork, two: IPNetwork) -> IPNetwork | None:
    if one.version != two.version or not one.overlaps(two):
        return None
    return one if one.prefixlen >= two.prefixlen else two
