"""Rows R1 and R2: whoever sends heads without end, or small ones that unpack to large ones, is cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hpack
import pytest
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame, SettingsFrame
from inspected import LIMIT_S, Origin, World, inspected, serve_http2, whole_requests
from loopback import Site, runner

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
PIECE = 16_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def head(block: bytes, *more: bytes, ends: bool = True) -> bytes:
    """A head of HTTP/2 on stream 1, in as many frames."""
    frames: list[Frame] = [HeadersFrame(1, block, flags=["END_STREAM"])]
    frames += [ContinuationFrame(1, one) for one in more]
    if ends:
        frames[-1].flags.add("END_HEADERS")
    return b"".join(frame.serialize() for frame in frames)


def plain(encoder: hpack.Encoder, authority: str, *fields: tuple[str, str]) -> bytes:
    own = {":method": "GET", ":scheme": "https", ":path": "/", ":authority": authority}
    return encoder.encode([*own.items(), *fields])


def control(authority: str) -> bytes:
    """A head like any other, in three pieces."""
    block = plain(hpack.Encoder(), authority, *[(f"x-{n}", "y") for n in range(50)])
    return head(block[:9], block[9:99], block[99:])


def flood(authority: str) -> bytes:
    """CVE-2024-27316 and its kin: a head that goes on in one CONTINUATION after another."""
    return head(plain(hpack.Encoder(), authority), *[bytes(PIECE)] * 500, ends=False)


def bomb(authority: str) -> bytes:
    """One field of 4,000 bytes in the table, and 16,000 times the byte that stands for it: 64 MB."""
    encoder = hpack.Encoder()
    block = plain(encoder, authority, ("x-bomb", "y" * 4000))
    again = encoder.encode([("x-bomb", "y" * 4000)])
    assert len(again) == 1
    return head(block, again * PIECE)


def many(authority: str) -> bytes:
    """5,000 small fields."""
    block = plain(hpack.Encoder(), authority, *[(f"x-{n}", "y") for n in range(5000)])
    return head(*[block[at : at + PIECE] for at in range(0, len(block), PIECE)])


@pytest.mark.parametrize("attack", [flood, bomb, many])
def test_heads_of_http2(site: Site, tmp_path: Path, attack: Callable[[str], bytes]) -> None:
    async def main() -> None:
        origin = Origin()

        async def serve(reader: Any, writer: Any) -> None:
            await serve_http2(reader, writer, origin.heard[-1])

        origin.serve = serve
        async with inspected(site, tmp_path, origin, tls=True, http2=True) as world:
            authority = f"{world.name}:{world.port}"
            _, writer = await world.open("h2")
            writer.write(PREFACE + control(authority))
            async with asyncio.timeout(LIMIT_S):
                while b"x-49" not in origin.everything or world.admitted() < 2:
                    await asyncio.sleep(0.01)
            writer.close()
            origin.heard.clear()
            reader, writer = await world.open("h2")
            writer.write(PREFACE + attack(authority))
            await until_over(world, reader)
            writer.close()
            assert not origin.everything and world.admitted() == 2  # of the control: request and answer

    runner("asyncio")(main())


async def until_over(world: World, reader: asyncio.StreamReader) -> None:
    """The gate has ended the connection."""
    with contextlib.suppress(ConnectionError):
        await world.read(reader)
    await world.ended()


@pytest.mark.parametrize(
    "endless",
    [b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 400_000, b"HTTP/1.1 200 OK\r\nX: " + b"y" * (2 << 20),
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: a/b\r\n\r\n1;" + b"a" * (2 << 20)],
    ids=["fields", "one field", "the head of a chunk"],
)  # fmt: skip
def test_a_destination_whose_head_has_no_end(site: Site, tmp_path: Path, endless: bytes) -> None:
    async def main() -> None:
        origin = Origin(lambda heard: endless if heard.endswith(b"\r\n\r\n") else b"")
        async with inspected(site, tmp_path, origin) as world:
            said = await world.say(world.request())
            assert b"y" * 9 not in said and b"a" * 9 not in said, said[:200]
            await world.ended()
            assert "more was sent than can be waiting" in world.handlers[-1].cut_because

    runner("asyncio")(main())


def test_others_go_on_meanwhile(site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with inspected(site, tmp_path, Origin(whole_requests())) as world:
            reader, writer = await world.open()
            writer.write(world.request())
            assert b"fine" in await world.read(reader, b"fine\n")
            fields = ("Transfer-Encoding: chunked", "Content-Type: text/plain")
            await world.say(world.request("POST", "/", *fields) + b"1;" + b"a" * (2 << 20))
            writer.write(world.request())
            assert b"fine" in await world.read(reader, b"fine\n")
            writer.close()

    runner("asyncio")(main())
