"""An example flow without what its answer does not need, so that a reader sees what it turns on.

A proof names every fact of a flow; most of them are whatever came first. What is left out is not known,
and the judge must still settle the flow in the same way: so it holds for every value of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from proxy.flow import NEVER, UNKNOWN, Flow, Missing, Protocol
from proxy.policy.facts import ANYBODY
from proxy.policy.model import Match

# What a fact is where it is not said, as `make_situation` has it. A size alone would say nothing.
_UNSAID: tuple[Mapping[str, Any], ...] = (
    {"transfer": UNKNOWN, "size": UNKNOWN},
    {"content_type": UNKNOWN},
    {"path": UNKNOWN},
    {"method": UNKNOWN},
    {"device": NEVER},
    {"user": ANYBODY},
    {"address": NEVER},
)
# What comes first of all that is not HTTP over TCP, and is seldom what is meant, is QUIC.
_TCP: Mapping[str, Any] = {
    "protocol": Protocol.TCP, "transport": Protocol.TCP,
    "method": NEVER, "path": NEVER, "content_type": NEVER,
}  # fmt: skip
_FIELDS = {"group": "groups", "posture": "postures", "to": "address"}


def make_plain(flow: Flow, is_same: Callable[[Flow], bool], asked: Collection[Match] = ()) -> Flow:
    """The flow with as few facts as the answer allows, and all that `asked` speaks of."""
    kept = {_FIELDS.get(name, name) for match in asked for name in match.attributes()}
    if flow.protocol is Protocol.QUIC and kept.isdisjoint(_TCP) and is_same(usual := replace(flow, **_TCP)):
        flow = usual
    for less in _UNSAID:
        said = {field: value for field, value in less.items() if not _is_unsaid(flow, field)}
        if kept.isdisjoint(less) and said and is_same(plainer := replace(flow, **said)):
            flow = plainer
    for field in ("groups", "postures"):
        for member in sorted(getattr(flow, field)) if field not in kept else ():
            fewer: Any = {field: getattr(flow, field) - {member}}
            if is_same(plainer := replace(flow, **fewer)):
                flow = plainer
    return flow


def _is_unsaid(flow: Flow, field: str) -> bool:
    """A fact that no flow of its kind has stays so; the address of a nameless flow is all it has."""
    nameless = field == "address" and not isinstance(flow.name, str)
    return nameless or isinstance(getattr(flow, field), Missing)
