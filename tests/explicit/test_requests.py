"""Requests to the HTTP proxy: what is understood in one way is sent on anew, and what is not is refused."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.channel.head import BadHead, parse_head
from proxy.explicit.bodies import Chunked, Counted
from proxy.explicit.requests import BadRequest, Request, parse_request


def parsed(text: str) -> Request:
    """The request of a head whose lines end as they should."""
    return parse_request(parse_head(text.replace("\n", "\r\n").encode("latin-1")))


@dataclass(frozen=True, slots=True)
class Onward:
    sentence: str
    head: str
    onward: str

    def __str__(self) -> str:
        return self.sentence


ONWARD = [
    Onward(
        "a page",
        "GET http://a.example/x?y=1 HTTP/1.1\nHost: a.example\nAccept: */*",
        "GET /x?y=1 HTTP/1.1\nhost: a.example\nconnection: close\naccept: */*\n\n",
    ),
    Onward(
        "another port, no path, other cases",
        "GET HTTP://A.Example.:8080 HTTP/1.1\nhOST: a.example:8080",
        "GET / HTTP/1.1\nhost: a.example:8080\nconnection: close\n\n",
    ),
    Onward(
        "a query without a path",
        "GET http://a.example?q HTTP/1.1\nHost: a.example:80",
        "GET /?q HTTP/1.1\nhost: a.example\nconnection: close\n\n",
    ),
    Onward(
        "an IPv6 address in another spelling",
        "GET http://[2001:DB8:0::7]/ HTTP/1.1\nHost: [2001:db8::7]",
        "GET / HTTP/1.1\nhost: [2001:db8::7]\nconnection: close\n\n",
    ),
    Onward(
        "OPTIONS of the server itself",
        "OPTIONS http://a.example HTTP/1.1\nHost: a.example",
        "OPTIONS * HTTP/1.1\nhost: a.example\nconnection: close\n\n",
    ),
    Onward(
        "HTTP/1.0, which may lack Host",
        "GET http://a.example/ HTTP/1.0",
        "GET / HTTP/1.0\nhost: a.example\nconnection: close\n\n",
    ),
    Onward(
        "what is the proxy's own stays here",
        "POST http://a.example/ HTTP/1.1\nHost: a.example\nProxy-Authorization: Basic eDp5\n"
        "Proxy-Connection: keep-alive\nProxy-Foo: x\nConnection: keep-alive, X-Mine\nX-Mine: 1\nX-Yours: 2\n"
        "Keep-Alive: 5\nTE: trailers\nTrailer: X\nUpgrade: h2c\nHTTP2-Settings: x\nContent-Length: 3",
        "POST / HTTP/1.1\nhost: a.example\nconnection: close\nx-yours: 2\ncontent-length: 3\n\n",
    ),
    Onward(
        "chunks are told of anew",
        "PUT http://a.example/ HTTP/1.1\nHost: a.example\nTransfer-Encoding: Chunked\nExpect: 100-continue",
        "PUT / HTTP/1.1\nhost: a.example\nconnection: close\ntransfer-encoding: chunked\n"
        "expect: 100-continue\n\n",
    ),
    Onward(
        "bytes that are not ASCII stay what they are in values",
        "GET http://a.example/ HTTP/1.1\nHost: a.example\nX-Name: J\xfcrgen",
        "GET / HTTP/1.1\nhost: a.example\nconnection: close\nx-name: J\xfcrgen\n\n",
    ),
]


@pytest.mark.parametrize("case", ONWARD, ids=str)
def test_what_is_sent_on_is_written_anew(case: Onward) -> None:
    assert parsed(case.head).onward() == case.onward.replace("\n", "\r\n").encode("latin-1")


@dataclass(frozen=True, slots=True)
class Wrong:
    sentence: str
    head: str
    says: str = ""

    def __str__(self) -> str:
        return self.sentence


def get(*more: str, target: str = "http://a.example/", version: str = "1.1") -> str:
    return "\n".join([f"GET {target} HTTP/{version}", "Host: a.example", *more])


WRONG = [
    Wrong("two hosts", get("Host: a.example"), "one Host"),
    Wrong("no host", "GET http://a.example/ HTTP/1.1", "one Host"),
    Wrong("another host", get(target="http://b.example/"), "another in Host"),
    Wrong("another port in Host", get(target="http://a.example:81/"), "another in Host"),
    Wrong("origin form", get(target="/"), "names the whole address"),
    Wrong("https", get(target="https://a.example/"), "https does not go this way"),
    Wrong("ftp", get(target="ftp://a.example/"), "ftp does not go this way"),
    Wrong("a fragment", get(target="http://a.example/#x"), "fragment"),
    Wrong("a user", get(target="http://me@a.example/"), "no user"),
    Wrong("a user and a password", get(target="http://a.example:80@b.example/"), "no user"),
    Wrong("an escape in the host", get(target="http://a%2eexample/"), "no escapes"),
    Wrong("a backslash in the host", get(target="http://b.example\\a.example/"), "host:port"),
    Wrong("an empty port", get(target="http://a.example:/"), "host:port"),
    Wrong("port 0", get(target="http://a.example:0/"), "host:port"),
    Wrong("a port with a zero in front", get(target="http://a.example:080/"), "host:port"),
    Wrong("a port beyond the last", get(target="http://a.example:65536/"), "port from 1"),
    Wrong("no host in the target", get(target="http:///x"), "host:port"),
    Wrong("HTTP/2", get(version="2.0"), "speak HTTP/1.1"),
    Wrong("a method in lower case", get().replace("GET", "get"), "request line"),
    Wrong("both lengths", get("Content-Length: 3", "Transfer-Encoding: chunked"), "twice"),
    Wrong("two lengths", get("Content-Length: 3", "Content-Length: 3"), "twice"),
    Wrong("a list of lengths", get("Content-Length: 3, 3"), "not a number"),
    Wrong("a signed length", get("Content-Length: +3"), "not a number"),
    Wrong("a negative length", get("Content-Length: -3"), "not a number"),
    Wrong("a length with a zero in front", get("Content-Length: 03"), "not a number"),
    Wrong("a length beyond all disks", get("Content-Length: " + "9" * 20), "not a number"),
    Wrong("an unknown coding", get("Transfer-Encoding: gzip, chunked"), "not chunked alone"),
    Wrong("identity", get("Transfer-Encoding: identity"), "not chunked alone"),
    Wrong("xchunked", get("Transfer-Encoding: xchunked"), "not chunked alone"),
    Wrong("chunked with a tab inside", get("Transfer-Encoding: chun\tked"), "not chunked alone"),
    Wrong("two codings", get("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), "twice"),
    Wrong("chunks in HTTP/1.0", get("Transfer-Encoding: chunked", version="1.0"), "HTTP/1.0"),
    Wrong("Connection that takes the length away", get("Connection: Content-Length"), "no proxy may"),
    Wrong("Connection that takes Host away", get("Connection: close, HOST"), "no proxy may"),
    Wrong("a CONNECT without a port", "CONNECT a.example HTTP/1.1\nHost: a.example", "no port"),
    Wrong("a CONNECT with a scheme", "CONNECT http://a.example:443 HTTP/1.1\nHost: a.example", "host:port"),
    Wrong("a CONNECT with a path", "CONNECT a.example:443/ HTTP/1.1\nHost: a.example:443", "host:port"),
    Wrong("a CONNECT of another port", "CONNECT a.example:443 HTTP/1.1\nHost: a.example:80", "another"),
    Wrong(
        "a CONNECT with a body", "CONNECT a.example:443 HTTP/1.1\nHost: a.example\nContent-Length: 0", "no b"
    ),
]


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_what_could_be_understood_in_two_ways_is_refused(case: Wrong) -> None:
    with pytest.raises(BadRequest, match=case.says):
        parsed(case.head)


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n folded: x",
        b"GET http://a.example/ HTTP/1.1\r\nHost : a.example",
        b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\nX: y",
        b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nX: a\0b",
        b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nX: a\rb",
        b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nnothing",
        b"GET\thttp://a.example/\tHTTP/1.1\r\nHost: a.example",
        b"GET http://\xc3\xa4.example/ HTTP/1.1\r\nHost: a.example",
    ],
    ids=["folded", "a space before the colon", "a line feed alone", "NUL", "CR", "no colon", "tabs", "UTF-8"],
)
def test_a_head_is_not_repaired(head: bytes) -> None:
    with pytest.raises((BadHead, BadRequest)):
        parse_request(parse_head(head))


def test_what_is_asked_for() -> None:
    connect = parsed("CONNECT [::1]:443 HTTP/1.1\nHost: [::1]:443")
    assert (connect.is_connect, connect.host, connect.port) == (True, ip_address("::1"), 443)
    assert parsed("CONNECT a.example:22 HTTP/1.0").host == "a.example"
    assert parsed("CONNECT a.example:22 HTTP/1.1\nHost: a.example").port == 22
    page = parsed(get("Content-Length: 12"))
    assert (page.is_connect, page.host, page.port) == (False, "a.example", 80)
    assert isinstance(page.body(), Counted) and not page.body().done
    assert parsed(get()).body().done
    assert isinstance(parsed(get("Transfer-Encoding: chunked")).body(), Chunked)


@pytest.mark.parametrize(
    ("head", "persistent"),
    [
        (get(), True),
        (get("Connection: keep-alive"), True),
        (get("Connection: x, Close"), False),
        (get("Proxy-Connection: close"), False),
        (get(version="1.0"), False),
    ],
)
def test_whether_the_client_keeps_its_connection(head: str, persistent: bool) -> None:
    assert parsed(head).persistent is persistent


LINES = st.lists(
    st.sampled_from(
        [
            "GET http://a.example/ HTTP/1.1", "CONNECT a.example:443 HTTP/1.1", "Host: a.example", "Host: b",
            "Content-Length: 3", "Transfer-Encoding: chunked", "Connection: host", "X: \xff", "", " x", "a:b",
        ]
    ),
    max_size=8,
)  # fmt: skip


@given(LINES, st.text(st.characters(max_codepoint=255), max_size=30))
def test_any_head_is_a_request_or_refused_in_one_line(lines: list[str], junk: str) -> None:
    try:
        found = parsed("\n".join([*lines, junk]))
    except (BadHead, BadRequest) as error:
        assert "\n" not in str(error)
        return
    if not found.is_connect:
        start, *fields = found.onward().split(b"\r\n")
        assert start.split(b" ")[1][:1] in (b"/", b"*") and fields[-2:] == [b"", b""]
        again = [line.partition(b":")[0] for line in fields[:-2]]
        assert again.count(b"host") == 1 and again.count(b"connection") == 1
