"""What an edit of a policy changes in what destinations ask beside a verdict: scans, quotas, opacity.

Destinations are compared by their names; one that gets another name is one that is gone and one that is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from proxy.policy.model import MAX_SIZE, Destination, Model
from proxy.policy.reading import size_text

# What has no number has this one.
_GIVEN = 0


@dataclass(frozen=True, slots=True)
class DutyChange:
    """One thing that a destination asks otherwise than before."""

    text: str
    is_looser: bool


def compare_duties(old: Model, new: Model) -> list[DutyChange]:
    """What changed, looser first."""
    before = {destination.name: destination for destination in old.destinations}
    after = {destination.name: destination for destination in new.destinations}
    found = [
        change
        for name in dict.fromkeys((*before, *after))
        for change in _changes(name, before.get(name), after.get(name))
    ]
    words, next_words = ({p.name: set(p.words) for p in model.patterns} for model in (old, new))
    for name in words.keys() & next_words.keys():
        if fewer := words[name] - next_words[name]:
            found.append(DutyChange(f"pattern {name}: {len(fewer)} words fewer", True))
        if more := next_words[name] - words[name]:
            found.append(DutyChange(f"pattern {name}: {len(more)} words more", False))
    return sorted(found, key=lambda change: (not change.is_looser, change.text))


def _changes(name: str, old: Destination | None, new: Destination | None) -> Iterator[DutyChange]:
    asked, asks = _asked(old), _asked(new)
    for what in sorted(asked.keys() | asks.keys()):
        one, two = asked.get(what, MAX_SIZE), asks.get(what, MAX_SIZE)
        if one == two:
            continue
        bound = f" {size_text(two)}" if _GIVEN < two < MAX_SIZE else ""
        text = f"{name}: no longer {what}" if two == MAX_SIZE else f"{name}: {what}{bound}"
        yield DutyChange(text, (two > one) is not (what == "opaque"))
    if old and new and asked and (fewer := set(_hosts(old)) - set(_hosts(new))):
        yield DutyChange(f"{name}: no longer holds {', '.join(sorted(fewer))}", True)


def _asked(destination: Destination | None) -> Mapping[str, int]:
    """What a destination asks, each with its number; a higher one, and none at all, lets more go."""
    if destination is None:
        return {}
    scan = destination.scan
    found = {f"blocks {name}": _GIVEN for name in (scan.block if scan else ())}
    found |= {f"reports {name}": _GIVEN for name in (scan.report if scan else ())}
    for quota in destination.quotas:
        found[f"{quota.transfer} per {quota.per} every {quota.every} up to"] = max(1, quota.limit_bytes)
    return found | ({"opaque": _GIVEN} if destination.opaque else {})


def _hosts(destination: Destination) -> tuple[str, ...]:
    return (*destination.to.names, *map(str, destination.to.networks))
