"""The name in a QUIC client's first datagrams, as another implementation of QUIC makes them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quic_client import VERSIONS, first_flight, initial

from proxy.first_bytes import Seen
from proxy.quic import ClientHello, is_first, may_begin


def read(datagrams: list[bytes]) -> Seen | None:
    hello = ClientHello()
    seen = None
    for datagram in datagrams:
        seen = hello.take(datagram)
    return seen


@pytest.fixture(params=VERSIONS, ids=["version 1", "version 2"])
def version(request: pytest.FixtureRequest) -> Iterator[int]:
    yield request.param


def test_the_name_is_read(version: int) -> None:
    sent = first_flight(version=version)
    assert is_first(sent[0])
    seen = read(sent)
    assert seen is not None and (seen.claimed, seen.malformed, seen.hidden) == ("site.example", "", False)


def test_a_hello_in_two_datagrams_is_waited_for(version: int) -> None:
    sent = first_flight(version=version, long=True)
    assert len(sent) >= 2
    hello = ClientHello()
    assert hello.take(sent[0]) is None
    seen = hello.take(sent[1])
    assert seen is not None and seen.claimed == "site.example"


def test_the_order_of_datagrams_is_of_no_importance() -> None:
    sent = first_flight(long=True)
    seen = read(sent[::-1])
    assert seen is not None and seen.claimed == "site.example"


def test_another_connection_between_the_same_ends_is_known() -> None:
    """It could claim another name; what is sent again, or says nothing new, is of the first."""
    hello = ClientHello()
    sent = first_flight()
    assert hello.take(sent[0]) is not None
    assert hello.belongs(sent[0]) and hello.belongs(b"\x43" + bytes(1300)) and hello.belongs(b"")
    assert not hello.belongs(first_flight()[0])


def test_what_is_said_twice_must_be_the_same() -> None:
    """Which of two the server takes is not known; and what was judged may have been lost on its way."""
    of = b"12345678"
    whole = ClientHello()
    whole.take(first_flight()[0])
    good = whole._hello
    other = good.replace(b"site.example", b"evil.example")
    half = good.index(b"site.example") + 20
    for first, then in (((0, other[:half]), (0, good)), ((0, good[:half]), (40, other[40:]))):
        hello = ClientHello()
        assert hello.take(initial(of, first)) is None
        seen = hello.take(initial(of, then))
        assert seen is not None and seen.malformed
    hello = ClientHello()
    seen = hello.take(initial(of, (0, good)))
    assert seen is not None and seen.claimed == "site.example"
    assert hello.belongs(initial(of, (30, good[30:]))) and hello.belongs(initial(of, (len(good), b"more")))
    assert not hello.belongs(initial(of, (0, other))) and not hello.belongs(initial(of, (40, other[40:])))


def test_another_connection_behind_another_packet_is_known() -> None:
    hello = ClientHello()
    assert hello.take(first_flight()[0]) is not None
    early = b"\xd3\0\0\0\1\0\0\x40\x20" + bytes(32)
    assert hello.belongs(early)
    hidden = early + first_flight("evil.example")[0]
    assert not is_first(hidden) and may_begin(hidden) and not hello.belongs(hidden)


def test_a_client_without_a_name_claims_none() -> None:
    seen = read(first_flight(None))
    assert seen is not None and seen.claimed is None and not seen.malformed


def test_a_bit_that_was_changed_is_noticed() -> None:
    sent = first_flight()[0].rstrip(b"\0")  # padded outside of its packet
    for at in random.Random(1).sample(range(1, len(sent)), k=200):
        changed = bytearray(sent)
        changed[at] ^= 1
        seen = read([bytes(changed)])
        assert seen is None or seen.malformed, at


def test_one_that_is_cut_short_proves_nothing() -> None:
    sent = first_flight()[0].rstrip(b"\0")
    for size in range(len(sent)):
        seen = read([sent[:size]])
        assert seen is None or seen.malformed


@given(
    st.binary(max_size=100),
    st.sampled_from([b"", b"\xc3\0\0\0\1", b"\xd3\x6b\x33\x43\xcf", b"\xc3\0\0\0\1\x08"]),
)
def test_nothing_that_comes_raises(data: bytes, begins: bytes) -> None:
    seen = ClientHello().take(begins + data)
    assert seen is None or seen.malformed


@pytest.mark.parametrize(
    "datagram",
    [b"", b"\xc3\0\0\0\1" + bytes(900), b"\x43\0\0\0\1" + bytes(1195), b"\xc3\0\0\0\0" + bytes(1195),
     b"\xe3\0\0\0\1" + bytes(1195), b"\xc3\x6b\x33\x43\xcf" + bytes(1195)],
)  # fmt: skip
def test_what_begins_no_connection(datagram: bytes) -> None:
    assert not is_first(datagram)
