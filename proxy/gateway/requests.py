"""What a client asks for, and the answers it gets.

Pure: a head in, a request or the refusal of a malformed one out. A request that two readers could
understand in two ways is refused, and after a refusal nothing more is read from that client.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.addresses import parse_host
from proxy.channel.connect import BECAUSE_FIELD, authority
from proxy.channel.head import Head
from proxy.flow import IPAddress
from proxy.gateway.judge import Refused

ALIVE = b"HTTP/1.1 204 No Content\r\n\r\n"
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"

_REQUEST = re.compile(r"([A-Z]+) ([\x21-\x7e]+) HTTP/1\.1")
_TARGET = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]@/]+):([1-9][0-9]{0,4})")
_PHRASES = {
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    408: "Request Timeout",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


@dataclass(frozen=True, slots=True)
class Connect:
    """A destination: a canonical name or an address, and a port."""

    host: str | IPAddress
    port: int

    def __str__(self) -> str:
        return authority(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Alive:
    """The question whether the gateway is there."""


def parse_request(head: Head) -> Connect | Alive | Refused:
    """What a request asks for; Refused where it is malformed or of another kind."""
    match = _REQUEST.fullmatch(head.start)
    if match is None:
        return Refused(400, "the request line is malformed")
    method, target = match.groups()
    hosts = head.all("host")
    if len(hosts) != 1:
        return Refused(400, "the request must have one Host field")
    if head.all("content-length") or head.all("transfer-encoding"):
        return Refused(400, "the request must have no body")
    if method == "OPTIONS" and target == "*":
        return Alive()
    if method != "CONNECT":
        return Refused(405, "the gateway only knows CONNECT, and OPTIONS of *")
    if hosts[0].lower() != target.lower():
        return Refused(400, "Host and the target of CONNECT differ")
    return _destination(target)


def refusal(refused: Refused) -> bytes:
    """The whole answer to a request that goes nowhere; the connection ends with it."""
    body = refused.because + "\n"
    return (
        f"HTTP/1.1 {refused.status} {_PHRASES[refused.status]}\r\n"
        f"{BECAUSE_FIELD}: {refused.because}\r\n"
        "content-type: text/plain\r\n"
        f"content-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
        f"{body}"
    ).encode("ascii", "replace")


def _destination(target: str) -> Connect | Refused:
    match = _TARGET.fullmatch(target)
    if match is None or int(match[2]) > 65535:
        return Refused(400, "the target of CONNECT is not host:port")
    try:
        return Connect(parse_host(match[1]), int(match[2]))
    except ValueError:
        return Refused(400, "the host of CONNECT is neither a name nor an address in its usual form")
