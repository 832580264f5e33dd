"""The rules of a zone: replaced, flushed by others, and when who made them is killed. Rows N7 to N9.

Elsewhere there is no device that leads out, and that alone suffices. Here the lab adds one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from lab import kernel, weakened
from lab.conftest import AS_USER, WITHOUT, NewGate
from lab.gate import Bubble, Gate, python
from lab.kernel import Place
from lab.opening import Probe, linked
from lab.test_tools import leaves

OUTSIDE = "10.200.3.1"  # the other end of the device that is added
SWAPS = 150


@contextlib.contextmanager
def zone_of(bubble: Bubble) -> Iterator[int]:
    """A descriptor of a bubble's namespace, once its program has begun."""
    bubble.says("begun")
    zone = bubble.network()
    try:
        yield zone
    finally:
        os.close(zone)
        bubble.end()


def waiting(gate: Gate) -> Bubble:
    """A bubble whose program waits."""
    return gate.bubble("sh", "-c", "echo begun; read go")


# -- a zone's ----------------------------------------------------------------------------------------


@AS_USER
def test_rules_outlive_the_daemon(new_gate: NewGate) -> None:
    """N9: it is killed, and what programs send by a device that is added then goes nowhere."""
    for missing, red in (("plain-tables",), True), ((), False):
        gate = new_gate(*missing).attested()
        with zone_of(waiting(gate)) as zone:
            gate.kill()
            left = leaves(zone, gate.host.world.device)
            assert left == red, "it leaves" if left else "a control must be red"


def swap(zone: int, without: frozenset[str], times: int, between: str = "") -> None:
    """Give a zone its rules again, time after time, as one that is attached again has them given."""
    pieces = weakened.code_for("cli", sorted(without - weakened.BY_THE_LAB))
    code = f"""
[exec(piece, {{}}) for piece in {pieces!r}]
from proxy import namespaces
for _ in range({times}):
    namespaces.run(["nft", "-f", "-"], namespaces.capture_rules())
    {between}
"""
    done = kernel.run(Place(zone), [sys.executable, "-P", "-c", code])
    assert done.code == 0, done.err


@AS_USER
def test_rules_that_are_replaced(gate: Gate) -> None:
    """N7: while they are, nothing of a flood gets out by a device that somebody added."""
    device = gate.host.world.device
    for missing, times in (frozenset({"one-transaction"}), 5), (frozenset[str](), SWAPS):
        with zone_of(waiting(gate)) as zone, linked(zone, device) as wire:
            flood = kernel.start(Place(zone), python("canary", "flood", OUTSIDE))
            try:
                assert flood.stdout is not None and flood.stdout.readline() == b"begun\n"
                swap(zone, WITHOUT | missing, times)
            finally:
                kernel.end(flood)
            seen = [frame for frame in wire.seen() if frame.kind in ("arp", "udp")]
            assert bool(seen) == bool(missing), [str(frame) for frame in seen[:10]] or "a control must be red"


@AS_USER
def test_rules_that_others_flush(gate: Gate) -> None:
    """N7 and N8: somebody flushes every rule, time after time; there is no device to leave by.

    Its control is that of the probe: see test_life.
    """
    probe = Probe(gate)
    zone = probe.bubble.network()
    try:
        swap(zone, WITHOUT, SWAPS, between='namespaces.run(["nft", "flush", "ruleset"])')
    finally:
        os.close(zone)
    kernel.must(gate.host.world.device, "nft flush ruleset")
    probe.a_round()
    probe.end()
