"""Channels whose first bytes are looked at: whatever disproves the flow goes to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from first_words import hello, request
from loopback import LOOPS, Run, pair, read_all, runner

from proxy import vetted
from proxy.channel import Channel, NotAdmitted, PlainChannel
from proxy.flow import UNKNOWN, Fact, Flow, Protocol
from proxy.flow_table import OpenFlow
from proxy.vetted import Disproved, vetted_client, vetted_upstream

type Vet = Callable[[Channel, OpenFlow], Channel]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


def entry(protocol: Fact[Protocol]) -> OpenFlow:
    at = datetime(2026, 1, 5, 12, tzinfo=UTC)
    flow = Flow(zone="z", user="u", port=22, at=at, name="site.example", protocol=protocol)
    return OpenFlow(id="f", bubble="b", flow=flow, tunnel="hq", policy="p", reset=lambda: None)


@dataclass(frozen=True, slots=True)
class Said:
    """`pieces` are sent one by one, each after the last was read; then the end of file."""

    sentence: str
    protocol: Fact[Protocol]
    pieces: tuple[bytes, ...]
    disproved: str = ""

    def __str__(self) -> str:
        return self.sentence


def each(data: bytes) -> tuple[bytes, ...]:
    return tuple(data[i : i + 1] for i in range(len(data)))


BANNER = b"SSH-2.0-OpenSSH\r\n"
SSH, ANY = Protocol.SSH, UNKNOWN
NEW = "speaks"
CLIENTS = [
    Said("a banner is ssh", SSH, (BANNER, b"more")),
    Said("a banner in pieces is ssh", SSH, each(BANNER)),
    Said("a client that says nothing has disproved nothing", SSH, ()),
    Said("a client that ends within its banner has disproved nothing", SSH, (b"SS",)),
    Said("a request on the port of ssh", SSH, (request(),), NEW),
    Said("the beginning of a request on the port of ssh", SSH, (b"POST /secrets HT",), NEW),
    Said("a header without an end on the port of ssh", SSH, (b"GET / HTTP/1.1\r\nx: y\r\n",), NEW),
    Said("a TLS hello on the port of ssh", SSH, (hello(),), NEW),
    Said("the beginning of a TLS hello on the port of ssh", SSH, (hello()[:40],), NEW),
    Said("junk on the port of ssh", SSH, (b"\0\1\2\3",), NEW),
    Said("what turns from ssh after two bytes", SSH, (b"SS", b"L!"), NEW),
    Said("a request for the name that was asked for", ANY, (request(), b"and more")),
    Said("such a request in pieces", ANY, each(request())),
    Said("a TLS hello for the name that was asked for", ANY, (hello(), b"and more")),
    Said("such a hello in three pieces", ANY, (hello()[:3], hello()[3:90], hello()[90:])),
    Said("a hello without a name", ANY, (hello(None),)),
    Said("any other bytes", ANY, (b"\0\1\2\3",)),
    Said("a banner", ANY, (BANNER,)),
    Said("what only looks like HTTP claims no name", ANY, (b"GET / HTTP/1.1\r\n:\r\n\r\n",)),
    Said("a request for another name", ANY, (request("evil.example"),), "evil.example"),
    Said("such a request in pieces", ANY, each(request("evil.example")), "evil.example"),
    Said("a TLS hello for another name", ANY, (hello("evil.example"),), "evil.example"),
    Said("a URI of another name than Host", ANY, (request(target="http://e.example/"),), "in the URI"),
    Said("a second Host", ANY, (request("site.example", "Host: e.example"),), "more than one Host"),
    Said("an absolute URI for another name", ANY, (b"GET http://e.example/ HTTP/1.1\r\n\r\n",), "e.example"),
]
SERVERS = [
    Said("a banner is ssh", SSH, (BANNER, b"more")),
    Said("a banner in pieces is ssh", SSH, each(BANNER)),
    Said("a server that says nothing has disproved nothing", SSH, ()),
    Said("a server that ends within its banner has disproved nothing", SSH, (b"SSH",)),
    Said("another greeting on the port of ssh", SSH, (b"220 mail.example ESMTP\r\n",), NEW),
    Said("one letter of it is enough", SSH, (b"2",), NEW),
    Said("what turns from ssh at the last letter", SSH, (b"SSH", b"!"), NEW),
    Said("where clients speak first a server says what it likes", Protocol.HTTP, (b"\0junk",)),
    Said("where nothing is known it says what it likes", ANY, (b"\0junk",)),
]


async def hear(case: Said, vet: Vet) -> tuple[bytes, str]:
    """What came through, and why it was cut."""
    near, far = pair()
    speaker, of = PlainChannel(far), entry(case.protocol)
    channel = vet(PlainChannel(near), of)

    async def speak() -> None:
        for piece in case.pieces:
            await speaker.write(piece)
            for _ in range(3):
                await asyncio.sleep(0)
        await speaker.write_eof()

    speaking = asyncio.create_task(speak())
    heard = b""
    try:
        heard = await read_all(channel)
    except Disproved as error:
        assert isinstance(error, NotAdmitted), "the relay takes it for what is not admitted"
        assert str(error) == of.cut_because
    finally:
        await speaking
        channel.abort()
        speaker.abort()
    return heard, of.cut_because


def expect(run: Run, case: Said, vet: Vet) -> None:
    async def main() -> None:
        heard, because = await hear(case, vet)
        assert case.disproved in because and bool(because) is bool(case.disproved)
        assert heard == (b"" if case.disproved else b"".join(case.pieces))

    run(main())


@pytest.mark.parametrize("case", CLIENTS, ids=str)
def test_what_a_client_says_first(run: Run, case: Said) -> None:
    expect(run, case, vetted_client)


@pytest.mark.parametrize("case", SERVERS, ids=str)
def test_what_a_server_says_first(run: Run, case: Said) -> None:
    expect(run, case, vetted_upstream)


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\nHost: si", hello()[:50], b"SS"], ids=["http", "tls", "ssh"]
)
def test_a_first_message_without_an_end_is_not_waited_for_for_ever(
    run: Run, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vetted, "TIME_LIMIT_S", 0.01)

    async def main() -> None:
        near, far = pair()
        channel = vetted_client(PlainChannel(near), entry(SSH if first == b"SS" else ANY))
        far.sendall(first)
        with pytest.raises(Disproved, match="no end"):
            await channel.read()
        channel.abort()
        far.close()

    run(main())


def test_only_what_is_first_is_looked_at_and_the_rest_is_the_channels_own(run: Run) -> None:
    async def main() -> None:
        near, far = pair()
        channel, other = vetted_client(PlainChannel(near), entry(SSH)), PlainChannel(far)
        await other.write(BANNER)
        assert await channel.read() == BANNER
        await other.write(request("evil.example"))
        assert await channel.read() == request("evil.example")
        channel.unread(b"again")
        assert await channel.read() == b"again"
        await channel.write(b"back")
        assert await other.read() == b"back"
        channel.guard(lambda: False)
        with pytest.raises(NotAdmitted):
            await channel.write(b"not any more")
        other.abort()

    run(main())


def test_both_directions_end_by_themselves(run: Run) -> None:
    async def main() -> None:
        near, far = pair()
        channel, other = vetted_upstream(PlainChannel(near), entry(SSH)), PlainChannel(far)
        await channel.write_eof()
        assert await other.read() == b""
        await other.write(BANNER)
        await other.write_eof()
        assert await read_all(channel) == BANNER
        await channel.close()
        await other.close()

    run(main())


def test_a_server_whose_words_nobody_vets_is_the_channel_itself() -> None:
    async def main() -> None:
        near, far = pair()
        channel = PlainChannel(near)
        assert vetted_upstream(channel, entry(Protocol.HTTP)) is channel
        channel.abort()
        far.close()

    asyncio.run(main())
