"""Connected sockets to the one gateway of an mtls tunnel: dialled, kept warm, handed to workers.

Part of the tunnel's holder. It sends no byte on a socket and reads none; it knows one address and no flow.
However slow the gateway is, a worker's requests wait for each other only up to a bound, and beyond it they
are answered at once. Standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from typing import Any

from proxy import ipc
from proxy.link import Link
from proxy.messages.holding import Dial, Dialled, written

CONNECT_LIMIT_S = 3.0
MAX_DIALLING = 256  # sockets that are being connected for one worker at a time
WARM_SOCKETS = 4
WARM_FOR_S = 4.0  # a gateway ends silent connections after its handshake limit, usually 10 s
WARM_LOOK_S = 1.0
USER_TIMEOUT_MS = 10_000

type _Address = tuple[int, int, int, Any]


class PeerBroken(Exception):
    """The peer refused, reset or could not be reached."""


async def connect(host: str, port: int, limit_s: float) -> socket.socket:
    """A connected non-blocking socket to the gateway; PeerBroken in one line otherwise.

    A gateway with several addresses is tried at each: those that are left share the time that is left.
    """
    loop = asyncio.get_running_loop()
    gateway = written(host, port)
    deadline = loop.time() + limit_s
    try:
        async with asyncio.timeout_at(deadline):
            trouble: OSError = OSError("it has no address")
            found = await _addresses(host, port)
            for tried, address in enumerate(found):
                share_s = (deadline - loop.time()) / (len(found) - tried)
                try:
                    async with asyncio.timeout(share_s):
                        return await _connected(address)
                except OSError as error:
                    trouble = error
            raise trouble
    except TimeoutError as error:
        raise PeerBroken(f"{gateway} did not answer in {limit_s:g} s") from error
    except socket.gaierror as error:
        raise PeerBroken(f"{gateway} has no address here; check the tunnel's gateway") from error
    except OSError as error:
        raise PeerBroken(
            f"{gateway} cannot be reached: {os.strerror(error.errno) if error.errno else error}"
        ) from error


async def _addresses(host: str, port: int) -> list[_Address]:
    """Where the gateway is. A literal needs no resolver, and so no thread that waits for one."""
    kind = socket.SOCK_STREAM
    try:
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=kind)
    return [(family, kind, protocol, address) for family, kind, protocol, _, address in found]


async def _connected(to: _Address) -> socket.socket:
    family, kind, protocol, address = to
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    except BaseException:
        sock.close()
        raise
    return sock


class WarmSockets:
    """A few connected sockets, kept for some seconds after the last use, so that a flow waits for no SYN."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._ready: deque[tuple[float, socket.socket]] = deque()
        self._used_at = 0.0
        self._used = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    async def take(self) -> socket.socket:
        """A connected socket, warm if there is one that is young and was not ended by the gateway."""
        sock = self._take_ready() or await connect(self._host, self._port, CONNECT_LIMIT_S)
        self._used_at = time.monotonic()
        self._used.set()
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep())
        return sock

    def _take_ready(self) -> socket.socket | None:
        while self._ready:
            born, sock = self._ready.popleft()
            if time.monotonic() - born < WARM_FOR_S and _silent(sock):
                return sock
            sock.close()
        return None

    async def _keep(self) -> None:
        """Replace what is taken and what grows old, until nothing was taken for a while."""
        try:
            while time.monotonic() - self._used_at < WARM_FOR_S:
                while self._ready and time.monotonic() - self._ready[0][0] >= WARM_FOR_S:
                    self._ready.popleft()[1].close()
                while len(self._ready) < WARM_SOCKETS:
                    sock = await connect(self._host, self._port, CONNECT_LIMIT_S)
                    self._ready.append((time.monotonic(), sock))
                self._used.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WARM_LOOK_S):
                        await self._used.wait()
        except PeerBroken:
            pass  # the next one who takes hears why
        finally:
            self._close_ready()

    def close(self) -> None:
        """End every warm socket."""
        if self._keeping is not None:
            self._keeping.cancel()
        self._close_ready()

    def _close_ready(self) -> None:
        while self._ready:
            self._ready.popleft()[1].close()


def _silent(sock: socket.socket) -> bool:
    """Whether the other side has neither spoken nor ended."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


async def serve(worker: Link[Dial], warm: WarmSockets) -> None:
    """Answer one worker's Dial messages, each as soon as it can be, until it is gone."""
    dialling = 0

    async def answer(count: int) -> None:
        nonlocal dialling
        got: list[socket.socket] = []
        try:
            troubles = await asyncio.gather(*(_take_into(got, warm) for _ in range(count)))
            worker.send(Dialled(next(filter(None, troubles), "")), [sock.fileno() for sock in got])
        finally:
            dialling -= count
            for sock in got:
                sock.close()

    try:
        async with asyncio.TaskGroup() as answers:
            while True:
                count = max(0, min((await worker.receive())[0].count, ipc.MAX_DESCRIPTORS))
                if dialling + count > MAX_DIALLING:
                    worker.send(Dialled(f"{dialling} connections to the gateway are being made already"))
                else:
                    dialling += count
                    answers.create_task(answer(count))
    except* ipc.LinkBroken:
        pass
    finally:
        worker.close()


async def _take_into(got: list[socket.socket], warm: WarmSockets) -> str:
    """One more socket in `got`, or why there is none."""
    try:
        got.append(await warm.take())
    except PeerBroken as error:
        return str(error)
    return ""
