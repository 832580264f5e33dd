"""HTTP/1.1 CONNECT through a channel, and the question that proves that the peer lives.

It speaks to a gateway that it does not trust to be well behaved: the reply is read strictly and within
limits, and whatever goes wrong resets the channel. It does not judge destinations.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address

from proxy.addresses import parse_host
from proxy.channel.head import BadHead, Head, read_head
from proxy.channel.plain import Channel
from proxy.flow import IPAddress

BECAUSE_FIELD = "zonegate-because"
_STATUS = re.compile(r"HTTP/1\.[01] ([1-5][0-9][0-9])(?: .*)?")
_REASON_CHARACTERS = 300


class ConnectFailed(ConnectionError):
    """The gateway gave no usable answer in time; nothing is known of the destination."""


class ConnectionEnded(ConnectFailed):
    """The gateway ended the connection without an answer."""


class ConnectRefused(ConnectFailed):
    """The gateway answered and said no: `status`, and `because` in its own words (one printable line)."""

    def __init__(self, status: int, because: str) -> None:
        super().__init__(f"the gateway answered {status}" + (f": {because}" if because else ""))
        self.status = status
        self.because = because


async def connect_through(channel: Channel, host: str | IPAddress, port: int, time_limit_s: float) -> None:
    """Have the gateway at the other end connect `channel` to `host`, a canonical name or an address.

    On return the channel carries the destination's bytes and nothing else. Raises ConnectRefused,
    ConnectFailed, and ValueError for a host that no request may contain; the channel is then reset.
    """
    async with _or_reset(channel, time_limit_s):
        target = authority(host, port)
        await channel.write(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode("ascii"))
        status, head = await _read_reply(channel)
        # A body is not looked for: a 2xx to CONNECT has none, whatever it says (RFC 9110, section 9.3.6).
        if not 200 <= status <= 299:
            raise ConnectRefused(status, _one_line("; ".join(head.all(BECAUSE_FIELD))))


async def probe(channel: Channel, time_limit_s: float) -> bool:
    """Ask the peer for a sign of life; return whether this channel can be asked again.

    Any answer is the proof, since it came under the key that the handshake proved. A peer that does not
    know the question closes, and so do we. Raises ConnectFailed; the channel is then reset.
    """
    async with _or_reset(channel, time_limit_s):
        await channel.write(b"OPTIONS * HTTP/1.1\r\nhost: zonegate\r\n\r\n")
        status, head = await _read_reply(channel)
        if status == 204 and "close" not in (value.lower() for value in head.all("connection")):
            return True
        channel.abort()
        return False


def authority(host: str | IPAddress, port: int) -> str:
    """`host:port` as it stands in a request. Raises ValueError for what is no canonical host or port."""
    if not 1 <= port <= 65535:
        raise ValueError(f'"{port}" is not a port; give 1 to 65535')
    canonical = parse_host(str(host))
    if str(canonical) != str(host):
        raise ValueError(f'"{host}" is not in its canonical form; write "{canonical}"')
    if isinstance(canonical, IPv6Address):
        return f"[{canonical}]:{port}"
    return f"{host}:{port}"


async def _read_reply(channel: Channel) -> tuple[int, Head]:
    head = await read_head(channel)
    match = _STATUS.fullmatch(head.start)
    if match is None:
        raise BadHead("the status line is malformed")
    return int(match[1]), head


@asynccontextmanager
async def _or_reset(channel: Channel, time_limit_s: float) -> AsyncIterator[None]:
    """Reset `channel` on whatever goes wrong; what the peer did wrong becomes ConnectFailed."""
    try:
        async with asyncio.timeout(time_limit_s):
            yield
    except BaseException as error:
        channel.abort()
        match error:
            case ConnectFailed():
                raise
            case TimeoutError():
                raise ConnectFailed(f"the gateway did not answer within {time_limit_s:g} s") from None
            case BadHead():
                raise ConnectFailed(f"the gateway's answer is not HTTP: {error}") from None
            case ConnectionError():
                raise ConnectionEnded(f"the gateway ended the connection ({error})") from None
            case _:
                raise


def _one_line(text: str) -> str:
    """Foreign text made safe to show and to record."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable[:_REASON_CHARACTERS]
