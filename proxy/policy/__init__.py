"""Pure: YAML in, judgements out. No event loop, no socket, no process, no file, no clock.

source, reading              text to a tree of strings with places; aids to read it
model, grammar, values       what a policy says; the table of keys; the small texts
matching, loader             tree to model, with every problem at once
windows, lines, rows         time; numbers and names; tests as bits
dimensions, compile          what a fact of a flow passes; model to tables
evaluate, residual, trace    tables and a flow to a judgement, and the way to it
facts, examples, coverage    words to a flow; policy tests; what they leave out
axes, space, regions, cover  all flows, cut into classes; rules as boxes
prove, routes, diff          questions about all flows
mutants, lint                policies that are a little off; doubts
duties, duty_reader          what a destination asks beside a verdict: scans, quotas, opacity
duty_diff                    and what an edit changes in that
inspected                    the hosts that may be looked into
telling, schemas             answers in words and as JSON; schemas for editors
files, pytest_plugin         the two that read files; the judge knows neither
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.addresses import IPNetwork
    from proxy.policy.evaluate import Decision, Policy
    from proxy.policy.source import Problem, Problems

__all__ = ["Decision", "Policy", "Problem", "Problems", "load"]


def load(text: bytes, filename: str, own: Iterable[IPNetwork] = ()) -> Policy:
    """The policy of a file's text. `own` are the gate's own networks.

    Raises Problems: whatever the reader and the table of keys refuse, and a route that could change
    within a connection.
    """
    from proxy.policy.evaluate import Policy
    from proxy.policy.loader import read_model

    policy = Policy(read_model(text, filename), text, own)
    if policy.may_be_unstable():
        from proxy.policy.lint import refuse_unstable  # only such policies pay for the prover

        refuse_unstable(policy, text)
    return policy


def __getattr__(name: str) -> Any:
    """The names above, loaded when asked for: the pytest plugin lives in this package, and every suite
    on a machine where zonegate is installed imports it."""
    homes = {"Decision": "evaluate", "Policy": "evaluate", "Problem": "source", "Problems": "source"}
    if name in homes:
        return getattr(importlib.import_module(f"proxy.policy.{homes[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
