"""What may go on of a body: nothing of a match, nothing that cannot be read, and never much in memory."""

from __future__ import annotations

import base64
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.policy.model import Pattern, Scan
from proxy.scanning.readings import FORM, JSON
from proxy.scanning.sieve import HELD_BYTES, Body, Passed, Sieve, Stopped, scan_head
from proxy.scanning.unpack import PIECE_BYTES, Unpacker, Unreadable

CARD = b"4111111111111111"
OWN = [Pattern("projects", ("bluebird",))]
BLOCK, REPORT = Scan(("card-numbers", "projects"), ()), Scan((), ("card-numbers", "projects"))


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "two members of gzip": ("gzip", lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])),
    "deflate": ("deflate", zlib.compress),
    "deflate without its header": ("deflate", raw_deflate),
    "brotli": ("br", brotli.compress),
    "zstd": ("zstd", zstandard.compress),
    "two frames of zstd": ("zstd", lambda d: zstandard.compress(d[:5]) + zstandard.compress(d[5:])),
}


def run(scan: Scan, body: Body, pieces: list[bytes]) -> tuple[bytes, Stopped | None, set[str]]:
    """What went on, why it ended, and what was reported."""
    sieve, gone, reported = Sieve(scan, OWN, body), b"", set[str]()
    for step in (*(lambda piece=piece: sieve.feed(piece) for piece in pieces), sieve.finish):
        passed = step()
        if isinstance(passed, Stopped):
            assert sieve.feed(b"more") == passed == sieve.finish(), "what has ended stays ended"
            return gone, passed, reported
        gone += passed.data
        reported |= {hit.pattern for hit in passed.reported}
    return gone, None, reported


# -- what goes on ------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(1, 20), st.sampled_from([b"", b".", b"1", b"x"]))
def test_a_match_never_goes_whole_and_the_rest_goes_unchanged(before: bytes, step: int, after: bytes) -> None:
    data = before + b" " + CARD + after
    gone, stopped, _ = run(BLOCK, Body(), [data[i : i + step] for i in range(0, len(data), step)])
    assert data.startswith(gone)
    if stopped is None:
        assert gone == data and after in (b"1", b"x")
    else:
        assert CARD not in gone and stopped.hit is not None and stopped.hit.pattern == "card-numbers"


def test_a_match_that_may_go_on_waits_and_then_goes() -> None:
    sieve = Sieve(BLOCK, OWN, Body())
    assert sieve.feed(b"id " + CARD) == Passed(b"")
    assert sieve.feed(b"99") == Passed(b"id " + CARD + b"99")


def test_what_is_only_reported_goes_at_once() -> None:
    gone, stopped, reported = run(REPORT, Body(), [b"bluebird " + CARD, b"."])
    assert (gone, stopped, reported) == (b"bluebird " + CARD + b".", None, {"card-numbers", "projects"})


def test_the_reason_says_the_pattern_and_not_what_was_found() -> None:
    _, stopped, _ = run(BLOCK, Body(), [CARD])
    assert stopped is not None and stopped.reason == "it holds card-numbers"
    assert CARD.decode() not in repr(stopped)


def test_a_form_is_read_as_it_is_meant_and_goes_as_it_was_sent() -> None:
    data = b"a=1&card=4111+1111%201111%2d1111&x=%4"
    for step in (1, 3, 100):
        pieces = [data[i : i + step] for i in range(0, len(data), step)]
        gone, stopped, _ = run(BLOCK, Body(media=FORM), pieces)
        assert stopped is not None and data.startswith(gone) and b"2d1111" not in gone
        harmless = [piece.replace(b"4111", b"4112") for piece in [data]]
        assert run(BLOCK, Body(media=FORM), harmless)[:2] == (harmless[0], None)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/?q=4111+1111+1111+1111", True),
        ("/bluebird/x", True),
        ("/?q=%62luebird", True),
        ("/blue/bird", False),
        ("/send/NDExMTExMTExMTExMTExMQ", True),
    ],
)
def test_the_target_of_a_request_is_looked_at(target: str, found: bool) -> None:
    stopped, _ = scan_head(BLOCK, OWN, target, ())
    assert (stopped is not None) is found
    _, reported = scan_head(REPORT, OWN, target, ())
    assert bool(reported) is found


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        (b"x-note", CARD, True),
        (b"cookie", b"id=4111%201111%201111%201111", True),
        (b"authorization", b"Basic " + base64.b64encode(b"somebody:" + CARD), True),
        (b"x-" + CARD, b"", True),
        (b"x-project", b"Bluebird", True),
        (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", False),
    ],
)
def test_header_fields_are_looked_at(name: bytes, value: bytes, found: bool) -> None:
    fields = [(b"accept", b"*/*"), (name, value), (b"user-agent", b"lab/1.0")]
    assert (scan_head(BLOCK, OWN, "/", fields)[0] is not None) is found
    assert bool(scan_head(REPORT, OWN, "/", fields)[1]) is found


def test_two_fields_are_no_number_together() -> None:
    assert scan_head(BLOCK, OWN, "/", [(b"a", CARD[:8]), (b"b", CARD[8:])])[0] is None


# -- other ways of writing ---------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=9), st.integers(1, 40), st.sampled_from([b"", b'"}', b"\r\n--x--"]))
def test_what_is_said_in_base64_never_goes_whole(before: bytes, step: int, after: bytes) -> None:
    packed = base64.b64encode(before + b" " + CARD).rstrip(b"=")
    data = b'{"file": "' + packed + after
    gone, stopped, _ = run(BLOCK, Body(), [data[i : i + step] for i in range(0, len(data), step)])
    assert stopped is not None and data.startswith(gone)
    said = gone.removeprefix(b'{"file": "')
    assert CARD not in base64.b64decode(
        said[: len(packed)] + b"=" * (-len(said) % 4) if len(said) % 4 != 1 else said[:-1]
    )


def test_a_mail_in_base64_is_looked_into() -> None:
    for said, stops in ((b"it is " + CARD, True), (b"nothing " * 30, False)):
        data = base64.encodebytes(b"line\n" * 40 + said).replace(b"\n", b"\r\n") + b"--x--\r\n"
        for step in (1, 50, 10_000):
            pieces = [data[i : i + step] for i in range(0, len(data), step)]
            assert (run(BLOCK, Body(media="message/rfc822"), pieces)[1] is not None) is stops


def test_words_in_json_whose_letters_are_written_as_numbers() -> None:
    own = [Pattern("projects", ("grünspecht",))]
    for text in (rb'{"about": "Gr\u00fcnspecht"}', rb'{"about": "GR\u00DCNSPECHT\n"}'):
        sieve = Sieve(Scan(("projects",), ()), own, Body(media=JSON))
        assert isinstance(sieve.feed(text), Stopped), text


# -- codings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_what_is_packed_is_looked_into_and_goes_as_it_was_sent(name: str, step: int) -> None:
    coding, pack = PACKERS[name]
    for text, stops in ((b"it is " + CARD + b" here", True), (b"nothing " * 500, False)):
        packed = pack(text)
        pieces = [packed[i : i + step] for i in range(0, len(packed), step)]
        gone, stopped, _ = run(BLOCK, Body(codings=(coding,)), pieces)
        assert (stopped is not None) is stops
        assert packed.startswith(gone) and len(gone) < len(packed) if stops else gone == packed


@pytest.mark.parametrize("name", PACKERS)
def test_what_is_cut_short_or_followed_by_something_cannot_be_read(name: str) -> None:
    coding, pack = PACKERS[name]
    packed = pack(b"nothing to see " * 50)
    for spoilt in (packed[:-1], packed + b"\xff\xfe trailing", b"\xffnonsense" + packed):
        gone, stopped, _ = run(BLOCK, Body(codings=(coding,)), [spoilt])
        assert stopped is not None and "cannot be read" in stopped.reason and len(gone) < len(packed) + 1
        assert run(REPORT, Body(codings=(coding,)), [spoilt])[:2] == (spoilt, None)


UNREAD = [
    ("an unknown coding", Body(codings=("lzma",)), b""),
    ("two codings", Body(codings=("gzip", "br")), b""),
    ("an unknown charset", Body(charset="utf-7"), b""),
    ("a part in quoted-printable", Body(media="multipart/a"), b"Content-Transfer-Encoding: Quoted-Printable"),
    # Whoever unpacks it leaves out every blank and line's end (RFC 2045, section 6.8), wherever it stands.
    ("a part in base64", Body(media="multipart/a"), b"--x\r\nContent-Transfer-Encoding: base64\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "data"), [row[1:] for row in UNREAD], ids=[row[0] for row in UNREAD])
def test_what_cannot_be_read_does_not_go_where_something_is_blocked(body: Body, data: bytes) -> None:
    gone, stopped, _ = run(BLOCK, body, [data or b"data"])
    assert gone == b"" and stopped is not None
    assert run(REPORT, body, [data or b"data"])[:2] == (data or b"data", None)


def test_a_part_of_a_multipart_body_is_looked_into() -> None:
    data = b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + CARD + b"\r\n--x--\r\n"
    assert run(BLOCK, Body(media="multipart/form-data"), [data])[1] is not None


# -- bombs (R2) --------------------------------------------------------------------------------------


def bomb(coding: str, size: int) -> bytes:
    block = bytes(1 << 20)
    if coding == "br":
        packer = brotli.Compressor(quality=1)
        return bytes(b"".join(packer.process(block) for _ in range(size >> 20)) + packer.finish())
    if coding == "zstd":
        squeezer = zstandard.ZstdCompressor(level=1).compressobj()
        return b"".join(squeezer.compress(block) for _ in range(size >> 20)) + squeezer.flush()
    deflater = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    return b"".join(deflater.compress(block) for _ in range(size >> 20)) + deflater.flush()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_bomb_is_stopped_and_never_unpacked_in_memory(coding: str) -> None:
    packed = bomb(coding, 64 << 20)
    assert len(packed) < 1 << 20
    tracemalloc.start()
    try:
        sieve = Sieve(BLOCK, OWN, Body(codings=(coding,)))
        stopped = sieve.feed(packed)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(stopped, Stopped) and "unpacks to too much" in stopped.reason
    assert most < 48 << 20


def test_pieces_are_small_and_a_fair_ratio_passes() -> None:
    text = b"".join(b"line %d of a log that says much the same again and again\n" % i for i in range(60000))
    unpacker = Unpacker("gzip")
    sizes = [len(piece) for piece in unpacker.feed(gzip.compress(text))]
    unpacker.finish()
    assert sum(sizes) == len(text) and max(sizes) <= PIECE_BYTES
    with pytest.raises(Unreadable):
        Unpacker("compress")


def test_bytes_that_unpack_to_nothing_are_not_held_for_ever() -> None:
    packer = zlib.compressobj(wbits=31)
    start = packer.compress(b"x " + CARD) + packer.flush(zlib.Z_SYNC_FLUSH)
    empty = packer.flush(zlib.Z_FULL_FLUSH) or b"\x00\x00\x00\xff\xff"
    sieve = Sieve(BLOCK, OWN, Body(codings=("gzip",)))
    assert sieve.feed(start) == Passed(b"")
    steps = [sieve.feed(b"\x00\x00\x00\xff\xff" * 2000) for _ in range(HELD_BYTES // 10_000 + 2)]
    assert empty and isinstance(steps[-1], Stopped)
    assert all(isinstance(step, Stopped) or step.data == b"" for step in steps)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["gzip", "deflate", "br", "zstd", "lzma", ""]),
    st.lists(st.binary(max_size=200), max_size=6),
    st.sampled_from(
        [b"", gzip.compress(b"x" * 99), brotli.compress(b"x" * 99), zstandard.compress(b"x" * 99)]
    ),
)
def test_rubbish_is_passed_or_stopped_and_nothing_else(
    coding: str, pieces: list[bytes], begins: bytes
) -> None:
    for scan in (BLOCK, REPORT):
        gone, stopped, _ = run(scan, Body(codings=(coding,) if coding else ()), [begins, *pieces])
        assert b"".join([begins, *pieces]).startswith(gone)
        if scan is REPORT:
            assert stopped is None and gone == b"".join([begins, *pieces])
