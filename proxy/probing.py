"""Asking the peer's side of a packet tunnel something, again and again, from inside its namespace.

The namespace has one device and the device one peer, so that whatever answers stands behind that peer. Only
an answer to the question that was asked last counts. Standard library only. Judges nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address

from proxy.messages.holding import Probe

_ECHO_V4, _ECHO_V6 = (8, 0), (128, 129)  # request and reply (RFC 792, RFC 4443)
_ECHO_BYTES = 20
_READ_BYTES = 2048

type Answers = Callable[[bytes], bool]


class Prober:
    """Asks one target. Its ICMP socket is made at once: later the process may not be allowed to.

    Raises OSError.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._v6 = ip_address(probe.address).version == 6
        self._family = socket.AF_INET6 if self._v6 else socket.AF_INET
        self._echo: socket.socket | None = None
        if probe.kind == "icmp":
            protocol = socket.IPPROTO_ICMPV6 if self._v6 else socket.IPPROTO_ICMP
            self._echo = self._socket(socket.SOCK_RAW, protocol)

    def _socket(self, kind: int, protocol: int = 0) -> socket.socket:
        return socket.socket(self._family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)

    async def ask(self, limit_s: float) -> None:
        """Ask once and wait for the answer. Raises TimeoutError, OSError."""
        async with asyncio.timeout(limit_s):
            if self._echo is not None:
                data, answers = _echo(self._v6)
                await self._exchange(self._echo, data, answers)
            elif self._probe.kind == "dns":
                with self._socket(socket.SOCK_DGRAM) as sock:
                    data, answers = _question()
                    await self._exchange(sock, data, answers)
            else:
                await self._connect()

    async def _exchange(self, sock: socket.socket, data: bytes, answers: Answers) -> None:
        sock.connect((self._probe.address, self._probe.port))
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, data)
        while not answers(await loop.sock_recv(sock, _READ_BYTES)):
            pass

    async def _connect(self) -> None:
        """A connection, or its refusal: both are the word of the other side."""
        with self._socket(socket.SOCK_STREAM) as sock, contextlib.suppress(ConnectionRefusedError):
            to = (self._probe.address, self._probe.port)
            await asyncio.get_running_loop().sock_connect(sock, to)

    def __str__(self) -> str:
        probe = self._probe
        host = f"[{probe.address}]:{probe.port}" if self._v6 else f"{probe.address}:{probe.port}"
        return f"{probe.kind} {host if probe.kind == 'tcp' else probe.address}"


def _echo(v6: bool) -> tuple[bytes, Answers]:
    """An echo request, and what its reply is."""
    request, reply = _ECHO_V6 if v6 else _ECHO_V4
    said = secrets.token_bytes(_ECHO_BYTES)  # its number, its place in a sequence, and what comes back
    data = struct.pack("!BBH", request, 0, _checksum(bytes([request, 0, 0, 0]) + said)) + said

    def answers(heard: bytes) -> bool:
        icmp = heard if v6 else heard[(heard[0] & 15) * 4 :]  # raw(7): IPv4 comes with its header
        return icmp[:2] == bytes([reply, 0]) and icmp[4:] == said

    return data, answers


def _checksum(data: bytes) -> int:
    """RFC 1071; of ICMPv6 the kernel writes its own (RFC 3542, section 3.1)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _question() -> tuple[bytes, Answers]:
    """A DNS question for the root's servers; whatever has its number and its question answers it."""
    ident = os.urandom(2)
    asked = b"\0" + struct.pack("!HH", 2, 1)
    data = ident + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + asked
    return data, lambda heard: heard[:2] == ident and len(heard) >= 12 and bool(heard[2] & 0x80)


async def ask_for_ever(
    prober: Prober, every_s: float, limit_s: float, tell: Callable[[int, str], None]
) -> None:
    """Ask at each period. `tell` hears the moment at which an answered question was sent, or 0 and why."""
    while True:
        sent_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        began = time.monotonic()
        try:
            await prober.ask(limit_s)
        except TimeoutError:
            tell(0, f"no answer to the probe ({prober}) in {limit_s:g} s")
        except OSError as error:
            tell(0, f"the probe ({prober}) cannot be sent: {error.strerror or error}")
        else:
            tell(sent_ns, "answering")
        await asyncio.sleep(max(0.05, every_s - (time.monotonic() - began)))
