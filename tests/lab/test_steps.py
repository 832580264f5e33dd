"""Each process of the gate is killed at a step of its start, counted and not timed; nothing leaves at any.

Rows L1 and L2. A program in a bubble from before the start and one of the host try every 10 ms, also while
the process stands at its step. Here are a few; `make lab-long` takes every step of every process (long_life).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from lab import kernel
from lab.conftest import AS_ROOT, NewGate
from lab.packet_peer import SHARED, Peer, Wires, packets
from lab.stops import NOBODY, Scene

INSPECTING = "  - {id: no-delete, match: {to: intranet, method: DELETE}, at_most: block}\n"


def of_kind(kind: str, peer: Peer) -> dict[str, Any]:
    """The settings of a gate with an mtls or a WireGuard tunnel, or one that inspects."""
    kinds: dict[str, dict[str, Any]] = {
        "mtls": {},
        "inspecting": {"inspects": True, "guards": INSPECTING},
        "wireguard": packets(peer, peer.tunnel(device=SHARED)),
    }
    return {**kinds[kind], "stops": NOBODY}


@dataclass(frozen=True, slots=True)
class Sample:
    """A step of the daemon, and some of the processes that it starts: those of the Nth of a name, or 0."""

    kind: str
    daemon: int
    children: str

    @property
    def killed(self) -> int:
        """How many of the children."""
        return len(re.findall(r"[1-9]\d*", self.children))


@pytest.mark.parametrize(
    ("host", "sample"),
    [
        ("root", Sample("wireguard", 25, "worker:3 door:6 wireguard:4,0,11 packet_holder:0,4")),
        ("user", Sample("mtls", 12, "worker:9 door:1 holder:2,4")),
    ],
    ids=["root-wireguard", "user-mtls"],
    indirect=["host"],
)
def test_killed_at_a_step(new_gate: NewGate, peer: Peer, wires: Wires, sample: Sample) -> None:
    """The daemon, then those that it starts, the last of which serves."""
    with Scene(new_gate(**of_kind(sample.kind, peer)), wires) as scene:
        scene.kill_daemon()
        stop = scene.next_stop(scene.start_with(f"supervisor:{sample.daemon}"))
        scene.probed()
        scene.quiet(stop)
        scene.kill_daemon()
        stops = scene.start_with(sample.children)
        for _ in range(sample.killed):
            stop = scene.next_stop(stops)
            scene.probed()
            kernel.signal_all([stop.pid], signal.SIGKILL)
            scene.quiet(stop)
        scene.served()


@AS_ROOT
def test_the_control(new_gate: NewGate, wires: Wires) -> None:
    """With a way out, what the program in the bubble tries while a process stands at its step is seen; so is
    what the one of the host sends by a device that somebody left there."""
    with Scene(new_gate(), wires) as scene:
        scene.kill_daemon()
        stop = scene.next_stop(scene.start_with("holder:2"))
        scene.probed()
        scene.quiet(stop)
        scene.open()
        kernel.until("the program of the host sends", lambda: _fails(scene.probed))
        with pytest.raises(AssertionError, match="canary-of-the-lab"):
            scene.quiet(stop)


def _fails(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError:
        return True
    return False
