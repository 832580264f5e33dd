"""What a client of the HTTP proxy asks for: a tunnel (CONNECT), or one request to be sent on.

Pure: a head in, a Request out, or BadRequest. Whatever names the destination (the target, Host) must mean one
and the same after canonicalisation; whatever two readers could understand in two ways is refused (RFC 9112,
sections 3, 6 and 11). What is sent on is written anew, in origin form, without the fields that are the
proxy's own (RFC 9110, section 7.6.1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from proxy.addresses import parse_host
from proxy.channel.head import Head
from proxy.explicit.bodies import Body, Chunked, Counted
from proxy.flow import IPAddress

_LINE = re.compile(r"([A-Z][A-Z0-9_-]{0,31}) ([\x21-\x7e]+) HTTP/1\.([01])")
_ABSOLUTE = re.compile(r"http://([^/?#]*)([^#]*)", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#%\\\s]+)(?::([1-9][0-9]{0,4}))?")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,15}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"}
)
_NEVER_NAMED = frozenset({"host", "content-length", "transfer-encoding"})


class BadRequest(ValueError):
    """A request that is malformed, or could be understood in two ways; one line, with the cure."""


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request. `persistent`: the client keeps the connection for another one."""

    method: str
    host: str | IPAddress
    port: int
    head: Head
    path: str = ""
    version: int = 1
    persistent: bool = False

    @property
    def is_connect(self) -> bool:
        """Whether a tunnel is asked for."""
        return self.method == "CONNECT"

    def body(self) -> Body:
        """A reader of its body."""
        if self.head.all("transfer-encoding"):
            return Chunked(strict=True)
        return Counted(int((*self.head.all("content-length"), "0")[0]))

    def onward(self) -> bytes:
        """The head as it is sent to the destination, which is to close afterwards."""
        host = f"[{self.host}]" if isinstance(self.host, IPv6Address) else str(self.host)
        host = host if self.port == 80 else f"{host}:{self.port}"
        own = [("host", host), ("connection", "close")]
        if self.head.all("transfer-encoding"):
            own.append(("transfer-encoding", "chunked"))
        start = f"{self.method} {self.path} HTTP/1.{self.version}"
        return written(start, [*own, *(f for f in end_to_end(self.head) if f[0] != "host")])


def parse_request(head: Head) -> Request:
    """What a head asks for. Raises BadRequest."""
    line = _LINE.fullmatch(head.start)
    if line is None:
        raise BadRequest("its request line is malformed; speak HTTP/1.1")
    method, target, version = line[1], line[2], int(line[3])
    hosts = head.all("host")
    if len(hosts) > 1 or (version and not hosts):
        raise BadRequest("it needs one Host field, and has not exactly one")
    _check_length(head, version)
    if method == "CONNECT":
        if head.all("content-length") or head.all("transfer-encoding"):
            raise BadRequest("a CONNECT has no body")
        host, port = _authority(target, None)
        path = ""
    else:
        authority, path = _absolute(method, target)
        host, port = _authority(authority, 80)
    # Some clients leave the port of a CONNECT out of Host; another port is another destination.
    if hosts and _authority(hosts[0], port if method == "CONNECT" else 80) != (host, port):
        raise BadRequest("it names one destination in its target and another in Host")
    return Request(method, host, port, head, path, version, _persists(head, version))


def end_to_end(head: Head) -> Sequence[tuple[str, str]]:
    """The fields that are for the other end. Raises BadRequest where Connection takes away what frames it."""
    named = {word for value in head.all("connection") for word in _words(value)}
    if named & _NEVER_NAMED:
        raise BadRequest("its Connection field names a field that no proxy may take away")
    return [
        (name, value)
        for name, value in head.fields
        if name not in _HOP_BY_HOP and name not in named and not name.startswith("proxy-")
    ]


def written(start: str, fields: Sequence[tuple[str, str]]) -> bytes:
    """A head in bytes."""
    lines = [start, *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def check_framing(head: Head) -> None:
    """Raises BadRequest where a head gives the length of its body twice, or in no known way."""
    lengths, codings = head.all("content-length"), head.all("transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise BadRequest("it gives the length of its body twice")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise BadRequest("its Content-Length is not a number")
    if codings and codings[0].lower() != "chunked":
        raise BadRequest("its Transfer-Encoding is not chunked alone")


def _check_length(head: Head, version: int) -> None:
    check_framing(head)
    if version == 0 and head.all("transfer-encoding"):
        raise BadRequest("HTTP/1.0 has no Transfer-Encoding")
    end_to_end(head)


def _absolute(method: str, target: str) -> tuple[str, str]:
    """Authority and path of a target in absolute form."""
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        if "#" in target:
            raise BadRequest("its target has a fragment, which is the client's own")
        if scheme := _SCHEME.match(target):
            raise BadRequest(f"{scheme[1].lower()} does not go this way; the proxy knows http, and CONNECT")
        raise BadRequest("this is a proxy; a request to it names the whole address, http://host/path")
    authority, path = found.groups()
    if method == "OPTIONS" and not path:
        return authority, "*"  # RFC 9112, section 3.2.4
    return authority, path if path.startswith("/") else f"/{path}"


def _authority(text: str, port: int | None) -> tuple[str | IPAddress, int]:
    """Host and port as they stand in a target or in Host; `port` where none is given."""
    found = _AUTHORITY.fullmatch(text)
    if found is None or not text.isascii():
        raise BadRequest("its destination is not host:port; no user, no escapes, IPv6 in brackets")
    given = int(found[2]) if found[2] else port
    if given is None or given > 65535:
        raise BadRequest("its destination has no port from 1 to 65535; write host:port")
    try:
        return parse_host(found[1]), given
    except ValueError as error:
        raise BadRequest(str(error)) from None


def _persists(head: Head, version: int) -> bool:
    values = (*head.all("connection"), *head.all("proxy-connection"))
    return version == 1 and "close" not in {word for value in values for word in _words(value)}


def _words(value: str) -> set[str]:
    return {word for part in value.split(",") if _TOKEN.fullmatch(word := part.strip().lower())}
