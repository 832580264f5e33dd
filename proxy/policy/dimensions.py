"""One table for each attribute: from the fact of a flow to the set of rows whose test it passes.

A set of rows is a big integer, a bit for each. Rows that say nothing of an attribute pass all its tests
(`base`). `look` answers a fact that is known and gives None for one that is not; `spread` then tells
what its values could give.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Protocol as Interface

from proxy.flow import NEVER, UNKNOWN, Flow, Missing, Protocol, Transfer, TunnelFact, TunnelState
from proxy.policy.lines import Line, Names, merged, network_bounds, point, sweep
from proxy.policy.model import MAX_SIZE, TUNNEL_STATES, Bounds, Match, To
from proxy.policy.rows import Row, Spread, rows_by_value, spread_of
from proxy.policy.values import canonical_path

# What a tunnel's state is in the words of a policy: what is not up is down.
STATE_WORDS: Mapping[TunnelState, str] = {
    TunnelState.DOWN: "down",
    TunnelState.CONNECTING: "down",
    TunnelState.REFUSED: "down",
    TunnelState.STALE: "stale",
    TunnelState.ATTESTED: "attested",
}
HTTP = (Protocol.HTTP, Protocol.HTTPS, Protocol.QUIC)  # which carries HTTP/3, and nobody looks into it


def may_be_http(flow: Flow) -> bool:
    """Whether requests can still turn up in a flow."""
    return isinstance(flow.protocol, Missing) or flow.protocol in HTTP


class Always(Interface):
    """An attribute that every flow has from the start."""

    name: str

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int: ...


class Later(Interface):
    """An attribute that may be missing: then `look` gives None, and `spread` what it could be."""

    name: str

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int | None: ...

    def spread(self, flow: Flow) -> Spread: ...


class Zones:
    """A zone that the policy does not define passes nothing at all."""

    name = "zone"

    def __init__(self, rows: Sequence[Row], zones: Iterable[str]) -> None:
        base, found = rows_by_value(rows, self.name)
        self._table = {zone: found.get(zone, base) for zone in zones}

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int:
        return self._table.get(flow.zone, 0)


class Users:
    name = "user"

    def __init__(self, rows: Sequence[Row]) -> None:
        self._base, self._table = rows_by_value(rows, self.name)

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int:
        return self._table.get(flow.user, self._base)


class Memberships:
    """Groups and postures: a flow has several, and a row passes by any of them."""

    def __init__(self, rows: Sequence[Row], name: str, get: Callable[[Flow], frozenset[str]]) -> None:
        self.name, self._get = name, get
        self._base, self._table = rows_by_value(rows, name)

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int:
        bits = self._base
        for member in self._get(flow):
            bits |= self._table.get(member, 0)
        return bits


class Tunnels:
    name = "tunnel"

    def __init__(self, rows: Sequence[Row]) -> None:
        self._base, found = rows_by_value(rows, self.name)
        self._states = {word: found.pop(word, self._base) for word in TUNNEL_STATES}
        self._names = found  # a tunnel that is called like a state is not in that state

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int:
        if tunnel is None:
            return self._base
        return self._states[STATE_WORDS[tunnel.state]] | self._names.get(tunnel.name, 0)


class Words:
    """An attribute with free words: a device, a method, a media type (with `type/*`)."""

    def __init__(self, rows: Sequence[Row], name: str, get: Callable[[Flow], str | Missing]) -> None:
        self.name, self._get = name, get
        self.base, self._table = rows_by_value(rows, name)
        for value in [v for v in self._table if "/" in v and not v.endswith("/*")]:
            self._table[value] |= self._table.get(value.partition("/")[0] + "/*", 0)

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int | None:
        value = self._get(flow)
        if isinstance(value, Missing):
            return self.base if value is NEVER else None
        found = self._table.get(value)
        if found is None and "/" in value:
            found = self._table.get(value.partition("/")[0] + "/*")
        return self.base if found is None else found

    def spread(self, flow: Flow) -> Spread:
        missing = self._get(flow)
        assert isinstance(missing, Missing)
        return spread_of(missing, (self.base, *self._table.values()))


class Protocols:
    name = "protocol"

    def __init__(self, rows: Sequence[Row]) -> None:
        base, found = rows_by_value(rows, self.name)
        self._table = {
            protocol: reduce(or_, (found.get(w, base) for w in Protocol if protocol.is_a(w)), base)
            for protocol in Protocol
        }
        # Made once: of nearly every flow the protocol is not known when it is first judged.
        self._spreads = {
            (missing, transport): spread_of(
                missing, (bits for protocol, bits in self._table.items() if protocol.is_a(transport))
            )
            for missing in Missing
            for transport in Protocol
        }

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int | None:
        return None if isinstance(flow.protocol, Missing) else self._table[flow.protocol]

    def spread(self, flow: Flow) -> Spread:
        assert isinstance(flow.protocol, Missing)
        return self._spreads[flow.protocol, flow.transport]


class Request:
    """A fact of HTTP: never there in another protocol, and perhaps never while that is not known."""

    def __init__(self, within: Words | Paths) -> None:
        self.name, self._within = within.name, within

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int | None:
        if not may_be_http(flow):
            return self._within.base
        return self._within.look(flow, tunnel)

    def spread(self, flow: Flow) -> Spread:
        spread = self._within.spread(flow)
        if not isinstance(flow.protocol, Missing):
            return spread
        return spread_of(spread.missing, (*spread.values, self._within.base))


class Paths:
    """Prefixes by whole segments. A path that can be read in two ways is as good as none."""

    name = "path"

    def __init__(self, rows: Sequence[Row]) -> None:
        self.base, own = rows_by_value(rows, self.name)
        self._table: dict[str, int] = {}
        for path in sorted(own, key=len):
            self._table[path] = own[path] | self._longest(path)

    def _longest(self, path: str) -> int:
        at = path.rstrip("/") or "/"
        while at:
            if (bits := self._table.get(at)) is not None:
                return bits
            at = at.rpartition("/")[0]
        return self._table.get("/", self.base)

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int | None:
        if isinstance(flow.path, Missing):
            return self.base if flow.path is NEVER else None
        path = canonical_path(flow.path)
        return None if path is None else self._longest(path)

    def spread(self, flow: Flow) -> Spread:
        missing = flow.path if isinstance(flow.path, Missing) else Missing.FAILED
        elsewhere = () if "/" in self._table else (self.base,)
        return spread_of(missing, (*elsewhere, *self._table.values()))


def _line(rows: Iterable[Row], get: Callable[[Match], Sequence[Bounds] | None]) -> Line[int]:
    base, by_bounds = 0, defaultdict[tuple[Bounds, ...], int](int)
    for row in rows:
        bounds = get(row.match)
        if bounds is None:
            base |= row.bit
        else:
            by_bounds[tuple(bounds)] |= row.bit
    pieces = [(b.low, b.high, bits) for bounds, bits in by_bounds.items() for b in merged(bounds)]
    return sweep(pieces, base)


class Ports:
    name = "port"

    def __init__(self, rows: Sequence[Row]) -> None:
        self._line = _line(rows, lambda match: match.port)

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int:
        return self._line.at(flow.port)


class Sizes:
    name = "size"

    def __init__(self, rows: Sequence[Row]) -> None:
        self.base = reduce(or_, (row.bit for row in rows if row.match.size is None), 0)
        self.line = _line(rows, lambda match: None if match.size is None else (match.size,))

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int | None:
        size = flow.size
        if isinstance(size, Missing):
            return self.base if size is NEVER else None
        return self.line.at(min(max(size, 0), MAX_SIZE))

    def spread(self, flow: Flow) -> Spread:
        assert isinstance(flow.size, Missing)
        return spread_of(flow.size, self.line.values)


class Transfers:
    name = "transfer"

    def __init__(self, rows: Sequence[Row]) -> None:
        self.base, found = rows_by_value(rows, self.name)
        self.table = {transfer: found.get(transfer, self.base) for transfer in Transfer}

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int | None:
        transfer = flow.transfer
        if isinstance(transfer, Missing):
            return self.base if transfer is NEVER else None
        return self.table[transfer]

    def spread(self, flow: Flow) -> Spread:
        assert isinstance(flow.transfer, Missing)
        return spread_of(flow.transfer, self.table.values())


class Places:
    """`to`: a grant matches a named flow by its name and a nameless one by its address; what blocks
    matches by either."""

    name = "to"

    def __init__(self, rows: Sequence[Row]) -> None:
        base, names = 0, defaultdict[str, int](int)
        networks: list[tuple[int, int, int]] = []
        places: dict[int, tuple[To, int]] = {}  # rows share the value of a named destination
        for row in rows:
            to = row.match.to
            if to is None:
                base |= row.bit
            else:
                places[id(to)] = (to, places.get(id(to), (to, 0))[1] | row.bit)
        for to, bits in places.values():
            for pattern in to.names:
                names[pattern] |= bits
            bounds = merged(map(network_bounds, to.networks))
            networks += [(b.low, b.high, bits) for b in bounds]
        self._names = Names(names, base)
        self._addresses = sweep(networks, base)
        strict = reduce(or_, (row.bit for row in rows if not row.grants), 0)
        # the rows that an address can add to a named flow
        self._strict = strict & reduce(or_, self._addresses.values) & ~base
        self._additions = tuple(dict.fromkeys(bits & self._strict for bits in self._addresses.values))

    def look(self, flow: Flow, tunnel: TunnelFact | None) -> int | None:
        name, address = flow.name, flow.address
        if isinstance(name, str):
            bits = self._names.at(name)
            if address is NEVER or not self._strict & ~bits:
                return bits
            if isinstance(address, Missing):
                return None
            return bits | (self._addresses.at(point(address)) & self._strict)
        return None if isinstance(address, Missing) else self._addresses.at(point(address))

    def spread(self, flow: Flow) -> Spread:
        missing = flow.address if isinstance(flow.address, Missing) else UNKNOWN
        if isinstance(flow.name, str):
            named = self._names.at(flow.name)
            return spread_of(missing, (named | bits for bits in self._additions))
        return spread_of(missing, self._addresses.values)
