"""A gateway that moves, a way to it that flaps and that takes small packets only: rows T4 and T5."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from lab import kernel
from lab.conftest import AS_ROOT, NewGate, Watch
from lab.gate import Gate
from lab.opening import Probe
from lab.test_tunnel import NAME, assert_served, download
from lab.world import CODE, GATEWAY, INTRANET, SERVER_NAME, Gateway, Host, World
from proxy.certificates import Issued, issue_server

PORT = 8447
FLAPS = 200
SMALL_MTU = 1280  # the least that IPv6 lives with (RFC 8200, section 5)


def gateway_at(world: World, address: str, server: Issued | None = None) -> Gateway:
    """A corporate end at an address of corp, with the pinned key or another."""
    made = Gateway(world, world.directory / f"at-{address}", server or world.names.server, port=PORT)
    config = made.directory / "gateway.yaml"
    config.write_text(config.read_text().replace(f'"{GATEWAY}:{PORT}"', f'"{address}:{PORT}"'))
    return made


@AS_ROOT
def test_the_gateway_moves(new_gate: NewGate, host: Host, world: World) -> None:
    """The site file names it; where the name leads is asked anew, and who it is says its key alone."""
    hosts = host.directory / "hosts"
    hosts.write_text(f"{GATEWAY} moving.corp.example\n")
    with ExitStack() as undo:
        assert kernel.run(host.root, ["mount", "--bind", str(hosts), "/etc/hosts"]).code == 0
        undo.callback(kernel.run, host.root, ["umount", "/etc/hosts"])
        first, second = (gateway_at(world, address) for address in (GATEWAY, INTRANET))
        other_key = issue_server(world.names.authority, [SERVER_NAME], now=datetime.now(UTC))
        impostor = gateway_at(world, CODE, other_key)
        for one in (first, second, impostor):
            undo.callback(one.end)
            one.start()
        gate = new_gate(gateway=f"moving.corp.example:{PORT}").attested()
        assert_served(gate)
        assert not _served_by(second)
        hosts.write_text(f"{INTRANET} moving.corp.example\n")
        first.end()
        kernel.until("the other one is asked for what it must refuse", lambda: "0.0.0.0:1" in second.heard())
        gate.attested()
        assert_served(gate)
        assert _served_by(second)
        peer = gate.tunnel()["peer"]
        hosts.write_text(f"{CODE} moving.corp.example\n")
        second.end()
        asked = ("curl", "-sS", "-m", "60", f"http://{NAME}/")
        kernel.until(
            "the other key is seen",
            lambda: gate.run(*asked) and ("is not pinned" in gate.said() or _served_by(impostor)),
        )
        assert not _served_by(impostor)
        assert peer == world.names.server.pin
        assert_served(new_gate("attest", "peer", gateway=f"moving.corp.example:{PORT}"))
        assert _served_by(impostor), "a control must be red"


def _served_by(gateway: Gateway) -> bool:
    return '"what":"connect"' in gateway.heard()


@AS_ROOT
def test_the_way_flaps(gate: Gate, world: World) -> None:
    """However often it goes and comes, nothing else is tried; in the end the tunnel is back by itself."""
    probe = Probe(gate)
    gate.attested()
    bubble = download(gate)
    flap = f"for i in $(seq {FLAPS}); do ip link set n-corp up; ip link set n-corp down; done"
    try:
        done = kernel.run(kernel.Place(world.net), ["sh", "-ec", flap])
        assert done.code == 0, done
    finally:
        world.take_link_up()
    gate.attested()
    assert_served(gate)
    probe.end()
    bubble.end()


@AS_ROOT
def test_small_packets(gate: Gate, watch: Watch, world: World, tmp_path: Path) -> None:
    """What is too large for the way arrives all the same, up and down."""
    data = bytes(range(256)) * 4096
    with ExitStack() as undo:
        undo.callback(kernel.must, world.device, "ip route flush cache")  # what it learnt of the way
        for network, device in ((world.net, "n-corp"), (world.corp, "up0")):
            kernel.must(network, f"ip link set {device} mtu {SMALL_MTU}")
            undo.callback(kernel.must, network, f"ip link set {device} mtu 1500")
        gate.attested()
        url = "http://intranet.corp.example"
        sent = gate.run("curl", "-sS", "-m", "60", "--data-binary", "@-", f"{url}/upload", stdin=data)
        assert sent.out == hashlib.sha256(data).hexdigest(), sent
        got = gate.run("sh", "-c", f"curl -sS -m 60 {url}/big/2 | wc -c")
        assert got.out.strip() == str(2 << 20), got
    watch.only_the_gateway()
