"""A tool of the system that fails half way, and one that somebody else uses: rows L3 and N8.

Every call of nft, ip, wg and mount is counted, and the Nth fails, whoever makes it. For a tunnel the one that
matters most is here, with its control; all of them are in `long_life.py`.
"""

from __future__ import annotations

import os

import pytest

from lab import kernel
from lab.carriers import network_of_tunnel
from lab.conftest import AS_ROOT, NewGate, Watch
from lab.failing_tools import Tools
from lab.gate import Gate, python
from lab.kernel import Place
from lab.opening import linked
from lab.packet_peer import Peer, Wires, packets
from lab.test_tunnel import NAME, assert_served
from lab.test_wireguard import attempts
from lab.world import PUBLIC

RULES_OF_A_BUBBLE = RULES_OF_A_TUNNEL = 2  # which call makes them


def leaves(network: int, device: int) -> bool:
    """Whether what root sends by a device that is added to a namespace leaves it."""
    with linked(network, device) as wire:
        kernel.run(Place(network), python("canary", "device", PUBLIC))
        return any(frame.kind in ("arp", "udp", "tcp") for frame in wire.seen())


# -- a bubble ----------------------------------------------------------------------------------------


def test_a_bubble_that_cannot_be_made(gate: Gate, watch: Watch, tools: Tools) -> None:
    """Whichever call fails, the program is not started, or is after another attempt of that call."""
    asked = ("curl", "-sS", "-m", "60", f"http://{NAME}/")
    done = gate.attested().run(*asked)
    assert done.out == "the intranet\n"
    for call in range(1, len(tools.calls()) + 1):
        tools.fail_at(call)
        done = gate.run(*asked)
        failed = tools.calls()[call - 1]
        again = failed in tools.calls()[call:]
        assert done.out == ("the intranet\n" if again else ""), (failed, done)
        assert again or "the lab has this call fail" in done.err, (failed, done)
    assert call >= 3
    watch.only_the_gateway()


@AS_ROOT
def test_the_control_of_a_bubble(gate: Gate, new_gate: NewGate, tools: Tools) -> None:
    """Where a failure is passed over, the program runs in a zone that a device added later leads out of."""
    for one, red in ((gate, False), (new_gate("tools").attested(), True)):
        tools.fail_at(RULES_OF_A_BUBBLE if red else 0)
        bubble = one.bubble("sh", "-c", "echo begun; read go")
        bubble.says("begun")
        assert "/nft" in tools.calls()[RULES_OF_A_BUBBLE - 1]
        zone = bubble.network()
        try:
            assert leaves(zone, one.host.world.device) == red, "a control must be red"
        finally:
            os.close(zone)
        bubble.end()


# -- a tunnel ----------------------------------------------------------------------------------------


def attested_again(gate: Gate, before: int) -> None:
    """Wait until its tunnel is proved once more than `before`."""
    kernel.until("it is proved again", lambda: gate.said().count("is attested") > before)


@pytest.mark.parametrize("host", ["user"], indirect=True)
def test_a_tunnel_that_cannot_be_made(new_gate: NewGate, peer: Peer, wires: Wires, tools: Tools) -> None:
    """Its rules fail: it is not up and says why, and is up when they do not fail any more. Then somebody
    flushes every rule there is (N8): nothing leaves, since there is no other device."""
    tools.fail_at(RULES_OF_A_TUNNEL)
    control = new_gate("tools", **packets(peer)).attested()
    assert "/nft" in tools.calls()[RULES_OF_A_TUNNEL - 1]
    with network_of_tunnel(control) as network:
        assert leaves(network, control.host.world.device), "a control must be red"
    control.end()
    tools.fail_at(RULES_OF_A_TUNNEL)
    wires.seen()
    gate = new_gate(**packets(peer))
    kernel.until("status says why", lambda: "the lab has this call fail" in gate.said())
    assert not gate.tunnel()["attested"]
    attested_again(gate, 0)
    assert_served(gate)
    wires.quiet()
    with network_of_tunnel(gate) as network:
        assert not leaves(network, gate.host.world.device)
        for where in (gate.host.world.device, network):
            kernel.must(where, "nft flush ruleset")
        attempts(Place(network), "device", "discovery")
        assert_served(gate)
        wires.quiet()
