"""Names asked of a tunnel's own resolvers, through the tunnel: UDP, and TCP where a reply is cut short.

Makes no socket: `open_socket` is the egress's, whose holder makes them in the tunnel's namespace, each on a
port of its own. What it finds is not judged here. Answers are kept for as long as they may be, questions that
are asked already are not asked again, and everything is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from proxy import replies
from proxy.flow import IPAddress
from proxy.replies import MAX_ALIASES, Question, Reply

PORT = 53
TRIES_S = (1.0, 2.0)  # of each resolver in turn, then of each once more
LIMIT_S = 8.0
MAX_KEPT, MAX_ASKING = 4096, 256
_DATAGRAM_BYTES = 4096

type OpenSocket = Callable[[str, IPAddress, int], Awaitable[socket.socket]]


class Unresolved(Exception):
    """A name has no address that could be learnt; one line."""


@dataclass(frozen=True, slots=True)
class _Kept:
    addresses: tuple[IPAddress, ...]
    until_ns: int


class Resolver:
    """The names of one tunnel. `clock` is CLOCK_BOOTTIME in nanoseconds; `kinds` are A, AAAA or both.

    `open_socket` gives a connected socket for tcp or udp; whatever it raises is of type OSError.
    """

    def __init__(
        self,
        servers: Sequence[IPAddress],
        kinds: Sequence[str],
        open_socket: OpenSocket,
        clock: Callable[[], int],
    ) -> None:
        self._servers, self._kinds, self._open, self._clock = servers, kinds, open_socket, clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._asking: dict[tuple[str, str], asyncio.Task[tuple[IPAddress, ...]]] = {}

    def forget(self) -> None:
        """Drop what was learnt, and whoever waits for more."""
        self._kept.clear()
        for task in self._asking.values():
            task.cancel()
        self._asking.clear()

    async def addresses(self, name: str) -> tuple[IPAddress, ...]:
        """The addresses of a canonical name, the families by turns. Raises Unresolved."""
        if not self._servers:
            raise Unresolved("the tunnel has no resolver; write one under dns of the tunnel")
        found: Sequence[tuple[IPAddress, ...] | BaseException | None]
        found = [self._known(name, kind) for kind in self._kinds]
        if None in found:
            found = await asyncio.gather(
                *(self._lookup(name, kind) for kind in self._kinds), return_exceptions=True
            )
        lists = [one for one in found if isinstance(one, tuple)]
        if not lists:
            raise next(one for one in found if isinstance(one, BaseException))
        longest = max(map(len, lists))
        addresses = tuple(one[at] for at in range(longest) for one in lists if at < len(one))
        if not addresses:
            raise Unresolved(f"{name} has no address, says the tunnel's resolver")
        return addresses

    def _known(self, name: str, kind: str) -> tuple[IPAddress, ...] | None:
        """What was learnt and may still be kept."""
        kept = self._kept.get((name, kind))
        return kept.addresses if kept is not None and self._clock() < kept.until_ns else None

    async def _lookup(self, name: str, kind: str) -> tuple[IPAddress, ...]:
        if (known := self._known(name, kind)) is not None:
            return known
        key = (name, kind)
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= MAX_ASKING:
                raise Unresolved(f"{MAX_ASKING} names are being asked for already")
            task = self._asking[key] = asyncio.create_task(self._ask_and_keep(name, kind))
            task.add_done_callback(lambda done: self._asked(key, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Unresolved("the tunnel was lost while its resolver was asked") from None
            raise

    def _asked(self, key: tuple[str, str], task: asyncio.Task[tuple[IPAddress, ...]]) -> None:
        if self._asking.get(key) is task:
            del self._asking[key]
        if not task.cancelled():
            task.exception()  # whoever still waits has it

    async def _ask_and_keep(self, name: str, kind: str) -> tuple[IPAddress, ...]:
        try:
            async with asyncio.timeout(LIMIT_S):
                addresses, ttl_s = await self._follow(name, kind)
        except TimeoutError:
            raise Unresolved(f"the tunnel's resolver did not answer in {LIMIT_S:g} s") from None
        if ttl_s > 0:
            self._kept[name, kind] = _Kept(addresses, self._clock() + ttl_s * 1_000_000_000)
            self._kept.move_to_end((name, kind))
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return addresses

    async def _follow(self, name: str, kind: str) -> tuple[tuple[IPAddress, ...], int]:
        asked, ttl_s = name, replies.MAX_TTL_S
        for _ in range(MAX_ALIASES):
            reply = await self._reply(asked, kind)
            ttl_s = min(ttl_s, reply.ttl_s)
            if not reply.exists:
                raise Unresolved(f"{name} does not exist, says the tunnel's resolver")
            if not reply.alias:
                return reply.addresses, ttl_s
            asked = reply.alias
        raise Unresolved(f"{name} is an alias of an alias, more than {MAX_ALIASES} times")

    async def _reply(self, name: str, kind: str) -> Reply:
        """The first answer of a resolver that has one."""
        trouble = "no answer"
        for limit_s in TRIES_S:
            for server in self._servers:
                question = replies.ask(name, kind)
                try:
                    async with asyncio.timeout(limit_s):
                        reply = await self._by_udp(server, question)
                        if reply.truncated:
                            reply = await self._by_tcp(server, question)
                except TimeoutError:
                    trouble = f"{server} does not answer"
                except OSError as error:
                    trouble = f"{server}: {error.strerror or error}"
                else:
                    if not reply.failed and not reply.truncated:
                        return reply
                    trouble = f"{server} says {reply.failed or 'too much'}"
        raise Unresolved(f"{name} could not be asked of the tunnel's resolver: {trouble}")

    async def _by_udp(self, server: IPAddress, question: Question) -> Reply:
        loop = asyncio.get_running_loop()
        with contextlib.closing(await self._open("udp", server, PORT)) as sock:
            await loop.sock_sendall(sock, question.wire)
            while True:
                reply = replies.read(question, await loop.sock_recv(sock, _DATAGRAM_BYTES))
                if reply is not None:
                    return reply

    async def _by_tcp(self, server: IPAddress, question: Question) -> Reply:
        loop = asyncio.get_running_loop()
        with contextlib.closing(await self._open("tcp", server, PORT)) as sock:
            await loop.sock_sendall(sock, len(question.wire).to_bytes(2) + question.wire)
            size = int.from_bytes(await _exactly(loop, sock, 2))
            return replies.read(question, await _exactly(loop, sock, size)) or Reply(failed="nonsense")


async def _exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise ConnectionResetError("it ended the connection")
        data += more
    return data
