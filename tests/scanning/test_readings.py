"""Text that is written in another way means the same wherever its pieces are cut."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from urllib.parse import quote_plus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.scanning.readings import JSON, Base64, Form, Json, Reading, reading_of

ANY = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
CUTS = st.lists(st.integers(1, 9), min_size=1, max_size=9)


def read(reading: Reading, data: bytes, cuts: list[int]) -> bytes:
    """What it means, in pieces of these sizes again and again."""
    out, at, turn = b"", 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        out += reading.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    return out + reading.finish()


@ANY
@given(st.text(), CUTS)
def test_a_form_is_what_was_filled_in(text: str, cuts: list[int]) -> None:
    assert read(Form(), quote_plus(text).encode(), cuts) == text.encode()


@ANY
@given(st.text(st.characters(codec="utf-8")), CUTS, st.booleans())
def test_json_is_what_was_written(text: str, cuts: list[int], ascii_only: bool) -> None:
    """Its letters, that is: backspace and form feed, which no pattern has, become blanks."""
    written = json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode()
    assert read(Json(), written, cuts) == text.replace("\b", " ").replace("\f", " ").encode()


@ANY
@given(st.binary(), CUTS)
def test_anything_may_say_that_it_is_json(data: bytes, cuts: list[int]) -> None:
    assert read(Json(), data, cuts) == read(Json(), data, [1])
    if b"\\" not in data:
        assert read(Json(), data, cuts) == data


def test_what_json_says_in_two_halves_and_what_has_only_one() -> None:
    assert read(Json(), rb"\ud83d\ude00", [1]) == "😀".encode()
    assert read(Json(), rb"\ud83d!\u12", [3]) == "\N{REPLACEMENT CHARACTER}!".encode() + rb"\u12"
    assert read(Json(), rb"C:\\u0041", [1]) == rb"C:\u0041"


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "in one piece": base64.standard_b64encode,
    "for addresses": base64.urlsafe_b64encode,
    "without its signs of equality": lambda data: base64.b64encode(data).rstrip(b"="),
    "in lines": base64.encodebytes,
    "in lines of mail": lambda data: base64.encodebytes(data).replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
@ANY
@given(said=st.binary(min_size=12, max_size=300), cuts=CUTS)
def test_base64_is_what_was_said(way: Callable[[bytes], bytes], said: bytes, cuts: list[int]) -> None:
    for before, after in ((b"", b""), (b'{"file": "', b'"}'), (b"name: x\r\n\r\n", b"\r\n--")):
        assert said in read(Base64(), before + way(said) + after, cuts)


@ANY
@given(st.binary(max_size=80), CUTS)
def test_what_is_no_base64_says_nothing(data: bytes, cuts: list[int]) -> None:
    if not re.search(rb"[\w+/-]{16}", data, re.ASCII):
        assert read(Base64(), data, cuts) == b""


@ANY
@given(st.binary(), CUTS)
def test_anything_is_read_the_same_in_pieces(data: bytes, cuts: list[int]) -> None:
    assert read(Base64(), data, cuts) == read(Base64(), data, [max(1, len(data))])


def test_what_is_ahead_is_what_an_end_would_say() -> None:
    reading = Base64()
    assert reading.feed(base64.b64encode(b"said in sixteen.")[:-2]) == b"said in sixteen"
    assert reading.ahead == b"." == reading.finish()


def test_media_types() -> None:
    assert isinstance(reading_of("application/vnd.lab+json"), Json)
    assert isinstance(reading_of(JSON), Json) and reading_of("text/plain") is None
