"""What `wg` is told of a device, and what is made of what it says; without a device."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
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
        self.says, self.refuses = "", "nothing"

    async def __call__(
        self, command: Sequence[str], *, fds: Sequence[int] = (), text: str = "", outlives: bool = False
    ) -> str:
        self.asked.append((" ".join(command), text))
        if self.refuses in self.asked[-1][0]:
            raise wireguard_device.DeviceError("refused")
        return self.says


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    made = Tools()
    monkeypatch.setattr(wireguard_device, "tool", made)
    return made


def dump(*peers: Sequence[Any], own: str = OWN) -> str:
    rows = [(own, "public", 51820, "off"), *peers]
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
    tools: Tools, monkeypatch: pytest.MonkeyPatch, inside: bool, port: str
) -> None:
    """A device in the host's network takes any free port, also when its endpoint is on loopback."""

    async def start(self: WireguardDevice, entry: object) -> None: ...

    monkeypatch.setattr(WireguardDevice, "_start", start)
    device = WireguardDevice("zg0", SETUP, [OWN, PSK])
    spaces = Namespaces(net=3, user=4, mounts=5) if inside else Namespaces(net=3)
    asyncio.run(device.make("127.0.0.1:7", spaces, None))
    (told,) = [(command, text) for command, text in tools.asked if "setconf" in command]
    assert told[1] == (
        f"[Interface]\nPrivateKey = {OWN}\n{port}[Peer]\nPublicKey = {PIN}\nPresharedKey = {PSK}\n"
        "AllowedIPs = 10.0.0.0/8, fd00::/8\nEndpoint = 127.0.0.1:7\nPersistentKeepalive = 25\n"
    )
    assert not any(key in command for command, _ in tools.asked for key in (OWN, PSK)), (
        "no key is an argument"
    )


async def _made(device: WireguardDevice) -> None:
    """Make it as root does, and end it, whatever came of it."""
    try:
        await device.make("[2001:db8::1]:51820", Namespaces(net=7), 8)
    finally:
        await device.end()


def test_a_device_of_the_kernel(tools: Tools) -> None:
    """Made where its socket is to stay and moved, by one process; nothing is started, and nothing ends."""
    device = WireguardDevice("zg0", SETUP, [OWN])
    asyncio.run(_made(device))
    inside = "nsenter --mount=/proc/self/fd/8 --net=/proc/self/fd/7 --preserve-credentials --"
    assert [command for command, _ in tools.asked] == [
        "ip -batch -",
        f"{inside} wg setconf zg0 /dev/stdin",
    ]
    assert tools.asked[0][1] == "link add zg0 type wireguard\nlink set zg0 netns /proc/self/fd/7\n"
    assert "Endpoint = [2001:db8::1]:51820\n" in tools.asked[1][1]
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(device.ended(), 0.01))
    assert not look(tools, dump(peer()), device).altered
    assert tools.asked[-1][0] == f"{inside} wg show zg0 dump"


def test_who_makes_a_device_of_the_kernel_is_not_ended_with_us() -> None:
    """Killed between the two, it would leave a device of the host."""
    group = ["sh", "-c", "cut -d' ' -f5 /proc/$$/stat"]
    assert int(asyncio.run(wireguard_device.tool(group))) == os.getpgrp()
    assert int(asyncio.run(wireguard_device.tool(group, outlives=True))) != os.getpgrp()


def test_a_kernel_without_wireguard(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    """wireguard-go makes the device in the host's network; it is told of its peer and moved all the same."""
    started: list[object] = []

    async def start(self: WireguardDevice, entry: tuple[Sequence[str], Sequence[int]]) -> None:
        started.append(" ".join(entry[0]))

    monkeypatch.setattr(WireguardDevice, "_start", start)
    tools.refuses = "ip -batch"
    asyncio.run(_made(WireguardDevice("zg0", SETUP, [OWN])))
    assert started == ["nsenter --mount=/proc/self/fd/8 --preserve-credentials --"]
    assert tools.asked[1][0] == "ip link del zg0", "if it was made and could not be moved"
    assert [command.split()[-1] for command, _ in tools.asked[2:]] == ["/dev/stdin", "/proc/self/fd/7"]


def test_a_tool_that_is_not_there_is_named() -> None:
    with pytest.raises(OSError, match=r"no-such-tool cannot be run .*is it installed"):
        asyncio.run(wireguard_device.tool(["no-such-tool"]))


def test_a_tool_that_fails_is_quoted() -> None:
    with pytest.raises(OSError, match=r"^first$"):
        asyncio.run(wireguard_device.tool(["sh", "-c", "echo first >&2; echo second >&2; exit 3"]))
    assert asyncio.run(wireguard_device.tool(["cat"], text="said")) == "said"
