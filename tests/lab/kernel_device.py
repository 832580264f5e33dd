"""The kernel's own WireGuard by the product's code: what a device of it does otherwise than wireguard-go's.

A program for a kernel that has it (`make lab-kernel`), and without a gate, so that it is done in minutes also
where the processor is emulated. It ends with the first that fails.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lab import kernel
from lab.kernel import Place
from proxy import namespaces, tunnel_namespace
from proxy.messages.holding import PacketSetup, Probe, TunnelSetup
from proxy.wireguard_device import Namespaces, WireguardDevice

NAME, CONTROL = "zg00000001", "zgcontrol"
OWN, OTHER = "10.9.0.1", "10.9.0.2"
ENDPOINT = f"{OTHER}:51820"
PACKETS = PacketSetup(("10.8.0.2/32",), ("0.0.0.0/0",), (), 1420, 25, Probe("icmp", "10.8.0.1", 0))
# Of those that change a device, as `wg set` has it; PEER is the pinned one, STRANGER nobody, KEY a file.
CHANGES = (
    "fwmark 7",
    "private-key KEY",
    "peer PEER allowed-ips 10.0.0.0/8",
    "peer PEER preshared-key KEY",
    "peer PEER remove",
    "peer STRANGER allowed-ips 10.99.0.0/16",
    "peer PEER remove peer STRANGER allowed-ips 0.0.0.0/0",
)


def said(network: int, *command: str, text: str = "") -> str:
    """What a command prints in a namespace; it must succeed."""
    done = kernel.run(Place(network), command, stdin=text.encode())
    assert done.code == 0, (command, done)
    return done.out.strip()


@dataclass(frozen=True, slots=True)
class Scene:
    """The device's network, the tunnel's namespace and the setup of a tunnel to a peer beside them."""

    host: int
    tunnel: int
    setup: TunnelSetup
    key: str

    def device(self) -> WireguardDevice:
        """A device that is not yet made."""
        return WireguardDevice(NAME, self.setup, [self.key])

    async def made(self) -> WireguardDevice:
        """One that is."""
        found = self.device()
        await found.make(ENDPOINT, Namespaces(net=self.tunnel), None)
        return found

    def is_there(self) -> bool:
        """Whether the device is in the tunnel's namespace."""
        return NAME in said(self.tunnel, "ip", "-br", "link")


def scene() -> Scene:
    """A peer at the other end of a link, which is the kernel's too."""
    host, tunnel, corp = os.open("/proc/self/ns/net", os.O_RDONLY), kernel.new_network(), kernel.new_network()
    key, theirs = said(host, "wg", "genkey"), said(host, "wg", "genkey")
    there = f"/proc/{os.getpid()}/fd/{corp}"
    kernel.must(
        host,
        f"ip link add up0 type veth peer name c0 netns {there}",
        f"ip addr add {OWN}/24 dev up0",
        "ip link set up0 up",
    )
    kernel.must(corp, f"ip addr add {OTHER}/24 dev c0", "ip link set c0 up", "ip link add wgc type wireguard")
    peer = f"[Peer]\nPublicKey={said(host, 'wg', 'pubkey', text=key)}\nAllowedIPs=10.8.0.2/32\n"
    interface = f"[Interface]\nPrivateKey={theirs}\nListenPort=51820\n"
    said(corp, "wg", "setconf", "wgc", "/dev/stdin", text=interface + peer)
    kernel.must(corp, "ip addr add 10.8.0.1/24 dev wgc", "ip link set wgc up")
    pin = said(host, "wg", "pubkey", text=theirs)
    return Scene(host, tunnel, TunnelSetup("hq", "gw", 1, "", (pin,), False, "wireguard", PACKETS), key)


def answers(at: Scene) -> bool:
    """Whether the peer's side says through the tunnel that nobody listens there."""
    with kernel.inside(at.tunnel), socket.socket() as sock:
        sock.settimeout(kernel.LIMIT_S)
        return sock.connect_ex(("10.8.0.1", 9)) == errno.ECONNREFUSED


async def test_its_socket_is_outside(at: Scene) -> None:
    """The device is in the tunnel's namespace, its socket in the host's; an answer comes by way of both."""
    device = await at.made()
    assert "wireguard" in said(at.tunnel, "ip", "-d", "link", "show", NAME)
    with kernel.inside(at.tunnel):
        namespaces.run(("nft", "-f", "-"), tunnel_namespace.rules(NAME, ordinary=False))
        tunnel_namespace.address(NAME, PACKETS)
    port = said(at.tunnel, "wg", "show", NAME, "listen-port")
    assert f":{port} " in said(at.host, "ss", "-lun")
    assert f":{port} " not in said(at.tunnel, "ss", "-lun")
    assert answers(at)
    looked = await device.look()
    assert looked.handshake_ns and (looked.peer, looked.endpoint) == (at.setup.pins[0], ENDPOINT)
    await device.begin_again(ENDPOINT)
    assert answers(at)
    await device.end()
    assert not at.is_there()


def names(at: Scene) -> dict[str, str]:
    """What the words of `CHANGES` stand for."""
    key = said(at.host, "wg", "genkey")
    file = Path(tempfile.mkdtemp()) / "key"
    file.write_text(key)
    return {"PEER": at.setup.pins[0], "STRANGER": said(at.host, "wg", "pubkey", text=key), "KEY": str(file)}


async def test_a_device_that_somebody_changes(at: Scene) -> None:
    """It is not as it was made, or has another peer than the pinned one; when it begins again it is."""
    device = await at.made()
    pin, named = at.setup.pins[0], names(at)
    for change in CHANGES:
        assert not (await device.look()).altered, "a control must be red"
        said(at.tunnel, "wg", "set", NAME, *(named.get(word, word) for word in change.split()))
        looked = await device.look()
        assert looked.altered or looked.peer != pin, change
        await device.begin_again(ENDPOINT)
    await device.end()


async def test_a_device_that_is_deleted(at: Scene) -> None:
    """The kernel tells of it at once, and its end is good all the same."""
    device = await at.made()
    with kernel.inside(at.tunnel):
        said(at.tunnel, "ip", "link", "set", NAME, "up")
        watched = tunnel_namespace.Device(NAME)
        assert watched.gone() == "", "a control must be red"
        said(at.tunnel, "ip", "link", "del", NAME)
        assert select.select([watched.sock], [], [], kernel.LIMIT_S)[0]
        assert watched.gone() == "its device is gone"
    await device.end()


async def test_a_keeper_that_is_killed(at: Scene) -> None:
    """Its device is lost, and taken away without it."""
    device = await at.made()
    assert device._process is not None
    device._process.kill()
    assert await device.ended() == "the keeper of its device ended"
    assert at.is_there()
    await device.end()
    assert not at.is_there()


async def test_a_device_goes_with_who_made_it(at: Scene) -> None:
    """Who made it is killed with its whole group, while its namespace is held by others."""
    for control in (True, False):
        command = [sys.executable, __file__, str(at.tunnel), at.key, at.setup.pins[0]]
        maker = kernel.start(Place(at.host), command, pass_fds=[at.tunnel])
        kernel.until("it is made", at.is_there)
        keepers = [one for one in kernel.descendants(maker.pid) if "ip link add" in kernel.command_of(one)]
        if control:
            kernel.signal_all(keepers, signal.SIGSTOP)
        os.killpg(maker.pid, signal.SIGKILL)
        kernel.end(maker)
        if control:
            assert keepers and at.is_there(), "a control must be red"
            kernel.signal_all(keepers, signal.SIGCONT)
        kernel.until("the device is gone", lambda: not at.is_there())


async def make_and_wait(tunnel: int, key: str, pin: str) -> None:
    """Be the one that is killed."""
    setup = TunnelSetup("hq", "gw", 1, "", (pin,), False, "wireguard", PACKETS)
    await WireguardDevice(NAME, setup, [key]).make(ENDPOINT, Namespaces(net=tunnel), None)
    await asyncio.Event().wait()


def main() -> None:
    """Run all, while the host is listened to: it never hears of a device of its own."""
    at = scene()
    heard = Path(tempfile.mkdtemp()) / "links"
    with heard.open("w") as file:
        listening = subprocess.Popen(["ip", "monitor", "link"], stdout=file)

    def hears() -> bool:
        before = heard.stat().st_size
        kernel.must(at.host, f"ip link add {CONTROL} type veth peer name zgother", f"ip link del {CONTROL}")
        return CONTROL in heard.read_text()[before:]

    kernel.until("it listens", hears)
    for test in TESTS:
        asyncio.run(test(at))
        print(f"{test.__name__} passed", flush=True)
    kernel.until("it has heard all", hears)
    listening.kill()
    listening.wait()
    assert NAME not in heard.read_text()
    print("the host heard of no device of its own", flush=True)


TESTS: tuple[Callable[[Scene], Coroutine[None, None, None]], ...] = (
    test_its_socket_is_outside,
    test_a_device_that_somebody_changes,
    test_a_device_that_is_deleted,
    test_a_keeper_that_is_killed,
    test_a_device_goes_with_who_made_it,
)

if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(make_and_wait(int(sys.argv[1]), *sys.argv[2:]))
    else:
        main()
