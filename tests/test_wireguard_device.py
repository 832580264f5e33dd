"""What `wg` is told of a device, and what is made of what it says; without a device."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy import wireguard_device
from proxy.messages.holding import PacketSetup, Probe, TunnelSetup
from proxy.wireguard_device import Looked, Namespaces, WireguardDevice

OWN, PIN, OTHER, PSK = "own-key", "pinned", "other", "preshared"
PACKETS = PacketSetup(
    ("10.8.0.2/32",), ("10.0.0.0/8", "fd00::/8"), (), 1420, 25, Probe("icmp", "10.8.0.1", 0)
)
SETUP = TunnelSetup("hq", "gw", 1, "", (PIN,), False, "wireguard", PACKETS)


class Tools:
    """Stands for `ip` and `wg`: remembers what was asked, says what the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.says = ""

    async def __call__(self, command: Sequence[str], *, fds: Sequence[int] = (), text: str = "") -> str:
        self.asked.append((" ".join(command), text))
        return self.says


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    made = Tools()
    monkeypatch.setattr(wireguard_device, "tool", made)
    return made


def dump(*peers: Sequence[Any], own: str = OWN, mark: str = "off") -> str:
    rows = [(own, "public", 51820, mark), *peers]
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def peer(
    key: str = PIN, allowed: str = "10.0.0.0/8,fd00::/8", at: int = 0, psk: str = "(none)"
) -> Sequence[Any]:
    return (key, psk, "192.0.2.1:51820", allowed, at, 0, 0, 25)


def look(tools: Tools, says: str, device: WireguardDevice | None = None) -> Looked:
    tools.says = says
    return asyncio.run((device or WireguardDevice("zg0", SETUP, [OWN])).look())


def test_a_device_as_it_was_made(tools: Tools) -> None:
    assert look(tools, dump(peer())) == Looked(PIN, "192.0.2.1:51820", 0, altered=False)
    preshared = WireguardDevice("zg0", SETUP, [OWN, PSK])
    assert not look(tools, dump(peer(psk=PSK)), preshared).altered


@pytest.mark.parametrize(
    "says",
    [
        dump(),
        dump(peer(), peer(OTHER)),
        dump(peer(), own=OTHER),
        dump(peer(), mark="0x7"),
        dump(peer(allowed="0.0.0.0/0")),
        dump(peer(allowed="(none)")),
        dump(peer(psk=PSK)),
        dump(("cut", "short")),
    ],
)
def test_a_device_that_somebody_changed(tools: Tools, says: str) -> None:
    assert look(tools, says).altered


def test_every_peer_is_told(tools: Tools) -> None:
    assert look(tools, dump(peer(), peer(OTHER))).peer == f"{PIN},{OTHER}"


def test_a_handshake_is_dated_by_when_it_was_noticed(tools: Tools) -> None:
    """Whatever the device's clock says: it may be set, forwards or back."""
    device = WireguardDevice("zg0", SETUP, [OWN])
    assert look(tools, dump(peer(at=0)), device).handshake_ns == 0
    first = look(tools, dump(peer(at=1 << 33)), device).handshake_ns
    assert first > 0
    assert look(tools, dump(peer(at=1 << 33)), device).handshake_ns == first, "the same one again"
    assert look(tools, dump(peer(at=0)), device).handshake_ns == first, "a session that was begun anew"
    assert look(tools, dump(peer(at=5)), device).handshake_ns > first, "another one, by a clock set back"


@pytest.mark.parametrize(("inside", "port"), [(True, "ListenPort = 51820\n"), (False, "")])
def test_only_where_every_port_is_free_one_is_taken(
    tools: Tools,
    ip: Callable[[str], Path],
    net: int,
    monkeypatch: pytest.MonkeyPatch,
    inside: bool,
    port: str,
) -> None:
    """A device in the host's network takes any free port, also when its endpoint is on loopback."""
    ip("exit 2")

    async def start(self: WireguardDevice, entry: object) -> None: ...

    monkeypatch.setattr(WireguardDevice, "_start", start)
    device = WireguardDevice("zg0", SETUP, [OWN, PSK])
    spaces = Namespaces(net=net, user=4, mounts=5) if inside else Namespaces(net=net)
    asyncio.run(device.make("127.0.0.1:7", spaces, None))
    (told,) = [(command, text) for command, text in tools.asked if "setconf" in command]
    assert told[1] == (
        f"[Interface]\nPrivateKey = {OWN}\n{port}[Peer]\nPublicKey = {PIN}\nPresharedKey = {PSK}\n"
        "AllowedIPs = 10.0.0.0/8, fd00::/8\nEndpoint = 127.0.0.1:7\nPersistentKeepalive = 25\n"
    )
    assert not any(key in command for command, _ in tools.asked for key in (OWN, PSK)), (
        "no key is an argument"
    )


@pytest.fixture
def ip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """An `ip` that is a script of the test and tells of it in a file, and an `nsenter` that goes nowhere."""
    told = tmp_path / "told"

    def install(script: str) -> Path:
        for name, text in (("ip", f'echo "ip $@" >>{told}\n{script}'), ("nsenter", 'shift; exec "$@"')):
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        path = f"{tmp_path}:{wireguard_device.ENVIRONMENT['PATH']}"
        monkeypatch.setitem(wireguard_device.ENVIRONMENT, "PATH", path)
        return told

    return install


MADE, GONE = "ip link add zg0 netns /proc/self/fd/{} type wireguard", "ip link del zg0"


@pytest.fixture
def net() -> Iterator[int]:
    """A descriptor that stands for the tunnel's namespace."""
    fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_device_of_the_kernel(tools: Tools, ip: Callable[[str], Path], net: int) -> None:
    """Made in the tunnel's namespace, by one who takes it away; wireguard-go is not started."""
    told = ip("")
    device = WireguardDevice("zg0", SETUP, [OWN])

    async def use() -> None:
        await device.make("[2001:db8::1]:51820", Namespaces(net=net), 8)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(device.ended(), 0.01)
        tools.says = dump(peer())
        assert not (await device.look()).altered
        await device.end()

    asyncio.run(use())
    inside = f"nsenter --mount=/proc/self/fd/8 --net=/proc/self/fd/{net} --preserve-credentials --"
    assert [command for command, _ in tools.asked] == [
        f"{inside} wg setconf zg0 /dev/stdin",
        f"{inside} wg show zg0 dump",
    ]
    assert "Endpoint = [2001:db8::1]:51820\n" in tools.asked[0][1]
    assert told.read_text().splitlines() == [MADE.format(net), GONE]


def test_a_device_of_the_kernel_whose_keeper_is_killed(
    tools: Tools, ip: Callable[[str], Path], net: int
) -> None:
    """It is lost, and taken away without it."""
    ip("")
    device = WireguardDevice("zg0", SETUP, [OWN])

    async def lose() -> str:
        await device.make("192.0.2.1:51820", Namespaces(net=net), None)
        assert device._process is not None
        device._process.kill()
        words = await device.ended()
        await device.end()
        return words

    assert asyncio.run(lose()) == "the keeper of its device ended"
    assert tools.asked[-1][0].endswith("-- ip link del zg0")


MAKER = """
import asyncio, os, sys
from proxy.wireguard_device import ENVIRONMENT, Namespaces, WireguardDevice
from test_wireguard_device import OWN, SETUP
ENVIRONMENT["PATH"] = sys.argv[1]
async def make():
    await WireguardDevice("zg0", SETUP, [OWN])._made_by_the_kernel(os.open("/proc/self/ns/net", os.O_RDONLY))
    os.killpg(0, 9)
asyncio.run(make())
"""


def test_a_device_of_the_kernel_goes_with_who_made_it(ip: Callable[[str], Path]) -> None:
    """Also when it is killed, with its whole group of processes."""
    told = ip("")
    command = [sys.executable, "-c", MAKER, wireguard_device.ENVIRONMENT["PATH"]]
    tests = Path(__file__).parent
    there = {"PYTHONPATH": f"{tests.parent}:{tests}"}
    done = subprocess.run(command, start_new_session=True, env=there, timeout=90)
    assert done.returncode == -9
    limit = time.monotonic() + 90
    while GONE not in told.read_text().splitlines() and time.monotonic() < limit:
        time.sleep(0.02)
    assert told.read_text().splitlines()[-1] == GONE


def test_a_kernel_without_wireguard(
    tools: Tools, ip: Callable[[str], Path], net: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wireguard-go makes the device in the host's network; it is told of its peer and moved all the same."""
    told, started = ip("exit 2"), []

    async def start(self: WireguardDevice, entry: tuple[Sequence[str], Sequence[int]]) -> None:
        started.append(" ".join(entry[0]))

    async def make() -> None:
        device = WireguardDevice("zg0", SETUP, [OWN])
        await device.make("192.0.2.1:51820", Namespaces(net=net), 8)
        await device.end()

    monkeypatch.setattr(WireguardDevice, "_start", start)
    asyncio.run(make())
    assert started == ["nsenter --mount=/proc/self/fd/8 --preserve-credentials --"]
    assert told.read_text().splitlines() == [MADE.format(net)]
    assert [command.split()[-1] for command, _ in tools.asked] == ["/dev/stdin", f"/proc/self/fd/{net}"]


def test_a_tool_that_is_not_there_is_named() -> None:
    with pytest.raises(OSError, match=r"no-such-tool cannot be run .*is it installed"):
        asyncio.run(wireguard_device.tool(["no-such-tool"]))


def test_a_tool_that_fails_is_quoted() -> None:
    with pytest.raises(OSError, match=r"^first$"):
        asyncio.run(wireguard_device.tool(["sh", "-c", "echo first >&2; echo second >&2; exit 3"]))
    assert asyncio.run(wireguard_device.tool(["cat"], text="said")) == "said"
