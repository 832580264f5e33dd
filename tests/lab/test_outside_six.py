"""The network outside has IPv6: it is the way to the peer of either kind of tunnel, and nothing else is."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab import kernel
from lab.conftest import AS_ROOT, NewGate
from lab.packet_peer import NETWORKS, OTHER, Peer
from lab.test_moving import PORT as MTLS_PORT
from lab.test_moving import gateway_at
from lab.test_tunnel import assert_refused_because, assert_served
from lab.wire import Wire
from lab.world import GATEWAY6, World, is_of_mtls

WG_PORT = 51_831
NOTHING_PORT = 9  # a wire sorts out one port of IPv4: here that of nobody


@pytest.fixture(scope="module")
def peer(world: World) -> Iterator[Peer]:
    """The corporate end."""
    made = Peer(world, WG_PORT)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def nothing_but(world: World, kind: str, endpoint: str) -> Iterator[None]:
    """What is seen meanwhile goes to this endpoint or comes from there, and there is some of it."""
    wires = [
        Wire(network, device, "0.0.0.0", NOTHING_PORT, socket.IPPROTO_UDP)
        for network, device in ((world.net, "n-device"), (world.device, "lo"))
    ]
    try:
        yield
        seen = [frame for wire in wires for frame in wire.seen() if not is_of_mtls(frame)]
        own = [frame for frame in seen if frame.kind == kind and endpoint in (frame.source, frame.target)]
        strange = [str(frame) for frame in seen if frame not in own and not _is_refusal(frame.data)]
        assert own and not strange, strange[:10]
    finally:
        for wire in wires:
            wire.close()


def _is_refusal(data: bytes) -> bool:
    """The kernel tells the peer that nobody listens any more (ICMPv6: destination unreachable, port)."""
    return data[:2] == b"\x01\x04"


def test_wireguard(new_gate: NewGate, peer: Peer, world: World) -> None:
    """Root's device sends by IPv6 itself, an ordinary user's by the shuttle; lost and found as ever."""
    endpoint = f"[{GATEWAY6}]:{WG_PORT}"
    with nothing_but(world, "udp", f"{GATEWAY6}:{WG_PORT}"):
        tunnel = peer.tunnel(device=OTHER, endpoint=endpoint)
        gate = new_gate(tunnels=tunnel, networks=NETWORKS, secrets=peer.secrets).attested()
        told = gate.tunnel()
        assert (told["gateway"], told["words"]) == (endpoint, f"the pinned peer answers, at {endpoint}")
        assert_served(gate)
        assert gate.run("curl", "-sS", "-m", "60", "http://six.corp.example/").out == "the intranet\n"
        assert gate.run("curl", "-sS", "http://intranet.corp.example/big/2", "-o", "/dev/null").code == 0
        if gate.host.uid:
            return
        peer.end()
        try:
            words = f"{endpoint} cannot be reached: Connection refused"
            kernel.until("status says why", lambda: words in gate.tunnel()["words"], 60.0)
            assert_refused_because(gate, words)
        finally:
            peer.start()
        gate.attested()
        assert_served(gate)


@AS_ROOT
def test_mtls(new_gate: NewGate, world: World) -> None:
    """The same for a gateway of zonegate."""
    endpoint = f"[{GATEWAY6}]:{MTLS_PORT}"
    gateway = gateway_at(world, f"[{GATEWAY6}]")
    gateway.start()
    try:
        with nothing_but(world, "tcp", f"{GATEWAY6}:{MTLS_PORT}"):
            gate = new_gate(gateway=f'"{endpoint}"').attested()
            assert gate.tunnel()["gateway"] == endpoint
            assert_served(gate)
    finally:
        gateway.end()
