"""What is found in a stream is what a search of the whole finds, wherever the pieces are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.policy.model import BUILT_IN_PATTERNS, Pattern
from proxy.scanning.patterns import Search, searches
from proxy.scanning.stream import Hit, Stream

OWN = Pattern("projects", ("Bluebird", "project heron", "Blue", "Grüße aus Köln", "Жучок"))
NAMES = (*BUILT_IN_PATTERNS, OWN.name)
ALL = searches(NAMES, [OWN])
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUA\n"
# (sentence, text, the pattern or nothing)
CASES: list[tuple[str, str, str]] = [
    ("a card", "pay with 4111111111111111 now", "card-numbers"),
    ("a card in groups", "4111 1111 1111 1111", "card-numbers"),
    ("a card with dashes and what follows it", "no. 12 5500-0055-5555-5559 12/27", "card-numbers"),
    ("a card of fifteen", "x=378282246310005;", "card-numbers"),
    ("a card of nineteen", "6221260000000000009 ", ""),
    ("a card of the newer range", "(2223003122003222)", "card-numbers"),
    ("a wrong check digit", "4111111111111112", ""),
    ("no issuer", "9111111111111117", ""),
    ("digits that go on", "41111111111111111234", ""),
    ("digits within a word", "a4111111111111111 4111111111111111b", ""),
    ("one digit over and over", "0000000000000000 4444444444444448"[:16], ""),
    ("an IBAN", "to DE89370400440532013000.", "iban"),
    ("an IBAN in groups", "GB82 WEST 1234 5698 7654 32", "iban"),
    ("an IBAN in small letters", "de89370400440532013000", "iban"),
    ("a wrong IBAN", "DE88370400440532013000", ""),
    ("an IBAN of another length", "DE8937040044053201300012", ""),
    ("a sentence with a year", "is 2026 and customers in Berlin and so on it is 2026", ""),
    ("an IBAN of no country", "ZZ82WEST12345698765432", ""),
    ("a private key", KEY, "private-keys"),
    ("a private key in JSON", KEY.replace("\n", "\\n"), "private-keys"),
    ("a private key of PGP", "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQOYBGExampleExam\n", "private-keys"),
    ("an encrypted key", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n", "private-keys"),
    ("a key of PuTTY", "PuTTY-User-Key-File-3: ssh-ed25519\r\n", "private-keys"),
    ("a text about keys", "begins with -----BEGIN PRIVATE KEY----- and ends", ""),
    ("a public key", "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZI\n", ""),
    ("an access key", "id=AKIAIOSFODNN7EXAMPLE", "aws-keys"),
    ("an access key within a word", "XAKIAIOSFODNN7EXAMPLE", ""),
    ("a secret key", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "aws-keys"),
    ("a secret key in JSON", '"SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"', "aws-keys"),
    ("forty letters without the word", "sum: wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ""),
    ("a word", "about bluebird.", "projects"),
    ("a word in capitals", "PROJECT HERON", "projects"),
    ("a phrase over two lines", "the project\n  heron is", "projects"),
    ("a word beyond ASCII", "viele GRÜßE aus köln!", "projects"),
    ("a word in another script", "это жучок", "projects"),
    ("a part of a word", "bluebirds", ""),
    ("the shorter of two words", "blue sky", "projects"),
]  # fmt: skip
ROWS = [pytest.param(text, pattern, id=sentence) for sentence, text, pattern in CASES]
CODINGS = ("utf-8", "utf-16-le", "utf-16-be", "utf-16", "utf-32-le")


def found(pieces: list[bytes], wanted: tuple[Search, ...] = ALL) -> list[Hit]:
    stream = Stream(wanted)
    hits = [hit for piece in pieces for hit in stream.feed(piece)]
    return sorted([*hits, *stream.finish()], key=lambda hit: hit.pattern)


def naive(data: bytes, wanted: tuple[Search, ...] = ALL) -> list[Hit]:
    """The first end of each pattern in the whole."""
    ends = {search.name: min(search.ends(data, 0), default=0) for search in wanted}
    return sorted((Hit(name, end) for name, end in ends.items() if end), key=lambda hit: hit.pattern)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place for place in places if 0 < place < len(data)}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize(("text", "pattern"), ROWS)
def test_each_pattern_finds_what_it_is_for_and_nothing_else(text: str, pattern: str) -> None:
    assert [hit.pattern for hit in found([text.encode()])] == ([pattern] if pattern else [])


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(("text", "pattern"), ROWS)
def test_text_is_found_in_each_coding(text: str, pattern: str, coding: str) -> None:
    assert [hit.pattern for hit in found([text.encode(coding)])] == ([pattern] if pattern else [])


@pytest.mark.parametrize(("text", "pattern"), ROWS)
def test_every_cut_in_two_finds_the_same_and_so_does_byte_by_byte(text: str, pattern: str) -> None:
    data = b"before " + text.encode() + b" after"
    wanted = naive(data)
    assert [hit.pattern for hit in wanted] == ([pattern] if pattern else [])
    for place in range(len(data) + 1):
        assert found([data[:place], data[place:]]) == wanted
    assert found([data[i : i + 1] for i in range(len(data))]) == wanted


_FRAGMENTS = [text for _, text, _ in CASES]
_PARTS = st.one_of(
    st.sampled_from(_FRAGMENTS),
    st.sampled_from([" ", "-", "\n", "4", "41", "1111", "DE", "89", "AKIA", "blue", "bird"]),
    st.sampled_from(_FRAGMENTS).flatmap(lambda text: st.integers(0, len(text)).map(lambda at: text[:at])),
    st.text(alphabet="0123456789 -", max_size=24),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PARTS, max_size=8), st.lists(st.integers(0, 400), max_size=12))
def test_any_text_in_any_pieces_finds_what_the_whole_has(parts: list[str], places: list[int]) -> None:
    data = "".join(parts).encode()
    assert found(cut(data, places)) == naive(data)


@settings(max_examples=100, deadline=None)
@given(st.lists(_PARTS, max_size=6), st.lists(st.integers(0, 800), max_size=12), st.sampled_from(CODINGS))
def test_any_text_in_any_coding_and_pieces_finds_the_same_patterns(
    parts: list[str], places: list[int], coding: str
) -> None:
    data = "".join(parts).encode(coding)
    wanted = {hit.pattern for hit in naive(data)} | {hit.pattern for hit in naive(data.replace(b"\0", b""))}
    assert {hit.pattern for hit in found(cut(data, places))} == wanted


def _slow_card(data: bytes) -> bool:
    """Whether a run of digits, with single blanks or dashes, is the number of a Visa card: by trying all."""
    text = data.decode("ascii")
    for start in range(len(text)):
        for end in range(start + 13, min(len(text), start + 37) + 1):
            run = text[start:end]
            digits = run.replace(" ", "").replace("-", "")
            around = text[max(0, start - 1) : start] + text[end : end + 1]
            single = all(not (a in " -" and b in " -") for a, b in pairwise(run))
            if (
                digits.isdigit() and len(digits) in (13, 16, 19) and digits[0] == "4" and single
                and run[0].isdigit() and run[-1].isdigit() and len(set(digits)) > 1
                and not any(c.isalnum() for c in around) and _check(digits)
            ):  # fmt: skip
                return True
    return False


def _check(digits: str) -> bool:
    doubled = [int(d) if i % 2 == len(digits) % 2 else int(d) * 2 for i, d in enumerate(digits, 1)]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="41 -", min_size=10, max_size=40))
def test_cards_are_those_of_an_exhaustive_search(text: str) -> None:
    cards = searches(["card-numbers"], [])
    others = "5" not in text and not text.startswith("2")
    assert others
    assert bool(found([text.encode()], cards)) == _slow_card(text.encode())


def test_a_stream_keeps_no_more_than_its_longest_pattern() -> None:
    stream = Stream(ALL)
    for _ in range(16):
        stream.feed(b"4" * 65536)
        stream.feed(b"\0" * 65536)
    lanes = [lane for lane in (stream._plain, stream._wide) if lane]
    longest = max(search.most_bytes for search in ALL)
    assert len(lanes) == 2 and all(len(lane._tail) <= longest + 1 for lane in lanes)


def test_a_pattern_that_may_go_on_is_pending_and_then_settled() -> None:
    stream = Stream(searches(["card-numbers"], []))
    assert stream.feed(b"4111111111111111") == [] and stream.pending == {"card-numbers"}
    assert stream.feed(b"2") == [] and not stream.pending
    stream = Stream(searches(["card-numbers"], []))
    stream.feed(b"4111111111111111")
    assert stream.feed(b".") == [Hit("card-numbers", 16)]
    assert stream.feed(b" 4111111111111111 ") == [], "each pattern is told once"
