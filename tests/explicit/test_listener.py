"""What a listener bounds: half-open clients, one address, the whole worker; and clients with certificates."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from explicit_world import Explicitly, explicitly, web
from loopback import Run, Site, runner

from proxy.certificates import Issued, issue_client, make_authority, write_issued
from proxy.channel import Channel
from proxy.explicit import listener

type Make = Callable[..., Any]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def run() -> Run:
    return runner("uvloop")  # the worker's


@pytest.fixture
def proxy(site: Site, tmp_path: Path) -> Make:
    return partial(explicitly, site, tmp_path, serve=web)


def get(port: int) -> bytes:
    host = f"site.example:{port}"
    return f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def test_a_flood_of_half_open_clients_leaves_room_for_others(
    run: Run, proxy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1: those that were waited for longest go first."""
    monkeypatch.setattr(listener, "MAX_WAITING", 20)

    async def main() -> None:
        async with proxy() as there:
            flood = [await there.connect() for _ in range(60)]
            flood[-1][1].write(b"GET http://site")
            assert (await there.say(get(there.port))).startswith(b"HTTP/1.1 200 ")
            assert len(there.explicit) <= 20
            with suppress(ConnectionError):
                assert await flood[0][0].read() == b""
            for _, writer in flood:
                writer.close()

    run(main())


def test_a_full_worker_lets_go_of_who_asks_for_nothing(run: Run, proxy: Make) -> None:
    async def main() -> None:
        full = False
        async with proxy(room=lambda: not full) as there:
            _, idle = await there.connect()
            while not len(there.explicit):
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            full = True
            assert (await there.say(get(there.port))).startswith(b"HTTP/1.1 200 ")
            assert await there.say(get(there.port)) == b"", "nobody is left who could go"
            idle.close()

    run(main())


def test_a_client_in_the_middle_of_something_stays(
    run: Run, proxy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_WAITING", 1)
    go = asyncio.Event()

    async def slowly(channel: Channel) -> None:
        await channel.read()
        await go.wait()
        await channel.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")
        await channel.read()

    async def main() -> None:
        async with proxy(serve=slowly) as there:
            busy = asyncio.create_task(there.say(get(there.port)))
            while not len(there.table):
                await asyncio.sleep(0)
            flood = [await there.connect() for _ in range(10)]
            go.set()
            assert (await busy).endswith(b"slow")
            for _, writer in flood:
                writer.close()

    run(main())


def test_one_address_does_not_have_them_all(run: Run, proxy: Make) -> None:
    async def main() -> None:
        async with proxy(most=5) as there:
            flood = [await there.connect() for _ in range(5)]
            while len(there.explicit) < 5:
                await asyncio.sleep(0)
            assert await there.say(get(there.port)) == b""
            for _, writer in flood:
                writer.close()
            await there.quiet()
            assert (await there.say(get(there.port))).startswith(b"HTTP/1.1 200 ")

    run(main())


def test_a_listener_that_is_closed_cuts_what_is_open_and_hears_no_more(run: Run, proxy: Make) -> None:
    async def main() -> None:
        async with proxy() as there:
            reader, writer = await there.connect()
            while not len(there.explicit):
                await asyncio.sleep(0)
            there.explicit.close()
            there.explicit.close()
            with pytest.raises(ConnectionError):
                if await reader.read() == b"":
                    raise ConnectionResetError
            writer.close()
            with pytest.raises(ConnectionError):
                await there.connect()

    run(main())


# -- certificates ------------------------------------------------------------------------------------


def shows(site: Site, issued: Issued | None, directory: Path) -> ssl.SSLContext:
    """A client that trusts the listener and shows a certificate, or none."""
    context = ssl.create_default_context(cadata=site.authority.pem)
    if issued is not None:
        context.load_cert_chain(*write_issued(issued, directory, f"c{len(list(directory.iterdir()))}"))
    return context


async def over_tls(there: Explicitly, context: ssl.SSLContext) -> bytes:
    try:
        reader, writer = await asyncio.open_connection(
            *there.address, ssl=context, server_hostname="gate.example"
        )
        writer.write(get(there.port))
        heard = await reader.read()
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
    except (ConnectionError, ssl.SSLError):
        return b"refused"
    return heard


def test_a_certificate_says_who_it_is(run: Run, proxy: Make, site: Site, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    files = [site.authority.pem.encode(), *(file.read_bytes() for file in site.server_files)]
    laptop, stranger = (issue_client(site.authority, name, now=now) for name in ("laptop", "stranger"))
    rogue = issue_client(make_authority("rogue", now=now), "laptop", now=now)

    async def main() -> None:
        async with proxy(tls=files, auth="certificates") as there:
            assert (await over_tls(there, shows(site, laptop, tmp_path))).startswith(b"HTTP/1.1 200 ")
            heard = await over_tls(there, shows(site, stranger, tmp_path))
            assert heard.startswith(b"HTTP/1.1 403 ") and b"stranger may not enter zone corporate" in heard
            assert await over_tls(there, shows(site, None, tmp_path)) == b"refused"
            assert await over_tls(there, shows(site, rogue, tmp_path)) == b"refused"
            assert await there.say(get(there.port)) != b"HTTP/1.1 200 "
            await there.quiet()
            assert [record.user for record in there.verdicts()] == ["laptop", "anonymous"]

    run(main())


def test_a_certificate_that_expires_takes_its_connections_along(
    run: Run, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LOOK_S", 0.01)
    now = datetime.now(UTC)
    files = [site.authority.pem.encode(), *(file.read_bytes() for file in site.server_files)]
    short, long = (issue_client(site.authority, "laptop", now=now, days=days) for days in (30, 60))

    async def main() -> None:
        async with explicitly(site, tmp_path, tls=files, auth="certificates") as there:

            async def through(issued: Issued) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                client = await asyncio.open_connection(
                    *there.address, ssl=shows(site, issued, tmp_path), server_hostname="gate.example"
                )
                client[1].write(
                    b"CONNECT site.example:%d HTTP/1.1\r\nHost: site.example:%d\r\n\r\n" % ((there.port,) * 2)
                )
                assert b" 200 " in await client[0].readuntil(b"\r\n\r\n")
                return client

            (reader, writer), (other, others) = await through(short), await through(long)
            there.now = now + timedelta(days=31)
            with suppress(ConnectionError, ssl.SSLError):
                assert await reader.read() == b""
            others.write(b"still here")
            assert await other.readexactly(10) == b"still here"
            (end,) = there.ends()
            assert end.why == "cut by the gate: the client's certificate has expired"
            for one in (writer, others):
                one.transport.abort()

    run(main())
