"""Names: every kind of question, hostile packets, both carriers, and dig in a zone of its own."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st

from proxy import names, questions
from proxy.allocator import NameFault, Synthetic
from proxy.flow import Because, IPAddress, Origin, Refusal
from proxy.names import BubbleNames, DatagramNames, stream_names
from proxy.questions import MAX_QUERY_BYTES, AddressWanted, NameWanted, understand

PAIR = Synthetic.at(300)
FULL = Refusal(Because(Origin.GATE, NameFault.QUOTA, "too many names"), "leave the bubble")
GONE = Refusal(Because(Origin.GATE, NameFault.UNREACHABLE, "no answer"))


def ask(name: str, kind: str = "A", **options: Any) -> bytes:
    return dns.message.make_query(name, kind, **({"use_edns": True} | options)).to_wire()


def reply_to(packet: bytes, found: Synthetic | Refusal = PAIR, name: str | Refusal = "x.example") -> Any:
    """The reply as dnspython reads it; None for no reply."""
    reply = understand(packet)
    if isinstance(reply, AddressWanted):
        reply = reply.answer(found)
    elif isinstance(reply, NameWanted):
        reply = reply.answer(name)
    return None if reply is None else dns.message.from_wire(reply)


def records(reply: dns.message.Message) -> list[str]:
    return [f"{rrset.ttl} {dns.rdatatype.to_text(r.rdtype)} {r}" for rrset in reply.answer for r in rrset]


# -- what is answered --------------------------------------------------------------------------------


@dataclass
class Row:
    sentence: str
    name: str
    kind: str = "A"
    rcode: str = "NOERROR"
    answers: list[str] = field(default_factory=list)
    rdclass: str = "IN"
    ede: int | None = None


def reverse(address: str) -> str:
    return dns.reversename.from_address(address).to_text()


V4, V6 = f"60 A {PAIR.v4}", f"60 AAAA {PAIR.v6}"
ROWS = [
    Row("a name has its synthetic IPv4 address", "intranet.example", answers=[V4]),
    Row("and its IPv6 address", "intranet.example", "AAAA", answers=[V6]),
    Row("one label is a name too", "intranet", answers=[V4]),
    Row("underscores are in use", "my_bucket.store.example", answers=[V4]),
    Row("an A-label that decodes is a name", "xn--bcher-kva.example", answers=[V4]),
    Row("one that does not is none", "xn--a.example", rcode="NXDOMAIN"),
    Row("localhost is loopback", "localhost", answers=["60 A 127.0.0.1"]),
    Row("and all below it", "a.b.LocalHost", "AAAA", answers=["60 AAAA ::1"]),
    Row("HTTPS gives no hints", "intranet.example", "HTTPS"),
    Row("nor under a port's prefix", "_8443._https.intranet.example", "HTTPS"),
    Row("nor does SVCB", "_dns.resolver.arpa", "SVCB"),
    Row("ANY gets the least", "intranet.example", "ANY", answers=['60 HINFO "RFC8482" ""']),
    Row("a synthetic address has its name", reverse(str(PAIR.v4)), "PTR", answers=["60 PTR x.example."]),
    Row("in IPv6 too", reverse(str(PAIR.v6)), "PTR", answers=["60 PTR x.example."]),
    Row("loopback is localhost", reverse("127.0.0.1"), "PTR", answers=["60 PTR localhost."]),
    Row("in IPv6 too", reverse("::1"), "PTR", answers=["60 PTR localhost."]),
    Row("who has a real address is not known here", reverse("192.0.2.1"), "PTR", "REFUSED", ede=21),
    Row("nor what is no address at all", "x.in-addr.arpa", "PTR", "REFUSED", ede=21),
    Row("other types have no resolver", "intranet.example", "TXT", "REFUSED", ede=21),
    Row("whatever the name", "_sip._tcp.intranet.example", "SRV", "REFUSED", ede=21),
    Row("zone transfers are another type", "example", "AXFR", "REFUSED", ede=21),
    Row("other classes are refused", "version.bind", "TXT", "REFUSED", rdclass="CH", ede=21),
    Row("even for addresses", "intranet.example", "A", "REFUSED", rdclass="CH", ede=21),
    Row("the root has no address but exists", ".", "A"),
    Row("an address is not a name", "192.0.2.1", rcode="NXDOMAIN"),
    Row("nor in hexadecimal", "0x7f.1", rcode="NXDOMAIN"),
    Row("spaces are in no host name", r"a\032b.example", rcode="NXDOMAIN"),
    Row("nor is a dot within a label", r"intranet\.example", rcode="NXDOMAIN"),
    Row("nor a byte beyond ASCII", r"\252.example", rcode="NXDOMAIN"),
    Row("nor a line's end", r"a\013\010b.example", rcode="NXDOMAIN"),
    Row("nor a leading hyphen", "-a.example", rcode="NXDOMAIN"),
    Row("invalid. is invalid", "a.invalid", rcode="NXDOMAIN"),
    Row("onions are not asked of DNS", "a.onion", rcode="NXDOMAIN"),
    Row("Firefox may not go to DNS over HTTPS", "use-application-dns.net", rcode="NXDOMAIN"),
    Row("no NAT64 is found", "ipv4only.arpa", "AAAA", rcode="NXDOMAIN"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.sentence}: {row.name} {row.kind}")
def test_what_is_answered(row: Row) -> None:
    packet = ask(row.name, row.kind, rdclass=row.rdclass)
    reply = reply_to(packet)
    assert dns.rcode.to_text(reply.rcode()) == row.rcode
    assert records(reply) == row.answers
    assert dns.message.from_wire(packet).is_response(reply)
    assert [option.code for option in reply.options] == ([] if row.ede is None else [row.ede])


def test_a_refusal_says_its_reason_to_those_who_speak_edns() -> None:
    reply = reply_to(ask("a.example"), FULL)
    assert reply.rcode() == dns.rcode.SERVFAIL
    (option,) = reply.options
    assert (option.code, option.text) == (
        dns.edns.EDECode.OTHER,
        "blocked by gate names-quota (too many names); leave the bubble",
    )
    assert reply_to(ask("a.example"), GONE).options[0].code == dns.edns.EDECode.NOT_READY
    plain = reply_to(ask("a.example", use_edns=False), FULL)
    assert (plain.rcode(), plain.edns) == (dns.rcode.SERVFAIL, -1)


def test_the_longest_name_with_the_longest_reason_stays_below_512_bytes() -> None:
    name = ".".join(["a" * 63] * 3 + ["a" * 61])
    long = Refusal(Because(Origin.GATE, NameFault.JOURNAL, "ü" * 500))
    asked = understand(ask(name))
    assert isinstance(asked, AddressWanted)
    reply = asked.answer(long)
    assert len(reply) < 512
    assert dns.message.from_wire(reply).options


def test_an_address_that_this_bubble_never_asked_for_has_no_name() -> None:
    unknown = Refusal(Because(Origin.GATE, NameFault.UNKNOWN, "nothing asked"))
    assert reply_to(ask(reverse(str(PAIR.v4)), "PTR"), name=unknown).rcode() == dns.rcode.NXDOMAIN
    assert reply_to(ask(reverse(str(PAIR.v4)), "PTR"), name=GONE).rcode() == dns.rcode.SERVFAIL


def test_the_case_of_a_question_is_echoed_and_does_not_reach_the_allocator() -> None:
    packet = ask("InTrAnEt.ExAmPlE")
    asked = understand(packet)
    assert isinstance(asked, AddressWanted)
    assert asked.name == "intranet.example"
    question = packet[12 : 12 + 18 + 4]
    assert asked.answer(PAIR)[12 : 12 + len(question)] == question


def test_flags_are_those_of_a_resolver() -> None:
    query = dns.message.make_query("a.example", "A", want_dnssec=True)
    query.flags |= dns.flags.CD
    reply = reply_to(query.to_wire())
    assert reply.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA | dns.flags.CD
    assert reply.ednsflags & dns.flags.DO
    assert reply.payload == 1232


# -- what is hostile ---------------------------------------------------------------------------------


def header(flags: int = 0x0100, counts: tuple[int, int, int, int] = (1, 0, 0, 0)) -> bytes:
    return struct.pack("!HHHHHH", 0x4242, flags, *counts)


QUESTION = b"\x01a\x07example\x00\x00\x01\x00\x01"
OPT = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"


FUTURE_OPT = OPT[:6] + b"\x01" + OPT[7:]


@pytest.mark.parametrize(
    ("sentence", "packet", "rcode"),
    [
        ("nothing", b"", None),
        ("less than a header", header()[:11], None),
        ("a reply", header(0x8180) + QUESTION, None),
        ("a header alone", header(), "FORMERR"),
        ("no question", header(counts=(0, 0, 0, 0)), "FORMERR"),
        ("two questions", header(counts=(2, 0, 0, 0)) + QUESTION * 2, "FORMERR"),
        ("65535 questions", header(counts=(65535, 0, 0, 0)) + QUESTION, "FORMERR"),
        ("records that are not there", header(counts=(1, 65535, 65535, 65535)) + QUESTION, "FORMERR"),
        ("something behind the message", header() + QUESTION + b"x", "FORMERR"),
        ("a name that points to itself", header() + b"\xc0\x0c\x00\x01\x00\x01", "FORMERR"),
        ("a name that points into the header", header() + b"\x01a\xc0\x04\x00\x01\x00\x01", "FORMERR"),
        ("a name that points ahead", header() + b"\x01a\xc0\xff\x00\x01\x00\x01", "FORMERR"),
        ("a label of a kind that is not", header() + b"\x41a\x00\x00\x01\x00\x01", "FORMERR"),
        ("a name of 256 bytes", header() + (b"\x3f" + b"a" * 63) * 4 + b"\x00\x00\x01\x00\x01", "FORMERR"),
        ("two OPT records", header(counts=(1, 0, 0, 2)) + QUESTION + OPT * 2, "FORMERR"),
        ("an OPT record as an answer", header(counts=(1, 1, 0, 0)) + QUESTION + OPT, "FORMERR"),
        ("an OPT record with an owner", header(counts=(1, 0, 0, 1)) + QUESTION + b"\x01a" + OPT, "FORMERR"),
        (
            "an EDNS of the future",
            header(counts=(1, 0, 0, 1)) + QUESTION + OPT[:6] + b"\x01" + OPT[7:],
            "BADVERS",
        ),
        ("a status query", header(0x1000) + QUESTION, "NOTIMP"),
        ("an update", header(0x2800) + QUESTION, "NOTIMP"),
        ("a notify", header(0x2000) + QUESTION, "NOTIMP"),
        ("a DSO message", header(0x3000), "NOTIMP"),
    ],
)
def test_what_is_not_a_question_is_dropped_or_told_so(
    sentence: str, packet: bytes, rcode: str | None
) -> None:
    reply = reply_to(packet)
    assert (reply and dns.rcode.to_text(reply.rcode())) == rcode
    if reply is not None:
        assert reply.id == 0x4242


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=80).map(lambda tail: header() + tail)))
def test_no_packet_raises(packet: bytes) -> None:
    reply_to(packet)


_SOME_LABELS = st.lists(st.binary(min_size=1, max_size=64), max_size=6).map(
    lambda labels: b"".join(bytes([len(label)]) + label for label in labels)
)


@given(_SOME_LABELS, st.sampled_from([b"\x00", b"\xc0\x0c", b"\xc0\x04", b""]), st.binary(max_size=4))
@example((b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61, b"\x00", b"")
@example((b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62, b"\x00", b"")
def test_a_name_is_read_as_dnspython_reads_it(labels: bytes, end: bytes, rest: bytes) -> None:
    packet = header() + labels + end + rest
    read = None
    with suppress(ValueError, IndexError):
        read = questions._labels(packet, 12)
    naive = None
    with suppress(dns.exception.DNSException):
        name, used = dns.name.from_wire(packet, 12)
        if used == sum(len(label) + 1 for label in name.labels):  # otherwise it points elsewhere
            naive = name.labels[:-1], 12 + used
    assert read == naive


@given(st.sampled_from([row for row in ROWS if row.rdclass == "IN"]), st.data())
def test_no_damaged_question_raises_and_each_reply_can_be_read(row: Row, data: st.DataObject) -> None:
    packet = bytearray(ask(row.name, row.kind, use_edns=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    reply = reply_to(bytes(packet[: data.draw(st.integers(0, len(packet)))]))
    assert reply is None or reply.id == int.from_bytes(packet[:2])


@given(st.binary(min_size=1, max_size=63), st.binary(min_size=1, max_size=63))
@example(b"a.b", b"example")
@example(b"1", b"1")
def test_only_what_is_a_host_name_to_a_naive_reader_is_asked_for(first: bytes, second: bytes) -> None:
    asked = understand(dns.message.make_query(dns.name.Name([first, second, b""]), "A").to_wire())
    letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
    if isinstance(asked, AddressWanted):
        assert set(first + second) <= set(letters)
        assert asked.name == f"{first.decode().lower()}.{second.decode().lower()}"


# -- memory and patience -----------------------------------------------------------------------------


class Registry:
    """An allocator that counts what it is asked, and answers when it may."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.told: dict[str, Synthetic] = {}
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.got_question = asyncio.Condition()
        self.trouble: Exception | None = None

    async def address_of(self, bubble: str, name: str) -> Synthetic | Refusal:
        await self._wait(f"{bubble} {name}")
        if name.startswith("full"):
            return FULL
        return self.told.setdefault(name, Synthetic.at(300 + len(self.told)))

    async def name_of(self, bubble: str, address: IPAddress) -> str | None:
        await self._wait(f"{bubble} {address}")
        return next((name for name, pair in self.told.items() if address in (pair.v4, pair.v6)), None)

    async def _wait(self, question: str) -> None:
        async with self.got_question:
            self.asked.append(question)
            self.got_question.notify_all()
        await self.may_answer.wait()
        if self.trouble:
            raise self.trouble

    async def until_asked(self, count: int) -> None:
        async with self.got_question:
            await self.got_question.wait_for(lambda: len(self.asked) >= count)

    def names(self, **options: Any) -> BubbleNames:
        return BubbleNames("b1", self.address_of, self.name_of, **options)


LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())

    return run


type Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


def test_an_answer_is_asked_for_once_and_known_both_ways(run: Run) -> None:
    async def main() -> None:
        registry = Registry()
        names = registry.names()
        pair = await names.address_of("a.example")
        assert isinstance(pair, Synthetic)
        assert await names.address_of("a.example") == pair
        assert await names.name_of(pair.v4) == await names.name_of(pair.v6) == "a.example"
        assert registry.asked == ["b1 a.example"]

    run(main)


def test_a_new_worker_learns_the_name_of_an_address_once(run: Run) -> None:
    async def main() -> None:
        registry = Registry()
        pair = registry.told["a.example"] = Synthetic.at(500)
        names = registry.names()
        assert await names.name_of(pair.v6) == "a.example"
        assert await names.name_of(pair.v4) == "a.example"
        assert registry.asked == [f"b1 {pair.v6}"]

    run(main)


def test_an_unknown_address_is_refused_with_a_cure_and_asked_again_next_time(run: Run) -> None:
    async def main() -> None:
        registry = Registry()
        names = registry.names()
        refusal = await names.name_of(PAIR.v4)
        assert isinstance(refusal, Refusal) and refusal.because.id == NameFault.UNKNOWN
        assert "start" in refusal.cure
        assert not isinstance(await names.name_of(ip_address("192.0.2.1")), str)
        registry.told["late.example"] = PAIR
        assert await names.name_of(PAIR.v4) == "late.example"

    run(main)


def test_a_refused_name_is_asked_again_next_time(run: Run) -> None:
    async def main() -> None:
        registry = Registry()
        names = registry.names()
        assert await names.address_of("full.example") is FULL
        assert await names.address_of("full.example") is FULL
        assert len(registry.asked) == 2

    run(main)


def test_an_allocator_that_is_gone_or_stopped_is_a_refusal(run: Run) -> None:
    async def main() -> None:
        registry = Registry()
        registry.trouble = ConnectionResetError("its end is closed")
        gone = await registry.names().address_of("a.example")
        assert isinstance(gone, Refusal) and gone.because.id == NameFault.UNREACHABLE
        assert "its end is closed" in gone.because.text
        registry.may_answer.clear()
        stopped = await registry.names(patience_s=0.001).address_of("a.example")
        assert isinstance(stopped, Refusal) and stopped.because.id == NameFault.UNREACHABLE
        named = await registry.names(patience_s=0.001).name_of(PAIR.v4)
        assert isinstance(named, Refusal) and named.because.id == NameFault.UNREACHABLE

    run(main)


def test_what_is_remembered_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_CACHED_NAMES", 3)

    async def main() -> None:
        registry = Registry()
        bubble = registry.names()
        for i in range(10):
            await bubble.address_of(f"n{i}.example")
        assert (len(bubble._addresses), len(bubble._names)) == (3, 6)

    run(main)


# -- datagrams ---------------------------------------------------------------------------------------


def udp_socket(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, names.IPV6_RECVPKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, names.IPV6_FREEBIND, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, names.IP_PKTINFO, 1)
    sock.bind(("", 0))
    return sock


@contextmanager
def asker(server: socket.socket, address: str) -> Iterator[socket.socket]:
    """A connected socket: the kernel gives it only what comes from the very address it sends to."""
    with socket.socket(server.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect((address, server.getsockname()[1]))
        yield sock


@pytest.mark.parametrize("address", ["127.0.0.1", "127.5.6.7", "::1"])
def test_a_reply_comes_from_the_address_that_was_asked(run: Run, address: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock = udp_socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        server = DatagramNames(sock, Registry().names())
        with asker(sock, address) as client:
            for name in ("a.example", "b.example", "a.example"):
                client.send(ask(name))
                reply = dns.message.from_wire(await loop.sock_recv(client, 4096))
                assert records(reply) == [f"60 A {Synthetic.at(300 if name[0] == 'a' else 301).v4}"]
        server.close()
        server.close()

    run(main)


def test_no_more_questions_are_in_flight_than_allowed_and_the_rest_is_dropped(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        registry = Registry()
        registry.may_answer.clear()
        sock = udp_socket()
        server = DatagramNames(sock, registry.names(in_flight=2))
        with asker(sock, "127.0.0.1") as client:
            for i in range(5):
                client.send(ask(f"n{i}.example"))
            client.send(ask("localhost"))
            reply = dns.message.from_wire(await loop.sock_recv(client, 4096))
            assert records(reply) == ["60 A 127.0.0.1"], "what need not be asked is answered still"
            assert server.dropped == 3
            await registry.until_asked(2)
            registry.may_answer.set()
            got = {
                str(dns.message.from_wire(await loop.sock_recv(client, 4096)).question[0].name) for _ in "12"
            }
            assert got == {"n0.example.", "n1.example."}
            client.send(ask("n4.example"))
            assert dns.message.from_wire(await loop.sock_recv(client, 4096)).answer
        server.close()

    run(main)


def test_junk_oversized_packets_and_those_who_cannot_be_answered_leave_the_others_served(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sock = udp_socket()
        server = DatagramNames(sock, Registry().names())
        with asker(sock, "127.0.0.1") as closed:
            closed.send(ask("closed.example"))  # its reply meets a closed port
        with asker(sock, "127.0.0.1") as client:
            for packet in (b"", b"x", bytes(MAX_QUERY_BYTES + 1), ask("a.example")[:20]):
                client.send(packet)
            assert dns.message.from_wire(await loop.sock_recv(client, 4096)).rcode() == dns.rcode.FORMERR
            client.send(ask("a.example"))
            assert dns.message.from_wire(await loop.sock_recv(client, 4096)).answer
        server.close()

    run(main)


class FlagsNoted(socket.socket):
    """Notes with which flags it is read and written."""

    noted: list[int]

    def recvmsg(self, size: int, ancillary: int = 0, flags: int = 0, /) -> Any:
        self.noted.append(flags)
        return super().recvmsg(size, ancillary, flags)

    def sendmsg(self, buffers: Any, ancillary: Any = (), flags: int = 0, address: Any = None, /) -> int:
        self.noted.append(flags)
        return super().sendmsg(buffers, ancillary, flags, address)


def test_no_call_waits_even_if_whoever_shares_the_socket_made_it_blocking(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        plain = udp_socket()
        sock = FlagsNoted(fileno=plain.detach())
        sock.noted = []
        server = DatagramNames(sock, Registry().names())
        with asker(sock, "127.0.0.1") as client:
            for name in ("a.example", "localhost"):
                client.send(ask(name))
                assert dns.message.from_wire(await loop.sock_recv(client, 4096)).answer
        server.close()
        assert len(sock.noted) >= 4
        assert set(sock.noted) == {socket.MSG_DONTWAIT}

    run(main)


def test_a_socket_that_cannot_reply_from_the_asked_address_is_refused(run: Run) -> None:
    async def main() -> None:
        mute = udp_socket(socket.AF_INET6)
        mute.setsockopt(socket.IPPROTO_IPV6, names.IPV6_FREEBIND, 0)
        for sock in (
            mute,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
            socket.socket(socket.AF_INET, socket.SOCK_STREAM),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        ):
            with sock, pytest.raises(ValueError, match="cannot reply"):
                DatagramNames(sock, Registry().names())

    run(main)


# -- streams -----------------------------------------------------------------------------------------


@contextmanager
def stream(**options: Any) -> Iterator[tuple[Registry, socket.socket, asyncio.Task[None]]]:
    """A connection that is being served: the registry behind, the client's end, the server's task."""
    registry = Registry()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
    client.setblocking(False)
    serving = asyncio.ensure_future(stream_names(accepted, registry.names(), **options))
    with client:
        yield registry, client, serving


def framed(*packets: bytes) -> bytes:
    return b"".join(struct.pack("!H", len(packet)) + packet for packet in packets)


async def received(client: socket.socket) -> dns.message.Message:
    loop = asyncio.get_running_loop()

    async def exactly(size: int) -> bytes:
        content = b""
        while len(content) < size:
            piece = await loop.sock_recv(client, size - len(content))
            assert piece, "the connection ended"
            content += piece
        return content

    (size,) = struct.unpack("!H", await exactly(2))
    return dns.message.from_wire(await exactly(size))


async def ended(client: socket.socket) -> bool:
    try:
        return await asyncio.get_running_loop().sock_recv(client, 1) == b""
    except ConnectionResetError:
        return True


def test_pipelined_questions_are_answered_even_byte_by_byte_and_after_a_half_close(run: Run) -> None:
    async def main() -> None:
        with stream() as (_, client, serving):
            sent = framed(ask("a.example"), ask("b.example"), ask("localhost"), ask("a.example", "TXT"))
            for i in range(len(sent)):
                await asyncio.get_running_loop().sock_sendall(client, sent[i : i + 1])
            client.shutdown(socket.SHUT_WR)
            replies = [await received(client) for _ in range(4)]
            assert await ended(client)
            await serving
        assert sorted(str(reply.question[0].name) for reply in replies) == [
            "a.example.", "a.example.", "b.example.", "localhost.",
        ]  # fmt: skip

    run(main)


def test_a_question_that_waits_does_not_hold_up_those_behind_it(run: Run) -> None:
    async def main() -> None:
        with stream() as (registry, client, serving):
            registry.may_answer.clear()
            client.send(framed(ask("slow.example"), ask("localhost")))
            assert str((await received(client)).question[0].name) == "localhost."
            registry.may_answer.set()
            assert str((await received(client)).question[0].name) == "slow.example."
            client.close()
            await serving

    run(main)


def test_a_stream_has_no_more_questions_in_flight_than_allowed(run: Run) -> None:
    async def main() -> None:
        with stream(in_flight=2) as (registry, client, serving):
            registry.may_answer.clear()
            client.send(framed(*(ask(f"n{i}.example") for i in range(5))))
            await registry.until_asked(2)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(registry.asked) == 2
            registry.may_answer.set()
            assert len([await received(client) for _ in range(5)]) == 5
            client.close()
            await serving

    run(main)


@pytest.mark.parametrize(
    "sent", [b"", b"\x00", framed(ask("a.example"))[:-1]], ids=["none", "half a size", "half"]
)
def test_who_sends_no_whole_question_within_the_limit_is_let_go(run: Run, sent: bytes) -> None:
    async def main() -> None:
        with stream(idle_s=0.01) as (_, client, serving):
            client.send(sent)
            assert await ended(client)
            await serving

    run(main)


def test_who_takes_no_answers_is_let_go(run: Run) -> None:
    async def main() -> None:
        with stream(idle_s=0.05) as (_, client, serving):
            flood = framed(*[ask("localhost")] * 20_000)
            sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(client, flood))
            await serving
            await asyncio.gather(sending, return_exceptions=True)

    run(main)


@pytest.mark.parametrize("sent", [framed(b""), framed(b"x"), b"\xff\xff", framed(header(0x8180) + QUESTION)])
def test_junk_on_a_stream_ends_it(run: Run, sent: bytes) -> None:
    async def main() -> None:
        with stream() as (_, client, serving):
            client.send(sent)
            assert await ended(client)
            await serving

    run(main)


def test_a_cancelled_stream_closes_its_socket(run: Run) -> None:
    async def main() -> None:
        with stream() as (registry, client, serving):
            registry.may_answer.clear()
            client.send(framed(ask("a.example")))
            await registry.until_asked(1)
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            assert await ended(client)

    run(main)


# -- a zone of its own -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def zone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What dig and getent say in a namespace with lo only, served by a process that can make no socket."""
    script = Path(__file__).with_name("zone_of_names.py")
    folder = tmp_path_factory.mktemp("zone")
    command = ["unshare", "-Urnm", "--kill-child", sys.executable, str(script), request.param, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    return said


def test_the_server_of_the_zone_can_neither_make_nor_turn_a_socket(zone: dict[str, str]) -> None:
    assert zone["sealed"] == "socket connect bind listen"


@pytest.mark.parametrize("resolver", ["8.8.8.8", "2001:4860:4860::8888", "192.0.2.53", "127.0.0.1"])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_dig_is_answered_whichever_resolver_it_asks(
    zone: dict[str, str], resolver: str, transport: str
) -> None:
    assert zone[f"A {resolver} {transport}"] == "198.18.1.0"
    assert zone[f"AAAA {resolver} {transport}"] == "fd00:7a67::100"


def test_dig_is_told_why_a_name_has_no_address(zone: dict[str, str]) -> None:
    assert "status: SERVFAIL" in zone["refused"]
    assert "blocked by gate names-quota (too many names); leave the bubble" in zone["refused"]


def test_the_resolver_of_libc_is_served(zone: dict[str, str]) -> None:
    assert zone["getent ahosts"].split()[0] in ("198.18.1.0", "fd00:7a67::100")
    assert "198.18.1.0" in zone["getent ahosts"] and "fd00:7a67::100" in zone["getent ahosts"]
    assert zone["getent hosts 198.18.1.0"].split() == ["198.18.1.0", "intranet.example"]
    assert zone["getent hosts fd00:7a67::100"].split() == ["fd00:7a67::100", "intranet.example"]


def test_with_nothing_serving_dig_gets_nothing(zone: dict[str, str]) -> None:
    assert "refused" in zone["after the end"] or "no servers could be reached" in zone["after the end"]


def test_what_the_worker_loads_for_names_contains_no_resolver() -> None:
    """A resolver that is not there cannot be asked by mistake."""
    program = "import sys, proxy.names; print(*(m for m in sys.modules if m.startswith('dns.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"dns.resolver", "dns.asyncresolver", "dns.query", "dns.asyncquery"} & set(done.stdout.split())
