"""The conversation with one client of SOCKS5 (RFC 1928): who it is (RFC 1929), where it wants to go.

CONNECT and UDP ASSOCIATE: BIND is refused with the code for it. What is admitted takes the way of every flow
(`passage`, `datagram_passage`). After a refusal the connection closes, and what comes behind it is never
parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import assert_never

from proxy.addresses import parse_host
from proxy.channel.lingering import tell
from proxy.channel.plain import Channel
from proxy.config import ANONYMOUS
from proxy.datagram_passage import NO_TUNNEL
from proxy.explicit.associations import NoAssociation, Sender
from proxy.explicit.exchange import Answering
from proxy.explicit.logins import TOO_MANY, Login
from proxy.explicit.web import Guest, House
from proxy.flow import IPAddress, Protocol, Refusal
from proxy.gate import NOTHING_GRANTED, gate_refusal
from proxy.refusals import Notice
from proxy.visitor import Visitor

HANDSHAKE_LIMIT_S = 10.0
_NO_LOGIN, _PASSWORD, _NO_METHOD = 0, 2, 255
_CONNECT, _UDP_ASSOCIATE = 1, 3
_V4, _V6 = 1, 4
NOWHERE = IPv4Address(0)
_SUCCEEDED, _FAILED, _NOT_ALLOWED = 0, 1, 2
_BAD_COMMAND, _BAD_ADDRESS_TYPE = 7, 8
# By HTTP status of a refusal: network unreachable is the tunnel's, host unreachable the destination's; where
# it does not answer clients know "TTL expired".
_CODES: Mapping[int, int] = {400: _FAILED, 403: _NOT_ALLOWED, 502: 4, 503: 3, 504: 6}
_NO_ASSOCIATION = "no-association"
_OF_ASSOCIATIONS: Mapping[str, int] = {
    NO_TUNNEL.because.id: _BAD_COMMAND,
    NOTHING_GRANTED: _BAD_COMMAND,
    _NO_ASSOCIATION: _FAILED,
}


class Odd(Exception):
    """What it says is not SOCKS5; the answer, if there is one."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer


class Socks(Answering):
    """A client of SOCKS reads a refusal as a code, and nothing of its destination before a code."""

    def __init__(self, client: Channel, code: int | None = None) -> None:
        super().__init__()
        self._client, self._through, self._code = client, False, code

    async def proceed(self) -> None:
        """See Manner."""
        if not self._through:
            self._through = True
            await self._client.write(_reply(_SUCCEEDED))

    def shown(self, notice: Notice) -> bytes | None:
        """See Manner."""
        if self._through:
            return None
        return _reply(_CODES.get(notice.status, _FAILED) if self._code is None else self._code)


async def converse(guest: Guest, house: House) -> None:
    """Serve a client to its end; its connection is closed then. Raises nothing but CancelledError."""
    client = guest.client
    try:
        with guest.waited():
            async with asyncio.timeout(HANDSHAKE_LIMIT_S):
                shown = await greeting(client, asks=house.asks)
        login = guest.login
        if shown is not None:
            login = await house.logins.check(guest.address, *shown)
            if isinstance(login, Refusal):
                if login.because.id == TOO_MANY:  # nor does it fill the records
                    raise Odd(b"\1\1")
                await _turn_away(guest, house, Login(shown[0], frozenset()), login, b"\1\1")
                return
            await client.write(b"\1\0")
        with guest.waited():
            async with asyncio.timeout(HANDSHAKE_LIMIT_S):
                command, destination, port = await request(client)
        match login:
            case Login():
                await _serve(guest, house, login, command, destination, port)
            case Refusal():
                nobody = Login(ANONYMOUS, frozenset())
                await _turn_away(guest, house, nobody, login, _reply(_NOT_ALLOWED))
            case None:
                raise Odd
            case _:
                assert_never(login)
    except Odd as odd:
        await tell(client, odd.answer)
    except (ConnectionError, TimeoutError):
        pass  # it has gone, or says nothing: there is nobody to tell
    finally:
        client.abort()


async def _serve(
    guest: Guest, house: House, login: Login, command: int, destination: str | IPAddress | Refusal, port: int
) -> None:
    if command == _UDP_ASSOCIATE:
        await _associate(guest, house, login, destination, port)
        return
    if isinstance(destination, Refusal):
        await _turn_away(guest, house, login, destination, _reply(_FAILED))
        return
    if not port:
        destination = gate_refusal("bad-request", "its destination has no port from 1 to 65535")
        await _turn_away(guest, house, login, destination, _reply(_FAILED))
        return
    flow = house.new_flow(login, destination, port)
    if command == _CONNECT:
        visitor = guest.visitor(house, Socks(guest.client))
        await house.passage.pass_through(guest.client, flow, visitor)
        return
    refusal = gate_refusal(
        "bad-request", f"SOCKS command {command} is not served; CONNECT and UDP ASSOCIATE are"
    )
    visitor = guest.visitor(house, Socks(guest.client, _BAD_COMMAND))
    await house.passage.refuse(guest.client, flow, refusal, visitor)


async def _associate(
    guest: Guest, house: House, login: Login, host: str | IPAddress | Refusal, port: int
) -> None:
    """Carry datagrams for as long as the client's connection lasts (RFC 1928, section 7)."""
    flow = replace(house.new_flow(login, None, 0), transport=Protocol.UDP, protocol=Protocol.UDP)
    # A client that names another address than is seen here (NAT) does not know its port either.
    knows = isinstance(host, IPv4Address | IPv6Address) and (host == guest.address or host.is_unspecified)
    new_flow = functools.partial(house.new_flow, login)
    sender = Sender(guest.address, Visitor(f"{house.name}@{guest.address}", "cooperative"), new_flow)
    refusal = house.associations.refusal(flow)
    if refusal is None:
        try:
            association = await house.associations.open(guest.client, sender, port if knows else 0)
        except NoAssociation as error:
            refusal = gate_refusal(_NO_ASSOCIATION, str(error), "try again")
        else:
            with contextlib.closing(association):
                await guest.client.write(_reply(_SUCCEEDED, association.address, association.port))
                await house.associations.carry(association, guest.client)
            return
    manner = Socks(guest.client, _OF_ASSOCIATIONS.get(refusal.because.id))
    await house.passage.refuse(guest.client, flow, refusal, guest.visitor(house, manner))


async def _turn_away(guest: Guest, house: House, login: Login, refusal: Refusal, answer: bytes) -> None:
    """Refuse somebody whose destination is not known; that is recorded too."""
    visitor = guest.visitor(house, _Said(answer))
    await house.passage.refuse(guest.client, house.new_flow(login, None, 0), refusal, visitor)


class _Said(Answering):
    """A client reads these bytes as its refusal."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self._answer = answer

    def shown(self, notice: Notice) -> bytes | None:
        """See Manner."""
        return self._answer


async def greeting(client: Channel, *, asks: bool) -> tuple[str, bytes] | None:
    """Agree on a method; login and password where the house asks."""
    version, count = await _take(client, 2)
    if version != 5:
        raise Odd
    methods = await _take(client, count)
    wanted = _PASSWORD if asks else _NO_LOGIN
    if wanted not in methods:
        raise Odd(bytes((5, _NO_METHOD)))
    await client.write(bytes((5, wanted)))
    if not asks:
        return None
    version, length = await _take(client, 2)
    if version != 1:
        raise Odd(b"\1\1")
    login = await _take(client, length)
    password = await _take(client, (await _take(client, 1))[0])
    return login.decode("utf-8", "replace"), password


async def request(client: Channel) -> tuple[int, str | IPAddress | Refusal, int]:
    """Command, destination and port."""
    version, command, reserved, kind = await _take(client, 4)
    if version != 5 or reserved:
        raise Odd(_reply(_FAILED))
    match kind:
        case 1:
            host: str | IPAddress | Refusal = IPv4Address(await _take(client, 4))
        case 4:
            host = IPv6Address(await _take(client, 16))
        case 3:
            host = named(await _take(client, (await _take(client, 1))[0]))
        case _:
            raise Odd(_reply(_BAD_ADDRESS_TYPE))
    return command, host, int.from_bytes(await _take(client, 2))


def named(raw: bytes) -> str | IPAddress | Refusal:
    """A name as it stands in a request; an address that is written as a name is the address."""
    try:
        return parse_host(raw.decode("ascii"))
    except UnicodeDecodeError:
        return gate_refusal("bad-request", "its destination is not ASCII; write labels as xn--")
    except ValueError as error:
        return gate_refusal("bad-request", str(error))


async def _take(client: Channel, count: int) -> bytes:
    """Exactly so many bytes; what follows stays in the channel."""
    data = b""
    while len(data) < count:
        more = await client.read()
        if not more:
            raise Odd
        data += more
    if data[count:]:
        client.unread(data[count:])
    return data[:count]


def _reply(code: int, address: IPAddress = NOWHERE, port: int = 0) -> bytes:
    """An answer (RFC 1928, section 6). The address that a destination sees is not the client's to know."""
    kind = _V4 if address.version == 4 else _V6
    return bytes((5, code, 0, kind)) + address.packed + port.to_bytes(2)
