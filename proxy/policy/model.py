"""What a policy says, as values: the tree of nodes once it is checked and typed.

Nothing here decides; a model is compiled by `compile` and answered by `evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import Enum
from functools import cached_property
from typing import Literal
from zoneinfo import ZoneInfo

from proxy.addresses import IPNetwork
from proxy.flow import Because, Origin, Protocol, Stage, Transfer, Verdict
from proxy.policy.source import Where

# Ids that the built-in decisions carry; no rule may take one.
REBINDING, SPECIAL, OWN, VIA, NO_TUNNEL, NO_ADDRESS = (
    "rebinding",
    "special-purpose",
    "own-address",
    "via",
    "no-tunnel",
    "no-address",
)
NOT_ATTESTED, UNDECIDED, DEFAULT = "not-attested", "undecided", "default"
RESERVED_IDS = frozenset(
    {REBINDING, SPECIAL, OWN, VIA, NO_TUNNEL, NO_ADDRESS, NOT_ATTESTED, UNDECIDED, DEFAULT}
)

# The words of `tunnel:` that are states; every other word there is a tunnel's name.
TUNNEL_STATES = ("attested", "stale", "down")

# attribute -> the stage from which a flow has it
STAGES: Mapping[str, Stage] = {
    "zone": Stage.ACCEPT,
    "user": Stage.ACCEPT,
    "group": Stage.ACCEPT,
    "device": Stage.ACCEPT,
    "posture": Stage.ACCEPT,
    "port": Stage.ACCEPT,
    "window": Stage.ACCEPT,
    "tunnel": Stage.ACCEPT,
    "protocol": Stage.FIRST_BYTES,
    "to": Stage.DIAL,
    "method": Stage.REQUEST,
    "path": Stage.REQUEST,
    "content_type": Stage.REQUEST,
    "transfer": Stage.REQUEST,
    "size": Stage.REQUEST,
}
REQUEST_ATTRIBUTES = frozenset(name for name, stage in STAGES.items() if stage is Stage.REQUEST)
MAX_SIZE = (1 << 63) - 1

# The patterns of `scan` that need no definition.
CARD_NUMBERS, IBAN, PRIVATE_KEYS, AWS_KEYS = "card-numbers", "iban", "private-keys", "aws-keys"
BUILT_IN_PATTERNS = (CARD_NUMBERS, IBAN, PRIVATE_KEYS, AWS_KEYS)
QUOTA_PER, QUOTA_EVERY = ("user", "zone"), ("hour", "day", "week", "month")


@dataclass(frozen=True, slots=True)
class To:
    """Places: domain patterns (`a.example`, `*.a.example`) and networks."""

    names: tuple[str, ...] = ()
    networks: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class Pattern:
    """A name for words of the author's own that are looked for in what is sent."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scan:
    """Patterns, built in or defined, by name: those that end a transfer, and those that are only recorded."""

    block: tuple[str, ...]
    report: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Quota:
    """Bytes that may go to (or come from) a destination in each period, for each user or for a whole zone."""

    destination: str
    transfer: Transfer
    limit_bytes: int
    per: Literal["user", "zone"]
    every: Literal["hour", "day", "week", "month"]


@dataclass(frozen=True, slots=True)
class Destination:
    """A named place, or one written out in a rule (then its name is the text there)."""

    name: str
    to: To
    at: Where
    scan: Scan | None = None
    quotas: tuple[Quota, ...] = ()
    opaque: bool = False  # never looked into: its programs know their server's key


@dataclass(frozen=True, slots=True)
class App:
    """An entry of the catalogue that a person is shown."""

    name: str
    title: str
    url: str
    to: To
    at: Where


@dataclass(frozen=True, slots=True)
class Condition:
    """One need of a posture: a fact of the device that equals a text, or a version at least or at most."""

    fact: str
    compare: Literal["=", ">=", "<=", ">", "<"]
    value: str


@dataclass(frozen=True, slots=True)
class Posture:
    """A name for what a device must be."""

    name: str
    needs: tuple[Condition, ...]
    at: Where

    def is_met(self, facts: Mapping[str, str | bool]) -> bool:
        """Whether the facts of a device satisfy every need; a fact that is missing does not."""
        return all(_holds(need, facts.get(need.fact)) for need in self.needs)


def _holds(need: Condition, fact: str | bool | None) -> bool:
    if fact is None:
        return False
    text = str(fact).lower() if isinstance(fact, bool) else fact
    if need.compare == "=":
        return text == need.value
    have, want = _version(text), _version(need.value)
    if not have or not want:
        return False
    width = max(len(have), len(want))
    have, want = have + (0,) * (width - len(have)), want + (0,) * (width - len(want))
    return {">=": have >= want, "<=": have <= want, ">": have > want, "<": have < want}[need.compare]


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    return tuple(map(int, parts)) if all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts) else ()


@dataclass(frozen=True, slots=True)
class Span:
    """Minutes of the local week, from the first minute of a Monday; the end is exclusive and may wrap."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Window:
    """A named part of the week in the policy's time zone; its spans neither overlap nor wrap."""

    name: str
    spans: tuple[Span, ...]
    at: Where


@dataclass(frozen=True, slots=True)
class Bounds:
    """Whole numbers from low to high, both included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A conjunction: every attribute that is not None must hold, each as any of its values."""

    zone: tuple[str, ...] | None = None
    user: tuple[str, ...] | None = None
    group: tuple[str, ...] | None = None
    device: tuple[str, ...] | None = None
    posture: tuple[str, ...] | None = None
    to: To | None = None
    port: tuple[Bounds, ...] | None = None
    protocol: tuple[Protocol, ...] | None = None
    window: tuple[str, ...] | None = None
    tunnel: tuple[str, ...] | None = None
    method: tuple[str, ...] | None = None
    path: tuple[str, ...] | None = None
    content_type: tuple[str, ...] | None = None
    transfer: tuple[Transfer, ...] | None = None
    size: Bounds | None = None

    def attributes(self) -> tuple[str, ...]:
        """The attributes that are constrained, in the order of the table."""
        return tuple(name for name in STAGES if getattr(self, name) is not None)


class Mode(Enum):
    """Whether a rule decides or is only recorded."""

    ENFORCE = "enforce"
    REPORT = "report"


@dataclass(frozen=True, slots=True)
class Entry:
    """What rules and guards have in common."""

    id: str
    match: Match
    at: Where
    because: str
    owner: str
    expires: date | None


@dataclass(frozen=True, slots=True)
class Guard(Entry):
    """A ceiling: where it matches and its exception does not hold, no more than `at_most`."""

    unless: Match | None
    at_most: Verdict
    implied: bool = False  # it follows from a scan, and nobody wrote it

    @property
    def reason(self) -> Because:
        return Because(Origin.GUARD, self.id, self.because, str(self.at))


@dataclass(frozen=True, slots=True)
class Rule(Entry):
    """A verdict for the flows that match and that no earlier rule matched."""

    verdict: Verdict
    via: tuple[str, ...] | None
    mode: Mode

    @property
    def reason(self) -> Because:
        return Because(Origin.RULE, self.id, self.because, str(self.at))


@dataclass(frozen=True)
class Model:
    """A whole policy."""

    file: str
    name: str
    timezone: ZoneInfo
    zones: tuple[str, ...]
    groups: tuple[str, ...]
    tunnels: tuple[str, ...]
    postures: tuple[Posture, ...]
    destinations: tuple[Destination, ...]
    windows: tuple[Window, ...]
    apps: tuple[App, ...]
    guards: tuple[Guard, ...]
    rules: tuple[Rule, ...]
    patterns: tuple[Pattern, ...] = ()

    @cached_property
    def enforced(self) -> tuple[Rule, ...]:
        """The rules that decide, in order."""
        return tuple(rule for rule in self.rules if rule.mode is Mode.ENFORCE)

    @cached_property
    def reported(self) -> tuple[Rule, ...]:
        """The rules that are only recorded, in order."""
        return tuple(rule for rule in self.rules if rule.mode is Mode.REPORT)

    @cached_property
    def _owners(self) -> Mapping[tuple[Origin, str], str]:
        return {
            **{(Origin.GUARD, guard.id): guard.owner for guard in self.guards},
            **{(Origin.RULE, rule.id): rule.owner for rule in self.rules},
        }

    def owner(self, because: Because) -> str:
        """Who answers for the rule or guard that decided; empty where nobody is named."""
        return self._owners.get((because.origin, because.id), "")
