"""What a destination asks beside a verdict: what is looked for in what goes there, how much may go, and that
it is never looked into.

Scans and quotas only ever take away. What goes to a place that scans is inspected, and where it cannot be it
does not go: that part is a guard, so that tests and proofs know it without knowing scans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from proxy.flow import Flow, Missing, Protocol, Verdict
from proxy.policy.inspected import meet, narrower
from proxy.policy.lines import Names, merged, network_bounds, point, sweep
from proxy.policy.model import (
    MAX_SIZE,
    REQUEST_ATTRIBUTES,
    Destination,
    Entry,
    Guard,
    Match,
    Model,
    Rule,
    Scan,
    To,
)
from proxy.policy.reading import Reading

SCAN = "scan:"  # begins the id of a guard that a scanned destination implies
_CARRIED = frozenset({"transfer", "size"})
_SCANNED = (Protocol.HTTP, Protocol.HTTPS)


class Duties:
    """What the destinations of a policy ask, by the name or the address of a flow."""

    def __init__(self, destinations: Sequence[Destination]) -> None:
        self._asking = tuple(d for d in destinations if d.scan or d.quotas or d.opaque)
        names: dict[str, int] = {}
        networks: list[tuple[int, int, int]] = []
        for i, destination in enumerate(self._asking):
            for pattern in destination.to.names:
                names[pattern] = names.get(pattern, 0) | 1 << i
            bounds = merged(map(network_bounds, destination.to.networks))
            networks += [(b.low, b.high, 1 << i) for b in bounds]
        self._names, self._addresses = Names(names, 0), sweep(networks, 0)

    def __bool__(self) -> bool:
        return bool(self._asking)

    def of(self, flow: Flow) -> Iterator[Destination]:
        """The destinations that a flow goes to: by its name, and by its address where that is known."""
        bits = self._names.at(flow.name) if isinstance(flow.name, str) else 0
        if not isinstance(flow.address, Missing):
            bits |= self._addresses.at(point(flow.address))
        return (destination for i, destination in enumerate(self._asking) if bits >> i & 1)

    def scan(self, flow: Flow) -> Scan | None:
        """All that is looked for in a flow; None where nothing is."""
        scans = [destination.scan for destination in self.of(flow) if destination.scan]
        if not scans:
            return None
        block = tuple(dict.fromkeys(pattern for scan in scans for pattern in scan.block))
        report = dict.fromkeys(pattern for scan in scans for pattern in scan.report if pattern not in block)
        return Scan(block, tuple(report))


def scan_guard(destination: Destination) -> Guard | None:
    """What cannot be scanned does not go where something is searched for; None where nothing is."""
    if destination.scan is None or not destination.scan.block:
        return None
    return Guard(
        id=f"{SCAN}{destination.name}",
        match=Match(to=destination.to),
        at=destination.at,
        because=f"what goes to {destination.name} is scanned, and only http and https can be",
        owner="",
        expires=None,
        unless=Match(protocol=_SCANNED),
        at_most=Verdict.BLOCK,
        implied=True,
    )


def unseen(model: Model, zone: str) -> list[Destination]:
    """Destinations of which the duties cannot be kept for named flows of a zone whose addresses nobody here
    learns: they have networks, and the zone may also go to names that they do not list."""
    granted = [
        rule.match.to
        for rule in model.enforced
        if rule.verdict is not Verdict.BLOCK and (rule.match.zone is None or zone in rule.match.zone)
    ]
    return [
        destination
        for destination in model.destinations
        if (destination.scan or destination.quotas or destination.opaque)
        and destination.to.networks
        and not all(_lists(destination, to) for to in granted)
    ]


def _lists(destination: Destination, granted: To | None) -> bool:
    """Whether every name that is granted is one of the destination's own."""
    return granted is not None and all(
        any(narrower(own, name) == name for own in destination.to.names) for name in granted.names
    )


def check_opaque(reading: Reading, model: Model) -> None:
    """Problems for what would need a look into a flow to a place that is never looked into."""
    opaque = [destination for destination in model.destinations if destination.opaque]
    for destination in opaque:
        for other in model.destinations:
            if other.scan and meet(destination.to, other.to):
                cure = "take its hosts out of one of them"
                text = f'"{destination.name}" is opaque and "{other.name}" is scanned; {cure}'
                reading.problem(destination.at, text)
        for guard in model.guards:
            if (words := _looks_into(guard)) and _reaches(guard, destination):
                cure = "give it a `to` without those hosts"
                _refuse(reading, guard, "guard", words, destination, cure)
        for i, rule in enumerate(model.enforced):
            settled = any(_settles(before, rule, destination) for before in model.enforced[:i])
            if (words := _looks_into(rule)) and _reaches(rule, destination) and not settled:
                cure = f'decide "{destination.name}" in a rule above it, by `to` alone'
                _refuse(reading, rule, "rule", words, destination, cure)


def _refuse(
    reading: Reading, entry: Entry, kind: str, words: frozenset[str], opaque: Destination, cure: str
) -> None:
    asked = f'{", ".join(sorted(words))} of "{opaque.name}"'
    reading.problem(entry.at, f'{kind} "{entry.id}" needs {asked}, which is opaque; {cure}')


def _looks_into(entry: Entry) -> frozenset[str]:
    """What an entry asks of requests. A bound on bytes is kept without a look."""
    matches = [entry.match, *([entry.unless] if isinstance(entry, Guard) and entry.unless else [])]
    found = frozenset(a for match in matches for a in match.attributes()) & REQUEST_ATTRIBUTES
    size = entry.match.size
    bounds = (
        isinstance(entry, Guard)
        and found <= _CARRIED
        and size is not None
        and size.low > 0
        and size.high == MAX_SIZE
    ) and not (entry.unless and REQUEST_ATTRIBUTES & set(entry.unless.attributes()))
    return frozenset() if bounds else found


def _reaches(entry: Entry, destination: Destination) -> bool:
    return entry.match.to is None or meet(entry.match.to, destination.to)


def _settles(before: Rule, rule: Rule, destination: Destination) -> bool:
    """Whether every flow of `rule` to a destination is decided by an earlier rule that asks no requests."""
    match = before.match
    if match.to is None or set(match.attributes()) - {"to", "zone"}:
        return False
    zones = match.zone is None or (rule.match.zone is not None and set(rule.match.zone) <= set(match.zone))
    whole = set(destination.to.names) <= set(match.to.names)
    return zones and whole and set(destination.to.networks) <= set(match.to.networks)
