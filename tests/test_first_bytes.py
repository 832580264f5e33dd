"""What first bytes prove, however many of them come at once."""

from __future__ import annotations

from proxy.first_bytes import MAX_BYTES, recognise
from proxy.flow import Protocol


def test_what_follows_a_head_does_not_count_against_it() -> None:
    """A fast upload arrives with its head in one read, and is a whole request all the same."""
    seen = recognise(b"POST /upload HTTP/1.1\r\nHost: intranet.corp.example\r\n\r\n" + bytes(4 * MAX_BYTES))
    assert seen is not None and not seen.malformed
    assert (seen.protocol, seen.claimed) == (Protocol.HTTP, "intranet.corp.example")


def test_a_head_without_an_end_is_malformed() -> None:
    """And not waited for beyond the bound."""
    begun = b"GET / HTTP/1.1\r\nX: "
    assert recognise(begun + b"x" * 1000) is None
    seen = recognise(begun + b"x" * MAX_BYTES)
    assert seen is not None and seen.malformed == "its first message has no end"
