"""Each defence of an inspector is what makes its rows green: without it, what it is to stop arrives.

An attempt says whether it did. Nothing in it depends on time: a program is answered by its destination, or by
the gate in its place, or its connection ends.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from defences import without
from inspected import LIMIT_S, Http2, Origin, World, inspected, trusting, whole_requests
from lab.weakened import INSPECTORS
from loopback import Site, runner
from mitmproxy.proxy.layers.http import _hooks as http

from proxy.inspection.hooks import HOOKS
from proxy.policy import load

FREELY = b"""
policy: 1
name: freely
define: {zones: [corporate]}
guards: [{id: no-delete, match: {method: DELETE}, at_most: block}]
rules: [{id: site, match: {to: site.example}, verdict: tunnel}]
"""
SCANNED = FREELY.replace(
    b"{zones: [corporate]}",
    b"{zones: [corporate], destinations: {site: {to: site.example, scan: {block: [card-numbers]}}}}",
).replace(b"to: site.example}, verdict", b"to: site}, verdict")
UPLOAD_LIMIT, HOARD = 100 * 1024, 16 << 20
HTTP2 = {"tls": True, "http2": True, "origin_http2": False, "policy": FREELY}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


# -- what is attempted -------------------------------------------------------------------------------


async def answer(world: World, *pieces: bytes, times: int = 1) -> bytes:
    """What a program that says this is answered, so many times."""
    reader, writer = await world.open()
    try:
        for piece in pieces:
            writer.write(piece)
        return await world.read(reader, b"\r\n\r\n", times)
    finally:
        writer.close()


def raw(world: World, line: bytes, *fields: bytes, host: bytes = b"") -> bytes:
    host = host or f"{world.name}:{world.port}".encode()
    return b"\r\n".join([line, b"Host: " + host, *fields, b"", b""])


def is_served(said: bytes) -> bool:
    return said.startswith(b"HTTP/1.1 200")


async def a_body_that_is_refused(world: World) -> bool:
    length = b"Content-Length: %d" % (UPLOAD_LIMIT + 1)
    head = raw(world, b"POST / HTTP/1.1", b"Content-Type: text/plain", length)
    return is_served(await answer(world, head, b"x" * (UPLOAD_LIMIT + 1)))


async def a_request_after_its_revocation(world: World) -> bool:
    reader, writer = await world.open()
    try:
        writer.write(world.request())
        await world.read(reader, b"fine\n")
        world.gate.policy = load(FREELY.replace(b"DELETE", b"GET"), "stricter.yaml")
        writer.write(world.request())
        return is_served(await world.read(reader, b"\r\n\r\n"))
    finally:
        writer.close()


async def another_host(world: World) -> bool:
    return is_served(await answer(world, raw(world, b"GET / HTTP/1.1", host=b"other.example")))


async def another_name_in_tls(world: World) -> bool:
    context = trusting(world.ca)
    context.check_hostname = False
    sock = world.enter()
    try:
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=context, server_hostname="other.example"
        )
    except ConnectionError:
        sock.close()
        return False
    writer.write(world.request())
    try:
        return is_served(await world.read(reader, b"\r\n\r\n"))
    finally:
        writer.close()


async def a_folded_field(world: World) -> bool:
    await answer(world, raw(world, b"GET / HTTP/1.1", b"X-A: b", b" GET /smuggled HTTP/1.1"))
    return b"/smuggled" in world.origin.everything


async def a_body_of_http2_that_is_a_request(world: World) -> bool:
    fine = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n"
    world.origin.answer = lambda heard: fine if b"smuggled" in heard else b""
    program = Http2(*await world.open("h2"))
    stream = program.ask(end=False, method="POST", authority=f"{world.name}:{world.port}")
    program.core.send_data(stream, b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", end_stream=True)
    await program.until_ended(stream)
    program.close()
    return b"\r\n\r\nGET /smuggled" in world.origin.everything


async def a_request_behind_a_refused_one(world: World) -> bool:
    refused = raw(world, b"CONNECT other.example:443 HTTP/1.1")
    await answer(world, refused + raw(world, b"GET /smuggled HTTP/1.1"))
    return b"/smuggled" in world.origin.everything


async def an_offer_of_h2c(world: World) -> bool:
    offer = b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABk"
    await answer(world, raw(world, b"GET / HTTP/1.1", *offer))
    return b"h2c" in world.origin.everything


async def a_body_without_a_length(world: World) -> bool:
    head = raw(world, b"POST / HTTP/1.1", b"Content-Type: text/plain", b"Transfer-Encoding: chunked")
    await answer(world, head, b"2000\r\n%s\r\n" % (b"x" * 0x2000) * 20, b"0\r\n\r\n")
    return world.origin.everything.partition(b"\r\n\r\n")[2].count(b"x") > UPLOAD_LIMIT


async def a_hook_that_raises(world: World) -> bool:
    async def raises(*_: object) -> None:
        raise RuntimeError("injected")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HOOKS, http.HttpRequestHook, raises)
        return is_served(await answer(world, raw(world, b"GET / HTTP/1.1")))


async def a_head_of_5000_fields(world: World) -> bool:
    return is_served(await answer(world, raw(world, b"GET / HTTP/1.1", *[b"X: y"] * 5000)))


async def a_bomb(world: World) -> bool:
    packed = gzip.compress(bytes(8 << 20))
    fields = b"Content-Encoding: gzip", b"Content-Length: %d" % len(packed)
    return is_served(await answer(world, raw(world, b"POST / HTTP/1.1", *fields), packed))


async def a_number_of_a_card(world: World) -> bool:
    head = raw(world, b"POST / HTTP/1.1", b"Content-Length: 16")
    return is_served(await answer(world, head, b"4111111111111111"))


async def a_program_that_opens_no_window(world: World) -> bool:
    """Whether all that its destination sends is taken, and waits in the inspector."""
    sent = 0

    async def serve(reader: Any, writer: Any) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while sent < HOARD:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    world.origin.serve = serve
    program = Http2(*await world.open("h2"))
    program.ask(authority=f"{world.name}:{world.port}")
    await program.flush()
    async with asyncio.timeout(LIMIT_S):
        while sent < HOARD and world.handlers[-1]._upstream_room.is_set():
            await asyncio.sleep(0.01)
    program.close()
    return sent == HOARD


@dataclass(frozen=True, slots=True)
class Row:
    """A defence, the rows of docs/threats.md that rest on it, and an attempt at what it stops."""

    switch: str
    rows: str
    attempt: Callable[[World], Awaitable[bool]]
    world: Mapping[str, Any] = field(default_factory=dict)


ROWS = (
    Row("request-verdicts", "I7", a_body_that_is_refused),
    Row("requests-each", "L5", a_request_after_its_revocation),
    Row("names-agree", "I1 I2 I4", another_host),
    Row("tls-names", "I1 I8", another_name_in_tls, {"tls": True}),
    Row("strict-heads", "I4 I5", a_folded_field),
    Row("one-frame", "I5", a_body_of_http2_that_is_a_request, HTTP2),
    Row("closed-after-refusal", "I6", a_request_behind_a_refused_one),
    Row("upgrades", "I11", an_offer_of_h2c),
    Row("cut-at-the-byte", "I7", a_body_without_a_length),
    Row("hooks-fail-closed", "L6", a_hook_that_raises),
    Row("head-limits", "R1", a_head_of_5000_fields),
    Row("unpacking-bounds", "R2", a_bomb, {"policy": SCANNED}),
    Row("held-bytes", "R2", a_program_that_opens_no_window, HTTP2),
    Row("scans", "scans", a_number_of_a_card, {"policy": SCANNED}),
)


def test_every_defence_has_a_control() -> None:
    assert {row.switch for row in ROWS} == INSPECTORS.keys()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.switch)
def test_without_it_the_row_is_red(site: Site, tmp_path: Path, row: Row) -> None:
    async def succeeds() -> bool:
        async with inspected(site, tmp_path, Origin(whole_requests()), **row.world) as world:
            return await row.attempt(world)

    async def main() -> None:
        assert not await succeeds()
        with without(row.switch):
            assert await succeeds(), "must be red"

    runner("asyncio")(main())
