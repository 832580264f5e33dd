"""mitmproxy's layers of a connection, made strict: its TLS, its HTTP, and HTTP/1 heads before any repair.

Heads are looked at before mitmproxy repairs them, and what it would say to a client in its own words is said
in ours. Touches no socket: events in, commands out. Each request is a `JudgedStream` (`requests`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers import tls
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.http._base import HttpConnection
from mitmproxy.proxy.layers.http._events import RequestData
from mitmproxy.proxy.layers.http._http1 import Http1Connection, Http1Server
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Connection

from proxy.channel.head import BadHead, parse_head
from proxy.inspection.heads import MAX_HEAD_BYTES
from proxy.inspection.requests import JudgedStream, Rules

_START = re.compile(r"(?!CONNECT )[A-Z][A-Z0-9_-]{0,31} [!-~]{1,16384} HTTP/1\.[01]")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")


class JudgedTls(tls.ClientTLSLayer):
    """TLS with a client, ended as TLS ends: a response that has no length is otherwise no whole one."""

    def send_close(self, command: commands.CloseConnection) -> CommandGenerator[None]:
        if self.tls is not None:
            self.tls.shutdown()
            yield from self.tls_interact()
        yield from super().send_close(command)


class JudgedHttp(HttpLayer):
    """The HTTP of one connection."""

    def __init__(self, context: Context, rules: Rules) -> None:
        super().__init__(context, HTTPMode.transparent)
        self._rules = rules

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.Start) and self.context.client.alpn != b"h2":
            self.connections[self.context.client] = JudgedHttp1(self.context.fork(), self._rules)
        yield from super()._handle_event(event)

    def make_stream(self, stream_id: int) -> CommandGenerator[None]:
        self.streams[stream_id] = JudgedStream(self.context.fork(), stream_id, self._rules)
        yield from self.event_to_child(self.streams[stream_id], events.Start())

    # -- what is held in memory --------------------------------------------------------------------

    def unparsed_bytes(self) -> int:
        """The longest that any side has sent and that is no message yet."""
        heads = [layer for layer in self._ends() if isinstance(layer, Http1Connection)]
        return max((len(layer.buf) for layer in heads), default=0)

    def head_is_open(self) -> bool:
        """Whether the client has begun a head and not ended it."""
        layer = self.connections.get(self.context.client)
        return isinstance(layer, Http1Server) and bool(layer.buf) and layer.state == layer.read_headers

    def held_bytes(self, *, for_client: bool) -> int:
        """What HTTP/2 holds because a peer opens no window, towards the client or towards destinations."""
        client = self.connections.get(self.context.client)
        ends = [client] if for_client else [layer for layer in self._ends() if layer is not client]
        return sum(_held(layer) for layer in ends if isinstance(layer, Http2Connection))

    def _ends(self) -> Iterator[object]:
        for layer in tuple(self.connections.values()):
            if isinstance(layer, HttpConnection):
                yield layer
            else:
                yield from (inner for inner in layer.context.layers if isinstance(inner, HttpConnection))


def _held(layer: Http2Connection) -> int:
    held = sum(len(piece.data) for pieces in layer.h2_conn.stream_buffers.values() for piece in pieces)
    if isinstance(layer, Http2Client):
        queued = (event for waiting in layer.stream_queue.values() for event in waiting)
        held += sum(len(event.data) for event in queued if isinstance(event, RequestData))
    return held


class JudgedHttp1(Http1Server):
    """HTTP/1 from a client: a head is looked at strictly before mitmproxy repairs anything in it."""

    def __init__(self, context: Context, rules: Rules) -> None:
        super().__init__(context)
        self._rules = rules

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            while bytes(self.buf).startswith(b"\r\n"):  # means nothing (RFC 9112, section 2.2)
                self.buf.maybe_extract_at_most(2)
            head, found, _ = bytes(self.buf).partition(b"\r\n\r\n")
            try:
                if len(head) > MAX_HEAD_BYTES:
                    raise BadHead("the head is too long")
                if _BARE_LINE_FEED.search(head):
                    raise BadHead("a line ends in a line feed alone")
                if not found:
                    return
                if not _START.fullmatch(parse_head(head).start):
                    raise BadHead("the start line is malformed")
            except BadHead as error:
                yield from self._refuse(f"its request is malformed: {error}")
                return
        for command in super().read_headers(event):
            if isinstance(command, commands.SendData):
                yield from self._refuse("its request is malformed")
                return
            yield command

    def _refuse(self, words: str) -> CommandGenerator[None]:
        """Say no and hear nothing more: what follows could be read as a request."""
        page = self._rules.page(self._rules.improper(words), None)
        head = b"\r\n".join(b"%s: %s" % field for field in page.headers.fields)
        status = f"HTTP/1.1 {page.status_code} {page.reason}\r\n".encode("ascii")
        yield commands.SendData(self.conn, status + head + b"\r\n\r\n" + (page.raw_content or b""))
        yield commands.CloseConnection(self.conn)
        self.state = self.done
