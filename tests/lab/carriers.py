"""Who has root's WireGuard devices: the kernel, where it can, or wireguard-go; taking one away, changing one.

`LAB_CARRIER` says which it has to be: the lab fails where it is the other one.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lab import kernel
from lab.gate import Gate
from lab.kernel import Place

KERNEL, PROGRAM = "kernel", "wireguard-go"


@functools.cache
def of_root() -> str:
    """Who has the devices of root on this machine."""
    network = kernel.new_network()
    try:
        done = kernel.run(Place(network), ["ip", "link", "add", "wg0", "type", "wireguard"])
    finally:
        os.close(network)
    found = PROGRAM if done.code else KERNEL
    wanted = os.environ.get("LAB_CARRIER", found)
    assert found == wanted, f"WireGuard is of {found} here, not of {wanted}: {done.err}"
    return found


def is_kernels(gate: Gate) -> bool:
    """Whether the kernel has this daemon's devices; an ordinary user's it never has."""
    return gate.host.uid == 0 and of_root() == KERNEL


@contextmanager
def network_of_tunnel(gate: Gate) -> Iterator[int]:
    """A descriptor of the tunnel's namespace."""
    fd = os.open(f"/proc/{gate.child('packet_holder')}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def device_in(network: int) -> str:
    """The name of the tunnel's device, "" when it is not there."""
    shown = kernel.run(Place(network), ["ip", "-br", "link"]).out.split()
    return next((word.partition("@")[0] for word in shown if word.startswith("zg")), "")


def wireguard_go(gate: Gate) -> int:
    """The process below a daemon."""

    def find() -> int:
        for pid in kernel.descendants(gate.pid):
            if kernel.command_of(pid).startswith(PROGRAM):
                return pid
        return 0

    return kernel.until(PROGRAM, find)


def lose(gate: Gate) -> None:
    """Take the device away: root of the machine deletes the kernel's, wireguard-go is killed."""
    if not is_kernels(gate):
        os.kill(wireguard_go(gate), signal.SIGKILL)
        return
    with network_of_tunnel(gate) as network:
        kernel.run(Place(network), ["ip", "link", "del", device_in(network)])


def change(gate: Gate, *words: str) -> None:
    """Root of the machine tells the tunnel's device something: `wg set DEVICE ...`."""
    if is_kernels(gate):
        with network_of_tunnel(gate) as network:
            done = kernel.run(Place(network), ["wg", "set", device_in(network), *words])
    else:
        pid = wireguard_go(gate)
        mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            place = Place(gate.host.world.device, mounts)
            done = kernel.run(place, ["wg", "set", kernel.command_of(pid).split()[-1], *words])
        finally:
            os.close(mounts)
    assert done.code == 0, done
