"""Tests as rows: a bit each, the sets of rows that values pass, and what a missing value could pass.

A set of rows is a big integer. What the attributes are is not known here; see `dimensions`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import Any

from proxy.flow import Missing
from proxy.policy.model import Match


@dataclass(frozen=True, slots=True)
class Row:
    """A test to be compiled: its bit, what it matches, and whether it grants (DESIGN: names, addresses)."""

    bit: int
    match: Match
    grants: bool


@dataclass(frozen=True, slots=True)
class Spread:
    """What a fact without a value could still give: a set of rows for each kind of value, deduplicated."""

    missing: Missing
    values: tuple[int, ...]
    sure: int
    maybe: int


def spread_of(missing: Missing, values: Iterable[int]) -> Spread:
    """The spread over some sets of rows."""
    found = tuple(dict.fromkeys(values))
    return Spread(missing, found, reduce(and_, found), reduce(or_, found))


def rows_by_value(rows: Iterable[Row], attribute: str) -> tuple[int, dict[Any, int]]:
    """The rows without a test of the attribute, and the rows (those included) that each value passes."""
    base, found = 0, defaultdict[Any, int](int)
    for row in rows:
        values = getattr(row.match, attribute)
        if values is None:
            base |= row.bit
        else:
            for value in values:
                found[value] |= row.bit
    return base, {value: bits | base for value, bits in found.items()}
