"""Responses to a client of the HTTP proxy: where they end, and which of them nobody may see."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from proxy.channel.head import parse_head
from proxy.explicit.bodies import Chunked, Counted, Unbounded
from proxy.explicit.requests import Request, parse_request
from proxy.explicit.responses import BadResponse, Response, parse_response


def request(method: str = "GET", version: str = "1.1") -> Request:
    return parse_request(parse_head(f"{method} http://a/ HTTP/{version}\r\nHost: a".encode()))


def parsed(text: str, asked: Request | None = None, *, keep: bool = True) -> Response:
    head = parse_head(text.replace("\n", "\r\n").encode("latin-1"))
    return parse_response(head, asked or request(), keep=keep)


@dataclass(frozen=True, slots=True)
class Body:
    sentence: str
    head: str
    kind: type | None
    done: bool = False
    reusable: bool = True
    method: str = "GET"

    def __str__(self) -> str:
        return self.sentence


BODIES = [
    Body("a length", "HTTP/1.1 200 OK\nContent-Length: 5", Counted),
    Body("an empty body", "HTTP/1.1 200 OK\nContent-Length: 0", Counted, done=True),
    Body("chunks", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked", Chunked),
    Body("neither", "HTTP/1.1 200 OK", Unbounded, reusable=False),
    Body("HTTP/1.0 with a length", "HTTP/1.0 200 OK\nContent-Length: 5", Counted),
    Body("no content", "HTTP/1.1 204 No Content", Counted, done=True),
    Body(
        "not modified, with the length of what was not",
        "HTTP/1.1 304 x\nContent-Length: 9",
        Counted,
        done=True,
    ),
    Body("an answer to HEAD", "HTTP/1.1 200 OK\nContent-Length: 9", Counted, done=True, method="HEAD"),
    Body("one that is announced", "HTTP/1.1 100 Continue", None),
    Body("early hints", "HTTP/1.1 103 Early Hints\nLink: x", None),
    Body("a status without words", "HTTP/1.1 200\nContent-Length: 5", Counted),
]


@pytest.mark.parametrize("case", BODIES, ids=str)
def test_where_it_ends(case: Body) -> None:
    found = parsed(case.head, request(case.method))
    assert (found.body is None) is (case.kind is None)
    if case.kind is not None:
        assert found.body is not None and isinstance(found.body, case.kind)
        assert found.body.done is case.done
    assert found.reusable is case.reusable


def test_the_head_is_made_the_clients() -> None:
    text = "HTTP/1.0 200 Fine\nConnection: keep-alive, X-Mine\nX-Mine: 1\nKeep-Alive: 5\nSet-Cookie: a\n"
    text += "Set-Cookie: b\nProxy-Authenticate: Basic\nTransfer-Encoding: chunked"
    assert parsed(text).onward == (
        b"HTTP/1.1 200 Fine\r\nset-cookie: a\r\nset-cookie: b\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    closing = b"HTTP/1.1 200 \r\ncontent-length: 1\r\nconnection: close\r\n\r\n"
    assert parsed("HTTP/1.1 200\nContent-Length: 1", keep=False).onward == closing


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/2 200 OK",
        "HTTP/1.1 99 Low",
        "HTTP/1.1 2000 High",
        "ICY 200 OK",
        "HTTP/1.1 101 Switching Protocols\nUpgrade: h2c",
        "HTTP/1.1 200 OK\nContent-Length: 1\nContent-Length: 1",
        "HTTP/1.1 200 OK\nContent-Length: 1\nTransfer-Encoding: chunked",
        "HTTP/1.1 200 OK\nContent-Length: x",
        "HTTP/1.1 200 OK\nTransfer-Encoding: gzip",
        "HTTP/1.1 200 OK\nConnection: Content-Length\nContent-Length: 5",
    ],
)
def test_what_is_no_response_is_shown_to_nobody(head: str) -> None:
    with pytest.raises(BadResponse):
        parsed(head)


def test_a_client_of_http_1_0_gets_no_chunks() -> None:
    with pytest.raises(BadResponse, match="in chunks"):
        parsed("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", request(version="1.0"))
