"""The corporate end of a WireGuard tunnel in corp, the kernel's or wireguard-go's; a resolver; the wires."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lab import carriers, kernel
from lab.gate import PROGRAMS, python
from lab.kernel import Place
from lab.wire import Frame, Wire
from lab.world import GATEWAY, HOSTS, INTRANET, INTRANET6, World, is_of_mtls

PORT = 51_820
RESOLVER = INTRANET
GATEWAY_INSIDE, DEVICE_INSIDE = "10.78.1.1", "10.78.1.3"  # the latter of `OTHER`
SHARED, OTHER, MUTE = range(3)  # devices: two with one key would take the tunnel from each other
NETWORKS = '10.77.0.0/16, "fd77::/16"'


def new_key() -> str:
    """A private key."""
    return _wg("genkey")


def public(key: str) -> str:
    """Its public key."""
    return _wg("pubkey", key)


def _wg(command: str, text: str = "") -> str:
    done = subprocess.run(["wg", command], input=text, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


@contextmanager
def echoing(world: World, port: int, echo_port: int) -> Iterator[Peer]:
    """A gateway, and servers of the intranet that say back the datagrams that they hear."""
    with ExitStack() as undo:
        made = Peer(world, port)
        undo.callback(made.close)
        for host in (INTRANET, INTRANET6):
            server = kernel.start(Place(world.corp), python("datagrams", "echo", host, str(echo_port)))
            undo.callback(kernel.end, server)
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        yield made


class Peer:
    """A WireGuard gateway in corp that knows some devices, and a resolver behind it."""

    def __init__(self, world: World, port: int = PORT, *, lifetime_s: int = 0) -> None:
        kernel.need("wg", "wireguard-go")
        self._world, self.port, self._lifetime_s = world, port, lifetime_s
        self.key, self.devices = new_key(), [new_key() for _ in (SHARED, OTHER, MUTE)]
        self._undo = ExitStack()
        self.directory = world.directory / f"peer{port}"
        self.directory.mkdir()
        self._undo.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._mounts = kernel.new_mounts("mount -t tmpfs tmpfs /run")
        self._undo.callback(os.close, self._mounts)
        self.place = Place(world.corp, self._mounts)
        self.device = f"wgc{port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._undo.callback(self.end)
        self.start()
        self.tell({name: list(addresses) for name, addresses in HOSTS.items()})
        self._start_resolver()

    def start(self) -> None:
        """Start the gateway, which knows the device."""
        if carriers.of_root() == carriers.KERNEL:
            self.must("ip", "link", "add", self.device, "type", "wireguard")
        else:
            self._process = kernel.start(self.place, ["wireguard-go", "-f", self.device])
            kernel.until("the peer is there", lambda: self._call("wg", "show", self.device).code == 0)
        self.configure()
        self.must("ip", "addr", "add", f"{GATEWAY_INSIDE}/24", "dev", self.device)
        self.must("ip", "-6", "addr", "add", "fd78:1::1/64", "dev", self.device, "nodad")
        self.must("ip", "link", "set", self.device, "up", "mtu", "1420")

    def configure(self, *, key: str = "", knows: bool = True) -> None:
        """Give it a key, its own or another one, and have it know the device or not."""
        file = self.directory / "wg.conf"
        known = "".join(
            f"[Peer]\nPublicKey={public(device)}\nAllowedIPs=10.78.1.{at}/32,fd78:1::{at}/128\n"
            for at, device in enumerate(self.devices, 2)
        )
        interface = f"[Interface]\nPrivateKey={key or self.key}\nListenPort={self.port}\n"
        file.write_text(interface + (known if knows else ""))
        self.must("wg", "setconf", self.device, str(file))

    def move(self, port: int) -> None:
        """Answer from another port; it speaks first, so that the device hears of it."""
        for device in self.devices:
            self.must("wg", "set", self.device, "peer", public(device), "persistent-keepalive", "1")
        self.must("wg", "set", self.device, "listen-port", str(port))

    def end(self) -> None:
        """End the gateway's program: nothing listens at the endpoint any more."""
        if self._process is not None:
            kernel.end(self._process)
            self._process = None
        elif carriers.of_root() == carriers.KERNEL:
            self._call("ip", "link", "del", self.device)  # where there is one

    def close(self) -> None:
        """End everything."""
        self._undo.close()

    def must(self, *command: str) -> None:
        """Run a command beside the gateway; it must succeed."""
        done = self._call(*command)
        assert done.code == 0, (command, done)

    def _call(self, *command: str) -> kernel.Done:
        return kernel.run(self.place, command)

    # -- names -------------------------------------------------------------------------------------

    def _start_resolver(self) -> None:
        command = [
            "python3",
            "-I",
            str(PROGRAMS / "names.py"),
            RESOLVER,
            str(self._file),
            str(self._lifetime_s),
        ]
        process = kernel.start(self.place, command)
        self._undo.callback(kernel.end, process)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"

    @property
    def _file(self) -> Path:
        return self.directory / "names.json"

    def tell(self, names: dict[str, Sequence[object]]) -> None:
        """What its resolver says from now on."""
        new = self.directory / "names.new"
        new.write_text(json.dumps(names))
        new.replace(self._file)

    def asked(self) -> list[str]:
        """The names that its resolver was asked for."""
        return Path(f"{self._file}.log").read_text().split()

    # -- the device's side -------------------------------------------------------------------------

    @property
    def secrets(self) -> dict[str, str]:
        """The files with the devices' keys."""
        return {f"device{at}.wg": key for at, key in enumerate(self.devices)}

    def tunnel(
        self,
        name: str = "hq",
        *,
        device: int = OTHER,
        endpoint: str = "",
        peer: str = "",
        probe: str = f"dns {RESOLVER}",
    ) -> str:
        """The tunnel of a device in a site file."""
        return (
            f"  {name}:\n    kind: wireguard\n    private_key: device{device}.wg\n"
            f'    peer: "{peer or public(self.key)}"\n'
            f'    endpoint: "{endpoint or f"{GATEWAY}:{self.port}"}"\n'
            f'    addresses: ["10.78.1.{2 + device}/32", "fd78:1::{2 + device}/128"]\n'
            f"    dns: [{RESOLVER}]\n    probe: {probe}\n"
        )


def packets(peer: Peer, tunnels: str = "", order: str = "hq") -> dict[str, Any]:
    """What is set for a daemon with a WireGuard tunnel."""
    return {
        "tunnels": tunnels or peer.tunnel(),
        "order": order,
        "networks": NETWORKS,
        "secrets": peer.secrets,
    }


def _is_told_that_nobody_listens(frame: Frame) -> bool:
    """The kernel tells the endpoint so when wireguard-go is gone: ICMP, of what the endpoint had sent."""
    return (frame.kind, frame.target, frame.data[:2]) == ("icmp", GATEWAY, b"\x03\x03")


class Wires:
    """Both wires; `quiet` is the assertion of nearly every test."""

    def __init__(self, world: World, port: int = PORT) -> None:
        self._wires = [
            Wire(network, device, GATEWAY, port, socket.IPPROTO_UDP)
            for network, device in ((world.net, "n-device"), (world.device, "lo"))
        ]

    def seen(self) -> list[str]:
        """What else than the tunnel's own datagrams was seen since the last look."""
        seen = [frame for wire in self._wires for frame in wire.seen()]
        own = (is_of_mtls, _is_told_that_nobody_listens)
        return [str(frame) for frame in seen if not any(is_one(frame) for is_one in own)]

    def quiet(self) -> None:
        """Nothing was."""
        assert not (seen := self.seen()), seen[:10]

    def close(self) -> None:
        """Watch no longer."""
        for wire in self._wires:
            wire.close()
