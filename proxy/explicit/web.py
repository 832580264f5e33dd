"""The conversation with one client of the HTTP proxy: who it is, what it asks for, and what becomes of that.

Every request is a flow of its own and takes the way of every flow (`passage`). After a refusal of any kind
the connection closes, and what comes behind it is never parsed.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
from base64 import b64decode
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from proxy.channel.head import BadHead, Head, read_head
from proxy.channel.lingering import tell
from proxy.channel.plain import Channel
from proxy.config import ANONYMOUS
from proxy.explicit.associations import Associations
from proxy.explicit.exchange import HEAD_BYTES, HEAD_FIELDS, Answering, Exchange
from proxy.explicit.logins import TOO_MANY, Login, Logins
from proxy.explicit.requests import BadRequest, Request, parse_request
from proxy.flow import Flow, IPAddress, Protocol, Refusal
from proxy.gate import gate_refusal
from proxy.passage import Passage
from proxy.refusals import Notice
from proxy.visitor import Visitor

REQUEST_LIMIT_S, IDLE_LIMIT_S = 10.0, 60.0
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"

type NewFlow = Callable[[Login, str | IPAddress | None, int], Flow]


@dataclass(frozen=True, slots=True)
class House:
    """What the conversations of one listener share. `auth` is how its clients log in (config.Listener)."""

    name: str
    auth: str
    logins: Logins
    passage: Passage
    new_flow: NewFlow
    associations: Associations

    @property
    def asks(self) -> bool:
        """Whether each client is asked for a password."""
        return self.auth == "passwords"


@dataclass(frozen=True, slots=True)
class Guest:
    """One client. `login` is known before it speaks unless the house asks; while it is `waited` for, it may
    have to make room for others."""

    client: Channel
    address: IPAddress
    login: Login | Refusal | None
    waited: Callable[[], AbstractContextManager[None]]

    def visitor(self, house: House, manner: Answering) -> Visitor:
        """How its flows are recorded: it can go around the gate."""
        return Visitor(f"{house.name}@{self.address}", "cooperative", manner)


class Connecting(Answering):
    """A client that asks for a tunnel hears nothing of its destination before it is let through."""

    def __init__(self, client: Channel, head: Head) -> None:
        super().__init__(head)
        self._client, self._through = client, False

    async def proceed(self) -> None:
        """See Manner."""
        if not self._through:
            self._through = True
            await self._client.write(CONNECTED)

    def shown(self, notice: Notice) -> bytes | None:
        """See Manner."""
        return None if self._through else super().shown(notice)


async def converse(guest: Guest, house: House) -> None:
    """Serve a client until it or we have had enough; its connection is closed then. Raises nothing but
    CancelledError."""
    limit_s = REQUEST_LIMIT_S
    try:
        while (head := await _next_head(guest, limit_s)) is not None:
            if not await _serve(guest, house, head):
                return
            limit_s = IDLE_LIMIT_S
        await guest.client.close()
    except ConnectionError:
        pass  # it has gone; there is nobody to tell
    finally:
        guest.client.abort()


async def _next_head(guest: Guest, limit_s: float) -> Head | None:
    """The head of the next request; None where there is none to answer."""
    with guest.waited():
        try:
            async with asyncio.timeout(limit_s):
                first = await guest.client.read()
        except TimeoutError:
            return None
        if not first:
            return None
        try:
            async with asyncio.timeout(REQUEST_LIMIT_S):
                return await read_head(guest.client, first, HEAD_BYTES, HEAD_FIELDS)
        except TimeoutError:
            refusal = gate_refusal("slow-request", f"it did not arrive within {REQUEST_LIMIT_S:g} s")
        except BadHead as error:
            refusal = gate_refusal("bad-request", str(error))
    await _answer(guest, refusal, Answering())
    return None


async def _serve(guest: Guest, house: House, head: Head) -> bool:
    """Have one request judged and carried; whether the connection serves another one."""
    login = guest.login or await _login(guest, house, head)
    if login is None:
        refusal = gate_refusal("login", "a login and a password are needed", "give the program both")
        await _answer(guest, refusal, Answering(head))
        return False
    if isinstance(login, Refusal):
        if login.because.id == TOO_MANY:  # nor does it fill the records
            await _answer(guest, login, Answering(head))
        else:
            await _turn_away(guest, house, Login(_claimed(head), frozenset()), head, login)
        return False
    try:
        request = parse_request(head)
    except BadRequest as error:
        await _turn_away(guest, house, login, head, gate_refusal("bad-request", str(error)))
        return False
    flow = house.new_flow(login, request.host, request.port)
    if request.is_connect:
        visitor = guest.visitor(house, Connecting(guest.client, head))
        await house.passage.pass_through(guest.client, flow, visitor)
        return False
    return await _exchange(guest, house, request, replace(flow, protocol=Protocol.HTTP))


async def _exchange(guest: Guest, house: House, request: Request, flow: Flow) -> bool:
    """Carry one request and its response; whether the connection serves another one."""
    exchange = Exchange(guest.client, request)
    await house.passage.pass_through(exchange, flow, guest.visitor(house, exchange))
    if exchange.unanswered:
        name = "bad-request" if exchange.at_fault == 400 else "unreachable"
        guest.client.guard(lambda: True)
        await _answer(guest, gate_refusal(name, exchange.trouble), exchange, flow.destination)
    elif exchange.complete and not exchange.reusable:
        await tell(guest.client, b"")
    return exchange.reusable


async def _login(guest: Guest, house: House, head: Head) -> Login | Refusal | None:
    """Who the head says that it is; None where it does not say, or not in one way."""
    shown = head.all("proxy-authorization")
    found = _basic(shown[0]) if len(shown) == 1 else None
    return None if found is None else await house.logins.check(guest.address, *found)


def _basic(value: str) -> tuple[str, bytes] | None:
    """Login and password of RFC 7617."""
    scheme, _, word = value.partition(" ")
    with contextlib.suppress(binascii.Error, UnicodeDecodeError, ValueError):
        login, colon, password = b64decode(word.strip(), validate=True).partition(b":")
        if scheme.lower() == "basic" and colon:
            return login.decode(), password
    return None


def _claimed(head: Head) -> str:
    found = _basic((*head.all("proxy-authorization"), "")[0])
    return found[0] if found else ANONYMOUS


async def _turn_away(guest: Guest, house: House, login: Login, head: Head, refusal: Refusal) -> None:
    """Refuse somebody whose destination is not known; that is recorded too."""
    flow = house.new_flow(login, None, 0)
    visitor = guest.visitor(house, Answering(head))
    await house.passage.refuse(guest.client, flow, refusal, visitor)


async def _answer(guest: Guest, refusal: Refusal, manner: Answering, destination: str = "") -> None:
    """Say no to what never was a flow."""
    shown = manner.shown(Notice(refusal, destination, "", datetime.now(UTC)))
    await tell(guest.client, shown or b"")
