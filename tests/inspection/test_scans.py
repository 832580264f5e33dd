"""What is scanned on its way through an inspected connection, and how a hit ends it."""

from __future__ import annotations

import base64
import gzip
import json
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from inspected import WEBSOCKET, Http2, Origin, inspected, masked, serve_http2, websocket_echo, whole_requests
from loopback import Site, runner

from proxy.policy import load
from proxy.rejudging import lost_now

CARD = b"4111111111111111"
POLICY = b"""
policy: 1
name: scans
define:
  zones: [corporate]
  patterns: {projects: {words: [bluebird]}}
  destinations:
    site: {to: site.example, scan: {block: [card-numbers], report: [projects]}}
rules: [{id: site, match: {to: site}, verdict: tunnel}]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


CHUNKED, GZIP = "Transfer-Encoding: chunked", "Content-Encoding: gzip"
FORM = "Content-Type: application/x-www-form-urlencoded"
UPLOADS = [
    ("a body with its length", ("Content-Length: 28",), (b"here is " + CARD + b" now",)),
    ("a body that ends in it", ("Content-Length: 22",), (b"it is ", CARD)),
    ("chunks that cut it", (CHUNKED,), (chunked(b"x 4111", b"11111111", b"1111", b" y"),)),
    ("a body in gzip", (GZIP, CHUNKED), (chunked(gzip.compress(CARD)),)),
    ("a coding that cannot be read", ("Content-Encoding: lzma", CHUNKED), (chunked(b"abc"),)),
    ("messages of gRPC in a coding", ("grpc-encoding: gzip", CHUNKED), (chunked(b"abc"),)),
    ("a charset that cannot be read", ("Content-Type: text/plain; charset=utf-7", CHUNKED), (chunked(b"a"),)),
    ("JSON with a file in base64", ("Content-Type: application/json", CHUNKED),
     (chunked(json.dumps({"file": base64.b64encode(b"it is " + CARD).decode()}).encode()),)),
    ("JSON in pieces that cut its base64", ("Content-Type: application/json", CHUNKED),
     (chunked(b'{"file": "NDExMTEx', b"MTExMTExMTExMQ=", b'="}'),)),
    ("a part of a multipart body in base64", ("Content-Type: multipart/form-data; boundary=b", CHUNKED),
     (chunked(b"--b\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(CARD) + b"--b--"),)),
    ("a form", (FORM, "Content-Length: 23"), (b"c=%34111+1111+1111+1111",)),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "pieces"), [row[1:] for row in UPLOADS], ids=[row[0] for row in UPLOADS])
def test_an_upload_that_holds_it_is_cut_and_shows_why(
    site: Site, tmp_path: Path, fields: tuple[str, ...], pieces: tuple[bytes, ...]
) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=True, policy=POLICY) as world:
            heard = await world.say(world.request("POST", "/up", *fields), *pieces)
            assert heard.startswith(b"HTTP/1.1 403 Forbidden\r\n") and b"scan" in heard, heard
            assert b"fine" not in heard
            await world.ended()
            assert CARD not in origin.everything and b"NDExMTExMTExMTExMTExMQ" not in origin.everything
            assert not origin.everything.endswith(b"0\r\n\r\n")
            assert world.verdicts()[-1][:2] == ("block", "scan")
            assert CARD not in world.file.read_bytes()

    runner("asyncio")(main())


@pytest.mark.parametrize(
    "fields_and_body",
    [
        (("Content-Length: 5",), b"hello"),
        ((CHUNKED,), chunked(b"about bluebird", b" and 4111111111111112")),
        ((GZIP, CHUNKED), chunked(gzip.compress(b"bluebird " * 99))),
        (("Content-Length: 17",), CARD + b"9"),
    ],
    ids=["little", "chunks", "gzip", "a number that goes on"],
)
def test_what_holds_nothing_goes_unchanged(
    site: Site, tmp_path: Path, fields_and_body: tuple[tuple[str, ...], bytes]
) -> None:
    fields, body = fields_and_body

    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=True, policy=POLICY) as world:
            heard = await world.say(world.request("POST", "/up", *fields, "Connection: close", body=body))
            assert b"200 OK" in heard, heard
            await world.ended()
            plain = body if "Transfer" not in str(fields) else b"".join(body.split(b"\r\n")[1::2])
            sent = origin.everything.partition(b"\r\n\r\n")[2]
            assert plain in (sent, b"".join(sent.split(b"\r\n")[1::2]))
            told = "found and let go: projects" in world.ends()[0].why
            assert told is ("bluebird" in str(body) or "gzip" in str(fields))

    runner("asyncio")(main())


def test_a_target_that_holds_it_is_refused_and_not_written_down(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, policy=POLICY) as world:
            for target in (f"/{CARD.decode()}", "/?n=4111+1111+1111+1111"):
                heard = await world.say(world.request("GET", target))
                assert heard.startswith(b"HTTP/1.1 403"), heard
            assert not origin.heard
            assert world.verdicts()[-1] == ("block", "scan", "GET")
            assert CARD not in world.file.read_bytes()

    runner("asyncio")(main())


@pytest.mark.parametrize("field", ["X-Note", "Cookie", "Authorization"])
def test_a_header_field_that_holds_it_is_refused(site: Site, tmp_path: Path, field: str) -> None:
    async def main() -> None:
        origin = Origin(whole_requests())
        async with inspected(site, tmp_path, origin, tls=True, policy=POLICY) as world:
            heard = await world.say(world.request("GET", "/a", f"{field}: a {CARD.decode()}"))
            assert heard.startswith(b"HTTP/1.1 403") and not origin.heard
            assert world.verdicts()[-1] == ("block", "scan", "GET")
            heard = await world.say(world.request("GET", "/a", f"{field}: bluebird", "Connection: close"))
            assert b"200 OK" in heard
            await world.ended()
            assert "found and let go: projects" in world.ends()[-1].why
            assert CARD not in world.file.read_bytes()

    runner("asyncio")(main())


def http2_origin() -> tuple[Origin, bytearray]:
    """A destination of HTTP/2, and what it hears."""
    heard = bytearray()

    async def serve(reader: object, writer: object) -> None:
        await serve_http2(reader, writer, heard)  # type: ignore[arg-type]  # what asyncio hands over

    return Origin(serve=serve), heard


def test_http2_is_scanned_too(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin, heard = http2_origin()
        async with inspected(site, tmp_path, origin, tls=True, http2=True, policy=POLICY) as world:
            client = Http2(*await world.open("h2"))
            stream = client.ask(end=False, method="POST", path="/up", authority=f"{world.name}:{world.port}")
            client.core.send_data(stream, b"my number is 4111", end_stream=False)
            client.core.send_data(stream, b"111111111111.", end_stream=True)
            await client.flush()
            await client.until_ended(stream)
            client.close()
            assert b"111111111111." not in bytes(heard)
            assert world.verdicts()[-1][:2] == ("block", "scan")

    runner("asyncio")(main())


def test_trailers_are_scanned_too(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        origin, heard = http2_origin()
        async with inspected(site, tmp_path, origin, tls=True, http2=True, policy=POLICY) as world:
            client = Http2(*await world.open("h2"))
            stream = client.ask(end=False, method="POST", path="/up", authority=f"{world.name}:{world.port}")
            client.core.send_data(stream, b"nothing")
            client.core.send_headers(stream, [("x-note", CARD.decode())], end_stream=True)
            await client.until_ended(stream)
            client.close()
            assert b"behind" not in bytes(heard) and world.verdicts()[-1][:2] == ("block", "scan")

    runner("asyncio")(main())


@pytest.mark.parametrize(
    "frame",
    [masked(b"now " + CARD), masked(CARD, 0x89), masked(CARD, 0x8A), masked(b"\x03\xe8" + CARD, 0x88)],
    ids=["message", "ping", "pong", "close"],
)
def test_what_a_websocket_says_and_holds_it_is_cut(site: Site, tmp_path: Path, frame: bytes) -> None:
    async def main() -> None:
        origin = Origin(websocket_echo)
        async with inspected(site, tmp_path, origin, tls=True, policy=POLICY) as world:
            reader, writer = await world.open()
            writer.write(world.request("GET", "/chat", *WEBSOCKET))
            await world.read(reader, b"\r\n\r\n")
            writer.write(masked(b"bluebird"))
            await world.read(reader, b"hello")
            sent = len(origin.everything)
            writer.write(frame)
            await world.read(reader)
            writer.close()
            await world.ended()
            assert len(origin.everything) == sent
            assert "scan" in world.ends()[0].why and "projects" in world.ends()[0].why

    runner("asyncio")(main())


def test_what_is_open_when_a_scan_comes_is_cut(site: Site, tmp_path: Path) -> None:
    """A request that began unscanned, or under other words, does not go on under the policy that scans it."""
    scan = b", scan: {block: [card-numbers], report: [projects]}"
    policies = [POLICY.replace(scan, b""), POLICY, POLICY.replace(b"bluebird", b"heron bird")]

    async def main() -> None:
        origin = Origin(websocket_echo)
        async with inspected(site, tmp_path, origin, policy=policies[0]) as world:
            for before, after in pairwise(policies):
                world.gate.policy = load(before, "p.yaml")
                reader, writer = await world.open()
                writer.write(world.request("GET", "/chat", *WEBSOCKET))
                await world.read(reader, b"\r\n\r\n")
                for text, cut in ((before, 0), (after, 2)):
                    world.gate.policy = load(text, "p.yaml")
                    lost = lost_now(world.gate, datetime.now(UTC))
                    assert world.table.cut(lost, "the policy was replaced") == cut
                await world.read(reader)
                writer.close()
                await world.ended()

    runner("asyncio")(main())
