"""A WireGuard tunnel that flaps in every way; what is in flight when a tunnel is lost: rows T5 and N6."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from lab import carriers, kernel
from lab.conftest import AS_ROOT, AS_USER, WITHOUT
from lab.gate import Gate, Settings, python, remove
from lab.kernel import Place
from lab.packet_peer import PORT, SHARED, Peer, Wires, packets
from lab.programs.clients import UPLOAD
from lab.servers import KEPT_BYTES
from lab.test_tunnel import assert_served, download
from lab.world import PUBLIC, Host, World

NAME, UPLOAD_PORT = "intranet.corp.example", "7002"
FLAPS = 200


@pytest.fixture(scope="module")
def packet_gate(host: Host, peer: Peer) -> Iterator[Gate]:
    """A daemon with a WireGuard tunnel."""
    made = Gate(host, "losing", Settings(without=WITHOUT, **packets(peer, peer.tunnel(device=SHARED))))
    try:
        yield made.start().attested()
    finally:
        remove(made)


# -- T5 ----------------------------------------------------------------------------------------------


def link(gate: Gate, _: Peer) -> None:
    """The link to the corporate end goes, and comes."""
    gate.host.world.take_link_down()
    gate.host.world.take_link_up()


def silence(gate: Gate, _: Peer) -> None:
    """What is sent to the endpoint is dropped for a moment."""
    rule = f"{{ type filter hook input priority 0 ; udp dport {PORT} drop ; }}"
    lines = "nft add table inet lab", f"nft add chain inet lab silent {rule}", "nft delete table inet lab"
    kernel.must(gate.host.world.corp, *lines)


def endpoint(_: Gate, peer: Peer) -> None:
    """The peer's program ends, and another one begins."""
    peer.end()
    peer.start()


def device(gate: Gate, _: Peer) -> None:
    """The device is taken away, or its program killed, wherever it is just being started."""
    if carriers.is_kernels(gate):
        carriers.lose(gate)
    words = [(pid, kernel.command_of(pid)) for pid in kernel.descendants(gate.pid)]
    kernel.signal_all([pid for pid, told in words if told.startswith("wireguard-go")], signal.SIGKILL)


WAYS: tuple[Callable[[Gate, Peer], None], ...] = (link, silence, endpoint, device)


def served_again(gate: Gate) -> None:
    """Wait until a request is good: for a moment a tunnel that has just gone still counts as proved."""
    asked = ("curl", "-sS", "-m", "60", f"http://{NAME}/")
    kernel.until("it is served again", lambda: gate.run(*asked).out == "the intranet\n")


@AS_USER
def test_it_flaps_in_every_way(packet_gate: Gate, peer: Peer, wires: Wires, world: World) -> None:
    """However often it goes and comes, nothing else is tried; in the end it is back by itself.

    Here nobody waits for it to come back, but in the end; `make lab-long` waits each time, 200 times.
    """
    packet_gate.attested()
    bubble = download(packet_gate)
    flap = f"for i in $(seq {FLAPS}); do ip link set n-corp up; ip link set n-corp down; done"
    try:
        done = kernel.run(Place(world.net), ["sh", "-ec", flap])
        assert done.code == 0, done
    finally:
        world.take_link_up()
    for go_and_come in WAYS * 2:
        go_and_come(packet_gate, peer)
    served_again(packet_gate)
    wires.quiet()
    bubble.end()


# -- N6: data in flight ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """How a tunnel is lost, and how it is had again."""

    id: str
    lose: Callable[[Gate, Peer], None]
    restore: Callable[[World], None]


def _nobody(_: World) -> None:
    """It comes back by itself."""


LINK = Loss("the link is down", lambda gate, _: gate.host.world.take_link_down(), World.take_link_up)
LOSSES = (LINK, Loss("its device is lost", device, _nobody))


def upload_is_lost(gate: Gate, loss: Loss, peer: Peer, wires: Wires) -> None:
    """An upload whose server has heard a part of it and hears no more, so that the rest is on its way."""
    gate.attested()
    kept = gate.host.world.directory / "upload"
    kept.unlink(missing_ok=True)
    bubble = gate.bubble(*python("clients", "upload", NAME, UPLOAD_PORT))
    kernel.until("a part has arrived", lambda: kept.exists() and kept.stat().st_size >= KEPT_BYTES)
    wires.quiet()
    loss.lose(gate, peer)
    try:
        assert "ended by ConnectionResetError" in bubble.says("ended")
        heard = kept.read_bytes()
        assert KEPT_BYTES <= len(heard) < len(UPLOAD) and UPLOAD.startswith(heard)
    finally:
        loss.restore(gate.host.world)
    gate.attested()
    assert_served(gate)
    wires.quiet()


@AS_ROOT
def test_an_upload_in_flight(gate: Gate, peer: Peer, wires: Wires) -> None:
    """Over mtls: not a byte of it goes another way, the origin has a part, the client is told."""
    done = kernel.run(gate.host.place, python("clients", "upload", PUBLIC, "80"))  # in no bubble
    assert any("canary of the upload" in seen for seen in wires.seen()), f"a control must be red: {done}"
    upload_is_lost(gate, LINK, peer, wires)


@AS_USER
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.id)
def test_an_upload_in_flight_of_packets(packet_gate: Gate, peer: Peer, wires: Wires, loss: Loss) -> None:
    """Over WireGuard the same, also when the device goes that it is written to."""
    upload_is_lost(packet_gate, loss, peer, wires)
