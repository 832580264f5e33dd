"""The answers to mitmproxy's hooks: which layers a connection has, its TLS, and a verdict for every head.

Each answer is a plain yes, `Go.ON`; whoever asks cuts the connection at anything else. Dials nothing and
touches no socket: what the connection itself has to do is asked of its `Carrier`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Protocol

from mitmproxy import http
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, layer, server_hooks
from mitmproxy.proxy.layers import modes, tls, websocket
from mitmproxy.proxy.layers.http._hooks import (
    HttpErrorHook,
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
)
from mitmproxy.tls import ClientHelloData, TlsData

from proxy.addresses import parse_host
from proxy.inspection.exchange import Exchange, Refused
from proxy.inspection.heads import Destination, Improper, read_request, read_response
from proxy.inspection.http import JudgedHttp, JudgedTls
from proxy.inspection.judging import Judging
from proxy.inspection.pages import authority_of
from proxy.inspection.requests import ENDED, EXCHANGE, REFUSED, Rules
from proxy.inspection.tls import H2, HTTP1, TlsSides


class Go(Enum):
    """A hook's answer. Whatever else it answers cuts the connection."""

    ON = "on"


class Carrier(Rules, Protocol):
    """What the hooks ask of the connection that they answer for."""

    def settled(self, connection: Connection) -> None: ...

    def troubled(self, words: str) -> None: ...


class Hooks:
    """The answers of one connection. `http` is its HTTP, None before there is any."""

    def __init__(
        self,
        destination: Destination,
        judging: Judging,
        tls_sides: TlsSides,
        carrier: Carrier,
        *,
        http2: bool,
    ) -> None:
        self._destination, self._judging, self._tls = destination, judging, tls_sides
        self._carrier, self._http2 = carrier, http2
        self.http: JudgedHttp | None = None

    async def pass_over(self, *_: object) -> Go:
        """A hook that decides nothing."""
        return Go.ON

    async def next_layer(self, data: layer.NextLayer) -> Go:
        """The layers of a connection are fixed: its destination, TLS where the flow was TLS, HTTP."""
        context = data.context
        match len(context.layers):
            case 0:
                to = self._destination
                context.server.address = (str(to.host), to.port)
                context.server.tls = to.tls
                context.server.sni = str(to.host) if to.tls else None
                data.layer = modes.TransparentProxy(context)
            case 1 if self._destination.tls:
                data.layer = JudgedTls(context)
            case 1 | 2:
                data.layer = self.http = JudgedHttp(context, self._carrier)
            case _:
                raise TypeError("a layer that is not expected")
        return Go.ON

    async def tls_clienthello(self, data: ClientHelloData) -> Go:
        """The name in TLS must be the one that was asked for; without one the connection's own counts."""
        said = data.client_hello.sni
        if said is not None and parse_host(said) != self._destination.host:
            raise Improper(f'it claims to speak to "{said:.80}"')
        return Go.ON

    async def tls_start_client(self, data: TlsData) -> Go:
        """Show the client a certificate for its destination."""
        data.ssl_conn = self._tls.for_client(self._destination.host, http2=self._http2)
        return Go.ON

    async def tls_start_server(self, data: TlsData) -> Go:
        """Have the destination prove who it is."""
        offered = (H2, HTTP1) if data.context.client.alpn == H2 else (HTTP1,)
        data.conn.alpn_offers = offered
        data.ssl_conn = self._tls.for_server(self._destination.host, offered)
        return Go.ON

    async def tls_server_settled(self, data: TlsData) -> Go:
        """The destination's TLS stands, or has failed."""
        self._carrier.settled(data.conn)
        return Go.ON

    async def tls_failed_client(self, data: TlsData) -> Go:
        """The client did not accept our certificate, or speaks no TLS that we do."""
        self._carrier.troubled(f"its TLS failed: {data.conn.error or 'no reason given'}")
        return Go.ON

    async def requestheaders(self, flow: http.HTTPFlow) -> Go:
        """Judge a request by its head, before a byte of it goes anywhere."""
        request = flow.request
        request.stream = True
        found = self._judged(flow)
        if isinstance(found, Refused):
            flow.metadata[REFUSED] = found
            request.headers.pop("expect", None)  # who is refused is not asked to go on
            return Go.ON
        flow.metadata[EXCHANGE] = found
        for name in found.asked.drop:
            request.headers.pop(name, None)
        host = authority_of(self._destination)
        if request.is_http2:
            request.authority = host
            if "host" in request.headers:
                request.headers["host"] = host
        else:
            request.authority = ""
            request.headers["host"] = host
        return Go.ON

    def _judged(self, flow: http.HTTPFlow) -> Exchange | Refused:
        request = flow.request
        if flow.error is not None:
            return self._judging.improper("its request is malformed")
        try:
            asked = read_request(
                self._destination,
                version=2 if request.is_http2 else 1,
                method=request.method,
                authority=request.authority,
                target=request.path,
                fields=request.headers.fields,
                ended=flow.metadata[ENDED] is True,
            )
        except Improper as error:
            return self._judging.improper(str(error))
        return self._judging.request(asked, request.headers.fields)

    async def request(self, flow: http.HTTPFlow) -> Go:
        """A request has been sent whole."""
        if flow.response is not None and flow.response.timestamp_end is not None:
            self._finish(flow)
        return Go.ON

    async def responseheaders(self, flow: http.HTTPFlow) -> Go:
        """Judge an answer by its head."""
        exchange, response = flow.metadata[EXCHANGE], flow.response
        if response is None:
            raise TypeError("an answer without a head")
        response.stream = response.status_code != 101
        try:
            answered = read_response(
                exchange.asked,
                status=response.status_code,
                fields=response.headers.fields,
            )
            refused = self._judging.answered(exchange, answered)
        except Improper as error:
            refused = self._judging.improper(f"what its request is answered with is refused: {error}")
        if refused is not None:
            exchange.refused = refused.refusal
            flow.metadata[REFUSED] = refused
            self._judging.end(exchange, str(refused.refusal))
        response.headers.pop("alt-svc", None)  # other ways to the same place are not judged
        return Go.ON

    async def response(self, flow: http.HTTPFlow) -> Go:
        """An answer has been sent whole; the request perhaps not yet."""
        if flow.request.timestamp_end is not None and flow.websocket is None:
            self._finish(flow)
        return Go.ON

    async def error(self, flow: http.HTTPFlow) -> Go:
        """A request came to no end."""
        if isinstance(exchange := flow.metadata.get(EXCHANGE), Exchange):
            self._judging.end(exchange, flow.error.msg if flow.error else "failed")
        return Go.ON

    async def websocket_message(self, flow: http.HTTPFlow) -> Go:
        """A message that is whole; it is not kept."""
        if flow.websocket is None or EXCHANGE not in flow.metadata:
            raise TypeError("a message of no WebSocket")
        flow.websocket.messages.clear()
        return Go.ON

    async def websocket_end(self, flow: http.HTTPFlow) -> Go:
        """A WebSocket has ended."""
        self._finish(flow)
        return Go.ON

    def _finish(self, flow: http.HTTPFlow) -> None:
        if isinstance(exchange := flow.metadata.get(EXCHANGE), Exchange):
            self._judging.end(exchange, "finished by both ends")


HOOKS: Mapping[type[commands.StartHook], Callable[..., Awaitable[Go]]] = {
    server_hooks.ClientConnectedHook: Hooks.pass_over,
    server_hooks.ClientDisconnectedHook: Hooks.pass_over,
    layer.NextLayerHook: Hooks.next_layer,
    tls.TlsClienthelloHook: Hooks.tls_clienthello,
    tls.TlsStartClientHook: Hooks.tls_start_client,
    tls.TlsStartServerHook: Hooks.tls_start_server,
    tls.TlsEstablishedClientHook: Hooks.pass_over,
    tls.TlsEstablishedServerHook: Hooks.tls_server_settled,
    tls.TlsFailedClientHook: Hooks.tls_failed_client,
    tls.TlsFailedServerHook: Hooks.tls_server_settled,
    HttpRequestHeadersHook: Hooks.requestheaders,
    HttpRequestHook: Hooks.request,
    HttpResponseHeadersHook: Hooks.responseheaders,
    HttpResponseHook: Hooks.response,
    HttpErrorHook: Hooks.error,
    websocket.WebsocketStartHook: Hooks.pass_over,
    websocket.WebsocketMessageHook: Hooks.websocket_message,
    websocket.WebsocketEndHook: Hooks.websocket_end,
}
