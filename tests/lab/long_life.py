"""Every process of the gate is killed at every step of its start, and 200 flaps: `make lab-long`.

See test_steps and test_losses, of which this is the whole.
"""

from __future__ import annotations

import itertools
import signal
from dataclasses import dataclass, replace

import pytest

from lab import carriers, kernel
from lab.asleep import frozen
from lab.conftest import NewGate
from lab.failing_tools import Tools
from lab.gate import Bubble, Gate, python
from lab.kernel import Place
from lab.packet_peer import Peer, Wires, packets
from lab.shortage import RESOURCES, short_of
from lab.stops import NAME, NOBODY, Scene, Stop, Stops, killed_in_setup
from lab.test_associations import ALICE, LISTEN, RULE, SOCKS, goes_on
from lab.test_associations import PORT as DATAGRAM_PORT
from lab.test_clock import Sleeper, clock_is_set
from lab.test_losses import FLAPS, WAYS, served_again
from lab.test_steps import of_kind
from lab.test_tunnel import assert_served
from lab.world import INTRANET, PUBLIC, World
from proxy import passwords

pytestmark = pytest.mark.timeout(3600)
KINDS = ("mtls", "wireguard")
THAWS = 5


@dataclass(frozen=True, slots=True)
class Case:
    """Whose steps are counted, in a gate of which kind, and who is killed at each."""

    kind: str
    counted: str
    victim: str = ""

    def __str__(self) -> str:
        return f"{self.kind}-{self.counted}-{self.victim or 'itself'}"


CHILDREN = (
    Case("mtls", "worker"),
    Case("mtls", "worker", "bwrap"),
    Case("mtls", "door"),
    Case("mtls", "holder"),
    Case("inspecting", "inspector"),
    Case("inspecting", "inspector", "bwrap"),
    Case("wireguard", "worker"),
    Case("wireguard", "door"),
    Case("wireguard", "wireguard"),
    Case("wireguard", "wireguard", "wireguard-go"),
    Case("wireguard", "packet_holder"),
    Case("wireguard", "packet_holder", "wireguard-go"),
)


@pytest.mark.parametrize("case", CHILDREN, ids=str)
def test_a_process_at_every_step(new_gate: NewGate, peer: Peer, wires: Wires, case: Case) -> None:
    """Its Nth process is killed at its Nth step, until one serves before it comes to its own."""
    with Scene(new_gate(**of_kind(case.kind, peer)), wires) as scene:
        scene.kill_daemon()
        stops = scene.start_with(f"{case.counted}:")
        seen: list[int] = []
        while stop := scene.stop_or_served(stops):
            seen.append(stop.step)
            scene.probed()
            print(case, stop, end=" ")
            print("killed", killed := victim(scene.gate, stop, case.victim))
            kernel.signal_all([killed], signal.SIGKILL)
            stop.let_go()
            scene.quiet(stop)
        print(case, f"{len(seen)} steps")
        assert seen and sorted(seen) == list(range(1, len(seen) + 1))
        scene.served(stops)


def victim(gate: Gate, stop: Stop, name: str) -> int:
    """Who is killed: bubblewrap around a sealed process, wireguard-go if it is there, or who has stopped."""
    if name == "bwrap":
        return kernel.parents()[stop.pid]
    below = kernel.descendants(gate.pid) if name else []
    return next((pid for pid in below if kernel.command_of(pid).startswith(name)), stop.pid)


@pytest.mark.parametrize("victim", ["datagram_holder", "bwrap"])
def test_the_datagram_holder_at_every_step(
    new_gate: NewGate, peer: Peer, wires: Wires, world: World, victim: str
) -> None:
    """The sockets of SOCKS5 clients' datagrams: the Nth holder, or its sandbox, is killed at its Nth step."""
    settings = of_kind("wireguard", peer) | {"rules": RULE, "listen": LISTEN, "stops": "datagram_holder:"}
    settings["secrets"] |= {"people.passwd": passwords.line(ALICE[0], ALICE[1].encode()) + "\n"}
    echo = kernel.start(Place(world.corp), python("datagrams", "echo", INTRANET, str(DATAGRAM_PORT)))
    gate = new_gate(**settings, people="  alice: {zones: [corporate]}\n")
    stops, steps = Stops(gate.said, gate), 0
    stops.again()
    try:
        client = goes_on(gate, INTRANET, says="")
        while stop := _stop_or_answer(stops, client):
            steps += 1
            print(stop)
            killed = kernel.parents()[stop.pid] if victim == "bwrap" else stop.pid
            kernel.signal_all([killed], signal.SIGKILL)
            stop.let_go()
        print(victim, f"{steps} steps")
        assert steps > 1
        strange = [seen for seen in wires.seen() if f":{SOCKS}" not in seen and "127.0.0.1" not in seen]
        assert not strange, strange[:10]
    finally:
        kernel.end(echo)


def _stop_or_answer(stops: Stops, client: Bubble) -> Stop | None:
    client.lines()
    at = len(client.heard)
    found = kernel.until("it stops or answers", lambda: stops.look() or "answered" in client.lines()[at:])
    return found if isinstance(found, Stop) else None


@pytest.mark.parametrize("kind", KINDS)
def test_the_daemon_at_every_step(new_gate: NewGate, peer: Peer, wires: Wires, kind: str) -> None:
    """The Nth daemon is killed at its Nth step, until one serves before; only its bubbles are left."""
    with Scene(new_gate(**of_kind(kind, peer)), wires) as scene:
        for step in itertools.count(1):
            scene.kill_daemon()
            stops = scene.start_with(f"supervisor:{step}")
            stop = scene.stop_or_served(stops)
            if stop is None:
                break
            print(stop)
            scene.probed()
            scene.quiet(stop)
        print(kind, f"{step - 1} steps")
        assert step > 1
        scene.served(stops)


@pytest.mark.parametrize("who", ["run", "inner"])
def test_the_process_beside_a_program_at_every_step(new_gate: NewGate, wires: Wires, who: str) -> None:
    """`zonegate run` and its inner process are killed at every step: no program runs outside a bubble."""
    gate = new_gate()
    with Scene(gate, wires) as scene:
        for step in itertools.count(1):
            gate.settings = replace(gate.settings, stops=f"{who}:{step}")
            bubble = gate.bubble(*python("canary", "everything", PUBLIC))
            stop = _stop_or_end(Stops(bubble.complained, gate), bubble)
            below = [bubble.process.pid, *kernel.descendants(bubble.process.pid)]
            if stop is None:
                break
            print(stop)
            scene.probed()
            kernel.signal_all([stop.pid], signal.SIGKILL)
            bubble.process.wait(kernel.LIMIT_S)
            _all_end(below)
            scene.quiet(stop)
        print(who, f"{step - 1} steps")
        assert step > 1 and bubble.process.returncode == 0, bubble.complained()
        scene.served()
        kernel.until("the daemon forgets them", lambda: len(gate.status()["bubbles"]) == 2)


def _stop_or_end(stops: Stops, bubble: Bubble) -> Stop | None:
    found = kernel.until("it stops or ends", lambda: stops.look() or bubble.process.poll() is not None)
    return found if isinstance(found, Stop) else None


def _all_end(pids: list[int]) -> None:
    kernel.until("all of it ends", lambda: not any(map(kernel.is_alive, pids)))


PROCESSES = {
    "mtls": ("worker", "holder", "supervisor"),
    "inspecting": ("worker", "inspector", "supervisor"),
    "wireguard": ("worker", "wireguard", "packet_holder", "wireguard-go", "supervisor"),
}


FLOODS = {"descriptors": "600", "memory": "6000", "killed": "600"}  # connections, more than there is room for


@pytest.mark.parametrize("what", RESOURCES)
@pytest.mark.parametrize("kind", PROCESSES)
def test_every_process_short_of_something(
    new_gate: NewGate, peer: Peer, wires: Wires, kind: str, what: str
) -> None:
    """Each in turn has no more descriptors or memory, or is killed for it, while many connections come:
    nothing leaves, whoever ends is replaced, and all is good when there is enough again."""
    gate = new_gate(**of_kind(kind, peer)).attested()
    with Scene(gate, wires) as scene:
        for name in PROCESSES[kind]:
            if name == "wireguard-go" and carriers.is_kernels(gate):
                continue
            pid = of_name(gate, name)
            with short_of(what, pid):
                flood = gate.bubble(*python("flood", NAME, "80", FLOODS[what]))
                if what == "descriptors" and name != "supervisor":
                    scene.denied()
                kernel.until("it is opened or refused", lambda: ended(flood))  # noqa: B023  of this turn
                scene.probed()
                scene.quiet(name)
                print(kind, what, name, "goes on" if kernel.is_alive(pid) else "ended", flood.lines())
            flood.end()
            if not kernel.is_alive(gate.pid):
                scene.kill_daemon()
                scene.start_with(NOBODY)
            scene.served()


def of_name(gate: Gate, name: str) -> int:
    """A process of a gate."""
    if name == "supervisor":
        return gate.pid
    below = kernel.descendants(gate.pid)
    return next((pid for pid in below if kernel.command_of(pid).startswith(name)), 0) or gate.child(name)


def ended(flood: Bubble) -> bool:
    """Whether it has said how many it opened, or was not let in."""
    return bool(flood.lines()) or flood.process.poll() is not None


def test_flaps(new_gate: NewGate, peer: Peer, wires: Wires) -> None:
    """A WireGuard tunnel goes and comes in every way in turn, and a request is good again each time."""
    gate = new_gate(**of_kind("wireguard", peer)).attested()
    for count in range(FLAPS):
        WAYS[count % len(WAYS)](gate, peer)
        served_again(gate)
        wires.quiet()


@pytest.mark.parametrize("then", ["start", "start (control)", "cleanup"])
def test_a_daemon_killed_while_a_sandbox_is_set_up(new_gate: NewGate, then: str) -> None:
    """The child of bubblewrap that is left goes with the next daemon, or `cleanup`, which says so."""
    control = "control" in then
    gate = new_gate("held-setup", *(["unbegun"] if control else []))
    child = killed_in_setup(gate)
    if then == "cleanup":
        assert gate.call("cleanup").out == "ended 0 bubbles\nended 1 sandbox that had not begun\n"
    else:
        gate.settings = replace(gate.settings, without=gate.settings.without - {"held-setup"})
        gate.start().attested()
    if control:
        assert kernel.is_alive(child), "a control must be red"
        kernel.signal_all([child], signal.SIGKILL)
    kernel.until("the child is gone", lambda: not kernel.is_alive(child))


@pytest.mark.parametrize("kind", KINDS)
def test_a_clock_that_is_set(new_gate: NewGate, peer: Peer, wires: Wires, world: World, kind: str) -> None:
    """Nothing is cut by it, and nothing is let through when the tunnel is lost, forward or back."""
    clock_is_set(new_gate, peer, wires, world, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_that_is_frozen_and_thawed(new_gate: NewGate, peer: Peer, wires: Wires, kind: str) -> None:
    """Whoever wakes first, an open flow is lost, and what its program has told since does not arrive."""
    gate = new_gate(**of_kind(kind, peer))
    for _ in range(THAWS):
        sleeper = Sleeper.of(gate)
        with frozen(gate):
            last = sleeper.slept()
        sleeper.telling.says("ended by ConnectionResetError")
        sleeper.has_lost_it(last)
        wires.quiet()
        sleeper.telling.end()


# -- tools of the system -----------------------------------------------------------------------------


def test_a_tunnel_whose_tools_fail(new_gate: NewGate, peer: Peer, wires: Wires, tools: Tools) -> None:
    """Whichever call fails while it is made, nothing leaves meanwhile, and it comes up unaided."""
    tools.fail_at(0)
    gate = new_gate(**packets(peer)).attested()
    calls = tools.calls()
    gate.end()
    assert sum("/nft" in one for one in calls) >= 1 and len(calls) >= 5, calls
    for number in range(1, len(calls) + 1):
        tools.fail_at(number)
        gate = new_gate(**packets(peer)).attested()
        print(f"{number} of {len(calls)}: {tools.calls()[number - 1][:90]}", flush=True)
        assert_served(gate)
        wires.quiet()
        gate.end()
