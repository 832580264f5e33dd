"""CONNECT and the probe against gateways that answer well, badly, slowly and never."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import LOOPS, Run, pair, read_all, runner

from proxy.channel import (
    Aborted,
    ConnectFailed,
    ConnectRefused,
    PlainChannel,
    connect_through,
    probe,
)
from proxy.channel.connect import authority
from proxy.channel.head import LIMIT_BYTES, BadHead, Head, parse_head, read_head


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


def test_what_follows_the_blank_line_is_the_tunnel(run: Run) -> None:
    async def main() -> None:
        client, gateway = map(PlainChannel, pair())
        connecting = asyncio.create_task(connect_through(client, "git.corp.example", 22, 90))
        head = await read_head(gateway)
        assert head == Head("CONNECT git.corp.example:22 HTTP/1.1", (("host", "git.corp.example:22"),))
        await gateway.write(b"HTTP/1.1 200 Connection established\r\ncontent-length: 3\r\n\r\nSSH-2.0\r\n")
        await connecting
        assert await client.read() == b"SSH-2.0\r\n"
        await client.write(b"me too")
        assert await gateway.read() == b"me too"
        client.abort()
        gateway.abort()

    run(main())


@dataclass(frozen=True)
class Reply:
    id: str
    sent: bytes
    says: str
    status: int = 0
    because: str = ""


REPLIES = (
    Reply(
        "a refusal with its reason",
        b"HTTP/1.1 403 Forbidden\r\nzonegate-because: not in the allow-list\r\n\r\nno\n",
        "answered 403: not in the allow-list",
        403,
        "not in the allow-list",
    ),
    Reply("a refusal without one", b"HTTP/1.0 502 \r\n\r\n", "answered 502", 502),
    Reply("a redirect is no tunnel", b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", "answered 302", 302),
    Reply("an interim answer is no tunnel", b"HTTP/1.1 100 Continue\r\n\r\n", "answered 100", 100),
    Reply(
        "a reason with controls is made safe",
        b"HTTP/1.1 403 no\r\nzonegate-because: a\xe9\x9bb\tc\r\n\r\n",
        "answered 403",
        403,
        "aé?b?c",
    ),
    Reply("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "status line is malformed"),
    Reply("no version", b"200 OK\r\n\r\n", "status line is malformed"),
    Reply("HTTP/2", b"HTTP/2 200\r\n\r\n", "status line is malformed"),
    Reply("a status of four digits", b"HTTP/1.1 2000 OK\r\n\r\n", "status line is malformed"),
    Reply("a folded field", b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", "field is malformed"),
    Reply("a bare line feed", b"HTTP/1.1 200 OK\r\na: b\nc: d\r\n\r\n", "field is malformed"),
    Reply("a NUL", b"HTTP/1.1 200 OK\r\na: \x00\r\n\r\n", "field is malformed"),
    Reply("a space before the colon", b"HTTP/1.1 200 OK\r\na : b\r\n\r\n", "field is malformed"),
    Reply("too many fields", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 65 + b"\r\n", "more than 64 fields"),
    Reply("a long head", b"HTTP/1.1 200 OK\r\na: " + b"x" * LIMIT_BYTES + b"\r\n\r\n", "longer than 8192"),
    Reply("a head without an end", b"x" * 20_000, "longer than 8192"),
    Reply("an end within the head", b"HTTP/1.1 200 OK\r\n", "ended within the head"),
    Reply("an end at once", b"", "ended within the head"),
)


@pytest.mark.parametrize("case", REPLIES, ids=lambda case: case.id)
def test_answers_that_are_no_tunnel(run: Run, case: Reply) -> None:
    async def main() -> None:
        client, gateway = map(PlainChannel, pair())
        await gateway.write(case.sent)
        await gateway.write_eof()
        with pytest.raises(ConnectFailed, match=case.says) as raised:
            await connect_through(client, "www.example", 443, 90)
        if case.status:
            assert isinstance(raised.value, ConnectRefused)
            assert (raised.value.status, raised.value.because) == (case.status, case.because)
        with pytest.raises(Aborted):
            await client.read()
        gateway.abort()

    run(main())


def test_a_gateway_that_resets_or_never_answers(run: Run) -> None:
    async def main() -> None:
        client, gateway = map(PlainChannel, pair())
        with pytest.raises(ConnectFailed, match=r"did not answer within 0\.01 s"):
            await connect_through(client, "www.example", 443, 0.01)
        gateway.abort()
        client, gateway = map(PlainChannel, pair())
        gateway.abort()
        with pytest.raises(ConnectFailed, match="ended the connection"):
            await connect_through(client, "www.example", 443, 90)

    run(main())


@pytest.mark.parametrize(
    "host",
    ["a b", "a\r\nx: y", "Example.com", "example.com.", "127.1", "0x7f.0.0.1", "fe80::1%eth0", "", "@"],
)
def test_a_host_that_no_request_may_contain_is_never_sent(run: Run, host: str) -> None:
    async def main() -> None:
        client, gateway = map(PlainChannel, pair())
        with pytest.raises(ValueError, match=r"write|name"):
            await connect_through(client, host, 443, 90)
        with pytest.raises(ConnectionError):
            await read_all(gateway)

    run(main())


def test_authority() -> None:
    assert authority("www.example", 443) == "www.example:443"
    assert authority(ip_address("192.0.2.1"), 22) == "192.0.2.1:22"
    assert authority("2001:db8::1", 65535) == "[2001:db8::1]:65535"
    for port in (0, 65536, -1):
        with pytest.raises(ValueError, match="port"):
            authority("www.example", port)


def test_the_probe_keeps_the_connection_for_the_next(run: Run) -> None:
    async def main() -> None:
        client, gateway = map(PlainChannel, pair())
        for _ in range(3):
            asking = asyncio.create_task(probe(client, 90))
            assert (await read_head(gateway)).start == "OPTIONS * HTTP/1.1"
            await gateway.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            assert await asking is True
        client.abort()
        gateway.abort()

    run(main())


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 405 No\r\ncontent-length: 2\r\n\r\nno", b"HTTP/1.1 204 x\r\nConnection: close\r\n\r\n"],
)
def test_another_gateway_s_answer_is_a_sign_of_life_once(run: Run, answer: bytes) -> None:
    async def main() -> None:
        client, gateway = map(PlainChannel, pair())
        await gateway.write(answer)
        assert await probe(client, 90) is False
        with pytest.raises(Aborted):
            await client.read()
        gateway.abort()

    run(main())


def test_a_probe_without_an_answer_fails(run: Run) -> None:
    async def main() -> None:
        client, gateway = map(PlainChannel, pair())
        with pytest.raises(ConnectFailed):
            await probe(client, 0.01)
        gateway.abort()

    run(main())


@given(st.binary(max_size=400))
def test_a_head_is_parsed_or_refused(junk: bytes) -> None:
    try:
        head = parse_head(junk)
    except BadHead:
        return
    assert head.start.isascii()
    assert all("\n" not in value and "\r" not in value for _, value in head.fields)


@pytest.mark.parametrize("split", range(1, 45))
def test_a_head_may_arrive_in_any_two_pieces(split: int) -> None:
    async def main() -> None:
        message = b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\nthe rest....."
        client, gateway = map(PlainChannel, pair())
        reading = asyncio.create_task(read_head(gateway))
        await client.write(message[:split])
        await asyncio.sleep(0)
        await client.write(message[split:])
        await client.write_eof()
        assert (await reading).fields == (("host", "a"),)
        assert await read_all(gateway) == b"the rest....."
        client.abort()
        gateway.abort()

    asyncio.run(main())
