"""A compromised worker, and a program that asks the host's services: rows B1, B6, B8, B9, D2 and D6."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import kernel, services
from lab.conftest import AS_ROOT, NewGate, Watch
from lab.gate import PROGRAMS, Gate, python
from lab.world import PUBLIC, RESOLVER, Host

NAME = "intranet.corp.example"


SOCKETS = ("dialled", "accepted", "listening")


def _touch_all(gate: Gate) -> None:
    """A flow of each kind, until a worker has had a dialled, an accepted and a listening socket to aim."""

    def touched() -> bool:
        gate.run("curl", "-s", "-m", "2", f"http://{NAME}/")
        for port in ("7001", "7000"):
            gate.python("canary", "stream", NAME, port)
        return _aimed(gate).keys() == set(SOCKETS)

    kernel.until("all are aimed", touched)


def _aimed(gate: Gate) -> dict[str, tuple[str, str]]:
    rows = [line.split() for line in gate.said().splitlines() if line.startswith("aimed")]
    return {kind: (first, second) for _, kind, first, second in rows}


def test_sockets_cannot_be_aimed_elsewhere(new_gate: NewGate, watch: Watch) -> None:
    """B8: a worker that disconnects the sockets it was given and dials elsewhere with them is refused."""
    control = new_gate("aim", "worker-filter").attested()
    _touch_all(control)
    assert {first for first, _ in _aimed(control).values()} == {"OK"}, "a control must be red"
    wire = control.host.world.wire
    kernel.until("a control must be red", lambda: any(f.target == f"{PUBLIC}:80" for f in wire.seen()))
    control.end()
    watch.forget()
    gate = new_gate("aim").attested()
    _touch_all(gate)
    assert _aimed(gate) == dict.fromkeys(SOCKETS, ("EPERM", "EPERM"))
    watch.only_the_gateway()


@AS_ROOT
def test_an_unsealed_worker_is_not_let_in(new_gate: NewGate) -> None:
    """B8: a worker that finds itself able to make sockets is sent away by the supervisor."""
    gate = new_gate("worker-filter-alone")
    kernel.until("it is told", lambda: "able to make sockets; it was not let in" in gate.said())
    assert not gate.status()["workers"]


FAMILIES = """
import socket
for family in set(range(64)) - {1, 2, 10, 16}:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        try: socket.socket(family, kind).close(); print("made", family)
        except OSError: pass
print("tried")"""


def test_families_of_sockets(new_gate: NewGate) -> None:
    """B5: a bubble makes sockets of four families; without the filter the kernel gives it others."""
    interpreter = python("canary")[0]
    control = new_gate("bubble-filter").attested()
    assert "made" in control.run(interpreter, "-c", FAMILIES).out, "a control must be red"
    control.end()
    assert new_gate().attested().run(interpreter, "-c", FAMILIES).out == "tried\n"


class Services:
    """Pretended services of the host at the places where glibc and programs look for them."""

    def __init__(self, host: Host) -> None:
        run = f"/run/user/{host.uid}"
        self.paths = [
            "/run/nscd/socket",
            "/run/systemd/resolve/io.systemd.Resolve",
            "/run/dbus/system_bus_socket",
            f"{run}/bus",
            "/run/docker.sock",
            "/run/user/ssh-master",
            f"{run}/gnupg-agent",
        ]
        self._log = host.directory / "services.log"
        command = [sys.executable, str(Path(services.__file__)), str(self._log), *self.paths]
        self._process = kernel.start(host.root, command)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def heard(self) -> str:
        """What was said, a line for each connection: the path and the first bytes."""
        return self._log.read_text()

    def asked_hosts(self) -> bool:
        """Whether nscd was asked for a host (by glibc: its map of hosts, or a name); users do not count."""
        lines = [line for line in self.heard().splitlines() if "nscd" in line]
        return any("hosts" in line or ".example" in line for line in lines)

    def end(self) -> None:
        """Hear no more."""
        kernel.end(self._process)
        self._log.unlink()


@pytest.fixture
def host_services(host: Host) -> Iterator[Services]:
    """The services of this host."""
    made = Services(host)
    try:
        yield made
    finally:
        made.end()


def _call_all(paths: list[str]) -> list[str]:
    """A shell that asks the host's services in every way that it finds."""
    return ["sh", "-c", 'getent hosts unknown.example; exec "$@"', "sh", *python("sockets", *paths)]


def test_services_of_the_host(new_gate: NewGate, host_services: Services) -> None:
    """D2 and B1: no service of the host is heard from a bubble: not nscd by glibc, not D-Bus, not docker."""
    control = new_gate("bubble-mounts").attested()
    done = control.run(*_call_all(host_services.paths))
    assert done.out.count("connected") == len(host_services.paths), f"a control must be red: {done}"
    assert host_services.asked_hosts(), "a control must be red"
    control.end()
    before = len(host_services.heard())
    gate = new_gate().attested()
    done = gate.run(*_call_all(host_services.paths))
    assert "connected" not in done.out and done.out.count("ENOENT") == len(host_services.paths), done
    later = host_services.heard()[before:].splitlines()
    assert not [line for line in later if "nscd" not in line or "hosts" in line or ".example" in line]


def test_the_users_tmux(new_gate: NewGate) -> None:
    """B1: a program in a bubble cannot have the user's tmux run something outside."""
    gate = new_gate().attested()
    host = gate.host
    place, canary = Path(f"/tmp/zonegate-lab-tmux-{os.getpid()}-{host.who}"), host.directory / "canary"
    tmux = ["tmux", "-S", str(place)]
    assert kernel.run(host.place, [*tmux, "-f", "/dev/null", "new-session", "-d", "cat"]).code == 0
    act = [*tmux, "run-shell", f"touch {canary}"]
    try:
        control = new_gate("bubble-mounts").attested()
        control.run(*act)
        kernel.until("a control must be red", canary.exists)
        canary.unlink()
        assert gate.run(*act).code != 0
        assert not canary.exists()
    finally:
        kernel.run(host.place, [*tmux, "kill-server"])
        canary.unlink(missing_ok=True)
        place.unlink(missing_ok=True)


def test_another_zone_from_inside(new_gate: NewGate) -> None:
    """B6: a bubble cannot start another one: the admin socket is not there, and if it is, says no."""
    gate = new_gate().attested()
    code = f"import sys; sys.path.insert(0, {str(kernel.REPOSITORY)!r}); from proxy.cli import main; main()"
    inside = [sys.executable, "-c", code]
    shell = 'ZONEGATE_SOCKET="$1"; export ZONEGATE_SOCKET; shift; exec "$@"'
    words = ["sh", "-c", shell, "sh", str(gate.socket), *inside]
    share = [Path(sys.prefix), kernel.REPOSITORY / "proxy", kernel.REPOSITORY]
    done = gate.run(*words, "run", "--", "true", share=share)
    assert done.code == 125 and "no daemon listens" in done.err, done
    shown = [*share, gate.socket]  # in its directory it would be hidden
    done = gate.run(*words, "status", share=shown)
    assert done.code == 2 and "another user namespace" in done.err, done
    assert gate.run(*words, "run", "--", "true", share=shown).code == 125
    outside = gate.call("run", "--", "true")
    assert outside.code == 0, f"a control must be red: {outside}"


# -- names asked by a worker -------------------------------------------------------------------------

EVERY_LOCK = ("worker-filter", "worker-mounts", "worker-network")


@AS_ROOT
@pytest.mark.parametrize("left", ["none", *EVERY_LOCK, "all"])
def test_names_asked_by_a_worker(new_gate: NewGate, watch: Watch, host_services: Services, left: str) -> None:
    """B9 and D6: what glibc asks in a worker reaches neither nscd nor a network; each lock alone suffices.

    `left` is the one lock that is still there.
    """
    out = [] if left == "all" else [name for name in EVERY_LOCK if name != left]
    gate = new_gate("ask-names", *out).attested()
    gate.python("canary", "stream", NAME, "7001")
    kernel.until("it has asked", lambda: "asked " in gate.said())
    world = gate.host.world
    asked = [f for f in [*world.wire.seen(), *world.loopback.seen()] if f.target == f"{RESOLVER}:53"]
    heard = host_services.asked_hosts()
    watch.forget()
    if left == "none":
        assert asked and heard, f"a control must be red: {gate.said()}"
        return
    assert not asked
    # An empty network namespace is no wall for a Unix socket: for nscd it takes one of the other locks.
    assert heard == (left == "worker-network"), host_services.heard()


def test_programs_are_there() -> None:
    """The lab's own programs exist, so that a missing one is not taken for a refusal."""
    assert {path.name for path in PROGRAMS.glob("*.py")} >= {"canary.py", "clients.py", "sockets.py"}
