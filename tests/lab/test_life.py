"""Starts, stops and deaths: nothing gets out while they happen, nothing is left, and what should go on does.

Rows L1 and L2, D1 in every state, and the table of events of the design. The probe tries every way out in a
bubble of its own from before the event until after it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from lab import kernel
from lab.conftest import AS_ROOT, WITHOUT, NewGate
from lab.gate import Bubble, Gate, Settings, python, remove
from lab.kernel import Place
from lab.opening import Probe
from lab.stops import killed_in_setup
from lab.world import Host

NAME = "intranet.corp.example"


@dataclass(slots=True)
class Scene:
    """A gate with a program that asks for a page, one that downloads, and the probe."""

    gate: Gate
    asking: Bubble
    download: Bubble
    probe: Probe

    def prepare(self) -> None:
        """All three at work, whatever became of them in the test before."""
        self.gate.attested()
        if self.asking.process.poll() is not None:
            self.asking = self.gate.bubble(*python("clients", "ask", NAME, "80"))
        if self.download.process.poll() is not None or "after" in " ".join(self.download.lines()[-1:]):
            self.download.end()
            self.download = self.gate.bubble(*python("clients", "hold", NAME, "80"))
        self.asking.lines()
        self.asking.says("status 200")
        self.download.says("flowing")


@pytest.fixture(scope="module")
def stage(host: Host) -> Iterator[Scene]:
    """A gate in full work, for all the events of this file."""
    gate = Gate(host, "stage", Settings(without=WITHOUT)).start().attested()
    try:
        asking = gate.bubble(*python("clients", "ask", NAME, "80"))
        download = gate.bubble(*python("clients", "hold", NAME, "80"))
        yield Scene(gate, asking, download, Probe(gate))
    finally:
        remove(gate)


@pytest.fixture
def scene(stage: Scene) -> Iterator[Scene]:
    """The stage, prepared; nothing may have been seen when the test is over."""
    stage.prepare()
    yield stage
    stage.probe.check()


def test_the_probe_itself(new_gate: NewGate) -> None:
    """The control of this file: with a way out, the same probe is seen."""
    probe = Probe(new_gate().attested(), control=True)
    probe.a_round()
    with pytest.raises(AssertionError, match="left the zone"):
        probe.end()


# -- one process dies or stops -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """What befalls which process, and whether downloads are cut by it at once."""

    id: str
    pid: Callable[[Scene], int]
    number: signal.Signals
    cuts: bool


EVENTS = (
    Event("the worker is killed", lambda s: s.gate.child("worker"), signal.SIGKILL, True),
    Event(
        "the worker's sandbox is killed",
        lambda s: _parent(s.gate.child("worker")),
        signal.SIGKILL,
        True,
    ),
    Event("the worker is stopped", lambda s: s.gate.child("worker"), signal.SIGSTOP, False),
    Event("the holder is killed", lambda s: s.gate.child("holder"), signal.SIGKILL, True),
    Event("the holder is stopped", lambda s: s.gate.child("holder"), signal.SIGSTOP, True),
    Event("the supervisor is stopped", lambda s: s.gate.pid, signal.SIGSTOP, True),
    Event("the outer process is stopped", lambda s: s.asking.process.pid, signal.SIGSTOP, False),
    Event("the inner process is stopped", lambda s: s.asking.inner, signal.SIGSTOP, False),
)


def _parent(pid: int) -> int:
    return kernel.parents()[pid]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.id)
def test_a_process_dies_or_stops(scene: Scene, event: Event) -> None:
    """Not a byte gets past the gate, flows are cut where the table says so, and all goes on afterwards."""
    pid = event.pid(scene)
    workers = {worker["pid"] for worker in scene.gate.status()["workers"]}
    kernel.signal_all([pid], event.number)
    try:
        if event.cuts:
            assert "ConnectionResetError" in scene.download.says("after")
        scene.probe.a_round()
    finally:
        kernel.signal_all([pid] if event.number == signal.SIGSTOP else [], signal.SIGCONT)
    scene.gate.attested()
    scene.asking.lines()
    scene.asking.says("status 200")
    if event in EVENTS[:2]:
        assert workers.isdisjoint({worker["pid"] for worker in scene.gate.status()["workers"]})
    assert len(scene.gate.status()["bubbles"]) >= 2, "the programs that were not cut go on"
    scene.probe.a_round()
    scene.probe.check()


@pytest.mark.parametrize("who", ["outer", "inner"])
def test_the_process_beside_a_program_is_killed(scene: Scene, who: str) -> None:
    """The program goes with it, and the daemon forgets the bubble."""
    below = kernel.descendants(scene.asking.process.pid)
    victim = scene.asking.process.pid if who == "outer" else scene.asking.inner
    kernel.signal_all([victim], signal.SIGKILL)
    kernel.until("all of the bubble is gone", lambda: not any(map(kernel.is_alive, below)))
    kernel.until("status forgets it", lambda: len(scene.gate.status()["bubbles"]) == 2)
    scene.probe.a_round()


# -- the supervisor goes, and another one comes ------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "keep-bubbles"])
def test_bubbles_outlive_their_daemon(scene: Scene, how: str) -> None:
    """Programs go on, shut in: flows are cut, connects refused at once; the next daemon takes them on."""
    gate = scene.gate
    bubbles = {bubble["id"] for bubble in gate.status()["bubbles"]}
    assert gate.process is not None
    children = kernel.descendants(gate.pid)
    if how == "killed":
        kernel.signal_all([gate.pid], signal.SIGKILL)
    else:
        assert gate.call("stop", "--keep-bubbles").code == 0
    kernel.end(gate.process)
    assert "ConnectionResetError" in scene.download.says("after")
    scene.asking.says("error")
    scene.probe.a_round()
    kernel.until("workers and holders end", lambda: not any(map(kernel.is_alive, children)))
    gate.start().attested()
    scene.asking.says("status 200")
    kernel.until("those whose programs go on are adopted", lambda: len(gate.status()["bubbles"]) == 2)
    assert {bubble["id"] for bubble in gate.status()["bubbles"]} < bubbles, "under their old names"
    scene.probe.a_round()


def test_cleanup_after_a_kill(new_gate: NewGate) -> None:
    """`zonegate cleanup` ends the bubbles of a daemon that was killed, and forgets its socket."""
    gate = new_gate().attested()
    bubble = gate.bubble("sh", "-c", "echo begun; sleep 1000")
    bubble.says("begun")
    below = kernel.descendants(bubble.process.pid)
    gate.kill()
    done = gate.call("cleanup")
    assert (done.code, done.out) == (0, "ended 1 bubble\n"), done
    kernel.until("all of the bubble is gone", lambda: not any(map(kernel.is_alive, below)))
    assert not gate.socket.exists()


@AS_ROOT
def test_a_daemon_killed_while_a_sandbox_is_set_up(new_gate: NewGate) -> None:
    """bubblewrap's child waits for a word that nobody will say; the next daemon ends it.

    Other tests start daemons meanwhile, which do the same; with its control it is one of `make lab-long`.
    """
    gate = new_gate("held-setup")
    child = killed_in_setup(gate)
    gate.settings = replace(gate.settings, without=gate.settings.without - {"held-setup"})
    gate.start().attested()
    kernel.until("the child is gone", lambda: not kernel.is_alive(child))


# -- nothing is left behind --------------------------------------------------------------------------


def _left(gate: Gate) -> dict[str, str]:
    """What a daemon could leave behind on the host, beside its state and its log."""
    root = gate.host.root
    return {
        "mounts": kernel.run(root, ["cat", "/proc/self/mounts"]).out,
        "rules": kernel.run(root, ["nft", "list", "ruleset"]).out,
        "links": kernel.run(root, ["ip", "-br", "link"]).out,
        "routes": kernel.run(root, ["ip", "route"]).out,
        "run": kernel.run(root, ["find", "/run", str(gate.socket.parent), "-type", "s"]).out,
        "namespaces": "\n".join(sorted(_namespaces())),
    }


def _namespaces() -> set[str]:
    """Network namespaces that some process below us is in."""
    return {str(kernel.network_of(pid)) for pid in kernel.descendants(os.getpid())} - {"0"}


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stop"])
def test_a_stop_leaves_nothing(new_gate: NewGate, how: str) -> None:
    """No process, namespace, mount, socket, rule; programs got SIGTERM; the exit code is 0."""
    gate = new_gate().attested()
    gate.child("worker")
    old = kernel.descendants(gate.pid)
    gate.end()
    kernel.until("the first one is gone", lambda: not any(map(kernel.is_alive, old)))
    before, others = _left(gate), set(kernel.descendants(os.getpid()))
    gate.start().attested()
    probe = Probe(gate)
    bubble = gate.bubble("sh", "-c", "trap 'echo bye; exit 3' TERM; echo begun; while :; do sleep 0.05; done")
    bubble.says("begun")
    process = gate.process
    assert process is not None
    if how == "stop":
        assert gate.call("stop").code == 0
    else:
        process.send_signal(signal.Signals[how])
    assert process.wait(kernel.LIMIT_S) == 0, gate.said()
    bubble.says("bye")
    assert bubble.process.wait(kernel.LIMIT_S) == 3
    probe.end()

    def new() -> list[str]:
        return [kernel.command_of(pid)[:80] for pid in set(kernel.descendants(os.getpid())) - others]

    kernel.until("no process is left", lambda: not new())
    assert _left(gate) == before
    gate.process = None


def test_before_the_tunnel_is_up(new_gate: NewGate, host_is_cut_off: None) -> None:
    """L1: a bubble that starts before the tunnel is proved has no way out, and needs none to be closed."""
    gate = new_gate()
    probe = Probe(gate)
    probe.a_round()
    done = gate.run("curl", "-sS", "-m", "60", f"http://{NAME}/")
    assert "tunnel hq is not proved" in done.out, done
    probe.end()


@pytest.fixture
def host_is_cut_off(new_gate: NewGate) -> Iterator[None]:
    """No connection to the gateway for a while: everything is dropped at its machine."""
    world = new_gate().host.world
    place = Place(world.corp)
    rule = "{ type filter hook input priority 0 ; tcp dport 8443 drop ; }"
    kernel.must(world.corp, "nft add table inet lab", f"nft add chain inet lab silent {rule}")
    yield
    kernel.run(place, ["nft", "delete", "table", "inet", "lab"])
