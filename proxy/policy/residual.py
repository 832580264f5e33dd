"""What can be said of a flow while facts are missing: a verdict where all their values agree, a budget
where only the amount is open, a residual otherwise.

The values of a missing fact are few here: only those that differ for the rows still in play. A fact that
inspection failed to give counts as the strictest of its values; too many combinations to weigh count as
undecided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from proxy.flow import (
    FAILED,
    UNKNOWN,
    Because,
    Budget,
    Flow,
    Judgement,
    Missing,
    Origin,
    Stage,
    Transfer,
    TunnelFact,
    Verdict,
)
from proxy.policy import model as m
from proxy.policy.compile import NO_ADDRESS, Outcome, Tables
from proxy.policy.dimensions import Later, may_be_http
from proxy.policy.rows import Spread

MAX_COMBINATIONS = 4096
_CARRIED = ("transfer", "size")
REBINDING_OPEN = Because(Origin.GATE, m.REBINDING, "the address of the name is not known yet")


@dataclass(frozen=True, slots=True)
class _Open:
    """An attribute without a value that matters: its sets of rows, cut to those in play."""

    name: str
    missing: Missing
    values: tuple[int, ...]


def judge_partly(
    tables: Tables, flow: Flow, tunnel: TunnelFact | None, sure: int, pending: Sequence[Later]
) -> Judgement:
    """The judgement of a flow of which some dimensions cannot be looked up. `sure` is the AND of the rest."""
    spreads = {dimension.name: dimension.spread(flow) for dimension in pending}
    play, low, high = _in_play(tables, sure, spreads)
    opened = [
        _Open(name, spread.missing, tuple(dict.fromkeys(bits & play for bits in spread.values)))
        for name, spread in spreads.items()
        if any((bits ^ spread.values[0]) & play for bits in spread.values)
    ]
    weighing = _Weighing(tables, tunnel, sure & play, opened)
    outcome = weighing.settled()
    if outcome is not None and outcome.verdict is Verdict.BLOCK:
        return outcome.judgement
    if blocked := NO_ADDRESS if flow.address is FAILED else tables.claims.outcome(flow):
        return blocked.judgement
    waits_for = {"address" if o.name == "to" else o.name for o in weighing.unknown}
    if flow.address is UNKNOWN:
        waits_for.add("address")
    elif outcome is not None:
        return outcome.judgement
    elif budgeted := _budgeted(tables, flow, weighing):
        return budgeted
    return _residual(tables, waits_for, low, high, play)


def builtin(tables: Tables, flow: Flow, outcome: Outcome) -> Outcome:
    """The outcome, or the built-in block that stands above it."""
    if outcome.verdict is Verdict.BLOCK:
        return outcome
    return tables.claims.outcome(flow) or outcome


def _in_play(tables: Tables, sure: int, spreads: dict[str, Spread]) -> tuple[int, int, int]:
    """The rows that could still matter, those that match for certain, and those that may."""
    low = high = sure
    for spread in spreads.values():
        low &= spread.sure
        high &= spread.maybe
    shift = 2 * len(tables.guards)
    certain = (low >> shift) & ((1 << len(tables.rules)) - 1)
    first = certain & -certain
    upto = (first << 1) - 1 if first else (1 << len(tables.rules)) - 1
    return high & ((1 << shift) - 1 | upto << shift), low, high


class _Weighing:
    """The outcomes that the open attributes can lead to."""

    def __init__(self, tables: Tables, tunnel: TunnelFact | None, bits: int, opened: Sequence[_Open]) -> None:
        self.tables, self.tunnel, self.bits = tables, tunnel, bits
        self.unknown = [o for o in opened if o.missing is UNKNOWN]
        self.failed = [o for o in opened if o.missing is not UNKNOWN]
        self.is_feasible = prod(len(o.values) for o in opened) <= MAX_COMBINATIONS

    def settled(self) -> Outcome | None:
        """The outcome where every value leads to the same verdict, or too many values have failed."""
        if not self.is_feasible:
            return None if self.unknown else NO_DECISION
        return agreed(self.outcomes(self.bits, self.unknown))

    def outcomes(self, bits: int, unknown: Sequence[_Open]) -> Iterator[Outcome]:
        for values in product(*(o.values for o in unknown)):
            at = bits
            for value in values:
                at &= value
            yield self.strictest(at)

    def strictest(self, bits: int) -> Outcome:
        """The strictest outcome over the values of what has failed."""
        worst: Outcome | None = None
        for values in product(*(o.values for o in self.failed)):
            at = bits
            for value in values:
                at &= value
            outcome = self.tables.decide(at, self.tunnel)
            if worst is None or outcome.verdict < worst.verdict:
                worst = outcome
        assert worst is not None
        return worst


NO_DECISION = Outcome.of(
    Verdict.BLOCK, Because(Origin.GATE, "undecided", "inspection did not give what the rules need")
)


def agreed(outcomes: Iterator[Outcome]) -> Outcome | None:
    """An outcome of all if they have one verdict: one that no guard decides, if there is such a one.

    A guard that decides only some of them is not why it comes to this in all.
    """
    found: Outcome | None = None
    for outcome in outcomes:
        if found is not None and outcome.verdict is not found.verdict:
            return None
        if found is None or found.judgement.because.origin is Origin.GUARD:
            found = outcome
    return found


def _budgeted(tables: Tables, flow: Flow, weighing: _Weighing) -> Judgement | None:
    """A verdict with a bound on bytes, where nothing but the direction and the amount is open.

    None where it still depends on more, or on the direction in a flow whose transfers can be told apart.
    """
    others = [o for o in weighing.unknown if o.name not in _CARRIED]
    names = {o.name for o in weighing.unknown}
    if not names & set(_CARRIED) or not weighing.is_feasible:
        return None
    ways = []
    for values in product(*(o.values for o in others)):
        bits = weighing.bits
        for value in values:
            bits &= value
        ways.append(_courses(tables, flow, weighing, bits, names))
    first, *rest = ways
    if any(_verdicts(way) != _verdicts(first) for way in rest):
        return None
    bases = {course[0][1].verdict: course[0][1] for course in first.values()}
    base = bases[min(bases)]
    if len(bases) > 1 or base.verdict is Verdict.BLOCK:
        # one direction or small amounts alone are blocked: only inspection can tell them apart
        return None if may_be_http(flow) else base.judgement
    budgets = tuple(_budgets(first, base.verdict))
    return Judgement(base.verdict, base.judgement.because, budgets=budgets)


type _Course = list[tuple[int, Outcome]]


def _courses(
    tables: Tables, flow: Flow, weighing: _Weighing, bits: int, names: set[str]
) -> dict[Transfer, _Course]:
    """For each direction that is possible, the outcomes at growing amounts: (first byte count, outcome)."""
    known = flow.transfer
    directions = [known] if isinstance(known, Transfer) else list(Transfer)
    line = tables.sizes.line
    steps = list(zip(line.starts, line.values, strict=True)) if "size" in names else [(0, bits)]
    courses = {}
    for direction in directions:
        at = bits & tables.transfers.table[direction] if "transfer" in names else bits
        courses[direction] = [(start, weighing.strictest(at & value)) for start, value in steps]
    return courses


def _verdicts(courses: dict[Transfer, _Course]) -> list[list[Verdict]]:
    return [[outcome.verdict for _, outcome in course] for course in courses.values()]


def _budgets(courses: dict[Transfer, _Course], verdict: Verdict) -> Iterator[Budget]:
    for direction, course in courses.items():
        for start, outcome in course:
            if outcome.verdict < verdict:
                yield Budget(direction, start - 1, outcome.judgement.because)
                break


def _residual(tables: Tables, waits_for: set[str], low: int, high: int, play: int) -> Judgement:
    stage = min(_stage(name) for name in waits_for)
    text = f"it depends on {', '.join(sorted(waits_for))}"
    because = Because(Origin.GATE, "undecided", text)
    in_play = tuple(_reasons(tables, low, high, play))
    if "address" in waits_for:
        in_play += (REBINDING_OPEN,)
    return Judgement(None, because, frozenset(waits_for), stage, in_play)


def _stage(fact: str) -> Stage:
    return Stage.DIAL if fact == "address" else m.STAGES[fact]


def _reasons(tables: Tables, low: int, high: int, play: int) -> Iterator[Because]:
    """The guards and rules that may match or bite and do not for certain."""
    open_rows = high & ~low & play
    width = len(tables.guards)
    for i, guard in enumerate(tables.guards):
        if (open_rows >> i | open_rows >> (width + i)) & 1 and (high >> i) & 1:
            yield guard.reason
    rules = open_rows >> (2 * width)
    while rules:
        lowest = rules & -rules
        yield tables.rules[lowest.bit_length() - 1].reason
        rules ^= lowest
