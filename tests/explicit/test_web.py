"""Conversations with the HTTP proxy over real sockets, through a real tunnel, with what was written down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from corporate_end import echo
from explicit_world import Explicitly, basic, explicitly, password_lines, web
from first_words import hello, request
from loopback import Run, Site, runner

from proxy.channel import Channel, PlainChannel
from proxy.explicit import web as conversation
from proxy.flow import Protocol, Verdict
from proxy.policy import load

type Make = Callable[..., Any]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def lines() -> str:
    return password_lines()


@pytest.fixture
def run() -> Run:
    return runner("uvloop")  # the worker's


@pytest.fixture
def proxy(site: Site, tmp_path: Path) -> Make:
    return partial(explicitly, site, tmp_path, serve=web)


def get(port: int, path: str = "/", *more: str, host: str = "site.example", method: str = "GET") -> bytes:
    lines = [f"{method} http://{host}:{port}{path} HTTP/1.1", f"Host: {host}:{port}", *more, "", ""]
    return "\r\n".join(lines).encode()


def connect(port: int, *more: bytes, host: str = "site.example") -> bytes:
    target = f"{host}:{port}".encode()
    return b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\n" + b"".join(more) + b"\r\n"


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The head and the body of one response that has a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    )
    return head, await reader.readexactly(length)


# -- requests that are sent on -----------------------------------------------------------------------


def test_each_request_of_a_connection_is_a_flow_of_its_own(run: Run, proxy: Make) -> None:
    async def main() -> None:
        async with proxy() as there:
            reader, writer = await there.connect()
            for path in ("/one", "/two", "/three"):
                writer.write(get(there.port, path))
                head, body = await answer(reader)
                assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"connection: close" not in head
                assert body.startswith(f"GET {path} HTTP/1.1\r\nhost: site.example:".encode())
            writer.close()
            await there.quiet()
            verdicts = there.verdicts()
            assert [record.flow for record in verdicts] == ["f1", "f2", "f3"]
            assert {record.protocol for record in verdicts} == {Protocol.HTTP}
            assert {(record.enforcement, record.bubble) for record in verdicts} == {
                ("cooperative", "proxy@127.0.0.1")
            }
            assert [record.why for record in there.ends()] == ["finished by both ends"] * 3
            assert len(there.table) == 0

    run(main())


def test_the_second_request_is_judged_by_what_holds_then(run: Run, proxy: Make) -> None:
    """L5, I1: keep-alive carries no right from one request to the next, neither over time nor to a host."""

    async def main() -> None:
        async with proxy() as there:
            for changed in ("lease", "host"):
                reader, writer = await there.connect()
                writer.write(get(there.port))
                assert (await answer(reader))[0].startswith(b"HTTP/1.1 200 ")
                if changed == "lease":
                    there.tunnel.clock.ns += 10**10
                writer.write(get(there.port, host="site.example" if changed == "lease" else "other.example"))
                head, body = await answer(reader)
                expected = (b"HTTP/1.1 503 ", b"hq") if changed == "lease" else (b"HTTP/1.1 403 ", b"other")
                assert head.startswith(expected[0]) and expected[1] in body
                assert await reader.read() == b""
                writer.close()
                there.tunnel.lease()

    run(main())


def test_an_open_exchange_is_cut_when_its_tunnel_is_lost(run: Run, proxy: Make) -> None:
    async def drip(channel: Channel) -> None:
        await channel.read()
        await channel.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
        await channel.read()

    async def main() -> None:
        async with proxy(serve=drip) as there:
            reader, writer = await there.connect()
            writer.write(get(there.port))
            assert (await reader.readuntil(b"\r\n\r\nx")).startswith(b"HTTP/1.1 200")
            assert there.table.cut(lambda _: True, "the tunnel is lost") == 1
            with pytest.raises(ConnectionError):
                await reader.read()
            writer.close()
            await there.quiet()
            assert there.ends()[0].why == "cut by the gate: the tunnel is lost"

    run(main())


def test_bodies_are_carried_whole_both_ways(run: Run, proxy: Make) -> None:
    async def main() -> None:
        async with proxy() as there:
            reader, writer = await there.connect()
            data = bytes(range(256)) * 2000
            writer.write(get(there.port, "/", f"Content-Length: {len(data)}", method="POST") + data)
            assert (await answer(reader))[1].endswith(b"\r\n\r\n" + data)
            writer.write(get(there.port, "/", "Transfer-Encoding: chunked", method="PUT"))
            writer.write(b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n")
            assert (await answer(reader))[1].endswith(b"\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n")
            writer.write(get(there.port))
            assert (await answer(reader))[0].startswith(b"HTTP/1.1 200 ")
            writer.close()

    run(main())


@pytest.mark.parametrize(
    "body", [b"-5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello!\r\n", b"5;x\r\nhello\r\n0\r\n\r\n"]
)
def test_a_bad_chunk_ends_the_request_with_400(run: Run, proxy: Make, body: bytes) -> None:
    async def main() -> None:
        async with proxy() as there:
            heard = await there.say(get(there.port, "/", "Transfer-Encoding: chunked", method="PUT") + body)
            assert heard.startswith(b"HTTP/1.1 400 ") and b"chunk" in heard
            await there.quiet()
            assert "chunk" in there.ends()[0].why

    run(main())


def test_a_request_that_is_not_waited_for_is_never_parsed(run: Run, proxy: Make) -> None:
    """Pipelining: the first is answered, the connection closes, and the second was no request at all."""

    async def main() -> None:
        async with proxy() as there:
            heard = await there.say(get(there.port, "/one") + get(there.port, "/two"))
            assert heard.count(b"HTTP/1.1 200 OK\r\n") == 1 and b"GET /one" in heard and b"/two" not in heard
            assert b"connection: close\r\n" in heard
            await there.quiet()
            assert len(there.verdicts()) == 1

    run(main())


RESPONSES = {
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\nsmuggled": (b"abc", True),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n": (
        b"3\r\nabc\r\n0\r\n\r\n",
        True,
    ),
    b"HTTP/1.1 200 OK\r\n\r\nabc": (b"abc", False),
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 Fine\r\n\r\n": (b"", True),
}


@pytest.mark.parametrize("response", RESPONSES)
def test_a_response_ends_where_it_says(run: Run, proxy: Make, response: bytes) -> None:
    body, kept = RESPONSES[response]

    async def serve(channel: Channel) -> None:
        await channel.read()
        await channel.write(response)
        await channel.write_eof()
        while await channel.read():
            pass
        await channel.close()

    async def main() -> None:
        async with proxy(serve=serve) as there:
            reader, writer = await there.connect()
            writer.write(get(there.port))
            heard = await reader.readuntil(b"\r\n\r\n" + body)
            if b" 100 " in heard:
                heard = await reader.readuntil(b"\r\n\r\n")
            assert (b"connection: close" not in heard) is kept
            writer.write(get(there.port))
            again = await reader.readuntil(heard[-9:]) if kept else await reader.read()
            assert again.endswith(heard if kept else b"")
            writer.close()

    run(main())


@pytest.mark.parametrize(
    "response",
    [
        b"\x16\x03\x01 no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000,
        b"",
    ],
    ids=["no HTTP", "two lengths", "another protocol", "no end", "nothing"],
)
def test_what_is_no_response_is_told_as_502(run: Run, proxy: Make, response: bytes) -> None:
    async def serve(channel: Channel) -> None:
        await channel.read()
        await channel.write(response)
        await channel.write_eof()
        while await channel.read():
            pass

    async def main() -> None:
        async with proxy(serve=serve) as there:
            heard = await there.say(get(there.port))
            assert heard.startswith(b"HTTP/1.1 502 Bad Gateway\r\n") and (
                not response or response[:30] not in heard
            )
            await there.quiet()
            assert "finished" not in there.ends()[0].why

    run(main())


def test_a_destination_that_answers_early_and_goes_on_is_let_go(run: Run, proxy: Make) -> None:
    """A response before the request's end ends both; the client hears it whole."""

    async def serve(channel: Channel) -> None:
        await channel.read()
        await channel.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        while await channel.read():
            pass

    async def main() -> None:
        async with proxy(serve=serve) as there:
            heard = await there.say(
                get(there.port, "/", "Content-Length: 1000000", method="POST") + b"x" * 10
            )
            assert heard.startswith(b"HTTP/1.1 413 ") and heard.endswith(b"\r\n\r\nno")

    run(main())


# -- refusals ----------------------------------------------------------------------------------------


def test_a_body_waits_for_the_verdict_and_none_goes_upstream_before_a_denial(run: Run, proxy: Make) -> None:
    """I7."""

    async def main() -> None:
        async with proxy() as there:
            denied = (
                get(there.port, "/", "Content-Length: 6", host="other.example", method="POST") + b"secret"
            )
            assert (await there.say(denied)).startswith(b"HTTP/1.1 403 ")
            assert there.tunnel.holder.dials == 0

    run(main())


@pytest.mark.parametrize("port", [443, 1])
def test_after_a_refused_connect_nothing_is_parsed(run: Run, proxy: Make, port: int) -> None:
    """I6: the bytes behind it were meant for a tunnel."""

    async def main() -> None:
        async with proxy() as there:
            heard = await there.say(connect(port, host="other.example"), get(there.port), get(there.port))
            assert heard.startswith(b"HTTP/1.1 403 Forbidden\r\n") and heard.count(b"HTTP/1.1") == 1
            assert b"Connection: close\r\n" in heard and b"no rule matches" in heard
            await there.quiet()
            assert [record.verdict for record in there.verdicts()] == [Verdict.BLOCK]
            assert there.tunnel.holder.dials == 0

    run(main())


def test_whom_to_ask_is_whoever_owns_the_rule(run: Run, proxy: Make, lines: str) -> None:
    async def main() -> None:
        async with proxy(lines=lines, auth="passwords") as there:
            login = basic("bob").decode().strip()
            heard = await there.say(get(there.port, "/", login, "Accept: application/json"))
            assert b'"ask": "the site\'s desk"' in heard and b'"id": "closed"' in heard
            assert b'"time": "2026-01-05T12:00:00+00:00"' in heard and b'"reference": "f1"' in heard

    run(main())


def test_what_the_gateway_cannot_reach_is_502_and_what_is_not_proved_503(run: Run, proxy: Make) -> None:
    async def main() -> None:
        async with proxy() as there:
            assert (await there.say(connect(1))).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            assert (await there.say(connect(443, host="wan.example"))).startswith(b"HTTP/1.1 403 ")
            there.tunnel.clock.ns += 10**10
            assert (await there.say(connect(there.port))).startswith(b"HTTP/1.1 503 ")

    run(main())


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\0\0\0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET http://a/ HTTP/1.1\r\nX: " + b"y" * 40_000,
    ],
    ids=["TLS", "origin form", "HTTP/2", "too many fields", "no end"],
)
def test_what_is_no_request_is_answered_with_400(run: Run, proxy: Make, junk: bytes) -> None:
    async def main() -> None:
        async with proxy() as there:
            assert (await there.say(junk, get(there.port))).startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert there.tunnel.holder.dials == 0

    run(main())


def test_who_is_slow_is_told_and_who_says_nothing_is_not(
    run: Run, proxy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "REQUEST_LIMIT_S", 0.5)

    async def main() -> None:
        async with proxy() as there:
            assert (await there.say(b"GET http://a/")).startswith(b"HTTP/1.1 408 ")
            assert await there.say() == b""

    run(main())


# -- inspection --------------------------------------------------------------------------------------

WAITS = b"""
policy: 1
name: waits
define: {zones: [corporate], destinations: {site: [site.example]}}
rules: [{id: reading, match: {to: site, method: GET}, verdict: tunnel}]
"""


@pytest.mark.parametrize("there_is_one", [True, False])
def test_what_has_to_be_inspected_is_given_to_an_inspector(run: Run, proxy: Make, there_is_one: bool) -> None:
    """A request as the destination would read it, and nothing after it; a tunnel with what was said in it."""
    given: list[bytes] = []

    async def take(client: PlainChannel, *more: Any) -> None:
        sock, unread = client.detach()
        sock.close()
        given.append(more[1] + unread)

    async def main() -> None:
        async with proxy() as there:
            there.gate.policy = load(WAITS, "waits.policy.yaml")
            there.gate._inspects = True
            there.passage._hand_over = take if there_is_one else None
            plain = get(there.port, "/x", "Content-Length: 2", method="PUT") + b"ab"
            secret = request(f"site.example:{there.port}")
            heard = [await there.say(plain), await there.say(connect(there.port), secret, end=True)]
            if there_is_one:
                assert given == [
                    f"PUT /x HTTP/1.1\r\nhost: site.example:{there.port}\r\nconnection: close\r\n"
                    "content-length: 2\r\n\r\nab".encode(),
                    secret,
                ]
            else:
                assert heard[0].startswith(b"HTTP/1.1 403 ") and b"no inspector" in heard[0]
                assert b"HTTP/1.1 200 " in heard[1] and b"no inspector" in heard[1]

    run(main())


# -- logging in --------------------------------------------------------------------------------------


def test_who_does_not_log_in_is_asked(run: Run, proxy: Make, lines: str) -> None:
    async def main() -> None:
        async with proxy(lines=lines, auth="passwords") as there:
            for asked in (
                get(there.port),
                connect(there.port),
                connect(there.port, b"Proxy-Authorization: Digest x\r\n"),
                connect(there.port, b"Proxy-Authorization: Basic ####\r\n"),
                connect(there.port, basic(), basic()),
            ):
                heard = await there.say(asked, get(there.port))
                assert heard.startswith(b"HTTP/1.1 407 Proxy Authentication Required\r\n")
                assert b'Proxy-Authenticate: Basic realm="zonegate", charset="UTF-8"\r\n' in heard
                assert heard.count(b"HTTP/1.1") == 1
            await there.quiet()
            assert there.records() == []

    run(main())


def test_who_logs_in_is_the_user_of_the_flow_and_the_destination_never_hears_how(
    run: Run, proxy: Make, lines: str
) -> None:
    async def main() -> None:
        async with proxy(lines=lines, auth="passwords") as there:
            login = basic().decode().strip()
            heard = await there.say(get(there.port, "/", login, "Connection: close"))
            assert heard.startswith(b"HTTP/1.1 200 ") and b"uthorization" not in heard
            wrong = await there.say(connect(there.port, basic("alice", b"x")))
            assert wrong.startswith(b"HTTP/1.1 407 ") and b"is wrong" in wrong
            other = await there.say(connect(there.port, basic("mallory")))
            assert other.startswith(b"HTTP/1.1 403 ") and b"mallory may not enter zone corporate" in other
            found = [(record.user, record.verdict, record.because.id) for record in there.verdicts()]
            assert found == [
                ("alice", Verdict.TUNNEL, "staff"),
                ("alice", Verdict.BLOCK, "login"),
                ("mallory", Verdict.BLOCK, "not-admitted"),
            ]

    run(main())


def test_who_fails_too_often_is_told_to_wait_and_fills_no_records(run: Run, proxy: Make, lines: str) -> None:
    async def main() -> None:
        async with proxy(lines=lines, auth="passwords") as there:
            heard = [await there.say(connect(there.port, basic("alice", b"x"))) for _ in range(15)]
            assert [one.split(b" ")[1] for one in heard] == [b"407"] * 10 + [b"429"] * 5
            assert (await there.say(connect(there.port, basic()))).startswith(b"HTTP/1.1 429 ")
            assert len(there.verdicts()) == 10

    run(main())


# -- tunnels -----------------------------------------------------------------------------------------


async def tunnel(there: Explicitly, *first: bytes, **more: Any) -> tuple[Any, Any]:
    reader, writer = await there.connect()
    writer.write(connect(there.port, **more) + b"".join(first))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
    return reader, writer


def test_a_tunnel_carries_what_its_protocol_proves(run: Run, proxy: Make, lines: str) -> None:
    """Where a rule asks for the protocol the client is let through first, and dialled for afterwards."""

    async def main() -> None:
        async with proxy(serve=echo, lines=lines, auth="passwords") as there:
            for first, carried in ((hello(), True), (b"\0\1\2\3", False), (hello("evil.example"), False)):
                reader, writer = await there.connect()
                writer.write(connect(there.port, basic("web")))
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                asked = len(there.tunnel.end.lines("connect"))
                writer.write(first)
                writer.write_eof()
                heard = b""
                with suppress(ConnectionError):
                    heard = await reader.read()
                assert (heard == first) is carried
                assert (len(there.tunnel.end.lines("connect")) > asked) is carried
                writer.close()

    run(main())


@pytest.mark.parametrize(
    "first",
    [
        hello("evil.example"),
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: site.example\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ],
    ids=["SNI", "Host", "URI", "absolute form"],
)
def test_nothing_in_a_tunnel_names_another_destination(run: Run, proxy: Make, first: bytes) -> None:
    """I1, I2: also where no rule asked what is spoken; not a byte of it arrives."""
    arrived = b""

    async def serve(channel: Channel) -> None:
        nonlocal arrived
        while data := await channel.read():
            arrived += data

    async def main() -> None:
        async with proxy(serve=serve) as there:
            reader, writer = await tunnel(there)
            writer.write(first)
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            await there.quiet()
            assert arrived == b""
            assert "claims to speak" in there.ends()[0].why or "names one host" in there.ends()[0].why

    run(main())


def test_what_comes_with_a_connect_is_the_tunnels(run: Run, proxy: Make) -> None:
    async def main() -> None:
        async with proxy(serve=echo) as there:
            reader, writer = await tunnel(there, b"\0early")
            assert await reader.readexactly(6) == b"\0early"
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()

    run(main())
