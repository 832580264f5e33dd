"""The space of all flows, cut into finitely many classes that no rule can tell apart inside.

Each attribute is a dimension; a set of its classes is a big integer, a bit for each. The classes of names
and paths lie in tree order and those of addresses, ports and sizes in number order, so that whatever one
rule says is a few runs of neighbours. Every class has an example, so that every answer about classes can
be shown as a flow and asked of the judge again. Lower classes make the plainer examples.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from proxy.flow import NEVER, Flow, Protocol, Transfer, TunnelFact, TunnelState
from proxy.policy.axes import (
    Axis,
    address_axis,
    line_axis,
    media_axis,
    member_axis,
    name_axis,
    path_axis,
    protocol_axis,
    time_axis,
    unique,
    words_axis,
)
from proxy.policy.facts import PORTS
from proxy.policy.model import MAX_SIZE, TUNNEL_STATES, Bounds, Match, Model

_STATES = {
    "attested": TunnelState.ATTESTED,
    "stale": TunnelState.STALE,
    "down": TunnelState.DOWN,
}
_METHODS = ("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH")
NONE = "(none)"


class Space:
    """The dimensions of some models and of what else is asked about them."""

    def __init__(self, models: Sequence[Model], more: Iterable[Match] = ()) -> None:
        matches = [*more]
        for model in models:
            matches += [e.match for e in (*model.guards, *model.rules)]
            matches += [g.unless for g in model.guards if g.unless is not None]
        self.matches = matches
        self.models = tuple(models)
        axes = [
            words_axis("zone", [z for m in models for z in m.zones], None),
            words_axis("user", self._values("user"), "somebody"),
            words_axis("device", self._values("device"), NEVER),
            name_axis(matches, models),
            address_axis(matches, models),
            line_axis("port", self._values("port"), 0, 65535),
            protocol_axis(),
            time_axis(models),
            self._tunnels(),
            words_axis("method", self._values("method"), self._other_method(), never=True),
            path_axis(self._values("path")),
            media_axis(self._values("content_type")),
            Axis("transfer", (NEVER, *Transfer), {t: 2 << i for i, t in enumerate(Transfer)}),
            line_axis("size", self._values("size"), 0, MAX_SIZE, never=True),
        ]
        axes += [member_axis("group", name) for name in unique(self._values("group"))]
        axes += [member_axis("posture", name) for name in unique(self._values("posture"))]
        self.axes = {axis.name: axis for axis in axes}
        self.order = tuple(self.axes)

    def _values(self, attribute: str) -> list[Any]:
        found: list[Any] = []
        for match in self.matches:
            value = getattr(match, attribute)
            if value is not None:
                found += [value] if isinstance(value, Bounds) else value
        return found

    def _other_method(self) -> str:
        return next(m for m in (*_METHODS, "X-OTHER") if m not in self._values("method"))

    def _tunnels(self) -> Axis:
        vias = [name for model in self.models for rule in model.rules for name in rule.via or ()]
        names = [n for n in unique([*self._values("tunnel"), *vias]) if n not in TUNNEL_STATES]
        taken = set(names)
        other = next(n for n in ("tunnel", *(f"tunnel-{i}" for i in range(len(names) + 1))) if n not in taken)
        examples = [TunnelFact(name, state) for state in _STATES.values() for name in (*names, other)]
        classes: dict[Any, int] = {}
        for i, fact in enumerate(examples):
            word = next(word for word, state in _STATES.items() if state is fact.state)
            classes[word] = classes.get(word, 0) | 1 << i
            classes[fact.name] = classes.get(fact.name, 0) | 1 << i
        classes[NONE] = 1 << len(examples)
        return Axis("tunnel", (*examples, None), classes)

    def flow(self, box: Mapping[str, int]) -> tuple[Flow, TunnelFact | None]:
        """An example flow of a box, and its tunnel."""
        at = {name: self._example(name, box) for name in self.order}
        members = {kind: self._members(kind, box) for kind in ("group", "posture")}
        protocol: Protocol = at["protocol"]
        flow = Flow(
            zone=at["zone"],
            user=at["user"],
            port=self._port(protocol, box),
            at=at["window"],
            groups=members["group"],
            device=at["device"],
            postures=members["posture"],
            name=at["name"],
            address=at["address"],
            protocol=protocol,
            transport=_transport(protocol),
            method=at["method"],
            path=at["path"],
            content_type=at["content_type"],
            transfer=at["transfer"],
            size=at["size"],
        )
        return flow, at["tunnel"]

    def _example(self, name: str, box: Mapping[str, int]) -> Any:
        axis = self.axes[name]
        mask = box.get(name, axis.full)
        return axis.examples[(mask & -mask).bit_length() - 1]

    def _members(self, kind: str, box: Mapping[str, int]) -> frozenset[str]:
        found = (name.partition(":") for name in self.order)
        return frozenset(
            member for k, _, member in found if k == kind and member and self._example(f"{k}:{member}", box)
        )

    def _port(self, protocol: Protocol, box: Mapping[str, int]) -> int:
        """The usual port of a protocol where it is in the box, else any that is."""
        axis = self.axes["port"]
        usual = PORTS.get(protocol, 443)
        index = bisect_right(axis.examples, usual) - 1
        example: int = self._example("port", box)
        return usual if box.get("port", axis.full) >> index & 1 else example


def _transport(protocol: Protocol) -> Protocol:
    while (parent := protocol.parent) is not None:
        protocol = parent
    return protocol
