"""One explicit listener in a worker: accepts, bounds, and hands connections to their conversation.

Holds the listening socket that the supervisor bound. Clients that have not asked for anything yet are the
ones that make room: when there are too many of them the oldest goes, so that a flood of half-open connections
leaves room for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from ipaddress import ip_address

from cryptography import x509
from cryptography.x509.oid import NameOID

from proxy.channel.contexts import server_context
from proxy.channel.plain import Backlog, Channel, PlainChannel
from proxy.channel.tls import tls_server
from proxy.config import ANONYMOUS
from proxy.explicit import socks, web
from proxy.explicit.logins import Login
from proxy.explicit.web import Guest, House
from proxy.flow import IPAddress, Refusal
from proxy.flow_table import OpenFlow
from proxy.private import private_files

ACCEPTED_PER_TURN = 64
MAX_WAITING = 512
TLS_LIMIT_S = 10.0
PAUSE_S = 0.1
LOOK_S = 1.0  # for certificates that expire; by the clock on the wall, which may be set
EXPIRED = "the client's certificate has expired"
_RESET = struct.pack("ii", 1, 0)
_CONVERSATIONS = {"http": web.converse, "socks5": socks.converse}


class Explicit:
    """A listener until `close`. With a `context` clients prove a certificate, and are cut when it expires.

    One address has at most `most` connections; `room` says whether the worker can take one more.
    """

    def __init__(
        self,
        kind: str,
        sock: socket.socket,
        house: House,
        context: ssl.SSLContext | None,
        backlog: Backlog,
        most: int,
        room: Callable[[], bool],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.house = house
        self._converse = _CONVERSATIONS[kind]
        self._sock, self._context, self._backlog = sock, context, backlog
        self._most, self._room = most, room
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._of_address: Counter[IPAddress] = Counter()
        self._waiting: dict[asyncio.Task[None], None] = {}
        self._now = now
        self._until: dict[asyncio.Task[None], datetime] = {}
        self._closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock, self._accept)
        if context is not None:
            self._look()

    def __len__(self) -> int:
        return len(self._tasks) + len(self.house.associations)

    def has(self, flow: OpenFlow) -> bool:
        """Whether a flow came in here."""
        return flow.bubble.startswith(f"{self.house.name}@")

    def close(self) -> None:
        """Hear no more and cut what is open. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for task in self._tasks:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(ACCEPTED_PER_TURN):
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # that client has gone already
            except OSError:  # no descriptor or memory left: let others end first
                self._loop.remove_reader(self._sock)
                self._loop.call_later(PAUSE_S, self._resume)
                return
            address = ip_address(peer[0].partition("%")[0])
            if self._of_address[address] >= self._most or not (self._room() or self._make_room()):
                _reset(sock)
                continue
            self._of_address[address] += 1
            task = self._loop.create_task(self._serve(sock, address))
            self._tasks.add(task)
            self._waiting[task] = None
            if len(self._waiting) > MAX_WAITING:
                self._make_room()
            task.add_done_callback(functools.partial(self._ended, sock, address))

    def _make_room(self) -> bool:
        """Cut the client that has been waited for longest; whether there was one."""
        for oldest in self._waiting:
            del self._waiting[oldest]
            return oldest.cancel()
        return False

    def _ended(self, sock: socket.socket, address: IPAddress, task: asyncio.Task[None]) -> None:
        """One that was cut before its first step has closed nothing yet."""
        self._tasks.discard(task)
        self._waiting.pop(task, None)
        self._until.pop(task, None)
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]
        if sock.fileno() >= 0:
            _reset(sock)

    def _look(self) -> None:
        """Cut those whose certificate has expired, again and again until the listener is closed."""
        if self._closed:
            return
        now = self._now()
        for task, until in self._until.items():
            if now > until:
                task.cancel(EXPIRED)
        self._loop.call_later(LOOK_S, self._look)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock, self._accept)

    @contextlib.contextmanager
    def _waited(self, task: asyncio.Task[None]) -> Iterator[None]:
        """A time in which the client has the word, and nothing to lose."""
        self._waiting[task] = None
        try:
            yield
        finally:
            self._waiting.pop(task, None)

    async def _serve(self, sock: socket.socket, address: IPAddress) -> None:
        task = asyncio.current_task()
        assert task is not None
        client: Channel
        if self._context is None:
            client = PlainChannel(sock, self._backlog)
            login = None if self.house.asks else self.house.logins.known(ANONYMOUS)
        else:
            try:
                with self._waited(task):
                    client = tls = await tls_server(sock, self._context, TLS_LIMIT_S, self._backlog)
            except ConnectionError:
                return
            login, self._until[task] = self._of_certificate(tls.peer_der)
        self._waiting.pop(task, None)
        guest = Guest(client, address, login, functools.partial(self._waited, task))
        await self._converse(guest, self.house)

    def _of_certificate(self, der: bytes) -> tuple[Login | Refusal, datetime]:
        """Whoever the certificate names, in its one common name, and until when."""
        name: str | bytes = ""
        until = datetime.min.replace(tzinfo=UTC)
        with contextlib.suppress(ValueError):
            certificate = x509.load_der_x509_certificate(der)
            until = certificate.not_valid_after_utc
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            name = names[0].value if len(names) == 1 else ""
        return self.house.logins.known(name if isinstance(name, str) else ""), until


def server_side(clients: bytes, certificate: bytes, key: bytes) -> ssl.SSLContext:
    """The TLS of a listener whose clients show a certificate of `clients`; all of them PEM."""
    with private_files(certificate=certificate, key=key) as files:
        return server_context(client_ca_pem=clients.decode(), **files)


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
