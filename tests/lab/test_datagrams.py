"""UDP of a bubble through a WireGuard tunnel: carried, refused at once, cut with it, and never beside it."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aioquic
import pytest

from lab import kernel
from lab.conftest import AS_ROOT, WITHOUT, NewGate
from lab.gate import LAB_RULES, Gate, Settings, python, remove, started
from lab.kernel import Place
from lab.packet_peer import NETWORKS, OTHER, SHARED, Peer, echoing
from lab.wire import Frame, Wire
from lab.world import GATEWAY, INTRANET, INTRANET6, PUBLIC, Host, World, is_of_mtls

NAME = "intranet.corp.example"
PORT, OTHER_PORT, QUIC_PORT = 7100, 7101, 7102
WG_PORT = 51_827
REFUSED = ("EHOSTUNREACH at once\n", "EACCES at once\n")  # of IPv4 and of IPv6
RULES = (
    LAB_RULES
    + f"""
  - id: lab-datagrams
    match: {{zone: corporate, to: intranet, protocol: udp, port: [{PORT}, {QUIC_PORT}]}}
    verdict: tunnel
"""
)


@pytest.fixture(scope="module")
def peer(world: World) -> Iterator[Peer]:
    """The corporate end, and servers behind it that say back what they hear."""
    with echoing(world, WG_PORT, PORT) as made:
        yield made


def settings(peer: Peer, device: int) -> dict[str, Any]:
    """A zone with this tunnel, whose policy grants one port of UDP."""
    return {
        "tunnels": peer.tunnel(device=device),
        "order": "hq",
        "networks": NETWORKS,
        "secrets": peer.secrets,
        "rules": RULES,
    }


@pytest.fixture(scope="module")
def gate(host: Host, peer: Peer) -> Iterator[Gate]:
    """A daemon that no test ends."""
    made = Gate(host, "datagrams", Settings(without=WITHOUT, **settings(peer, SHARED)))
    try:
        yield made.start().attested()
    finally:
        remove(made)


@pytest.fixture
def quiet(world: World) -> Iterator[None]:
    """Nothing but the tunnel's own datagrams is seen during a test."""
    wires = [
        Wire(network, device, GATEWAY, WG_PORT, socket.IPPROTO_UDP)
        for network, device in ((world.net, "n-device"), (world.device, "lo"))
    ]
    try:
        yield
        seen = [frame for wire in wires for frame in wire.seen()]
        own = (is_of_mtls, _is_told_that_nobody_listens)
        strange = [str(frame) for frame in seen if not any(is_one(frame) for is_one in own)]
        assert not strange, strange[:10]
    finally:
        for wire in wires:
            wire.close()


def _is_told_that_nobody_listens(frame: Frame) -> bool:
    """The kernel tells the endpoint so when wireguard-go is gone: ICMP, of what the endpoint had sent."""
    return (frame.kind, frame.target, frame.data[:2]) == ("icmp", GATEWAY, b"\x03\x03")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("target", [NAME, INTRANET, INTRANET6])
def test_datagrams_are_carried(gate: Gate, target: str) -> None:
    """By name and by address, small ones and such as must be cut into fragments; and recorded."""
    done = gate.python("datagrams", "ask", target, str(PORT))
    assert done.out == "answered\n", done
    record = gate.record("end", lambda row: row["port"] == PORT and row["bytes_up"] == 10_873)
    assert (record["protocol"], record["verdict"], record["bytes_down"]) == ("udp", "tunnel", 10_873)
    assert record["because"]["id"] == "lab-datagrams" and record["tunnel"] == "hq"


@AS_ROOT
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("target", "port"), [(NAME, OTHER_PORT), (INTRANET, OTHER_PORT), (PUBLIC, PORT), (NAME, 443)]
)
def test_what_no_rule_grants_is_refused_at_once(gate: Gate, target: str, port: int) -> None:
    """Its program hears so as from a router, and can fall back to TCP."""
    done = gate.python("datagrams", "refused", target, str(port))
    assert done.out in REFUSED, done
    record = gate.record("verdict", lambda row: row["port"] == port)
    assert (record["verdict"], record["protocol"]) == ("block", "udp")


@AS_ROOT
@pytest.mark.usefixtures("quiet")
def test_a_thousand_exchanges_at_once(gate: Gate) -> None:
    """Each has its own socket in the tunnel, and its own answer."""
    done = gate.python("datagrams", "many", NAME, str(PORT), "1000")
    assert done.out == "answered 1000\n", done


@AS_ROOT
@pytest.mark.usefixtures("quiet")
def test_lost_and_back(new_gate: NewGate, peer: Peer) -> None:
    """Without the tunnel's peer exchanges are cut and refused; when it is back they go on as new ones."""
    gate = new_gate(**settings(peer, OTHER)).attested()
    bubble = gate.bubble(*python("datagrams", "for-ever", NAME, str(PORT)))
    bubble.says("answered")
    peer.configure(knows=False)
    try:
        bubble.says("refused E")
        record = gate.record("end", lambda row: row["port"] == PORT)
        assert "lost" in record["why"] or "no longer admitted" in record["why"], record
    finally:
        peer.configure()
    gate.attested()
    bubble.says("answered")


@pytest.mark.parametrize(("host", "control"), [("root", True), ("root", False)], indirect=["host"])
@pytest.mark.usefixtures("quiet")
def test_a_stopped_supervisor_prolongs_nothing(new_gate: NewGate, peer: Peer, control: bool) -> None:
    """B11 of datagrams: the lease runs out in the worker, which asks the clock before each of them."""
    gate = new_gate(*(["lease"] if control else []), **settings(peer, OTHER)).attested()
    bubble = gate.bubble(*python("datagrams", "for-ever", INTRANET, str(PORT)))
    bubble.says("answered")
    kernel.signal_all([gate.pid], signal.SIGSTOP)
    try:
        if control:
            for _ in range(70):  # more than three seconds of answers: longer than any lease
                assert "answered" in bubble.says(" ")
            return
        bubble.says("refused E")
        at = len(bubble.lines())
        kernel.until("some more are refused", lambda: len(bubble.lines()) > at + 5)
        assert not any("answered" in line for line in bubble.lines()[at:])
    finally:
        kernel.signal_all([gate.pid], signal.SIGCONT)
    bubble.says("answered")


@AS_ROOT
@pytest.mark.usefixtures("quiet")
def test_quic(gate: Gate, world: World) -> None:
    """A whole connection of QUIC, by name; one that claims another name does not come about."""
    packages, files = str(Path(aioquic.__file__).parents[1]), world.directory
    names = [packages, "serve", INTRANET, str(QUIC_PORT), str(files / "site.crt"), str(files / "site.key")]
    server = kernel.start(Place(world.corp), python("quic", *names))
    try:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        ask = [packages, "ask", NAME, str(QUIC_PORT), str(files / "site-ca.crt")]
        shared = [Path(packages)]
        done = gate.run(*python("quic", *ask), share=shared)
        assert done.out == "whole\n", done
        record = gate.record("end", lambda row: row["port"] == QUIC_PORT)
        assert (record["protocol"], record["name"]) == ("quic", NAME)
        done = gate.run(*python("quic", *ask, "git.corp.example"), share=shared)
        assert done.out.startswith("failed"), done
        gate.record("verdict", lambda row: row["because"]["id"] == "names-disagree")
    finally:
        kernel.end(server)


@AS_ROOT
def test_nothing_leaves(gate: Gate) -> None:
    """Every way out that is known, in a zone that carries datagrams: see `zonegate leaktest`."""
    place = gate.host.place
    there = Place(place.network, place.mounts, place.uid, {**place.environment, **gate.environment})
    rows = [word for row in ("N1", "N4", "D3") for word in ("--row", row)]
    done = kernel.run(there, gate.command("leaktest", "--json", *rows), limit_s=400)
    assert done.out, done
    result = json.loads(done.out)
    assert done.code == 0, [row for row in result["attempts"] if row["verdict"] in ("leak", "not shown")]


ATTACHED = "lab-datagrams"


@pytest.fixture
def attached(gate: Gate) -> Iterator[Place]:
    """A namespace by name, as `ip netns add` makes it, that is attached; in it, as `ip netns exec` is."""
    root, path = gate.host.root, f"/run/netns/{ATTACHED}"
    network = kernel.new_network()
    there = f"/proc/{os.getpid()}/fd/{network}"
    try:
        made = kernel.run(
            root, ["sh", "-ec", f"mkdir -p /run/netns; touch {path}; mount --bind {there} {path}"]
        )
        assert made.code == 0, made
        place = Place(root.network, root.mounts, 0, gate.environment)
        attaching = started(gate, place, gate.command("attach", "--netns", ATTACHED))
        try:
            attaching.says("is zone corporate")
            yield Place(network, root.mounts)
        finally:
            attaching.end()
    finally:
        kernel.run(root, ["sh", "-c", f"umount {path}; rm -f {path}"])
        os.close(network)


@AS_ROOT
@pytest.mark.usefixtures("quiet")
def test_in_a_namespace_that_is_attached(gate: Gate, attached: Place) -> None:
    """As in a bubble: by name and by address, answered by whom was asked, refused at once otherwise."""
    for target in (NAME, INTRANET, INTRANET6):
        done = kernel.run(attached, python("datagrams", "ask", target, str(PORT)))
        assert done.out == "answered\n", done
    (listed,) = [one["id"] for one in gate.status()["bubbles"] if one["attached"]]
    record = gate.record("verdict", lambda row: row["bubble"] == listed and row["name"] == NAME)
    assert (record["user"], record["protocol"], record["verdict"]) == ("root", "udp", "tunnel")
    for target, port in ((NAME, OTHER_PORT), (PUBLIC, PORT)):
        done = kernel.run(attached, python("datagrams", "refused", target, str(port)))
        assert done.out in REFUSED, done
