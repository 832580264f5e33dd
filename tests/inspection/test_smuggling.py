"""Row I5 and its neighbours: what two readers could read in two ways reaches no origin.

The origin is raw: it keeps bytes. Whatever is sent, each request line that it hears is one that was judged.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from inspected import Http2, Origin, World, inspected, whole_requests
from loopback import Site, runner

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@dataclass(frozen=True, slots=True)
class Case:
    """What a program writes; HOST stands for the right one. At most `judged` requests of it may go on."""

    id: str
    raw: bytes
    judged: int = 0


def post(fields: bytes, body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Type: text/plain\r\n" + fields + b"\r\n" + body


def get(line: bytes = b"GET / HTTP/1.1", fields: bytes = b"Host: HOST\r\n") -> bytes:
    return line + b"\r\n" + fields + b"\r\n"


H2C = b"Host: HOST\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"
CL, TE = b"Content-Length: %d\r\n", b"Transfer-Encoding: chunked\r\n"
CASES = (
    Case("control: a plain request", get(), 1),
    Case("control: a body with a length", post(CL % 3, b"abc"), 1),
    Case("control: a chunked body", post(TE, b"3\r\nabc\r\n0\r\n\r\n"), 1),
    Case("control: two requests in one piece", get() + get(b"GET /two HTTP/1.1"), 2),
    Case("CL.TE", post(CL % (5 + len(SMUGGLED)) + TE, b"0\r\n\r\n" + SMUGGLED)),
    Case("TE.CL", post(TE + CL % 4, b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED))),
    Case("two lengths", post(CL % 0 + CL % len(SMUGGLED), SMUGGLED)),
    Case("two equal lengths", post(CL % 3 + CL % 3, b"abc")),
    Case("a list of lengths", post(b"Content-Length: 3, 3\r\n", b"abc")),
    Case("a length with a sign", post(b"Content-Length: +3\r\n", b"abc")),
    Case("a length with a leading zero", post(b"Content-Length: 03\r\n", b"abc")),
    Case("a negative length", post(b"Content-Length: -1\r\n", SMUGGLED)),
    Case("a length in hexadecimal", post(b"Content-Length: 0x3\r\n", b"abc")),
    Case("a length before a space", post(b"Content-Length : 3\r\n", b"abc")),
    Case("TE twice", post(TE + TE, b"0\r\n\r\n" + SMUGGLED)),
    Case("TE of another coding", post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n" + SMUGGLED)),
    Case("TE identity", post(b"Transfer-Encoding: identity\r\n" + CL % 3, b"abc" + SMUGGLED)),
    Case("TE with a trailing comma", post(b"Transfer-Encoding: chunked,\r\n", b"0\r\n\r\n" + SMUGGLED)),
    Case("TE with a tab", post(b"Transfer-Encoding:\tchunked\x0b\r\n", b"0\r\n\r\n" + SMUGGLED)),
    Case("TE before a space", post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n" + SMUGGLED)),
    Case("TE of a coding like it", post(b"Transfer-Encoding: xchunked\r\n" + CL % 3, b"abc" + SMUGGLED)),
    Case("TE in quotes", post(b'Transfer-Encoding: "chunked"\r\n' + CL % 3, b"abc" + SMUGGLED)),
    Case("TE in capitals, and a length", post(b"TRANSFER-ENCODING: CHUNKED\r\n" + CL % 3, b"0\r\n\r\n")),
    Case("TE behind a form feed", post(b"Transfer-Encoding:\x0cchunked\r\n" + CL % 3, b"abc" + SMUGGLED)),
    Case("TE folded", post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n" + SMUGGLED)),
    Case("TE of HTTP/1.0", b"POST / HTTP/1.0\r\nHost: HOST\r\n" + TE + b"\r\n0\r\n\r\n" + SMUGGLED),
    Case("a chunk length with a sign", post(TE, b"+3\r\nabc\r\n0\r\n\r\n"), 1),
    Case("a chunk length with 0x", post(TE, b"0x3\r\nabc\r\n0\r\n\r\n"), 1),
    Case("a chunk longer than it says", post(TE, b"3\r\nabcdef\r\n0\r\n\r\n" + SMUGGLED), 1),
    Case("a chunk ended by a line feed", post(TE, b"3\nabc\n0\n\n" + SMUGGLED), 1),
    Case("a chunk extension with a line feed", post(TE, b"3;a\nb\r\nabc\r\n0\r\n\r\n" + SMUGGLED), 1),
    Case("a chunk without its end", post(TE, b"3\r\nabc0\r\n\r\n" + SMUGGLED), 1),
    Case("a chunk ended by a carriage return", post(TE, b"3\rabc\r0\r\r" + SMUGGLED), 1),
    Case("a chunk length behind spaces", post(TE, b"  3\r\nabc\r\n0\r\n\r\n"), 1),
    Case("a chunk length that is negative", post(TE, b"-3\r\nabc\r\n0\r\n\r\n" + SMUGGLED), 1),
    Case("a last chunk without its end", post(TE, b"3\r\nabc\r\n0\r\n" + SMUGGLED), 1),
    Case("a huge chunk length", post(TE, b"fffffffffffffffffffffff\r\nabc" + SMUGGLED), 1),
    Case("trailers", post(TE, b"3\r\nabc\r\n0\r\nHost: other.example\r\n\r\n" + SMUGGLED), 1),
    Case("a folded field", get(fields=b"Host: HOST\r\nX-A: b\r\n GET /smuggled HTTP/1.1\r\n")),
    Case("a first line that is folded", get(fields=b" X: y\r\nHost: HOST\r\n")),
    Case("lines that end in a line feed", b"GET / HTTP/1.1\nHost: HOST\n\n" + SMUGGLED),
    Case("one line that ends in a line feed", get(fields=b"Host: HOST\r\nX: y\nGET /smuggled\r\n")),
    Case("a carriage return in a value", get(fields=b"Host: HOST\r\nX: y\rGET /smuggled\r\n")),
    Case("a NUL in a value", get(fields=b"Host: HOST\r\nX: y\0z\r\n")),
    Case("a field without a name", get(fields=b"Host: HOST\r\n: smuggled\r\n")),
    Case("a field without a colon", get(fields=b"Host: HOST\r\nsmuggled\r\n")),
    Case("Host twice", get(fields=b"Host: HOST\r\nHost: other.example\r\n")),
    Case("a folded Host", get(fields=b"Host:\r\n HOST\r\n")),
    Case("a Host behind another line", get(fields=b"X: y\r\n\tHost: other.example\r\nHost: HOST\r\n")),
    Case("a Host in two spellings", get(fields=b"Host: HOST\r\nhOST : other.example\r\n")),
    Case("a list of Hosts", get(fields=b"Host: HOST, other.example\r\n")),
    Case("Host twice, the same", get(fields=b"Host: HOST\r\nhost: HOST\r\n")),
    Case("another Host", get(fields=b"Host: other.example\r\n")),
    Case("another port", get(fields=b"Host: site.example:1\r\n")),
    Case("no Host", get(fields=b"X: y\r\n")),
    Case("a Host with userinfo", get(fields=b"Host: a@HOST\r\n")),
    Case("a Host with a path", get(fields=b"Host: HOST/smuggled\r\n")),
    Case("a foreign absolute form", get(b"GET http://other.example/smuggled HTTP/1.1")),
    Case("an absolute form that Host belies", get(b"GET http://HOST/ HTTP/1.1", b"Host: other.example\r\n")),
    Case("an absolute form that agrees", get(b"GET http://HOST/ HTTP/1.1"), 1),
    Case("a target with a space", get(b"GET /a /smuggled HTTP/1.1")),
    Case("a target with two spaces before it", get(b"GET  / HTTP/1.1")),
    Case("a target that is no path", get(b"GET smuggled HTTP/1.1")),
    Case("a method in lower case", get(b"get / HTTP/1.1")),
    Case("a method with a colon", get(b"GET: / HTTP/1.1")),
    Case("CONNECT, then a request", get(b"CONNECT HOST HTTP/1.1") + SMUGGLED),
    Case("HTTP/2 by prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    Case("HTTP/0.9", b"GET /smuggled\r\n\r\n"),
    Case("HTTP/9.9", get(b"GET / HTTP/9.9")),
    Case("Upgrade: h2c", get(fields=H2C), 1),
    Case("a Connection that takes Host along", get(fields=b"Host: HOST\r\nConnection: Host\r\n")),
    Case("a Connection that takes a length along", post(CL % 3 + b"Connection: content-length\r\n", b"abc")),
    Case("an Expect that nobody knows", post(CL % 3 + b"Expect: smuggled\r\n", b"abc")),
    Case("5,000 fields", get(fields=b"Host: HOST\r\n" + b"X: y\r\n" * 5000)),
    Case("a field of 1 MiB", get(fields=b"Host: HOST\r\nX: " + b"y" * (1 << 20) + b"\r\n")),
)  # fmt: skip


def heard_requests(world: World) -> int:
    return sum(bytes(heard).count(b" HTTP/1.") for heard in world.origin.heard)


def test_corpus(site: Site, tmp_path: Path) -> None:
    """Each case on a connection of its own, and an origin that hears nothing but what was judged."""

    async def main() -> None:
        origin = Origin()
        async with inspected(site, tmp_path, origin) as world:
            for case in CASES:
                origin.heard.clear()
                origin.answer = whole_requests()
                before = world.admitted()
                raw = case.raw.replace(b"HOST", f"site.example:{world.port}".encode())
                reader, writer = await world.open()
                with contextlib.suppress(ConnectionError):
                    writer.write(raw)
                    await writer.drain()
                await world.read(reader, b"fine\n", max(1, case.judged))
                writer.close()
                await world.ended()
                told = f"{case.id}: {origin.everything!r}"
                assert heard_requests(world) <= case.judged, told
                if case.id.startswith("control"):
                    assert heard_requests(world) == case.judged, told
                assert b"smuggled" not in origin.everything.replace(b"Expect: smuggled", b""), told
                assert b"h2c" not in origin.everything.lower(), told
                assert case.judged or world.admitted() == before, told

    runner("asyncio")(main())


@dataclass(frozen=True, slots=True)
class Case2:
    """A request of HTTP/2, in pseudo-headers and fields."""

    id: str
    pseudo: dict[str, str]
    fields: tuple[tuple[str, str], ...] = ()
    judged: int = 0
    body: bytes | None = None


POST = {"method": "POST"}
KIND = ("content-type", "text/plain")
CASES2 = (
    Case2("control", {}, judged=1),
    Case2("another authority", {"authority": "other.example"}),
    Case2("no authority and no host", {"authority": ""}),
    Case2("a host that belies the authority", {}, (("host", "other.example"),)),
    Case2("a path with a line", {"path": "/ HTTP/1.1\r\nHost: x\r\n\r\nGET /smuggled"}),
    Case2("a path with a space", {"path": "/a /smuggled"}),
    Case2("a path that is none", {"path": "smuggled"}),
    Case2("an absolute path", {"path": "http://other.example/smuggled"}),
    Case2("a method with a line", {"method": "GET /smuggled HTTP/1.1\r\nX: y"}),
    Case2("CONNECT", {"method": "CONNECT"}),
    Case2("another scheme", {"scheme": "ftp"}),
    Case2("a value with a line", {}, (("x", "y\r\nsmuggled: z"),)),
    Case2("a value with a NUL", {}, (("x", "y\0smuggled"),)),
    Case2("a name with a colon", {}, (("x:smuggled", "z"),)),
    Case2("a name in capitals", {}, (("X-Smuggled", "z"),)),
    Case2("a name with a line", {}, (("x\r\nsmuggled", "z"),)),
    Case2("Transfer-Encoding", {}, (("transfer-encoding", "chunked"),)),
    Case2("Connection", {}, (("connection", "smuggled"),)),
    Case2("a length without a body", {}, (("content-length", "5"),)),
    Case2("a length that is too short", POST, (KIND, ("content-length", "3")), 1, b"abc" + SMUGGLED),
    Case2("a length that is too long", POST, (KIND, ("content-length", "99")), 1, b"abc"),
    Case2(
        "two lengths", POST, (KIND, ("content-length", "3"), ("content-length", "44")), 0, b"abc" + SMUGGLED
    ),
    Case2("a length in hexadecimal", POST, (KIND, ("content-length", "0x3")), 0, b"abc" + SMUGGLED),
    Case2(
        "Transfer-Encoding and a body",
        POST,
        (KIND, ("transfer-encoding", "chunked")),
        0,
        b"0\r\n\r\n" + SMUGGLED,
    ),
    Case2("a path that is empty", {"path": ""}),
    Case2("a path twice", {}, ((":path", "/smuggled"),)),
    Case2("an authority twice", {}, ((":authority", "other.example"),)),
    Case2("an authority with a user", {"authority": "a@HOST"}),
    Case2("a Host twice", {}, (("host", "HOST"), ("host", "other.example"))),
    Case2("Upgrade", {}, (("upgrade", "smuggled"),)),
    Case2("Keep-Alive", {}, (("keep-alive", "smuggled"),)),
    Case2("a pseudo-header after a field", {}, (("x", "y"), (":path", "/smuggled"))),
    Case2("a pseudo-header that nobody knows", {}, ((":smuggled", "y"),)),
    Case2("extended CONNECT", {"method": "CONNECT", "protocol": "websocket"}),
)


def test_corpus_of_http2(site: Site, tmp_path: Path) -> None:
    """HTTP/2 that becomes HTTP/1 at the origin: no field of it becomes a line."""

    async def main() -> None:
        origin = Origin()
        async with inspected(site, tmp_path, origin, tls=True, http2=True, origin_http2=False) as world:
            for case in CASES2:
                origin.heard.clear()
                origin.answer = whole_requests()
                before = world.admitted()
                program = Http2(*await world.open("h2"))
                host = f"site.example:{world.port}"
                pseudo = {"authority": "HOST", **case.pseudo}
                if not pseudo["authority"]:
                    del pseudo["authority"]
                named = {key: value.replace("HOST", host) for key, value in pseudo.items()}
                fields = [(key, value.replace("HOST", host)) for key, value in case.fields]
                stream = program.ask(*fields, end=case.body is None, **named)
                if case.body is not None:
                    program.core.send_data(stream, case.body, end_stream=True)
                await program.until_ended(stream)
                program.close()
                await world.ended()
                told = f"{case.id}: {origin.everything!r} {program.status}"
                assert heard_requests(world) <= case.judged, told
                if case.id.startswith("control"):
                    assert heard_requests(world) == case.judged, told
                assert b"smuggled" not in origin.everything, told
                assert case.judged or world.admitted() == before, told

    runner("asyncio")(main())


def test_a_body_of_http2_has_a_frame_in_http1(site: Site, tmp_path: Path) -> None:
    """Without one the origin would read it as a request."""

    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=True, http2=True, origin_http2=False) as world:
            program = Http2(*await world.open("h2"))
            stream = program.ask(
                ("content-type", "text/plain"),
                end=False,
                method="POST",
                authority=f"site.example:{world.port}",
            )
            program.core.send_data(stream, SMUGGLED, end_stream=True)
            await program.until_ended(stream)
            assert program.status == {stream: 200}, program.body
            head, _, body = origin.everything.partition(b"\r\n\r\n")
            assert b"transfer-encoding: chunked" in head.lower()
            assert body == b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
            program.close()

    runner("asyncio")(main())
