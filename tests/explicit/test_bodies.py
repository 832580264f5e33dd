"""Where a body ends: for whole and for split bytes alike, and never later for us than for another reader."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.explicit.bodies import BadBody, Body, Chunked, Counted, Unbounded


def chunked(*pieces: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + last


def read(body: Body, data: bytes, at: int) -> tuple[bytes, bytes]:
    """What goes on and what follows, where `data` comes in pieces of `at` bytes."""
    out = b""
    for start in range(0, len(data), at):
        more, rest = body.take(data[start : start + at])
        out += more
        if body.done:
            return out, rest + data[start + at :]
    return out, b""


def plain(data: bytes) -> bytes:
    """A naive reader of chunks that we wrote."""
    out = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        if not int(size, 16):
            assert data == b"\r\n"
            return out
        out, data = out + data[: int(size, 16)], data[int(size, 16) + 2 :]


PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@given(PIECES, st.binary(max_size=20), st.integers(1, 50), st.booleans())
def test_chunks_are_framed_anew_and_end_where_they_end(
    pieces: list[bytes], behind: bytes, at: int, strict: bool
) -> None:
    body = Chunked(strict=strict)
    out, rest = read(body, chunked(*pieces) + behind, at)
    assert body.done
    assert (plain(out), rest) == (b"".join(pieces), behind)


@given(st.binary(max_size=60), st.integers(0, 40), st.integers(1, 50))
def test_a_counted_body_has_its_bytes_and_no_more(data: bytes, length: int, at: int) -> None:
    body = Counted(length)
    out, rest = read(body, data, at) if length else body.take(data)
    assert out == data[:length]
    assert body.done == (len(data) >= length)
    if body.done:
        assert out + rest == data


def test_one_without_a_length_ends_with_the_connection() -> None:
    body = Unbounded()
    assert body.take(b"x") == (b"x", b"")
    assert not body.done
    body.end()
    assert body.done


@pytest.mark.parametrize(
    "body", [Counted(5), Chunked(strict=True), Chunked(strict=False)], ids=["counted", "strict", "lenient"]
)
def test_one_that_ends_early_is_no_body(body: Body) -> None:
    body.take(b"3\r\n")
    with pytest.raises(BadBody):
        body.end()


@dataclass(frozen=True, slots=True)
class Quirk:
    """`old` is what an old server may send; None where nobody may."""

    sentence: str
    sent: bytes
    old: bytes | None = None

    def __str__(self) -> str:
        return self.sentence


QUIRKS = [
    Quirk("leading zeros", b"0003\r\nabc\r\n000\r\n\r\n", b"abc"),
    Quirk("a space behind the size", b"3 \r\nabc\r\n0\r\n\r\n", b"abc"),
    Quirk("an extension", b"3;x=y\r\nabc\r\n0\r\n\r\n", b"abc"),
    Quirk("a trailer", b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n", b"abc"),
    Quirk("a sign", b"+3\r\nabc\r\n0\r\n\r\n"),
    Quirk("a negative size", b"-3\r\nabc\r\n0\r\n\r\n"),
    Quirk("0x", b"0x3\r\nabc\r\n0\r\n\r\n"),
    Quirk("an underscore", b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n"),
    Quirk("a space before the size", b" 3\r\nabc\r\n0\r\n\r\n"),
    Quirk("a line feed alone", b"3\nabc\r\n0\r\n\r\n"),
    Quirk("a carriage return alone", b"3\r\r\nabc\r\n0\r\n\r\n"),
    Quirk("a chunk that is longer than it says", b"3\r\nabcd\r\n0\r\n\r\n"),
    Quirk("a chunk that ends with a line feed alone", b"3\r\nabc\n0\r\n\r\n"),
    Quirk("no size", b"\r\nabc\r\n0\r\n\r\n"),
    Quirk("a size beyond all memory", b"f" * 16 + b"\r\n"),
    Quirk("a size that has no end", b"0" * 5000),
    Quirk("an extension that has no end", b"3;" + b"x" * 5000),
    Quirk("a NUL in the extension", b"3;\0\r\nabc\r\n0\r\n\r\n"),
    Quirk("a folded trailer", b"0\r\nX: 1\r\n y\r\n\r\n"),
    Quirk("trailers without an end", b"0\r\n" + b"X: 1\r\n" * 100),
]


@pytest.mark.parametrize("case", QUIRKS, ids=str)
@pytest.mark.parametrize("at", [1, 7, 10_000])
def test_a_request_has_no_quirks_and_a_response_harmless_ones(case: Quirk, at: int) -> None:
    with pytest.raises(BadBody):
        read(Chunked(strict=True), case.sent, at)
    if case.old is None:
        with pytest.raises(BadBody):
            read(Chunked(strict=False), case.sent, at)
    else:
        body = Chunked(strict=False)
        out, rest = read(body, case.sent, at)
        assert (plain(out), rest, body.done) == (case.old, b"", True)


def test_many_small_chunks_cost_no_more_than_they_are_many() -> None:
    data = b"1\r\nx\r\n" * 50_000
    assert len(Chunked(strict=True).take(data)[0]) == len(data)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_body_or_refused(data: bytes, strict: bool) -> None:
    body = Chunked(strict=strict)
    try:
        out, rest = body.take(data)
        assert len(rest) <= len(data) and len(out) <= 3 * len(data) + 64
    except BadBody as error:
        assert "\n" not in str(error)
