"""A WireGuard device: the kernel's where it has them, wireguard-go's otherwise. Standard library only.

Both are spoken to by `wg`, so that one way is walked, and tested, for both. Keys go to it by standard input.
What is looked at is not judged here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from proxy import ipc, namespaces, sandbox
from proxy.messages.holding import TunnelSetup
from proxy.tunnel_namespace import VPN_PORT

COMMAND_LIMIT_S, START_LIMIT_S, START_LOOK_S = 10.0, 10.0, 0.02
RUN = Path("/var/run")
ENVIRONMENT = {
    "PATH": sandbox.SYSTEM_PATH,
    "LC_ALL": "C.UTF-8",
    "LOG_LEVEL": "error",
    "WG_PROCESS_FOREGROUND": "1",
}
# wireguard-go needs a TUN device and nothing else that is privileged.
_CONFINED = ("setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--bounding-set", "-all,+net_admin")
# A device of the kernel outlives who made it for as long as any socket lives in its namespace, and goes on
# sending with its key. So who makes it waits for our end, and takes it away then. $0 is the device, $1 the
# tunnel's namespace; the UDP socket stays in the network of who asks for the device.
_KEEPER = """trap '' HUP INT TERM PIPE
ip link add "$0" netns "$1" type wireguard || exit
echo made
read -r _
exec nsenter --net="$1" ip link del "$0"
"""
_PEER_FIELDS = 8


class DeviceError(OSError):
    """The device could not be made or looked at; one line."""


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Descriptors of the tunnel's namespaces. `user` and `mounts` are of an ordinary user's tunnel."""

    net: int
    user: int | None = None
    mounts: int | None = None


@dataclass(frozen=True, slots=True)
class Looked:
    """What a device says of itself; see PacketEvidence."""

    peer: str
    endpoint: str
    handshake_ns: int
    altered: bool


def own_mounts() -> int:
    """A mount namespace of our own in which /run is empty: wireguard-go's socket is nobody else's.

    For a process with one thread, which goes back to where it was.
    """
    here = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    os.unshare(os.CLONE_NEWNS)
    try:
        namespaces.run(["mount", "--make-rprivate", "/"])
        namespaces.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", str(RUN.resolve())])
        return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.setns(here, os.CLONE_NEWNS)
        os.close(here)


async def tool(command: Sequence[str], *, fds: Sequence[int] = (), text: str = "") -> str:
    """Run a tool to its end: its output. Raises DeviceError with its first complaint."""
    given = ipc.memory_file("input", text.encode())
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=given, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT, pass_fds=tuple(fds)
        )
        async with asyncio.timeout(COMMAND_LIMIT_S):
            out, err = await process.communicate()
    except TimeoutError as error:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise DeviceError(f"{command[0]} did not end in {COMMAND_LIMIT_S:g} s") from error
    except OSError as error:
        raise DeviceError(f"{command[0]} cannot be run ({error.strerror}); is it installed?") from error
    finally:
        os.close(given)
    if process.returncode:
        said = err.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise DeviceError(said[0])
    return out.decode(errors="replace")


class WireguardDevice:
    """One device, from `make` to `end`. `keys` are the private key and, if there is one, the preshared."""

    def __init__(self, name: str, tunnel: TunnelSetup, keys: Sequence[str]) -> None:
        assert tunnel.packets is not None
        self._name, self._tunnel, self._keys = name, tunnel, keys
        self._allowed = frozenset(map(ip_network, tunnel.packets.allowed))
        self._keepalive_s = tunnel.packets.keepalive_s
        self._process: Process | None = None  # wireguard-go, or the keeper of a device of the kernel
        self._is_the_kernels = False
        self._inside: tuple[Sequence[str], Sequence[int]] = ((), ())
        self._stands_inside = False
        self._handshake = (0, 0)

    async def make(self, endpoint: str, spaces: Namespaces, mounts: int | None) -> None:
        """Make the device, with its key and peer, and have it in the tunnel's namespace."""
        self._inside = _entry(net=spaces.net, user=spaces.user, mounts=spaces.mounts or mounts)
        self._stands_inside = spaces.user is not None  # there every port is free, and known to the shuttle
        if self._stands_inside:
            await self._start(self._inside)
            await self._configure(self._inside, endpoint)
            return
        if await self._made_by_the_kernel(spaces.net):
            await self._configure(self._inside, endpoint)
            return
        before = _entry(mounts=mounts)  # in the network of the host, where its UDP socket stays
        await self._start(before)
        await self._configure(before, endpoint)
        there = f"/proc/self/fd/{spaces.net}"
        await tool(["ip", "link", "set", self._name, "netns", there], fds=[spaces.net])

    async def _made_by_the_kernel(self, net: int) -> bool:
        """Have the kernel make the device in the tunnel's namespace, with its UDP socket here: if it can."""
        command = ["sh", "-c", _KEEPER, self._name, f"/proc/self/fd/{net}"]
        self._is_the_kernels = True  # it may be, while nobody knows
        try:
            self._process = keeper = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=ENVIRONMENT, pass_fds=(net,),
                start_new_session=True,  # in no group of processes that is ended with us
            )  # fmt: skip
            assert keeper.stdout is not None
            async with asyncio.timeout(COMMAND_LIMIT_S):
                if not await keeper.stdout.readline():
                    await keeper.wait()
                    self._is_the_kernels = False
        except TimeoutError as error:
            raise DeviceError(f"ip did not end in {COMMAND_LIMIT_S:g} s") from error
        return self._is_the_kernels

    async def _start(self, entry: tuple[Sequence[str], Sequence[int]]) -> None:
        prefix, fds = entry
        command = [*prefix, *_CONFINED, "wireguard-go", "-f", self._name]
        self._process = process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, env=ENVIRONMENT, pass_fds=tuple(fds)
        )
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                await tool([*prefix, "wg", "show", self._name, "public-key"], fds=fds)
                return
            except DeviceError as error:
                if process.returncode is not None:
                    raise DeviceError(await _complaint(process)) from error
                if time.monotonic() > deadline:
                    raise DeviceError(f"wireguard-go does not answer: {error}") from error
                await asyncio.sleep(START_LOOK_S)

    async def _configure(self, entry: tuple[Sequence[str], Sequence[int]], endpoint: str) -> None:
        prefix, fds = entry
        command = [*prefix, "wg", "setconf", self._name, "/dev/stdin"]
        await tool(command, fds=fds, text=self._text(endpoint))

    def _text(self, endpoint: str) -> str:
        port = f"ListenPort = {VPN_PORT}\n" if self._stands_inside else ""
        preshared = f"PresharedKey = {self._keys[1]}\n" if len(self._keys) > 1 else ""
        return (
            f"[Interface]\nPrivateKey = {self._keys[0]}\n{port}"
            f"[Peer]\nPublicKey = {self._tunnel.pins[0]}\n{preshared}"
            f"AllowedIPs = {', '.join(map(str, sorted(self._allowed, key=str)))}\n"
            f"Endpoint = {endpoint}\nPersistentKeepalive = {self._keepalive_s}\n"
        )

    async def begin_again(self, endpoint: str) -> None:
        """Forget the session and shake hands anew, there: a session whose other end is gone is kept for
        minutes otherwise."""
        await self._configure(self._inside, endpoint)

    async def look(self) -> Looked:
        """What the device says now. A handshake is dated by when it was noticed: the device's own clock is
        one that can be set."""
        prefix, fds = self._inside
        out = await tool([*prefix, "wg", "show", self._name, "dump"], fds=fds)
        own, *peers = [line.split("\t") for line in out.splitlines()]
        fields = [peer for peer in peers if len(peer) == _PEER_FIELDS]
        altered = len(peers) != 1 or len(fields) != 1 or not self._is_as_made(own, fields[0])
        newest = max((int(peer[4]) for peer in fields), default=0)
        if newest and newest != self._handshake[0]:
            self._handshake = (newest, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        endpoint = fields[0][2] if len(fields) == 1 else ""
        return Looked(",".join(peer[0] for peer in fields), endpoint, self._handshake[1], altered)

    def _is_as_made(self, own: Sequence[str], peer: Sequence[str]) -> bool:
        private_key, _, _, mark = own
        preshared = self._keys[1] if len(self._keys) > 1 else "(none)"
        try:
            allowed = frozenset(map(ip_network, peer[3].split(",")))
        except ValueError:
            return False
        now = (private_key, mark, peer[1], allowed)
        return now == (self._keys[0], "off", preshared, self._allowed)

    async def ended(self) -> str:
        """Waits for the end of who keeps the device, and says it."""
        assert self._process is not None
        if self._is_the_kernels:
            await self._process.wait()
            return "the keeper of its device ended"
        return await _complaint(self._process)

    async def end(self) -> None:
        """End wireguard-go, and its device with it; one of the kernel's is taken away."""
        if self._process is None:
            return
        if self._is_the_kernels:
            await self._have_it_taken_away(self._process)
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    async def _have_it_taken_away(self, keeper: Process) -> None:
        """By its keeper, after whatever it is doing; without one by ourselves."""
        assert keeper.stdin is not None
        keeper.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COMMAND_LIMIT_S):
                await keeper.wait()
        if keeper.returncode != 0:
            with contextlib.suppress(ProcessLookupError):
                keeper.kill()
            await keeper.wait()
            prefix, fds = self._inside
            with contextlib.suppress(DeviceError):  # it is gone already
                await tool([*prefix, "ip", "link", "del", self._name], fds=fds)


def _entry(
    *, net: int | None = None, user: int | None = None, mounts: int | None = None
) -> tuple[Sequence[str], Sequence[int]]:
    """What stands before a command that is to run in these namespaces, and the descriptors it needs."""
    found = [(flag, fd) for flag, fd in (("user", user), ("mount", mounts), ("net", net)) if fd is not None]
    flags = [f"--{flag}=/proc/self/fd/{fd}" for flag, fd in found]
    return ["nsenter", *flags, "--preserve-credentials", "--"], [fd for _, fd in found]


async def _complaint(process: Process) -> str:
    """The last error of wireguard-go, once it has ended; what it says meanwhile is read and forgotten."""
    assert process.stderr is not None
    last = b""
    with contextlib.suppress(ValueError):  # a line without an end
        while line := await process.stderr.readline():
            last = line.strip() or last
    await process.wait()
    words = last.decode(errors="replace")
    return f"wireguard-go ended: {words}" if words else "wireguard-go ended"
