"""The mtls tunnel is a standard: it ends at haproxy, apache2 and squid, set up as docs/gateways.md shows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab import kernel
from lab.conftest import AS_ROOT, OTHER_PORT, WITHOUT, NewGate
from lab.gate import Gate, Settings, remove
from lab.kernel import Place
from lab.other_ends import SOFTWARE, Devices, ManyTunnels, OtherEnd, Software, devices
from lab.servers import digest
from lab.test_tunnel import assert_served
from lab.world import GATEWAY, TESTS, World
from proxy import certificates

YES_PORT = 8446
URL = "http://intranet.corp.example"
MIB = 8


@pytest.fixture(scope="module")
def known(world: World) -> Devices:
    return devices(world)


@pytest.fixture(scope="module", params=SOFTWARE, ids=str)
def end(world: World, known: Devices, request: pytest.FixtureRequest) -> Iterator[OtherEnd]:
    """One of them, running."""
    made = OtherEnd(world, request.param, known)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def gate(world: World, end: OtherEnd) -> Iterator[ManyTunnels]:
    """A gate that leaves through it."""
    settings = Settings(without=WITHOUT, gateway=f"{GATEWAY}:{OTHER_PORT}")
    made = ManyTunnels(world.host("root"), f"many-{end.software}", settings)
    try:
        made.start().attested()
        yield made
    finally:
        remove(made)


def test_it_carries(gate: ManyTunnels) -> None:
    """By name, through a bubble; a long download arrives whole; a port that is not on its list is refused."""
    assert_served(gate)
    done = gate.run("sh", "-c", f"curl -sS -m 60 {URL}/big/{MIB} | sha256sum")
    assert done.out.split()[:1] == [digest(MIB)], done
    done = gate.run("curl", "-sS", "-m", "60", f"{URL}:7001/")
    assert "zonegate: intranet.corp.example:7001 is blocked by gate gateway" in done.out + done.err, done


def test_who_is_let_in(end: OtherEnd, known: Devices, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Asked without a gate: the named device; not another of the same CA, a rogue, expired or revoked one."""
    directory = tmp_path_factory.mktemp("clients")
    assert end.asked_by(known.good, directory).out == "the intranet\n", "a control must be good"
    another = end.asked_by(known.another, directory)
    assert "403" in another.err and not another.out, another
    for name in ("rogue", "expired", "revoked"):
        done = end.asked_by(getattr(known, name), directory)
        assert done.code in (35, 55, 56) and not done.out, (name, done)


def test_ends_that_do_not_fit(gate: ManyTunnels, end: OtherEnd) -> None:
    """Another name, another key, another CA; and a device that it does not let in.

    Where such a device is answered when it probes, `must_admit` shows it; without, its tunnel is attested.
    """
    for name, words in (
        ("wrong-name", "Hostname mismatch"),
        ("wrong-pin", "which is not pinned"),
        ("wrong-ca", "does not verify"),
    ):
        told = kernel.until(name, lambda name=name: _in_state(gate, name, "refused"))  # type: ignore[misc]
        assert words in told, told
    if end.software.probe_refuses:
        assert "is this client's certificate allowed?" in kernel.until(
            "device2 is down", lambda: _in_state(gate, "device2", "down")
        )
    else:
        kernel.until("device2 is attested", lambda: _in_state(gate, "device2", "attested"))
        assert "answers CONNECT intranet.corp.example:80 with 403" in kernel.until(
            "device2 that asks is down", lambda: _in_state(gate, "asked", "down")
        )


def _in_state(gate: ManyTunnels, tunnel: str, state: str) -> str:
    told = gate.status()["tunnels"][tunnel]
    return str(told["words"]) if told["state"] == state else ""


def test_a_device_is_revoked(gate: ManyTunnels, end: OtherEnd, known: Devices, world: World) -> None:
    """A CRL and a reload: its tunnel is down, its open flow cut, nothing new let in; others are served."""
    host = world.host("root")
    settings = Settings(without=WITHOUT, gateway=f"{GATEWAY}:{OTHER_PORT}")
    leaving = Gate(host, f"leaving-{end.software}", settings)
    for file in ("device1.crt", "device1.key"):
        (leaving.directory / file).unlink()
    certificates.write_issued(known.leaver, leaving.directory, "device1")
    try:
        leaving.start().attested()
        goes = leaving.bubble("curl", "-sSN", f"{URL}/drip")
        assert goes.says("drip"), "a control: it is let in until it is revoked"
        end.reload(known.revoked, known.leaver)
        kernel.until("it is refused", lambda: "refused this client" in leaving.tunnel()["words"])
        kernel.until("its flow is cut", lambda: goes.lines() and goes.process.poll())
        assert "tunnel hq is not proved" in leaving.run("curl", "-sS", "-m", "60", f"{URL}/").out
        kernel.until(
            "another is served",
            lambda: gate.run("curl", "-sS", "-m", "60", f"{URL}/").out == "the intranet\n",
        )
    finally:
        remove(leaving)


def test_it_is_restarted(gate: ManyTunnels, end: OtherEnd) -> None:
    """The tunnel is lost, its flows are refused; it comes back without help."""
    end.end()
    kernel.until("it is lost", lambda: not gate.tunnel()["attested"])
    assert "503 Service Unavailable" in gate.run("curl", "-sS", "-m", "60", "-i", f"{URL}/").out
    end.start()
    gate.attested()
    assert_served(gate)


@AS_ROOT
def test_one_that_says_yes_to_all(new_gate: NewGate, world: World) -> None:
    """It has the pinned key and answers every probe; but it refuses nothing, and so it is not taken."""
    directory = world.directory / "yes"
    directory.mkdir()
    certificates.write_issued(world.names.server, directory, "server")
    command = [
        sys.executable,
        "-P",
        str(TESTS / "lab/yes_to_all.py"),
        GATEWAY,
        str(YES_PORT),
        str(directory),
    ]
    with ExitStack() as undo:
        process = kernel.start(Place(world.corp), command)
        undo.callback(kernel.end, process)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        control = new_gate("yes-to-all", gateway=f"{GATEWAY}:{YES_PORT}")
        control.attested().end()
        gate = new_gate(gateway=f"{GATEWAY}:{YES_PORT}")
        assert "says yes to everything" in gate.in_state("refused")["words"]
        done = gate.run("curl", "-sS", "-m", "60", "-i", f"{URL}/")
        assert "tunnel hq is not proved" in done.out, done


def test_every_configuration_is_tried() -> None:
    """What the page shows and nobody runs would be a promise."""
    from lab.other_ends import TEXT

    shown = {line[3:] for line in TEXT.splitlines() if line.startswith("```") and line != "```"}
    assert shown == {language for one in SOFTWARE for language in one.programs}
    assert all(isinstance(one, Software) for one in SOFTWARE)
