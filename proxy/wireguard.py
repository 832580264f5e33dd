"""The outer holder of a WireGuard tunnel: where the tunnel's own datagrams leave. It keeps the device.

It starts the inner holder, which makes the tunnel's namespace; makes the device, gives it key and peer, and
looks at it every second. As root the device is made in the host's network, where its UDP socket stays, and
moved. An ordinary user's wireguard-go stands in the tunnel's namespace, and this process carries its
datagrams between there and one socket that is connected to the endpoint.

It decides nothing and carries nothing that is not encrypted already. Standard library only. Argument: the
descriptor of its link to the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
import traceback
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from proxy import holder_process, ipc, prctl, sandbox
from proxy.link import Link
from proxy.messages.holding import Serve
from proxy.messages.packets import (
    FROM_INNER,
    TO_OUTER,
    Begin,
    DeviceIsThere,
    Failed,
    FromInner,
    HoldPackets,
    Made,
    PacketEvidence,
    Probed,
    ToOuter,
)
from proxy.namespaces import NamespaceError
from proxy.shuttle import Shuttle, endpoint_socket, peer_of
from proxy.tunnel_namespace import SHUTTLE_PORT
from proxy.wireguard_device import Namespaces, WireguardDevice, own_mounts

LOOK_EVERY_S, ENDPOINT_EVERY_S = 1.0, 5.0
SILENT_S = 3.0
STAY_S, LAST_WORD_S = 5.0, 0.3
NOTHING_SEEN = PacketEvidence("", "", 0, 0, broken=False, altered=False, underlay="", words="connecting")


class Lost(Exception):
    """The tunnel cannot go on and is to be made anew; one line."""


def main(arguments: Sequence[str]) -> None:
    """Serve until the supervisor's end of the link is gone. Does not return."""
    holder_process.serve(arguments[0], _begin)


def _begin(sock: socket.socket) -> None:
    hold, fds = ipc.receive(sock, [HoldPackets])
    keys = [ipc.read_file(fd).decode().strip() for fd in fds]
    prctl.no_core_dump()
    mounts = None
    if os.geteuid() == 0:
        try:
            mounts = own_mounts()
        except (NamespaceError, OSError) as error:
            _say_unusable(sock, f"wireguard-go can have no place of its own here: {error}")
    asyncio.Runner().run(_hold(sock, hold, keys, mounts))


def _say_unusable(sock: socket.socket, words: str) -> NoReturn:
    """Say what this machine lacks, and stay for a while: a holder that ends is started again."""
    ipc.send(sock, replace(NOTHING_SEEN, broken=True, words=words))
    until_s = time.monotonic() + STAY_S
    while (left_s := until_s - time.monotonic()) > 0 and select.select([sock], [], [], left_s)[0]:
        ipc.close_all(ipc.receive(sock, [Serve])[1])
    raise ipc.LinkBroken("it may be there by now")


async def _hold(sock: socket.socket, hold: HoldPackets, keys: Sequence[str], mounts: int | None) -> None:
    supervisor: Link[ToOuter] = Link(sock, TO_OUTER)
    outer = Outer(supervisor, hold, keys, mounts)
    hearing = asyncio.create_task(outer.hear_supervisor())
    working = asyncio.create_task(outer.work())
    try:
        await asyncio.wait({hearing, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            stay_s = outer.say_lost(working.exception())
            await asyncio.wait({hearing}, timeout=stay_s)
    finally:
        for task in (hearing, working):
            task.cancel()
        await asyncio.gather(hearing, working, return_exceptions=True)
        await outer.end()


class Outer:
    """One tunnel, made once. `work` raises when it is lost."""

    def __init__(
        self, supervisor: Link[ToOuter], hold: HoldPackets, keys: Sequence[str], mounts: int | None
    ) -> None:
        self._supervisor, self._hold, self._mounts = supervisor, hold, mounts
        self._name = f"zg{os.urandom(4).hex()}"
        self._device = WireguardDevice(self._name, hold.tunnel, keys)
        self._inner: Link[FromInner] | None = None
        self._process: Process | None = None
        self._waiting: list[int] = []  # workers that came before the namespace was ready
        self._is_ready = False
        self._shuttle: Shuttle | None = None
        self._knocker: socket.socket | None = None
        self._seen = NOTHING_SEEN
        self._endpoint = ""
        self._trouble = ""
        self._started = time.monotonic()
        self._answered = 0.0

    # -- the supervisor ----------------------------------------------------------------------------

    async def hear_supervisor(self) -> None:
        """Pass workers on to the inner holder, until the supervisor is gone."""
        with contextlib.suppress(ipc.LinkBroken):
            while True:
                message, fds = await self._supervisor.receive()
                if not isinstance(message, Serve):
                    raise ipc.LinkBroken("a holder holds one tunnel")
                self._waiting += fds
                self._pass_on()

    def _pass_on(self) -> None:
        if self._is_ready and self._inner is not None:
            for fd in self._waiting:
                self._inner.send(Serve(), [fd])
            ipc.close_all(self._waiting)
            self._waiting.clear()

    def _say(self, seen: PacketEvidence) -> None:
        self._seen = seen
        self._supervisor.send(seen)

    def say_lost(self, error: BaseException | None) -> float:
        """Tell the supervisor why; how long to stay, so that what fails at once is not tried at once."""
        if not isinstance(error, Lost | NamespaceError | OSError | ipc.LinkBroken):
            traceback.print_exception(error)
        words = str(error) if not isinstance(error, ipc.LinkBroken) else "its inner holder ended"
        self._say(replace(self._seen, broken=True, words=words))
        return LAST_WORD_S if self._is_ready else STAY_S

    async def end(self) -> None:
        """End what was started."""
        if self._inner is not None:
            self._inner.close()
        await self._device.end()

    # -- the tunnel --------------------------------------------------------------------------------

    async def work(self) -> None:
        """Make the tunnel and watch it. Raises why it is lost."""
        self._say(NOTHING_SEEN)
        outside = await self._reach_endpoint()
        spaces, inside = await self._begin_inner()
        self._endpoint = device_sends_to = peer_of(outside)
        if inside is None:
            self._knocker = outside
        else:
            device_sends_to = f"127.0.0.1:{SHUTTLE_PORT}"
            self._shuttle = Shuttle(inside)
            self._shuttle.send_by(outside)
        await self._device.make(device_sends_to, spaces, self._mounts)
        assert self._inner is not None
        self._inner.send(DeviceIsThere())
        self._is_ready = True
        self._pass_on()
        watching = (
            self._hear_inner(self._inner),
            self._look_for_ever(),
            self._mind_endpoint(),
            self._wait_for_end(),
        )
        tasks = [asyncio.create_task(one) for one in watching]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    async def _reach_endpoint(self) -> socket.socket:
        """A socket to the endpoint, as soon as it can be had."""
        tunnel = self._hold.tunnel
        while True:
            try:
                return await endpoint_socket(tunnel.host, tunnel.port)
            except OSError as error:
                self._say(replace(NOTHING_SEEN, underlay=str(error)))
                await asyncio.sleep(LOOK_EVERY_S)

    async def _begin_inner(self) -> tuple[Namespaces, socket.socket | None]:
        """Start the inner holder; its namespaces, and an ordinary user's end of the shuttle inside."""
        ours, theirs = ipc.pair()
        command = sandbox.python_command("packet_holder", str(theirs.fileno()), bare=True)
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=DEVNULL, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self._inner = inner = Link[FromInner](ours, FROM_INNER)
        hold = self._hold
        inner.send(Begin(hold.tunnel, self._name, hold.probe_every_ms, hold.probe_limit_ms, hold.drop_to_uid))
        message, fds = await inner.receive()
        if isinstance(message, Failed):
            raise Lost(message.words)
        if not isinstance(message, Made) or len(fds) not in (1, 4):
            raise Lost("its inner holder spoke nonsense")
        if len(fds) == 1:
            return Namespaces(net=fds[0]), None
        return Namespaces(net=fds[0], user=fds[1], mounts=fds[2]), socket.socket(fileno=fds[3])

    async def _hear_inner(self, inner: Link[FromInner]) -> None:
        while True:
            message, fds = await inner.receive()
            ipc.close_all(fds)
            match message:
                case Probed(answered_ns, words):
                    if answered_ns:
                        self._answered = time.monotonic()
                    self._say(
                        replace(self._seen, answered_ns=answered_ns or self._seen.answered_ns, words=words)
                    )
                case Failed(words):
                    raise Lost(words)
                case Made():
                    raise Lost("its inner holder spoke nonsense")

    async def _look_for_ever(self) -> None:
        """Say each second what the device says of itself, and of its peer."""
        while True:
            looked = await self._device.look()
            endpoint = looked.endpoint if self._shuttle is None else self._endpoint
            self._say(
                replace(
                    self._seen,
                    peer=looked.peer,
                    endpoint=endpoint,
                    handshake_ns=looked.handshake_ns,
                    altered=looked.altered,
                    underlay=self._underlay(),
                )
            )
            await asyncio.sleep(LOOK_EVERY_S)

    async def _wait_for_end(self) -> None:
        raise Lost(await self._device.ended())

    # -- the way to the endpoint -------------------------------------------------------------------

    def _silent(self) -> bool:
        return time.monotonic() - max(self._answered, self._started) > SILENT_S

    def _underlay(self) -> str:
        """What the network says of the way to the endpoint, "" when nothing or the peer answers."""
        if not self._silent():
            return ""
        words = self._shuttle.trouble if self._shuttle is not None else self._knock()
        if words:
            self._trouble = f"{self._endpoint} cannot be reached: {words}"
        return self._trouble

    def _knock(self) -> str:
        """Root's device hears no error of the network: send the endpoint what is no WireGuard, and listen."""
        assert self._knocker is not None
        try:
            self._knocker.send(b"\0")
            self._knocker.recv(1)
        except BlockingIOError:
            pass
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
        return ""

    async def _mind_endpoint(self) -> None:
        """While the peer is silent, look again where it is and by which way, and begin with it again."""
        tunnel = self._hold.tunnel
        while True:
            await asyncio.sleep(ENDPOINT_EVERY_S)
            if not self._silent():
                continue
            try:
                outside = await endpoint_socket(tunnel.host, tunnel.port)
            except OSError as error:
                self._trouble = str(error)
                continue
            self._trouble = ""
            self._endpoint = peer_of(outside)
            if self._shuttle is not None:
                self._shuttle.send_by(outside)
                await self._device.begin_again(f"127.0.0.1:{SHUTTLE_PORT}")
                continue
            if self._knocker is not None:
                self._knocker.close()
            self._knocker = outside
            await self._device.begin_again(self._endpoint)
