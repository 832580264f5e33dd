"""What the first bytes of a client prove: the protocol, and the name that they claim.

Pure: bytes in, a value out; None asks for more bytes. Reads just enough of a TLS ClientHello (RFC 8446,
section 4.1.2) and of an HTTP/1 request head (RFC 9112) to know both. What begins like one of them and is
not well-formed proves nothing and is said to be malformed. It judges no name: the gate compares.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.flow import Protocol

MAX_BYTES = 64 * 1024  # a hello with post-quantum keys is under 2 KiB, a request head under 16 KiB
_HTTP_ALPN = frozenset({b"http/1.0", b"http/1.1", b"h2"})
_REQUEST = re.compile(rb"([A-Z]{3,24}) ([!-~\x80-\xff]{1,16384}) HTTP/1\.[01]\r")
_METHOD = re.compile(rb"[A-Z]{1,24}( |\Z)")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r"  # RFC 9113, section 3.4: another protocol, and honest about it
_HANDSHAKE, _CLIENT_HELLO, _MAX_RECORD = 0x16, 1, 16384 + 256
_MAX_RECORDS = 64  # each further byte reads the whole hello again; a hello is cut into a few at most
_SERVER_NAME, _ALPN, _ECH = 0, 16, 0xFE0D


@dataclass(frozen=True, slots=True)
class Seen:
    """What was proved. `claimed` is the SNI or Host as it was written, None where there is none.

    `hidden` says that the ClientHello carries another one, encrypted (ECH), whose name nobody here knows;
    `ambiguous`, that what is malformed names more than one destination.
    """

    protocol: Protocol
    claimed: str | None = None
    hidden: bool = False
    malformed: str = ""
    ambiguous: bool = False


class _Malformed(Exception):
    pass


class _Ambiguous(_Malformed):
    pass


def recognise(data: bytes) -> Seen | None:
    """What `data`, the first bytes of a TCP client, prove; None if more are needed."""
    seen = _recognise(data[:MAX_BYTES])
    if seen is None and len(data) > MAX_BYTES:
        return Seen(Protocol.TCP, malformed="its first message has no end")
    return seen


def _recognise(data: bytes) -> Seen | None:
    if not data:
        return None
    try:
        if data[0] == _HANDSHAKE:
            return _tls(data)
        if b"SSH-".startswith(data[:4]):
            return Seen(Protocol.SSH) if len(data) >= 4 else None
        if _METHOD.match(data):
            return _http(data)
    except _Malformed as error:
        return Seen(Protocol.TCP, malformed=str(error), ambiguous=isinstance(error, _Ambiguous))
    return Seen(Protocol.TCP)


# -- HTTP --------------------------------------------------------------------------------------------


def _http(data: bytes) -> Seen | None:
    line, found, rest = data.partition(b"\n")
    if not found:
        return None
    request = _REQUEST.fullmatch(line)
    if not request:
        if b" HTTP/" in line and line != _HTTP2_PREFACE:
            raise _Malformed("its request line is malformed")
        return Seen(Protocol.TCP)
    # The empty line may follow at once; a server may take a line feed alone for the end of a line.
    head, found, _ = (b"\r\n" + rest).partition(b"\r\n\r\n")
    if _BARE_LINE_FEED.search(head):
        raise _Malformed("its request has a malformed header field")
    if not found:
        return None
    fields = _fields(head[2:])
    hosts = [_text(value) for name, value in fields if name == b"host"]
    if len(hosts) > 1:
        raise _Ambiguous("its request has more than one Host")
    lengths = [name for name, _ in fields if name in (b"content-length", b"transfer-encoding")]
    if len(lengths) > 1:
        raise _Malformed("its request gives the length of its body twice")
    target = _target(request[1], request[2])
    if target is not None and hosts and target.lower() != hosts[0].lower():
        raise _Ambiguous("its request names one host in the URI and another in Host")
    return Seen(Protocol.HTTP, target if target is not None else hosts[0] if hosts else None)


def _fields(head: bytes) -> list[tuple[bytes, bytes]]:
    fields: list[tuple[bytes, bytes]] = []
    for line in head.split(b"\r\n") if head else ():
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or re.search(rb"[\0\r\n]", value):
            raise _Malformed("its request has a malformed header field")
        fields.append((name.lower(), value.strip(b" \t")))
    return fields


def _target(method: bytes, target: bytes) -> str | None:
    """The host that a request target names, None where it names none (RFC 9112, section 3.2)."""
    if method == b"CONNECT":
        return _text(target)
    if absolute := re.match(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]+)", target):
        return _text(absolute[1])
    if target.startswith(b"/") or target == b"*":
        return None
    raise _Malformed("its request line is malformed")


def _text(raw: bytes) -> str:
    """A host as it was written, without its port."""
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise _Malformed("its request names a host that is not ASCII") from error
    match = re.fullmatch(r"\[([^\]]*)\](?::[0-9]*)?|([^:\[\]@]*)(?::[0-9]*)?", text)
    if not match:
        raise _Malformed("its request names a malformed host")
    return match[1] if match[1] is not None else match[2]


# -- TLS ---------------------------------------------------------------------------------------------


class _Bytes:
    """A cursor over a message of length-prefixed fields."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise _Malformed("its ClientHello is malformed")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width))

    def vector(self, width: int) -> bytes:
        return self.take(self.number(width))

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def end(self) -> None:
        """Nothing may be left: another reader could take it for something."""
        if self.left:
            raise _Malformed("its ClientHello is malformed")


def _tls(data: bytes) -> Seen | None:
    """A ClientHello, which may be cut into several records (RFC 8446, section 5.1)."""
    message = b""
    at = 0
    for _ in range(_MAX_RECORDS):
        header = data[at : at + 5]
        if len(header) >= 2 and (header[0] != _HANDSHAKE or header[1] != 3):
            raise _Malformed("it begins like TLS and goes on otherwise")
        if len(header) < 5:
            return None
        length = int.from_bytes(header[3:5])
        if not 0 < length <= _MAX_RECORD:
            raise _Malformed("it begins like TLS and goes on otherwise")
        message += data[at + 5 : at + 5 + length]
        if message[0:1] and message[0] != _CLIENT_HELLO:
            raise _Malformed("its first TLS message is no ClientHello")
        if len(message) >= 4 and len(message) >= 4 + (size := int.from_bytes(message[1:4])):
            return _hello(message[4 : 4 + size])
        if len(data) < at + 5 + length:
            return None
        at += 5 + length
    raise _Malformed("its ClientHello is cut into too many pieces")


def _hello(body: bytes) -> Seen:
    hello = _Bytes(body)
    hello.take(2 + 32)
    hello.vector(1)
    hello.vector(2)
    hello.vector(1)
    extensions = _Bytes(hello.vector(2)) if hello.left else _Bytes(b"")
    hello.end()
    found: dict[int, bytes] = {}
    while extensions.left:
        kind = extensions.number(2)
        if kind in found:
            raise _Malformed("its ClientHello has an extension twice")
        found[kind] = extensions.vector(2)
    names = _alpn(found[_ALPN]) if _ALPN in found else frozenset()
    protocol = Protocol.HTTPS if not names or names <= _HTTP_ALPN else Protocol.TLS
    claimed = _server_name(found[_SERVER_NAME]) if _SERVER_NAME in found else None
    return Seen(protocol, claimed, hidden=_ECH in found and claimed is None)


def _only_vector(extension: bytes) -> _Bytes:
    """An extension that is one list and nothing behind it."""
    outer = _Bytes(extension)
    entries = _Bytes(outer.vector(2))
    outer.end()
    return entries


def _alpn(extension: bytes) -> frozenset[bytes]:
    names = _only_vector(extension)
    found = set()
    while names.left:
        found.add(names.vector(1))
    return frozenset(found)


def _server_name(extension: bytes) -> str:
    entries = _only_vector(extension)
    if entries.number(1) != 0:
        raise _Malformed("its server name is of an unknown kind")
    name = entries.vector(2)
    if entries.left:
        raise _Ambiguous("its ClientHello names more than one server")
    try:
        return name.decode("ascii")
    except UnicodeDecodeError as error:
        raise _Malformed("its server name is not ASCII") from error
