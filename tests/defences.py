"""Defences of an inspector, taken out of this very process. No tests are here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lab.weakened import INSPECTORS


def take_out(name: str) -> None:
    """Take one defence out, for good."""
    exec(INSPECTORS[name], {})


@contextmanager
def without(name: str) -> Iterator[None]:
    """One defence is out meanwhile."""
    before = [(place, dict(vars(place))) for place in _places()]
    try:
        take_out(name)
        yield
    finally:
        for place, had in before:
            for key, value in had.items():
                if vars(place)[key] is not value:
                    setattr(place, key, value)


def _places() -> list[object]:
    """Every module of the gate, and every class of one."""
    modules = [module for name, module in sys.modules.items() if name.startswith("proxy.")]
    found = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    return [*modules, *(kind for kind in dict.fromkeys(found) if kind.__module__.startswith("proxy."))]
