"""A clock that is set, and a machine that slept: row L4. No lease becomes longer by it, and none shorter.

The machine's own clock is nobody's to set in a test. Each process of the gate has its clocks moved instead,
as the kernel would show them: that of the wall a day back or two forward, or an hour of sleep, which the
wall's and CLOCK_BOOTTIME count. wireguard-go keeps the machine's.
"""

from __future__ import annotations

import signal

import pytest

from lab import kernel
from lab.conftest import AS_ROOT, NewGate
from lab.gate import Gate
from lab.packet_peer import Peer, Wires
from lab.test_steps import of_kind
from lab.test_tunnel import NAME, assert_refused_because, assert_served, download, goes_on
from lab.weakened import SET_BACK, SET_FORWARD, SLEPT
from lab.world import World

PROCESSES = {"mtls": ("worker", "holder"), "wireguard": ("worker", "wireguard", "packet_holder")}
LONGER_S = 4.0  # than any lease
URL = f"http://{NAME}/"


def move(gate: Gate, kind: str, how: int) -> None:
    """Move the clocks of every process of a gate, the worker's first."""
    kernel.signal_all([*map(gate.child, PROCESSES[kind]), gate.pid], how)


@pytest.mark.parametrize(
    ("host", "kind"),
    [("root", "mtls"), ("user", "wireguard")],
    ids=["root-mtls", "user-wireguard"],
    indirect=["host"],
)
def test_a_clock_that_is_set(new_gate: NewGate, peer: Peer, wires: Wires, world: World, kind: str) -> None:
    """Nothing is cut by it, and nothing is let through when the tunnel is lost, forward or back."""
    gate = new_gate("clock", **of_kind(kind, peer)).attested()
    bubble = download(gate)
    for how in (SET_BACK, SET_FORWARD):
        move(gate, kind, how)
        bubble.lines()
        bubble.says("flowing")
    assert_served(gate)
    world.take_link_down()
    try:
        move(gate, kind, SET_BACK)
        assert "ConnectionResetError" in bubble.says("after")
        move(gate, kind, SET_FORWARD)
        assert_refused_because(gate, "")
        move(gate, kind, SET_BACK)
        assert_refused_because(gate, "")
    finally:
        world.take_link_up()
    gate.attested()
    assert_served(gate)
    wires.quiet()


@AS_ROOT
@pytest.mark.parametrize("control", [True, False], ids=["control", ""])
def test_a_clock_that_is_set_back_while_nobody_proves_anything(new_gate: NewGate, control: bool) -> None:
    """The supervisor is stopped and the clock is set back: the lease runs out all the same."""
    gate = new_gate("clock", *(["boot-clock"] if control else [])).attested()
    bubble = download(gate)
    kernel.signal_all([gate.pid], signal.SIGSTOP)
    try:
        move(gate, "mtls", SET_BACK)
        if control:
            assert goes_on(bubble, LONGER_S), "a control must be red"
        else:
            assert "ConnectionResetError" in bubble.says("after")
    finally:
        kernel.signal_all([gate.pid], signal.SIGCONT)


@AS_ROOT
@pytest.mark.parametrize("control", [True, False], ids=["control", ""])
def test_a_machine_that_slept(new_gate: NewGate, control: bool) -> None:
    """What was open is cut when it wakes; the tunnel is proved anew, unaided."""
    gate = new_gate("clock", *(["lease"] if control else [])).attested()
    bubble = download(gate)
    kernel.signal_all([gate.child("worker")], SLEPT)
    if control:
        assert goes_on(bubble, 1.0), "a control must be red"
        return
    assert "ConnectionResetError" in bubble.says("after")
    kernel.signal_all([gate.child("holder"), gate.pid], SLEPT)
    kernel.until("it is served again", lambda: "the intranet" in gate.run("curl", "-sS", "-m", "60", URL).out)
