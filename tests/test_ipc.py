"""Messages: what is said arrives as it was said; nonsense breaks the link and leaks no descriptor."""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import pytest
from descriptors import none_left, open_descriptors
from hypothesis import given
from hypothesis import strategies as st

from proxy import ipc
from proxy.messages.admin import TO_COMMAND, TO_SUPERVISOR
from proxy.messages.holding import TO_HOLDER, Dial, Dialled, Evidence, Hold, Serve, TunnelSetup
from proxy.messages.worker import FROM_WORKER, TO_WORKER, Configure

EVERY = (*TO_WORKER, *FROM_WORKER, *TO_HOLDER, *TO_SUPERVISOR, *TO_COMMAND, Dial, Dialled, Evidence)
SETUP = TunnelSetup("gw", "gw.example", 8443, "gw.example", ("sha256:a", "sha256:b"), True)


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Rich:
    """Every kind of field that a message may have."""

    descriptors: ClassVar[tuple[int, int]] = (0, 2)

    text: str
    number: int
    share: float
    yes: bool
    maybe: str | None
    names: tuple[str, ...]
    colour: Colour
    setups: tuple[TunnelSetup, ...]


RICH = Rich("ü\n\0", -3, 0.5, True, None, ("a", ""), Colour.RED, (SETUP,))


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = ipc.pair()
    with one, other:
        other.setblocking(False)
        yield one, other


# -- values ------------------------------------------------------------------------------------------


def test_a_message_arrives_as_it_was_sent() -> None:
    assert ipc.decode(ipc.encode(RICH), [Rich]) == RICH


@given(
    st.builds(
        Rich,
        text=st.text(st.characters(exclude_categories=["Cs"])),
        number=st.integers(-(1 << 63), (1 << 63) - 1),
        share=st.floats(allow_nan=False, allow_infinity=False),
        maybe=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        names=st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
        setups=st.just((SETUP,)),
    )
)
def test_every_message_arrives_as_it_was_sent(message: Rich) -> None:
    assert ipc.decode(ipc.encode(message), [Rich]) == message


@dataclass(frozen=True, slots=True)
class Bad:
    sentence: str
    field: str
    value: str  # JSON

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "bad",
    [
        Bad("a number is no text", "text", "1"),
        Bad("null is no text", "text", "null"),
        Bad("half a surrogate pair is no text", "text", r'"\ud800"'),
        Bad("nor is the other half", "text", r'"\udfff"'),
        Bad("true is no number", "number", "true"),
        Bad("a fraction is no whole number", "number", "1.0"),
        Bad("a number beyond 64 bits fits no call", "number", str(1 << 63)),
        Bad("nor one of four thousand digits", "number", "9" * 4000),
        Bad("nor one of five thousand, which Python would not even read", "number", "9" * 5000),
        Bad("infinity is no share", "share", "1e999"),
        Bad("NaN is no share", "share", "NaN"),
        Bad("a huge whole number is no share", "share", "9" * 400),
        Bad("one is not yes", "yes", "1"),
        Bad("a number is no text or nothing", "maybe", "0"),
        Bad("a text is no list", "names", '"ab"'),
        Bad("an object is no list", "names", "{}"),
        Bad("a list of numbers is no list of texts", "names", "[1]"),
        Bad("an unknown colour", "colour", '"green"'),
        Bad("a list is no colour", "colour", "[]"),
        Bad("a text is no set-up", "setups", '["gw"]'),
        Bad("a set-up needs its fields", "setups", "[{}]"),
        Bad("a set-up is not told what it is", "setups", '[{"is": "TunnelSetup"}]'),
        Bad("deep nesting is no list of texts", "names", "[" * 3000 + "]" * 3000),
        Bad("very deep nesting is no message", "names", "[" * 60000 + "]" * 60000),
    ],
    ids=str,
)
def test_a_field_of_the_wrong_type_breaks_the_link(bad: Bad) -> None:
    fields = json.loads(ipc.encode(RICH))
    good = json.dumps(fields | {bad.field: "@"})
    data = good.replace('"@"', bad.value).encode()
    assert data != good.encode()
    with pytest.raises(ipc.LinkBroken) as caught:
        ipc.decode(data, [Rich])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"Dial"',
        b"{}",
        b'{"is": "Dial"}',
        b'{"is": "Dial", "count": 1, "more": 1}',
        b'{"is": "Dialled", "trouble": ""}',
        b'{"is": ["Dial"], "count": 1}',
        b'{"is": null, "count": 1}',
        b'{"is": "' + b"x" * 100_000 + b'"}',
        b'{"is": "Dial", "count": 1}\xff',
        b'\xff\xfe{"is": "Dial", "count": 1}',
        b'{"is": "Dial", "count": 1} {}',
        b"\x80\x04K\x01.",
    ],
)
def test_what_is_not_the_expected_message_breaks_the_link(data: bytes) -> None:
    with pytest.raises(ipc.LinkBroken) as caught:
        ipc.decode(data, [Dial])
    assert len(str(caught.value)) < 300


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode(errors="replace")))
def test_random_bytes_do_nothing_but_break_the_link(data: bytes) -> None:
    with pytest.raises(ipc.LinkBroken):
        ipc.decode(data, EVERY)


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(ValueError, match="too long for one message"):
        ipc.encode(Dialled("x" * ipc.MAX_MESSAGE_BYTES))


def test_a_text_that_is_no_unicode_is_not_sent() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        ipc.encode(Dialled("\udc80"))


def test_every_message_says_how_many_descriptors_it_brings() -> None:
    for kind in EVERY:
        least, most = getattr(kind, "descriptors", (0, 0))
        assert 0 <= least <= most <= ipc.MAX_DESCRIPTORS
    assert Configure.descriptors[1] <= ipc.MAX_DESCRIPTORS


# -- one end -----------------------------------------------------------------------------------------


def test_the_longest_message_passes(ends: tuple[socket.socket, socket.socket]) -> None:
    room = ipc.MAX_MESSAGE_BYTES - len(ipc.encode(Dialled("")))
    ipc.send(ends[0], Dialled("x" * room))
    assert ipc.receive(ends[1], [Dialled])[0] == Dialled("x" * room)


def test_descriptors_arrive_in_order_and_are_closed_on_exec(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    sent = [ipc.memory_file(str(at), str(at).encode()) for at in range(ipc.MAX_DESCRIPTORS)]
    ipc.send(ends[0], Dialled(""), sent)
    ipc.close_all(sent)
    _, fds = ipc.receive(ends[1], [Dialled])
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
    assert [ipc.read_file(fd) for fd in fds] == [str(at).encode() for at in range(ipc.MAX_DESCRIPTORS)]


@pytest.mark.parametrize(
    ("message", "count"),
    [(Dial(1), 1), (Serve(), 0), (Serve(), 2), (Hold(SETUP, 1, 1, 0), 2), (Dialled(""), 65)],
)
def test_a_wrong_number_of_descriptors_is_neither_sent_nor_taken(
    ends: tuple[socket.socket, socket.socket], message: object, count: int
) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(ValueError, match="descriptors"):
        ipc.send(ends[0], message, [null] * count)
    before = open_descriptors()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * count))] if count else []
    ends[0].sendmsg([ipc.encode(message)], rights)
    with pytest.raises(ipc.LinkBroken, match=r"descriptors|cut short"):
        ipc.receive(ends[1], [Dial, Serve, Hold, Dialled])
    assert open_descriptors() == before
    os.close(null)


@pytest.mark.parametrize(
    ("message", "count", "heard"),
    [
        (Dialled("x"), 2, True),
        (Serve(), 1, False),
        (Hold(SETUP, 1, 1, 0), 3, False),
        (Dial(1), 1, False),
    ],
)
def test_without_room_for_descriptors_a_message_that_may_come_alone_does(
    ends: tuple[socket.socket, socket.socket], message: object, count: int, heard: bool
) -> None:
    before = open_descriptors()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [ends[0].fileno()] * count))]
    ends[0].sendmsg([ipc.encode(message)], rights)
    with none_left():
        if heard:
            assert ipc.receive(ends[1], [Dialled]) == (message, [])
        else:
            with pytest.raises(ipc.LinkBroken, match="no descriptor is left"):
                ipc.receive(ends[1], [Dial, Serve, Hold, Dialled])
    assert open_descriptors() == before


def test_nonsense_with_descriptors_leaks_none(ends: tuple[socket.socket, socket.socket]) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    before = open_descriptors()
    socket.send_fds(ends[0], [b"nonsense"], [null] * 9)
    with pytest.raises(ipc.LinkBroken):
        ipc.receive(ends[1], [Dial])
    assert open_descriptors() == before
    os.close(null)


@pytest.mark.parametrize("size", [ipc.MAX_MESSAGE_BYTES + 1, 0])
def test_a_datagram_of_no_usable_length_breaks_the_link(
    ends: tuple[socket.socket, socket.socket], size: int
) -> None:
    ends[0].send(b" " * size)
    with pytest.raises(ipc.LinkBroken):
        ipc.receive(ends[1], [Dial])


def test_a_peer_that_is_gone_breaks_the_link_both_ways(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].close()
    with pytest.raises(ipc.LinkBroken, match="the other end is gone"):
        ipc.receive(ends[1], [Dial])
    with pytest.raises(ipc.LinkBroken, match="the other end is gone"):
        ipc.send(ends[1], Dial(1))


def test_silence_and_a_full_peer_are_not_the_end(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(BlockingIOError):
        ipc.receive(ends[1], [Dial])
    with pytest.raises(BlockingIOError):
        while True:
            ipc.send(ends[1], Dial(1))


def test_a_peer_that_hangs_is_said_to(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].settimeout(0.01)
    with pytest.raises(ipc.LinkBroken, match="timed out"):
        ipc.receive(ends[0], [Dial])


# -- memory files ------------------------------------------------------------------------------------


def test_a_memory_file_is_read_once_and_closed() -> None:
    fd = ipc.memory_file("secret", b"x" * 3_000_000)
    assert ipc.read_file(fd) == b"x" * 3_000_000
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_who_gets_a_memory_file_cannot_change_it() -> None:
    fd = ipc.memory_file("policy", b"block all")
    for change in (lambda: os.write(fd, b"pass"), lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, 99)):
        with pytest.raises(PermissionError):
            change()
    assert ipc.read_file(fd) == b"block all"


def test_a_file_beyond_the_limit_is_refused_not_cut() -> None:
    assert ipc.read_file(ipc.memory_file("policy", b"four"), 4) == b"four"
    with pytest.raises(OSError, match="longer than 4 bytes"):
        ipc.read_file(ipc.memory_file("policy", b"fives"), 4)


def test_a_lingering_connection_cannot_be_sent_to_who_refuses_descriptors() -> None:
    """Its last close would wait for a peer that takes nothing; close(2) asks no event loop."""
    ours, theirs = ipc.pair()
    with ours, theirs, socket.socket() as connection:
        ipc.refuse_descriptors(ours)
        if ours.getsockopt(socket.SOL_SOCKET, 83):
            pytest.skip("this kernel is older than 6.16")
        with pytest.raises(ipc.LinkBroken, match="Operation not permitted"):
            ipc.transmit(theirs, b"x", [connection.fileno()])
        ipc.transmit(theirs, b"x", [])
        assert ours.recv(10) == b"x"
        ipc.transmit(ours, b"y", [connection.fileno()])  # the other way they go
