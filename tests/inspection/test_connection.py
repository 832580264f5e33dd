"""One inspected connection, between a program and a destination that records."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from inspected import (
    WEBSOCKET,
    Http2,
    Origin,
    World,
    inspected,
    masked,
    serve_http2,
    trusting,
    websocket_echo,
    whole_requests,
)
from loopback import LOOPS, Site, runner
from mitmproxy.proxy import server
from mitmproxy.proxy.layers.http import HttpStream, _http1

from proxy.certificates import make_authority
from proxy.inspection import connection
from proxy.inspection.heads import Destination
from proxy.policy import load

LIMIT = 100 * 1024
FREELY = b"""
policy: 1
name: freely
timezone: UTC
define: {zones: [corporate]}
guards: [{id: no-delete, match: {method: DELETE}, at_most: block}]
rules: [{id: site, match: {to: site.example}, verdict: tunnel}]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


# What is overridden, and what the overriding rests on. A new hash is a decision: read what has changed.
PINNED = {
    server.ConnectionHandler.open_connection: "5e0b3cbaf7a4030a",
    server.ConnectionHandler.handle_connection: "95c3f93e9824e527",
    server.ConnectionHandler.server_event: "a2b42657ebe8bf6d",
    HttpStream.start_request_stream: "46f03368a2a54362",
    HttpStream.state_wait_for_request_headers: "3706d5d5ce01dcd4",
    HttpStream.state_stream_request_body: "c98f7f715cef7cfa",
    HttpStream.state_consume_request_body: "45459c1bbd8bdb1a",
    HttpStream.state_wait_for_response_headers: "10e32e91b2948164",
    HttpStream.state_stream_response_body: "3fb6320300d3ddd5",
    HttpStream.passthrough: "a6df32aba1ae251a",
    _http1.Http1Server.read_headers: "3fe0945216bcf7bc",
}


def test_mitmproxy_is_the_one_that_was_read() -> None:
    found = {method: hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:16] for method in PINNED}
    assert found == PINNED


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_request_that_is_admitted(site: Site, tmp_path: Path, tls: bool, loop: str) -> None:
    async def main() -> None:
        async with inspected(site, tmp_path, Origin(whole_requests()), tls=tls) as world:
            heard = await world.say(world.request("GET", "/a?b=c", "Connection: close"))
            assert heard.startswith(b"HTTP/1.1 200 OK\r\n") and heard.endswith(b"fine\n"), heard
            await world.ended()
            assert world.verdicts() == [
                ("tunnel", "undecided", "GET /a"),
                ("tunnel", "site", "GET /a"),
            ]
            assert [end.why for end in world.ends()] == ["finished by both ends"]
            assert not world.table.open_flows()

    runner(loop)(main())


def test_a_refusal_is_a_page(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=True) as world:
            heard = await world.say(world.request("DELETE", "/a", "Accept: text/html"))
            assert heard.startswith(b"HTTP/1.1 403 Forbidden\r\n") and b"<!doctype html>" in heard
            assert b"nothing is deleted from here" in heard and b"f1.1" in heard
            assert not origin.heard
            assert world.verdicts() == [("block", "no-delete", "DELETE /a")]

    runner("asyncio")(main())


@pytest.mark.parametrize("http2", [False, True])
def test_a_refusal_of_a_head_has_no_body(site: Site, tmp_path: Path, http2: bool) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=True, http2=http2) as world:
            if http2:
                program = Http2(*await world.open("h2"))
                stream = program.ask(
                    authority=f"site.example:{world.port}", method="HEAD", path="/secret", end=True
                )
                await program.until_ended(stream)
                assert program.status == {stream: 403} and not program.body and not program.reset
                program.close()
            else:
                heard = await world.say(world.request("HEAD", "/secret", "Connection: close"))
                assert heard.startswith(b"HTTP/1.1 403") and heard.endswith(b"\r\n\r\n"), heard
            assert not origin.heard

    runner("asyncio")(main())


def test_each_request_of_a_connection_is_judged(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=True) as world:
            reader, writer = await world.open()
            for path in ("/one", "/two"):
                writer.write(world.request("GET", path))
                assert b"fine" in await world.read(reader, b"fine\n")
            writer.write(world.request("GET", "/secret/plan"))
            assert b"no-secrets" in await world.read(reader)
            writer.close()
            assert origin.everything.count(b"GET /") == 2 and b"secret" not in origin.everything

    runner("asyncio")(main())


def test_a_policy_that_is_replaced_counts_for_the_next_request(site: Site, tmp_path: Path) -> None:
    """Row L5: keep-alive."""

    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin) as world:
            reader, writer = await world.open()
            writer.write(world.request())
            assert b"fine" in await world.read(reader, b"fine\n")
            world.gate.policy = load(FREELY.replace(b"DELETE", b"GET"), "stricter.yaml")
            writer.write(world.request())
            assert b"403 Forbidden" in await world.read(reader)
            writer.close()
            assert origin.everything.count(b"GET /") == 1

    runner("asyncio")(main())


def test_a_lost_tunnel_cuts_an_idle_connection(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with inspected(site, tmp_path, Origin(whole_requests())) as world:
            reader, writer = await world.open()
            writer.write(world.request())
            await world.read(reader, b"fine\n")
            assert world.table.cut(lambda flow: flow.tunnel == "hq", "tunnel hq lost") == 1
            assert not (await world.read(reader)).replace(b"<reset>", b"")
            writer.close()
            await world.ended()

    runner("asyncio")(main())


def test_without_a_lease_nothing_goes_on(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin) as world:
            world.tunnel.clock.ns += 10**10
            heard = await world.say(world.request())
            assert b"503 Service Unavailable" in heard and b"is not proved" in heard
            assert not origin.heard

    runner("asyncio")(main())


def test_what_changes_while_it_is_dialled(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin) as world:

            async def replace() -> None:
                world.gate.policy = load(FREELY.replace(b"DELETE", b"GET"), "stricter.yaml")

            world.tunnel.holder.before = replace
            heard = await world.say(world.request())
            assert b"no longer admitted" in heard and not any(origin.heard), heard

    runner("asyncio")(main())


def test_nothing_goes_on_without_a_record(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin) as world:
            world.segment.bar("the disk is full")
            assert b"nothing can be recorded" in await world.say(world.request())
            assert not origin.heard

    runner("asyncio")(main())


# -- who is spoken to --------------------------------------------------------------------------------


def test_a_destination_that_is_not_verified_hears_nothing(site: Site, tmp_path: Path) -> None:
    async def main(**changes: Any) -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=True, **changes) as world:
            heard = await world.say(world.request())
            assert b"502 Bad Gateway" in heard or b"HTTP/1.1 502" in heard, heard
            assert not origin.everything and b"mitmproxy" not in heard

    other = make_authority("Other", now=datetime.now(UTC), days=5)
    runner("asyncio")(main(trusted=other))
    runner("asyncio")(main(shown="other.example"))


def test_another_name_in_tls(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with inspected(site, tmp_path, Origin(whole_requests()), tls=True) as world:
            world.name = "other.example"
            sock = world.enter(name="site.example")
            handler = world.handlers[-1]
            handler._hooks._destination = Destination("site.example", world.port, True)
            with pytest.raises(ConnectionError):
                await asyncio.open_connection(
                    sock=sock, ssl=trusting(world.ca), server_hostname="other.example"
                )
            await world.ended()
            assert handler.cut_because == "its tls_clienthello could not be judged (Improper)"

    runner("asyncio")(main())


async def byte_by_byte(program: socket.socket, gate: socket.socket) -> None:
    """What a program says first arrives in single bytes; the rest as it comes."""
    loop = asyncio.get_running_loop()

    async def carry(source: socket.socket, sink: socket.socket, single: int) -> None:
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(source, 65536):
                while data:
                    size = 1 if single > 0 else len(data)
                    await loop.sock_sendall(sink, data[:size])
                    data, single = data[size:], single - 1
            sink.shutdown(socket.SHUT_WR)

    with program, gate:
        program.setblocking(False)
        gate.setblocking(False)
        await asyncio.gather(carry(program, gate, 700), carry(gate, program, 0))


@pytest.mark.parametrize("named", [True, False], ids=["with a name", "without"])
def test_a_hello_in_single_bytes(site: Site, tmp_path: Path, named: bool) -> None:
    """Row I8: the name is that of the connection, whatever TLS says or leaves out, or it is cut."""

    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=True) as world:
            ours, theirs = socket.socketpair()
            carrying = asyncio.create_task(byte_by_byte(theirs, world.enter()))
            context = trusting(world.ca)
            context.check_hostname = named
            reader, writer = await asyncio.open_connection(
                sock=ours, ssl=context, server_hostname=world.name if named else ""
            )
            writer.write(world.request())
            assert b"fine" in await world.read(reader, b"fine\n")
            writer.write(
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512) + b"\r\n\r\n"
            )  # TLS in TLS
            assert b"improper" in await world.read(reader)
            writer.close()
            await carrying
            await world.ended()
            assert origin.everything.count(b"\r\n\r\n") == 1

    runner("asyncio")(main())


# -- bodies ------------------------------------------------------------------------------------------


def test_an_upload_that_declares_too_much_sends_no_byte(site: Site, tmp_path: Path) -> None:
    """Row I7. It is read to its end, so that the page can be read, and kept nowhere."""

    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=True) as world:
            fields = ("Content-Type: text/plain", f"Content-Length: {LIMIT + 1}", "Expect: 100-continue")
            heard = await world.say(world.request("POST", "/", *fields), b"x" * (LIMIT + 1))
            assert heard.startswith(b"HTTP/1.1 403") and b"small-uploads" in heard
            assert not origin.heard

    runner("asyncio")(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_an_upload_of_unknown_length_is_cut_at_the_byte(site: Site, tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin) as world:
            chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
            fields = ("Content-Type: multipart/form-data; boundary=q", "Transfer-Encoding: chunked")
            heard = await world.say(world.request("POST", "/", *fields), *[chunk] * 20, b"0\r\n\r\n")
            assert heard.startswith(b"HTTP/1.1 403") and b"small-uploads" in heard, heard
            await world.ended()
            assert origin.everything.partition(b"\r\n\r\n")[2].count(b"x") == LIMIT
            assert not origin.everything.endswith(b"0\r\n\r\n")
            (end,) = world.ends()
            assert end.bytes_up == LIMIT and "small-uploads" in end.why

    runner(loop)(main())


def test_an_upload_within_its_bounds(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=True) as world:
            fields = ("Content-Type: text/plain", f"Content-Length: {LIMIT}", "Connection: close")
            heard = await world.say(world.request("POST", "/", *fields), b"x" * LIMIT)
            assert heard.endswith(b"fine\n") and origin.everything.count(b"x") >= LIMIT

    runner("asyncio")(main())


@pytest.mark.parametrize("kind", ["Content-Type: application/zip", "X-Nothing: said"])
def test_media_types_of_uploads(site: Site, tmp_path: Path, kind: str) -> None:
    """A type that is refused, and none at all, which could be that one."""

    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin) as world:
            heard = await world.say(world.request("POST", "/", kind, "Content-Length: 3", body=b"abc"))
            assert b"no-archives" in heard and not origin.heard

    runner("asyncio")(main())


def test_a_download_that_is_refused_by_its_head(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(whole_requests(b"MZ" * 9, "Content-Type: application/x-program"))
        async with inspected(site, tmp_path, origin, tls=True) as world:
            heard = await world.say(world.request())
            assert b"no-programs" in heard and b"MZ" not in heard
            assert world.verdicts()[-1] == ("block", "no-programs", "GET /")

    runner("asyncio")(main())


def test_a_download_of_unknown_length_is_cut_at_the_byte(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
        origin = Origin(lambda heard: head + b"y" * (2 << 20) if heard.endswith(b"\r\n\r\n") else b"")
        async with inspected(site, tmp_path, origin) as world:
            heard = await world.say(world.request())
            assert heard.count(b"y") <= 1 << 20
            await world.ended()
            (end,) = world.ends()
            assert end.bytes_down == 1 << 20 and "small-downloads" in end.why
            assert world.verdicts()[-1][:2] == ("block", "small-downloads")

    runner("asyncio")(main())


# -- HTTP/2, gRPC, WebSocket -------------------------------------------------------------------------


def http2_origin() -> Origin:
    origin = Origin()

    async def serve(reader: Any, writer: Any) -> None:
        await serve_http2(reader, writer, origin.heard[-1])

    origin.serve = serve
    return origin


def test_streams_both_ways(site: Site, tmp_path: Path) -> None:
    """As gRPC does: an answer to the first message before the second is said, and trailers."""

    async def main() -> None:
        async with inspected(site, tmp_path, http2_origin(), tls=True, http2=True, policy=FREELY) as world:
            program = Http2(*await world.open("h2"))
            stream = program.ask(
                ("te", "trailers"), ("content-type", "application/grpc"), end=False, method="POST",
                authority=f"site.example:{world.port}",
            )  # fmt: skip
            for number in range(3):
                program.core.send_data(stream, b"message %d;" % number)
                await program.flush()
                async with asyncio.timeout(90):
                    while b"message %d;" % number not in program.body.get(stream, b""):
                        await program.step()
            program.core.end_stream(stream)
            await program.until_ended(stream)
            assert program.status[stream] == 200 and not program.reset
            program.close()

    runner("asyncio")(main())


async def upload_with_trailers(world: World, *trailers: tuple[str, str]) -> Http2:
    """A program that sends fields behind a body, and has heard what came of it."""
    program = Http2(*await world.open("h2"))
    fields = ("te", "trailers"), ("content-type", "text/plain")
    stream = program.ask(*fields, end=False, method="POST", authority=f"{world.name}:{world.port}")
    program.core.send_data(stream, b"a body;")
    program.core.send_headers(stream, trailers, end_stream=True)
    await program.until_ended(stream)
    program.close()
    return program


def test_trailers_of_a_request_go_on(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = http2_origin()
        async with inspected(site, tmp_path, origin, tls=True, http2=True) as world:
            program = await upload_with_trailers(world, ("digest", "sha-256=x"), ("x-count", "7"))
            assert program.status == {1: 200} and program.body == {1: b"a body;"}
            assert origin.everything.endswith(b"a body;behind digest: sha-256=x\nbehind x-count: 7\n")

    runner("asyncio")(main())


@pytest.mark.parametrize(
    "trailer",
    [("content-length", "3"), ("host", "other.example"), ("authorization", "x"), (":path", "/secret"),
     ("x", "y" * 70_000)],
    ids=["a length", "a host", "a login", "a path", "too much"],
)  # fmt: skip
def test_trailers_that_do_not_belong_there(site: Site, tmp_path: Path, trailer: tuple[str, str]) -> None:
    async def main() -> None:
        origin = http2_origin()
        async with inspected(site, tmp_path, origin, tls=True, http2=True) as world:
            program = await upload_with_trailers(world, ("digest", "sha-256=x"), trailer)
            assert program.reset or program.status.get(1) == 403, program.status
            await world.ended()
            assert b"behind" not in origin.everything

    runner("asyncio")(main())


def test_trailers_do_not_go_to_a_destination_of_http1(site: Site, tmp_path: Path) -> None:
    """Nor is one asked for any."""

    async def main() -> None:
        origin = Origin(lambda heard: b"")
        async with inspected(site, tmp_path, origin, tls=True, http2=True, origin_http2=False) as world:
            program = await upload_with_trailers(world, ("digest", "sha-256=x"))
            assert program.status == {1: 403} and b"trailers" in program.body[1]
            await world.ended()
            assert b"digest" not in origin.everything and b"te: " not in origin.everything.lower()
            assert not origin.everything.endswith(b"0\r\n\r\n")
            assert world.verdicts()[-1][:2] == ("block", "improper")

    runner("asyncio")(main())


def test_one_refused_stream_leaves_the_others(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = http2_origin()
        async with inspected(site, tmp_path, origin, tls=True, http2=True) as world:
            program = Http2(*await world.open("h2"))
            authority = f"site.example:{world.port}"
            streams = [program.ask(authority=authority, path=path) for path in ("/", "/secret", "/b")]
            await program.until_ended(*streams)
            assert [program.status[stream] for stream in streams] == [200, 403, 200]
            assert b"no-secrets" in program.body[streams[1]] and b"secret" not in origin.everything
            program.close()

    runner("asyncio")(main())


def test_http2_is_off_unless_it_is_wanted(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with inspected(site, tmp_path, Origin(whole_requests()), tls=True) as world:
            _, writer = await world.open("h2", "http/1.1")
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            writer.close()

    runner("asyncio")(main())


def test_a_program_that_opens_no_window_makes_nobody_hoard(site: Site, tmp_path: Path) -> None:
    """Row R2: the destination is held back."""

    async def main() -> None:
        sent = 0

        async def serve(reader: Any, writer: Any) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
            while True:
                writer.write(b"z" * 65536)
                await writer.drain()
                sent += 65536

        origin = Origin(serve=serve)
        async with inspected(
            site, tmp_path, origin, tls=True, http2=True, origin_http2=False, policy=FREELY
        ) as world:
            program = Http2(*await world.open("h2"))
            stream = program.ask(authority=f"site.example:{world.port}")
            await program.flush()
            handler = world.handlers[-1]
            before = -1
            while handler._hooks.http is None or not sent or sent != before:
                before = sent
                await asyncio.sleep(0.5)
            held = handler._hooks.http.held_bytes(for_client=True)
            assert 0 < held < 2 * connection.HELD_BYTES, held
            assert program.status.get(stream) is None
            program.close()

    runner("asyncio")(main())


def test_a_websocket(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(websocket_echo)
        async with inspected(site, tmp_path, origin, tls=True, policy=FREELY) as world:
            reader, writer = await world.open()
            writer.write(world.request("GET", "/chat", *WEBSOCKET))
            assert b"101 Switching" in await world.read(reader, b"\r\n\r\n")
            writer.write(masked(b"a question"))
            assert b"hello" in await world.read(reader, b"hello")
            assert b"permessage-deflate" not in origin.everything
            writer.close()
            await world.ended()
            (end,) = world.ends()
            assert end.bytes_up > 0 and end.bytes_down > 0

    runner("asyncio")(main())


def test_a_websocket_carries_what_no_head_declares(site: Site, tmp_path: Path) -> None:
    """Where a guard asks for the type of what is sent, a WebSocket could be any."""

    async def main() -> None:
        origin = Origin(websocket_echo)
        async with inspected(site, tmp_path, origin) as world:
            heard = await world.say(world.request("GET", "/chat", *WEBSOCKET))
            assert heard.startswith(b"HTTP/1.1 403") and not origin.heard

    runner("asyncio")(main())


def test_a_websocket_is_cut_at_the_byte(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        policy = FREELY.replace(b"method: DELETE", b'transfer: upload, size: ">1KiB"')
        origin = Origin(websocket_echo)
        async with inspected(site, tmp_path, origin, policy=policy) as world:
            reader, writer = await world.open()
            writer.write(world.request("GET", "/chat", *WEBSOCKET))
            await world.read(reader, b"\r\n\r\n")
            for _ in range(30):
                writer.write(masked(b"q" * 100))
            await world.read(reader)
            writer.close()
            await world.ended()
            assert len(origin.everything.partition(b"\r\n\r\n")[2]) <= 1024
            assert "no-delete" in world.ends()[0].why

    runner("asyncio")(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: wrong\r\n\r\n",
    ],
    ids=["another protocol", "an answer to another question"],
)
def test_a_destination_changes_to_nothing_that_was_not_asked_for(
    site: Site, tmp_path: Path, answer: bytes
) -> None:
    async def main() -> None:
        origin = Origin(lambda heard: answer if heard.endswith(b"\r\n\r\n") else b"")
        async with inspected(site, tmp_path, origin, policy=FREELY) as world:
            heard = await world.say(world.request("GET", "/", *WEBSOCKET), b"tunnelled")
            assert b"101" not in heard.partition(b"\r\n")[0]
            assert b"tunnelled" not in origin.everything

    runner("asyncio")(main())


# -- limits ------------------------------------------------------------------------------------------


def test_a_head_without_an_end(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row R1."""
    monkeypatch.setattr(connection, "HEAD_LIMIT_S", 0.2)

    async def main() -> None:
        async with inspected(site, tmp_path, Origin(whole_requests())) as world:
            reader, writer = await world.open()
            writer.write(b"GET / HTTP/1.1\r\n")
            assert (await world.read(reader)).replace(b"<reset>", b"") == b""
            writer.close()
            await world.ended()
            assert world.verdicts() == [("block", "no-request", None)]

    runner("asyncio")(main())


def test_a_large_upload_is_not_kept(site: Site, tmp_path: Path) -> None:
    """64 MiB go through; what the process holds meanwhile stays small."""

    async def main() -> None:
        heard = 0

        async def serve(reader: Any, writer: Any) -> None:
            nonlocal heard
            await reader.readuntil(b"\r\n\r\n")
            while heard < 64 << 20:
                heard += len(await reader.read(1 << 20))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 0\r\n\r\n")

        async with inspected(site, tmp_path, Origin(serve=serve), policy=FREELY) as world:
            reader, writer = await world.open()
            fields = ("Content-Type: text/plain", f"Content-Length: {64 << 20}")
            writer.write(world.request("POST", "/", *fields))
            most = 0
            for _ in range(64):
                writer.write(b"x" * (1 << 20))
                await writer.drain()
                most = max(most, *(stream._queued_bytes for stream in world.handlers[-1]._streams))
            assert b"200 OK" in await world.read(reader, b"\r\n\r\n")
            assert heard == 64 << 20 and most < 4 << 20, most
            writer.close()

    runner("uvloop")(main())
