"""What a request and a response say of themselves; what two readers could read in two ways is refused.

Pure: fields in, facts out. It repairs nothing. It knows no policy and no mitmproxy.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.addresses import parse_host
from proxy.flow import FAILED, UNKNOWN, Fact, IPAddress

MAX_HEAD_BYTES, MAX_FIELDS = 64 * 1024, 200
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_TARGET = re.compile(r"/[!-~]*")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:@\[\]]+))(?::([0-9]{1,5}))?")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,17}")
_CHARSET = re.compile(r";[ \t]*charset[ \t]*=[ \t]*\"?([^\"; \t]*)", re.IGNORECASE)
_MEDIA = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
# What a Connection field may name; any other field that it made one hop's own would be lost on the way.
_CONNECTION = frozenset({"", "keep-alive", "close", "upgrade", "te", "http2-settings"})
# Fields that are one hop's own, or the gate's, and do not go on.
_OUR_HOP = frozenset({"keep-alive", "proxy-connection", "proxy-authorization", "http2-settings"})
# What frames, routes, authenticates or changes the meaning of a message comes before its body (RFC 9110,
# section 6.5.1); whoever joined these to its head would read another request than the one that was judged.
_NEVER_BEHIND = frozenset(
    {
        "authorization", "cache-control", "connection", "content-encoding", "content-length", "content-range",
        "content-type", "cookie", "expect", "forwarded", "host", "if-match", "if-modified-since",
        "if-none-match", "if-range", "if-unmodified-since", "keep-alive", "max-forwards", "origin", "pragma",
        "range", "referer", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_PREFIXES_NEVER_BEHIND = ("proxy-", "sec-", "x-forwarded-", "x-http-method")
_DEFAULT_PORTS = {True: 443, False: 80}
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3

type Fields = Sequence[tuple[bytes, bytes]]


class Improper(ValueError):
    """A message that must not be passed on; one line."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Whom a connection was admitted to speak to. `host` is canonical."""

    host: str | IPAddress
    port: int
    tls: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request wants. `size` is UNKNOWN where the length of a body is not declared; `drop` names the
    fields that do not go on; `websocket_key` is empty unless it asks for a WebSocket."""

    method: str
    path: str
    content_type: Fact[str]
    size: Fact[int]
    has_body: bool
    drop: frozenset[str]
    websocket_key: bytes = b""
    charset: str = ""
    codings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """What a response brings."""

    content_type: Fact[str]
    size: Fact[int]
    has_body: bool


def read_request(
    destination: Destination,
    *,
    version: int,
    method: str,
    authority: str,
    target: str,
    fields: Fields,
    ended: bool = False,
) -> Asked:
    """The facts of a request that is meant for `destination`. Raises Improper.

    `version` is 1 or 2; `authority` that of the target or of the pseudo-header, empty where there is none;
    `ended` says of HTTP/2 that nothing follows the head.
    """
    of = _checked(fields)
    if not _METHOD.fullmatch(method) or method in ("CONNECT", "PRI"):
        raise Improper(f'its method "{method:.40}" is not one that goes through')
    if not _TARGET.fullmatch(target) and (method, target) != ("OPTIONS", "*"):
        raise Improper("its target is malformed")
    hosts = [*([authority] if authority else []), *of.all("host")]
    if len(of.all("host")) > 1 or not hosts:
        raise Improper("it names no host" if not hosts else "it names its host twice")
    for host in hosts:
        _must_be(destination, host)
    size, has_body = _framing(of, version, ended)
    if any(value.lower() != "100-continue" for value in of.all("expect")) or len(of.all("expect")) > 1:
        raise Improper("it expects what is not understood")
    if of.tokens("connection") - _CONNECTION:
        raise Improper("its Connection names fields that would be lost")
    drop = set(_OUR_HOP)
    if version == 1 or of.tokens("te") - {"", "trailers"}:
        drop.add("te")  # trailers do not go through HTTP/1.1
    key = b""
    if of.tokens("upgrade") == {"websocket"}:
        key = _websocket_key(of, version, method, has_body)
        drop.add("sec-websocket-extensions")  # messages are not to be compressed: they are looked into
    else:
        drop |= {"upgrade"}  # an offer may be ignored (RFC 9110, section 7.8)
    media = _media(of) if has_body else UNKNOWN
    return Asked(method, target, media, size, has_body, frozenset(drop), key, _charset(of), _codings(of))


def read_trailers(fields: Fields) -> None:
    """Look at the fields behind the body of a request. Raises Improper."""
    of = _checked(fields)
    for name in of.names():
        if name in _NEVER_BEHIND or name.startswith(_PREFIXES_NEVER_BEHIND):
            raise Improper(f'it has "{name:.40}" behind its body, where it does not belong')


def read_response(asked: Asked, *, status: int, fields: Fields) -> Answered:
    """The facts of a response to `asked`. Raises Improper."""
    of = _checked(fields)
    if status == 101:
        if not asked.websocket_key or of.tokens("upgrade") != {"websocket"}:
            raise Improper("it changes to a protocol that nobody asked for")
        if of.all("sec-websocket-accept") != [accept_of(asked.websocket_key)]:
            raise Improper("it accepts a WebSocket that nobody asked for")
        if of.all("sec-websocket-extensions"):
            raise Improper("it uses an extension of WebSocket that nobody offered")
        return Answered(UNKNOWN, UNKNOWN, False)
    if status < 200:
        raise Improper(f"it has the status {status}")
    if asked.method == "HEAD" or status in (204, 304):
        return Answered(UNKNOWN, UNKNOWN, False)
    lengths = of.all("content-length")
    if len(lengths) > 1 or any(not _LENGTH.fullmatch(length) for length in lengths):
        raise Improper("it gives its length in a way that can be read twice")
    size: Fact[int] = int(lengths[0]) if lengths else UNKNOWN
    return Answered(_media(of), size, size != 0)


def accept_of(key: bytes) -> str:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest()).decode()


class _Of:
    """Fields by name."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        self._fields = fields

    def all(self, name: str) -> list[str]:
        return [value for field, value in self._fields if field == name]

    def names(self) -> set[str]:
        return {field for field, _ in self._fields}

    def tokens(self, name: str) -> set[str]:
        """The members of a field that is a list, in lower case."""
        return {token.strip(" \t").lower() for value in self.all(name) for token in value.split(",")}


def _checked(fields: Fields) -> _Of:
    if len(fields) > MAX_FIELDS or sum(len(name) + len(value) for name, value in fields) > MAX_HEAD_BYTES:
        raise Improper("its head is too long")
    for name, value in fields:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise Improper("it has a malformed header field")
    return _Of([(name.decode("ascii").lower(), value.decode("latin-1")) for name, value in fields])


def _must_be(destination: Destination, authority: str) -> None:
    found = _AUTHORITY.fullmatch(authority)
    try:
        if not found:
            raise ValueError
        host = parse_host(found[1] or found[2])
    except ValueError:
        raise Improper(f'it names the host "{authority:.80}", which is malformed') from None
    port = int(found[3]) if found[3] else _DEFAULT_PORTS[destination.tls]
    if host != destination.host or port != destination.port:
        to = f"{destination.host}:{destination.port}"
        raise Improper(f"it is on a connection to {to} and claims to speak to {host}:{port}")


def _framing(of: _Of, version: int, ended: bool) -> tuple[Fact[int], bool]:
    """The length of a request's body, and whether there is one (RFC 9112, section 6)."""
    codings, lengths = of.all("transfer-encoding"), of.all("content-length")
    if codings and (lengths or version != 1 or codings != ["chunked"]):
        raise Improper("it gives the length of its body in a way that can be read twice")
    if len(lengths) > 1 or any(not _LENGTH.fullmatch(length) for length in lengths):
        raise Improper("it gives the length of its body in a way that can be read twice")
    declared = int(lengths[0]) if lengths else None
    if ended and declared:
        raise Improper("it declares a body and has none")
    if codings or (declared is None and version == 2 and not ended):
        return UNKNOWN, True
    return declared or 0, bool(declared)


def _media(of: _Of) -> Fact[str]:
    """The media type, FAILED where it is not said or said twice: then the strictest holds."""
    said = of.all("content-type")
    media = said[0].partition(";")[0].strip(" \t").lower() if len(said) == 1 else ""
    return media if _MEDIA.fullmatch(media) else FAILED


def _charset(of: _Of) -> str:
    """The charset that a body says to be in, the first of several."""
    found = [_CHARSET.search(value) for value in of.all("content-type")]
    return next((one[1] for one in found if one), "")


def _codings(of: _Of) -> tuple[str, ...]:
    """The codings of a body in their order; messages of gRPC have one of their own."""
    values = [*of.all("content-encoding"), *of.all("grpc-encoding")]
    tokens = (token.strip(" \t").lower() for value in values for token in value.split(","))
    return tuple(token for token in tokens if token)


def _websocket_key(of: _Of, version: int, method: str, has_body: bool) -> bytes:
    keys = of.all("sec-websocket-key")
    proper = version == 1 and method == "GET" and not has_body and "upgrade" in of.tokens("connection")
    if not proper or len(keys) != 1 or of.all("sec-websocket-version") != ["13"]:
        raise Improper("it asks for a WebSocket in a way that is malformed")
    return keys[0].encode("latin-1")
