"""Junk at the door ends in a refusal or in service, and never in an exception.

The same two functions are what `make fuzz` gives to atheris, for longer.
"""

from __future__ import annotations

from explicit_fuzz import http_head, socks_handshake, whole_conversation
from hypothesis import given, settings
from hypothesis import strategies as st

HEAD_PARTS = [
    b"GET ", b"CONNECT ", b"http://", b"a.example", b":80", b":443", b"/", b" HTTP/1.1", b" HTTP/1.0",
    b"\r\n",
    b"Host: a.example", b"Host:", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Connection: close",
    b"Proxy-Authorization: Basic YTpi", b"Proxy-Connection: host", b"5\r\nhello\r\n", b"0\r\n", b"\r\n\r\n",
    b"Expect: 100-continue", b"[::1]", b"127.1", b"%00", b"\0", b"\n", b"\xff", b"@", b" ", b"\t",
]  # fmt: skip
SOCKS_PARTS = [
    b"\5\1\0", b"\5\1\2", b"\5\2\0\2", b"\1\1a\1b", b"\5\1\0\3\x09a.example\0\x50",
    b"\5\1\0\1\x7f\0\0\1\0\x50",
    b"\5\1\0\4" + bytes(15) + b"\1\0\x50", b"\5\3\0", b"\5\2\0", b"\4\1", b"\xff", b"\0", b"\5",
]  # fmt: skip


def parts(of: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(st.one_of(st.sampled_from(of), st.binary(max_size=12)), max_size=16).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(parts(HEAD_PARTS))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    http_head(data)


@settings(max_examples=400, deadline=None)
@given(parts(SOCKS_PARTS), st.integers(1, 40), st.booleans())
def test_any_bytes_are_a_handshake_or_refused(data: bytes, at: int, asks: bool) -> None:
    socks_handshake(data, at, asks=asks)


@settings(max_examples=150, deadline=None)
@given(parts([*HEAD_PARTS, *SOCKS_PARTS]), st.sampled_from(["http", "socks5"]), st.booleans())
def test_any_conversation_ends_in_a_refusal_or_in_service(data: bytes, kind: str, asks: bool) -> None:
    whole_conversation(data, kind, asks=asks)
