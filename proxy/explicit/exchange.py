"""One request of a client and the response to it, as the two channels that the relay carries between.

The client's side gives the request anew and its body to the end, and then waits for the response; the
destination's side gives the response to its end. Each ends where the message does, and not where the
connection does, so that the client's connection can serve another request, which is another flow. Whatever
is not framed as it should be ends both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from proxy import refusals
from proxy.channel.around import Around
from proxy.channel.head import BadHead, Head, read_head
from proxy.channel.plain import Aborted, Channel, Reset
from proxy.explicit.bodies import BadBody, Body
from proxy.explicit.requests import Request
from proxy.explicit.responses import BadResponse, parse_response
from proxy.refusals import Notice

HEAD_BYTES, HEAD_FIELDS = 32 * 1024, 128
_INTERIM = 16
_LOGIN = 'Basic realm="zonegate", charset="UTF-8"'


class Answering:
    """A client of the HTTP proxy reads a refusal as the proxy's own answer. A Manner."""

    trouble = ""

    def __init__(self, head: Head | None = None) -> None:
        self._head = head or Head("", ())

    async def proceed(self) -> None:
        """Its request was read already."""

    def shown(self, notice: Notice) -> bytes | None:
        """See Manner. Where the destination is not known it is what the client wrote."""
        if not notice.destination[:1].strip("?"):
            notice = replace(notice, destination=(*self._head.start.split(" ")[1:2], "")[0])
        fields = {407: {"Proxy-Authenticate": _LOGIN}, 429: {"Retry-After": "60"}}.get(notice.status, {})
        bodiless = self._head.start.startswith("HEAD ")
        return refusals.http(notice, ", ".join(self._head.all("accept")), bodiless=bodiless, fields=fields)

    def upstream(self, channel: Channel) -> Channel:
        """See Manner."""
        return channel

    def given(self, client: Channel, first: bytes) -> tuple[Channel, bytes]:
        """See Manner."""
        return client, first


class Exchange(Answering):
    """One request. The Channel of its client and its Manner; owns neither connection.

    Afterwards `complete` says that the response was carried whole, `reusable` that the client's connection
    serves another request, and `unanswered` that somebody must tell the client of the `trouble`.
    """

    def __init__(self, client: Channel, request: Request) -> None:
        super().__init__(request.head)
        self.request = request
        self.complete = False
        self.trouble = ""
        self.at_fault = 400
        self._client = client
        self._body = request.body()
        self._carried = False
        self._asked = False
        self._answered = False
        self._ended = False  # the response's last byte is on its way to the client
        self._spoiled = False  # the client said what leaves no place for another request
        self._keeps = False
        self._aborted = False
        self._over = asyncio.Event()

    @property
    def reusable(self) -> bool:
        """Whether the client's connection serves another request."""
        return self.complete and self._keeps and self._body.done and not self._spoiled

    @property
    def unanswered(self) -> bool:
        """Whether the client waits for an answer that nobody has given."""
        return bool(self.trouble) and not self._answered

    def upstream(self, channel: Channel) -> Channel:
        """See Manner: the destination's side; from now on messages are carried."""
        self._carried = True
        return _Response(self, channel)

    def given(self, client: Channel, first: bytes) -> tuple[Channel, bytes]:
        """See Manner: whoever takes over reads a request as the destination would, and no other behind it."""
        return self._client, self.request.onward()

    # -- the client's side, as the relay has it ----------------------------------------------------

    async def read(self) -> bytes:
        """The request, then nothing until its response is over."""
        if not self._asked:
            self._asked = True
            return self.request.onward()
        while (data := await self._heard()) is not None:
            if self._body.done:
                if not data:
                    return b""
                self._client.unread(data)
                await self._over.wait()
                continue
            if not data:
                raise self.wrong(400, "it ended within the body of a request")
            try:
                out, rest = self._body.take(data)
            except BadBody as error:
                raise self.wrong(400, str(error)) from None
            if rest:
                self._client.unread(rest)
            if out:
                return out
        return b""

    async def _heard(self) -> bytes | None:
        """What the client says next; None once the response is over."""
        if not self._over.is_set():
            reading = asyncio.ensure_future(self._listen())
            over = asyncio.ensure_future(self._over.wait())
            try:
                await asyncio.wait({reading, over}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                over.cancel()
                if not reading.done():
                    reading.cancel()
                await asyncio.gather(reading, over, return_exceptions=True)
            if not reading.cancelled():
                return reading.result()
        if self._aborted:
            raise Aborted("the exchange was ended")
        return None

    async def _listen(self) -> bytes:
        """What the client says next. Behind a request, bytes before the end of its response are a request
        that did not wait for it, and an end of file is none at all: neither is followed by another one."""
        behind = self._body.done
        data = await self._client.read()
        if behind and not (data and self._ended):
            self._spoiled = True
        return data

    def unread(self, data: bytes) -> None:
        """See Channel."""
        self._client.unread(data)

    async def write(self, data: bytes) -> None:
        """See Channel."""
        self._answered = True
        await self._client.write(data)

    async def write_eof(self) -> None:
        """See Channel. The end of a response is not the end of a connection."""
        if not self._carried:
            await self._client.write_eof()

    def guard(self, admitted: Callable[[], bool]) -> None:
        """See Channel."""
        self._client.guard(admitted)

    async def drain(self, time_limit_s: float) -> None:
        """See Channel."""
        await self._client.drain(time_limit_s)

    def abort(self) -> None:
        """See Channel. What was carried whole stays, and so does who is still to be answered."""
        self._aborted = True
        self._over.set()
        if not self.complete and not (self._carried and self.unanswered):
            self._client.abort()

    async def close(self) -> None:
        """See Channel. The relay closes what ended well."""
        if self._carried:
            self.complete = True
            self._client.guard(lambda: True)
        else:
            await self._client.close()

    # -- what the destination's side says of the response ------------------------------------------

    def wrong(self, status: int, trouble: str) -> Reset:
        """One of the two is at fault (400, 502); the error to raise."""
        self.at_fault, self.trouble = status, self.trouble or trouble
        return Reset(trouble)

    def keeps(self) -> bool:
        """Whether the client could use its connection again, as far as is known."""
        return self.request.persistent and not self._spoiled

    def begins(self, *, keeps: bool) -> None:
        """The response's head is known."""
        self._keeps = keeps

    def ends(self) -> None:
        """The last byte of the response is about to be given to the client."""
        self._ended = True

    def is_over(self) -> bool:
        """Whether the response is over."""
        return self._over.is_set()

    def finish(self) -> None:
        """The response was given to the client."""
        self._over.set()


class _Response(Around):
    """The destination's side of an exchange, as the relay has it."""

    def __init__(self, exchange: Exchange, channel: Channel) -> None:
        super().__init__(channel)
        self._exchange = exchange
        self._body: Body | None = None

    async def read(self) -> bytes:
        """The response, then the end."""
        try:
            if self._body is None:
                return await self._head()
            while not self._body.done:
                if out := await self._more(self._body):
                    return out
        except (BadHead, BadBody, BadResponse) as error:
            raise self._exchange.wrong(502, str(error)) from None
        self._exchange.finish()
        return b""

    async def _more(self, body: Body) -> bytes:
        data = await self._channel.read()
        out = body.take(data)[0] if data else body.end()
        if body.done:
            self._exchange.ends()
        return out

    async def _head(self) -> bytes:
        """The head of the response, behind those that announce it."""
        exchange = self._exchange
        for _ in range(_INTERIM):
            head = await read_head(self._channel, b"", HEAD_BYTES, HEAD_FIELDS)
            found = parse_response(head, exchange.request, keep=exchange.keeps())
            if found.body is not None:
                self._body = found.body
                exchange.begins(keeps=found.reusable)
                if found.body.done:
                    exchange.ends()
                return found.onward
            if exchange.request.version:
                return found.onward
        raise BadResponse("it announces its answer and gives none")

    async def write_eof(self) -> None:
        """See Channel. A client that says no more is told of; a response that is over ends by `close`."""
        if not self._exchange.is_over():
            await self._channel.write_eof()
