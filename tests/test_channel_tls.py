"""The TLS channel: half-close, truncation, and every impostor at the other end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from loopback import LOOPS, Run, Site, pair, read_all, runner

from proxy.certificates import issue_client, issue_server, make_authority, write_issued
from proxy.channel import (
    Aborted,
    HandshakeFailed,
    NotAdmitted,
    PlainChannel,
    Reset,
    TlsChannel,
    Truncated,
    WrongPeer,
    client_context,
    tls_client,
    tls_server,
)

NOW = datetime.now(UTC)
BULK = bytes(range(256)) * 40_000


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


async def connected(site: Site) -> tuple[TlsChannel, TlsChannel]:
    ours, theirs = pair()
    for_client, for_server = site.for_client(), site.for_server()
    serving = asyncio.create_task(tls_server(theirs, for_server, 90))
    client = await tls_client(ours, for_client, "gate.example", {site.server.pin}, 90)
    return client, await serving


def test_both_ends_know_each_other(run: Run, site: Site) -> None:
    async def main() -> None:
        client, server = await connected(site)
        assert client.peer_der == site.server.der
        assert server.peer_der == site.client.der
        client.abort()
        with pytest.raises(Reset):
            await server.read()
        with pytest.raises(Aborted):
            await client.read()

    run(main())


@pytest.mark.parametrize("client_first", [True, False])
def test_each_direction_ends_by_itself(run: Run, site: Site, client_first: bool) -> None:
    async def main() -> None:
        client, server = await connected(site)
        first, second = (client, server) if client_first else (server, client)
        writing = asyncio.create_task(first.write(BULK))
        got: list[bytes] = []
        while sum(map(len, got)) < len(BULK):
            got.append(await second.read())
        await writing
        await first.write_eof()
        assert await second.read() == b""
        assert b"".join(got) == BULK
        writing = asyncio.create_task(second.write(BULK))
        assert len(await first.read()) > 0
        first.unread(b"!")
        assert (await first.read())[:1] == b"!"
        first_reads = asyncio.create_task(read_all(first))
        await writing
        await second.write_eof()
        assert len(await first_reads) > len(BULK) // 2
        await first.write_eof()  # twice is once
        await first.close()
        await second.close()

    run(main())


def test_data_that_crosses_an_end_of_file_is_not_lost(run: Run, site: Site) -> None:
    """Records that lie unread when close_notify is sent: OpenSSL's shutdown would fail on them."""

    async def main() -> None:
        client, server = await connected(site)
        await server.write(b"a" * 20_000)
        await server.write(b"b")
        await client.read()
        await server.write(b"c" * 40_000)
        await client.write_eof()
        await server.write(b"d")
        await server.write_eof()
        assert (await read_all(client))[-1:] == b"d"
        assert await read_all(server) == b""
        await client.close()
        await server.close()

    run(main())


def test_data_that_came_with_the_handshake_outlives_our_end_of_file(run: Run, site: Site) -> None:
    """OpenSSL has it already when close_notify is sent; its shutdown would fail on it and lose it."""

    async def main() -> None:
        ours, theirs = pair()
        serving = asyncio.create_task(tls_server(theirs, site.for_server(), 90))
        client = await tls_client(ours, site.for_client(), "gate.example", {site.server.pin}, 90)
        await client.write(b"early")  # in the same turn as our last flight: one read takes both
        server = await serving
        await server.write_eof()
        assert await server.read() == b"early"
        assert await client.read() == b""
        client.abort()
        server.abort()

    run(main())


def test_records_that_arrive_byte_by_byte_after_our_end_of_file(run: Run, site: Site) -> None:
    async def main() -> None:
        inner_client, outer_client = pair()
        outer_server, inner_server = pair()
        for_client, for_server = site.for_client(), site.for_server()

        async def drip(source: PlainChannel, sink: PlainChannel) -> None:
            while data := await source.read():
                for byte in data:
                    await sink.write(bytes([byte]))
            await sink.write_eof()

        middle = PlainChannel(outer_client), PlainChannel(outer_server)
        drips = [asyncio.create_task(drip(*middle)), asyncio.create_task(drip(*middle[::-1]))]
        serving = asyncio.create_task(tls_server(inner_server, for_server, 90))
        client = await tls_client(inner_client, for_client, "gate.example", {site.server.pin}, 90)
        server = await serving
        await client.write(b"3\n1\n2\n")
        await client.write_eof()
        assert await read_all(server) == b"3\n1\n2\n"
        await server.write(b"1\n2\n3\n" * 1000)
        await server.write_eof()
        assert await read_all(client) == b"1\n2\n3\n" * 1000
        await client.close()
        await server.close()
        await asyncio.gather(*drips)
        for channel in middle:
            await channel.close()

    run(main())


def test_tcp_that_ends_where_tls_has_not_is_a_truncation(run: Run, site: Site) -> None:
    async def main() -> None:
        ours, theirs = pair()
        for_client, for_server = site.for_client(), site.for_server()
        serving = asyncio.create_task(tls_server(theirs, for_server, 90))
        client = await tls_client(ours, for_client, "gate.example", {site.server.pin}, 90)
        server = await serving
        await server.write(b"half of it")
        theirs.shutdown(socket.SHUT_WR)  # beneath TLS, as somebody on the path can do
        assert await client.read() == b"half of it"
        with pytest.raises(Truncated):
            await client.read()
        with pytest.raises(Truncated):
            await client.read()
        with pytest.raises(Reset):
            await server.read()

    run(main())


def test_junk_instead_of_a_record_resets(run: Run, site: Site) -> None:
    async def main() -> None:
        ours, theirs = pair()
        for_client, for_server = site.for_client(), site.for_server()
        serving = asyncio.create_task(tls_server(theirs, for_server, 90))
        client = await tls_client(ours, for_client, "gate.example", {site.server.pin}, 90)
        server = await serving
        theirs.send(b"\x17\x03\x03\x00\x20" + b"j" * 32)
        with pytest.raises(Reset):
            await client.read()
        server.abort()

    run(main())


def test_a_slow_reader_holds_the_writer_back_and_abort_wakes_it(run: Run, site: Site) -> None:
    async def main() -> None:
        client, server = await connected(site)
        writing = asyncio.create_task(server.write(BULK))
        for _ in range(200):
            await asyncio.sleep(0)
        assert not writing.done()
        server.abort()
        with pytest.raises(Aborted):
            await writing
        with pytest.raises(Reset):
            await read_all(client)

    run(main())


def test_the_guard_stands_below_tls(run: Run, site: Site) -> None:
    async def main() -> None:
        client, server = await connected(site)
        client.guard(lambda: False)
        with pytest.raises(NotAdmitted):
            await client.write(b"secret")
        with pytest.raises(Reset):
            await server.read()

    run(main())


@dataclass(frozen=True)
class Impostor:
    id: str
    says: str
    authority: str = "site"
    name: str = "gate.example"
    age_days: int = 0
    for_client: bool = False
    pinned: bool = True


IMPOSTORS = (
    Impostor("another authority", "unable to get local issuer certificate", authority="other"),
    Impostor("another name", "Hostname mismatch", name="other.example"),
    Impostor("an expired certificate", "certificate has expired", age_days=500),
    Impostor("a certificate of tomorrow", "certificate is not yet valid", age_days=-1),
    Impostor("a client's certificate", "unsuitable certificate purpose", for_client=True),
    Impostor("another key of the right name and authority", "not the pinned one", pinned=False),
)


@pytest.mark.parametrize("case", IMPOSTORS, ids=lambda case: case.id)
def test_an_impostor_is_refused_before_anything_is_sent(
    run: Run, site: Site, case: Impostor, tmp_path: Path
) -> None:
    authority = site.authority if case.authority == "site" else make_authority("site", now=NOW)
    issue = issue_client(authority, "x", now=NOW) if case.for_client else None
    then = NOW - timedelta(days=case.age_days)
    issued = issue or issue_server(authority, [case.name], now=then)
    files = write_issued(issued, tmp_path, "impostor")

    async def main() -> None:
        ours, theirs = pair()
        serving = asyncio.create_task(tls_server(theirs, site.for_server(files), 90))
        pin = issued.pin if case.pinned else site.server.pin
        with pytest.raises(WrongPeer, match=case.says):
            await tls_client(ours, site.for_client(), "gate.example", {pin}, 90)
        with pytest.raises(HandshakeFailed):  # the client's certificate never came
            await serving

    run(main())


def test_no_pin_pins_nobody(run: Run, site: Site) -> None:
    async def main() -> None:
        ours, theirs = pair()
        serving = asyncio.create_task(tls_server(theirs, site.for_server(), 90))
        with pytest.raises(WrongPeer):
            await tls_client(ours, site.for_client(), "gate.example", set(), 90)
        with pytest.raises(HandshakeFailed):
            await serving

    run(main())


def _rogue(site: Site, directory: Path, kind: str) -> ssl.SSLContext:
    """A client's context that trusts the gateway but is not trusted by it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=site.authority.pem)
    if kind == "none":
        return context
    authority = make_authority("site", now=NOW) if kind == "other authority" else site.authority
    age = timedelta(days=500 if kind == "expired" else 0)
    issued = (
        issue_server(authority, ["laptop"], now=NOW)
        if kind == "server's"
        else issue_client(authority, "laptop", now=NOW - age)
    )
    context.load_cert_chain(*write_issued(issued, directory, "rogue"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


@pytest.mark.parametrize("kind", ["none", "other authority", "expired", "server's"])
def test_a_rogue_client_gets_no_channel_and_hears_an_alert(
    run: Run, site: Site, kind: str, tmp_path: Path
) -> None:
    async def main() -> None:
        ours, theirs = pair()
        rogue = _rogue(site, tmp_path, kind)
        rogue.minimum_version = ssl.TLSVersion.TLSv1_3
        serving = asyncio.create_task(tls_server(theirs, site.for_server(), 90))
        client = await tls_client(ours, rogue, "gate.example", {site.server.pin}, 90)
        # In TLS 1.3 the client's handshake is over before the server has judged it.
        with pytest.raises((WrongPeer, HandshakeFailed)):
            await serving
        with pytest.raises(Reset, match="alert"):
            await client.read()

    run(main())


def test_tls_1_2_is_refused_by_both(run: Run, site: Site) -> None:
    async def main() -> None:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(cadata=site.authority.pem)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        ours, theirs = pair()
        with pytest.raises(ValueError, match=r"TLS 1\.3"):
            await tls_client(ours, old, "gate.example", {site.server.pin}, 90)
        serving = asyncio.create_task(tls_server(theirs, site.for_server(), 90))
        await asyncio.sleep(0)
        with pytest.raises((ssl.SSLError, OSError)):
            await asyncio.to_thread(_blocking_handshake, ours, old)
        with pytest.raises(HandshakeFailed, match="unsupported protocol"):
            await serving

    run(main())


def _blocking_handshake(sock: socket.socket, context: ssl.SSLContext) -> None:
    sock.setblocking(True)
    with context.wrap_socket(sock, server_hostname="gate.example"):
        pass


def test_a_lenient_context_is_not_used(run: Run, site: Site) -> None:
    async def main() -> None:
        lenient = site.for_client()
        lenient.check_hostname = False
        ours, theirs = pair()
        with ours, theirs, pytest.raises(ValueError, match="name"):
            await tls_client(ours, lenient, "gate.example", {site.server.pin}, 90)
        lenient.verify_mode = ssl.CERT_NONE
        with pytest.raises(ValueError, match="verifies no peer"):
            await tls_client(ours, lenient, "gate.example", {site.server.pin}, 90)

    run(main())


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_peer_that_says_nothing_is_given_up(run: Run, site: Site, side: str) -> None:
    async def main() -> None:
        ours, theirs = pair()
        for_client, for_server = site.for_client(), site.for_server()
        shake: Coroutine[Any, Any, TlsChannel] = (
            tls_client(ours, for_client, "gate.example", {site.server.pin}, 0.01)
            if side == "client"
            else tls_server(ours, for_server, 0.01)
        )
        with pytest.raises(HandshakeFailed, match=r"within 0\.01 s"):
            await shake
        with theirs, pytest.raises(ConnectionResetError):
            while theirs.recv(65536):
                pass

    run(main())


@pytest.mark.parametrize(
    "junk",
    [b"\x00" * 300, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\x01" * 400, b""],
    ids=["zeros", "http", "oversized", "end"],
)
def test_junk_at_the_door_fails_the_handshake(run: Run, site: Site, junk: bytes) -> None:
    async def main() -> None:
        ours, theirs = pair()
        serving = asyncio.create_task(tls_server(theirs, site.for_server(), 90))
        ours.sendall(junk)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(HandshakeFailed):
            await serving
        ours.close()

    run(main())


def test_an_encrypted_key_is_refused_instead_of_asked_for(site: Site, tmp_path: Path) -> None:
    key = tmp_path / "locked.key"
    key.write_bytes(
        site.client.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    with pytest.raises(ValueError, match="encrypted"):
        client_context(ca_pem=site.authority.pem, certificate=site.client_files[0], key=key)
