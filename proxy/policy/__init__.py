"""Pure: YAML in, judgements out. No event loop, no socket, no process, no file, no clock.

source, reading            text to a tree of strings with places; aids to read it
values, model, grammar     the small texts; what a policy says; the table of keys
load                       tree to model, with every problem at once
windows, lines, dimensions what a fact of a flow passes
compile                    model to tables
residual, evaluate, trace  tables and a flow to a judgement
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.addresses import IPNetwork
from proxy.policy.evaluate import Decision, Policy
from proxy.policy.load import read_model
from proxy.policy.source import Problem, Problems

__all__ = ["Decision", "Policy", "Problem", "Problems", "load"]


def load(text: bytes, filename: str, own: Iterable[IPNetwork] = ()) -> Policy:
    """The policy of a file's text. `own` are the gate's own networks. Raises Problems."""
    return Policy(read_model(text, filename), text, own)
