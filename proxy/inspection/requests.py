"""mitmproxy's layer of one request, made strict: a refusal is a page, a budget ends at the byte.

The messages of a WebSocket are its request's. Touches no socket: events in, commands out. What may pass is
asked of `Rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy import events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import DropStream, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook
from mitmproxy.proxy.layers.websocket import (
    WebsocketConnection,
    WebsocketLayer,
    WebsocketMessageHook,
    WebsocketStartHook,
)
from wsproto import ConnectionType
from wsproto.events import CloseConnection, Event, Ping, Pong

from proxy.flow import Transfer
from proxy.inspection.exchange import Exchange, Refused

EXCHANGE, REFUSED, ENDED = "exchange", "refused", "ended"
MESSAGE_BYTES = 16 << 20
_FROM_UPSTREAM = (
    ResponseHeaders, ResponseData, ResponseTrailers, ResponseEndOfMessage, ResponseProtocolError,
)  # fmt: skip


class Rules(Protocol):
    """What the layers ask of the connection that they are part of."""

    def page(self, refused: Refused, request: http.Request | None) -> http.Response: ...

    def improper(self, words: str) -> Refused: ...

    def failed(self, words: str) -> Refused: ...

    def exceeded(self, exchange: Exchange) -> Refused: ...

    def cut(self, because: str) -> None: ...


class JudgedWebsocket(WebsocketConnection):
    """A client's side of a WebSocket: what its control frames say is looked into as its messages are."""

    def __init__(self, client: Connection, may_pass: Callable[[bytes], bool]) -> None:
        super().__init__(ConnectionType.SERVER, conn=client)
        self._may_pass = may_pass

    def events(self) -> Generator[Event, None, None]:
        for event in super().events():
            said = b""
            if isinstance(event, Ping | Pong):
                said = bytes(event.payload)
            elif isinstance(event, CloseConnection):
                said = (event.reason or "").encode()
            if said and not self._may_pass(said):
                return
            yield event


class JudgedStream(HttpStream):
    """One request and its answer."""

    def __init__(self, context: Context, stream_id: int, rules: Rules) -> None:
        super().__init__(context, stream_id)
        self._rules = rules
        self._ended = False  # its head is all there is of the request
        self._begun = False  # the client has the head of an answer
        self._shown = False  # that answer is a refusal, and what the destination still says is nobody's
        self._message = {True: 0, False: 0}  # bytes of a WebSocket message that has not ended, by direction

    def handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if self._shown and isinstance(event, _FROM_UPSTREAM):
            return
        if isinstance(event, RequestHeaders):
            self._ended = event.end_stream
        for command in super().handle_event(event):
            if isinstance(command, HttpRequestHeadersHook):
                self.flow.metadata[ENDED] = self._ended
            if isinstance(command, WebsocketStartHook) and isinstance(self.child_layer, WebsocketLayer):
                self.child_layer.client_ws = JudgedWebsocket(self.context.client, self._said)
            if isinstance(command, SendHttp) and isinstance(command.event, RequestHeaders):
                self._frame(command.event, command.connection)
            if isinstance(command, SendHttp) and command.connection == self.context.client:
                if isinstance(command.event, ResponseHeaders):
                    self._begun = self._begun or command.event.response.status_code >= 101
                elif isinstance(command.event, ResponseProtocolError) and not self._begun:
                    yield from self._show(self._reason(command.event))
                    continue
            yield command

    @staticmethod
    def _frame(event: RequestHeaders, server: Connection) -> None:
        """A body of HTTP/2 ends with its stream; in HTTP/1 it needs a frame, or it is read as a request.

        There, nobody is asked for trailers either: they would not be passed on.
        """
        request = event.request
        framed = event.end_stream or "content-length" in request.headers
        if request.is_http2 and server.alpn != b"h2":
            event.request = request.copy()
            event.request.headers.pop("te", None)
            if not framed:
                event.request.headers["transfer-encoding"] = "chunked"

    def _reason(self, error: ResponseProtocolError) -> Refused:
        refused = self._refused()
        return refused or self._rules.failed(error.message)

    def _refused(self) -> Refused | None:
        found = self.flow.metadata.get(REFUSED)
        return found if isinstance(found, Refused) else None

    def _exchange(self) -> Exchange:
        """What was judged. Nothing passes without it: a KeyError here cuts the connection."""
        found = self.flow.metadata[EXCHANGE]
        if not isinstance(found, Exchange):
            raise TypeError("a request that was not judged")
        return found

    def _show(self, refused: Refused) -> CommandGenerator[None]:
        page = self._rules.page(refused, self.flow.request)
        self.flow.response = page
        self._begun = self._shown = True
        self.server_state = self.state_errored
        content = page.raw_content or b""
        yield self._to_client(ResponseHeaders(self.stream_id, page, not content))
        if content:
            yield self._to_client(ResponseData(self.stream_id, content))
        yield self._to_client(ResponseEndOfMessage(self.stream_id))

    def _to_client(self, event: HttpEvent) -> SendHttp:
        return SendHttp(event, self.context.client)

    # -- the request -------------------------------------------------------------------------------

    def start_request_stream(self) -> CommandGenerator[None]:
        if (refused := self._refused()) is not None:
            yield from self._show(refused)
            self.client_state = self.state_drain
        else:
            self._exchange()
            yield from super().start_request_stream()

    def state_consume_request_body(self, event: events.Event) -> CommandGenerator[None]:
        if (refused := self._refused()) is not None:
            yield from self._show(refused)
            yield from self.state_drain(event)
        elif isinstance(event, RequestEndOfMessage):
            self._exchange()
            yield from super().state_consume_request_body(event)
        else:
            raise TypeError("a request without a body has one")

    def state_drain(self, event: events.Event) -> CommandGenerator[None]:
        """What a client still sends after it was refused: read, so that it can read the page, and dropped."""
        self.client_state = self.state_drain
        if isinstance(event, RequestEndOfMessage):
            self.client_state = self.state_done
            yield from self._drop()

    def _drop(self) -> CommandGenerator[None]:
        self.flow.live = False
        yield DropStream(self.stream_id)

    def state_stream_request_body(self, event: Any) -> CommandGenerator[None]:
        exchange, last = self._exchange(), isinstance(event, RequestEndOfMessage)
        if isinstance(event, RequestTrailers):
            carried = self.context.server.alpn == b"h2"
            if exchange.may_end_with(event.trailers.fields, carried=carried):
                yield from super().state_stream_request_body(event)  # they go when the request has ended
            else:
                yield from self._stop(event)
            return
        data = exchange.sift(event.data) if isinstance(event, RequestData) else exchange.sift(b"", last=True)
        allowed = exchange.allow(Transfer.UPLOAD, len(data)) if data else 0
        if data and allowed:
            yield SendHttp(RequestData(self.stream_id, data[:allowed]), self.context.server)
        if data is not None and allowed == len(data):
            if last:
                yield from super().state_stream_request_body(event)
            return
        yield from self._stop(event)

    def _stop(self, event: events.Event) -> CommandGenerator[None]:
        """End a request in its middle: with a page, unless its answer has begun."""
        refused = self._rules.exceeded(self._exchange())
        yield self._give_up()
        if self._begun:
            self._rules.cut(str(refused.refusal.because))
        else:
            yield from self._show(refused)
            yield from self.state_drain(event)

    def _give_up(self) -> SendHttp:
        """End the request at its destination: a connection of HTTP/1 closes, a stream of HTTP/2 is reset."""
        error = RequestProtocolError(self.stream_id, "refused", ErrorCode.CANCEL)
        return SendHttp(error, self.context.server)

    # -- the answer --------------------------------------------------------------------------------

    def start_response_stream(self) -> CommandGenerator[None]:
        if (refused := self._refused()) is not None:
            yield from self._instead(refused)
        else:
            self._exchange()
            yield from super().start_response_stream()

    def state_consume_response_body(self, event: events.Event) -> CommandGenerator[None]:
        if (refused := self._refused()) is not None:
            yield from self._instead(refused)
        elif isinstance(event, ResponseData):
            raise TypeError("an answer without a body has one")
        else:
            yield from super().state_consume_response_body(event)

    def _instead(self, refused: Refused) -> CommandGenerator[None]:
        """A page in place of an answer that was refused."""
        yield self._give_up()
        yield from self._show(refused)
        if self.client_state == self.state_done:
            yield from self._drop()
        else:
            self.client_state = self.state_drain

    def state_stream_response_body(self, event: events.Event) -> CommandGenerator[None]:
        if not isinstance(event, ResponseData):
            yield from super().state_stream_response_body(event)
            return
        exchange = self._exchange()
        allowed = exchange.allow(Transfer.DOWNLOAD, len(event.data))
        if allowed:
            yield self._to_client(ResponseData(self.stream_id, event.data[:allowed]))
        if allowed < len(event.data):
            refused = self._rules.exceeded(exchange)
            if self.context.client.alpn != b"h2":
                self._rules.cut(str(refused.refusal.because))  # a plain end could look like a whole answer
                return
            yield self._give_up()
            yield self._to_client(ResponseProtocolError(self.stream_id, "refused", ErrorCode.CANCEL))
            self._shown = True
            self.client_state = self.server_state = self.state_errored

    # -- a WebSocket -------------------------------------------------------------------------------

    def _said(self, content: bytes) -> bool:
        """Whether something that a client says whole may go on; cuts where it may not."""
        if self._exchange().sift_message(content):
            return True
        self._rules.cut(str(self._rules.exceeded(self._exchange()).refusal.because))
        return False

    def passthrough(self, event: events.Event) -> CommandGenerator[None]:
        exchange = self._exchange()
        if isinstance(event, RequestData | ResponseData):
            upload = isinstance(event, RequestData)
            self._message[upload] += len(event.data)
            if self._message[upload] > MESSAGE_BYTES:
                self._rules.cut("a message of its WebSocket is too long")
                return
        for command in super().passthrough(event):
            if isinstance(command, WebsocketMessageHook) and self.flow.websocket is not None:
                message = self.flow.websocket.messages[-1]
                self._message[message.from_client] = 0
                if message.from_client and not self._said(message.content):
                    return
            if isinstance(command, SendHttp) and isinstance(command.event, RequestData | ResponseData):
                upload = isinstance(command.event, RequestData)
                data = command.event.data
                allowed = exchange.allow(Transfer.UPLOAD if upload else Transfer.DOWNLOAD, len(data))
                if allowed < len(data):
                    self._rules.cut(str(self._rules.exceeded(exchange).refusal.because))
                    return
            yield command
