"""What was tried and what was seen, judged. Pure.

An attempt that could not be shown to be seen where there is a way out proves nothing: it is `not shown`, and
the test has failed, as it has when something was missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from proxy.leaktest.attempts import Attempt

THROUGH = ("reached", "answered")
BY_THE_GATE = "answered by the gate"


class Verdict(StrEnum):
    """What is known of a way out."""

    LEAK = "leak"
    NOT_SHOWN = "not shown"
    ABSENT = "not on this machine"
    HELD = "held"


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt at one place in one state. `seen_at` are devices and listeners that it came by."""

    place: str
    state: str
    outcome: str
    seen_at: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """An attempt with everything that came of it."""

    attempt: Attempt
    control: Try
    tries: tuple[Try, ...]
    verdict: Verdict
    why: str


def judge(attempt: Attempt, control: Try, tries: Sequence[Try], *, captured: bool) -> Judged:
    """Judge an attempt; `captured` says whether every device of the host was looked at."""
    if leaks := [one for one in tries if _left(attempt, one)]:
        return Judged(attempt, control, tuple(tries), Verdict.LEAK, _told(leaks))
    if not control.seen_at and not control.outcome.startswith("reached"):
        if attempt.needs:
            why = f"no {attempt.needs} here ({control.outcome})"
            return Judged(attempt, control, tuple(tries), Verdict.ABSENT, why)
        why = f"its control was not seen in {control.place}: {control.outcome}"
        return Judged(attempt, control, tuple(tries), Verdict.NOT_SHOWN, why)
    if unsure := next((one for one in tries if _is_unsure(one, captured=captured)), None):
        why = f"{unsure.outcome}: by the policy and through the tunnel, or past it? as root it is looked at"
        if not unsure.outcome.startswith(THROUGH):
            why = unsure.outcome
        return Judged(attempt, control, tuple(tries), Verdict.NOT_SHOWN, why)
    words = dict.fromkeys(word.partition(":")[0] for one in tries for word in one.outcome.split(", "))
    return Judged(attempt, control, tuple(tries), Verdict.HELD, ", ".join(words))


def _left(attempt: Attempt, one: Try) -> bool:
    if one.seen_at or one.outcome.startswith("reached"):
        return True
    # The gate is the only resolver of a zone: a name with another answer was asked of somebody else.
    asks_names = attempt.probe == "resolve" or str(attempt.arguments.get("says", "")).startswith("dns")
    return asks_names and one.outcome == "answered"


def _is_unsure(one: Try, *, captured: bool) -> bool:
    if one.outcome.startswith("failed"):
        return True
    through = one.outcome.startswith(THROUGH) and one.outcome != BY_THE_GATE
    return through and not captured


def _told(tries: Iterable[Try]) -> str:
    """What was seen, each once, and in which states."""
    states: dict[str, list[str]] = {}
    for one in tries:
        seen = f"seen on {', '.join(sorted(one.seen_at))}" if one.seen_at else one.outcome
        states.setdefault(f"{seen}, from {one.place}", []).append(one.state)
    return "; ".join(f"{seen} ({', '.join(where)})" for seen, where in states.items())
