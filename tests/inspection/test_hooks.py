"""Row L6: whatever goes wrong in a hook, the connection is cut, and an origin sees nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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
    websocket_echo,
    whole_requests,
)
from loopback import Site, runner
from mitmproxy.proxy import commands, layer, server_hooks
from mitmproxy.proxy.layers import tls, websocket
from mitmproxy.proxy.layers.http import _hooks as http

from proxy.inspection import connection
from proxy.inspection.hooks import HOOKS


async def raises(*_: object) -> None:
    raise RuntimeError("injected")


async def exhausts(*_: object) -> None:
    raise MemoryError


async def hangs(*_: object) -> None:
    await asyncio.Event().wait()


async def says_nothing(*_: object) -> None:
    return None


async def exits(*_: object) -> None:
    raise SystemExit(1)


FAULTS = (raises, exhausts, hangs, says_nothing, exits)
# Every hook before the first byte of a request goes on, and those that come after it.
BEFORE: tuple[type[commands.StartHook], ...] = (
    server_hooks.ClientConnectedHook,
    layer.NextLayerHook,
    http.HttpRequestHeadersHook,
    http.HttpRequestHook,
)
BEFORE_TLS = (
    *BEFORE,
    tls.TlsClienthelloHook,
    tls.TlsStartClientHook,
    tls.TlsEstablishedClientHook,
    tls.TlsStartServerHook,
    tls.TlsEstablishedServerHook,
)
AFTER = (http.HttpResponseHeadersHook, http.HttpResponseHook)
CHAT = (websocket.WebsocketStartHook, websocket.WebsocketMessageHook)

type Say = Callable[[World], Awaitable[bytes]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


async def get(world: World) -> bytes:
    return await world.say(world.request("GET", "/", "Connection: close"))


async def get_http2(world: World) -> bytes:
    try:
        program = Http2(*await world.open("h2"))
    except ConnectionError:
        return b"<reset>"
    stream = program.ask(authority=f"{world.name}:{world.port}")
    await program.until_ended(stream)
    program.close()
    return b"<reset>" if program.reset else str(program.status).encode()


async def chat(world: World) -> bytes:
    reader, writer = await world.open()
    try:
        writer.write(world.request("GET", "/", *WEBSOCKET))
        heard = await world.read(reader, b"\r\n\r\n")
        if b"101" in heard:
            writer.write(masked(b"a question"))
            heard += await world.read(reader, b"hello")
    except ConnectionError:
        heard = b"<reset>"
    finally:
        writer.close()
    return heard


async def every_fault(
    world: World,
    hooks: tuple[type[commands.StartHook], ...],
    say: Say,
    good: bytes,
    patch: pytest.MonkeyPatch,
    never: Callable[[Origin, int], bool],
) -> None:
    """Without a fault it is `good`; with each fault in each hook it is not, and `never` holds."""
    assert good in await say(world)
    for hook in hooks:
        for fault in FAULTS:
            told = f"{fault.__name__} in {hook.name}"
            before = len(world.origin.heard)
            with patch.context() as with_fault:
                with_fault.setitem(HOOKS, hook, fault)
                if fault is hangs:
                    with_fault.setattr(connection, "HOOK_LIMIT_S", 0.05)
                heard = await say(world)
                assert good not in heard, (told, heard)
                await world.ended()
            assert world.handlers[-1].cut_because, told
            assert never(world.origin, before), (told, world.origin.everything)
    assert good in await say(world)


def nothing(origin: Origin, before: int) -> bool:
    return not any(origin.heard[before:])


def no_message(origin: Origin, before: int) -> bool:
    return b"a question" not in b"".join(map(bytes, origin.heard[before:]))


def test_every_hook_is_known() -> None:
    """A hook that mitmproxy may run and that is not in the table would cut; none is there for nothing."""
    layers = (server_hooks, layer, tls, websocket, http)
    known = {found for module in layers for name, found in vars(module).items() if name.endswith("Hook")}
    assert set(HOOKS) <= known
    unused = {hook.__name__ for hook in known - set(HOOKS)} - {"StartHook", "Hook"}
    assert unused == {
        "ServerConnectHook", "ServerConnectedHook", "ServerDisconnectedHook", "ServerConnectErrorHook",
        "HttpConnectHook", "HttpConnectUpstreamHook", "HttpConnectedHook", "HttpConnectErrorHook",
    }  # fmt: skip


def test_http1(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with inspected(site, tmp_path, Origin(close_after_one)) as world:
            await every_fault(world, BEFORE, get, b"fine", monkeypatch, nothing)
            await every_fault(world, AFTER[:1], get, b"fine", monkeypatch, lambda *_: True)

    runner("asyncio")(main())


def close_after_one(heard: bytes) -> bytes:
    return whole_requests(b"fine\n", "Connection: close")(heard)


def test_https(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with inspected(site, tmp_path, Origin(close_after_one), tls=True) as world:
            await every_fault(world, BEFORE_TLS, get, b"fine", monkeypatch, nothing)

    runner("asyncio")(main())


def test_http2(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        origin = Origin()

        async def serve(reader: Any, writer: Any) -> None:
            await serve_http2(reader, writer, origin.heard[-1])

        origin.serve = serve
        async with inspected(site, tmp_path, origin, tls=True, http2=True) as world:
            await every_fault(world, BEFORE_TLS, get_http2, b"200", monkeypatch, nothing)
            await every_fault(world, AFTER[:1], get_http2, b"200", monkeypatch, lambda *_: True)

    runner("asyncio")(main())


def test_a_websocket(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        policy = b"policy: 1\nname: p\ntimezone: UTC\ndefine: {zones: [corporate]}\n" + (
            b"guards:\n  - {id: g, match: {method: DELETE}, at_most: block}\n"
            b"rules:\n  - {id: site, match: {to: site.example}, verdict: tunnel}\n"
        )
        async with inspected(site, tmp_path, Origin(websocket_echo), policy=policy) as world:
            await every_fault(
                world, (*BEFORE[:3], http.HttpRequestHook), chat, b"hello", monkeypatch, nothing
            )
            after = (*AFTER, *CHAT)
            await every_fault(world, after, chat, b"hello", monkeypatch, no_message)

    runner("asyncio")(main())
