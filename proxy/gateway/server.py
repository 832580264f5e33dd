"""All clients of a gateway: who may come in, how many, and for how long.

It accepts, has certificates proved, keeps the bounds, and cuts: the revoked and the expired at once, the idle
after a while, everybody at the end. It knows nothing of requests and destinations.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count

from cryptography import x509
from cryptography.x509.oid import NameOID

from proxy.certificates import fingerprint
from proxy.channel import Backlog, HandshakeFailed, SaidNothing, TlsChannel, WrongPeer, tls_server
from proxy.gateway.config import Limits
from proxy.gateway.conversation import Guest, House, converse, turn_away
from proxy.gateway.dial import Dialer, keep_alive
from proxy.gateway.judge import Client, Refused
from proxy.gateway.log import Log
from proxy.gateway.revoked import Revocations

HANDSHAKE_LIMIT_S = 10.0
_REVOCATION_EVERY_S, _EXPIRY_EVERY_S = 0.5, 1.0
_PAUSE_S = 0.1
_LEAVING = 64
_ACCEPTS_AT_ONCE = 64


class Gateway:
    """Serves listening sockets until it is stopped. Made and used inside a running event loop."""

    def __init__(
        self,
        context: ssl.SSLContext,
        limits: Limits,
        dialer: Dialer,
        log: Log,
        revocations: Revocations,
        *,
        handshake_limit_s: float = HANDSHAKE_LIMIT_S,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._limits = limits
        self._log = log
        self._revocations = revocations
        self._handshake_limit_s = handshake_limit_s
        self._house = House(dialer, log, Backlog(), self._why_unwelcome)
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: Counter[str] = Counter()
        self._of_certificate: Counter[str] = Counter()
        self._leaving = 0
        self._numbers = count(1)
        self._last_moved: dict[Guest, tuple[int, float]] = {}
        self.guests: set[Guest] = set()
        """Who has proved a certificate and is connected now."""

    async def serve(self, listeners: Sequence[socket.socket], stop: asyncio.Event) -> None:
        """Accept on non-blocking `listeners`, which stay the caller's, until `stop`; then cut everybody."""
        for listener in listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)
        watching = [
            asyncio.create_task(self._each(_REVOCATION_EVERY_S, self.refresh_revocations)),
            asyncio.create_task(self._each(_EXPIRY_EVERY_S, lambda: self.cut_expired(datetime.now(UTC)))),
            asyncio.create_task(
                self._each(min(self._limits.idle_s / 4, 30), lambda: self.cut_idle(self._loop.time()))
            ),
        ]
        try:
            await stop.wait()
        finally:
            for listener in listeners:
                self._loop.remove_reader(listener.fileno())
            for task in (*watching, *self._tasks):
                task.cancel()
            await asyncio.gather(*watching, *self._tasks, return_exceptions=True)

    def show(self, context: ssl.SSLContext) -> None:
        """Show another certificate from the next connection on."""
        self._context = context

    def refresh_revocations(self) -> None:
        """Look at the file of revocations and cut whoever it lists."""
        if not self._revocations.refresh():
            return
        cut = [guest for guest in self.guests if self._revocations.lists(guest.client)]
        for guest in cut:
            guest.cut("the client's certificate was revoked")
        self._log.note("revocations", trouble=self._revocations.trouble, cut=len(cut))

    def cut_expired(self, now: datetime) -> None:
        """Cut whose certificate has expired since it was proved."""
        for guest in tuple(self.guests):
            if now > guest.client.until:
                guest.cut("the client's certificate has expired")

    def cut_idle(self, now: float) -> None:
        """Cut the connections on which nothing has moved for the idle limit; `now` counts seconds."""
        last, self._last_moved = self._last_moved, {}
        for guest in tuple(self.guests):
            moved, since = last.get(guest, (-1, now))
            if moved != guest.moved:
                since = now
            elif now - since >= self._limits.idle_s:
                guest.cut("idle")
                continue
            self._last_moved[guest] = (guest.moved, since)

    async def _each(self, seconds: float, do: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            do()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:  # no descriptors or memory: do not spin, others are being served
                self._log.note_stranger("cannot accept", because=str(error))
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(_PAUSE_S, self._resume, listener)
                return
            self._admit(sock, str(address[0]))

    def _resume(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _admit(self, sock: socket.socket, peer: str) -> None:
        limits = self._limits
        if (
            len(self._tasks) >= limits.clients
            or self._strangers.total() >= limits.handshakes
            or self._strangers[peer] >= limits.per_address
        ):
            sock.close()
            self._log.note_stranger("turned away", because="too many connections", **{"from": peer})
            return
        self._strangers[peer] += 1
        task = asyncio.create_task(self._receive(sock, peer))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._log.note("fault", because=f"{type(fault).__name__}: {fault}")

    async def _receive(self, sock: socket.socket, peer: str) -> None:
        """One connection, from its first byte to its end."""
        try:
            channel = await self._shake_hands(sock, peer)
        finally:
            self._strangers[peer] -= 1
            if not self._strangers[peer]:
                del self._strangers[peer]
        if channel is None:
            return
        try:
            await self._host(channel, peer)
        finally:
            channel.abort()

    async def _shake_hands(self, sock: socket.socket, peer: str) -> TlsChannel | None:
        try:
            keep_alive(sock)
            return await tls_server(sock, self._context, self._handshake_limit_s, self._house.backlog)
        except SaidNothing:
            return None
        except (WrongPeer, HandshakeFailed, OSError) as error:
            sock.close()
            self._log.note_stranger("no handshake", because=str(error), **{"from": peer})
            return None

    async def _host(self, channel: TlsChannel, peer: str) -> None:
        try:
            client = client_of(channel.peer_der)
        except ValueError:
            self._log.note_stranger("no handshake", because="unreadable certificate", **{"from": peer})
            return
        if why := self._why_unwelcome(client):
            await self._turn_away(channel, client, peer, Refused(403, why))
        elif self._of_certificate[client.fingerprint] >= self._limits.per_certificate:
            many = Refused(503, "this client's certificate has too many connections")
            await self._turn_away(channel, client, peer, many)
        else:
            await self._converse(Guest(next(self._numbers), client, peer, channel))

    async def _converse(self, guest: Guest) -> None:
        certificate = guest.client.fingerprint
        self._of_certificate[certificate] += 1
        self.guests.add(guest)
        try:
            await converse(guest, self._house)
        finally:
            self.guests.discard(guest)
            self._last_moved.pop(guest, None)
            self._of_certificate[certificate] -= 1
            if not self._of_certificate[certificate]:
                del self._of_certificate[certificate]

    async def _turn_away(self, channel: TlsChannel, client: Client, peer: str, refused: Refused) -> None:
        """Say why, unless so many are being told that listening to them would keep others out."""
        self._log.note_stranger("turned away", client=client.name, because=refused.because, **{"from": peer})
        if self._leaving >= _LEAVING:
            return
        self._leaving += 1
        try:
            await turn_away(channel, refused)
        finally:
            self._leaving -= 1

    def _why_unwelcome(self, client: Client) -> str:
        self.refresh_revocations()
        return self._revocations.why_unwelcome(client)


def client_of(der: bytes) -> Client:
    """Who a verified certificate speaks for; a name that is not one printable line is left out."""
    certificate = x509.load_der_x509_certificate(der)
    name = ""
    with suppress(ValueError):
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if len(names) == 1 and isinstance(names[0].value, str) and names[0].value.isprintable():
            name = names[0].value
    serial, until = f"{certificate.serial_number:x}", certificate.not_valid_after_utc
    return Client(name, fingerprint(der), serial, until)
