"""First bytes: what they prove, whatever the pieces they come in; what is malformed proves nothing."""

from __future__ import annotations

import ssl
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.first_bytes import MAX_BYTES, Seen, recognise
from proxy.flow import Protocol


def hello(
    name: str | None = "intranet.example", alpn: list[str] | None = None, *, version: str = "1.3"
) -> bytes:
    """A ClientHello as OpenSSL writes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!HH", kind, len(body)) + body


def server_name(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(struct.pack("!BH", kind, len(name)) + name for name in names)
    return extension(0, struct.pack("!H", len(entries)) + entries)


def handmade(*extensions: bytes, behind: bytes = b"") -> bytes:
    """A ClientHello with these extensions and no other."""
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    body += struct.pack("!H", sum(map(len, extensions))) + b"".join(extensions) + behind
    message = b"\x01" + len(body).to_bytes(3) + body
    return record(message)


def record(message: bytes) -> bytes:
    return b"\x16\x03\x01" + struct.pack("!H", len(message)) + message


def recut(data: bytes, size: int) -> bytes:
    """The same handshake message in records of `size` bytes (RFC 8446, section 5.1)."""
    message = data[5:]
    return b"".join(record(message[at : at + size]) for at in range(0, len(message), size))


ECH = extension(0xFE0D, bytes(40))
HTTPS, TLS, HTTP, TCP = Protocol.HTTPS, Protocol.TLS, Protocol.HTTP, Protocol.TCP
REQUEST = b"GET /x HTTP/1.1\r\nHost: intranet.example\r\nAccept: */*\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Good:
    sentence: str
    data: bytes
    seen: Seen

    def __str__(self) -> str:
        return self.sentence


GOOD = [
    Good("a hello", hello(), Seen(HTTPS, "intranet.example")),
    Good("a hello of TLS 1.2", hello(version="1.2"), Seen(HTTPS, "intranet.example")),
    Good("a hello without a name", hello(None), Seen(HTTPS)),
    Good("a hello to an address", hello("192.0.2.1"), Seen(HTTPS)),
    Good("h2 and http/1.1", hello(alpn=["h2", "http/1.1"]), Seen(HTTPS, "intranet.example")),
    Good("another ALPN is TLS", hello(alpn=["imap"]), Seen(TLS, "intranet.example")),
    Good("a mixed ALPN is TLS", hello(alpn=["h2", "imap"]), Seen(TLS, "intranet.example")),
    Good("a hello in small records", recut(hello(), 32), Seen(HTTPS, "intranet.example")),
    Good("a hello by hand", handmade(server_name(b"a.example")), Seen(HTTPS, "a.example")),
    Good("a hello without extensions", handmade(), Seen(HTTPS)),
    Good("a name as it was written", handmade(server_name(b"A.Example.")), Seen(HTTPS, "A.Example.")),
    Good("ECH beside a name", handmade(server_name(b"a.example"), ECH), Seen(HTTPS, "a.example")),
    Good("ECH without a name", handmade(ECH), Seen(HTTPS, hidden=True)),
    Good("a request", REQUEST, Seen(HTTP, "intranet.example")),
    Good("a request of HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n", Seen(HTTP)),
    Good("a request without a host", b"GET / HTTP/1.1\r\nAccept: a\r\n\r\n", Seen(HTTP)),
    Good("a host with a port", b"GET / HTTP/1.1\r\nHost: a.example:8080\r\n\r\n", Seen(HTTP, "a.example")),
    Good("an IPv6 host", b"GET / HTTP/1.1\r\nhost:[2001:db8::1]:80\r\n\r\n", Seen(HTTP, "2001:db8::1")),
    Good("an absolute URI", b"GET http://a.example/x HTTP/1.1\r\n\r\n", Seen(HTTP, "a.example")),
    Good(
        "an absolute URI that agrees",
        b"GET http://A.example:80/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        Seen(HTTP, "A.example"),
    ),
    Good(
        "CONNECT", b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", Seen(HTTP, "a.example")
    ),
    Good("OPTIONS of all", b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", Seen(HTTP, "a.example")),
    Good("an empty host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", Seen(HTTP, "")),
    Good("ssh", b"SSH-2.0-OpenSSH_9.2\r\n", Seen(Protocol.SSH)),
    Good("HTTP/2 without TLS is TCP", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Seen(TCP)),
    Good("redis is TCP", b"*1\r\n$4\r\nPING\r\n", Seen(TCP)),
    Good("words in capitals are TCP", b"SET key value\r\n", Seen(TCP)),
    Good("a mail client is TCP", b"EHLO a.example\r\n", Seen(TCP)),
    Good("zeros are TCP", bytes(9), Seen(TCP)),
]


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_what_is_proved(case: Good) -> None:
    assert recognise(case.data) == case.seen


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_every_cut_asks_for_more_until_it_is_decided_once_for_all(case: Good) -> None:
    decided = [recognise(case.data[:length]) for length in range(len(case.data) + 1)]
    first = next(at for at, seen in enumerate(decided) if seen is not None)
    assert decided[:first] == [None] * first
    assert set(decided[first:]) == {case.seen}
    assert recognise(case.data + b"more") == case.seen


@pytest.mark.parametrize(
    "case",
    [Good("TLS", recut(hello(), 16), Seen(HTTPS)), *(case for case in GOOD if case.seen.protocol is HTTP)],
    ids=str,
)
def test_nothing_is_decided_before_the_head_is_complete(case: Good) -> None:
    assert all(recognise(case.data[:length]) is None for length in range(len(case.data)))


def request(*lines: bytes) -> bytes:
    return b"\r\n".join([b"GET / HTTP/1.1", b"Host: a.example", *lines, b"", b""])


MALFORMED = [
    Good("two hosts", request(b"Host: b.example"), Seen(TCP, malformed="more than one Host")),
    Good("the same host twice", request(b"host: a.example"), Seen(TCP, malformed="more than one Host")),
    Good(
        "another host in the URI",
        b"GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        Seen(TCP, malformed="one host in the URI and another in Host"),
    ),
    Good(
        "CONNECT to another host",
        b"CONNECT b.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n",
        Seen(TCP, malformed="one host in the URI and another in Host"),
    ),
    Good(
        "userinfo", b"GET http://a.example@b.example/ HTTP/1.1\r\n\r\n", Seen(TCP, malformed="malformed host")
    ),
    Good("userinfo in Host", b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", Seen(TCP, malformed="malformed host")),
    Good("half a bracket", b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", Seen(TCP, malformed="malformed host")),
    Good(
        "a host that is not ASCII",
        "GET / HTTP/1.1\r\nHost: ä\r\n\r\n".encode(),
        Seen(TCP, malformed="not ASCII"),
    ),
    Good("an empty authority", b"GET http:///x HTTP/1.1\r\n\r\n", Seen(TCP, malformed="request line")),
    Good("a bare authority", b"GET a.example:80 HTTP/1.1\r\n\r\n", Seen(TCP, malformed="request line")),
    Good("two spaces", b"GET  / HTTP/1.1\r\n\r\n", Seen(TCP, malformed="request line")),
    Good("a space at the end", b"GET / HTTP/1.1 \r\n\r\n", Seen(TCP, malformed="request line")),
    Good("a space in the URI", b"GET /a b HTTP/1.1\r\n\r\n", Seen(TCP, malformed="request line")),
    Good("a tab in the request line", b"GET\t/ HTTP/1.1\r\n\r\n", Seen(TCP)),
    Good("a NUL in the URI", b"GET /\0 HTTP/1.1\r\n\r\n", Seen(TCP, malformed="request line")),
    Good("an unknown version", b"GET / HTTP/1.2\r\n\r\n", Seen(TCP, malformed="request line")),
    Good("a line feed alone", b"GET / HTTP/1.1\nHost: b.example\n\n", Seen(TCP, malformed="request line")),
    Good("a line feed in the head", request(b"X: y\nHost: b.example"), Seen(TCP, malformed="header field")),
    Good(
        "line feeds at the end",
        b"GET / HTTP/1.1\r\nHost: a.example\n\n",
        Seen(TCP, malformed="header field"),
    ),
    Good("a folded line", request(b"X: y", b" Host: b.example"), Seen(TCP, malformed="header field")),
    Good("a space before the colon", request(b"Host : b.example"), Seen(TCP, malformed="header field")),
    Good("a NUL in a value", request(b"X: \0"), Seen(TCP, malformed="header field")),
    Good(
        "a carriage return in a value", request(b"X: y\rHost: b.example"), Seen(TCP, malformed="header field")
    ),
    Good("no colon", request(b"nonsense"), Seen(TCP, malformed="header field")),
    Good("no name", request(b": y"), Seen(TCP, malformed="header field")),
    Good(
        "two lengths", request(b"Content-Length: 3", b"Content-Length: 5"), Seen(TCP, malformed="body twice")
    ),
    Good(
        "a length and chunks",
        request(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
        Seen(TCP, malformed="body twice"),
    ),
    Good("a header without end", REQUEST[:-4] + b"x" * MAX_BYTES, Seen(TCP, malformed="no end")),
    Good("a request line without end", b"GET /" + b"x" * MAX_BYTES, Seen(TCP, malformed="no end")),
    Good("a record that is none", b"\x16\x03\x01\0\0", Seen(TCP, malformed="goes on otherwise")),
    Good("a record of another version", b"\x16\x02\0\0\0", Seen(TCP, malformed="goes on otherwise")),
    Good("a record that is too long", b"\x16\x03\x01\xff\xff", Seen(TCP, malformed="goes on otherwise")),
    Good("another message", record(b"\x02\0\0\0"), Seen(TCP, malformed="no ClientHello")),
    Good(
        "a hello and then no handshake",
        recut(hello(), 40)[:45] + b"\x17\x03",
        Seen(TCP, malformed="otherwise"),
    ),
    Good("a hello in crumbs", recut(hello(), 1), Seen(TCP, malformed="too many pieces")),
    Good("two names", handmade(server_name(b"a", b"b")), Seen(TCP, malformed="more than one server")),
    Good("two name extensions", handmade(server_name(b"a"), server_name(b"b")), Seen(TCP, malformed="twice")),
    Good("a name of another kind", handmade(server_name(b"a", kind=1)), Seen(TCP, malformed="unknown kind")),
    Good("no name at all", handmade(extension(0, b"\0\0")), Seen(TCP, malformed="malformed")),
    Good("a name that is not ASCII", handmade(server_name(b"\xe4")), Seen(TCP, malformed="not ASCII")),
    Good(
        "something behind the names",
        handmade(extension(0, b"\0\x04\0\0\x01ab")),
        Seen(TCP, malformed="malformed"),
    ),
    Good("something behind the extensions", handmade(behind=b"x"), Seen(TCP, malformed="malformed")),
    Good("a hello that says it is shorter", record(b"\x01\0\0\x05hello"), Seen(TCP, malformed="malformed")),
    Good(
        "an extension beyond the end", handmade(struct.pack("!HH", 0, 99)), Seen(TCP, malformed="malformed")
    ),
]


@pytest.mark.parametrize("case", MALFORMED, ids=str)
def test_what_is_malformed_proves_nothing(case: Good) -> None:
    seen = recognise(case.data)
    assert seen is not None
    assert (seen.protocol, seen.claimed, seen.hidden) == (TCP, None, False)
    assert case.seen.malformed in seen.malformed


def test_a_large_body_behind_a_head_is_no_message_without_end() -> None:
    assert recognise(REQUEST + bytes(3 * MAX_BYTES)) == Seen(HTTP, "intranet.example")
    assert recognise(hello() + bytes(3 * MAX_BYTES)) == Seen(HTTPS, "intranet.example")


@given(st.binary(max_size=400))
def test_random_bytes_never_raise(data: bytes) -> None:
    recognise(data)
    recognise(b"\x16\x03\x01" + data)
    recognise(record(b"\x01" + len(data).to_bytes(3) + data))
    recognise(handmade(data))
    recognise(handmade(extension(0, data)))
    recognise(b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n")


HELLOS = [hello(), hello(alpn=["h2"]), handmade(server_name(b"a.example"), ECH), REQUEST, request(b"X: y")]


@given(st.sampled_from(HELLOS), st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_never_raises_and_never_invents_a_name(data: bytes, place: int, byte: int) -> None:
    changed = bytearray(data)
    changed[place % len(data)] = byte
    seen = recognise(bytes(changed))
    if seen is not None and seen.claimed:
        assert seen.claimed.encode() in changed
