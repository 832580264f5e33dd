"""A clock that is set, and a machine that slept: row L4. No lease becomes longer by it, and none shorter.

The machine's own clock is nobody's to set in a test. Each process of the gate has its clocks moved instead,
as the kernel would show them: that of the wall a day back or two forward, or an hour of sleep, which the
wall's and CLOCK_BOOTTIME count. wireguard-go keeps the machine's. A gate that really stands still, while all
else goes on, is in `asleep`.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import kernel
from lab.asleep import past_every_proof, stopped
from lab.conftest import AS_ROOT, AS_USER, NewGate
from lab.gate import Bubble, Gate, python
from lab.packet_peer import Peer, Wires
from lab.test_steps import of_kind
from lab.test_tunnel import NAME, assert_refused_because, assert_served, download, goes_on
from lab.weakened import SET_BACK, SET_FORWARD, SLEPT
from lab.world import World

PROCESSES = {"mtls": ("worker", "holder"), "wireguard": ("worker", "wireguard", "packet_holder")}
LONGER_S = 4.0  # than any lease
URL, UPLOAD_PORT = f"http://{NAME}/", "7002"


def move(gate: Gate, kind: str, how: int) -> None:
    """Move the clocks of every process of a gate, the worker's first."""
    kernel.signal_all([*map(gate.child, PROCESSES[kind]), gate.pid], how)


@AS_USER
def test_a_clock_that_is_set(new_gate: NewGate, peer: Peer, wires: Wires, world: World) -> None:
    """Nothing is cut by it, and nothing is let through when the tunnel is lost, forward or back."""
    clock_is_set(new_gate, peer, wires, world, "wireguard")


def clock_is_set(new_gate: NewGate, peer: Peer, wires: Wires, world: World, kind: str) -> None:
    """A gate of a kind in which it is set back and forward, with its tunnel and without."""
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


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A gate with a program that tells the intranet something all the time, and what has arrived of it."""

    gate: Gate
    telling: Bubble
    kept: Path

    @classmethod
    def of(cls, gate: Gate) -> Sleeper:
        """A gate, proved, through which a line has arrived."""
        gate.attested()
        kept = gate.host.world.directory / "upload"
        kept.unlink(missing_ok=True)
        telling = gate.bubble(*python("clients", "tell", NAME, UPLOAD_PORT))
        kernel.until("a part has arrived", lambda: kept.exists() and b"\n" in kept.read_bytes())
        telling.says("told")
        return cls(gate, telling, kept)

    def slept(self) -> int:
        """Sleep while the program tells more; the last line that can have been sent before."""
        last = int(self.telling.lines()[-1].split()[1]) + 1
        past_every_proof()
        self.telling.says(f"told {last + 1}")
        return last

    def arrived(self) -> int:
        """The last line that has arrived."""
        whole, _, _ = self.kept.read_bytes().rpartition(b"\n")
        return int(whole.split()[-1])

    def has_lost_it(self, last: int) -> None:
        """It is cut, and nothing came of it after that line; a new request is good."""
        kernel.until(
            "it is served again", lambda: "the intranet" in self.gate.run("curl", "-sS", "-m", "60", URL).out
        )
        assert self.arrived() <= last


@pytest.mark.parametrize(
    ("host", "kind", "control"),
    [("root", "mtls", True), ("root", "mtls", False), ("user", "wireguard", False)],
    ids=["control", "root-mtls", "user-wireguard"],
    indirect=["host"],
)
def test_a_gate_that_slept(new_gate: NewGate, peer: Peer, wires: Wires, kind: str, control: bool) -> None:
    """Its processes wake one by one, who leases last of all: not a byte more of an open flow goes out."""
    sleeper = Sleeper.of(new_gate(*(["lease"] if control else []), **of_kind(kind, peer)))
    with stopped(sleeper.gate) as asleep:
        last = sleeper.slept()
        asleep.wake(sleeper.gate.child("worker"))
        if control:
            kernel.until("a control must be red", lambda: sleeper.arrived() > last)
            return
        sleeper.telling.says("ended by ConnectionResetError")
        asleep.wake_all_but(sleeper.gate.pid)
        assert sleeper.arrived() <= last
    sleeper.has_lost_it(last)
    wires.quiet()
