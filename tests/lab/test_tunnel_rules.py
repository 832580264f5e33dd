"""The rules of a WireGuard tunnel's namespace, where there is another device after all: rows N6 and N10.

Elsewhere there is none, and that alone suffices. Here the lab adds one, and what is left are the rules.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

from lab import kernel
from lab.carriers import network_of_tunnel
from lab.conftest import AS_USER, WITHOUT, NewGate
from lab.gate import Gate, Settings, python, remove
from lab.kernel import Place
from lab.opening import linked
from lab.packet_peer import OTHER, SHARED, Peer, packets, public
from lab.wire import Wire
from lab.world import INTRANET, Host

pytestmark = AS_USER  # whose tunnel has rules for its VPN program besides

NAME, PORT = "intranet.corp.example", "7002"
OUTSIDE = "10.200.3.1"  # the other end of the device that is added


@pytest.fixture(scope="module")
def packet_gate(host: Host, peer: Peer) -> Iterator[Gate]:
    """A daemon with a WireGuard tunnel."""
    made = Gate(host, "ruled", Settings(without=WITHOUT, **packets(peer, peer.tunnel(device=SHARED))))
    try:
        yield made.start().attested()
    finally:
        remove(made)


COUNTERS = {  # of the lab, before and behind the rules of the namespace
    "sent": "output -10 oifname up0 tcp dport 7002",
    "came": "input -10 iifname up0",
    "taken": "input 10 iifname up0",
    "crossed": "forward -10 oifname up0",
}


@contextlib.contextmanager
def another_device(gate: Gate) -> Iterator[tuple[int, Wire]]:
    """The namespace of a gate's tunnel with a device that leads out, watched; packets are counted there."""
    with (
        network_of_tunnel(gate) as network,
        linked(network, gate.host.world.device) as wire,
        contextlib.ExitStack() as undo,
    ):
        kernel.must(network, "nft add table inet lab")
        undo.callback(kernel.must, network, "nft delete table inet lab")
        for name, told in COUNTERS.items():
            hook, priority, *match = told.split()
            chain = f"{{ type filter hook {hook} priority {priority} ; }}"
            kernel.must(network, f"nft add chain inet lab {name} {chain}")
            kernel.must(network, f"nft add rule inet lab {name} {' '.join(match)} counter")
        yield network, wire


def address_of(which: int) -> str:
    """That of a device in the tunnel."""
    return f"10.78.1.{2 + which}"


@contextlib.contextmanager
def passing_through(peer: Peer, which: int) -> Iterator[None]:
    """The peer takes a device for the router to what is outside of the tunnel."""
    known = f"{address_of(which)}/32,{OUTSIDE}/32"
    peer.must("wg", "set", peer.device, "peer", public(peer.devices[which]), "allowed-ips", known)
    peer.must("ip", "route", "add", f"{OUTSIDE}/32", "dev", peer.device)
    try:
        yield
    finally:
        peer.must("ip", "route", "del", f"{OUTSIDE}/32", "dev", peer.device)
        peer.configure()


def count(network: int, name: str) -> int:
    """How many of a kind there were."""
    shown = kernel.run(Place(network), ["nft", "list", "chain", "inet", "lab", name]).out
    found = re.search(r"counter packets (\d+)", shown)
    assert found, shown
    return int(found[1])


def an_upload_that_another_way_is_given_to(gate: Gate, *, red: bool = False) -> None:
    """A device is added in the middle of it, with a better route."""
    bubble = gate.attested().bubble(*python("clients", "tell", NAME, PORT))
    bubble.says("told 5")
    with another_device(gate) as (network, wire):
        kernel.must(network, f"ip route add {INTRANET}/32 via {OUTSIDE}")
        kernel.until("it is sent by the new device", lambda: count(network, "sent"))
        seen = wire.seen()
    bubble.end()
    assert bool(seen) == red, [str(frame) for frame in seen[:10]]


def what_comes_by_another_way(gate: Gate, peer: Peer, which: int, *, red: bool = False) -> None:
    """Somebody beside the device sends to the tunnel's address; the peer has the device pass something on."""
    address, outside = address_of(which), gate.host.world.device
    gate.attested()
    with another_device(gate) as (network, wire), passing_through(peer, which):
        kernel.must(network, "sysctl -qw net.ipv4.ip_forward=1")
        kernel.must(outside, f"ip route add {address}/32 via 10.200.3.2")
        for what in ("datagram", "stream", "ping"):
            kernel.run(Place(outside), python("canary", what, address))
        kernel.until("it has come", lambda: count(network, "came"))
        sends = python("canary", "datagram", OUTSIDE)
        kernel.until(
            "it is to be passed on", lambda: kernel.run(peer.place, sends) and count(network, "crossed")
        )
        if red:
            kernel.until("a control must be red", lambda: count(network, "taken") and packets_of(wire))
        else:
            assert (count(network, "taken"), packets_of(wire)) == (0, [])


def packets_of(wire: Wire) -> list[str]:
    """What was seen but ARP, with which the kernel answers who asks for the namespace's address."""
    return [str(frame) for frame in wire.seen() if frame.kind != "arp"]


def test_an_upload_in_flight(packet_gate: Gate) -> None:
    """N6: not a byte of a running upload takes another way, though there is a better one."""
    an_upload_that_another_way_is_given_to(packet_gate)


def test_nothing_comes_in_but_by_the_tunnel(packet_gate: Gate, peer: Peer) -> None:
    """N10: nothing is taken that comes by another device, and nothing of the peer's passes through to one."""
    what_comes_by_another_way(packet_gate, peer, SHARED)


def test_the_control_of_a_tunnels(new_gate: NewGate, peer: Peer) -> None:
    """With a rule for what is established, and with those that take and pass on, both are seen."""
    gate = new_gate("none-for-being-old", "tunnel-drops", **packets(peer))
    an_upload_that_another_way_is_given_to(gate, red=True)
    what_comes_by_another_way(gate, peer, OTHER, red=True)
