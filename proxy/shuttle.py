"""The way of a VPN program's own datagrams to its endpoint. Standard library only.

`endpoint_socket` is a socket to the endpoint from where this process stands; a `Shuttle` carries datagrams
between it and a program that stands in a namespace without any other way out. What it carries is encrypted
already, and it looks at none of it; what cannot be sent now is lost, as on any network.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from proxy.messages.holding import written

DATAGRAMS_PER_TURN = 64
BUFFER_BYTES = 4 << 20
_DATAGRAM_BYTES = 65_536


async def endpoint_socket(host: str, port: int) -> socket.socket:
    """A non-blocking UDP socket, connected to the first of the endpoint's addresses that has a route.

    Raises OSError, whose text is in the user's words.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        raise OSError(f"{host} has no address here; check the tunnel's endpoint") from error
    words = "it has no address"
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            words = os.strerror(error.errno) if error.errno else str(error)
            continue
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        return sock
    raise OSError(f"{written(host, port)} cannot be reached: {words}")


def peer_of(sock: socket.socket) -> str:
    """Where a socket is connected to, as WireGuard writes it."""
    host, port = sock.getpeername()[:2]
    return written(host, port)


class Shuttle:
    """Carries datagrams between `inside` and the socket of `send_by`, which may be replaced at any time."""

    def __init__(self, inside: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._inside = inside
        self._outside: socket.socket | None = None
        self._buffer = bytearray(_DATAGRAM_BYTES)
        self.trouble = ""
        self._loop.add_reader(inside, self._carry_out)

    def send_by(self, outside: socket.socket) -> None:
        """Use this socket from now on; the last one is closed."""
        self._drop()
        self._outside = outside
        self._loop.add_reader(outside, self._carry_in)

    def _carry_out(self) -> None:
        with contextlib.suppress(OSError):
            for _ in range(DATAGRAMS_PER_TURN):
                size = self._inside.recv_into(self._buffer)
                if self._outside is None:
                    continue
                try:
                    self._outside.send(memoryview(self._buffer)[:size])
                except BlockingIOError:
                    pass
                except OSError as error:
                    self._broke(error)

    def _carry_in(self) -> None:
        assert self._outside is not None
        with contextlib.suppress(BlockingIOError):
            for _ in range(DATAGRAMS_PER_TURN):
                try:
                    size = self._outside.recv_into(self._buffer)
                except BlockingIOError:
                    return
                except OSError as error:  # an ICMP error for what was sent before
                    self._broke(error)
                    return
                self.trouble = ""
                with contextlib.suppress(ConnectionRefusedError):  # the program does not listen yet
                    self._inside.send(memoryview(self._buffer)[:size])

    def _broke(self, error: OSError) -> None:
        self.trouble = os.strerror(error.errno) if error.errno else str(error)

    def _drop(self) -> None:
        if self._outside is not None:
            self._loop.remove_reader(self._outside)
            self._outside.close()
            self._outside = None

    def close(self) -> None:
        """Carry no more."""
        self._loop.remove_reader(self._inside)
        self._inside.close()
        self._drop()
