"""The control of every structural row: a zone that does have a way out, made from outside by root.

The bubble's namespace is given a veth to the device and a default route, and its capture is taken away.
The same programs, under the same seccomp filter and without capabilities, are then seen on that link.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from lab import kernel
from lab.gate import Bubble, Gate, python
from lab.kernel import LIMIT_S, Place
from lab.wire import Frame, Wire
from lab.world import GATEWAY, GATEWAY_PORT, PUBLIC

WAITS = 'echo begun; read go; "$@"; echo ended'
PING_FOR_ALL = "net.ipv4.ping_group_range=0 2147483647"


@contextlib.contextmanager
def opened(bubble: Bubble) -> Iterator[Wire]:
    """A bubble with a way out for as long as the block lasts, and that way watched."""
    zone, device = bubble.network(), bubble.gate.host.world.device
    try:
        with linked(zone, device) as wire:
            remove_capture(zone)
            kernel.must(
                zone, "ip route add default via 10.200.3.1", "ip -6 route add default via 2001:db8:3::1"
            )
            yield wire
    finally:
        os.close(zone)


@contextlib.contextmanager
def linked(network: int, device: int) -> Iterator[Wire]:
    """A device up0 in a namespace that has none, which is linked to the device's, and that link watched."""
    name, there = f"z{network}", f"/proc/{os.getpid()}/fd/{network}"
    kernel.must(
        device,
        f"ip link add {name} type veth peer name up0 netns {there}",
        f"ip link set {name} addrgenmode none",  # else the link greets by itself
        f"ip link set {name} up",
        f"ip addr add 10.200.3.1/24 dev {name}",
        f"ip -6 addr add 2001:db8:3::1/64 dev {name} nodad",
    )
    try:
        kernel.must(
            network,
            "ip link set up0 addrgenmode none",
            "ip link set up0 up",
            "ip addr add 10.200.3.2/24 dev up0",
            "ip -6 addr add 2001:db8:3::2/64 dev up0 nodad",
        )
        wire = Wire(device, name, GATEWAY, GATEWAY_PORT)
        try:
            yield wire
        finally:
            wire.close()
    finally:
        kernel.run(Place(device), ["ip", "link", "del", name])


def remove_capture(zone: int) -> None:
    """Take the rules and the routes of a zone away."""
    kernel.must(zone, "nft flush ruleset")
    for family in ("-4", "-6"):
        route = ["route", "del", "local", "default", "dev", "lo", "table", "local"]
        kernel.run(Place(zone), ["ip", family, *route])
    left = kernel.run(Place(zone), ["ip", "route", "get", PUBLIC]).out
    assert "dev lo" not in left, left


def attempt(
    gate: Gate, *command: str, control: bool = False, limit_s: float = LIMIT_S
) -> tuple[list[Frame], str]:
    """Run a command in a bubble; every frame that leaves the zone or the device, and what it said.

    With `control`, or with `linkless` taken out, the zone has a way out.
    """
    world = gate.host.world
    bubble = gate.bubble("sh", "-c", WAITS, "sh", *command)
    bubble.says("begun")
    seen: list[Frame] = []
    with contextlib.ExitStack() as undo:
        wire = None
        if control or "linkless" in gate.settings.without:
            wire = undo.enter_context(opened(bubble))
        if "bubble" not in gate.settings.without:
            zone = bubble.network()
            undo.callback(os.close, zone)
            kernel.run(Place(zone), ["sysctl", "-qw", PING_FOR_ALL])
        bubble.tell("go")
        bubble.says("ended", limit_s)
        if wire is not None:
            seen += wire.seen()
        said = "\n".join(bubble.heard[1:-1])
    bubble.end()
    return [*seen, *world.wire.seen(), *world.loopback.seen()], said


class Probe:
    """A bubble that tries every way out, round after round, while something happens to the gate."""

    def __init__(self, gate: Gate, *, control: bool = False) -> None:
        self.bubble = gate.bubble(*python("canary", "loop", PUBLIC))
        self._world = gate.host.world
        self._undo = contextlib.ExitStack()
        self._way_out: Wire | None = None
        self.bubble.says("round")
        if control or "linkless" in gate.settings.without:
            self._way_out = self._undo.enter_context(opened(self.bubble))

    def a_round(self) -> None:
        """Wait for a whole round that began after this call."""
        at = len(self.bubble.lines())
        kernel.until("two rounds more", lambda: len(self.bubble.lines()) >= at + 2)

    def check(self) -> None:
        """Nothing was seen, nowhere, since the last look."""
        seen = [*self._world.wire.seen(), *self._world.loopback.seen()]
        if self._way_out is not None:
            seen += self._way_out.seen()
        assert not seen, f"left the zone: {[str(frame) for frame in seen[:10]]}"

    def end(self) -> None:
        """The last look."""
        try:
            self.check()
        finally:
            self._undo.close()
            self.bubble.end()
