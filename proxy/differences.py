"""What another state of the files changes: zones, tunnels, people and limits, guards, rules and lists.

Pure: two loaded sites in, rows out. Says what was edited; which *flows* an edit of a policy changes is
`policy.diff`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from proxy.site import Loaded, TunnelFiles

# What a running daemon can take from an edited site file. Whatever else differs is refused, not ignored.
_RELOADABLE = frozenset(
    {"file", "policy", "zones", "tunnels", "people", "listeners", "max_flows", "max_names"}
)


@dataclass(frozen=True, slots=True)
class Change:
    """`how` is `added`, `removed`, `changed` or `moved`."""

    how: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.how} {self.kind} {self.name}"


def differences(old: Loaded, new: Loaded) -> tuple[Change, ...]:
    """Every difference, in the order of the files."""
    found: list[Change] = []
    for kind, named in _KINDS.items():
        found += _of_kind(kind, named(old), named(new))
    before, after = _certificates(old), _certificates(new)
    both = before.keys() & after.keys()
    found += [
        Change("changed", "certificate of tunnel", name)
        for name in after
        if name in both and before[name] != after[name]
    ]
    for kind, entries in _ORDERED.items():
        found += _moved(kind, list(entries(old)), list(entries(new)))
    if not found and old.policy.hash != new.policy.hash:
        found.append(Change("changed", "policy", "in its words alone"))
    return tuple(found)


def not_reloadable(old: Loaded, new: Loaded) -> list[str]:
    """The keys of the site file that differ and that only a new daemon can take."""
    return [
        field.name
        for field in fields(old.site)
        if field.name not in _RELOADABLE and getattr(old.site, field.name) != getattr(new.site, field.name)
    ]


def changed_tunnels(old: Loaded, new: Loaded) -> set[str]:
    """Tunnels that are not there any more, or not what they were.

    Certificates are followed while they are in use (see `renewal`); the keys of packet tunnels are not.
    """
    return {name for name in old.site.tunnels if _tunnels(old)[name] != _tunnels(new).get(name)}


def _tunnels(loaded: Loaded) -> Mapping[str, object]:
    return {
        name: (tunnel, None if name in _certificates(loaded) else loaded.files[name])
        for name, tunnel in loaded.site.tunnels.items()
    }


def _certificates(loaded: Loaded) -> Mapping[str, object]:
    return {name: files for name, files in loaded.files.items() if isinstance(files, TunnelFiles)}


def _entries(attribute: str, key: str) -> Callable[[Loaded], Mapping[str, object]]:
    """Things of a policy that have a name, without the place at which they stand."""

    def named(loaded: Loaded) -> Mapping[str, object]:
        return {getattr(one, key): _essence(one) for one in getattr(loaded.policy.model, attribute)}

    return named


def _essence(entry: Any) -> tuple[object, ...]:
    return tuple(getattr(entry, field.name) for field in fields(entry) if field.name != "at")


def _words(attribute: str) -> Callable[[Loaded], Mapping[str, object]]:
    return lambda loaded: dict.fromkeys(getattr(loaded.policy.model, attribute))


_KINDS: Mapping[str, Callable[[Loaded], Mapping[str, object]]] = {
    "zone": lambda loaded: loaded.site.zones,
    "tunnel": _tunnels,
    "person": lambda loaded: _people(loaded),
    "listener": lambda loaded: loaded.site.listeners,
    "limit": lambda loaded: {"flows": loaded.site.max_flows, "names": loaded.site.max_names},
    "roots under": lambda loaded: {"trust": loaded.trust},
    "policy": lambda loaded: {
        "file": loaded.site.policy,
        "name": loaded.policy.name,
        "timezone": _zone(loaded),
    },
    "zone of the policy": _words("zones"),
    "group": _words("groups"),
    "tunnel of the policy": _words("tunnels"),
    "posture": _entries("postures", "name"),
    "destination": lambda loaded: _destinations(loaded),
    "window": _entries("windows", "name"),
    "app": _entries("apps", "name"),
    "guard": _entries("guards", "id"),
    "rule": _entries("rules", "id"),
}
_ORDERED: Mapping[str, Callable[[Loaded], Iterable[str]]] = {
    "guard": lambda loaded: (guard.id for guard in loaded.policy.model.guards),
    "rule": lambda loaded: (rule.id for rule in loaded.policy.model.rules),
}


def _destinations(loaded: Loaded) -> Mapping[str, object]:
    """Those that have a name; a place that is written out in a rule is part of the rule."""
    return {
        one.name: one.to
        for one in loaded.policy.model.destinations
        if one.name not in (*one.to.names, *map(str, one.to.networks))
    }


def _people(loaded: Loaded) -> Mapping[str, object]:
    """Rows of the same person add up, so they are one."""
    found: dict[str, list[object]] = {}
    for person in loaded.site.people:
        found.setdefault(person.who, []).append(person)
    return found


def _zone(loaded: Loaded) -> str:
    return str(loaded.policy.model.timezone)


def _of_kind(kind: str, old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[Change]:
    for name in old:
        if name not in new:
            yield Change("removed", kind, name)
        elif old[name] != new[name]:
            yield Change("changed", kind, name)
    for name in new:
        if name not in old:
            yield Change("added", kind, name)


def _moved(kind: str, old: list[str], new: list[str]) -> Iterator[Change]:
    """The first of those that stayed which is not where it was: of rules the first that matches decides."""
    stayed = [name for name in old if name in set(new)]
    for name, before in zip((name for name in new if name in set(old)), stayed, strict=True):
        if name != before:
            yield Change("moved", kind, name)
            return
