"""One inspected connection: mitmproxy's proxy core, with our hooks, our dial and our end.

mitmproxy logs what its hooks raise and lets the flow go on; here a hook that raises, hangs or answers
anything but a plain yes cuts the connection, and so does every fault that mitmproxy would only log. Nothing
is dialled but by the tunnel's egress, and nothing happens any more once the connection is cut. What a hook
answers is no business of this room; see `hooks`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType
from typing import Literal, cast

from mitmproxy import http
from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server import ConnectionIO, LiveConnectionHandler

from proxy.channel.plain import Channel
from proxy.egress import DialFailed, Egress
from proxy.flow import Because, Origin, Transfer
from proxy.inspection.exchange import Exchange, Refused
from proxy.inspection.heads import Destination
from proxy.inspection.hooks import HOOKS, Go, Hooks
from proxy.inspection.judging import Judging
from proxy.inspection.pages import page
from proxy.inspection.streams import Stream
from proxy.inspection.tls import TlsSides
from proxy.resolving import first_of

HOOK_LIMIT_S, HEAD_LIMIT_S, HANDSHAKE_LIMIT_S, IDLE_LIMIT_S = 10.0, 30.0, 15.0, 300
HELD_BYTES, UNPARSED_BYTES = 2 << 20, 1 << 20
UPSTREAMS = 100  # as many as HTTP/2 has streams


class Settings:
    """What mitmproxy's layers ask for as options, and nothing else: a missing one is a fault, and cuts."""

    connection_strategy = "lazy"  # nobody is dialled before a request is judged
    validate_inbound_headers = True
    normalize_outbound_headers = True
    keep_host_header = True
    store_streamed_bodies = False
    stream_large_bodies = None
    body_size_limit = None
    websocket = True
    rawtcp = False
    http3 = False
    http2_ping_keepalive = 0
    tcp_timeout = IDLE_LIMIT_S
    proxy_debug = False


class InspectedConnection(LiveConnectionHandler):
    """A client's connection to one destination, from its first byte to its end."""

    def __init__(
        self,
        client: Channel,
        destination: Destination,
        judging: Judging,
        tls_sides: TlsSides,
        *,
        http2: bool,
    ) -> None:
        self._destination, self._judging, self._client_channel = destination, judging, client
        self._hooks = Hooks(destination, judging, tls_sides, self, http2=http2)
        judging.reset = lambda: self.cut(judging.cut_because or "cut by the gate")
        self._loop = asyncio.get_running_loop()
        self.cut_because = ""
        self._trouble = ""
        self._asking = 0
        self._opening: dict[Connection, asyncio.TimerHandle | None] = {}
        self._choosing = asyncio.Lock()  # of one among several addresses
        self._client_room, self._upstream_room = asyncio.Event(), asyncio.Event()
        self._client_room.set()
        self._upstream_room.set()
        self._client = Stream(client, self._client_may_read)
        self._streams = [self._client]
        self._head_timer: asyncio.TimerHandle | None = None
        reader, writer = cast(asyncio.StreamReader, self._client), cast(asyncio.StreamWriter, self._client)
        super().__init__(reader, writer, cast(Options, Settings()), ProxyMode.parse("transparent"))
        self._expect_head()

    # -- its life ----------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Carry the connection to its end. Raises nothing but CancelledError."""
        try:
            await self.handle_client()
        except Exception as error:
            self.cut(f"fault in the inspector ({type(error).__name__})")
        except asyncio.CancelledError:
            self.cut("the inspector ends")
            raise
        finally:
            for timer in (self._head_timer, *self._opening.values()):
                if timer is not None:
                    timer.cancel()
            await self._ended()
            self._judging.close(self.cut_because or "finished")

    async def _ended(self) -> None:
        if not self._judging.has_judged and not self._judging.cut_because:
            words = self.cut_because or self._trouble or "it ended before its first request"
            self._judging.unserved(Because(Origin.GATE, "no-request", words))
        await asyncio.gather(*(stream.ended() for stream in self._streams), return_exceptions=True)

    def cut(self, because: str) -> None:
        """Reset both sides at once. Nothing moves any more; the first reason counts. Never raises."""
        if not self.cut_because:
            self.cut_because = because
        for stream in self._streams:
            stream.abort()
        for transport in tuple(self.transports.values()):
            if transport.handler is not None:
                transport.handler.cancel()
        self._client_room.set()
        self._upstream_room.set()

    def _is_over(self) -> bool:
        return bool(self.cut_because)

    def log(
        self,
        message: str,
        level: int = logging.INFO,
        exc_info: Literal[True]
        | tuple[type[BaseException], BaseException, TracebackType | None]
        | None = None,
    ) -> None:
        """What mitmproxy tells of a fault of its own ends the connection; the rest is nobody's business."""
        if level >= logging.ERROR or exc_info:
            self.cut(f"fault in mitmproxy: {message}")
        elif level >= logging.WARNING:
            self.troubled(message)

    async def server_event(self, event: events.Event) -> None:
        """One event through the layers, and then a look at what they hold."""
        if self._is_over():
            return
        await super().server_event(event)
        if self._is_over():
            return
        if isinstance(event, events.ConnectionClosed):
            self.settled(event.connection)
        self._look()

    def _look(self) -> None:
        """Hold back who sends more than can be passed on, and end what can only be an attack."""
        held = {True: 0, False: 0}
        if (inside := self._hooks.http) is not None:
            if inside.unparsed_bytes() > UNPARSED_BYTES:
                self.cut("more was sent than can be waiting")
                return
            held = {side: inside.held_bytes(for_client=side) for side in (True, False)}
            if not inside.head_is_open() and self._judging.has_judged:
                self._head_came()
            elif self._head_timer is None:
                self._expect_head()
        waits = self._asking or self._opening or held[False] > HELD_BYTES
        (self._client_room.clear if waits else self._client_room.set)()
        (self._upstream_room.clear if held[True] > HELD_BYTES else self._upstream_room.set)()

    async def _client_may_read(self) -> None:
        await self._client_room.wait()
        await self._judging.fill(*Transfer)

    async def _upstream_may_read(self) -> None:
        await self._upstream_room.wait()
        await self._judging.fill(Transfer.DOWNLOAD)

    def _expect_head(self) -> None:
        self._head_timer = self._loop.call_later(HEAD_LIMIT_S, self.cut, "its request has no end")

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    async def handle_connection(self, connection: Connection) -> None:
        """Read one side to its end, unless the connection was cut before it began."""
        if self._is_over():
            self.transports.pop(connection, None)
        else:
            await super().handle_connection(connection)

    # -- the only way out --------------------------------------------------------------------------

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """Dial for a request that was judged. Replaces mitmproxy's, which resolves and connects by itself."""
        server = command.connection
        self._opening[server] = None
        try:
            stream = await self._dialled(server)
        except asyncio.CancelledError:
            self.cut("cancelled while it was dialled")
            raise
        except BaseException as error:
            words = str(error) if isinstance(error, DialFailed) else f"fault ({type(error).__name__})"
            server.error = words
            self.settled(server)
            self.transports.pop(server, None)
            await self.server_event(events.OpenConnectionCompleted(command, words))
            return
        try:
            server.state = ConnectionState.OPEN
            server.timestamp_start = server.timestamp_tcp_setup = time.time()
            server.peername = server.sockname = ("0.0.0.0", 0)
            self.transports[server] = ConnectionIO(
                handler=asyncio.current_task(),
                reader=cast(asyncio.StreamReader, stream),
                writer=cast(asyncio.StreamWriter, stream),
            )
            if self._destination.tls:
                limit_s = HANDSHAKE_LIMIT_S
                self._opening[server] = self._loop.call_later(limit_s, self._handshake_failed, server, stream)
            else:
                self.settled(server)
            await self.server_event(events.OpenConnectionCompleted(command, None))
            await self.handle_connection(server)
        finally:
            self.settled(server)
            await stream.ended()
            self._streams.remove(stream)

    async def _dialled(self, server: Server) -> Stream:
        to = self._destination
        if self._is_over() or server.address != (str(to.host), to.port) or server.transport_protocol != "tcp":
            raise DialFailed("the inspector connects to nothing but the destination")
        if len(self.transports) > UPSTREAMS + 1:
            raise DialFailed("its connection has too many requests open at once")
        channel = await self._connected()
        stream = Stream(channel, self._upstream_may_read)
        self._streams.append(stream)
        if self._is_over():
            stream.abort()
        return stream

    async def _connected(self) -> Channel:
        """A channel to the destination by the way that the requests were admitted for."""
        egress = self._judging.egress
        if egress is None:
            raise DialFailed("no request was let through")
        grant = egress.grant()
        if grant is None:
            raise DialFailed(f"tunnel {egress.name} is not proved: {egress.words}")
        channel = await self._reached(egress)
        if not egress.admits(grant) or not self._judging.admits_still():
            channel.abort()
            raise DialFailed("it was no longer admitted when it was dialled")
        for end in (channel, self._client_channel):
            end.guard(lambda: egress.admits(grant))
        return channel

    async def _reached(self, egress: Egress) -> Channel:
        """Dial what was judged: the name, an address, or the first of several addresses that answers."""
        to, judging = self._destination, self._judging
        if not judging.addresses:
            return await egress.dial(to.host, to.port)
        if len(judging.addresses) == 1:
            return await egress.dial(judging.addresses[0], to.port)
        async with self._choosing:
            channel, address = await first_of(egress, judging.addresses, to.port)
            judging.reached(address)
        return channel

    def _handshake_failed(self, server: Connection, stream: Stream) -> None:
        if server in self._opening:
            stream.abort()

    # -- hooks -------------------------------------------------------------------------------------

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """Ask our hook. Whatever goes wrong in it, the connection is cut; this raises nothing."""
        self._asking += 1
        try:
            async with asyncio.timeout(HOOK_LIMIT_S):
                answer: object = await HOOKS[type(hook)](self._hooks, *hook.args())
            if answer is not Go.ON:
                self.cut(f"its {hook.name} was not answered")
        except BaseException as error:
            self.cut(f"its {hook.name} could not be judged ({type(error).__name__})")
        finally:
            self._asking -= 1

    # -- what the hooks and the layers ask (Carrier) -----------------------------------------------

    def settled(self, connection: Connection) -> None:
        """It is clear whether a destination can be spoken to: the client is heard again."""
        timer = self._opening.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def troubled(self, words: str) -> None:
        """Something went wrong by itself; the first of such words are told if nothing is ever judged."""
        self._trouble = self._trouble or words[:200]

    def page(self, refused: Refused, request: http.Request | None) -> http.Response:
        """A refusal as the client can read it."""
        return page(refused, request, self._judging.flow.destination)

    def improper(self, words: str) -> Refused:
        """A request that mitmproxy is not shown."""
        return self._judging.improper(words)

    def failed(self, words: str) -> Refused:
        """A request that was admitted and came to nothing."""
        return self._judging.failed(words)

    def exceeded(self, exchange: Exchange) -> Refused:
        """A body is longer than the policy lets it be."""
        refused = self._judging.exceeded(exchange)
        self._judging.end(exchange, str(refused.refusal))
        return refused
