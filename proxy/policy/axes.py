"""The dimensions of the space of flows: how the values of each attribute fall into classes.

Every class has an example; a test of the policy is the set of classes that pass it. Lower classes make
the plainer examples.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import reduce
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from operator import or_
from typing import Any

from proxy.addresses import SPECIAL, inner
from proxy.flow import NEVER, Protocol
from proxy.policy.lines import network_bounds
from proxy.policy.model import Bounds, Match, Model
from proxy.policy.values import DAY
from proxy.policy.windows import is_open, local_minute

_V6 = 1 << 32
_END = _V6 + (1 << 128)
_TRANSLATED = ("::ffff:0:0/96", "64:ff9b::/96", "2002::/16", "2001::/32", "::ffff:0:0:0/96")


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension: an example for each class, and the classes that a value of a test stands for."""

    name: str
    examples: tuple[Any, ...]
    classes: Mapping[Any, int]

    @property
    def full(self) -> int:
        return (1 << len(self.examples)) - 1

    def mask(self, values: Iterable[Any]) -> int:
        return reduce(or_, (self.classes.get(value, 0) for value in values), 0)


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def words_axis(name: str, values: Sequence[Any], other: Any, *, never: bool = False) -> Axis:
    words = unique(values)
    examples = [*words] if other is None else [*words, other]
    if never:
        examples.append(NEVER)
    classes: dict[Any, int] = {word: 1 << i for i, word in enumerate(words)}
    if never:
        classes[NEVER] = 1 << (len(examples) - 1)
    return Axis(name, tuple(examples), classes)


def member_axis(kind: str, name: str) -> Axis:
    return Axis(f"{kind}:{name}", (False, True), {True: 2, False: 1})


def protocol_axis() -> Axis:
    order = sorted(Protocol, key=lambda p: p is not Protocol.HTTPS)
    classes = {wide: sum(1 << i for i, p in enumerate(order) if p.is_a(wide)) for wide in Protocol}
    return Axis("protocol", tuple(order), classes)


def name_axis(matches: Iterable[Match], models: Iterable[Model]) -> Axis:
    """Names in tree order, each wildcard with an example strictly below it and below nothing deeper."""
    places = [m.to for m in matches if m.to] + [d.to for m in models for d in m.destinations]
    patterns = unique(pattern for to in places for pattern in to.names)
    taken = {p.removeprefix("*.") for p in patterns}
    fresh = next(
        w for w in ("some", *(f"some{i}" for i in range(9))) if not any(t.startswith(w + ".") for t in taken)
    )
    examples = {p: f"{fresh}.{p[2:]}" if p.startswith("*.") else p for p in patterns}
    order = sorted(unique(examples.values()), key=_labels)
    keys = [_labels(name) for name in order]
    classes: dict[Any, int] = {}
    for pattern in patterns:
        if pattern.startswith("*."):
            base = _labels(pattern[2:])
            low, high = bisect_left(keys, (*base, "")), bisect_left(keys, (*base, "\U0010ffff"))
            classes[pattern] = ((1 << (high - low)) - 1) << low
        else:
            classes[pattern] = 1 << bisect_left(keys, _labels(pattern))
    other = f"{fresh}.elsewhere.test"
    classes[NEVER] = 1 << (len(order) + 1)
    return Axis("name", (*order, other, NEVER), classes)


def _labels(name: str) -> tuple[str, ...]:
    return tuple(reversed(name.split(".")))


def address_axis(matches: Iterable[Match], models: Iterable[Model]) -> Axis:
    """Addresses in number order, the first class being none at all; translated ranges are left out."""
    places = [m.to for m in matches if m.to] + [d.to for m in models for d in m.destinations]
    bounds = unique(network_bounds(n) for n in (*(n for to in places for n in to.networks), *SPECIAL))
    hidden = [network_bounds(IPv6Network(text)) for text in _TRANSLATED]
    cuts = sorted({0, _V6} | {c for b in (*bounds, *hidden) for c in (b.low, b.high + 1)} - {_END})
    hidden_starts = {c for b in hidden for c in cuts if b.low <= c <= b.high}
    starts = [cut for cut in cuts if cut not in hidden_starts]
    classes: dict[Any, int] = {NEVER: 1}
    for b in bounds:
        low, high = bisect_left(starts, b.low), bisect_left(starts, b.high + 1)
        classes[b] = ((1 << (high - low)) - 1) << (low + 1)
    return Axis("address", (NEVER, *map(_address, starts)), classes)


def _address(point: int) -> IPv4Address | IPv6Address:
    found = IPv4Address(point) if point < _V6 else IPv6Address(point - _V6)
    assert inner(found) == found
    return found


def line_axis(
    name: str,
    bounds: Iterable[Bounds],
    low: int,
    high: int,
    *,
    never: bool = False,
) -> Axis:
    wanted = unique(bounds)
    cuts = sorted({low} | {c for b in wanted for c in (b.low, b.high + 1)} - {high + 1})
    shift = 1 if never else 0
    classes: dict[Any, int] = {NEVER: 1} if never else {}
    for b in wanted:
        first, last = bisect_left(cuts, b.low), bisect_left(cuts, b.high + 1)
        classes[b] = ((1 << (last - first)) - 1) << (first + shift)
    return Axis(name, (NEVER, *cuts) if never else tuple(cuts), classes)


def path_axis(prefixes: Iterable[str]) -> Axis:
    """Paths in tree order, each prefix with itself as the example; `/` is there always."""
    order = sorted({"/", *prefixes}, key=lambda p: p.rstrip("/").split("/"))
    fresh = next(w for w in ("/some", *(f"/some{i}" for i in range(len(order) + 1))) if w not in order)
    examples = [p if p != "/" or "/" in prefixes else fresh for p in order]
    classes: dict[Any, int] = {
        prefix: sum(1 << i for i, p in enumerate(order) if prefix == "/" or _below(p, prefix))
        for prefix in order
    }
    classes[NEVER] = 1 << len(order)
    return Axis("path", (*examples, NEVER), classes)


def _below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def media_axis(values: Iterable[str]) -> Axis:
    wanted = unique(values)
    plain = unique(v.replace("/*", "/x-some") for v in wanted)
    examples = (*plain, "application/x-other", NEVER)
    classes: dict[Any, int] = {
        v: sum(1 << i for i, p in enumerate(plain) if p == v or (v.endswith("/*") and p.startswith(v[:-1])))
        for v in wanted
    }
    classes[NEVER] = 1 << len(plain) + 1
    return Axis("content_type", examples, classes)


def time_axis(models: Sequence[Model]) -> Axis:
    """A class for each combination of open windows and expired rules that a moment really has.

    The values of its tests are (model index, window name) and (model index, last day): expired after it.
    """
    keys: list[Any] = [(i, w.name) for i, m in enumerate(models) for w in m.windows]
    days = [(i, r.expires) for i, m in enumerate(models) for r in m.rules if r.expires]
    keys += unique(days)
    found: dict[tuple[bool, ...], datetime] = {}
    for moment in _moments(models, sorted({day for _, day in days if day})):
        found.setdefault(_signature(models, days, moment), moment)
    classes = {
        key: sum(1 << n for n, signature in enumerate(found) if signature[k]) for k, key in enumerate(keys)
    }
    return Axis("window", tuple(found.values()), classes)


def _signature(
    models: Sequence[Model], days: Sequence[tuple[int, date | None]], at: datetime
) -> tuple[bool, ...]:
    local = [local_minute(at, m.timezone) for m in models]
    windows = [is_open(w, local[i][0]) for i, m in enumerate(models) for w in m.windows]
    return (*windows, *(last is not None and local[i][1] > last for i, last in unique(days)))


def _moments(models: Sequence[Model], last_days: Sequence[date]) -> Iterable[datetime]:
    """Moments that reach every combination: each edge of each window on three weeks after each expiry."""
    weeks = [date(2026, 1, 5), *(day - timedelta(days=21) for day in last_days), *last_days]
    minutes = {10 * 60} | {
        e % DAY for m in models for w in m.windows for s in w.spans for e in (s.start, s.end)
    }
    for first in weeks:
        for days in range(22):
            midnight = datetime.combine(first + timedelta(days=days), time())
            for model in models:
                for minute in sorted(minutes, key=lambda m: m != 10 * 60):
                    local = midnight + timedelta(minutes=minute)
                    yield local.replace(tzinfo=model.timezone).astimezone(UTC)
