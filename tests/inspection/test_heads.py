"""What heads say, and what they may not."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest

from proxy.flow import FAILED, UNKNOWN
from proxy.inspection.heads import (
    Answered,
    Asked,
    Destination,
    Improper,
    accept_of,
    read_request,
    read_response,
    read_trailers,
)

SITE = Destination("site.example", 443, True)
HOST = (b"Host", b"site.example")
CHUNKED = (b"Transfer-Encoding", b"chunked")


def ask(*fields: tuple[bytes, bytes], to: Destination = SITE, **changes: Any) -> Asked:
    said = {"version": 1, "method": "GET", "authority": "", "target": "/", **changes}
    return read_request(to, fields=fields, **said)


@dataclass(frozen=True, slots=True)
class Facts:
    id: str
    asked: Asked
    size: object
    has_body: bool
    content_type: object = UNKNOWN


FACTS = (
    Facts("no body", ask(HOST), 0, False),
    Facts(
        "a length",
        ask(HOST, (b"content-length", b"7"), (b"content-type", b"Text/Plain; charset=x")),
        7,
        True,
        "text/plain",
    ),
    Facts("chunks", ask(HOST, CHUNKED), UNKNOWN, True, FAILED),
    Facts("a body of HTTP/2", ask(authority="site.example", version=2), UNKNOWN, True, FAILED),
    Facts("a stream of HTTP/2 that ends", ask(authority="site.example", version=2, ended=True), 0, False),
    Facts(
        "two types",
        ask(HOST, CHUNKED, (b"content-type", b"a/b"), (b"content-type", b"c/d")),
        UNKNOWN,
        True,
        FAILED,
    ),
)


@pytest.mark.parametrize("case", FACTS, ids=lambda case: case.id)
def test_facts_of_a_request(case: Facts) -> None:
    found = case.asked
    assert (found.size, found.has_body, found.content_type) == (case.size, case.has_body, case.content_type)


@pytest.mark.parametrize(
    ("to", "host"),
    [
        (SITE, b"SITE.example."),
        (SITE, b"site.example:443"),
        (Destination("site.example", 8443, True), b"site.example:8443"),
        (Destination(ip_address("192.0.2.1"), 80, False), b"192.0.2.1"),
        (Destination(ip_address("2001:db8::1"), 80, False), b"[2001:db8::1]"),
    ],
)
def test_spellings_of_one_host(to: Destination, host: bytes) -> None:
    assert ask((b"host", host), to=to).method == "GET"


@pytest.mark.parametrize(
    "host",
    [
        b"other.example",
        b"site.example:80",
        b"0x7f.1",
        b"127.1",
        b"site.example, x",
        b"a@site.example",
        b"",
        b"[::1",
    ],
)
def test_other_hosts(host: bytes) -> None:
    with pytest.raises(Improper):
        ask((b"host", host))


def test_what_is_one_hops_own_does_not_go_on() -> None:
    found = ask(HOST, (b"te", b"gzip"), (b"upgrade", b"h2c"), (b"connection", b"upgrade, te"))
    assert {"proxy-authorization", "te", "upgrade", "http2-settings"} <= found.drop
    assert "te" in ask(HOST, (b"te", b"trailers")).drop  # trailers do not go through HTTP/1.1
    assert "te" not in ask(HOST, (b"te", b"trailers"), version=2, ended=True).drop


def test_what_may_stand_behind_a_body() -> None:
    read_trailers([(b"grpc-status", b"0"), (b"Digest", b"sha-256=x"), (b"server-timing", b"a;dur=1")])


@pytest.mark.parametrize(
    "field",
    [
        (b"Host", b"other.example"), (b"content-length", b"5"), (b"Transfer-Encoding", b"chunked"),
        (b"authorization", b"Basic eDp5"), (b"cookie", b"a=b"), (b"proxy-authorization", b"x"),
        (b"content-type", b"a/b"), (b"x-forwarded-host", b"other.example"), (b"te", b"trailers"),
        (b":path", b"/secret"), (b"x y", b"z"), (b"x", b"y\r\nz"), (b"x", b"y" * (1 << 17)),
    ],
)  # fmt: skip
def test_what_may_not_stand_behind_a_body(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(Improper):
        read_trailers([(b"grpc-status", b"0"), field])


WEBSOCKET = (
    HOST,
    (b"upgrade", b"websocket"),
    (b"connection", b"keep-alive, Upgrade"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
)


def test_a_websocket_is_accepted_by_its_own_key() -> None:
    """The example of RFC 6455, section 1.3."""
    asked = ask(*WEBSOCKET)
    assert accept_of(asked.websocket_key) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    fields = [(b"upgrade", b"websocket"), (b"sec-websocket-accept", accept_of(asked.websocket_key).encode())]
    assert read_response(asked, status=101, fields=fields) == Answered(UNKNOWN, UNKNOWN, False)
    for wrong in ([], fields[:1], [*fields, (b"sec-websocket-extensions", b"permessage-deflate")]):
        with pytest.raises(Improper):
            read_response(asked, status=101, fields=wrong)
    with pytest.raises(Improper):
        read_response(ask(HOST), status=101, fields=fields)


@pytest.mark.parametrize("left_out", range(1, len(WEBSOCKET)))
def test_a_websocket_asks_properly_or_not_at_all(left_out: int) -> None:
    fields = [field for at, field in enumerate(WEBSOCKET) if at != left_out]
    if left_out == 1:
        assert ask(*fields).websocket_key == b""
    else:
        with pytest.raises(Improper):
            ask(*fields)


def test_facts_of_an_answer() -> None:
    asked = ask(HOST)
    length, kind = (b"content-length", b"5"), (b"content-type", b"a/b")
    assert read_response(asked, status=200, fields=[length, kind]) == Answered("a/b", 5, True)
    assert read_response(asked, status=200, fields=[CHUNKED]) == Answered(FAILED, UNKNOWN, True)
    assert not read_response(asked, status=304, fields=[length]).has_body
    assert not read_response(ask(HOST, method="HEAD"), status=200, fields=[length]).has_body
    for status, fields in ((103, []), (200, [length, length]), (200, [(b"content-length", b"5, 5")])):
        with pytest.raises(Improper):
            read_response(asked, status=status, fields=fields)
