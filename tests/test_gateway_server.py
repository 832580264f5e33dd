"""The gateway over real TLS on loopback: tunnels, refusals, bounds, revocation."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from corporate_end import corporate_end, destination, echo, sort
from loopback import LOOPS, Run, Site, read_all, runner, turns

from proxy.certificates import issue_client, issue_server, make_authority
from proxy.channel import (
    ConnectFailed,
    ConnectRefused,
    PlainChannel,
    Reset,
    TlsChannel,
    connect_through,
    probe,
)
from proxy.channel.head import read_head

NOW = datetime.now(UTC)


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


async def reset(channel: TlsChannel | PlainChannel) -> None:
    with pytest.raises(Reset):
        await read_all(channel)


async def refused(channel: TlsChannel, host: str, port: int) -> ConnectRefused:
    with pytest.raises(ConnectRefused) as raised:
        await connect_through(channel, host, port, 90)
    return raised.value


def test_a_tunnel_whose_destination_answers_after_the_end_of_file(
    run: Run, site: Site, tmp_path: Path
) -> None:
    async def main() -> None:
        async with destination(sort) as port, corporate_end(site, tmp_path) as end:
            for host in ("site.example", "two.example"):
                tunnel = await end.tunnel(host, port)
                await tunnel.write(b"c\na\nb")
                await tunnel.write_eof()
                assert await read_all(tunnel) == b"a\nb\nc"
                await tunnel.close()
            await end.eventually(lambda: len(end.lines("end")) == 2)
            connect, last = end.lines("connect")[0], end.lines("end")[0]
            assert connect["client"] == "laptop"
            assert connect["certificate"] == site.client.fingerprint
            assert (connect["to"], connect["addresses"]) == (f"site.example:{port}", "127.0.0.1")
            assert (last["bytes_up"], last["bytes_down"]) == (5, 5)
            assert last["because"] == "finished by both ends"

    run(main())


def test_bytes_that_follow_the_request_at_once_belong_to_the_tunnel(
    run: Run, site: Site, tmp_path: Path
) -> None:
    async def main() -> None:
        async with destination(echo) as port, corporate_end(site, tmp_path) as end:
            channel = await end.connect()
            target = f"site.example:{port}"
            await channel.write(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\nearly".encode())
            assert (await read_head(channel)).start.startswith("HTTP/1.1 200")
            assert await channel.read() == b"early"
            channel.abort()

    run(main())


def test_the_prober_asks_again_and_again_on_one_connection(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with destination(echo) as port, corporate_end(site, tmp_path) as end:
            channel = await end.connect()
            for _ in range(5):
                assert await probe(channel, 90) is True
            await connect_through(channel, "site.example", port, 90)
            await channel.write(b"still good")
            assert await channel.read() == b"still good"
            channel.abort()

    run(main())


@dataclass(frozen=True)
class Sent:
    id: str
    request: bytes
    status: int
    says: str = ""


def _connect(target: str, fields: str = "") -> bytes:
    return f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{fields}\r\n".encode()


JUNK = (
    Sent("a name that no entry admits", _connect("www.other.test:443"), 403, "no entry"),
    Sent("a port that no entry admits", _connect("site.example:25"), 403, "port 25"),
    Sent("an address outside the networks", _connect("wan.example:443"), 403, "203.0.113.9"),
    Sent("a literal, where only names are allowed", _connect("127.0.0.1:443"), 403, "no entry"),
    Sent("a name without an address", _connect("none.example:443"), 502, "no address"),
    Sent("an octal address", _connect("0177.0.0.1:443"), 400),
    Sent("a short address", _connect("127.1:443"), 400),
    Sent("a host with user information", _connect("a@site.example:443"), 400),
    Sent("a path", _connect("site.example:443/x"), 400),
    Sent("no port", _connect("site.example"), 400),
    Sent("port 0", _connect("site.example:0"), 400),
    Sent("port 65536", _connect("site.example:65536"), 400),
    Sent(
        "another Host", b"CONNECT site.example:443 HTTP/1.1\r\nhost: other.example:443\r\n\r\n", 400, "differ"
    ),
    Sent("two Hosts", _connect("site.example:443", "host: b\r\n"), 400, "one Host"),
    Sent("no Host", b"CONNECT site.example:443 HTTP/1.1\r\n\r\n", 400, "one Host"),
    Sent("a body", _connect("site.example:443", "content-length: 5\r\n"), 400, "body"),
    Sent("a chunked body", _connect("site.example:443", "transfer-encoding: chunked\r\n"), 400, "body"),
    Sent("an absolute URI", b"GET http://site.example/ HTTP/1.1\r\nhost: site.example\r\n\r\n", 405),
    Sent("a GET", b"GET / HTTP/1.1\r\nhost: site.example\r\n\r\n", 405),
    Sent("OPTIONS of a resource", b"OPTIONS / HTTP/1.1\r\nhost: a\r\n\r\n", 405),
    Sent("HTTP/1.0", b"CONNECT site.example:443 HTTP/1.0\r\nhost: site.example:443\r\n\r\n", 400),
    Sent("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    Sent("junk", b"\x00\xff\x01 junk\r\n\r\n", 400),
    Sent("a folded field", _connect("site.example:443", "a: b\r\n c\r\n"), 400),
    Sent("an oversized head", _connect("site.example:443", "a: " + "x" * 9000 + "\r\n"), 400, "longer"),
    Sent("a head without an end", b"CONNECT " + b"x" * 20_000, 400, "longer"),
    Sent("a thousand fields", _connect("site.example:443", "a: b\r\n" * 1000), 400, "more than"),
)


@pytest.mark.parametrize("case", JUNK, ids=lambda case: case.id)
def test_refusal(run: Run, site: Site, tmp_path: Path, case: Sent) -> None:
    async def main() -> None:
        allow = '{names: ["*.example"], networks: [127.0.0.0/8], ports: [443]}'
        async with corporate_end(site, tmp_path, allow=allow) as end:
            channel = await end.connect()
            # Whatever follows a refusal was meant for a tunnel and is never read as a request.
            await channel.write(case.request + b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n")
            head = await read_head(channel)
            assert head.start.split()[1] == str(case.status)
            (because,) = head.all("zonegate-because")
            assert case.says in because
            assert head.all("connection") == ("close",)
            assert await read_all(channel) == because.encode() + b"\n"
            channel.abort()
            assert end.lines("refused")[0]["because"] == because
            assert not end.lines("connect")

    run(main())


def test_a_destination_that_refuses_or_does_not_exist(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            async with corporate_end(site, tmp_path) as end:
                answer = await refused(await end.connect(), "site.example", port)
                assert answer.status == 502
                assert "connection refused" in answer.because
                assert end.lines("failed")[0]["because"] == answer.because

    run(main())


def test_the_gateway_never_connects_to_itself_unless_an_entry_names_the_address(
    run: Run, site: Site, tmp_path: Path
) -> None:
    async def main() -> None:
        allow = '{names: ["*"], networks: [0.0.0.0/0], ports: [1-65535]}'
        async with corporate_end(site, tmp_path, allow=allow) as end:
            answer = await refused(await end.connect(), "site.example", end.address[1])
            assert answer.status == 403
            assert "127.0.0.1" in answer.because

    run(main())


def test_an_entry_may_be_for_some_clients_only(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        other = site.for_client(issue_client(site.authority, "other", now=NOW), tmp_path)
        allow = '{names: ["*"], networks: [127.0.0.0/8], ports: [1-65535], clients: [laptop]}'
        async with destination(echo) as port, corporate_end(site, tmp_path, allow=allow) as end:
            (await end.tunnel("site.example", port)).abort()
            answer = await refused(await end.connect(other), "site.example", port)
            assert "for this client" in answer.because

    run(main())


def _rogue(site: Site, kind: str, directory: Path) -> ssl.SSLContext:
    if kind == "no certificate":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=site.authority.pem)
        return context
    authority = make_authority("site", now=NOW) if kind == "another authority" else site.authority
    then = NOW - timedelta(days=500 if kind == "expired" else 0)
    if kind == "a server's certificate":
        return site.for_client(issue_server(authority, ["laptop"], now=then), directory)
    return site.for_client(issue_client(authority, "laptop", now=then), directory)


@pytest.mark.parametrize("kind", ["no certificate", "another authority", "expired", "a server's certificate"])
def test_a_rogue_client_reaches_nothing(run: Run, site: Site, tmp_path: Path, kind: str) -> None:
    async def main() -> None:
        async with destination(echo) as port, corporate_end(site, tmp_path) as end:
            channel = await end.connect(_rogue(site, kind, tmp_path))
            with pytest.raises(ConnectFailed):
                await connect_through(channel, "site.example", port, 90)
            await end.eventually(lambda: end.lines("no handshake"))
            assert not end.lines("connect")
            assert not end.gateway.guests
            (await end.tunnel("site.example", port)).abort()

    run(main())


def test_a_revoked_client_is_cut_at_once_and_nobody_else(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        other = issue_client(site.authority, "other", now=NOW)
        context = site.for_client(other, tmp_path)
        async with destination(echo) as port, corporate_end(site, tmp_path) as end:
            mine = await end.tunnel("site.example", port)
            theirs = await end.tunnel("site.example", port, context)
            waiting = await end.connect(context)
            assert await probe(waiting, 90)
            end.revoke(f"{other.fingerprint}  # lost laptop")
            await reset(theirs)
            await reset(waiting)
            await mine.write(b"still here")
            assert await mine.read() == b"still here"
            answer = await refused(await end.connect(context), "site.example", port)
            assert answer.because == "this client's certificate is revoked"
            mine.abort()
            await end.eventually(lambda: len(end.lines("end")) == 2)
            assert end.lines("end")[0]["because"] == "the client's certificate was revoked"
            assert end.lines("revocations")[0]["cut"] == 2

    run(main())


def test_a_certificate_that_expires_takes_its_connections_along(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        context = site.for_client(issue_client(site.authority, "short", now=NOW, days=2), tmp_path)
        async with destination(echo) as port, corporate_end(site, tmp_path) as end:
            mine = await end.tunnel("site.example", port)
            theirs = await end.tunnel("site.example", port, context)
            end.gateway.cut_expired(NOW + timedelta(days=1))
            await theirs.write(b"x")
            assert await theirs.read() == b"x"
            end.gateway.cut_expired(NOW + timedelta(days=2, seconds=1))
            await reset(theirs)
            await mine.write(b"still here")
            assert await mine.read() == b"still here"
            mine.abort()
            await end.eventually(lambda: len(end.lines("end")) == 2)
            assert end.lines("end")[0]["because"] == "the client's certificate has expired"

    run(main())


def test_a_file_of_revocations_that_nobody_can_read_lets_nobody_in(
    run: Run, site: Site, tmp_path: Path
) -> None:
    async def main() -> None:
        async with destination(echo) as port, corporate_end(site, tmp_path) as end:
            tunnel = await end.tunnel("site.example", port)
            waiting = await end.connect()
            assert await probe(waiting, 90)
            end.revoke("this is no serial number")
            for channel in (waiting, await end.connect()):
                answer = await refused(channel, "site.example", port)
                assert "cannot read which certificates are revoked" in answer.because
            await tunnel.write(b"what is open stays")
            assert await tunnel.read() == b"what is open stays"
            end.revoked.unlink()
            answer = await refused(await end.connect(), "site.example", port)
            end.revoked.touch()
            (await end.tunnel("site.example", port)).abort()
            tunnel.abort()

    run(main())


def test_who_says_nothing_is_given_up(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with corporate_end(site, tmp_path, handshake_limit_s=0.05) as end:
            silent, dripping = PlainChannel(end.knock()), PlainChannel(end.knock())
            await dripping.write(b"\x16\x03\x01\x02\x00\x01")
            await reset(silent)
            await reset(dripping)
            assert all("within 0.05 s" in line["because"] for line in end.lines("no handshake"))

    run(main())


def test_a_request_that_drips_is_given_up(
    run: Run, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.gateway.conversation.REQUEST_LIMIT_S", 0.05)

    async def main() -> None:
        async with corporate_end(site, tmp_path) as end:
            channel = await end.connect()
            await channel.write(b"CONNECT site.example:443 HT")
            assert (await read_head(channel)).start == "HTTP/1.1 408 Request Timeout"
            channel.abort()

    run(main())


def test_too_many_strangers_are_turned_away_and_guests_are_served(
    run: Run, site: Site, tmp_path: Path
) -> None:
    async def main() -> None:
        more = "limits: {handshakes: 5, per_address: 5}"
        async with destination(echo) as port, corporate_end(site, tmp_path, more=more) as end:
            tunnel = await end.tunnel("site.example", port)
            strangers = [end.knock() for _ in range(5)]
            await turns(200)
            late = PlainChannel(end.knock())
            assert await late.read() == b""
            await tunnel.write(b"served")
            assert await tunnel.read() == b"served"
            strangers.pop().close()  # kept ready and not needed: nothing to say
            for stranger in strangers:
                stranger.send(b"\x16")
                stranger.close()
            await end.eventually(lambda: len(end.lines("no handshake")) == 4)
            (await end.tunnel("site.example", port)).abort()
            tunnel.abort()
            await late.close()

    run(main())


def test_one_certificate_has_so_many_connections_and_another_its_own(
    run: Run, site: Site, tmp_path: Path
) -> None:
    async def main() -> None:
        other = site.for_client(issue_client(site.authority, "other", now=NOW), tmp_path)
        more = "limits: {per_certificate: 2}"
        async with destination(echo) as port, corporate_end(site, tmp_path, more=more) as end:
            tunnels = [await end.tunnel("site.example", port) for _ in range(2)]
            answer = await refused(await end.connect(), "site.example", port)
            assert (answer.status, "too many connections" in answer.because) == (503, True)
            tunnels.append(await end.tunnel("site.example", port, other))
            tunnels.pop(0).abort()
            await end.eventually(lambda: len(end.gateway.guests) == 2)
            tunnels.append(await end.tunnel("site.example", port))
            for tunnel in tunnels:
                tunnel.abort()

    run(main())


def test_clients_in_all_are_bounded(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with corporate_end(site, tmp_path, more="limits: {clients: 2}") as end:
            guests = [await end.connect() for _ in range(2)]
            assert all([await probe(guest, 90) for guest in guests])
            late = PlainChannel(end.knock())
            assert await late.read() == b""
            await late.close()
            for guest in guests:
                guest.abort()

    run(main())


def test_what_has_not_moved_for_the_idle_limit_is_cut(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            destination(echo) as port,
            corporate_end(site, tmp_path, more="limits: {idle: 100s}") as end,
        ):
            quiet, busy = [await end.tunnel("site.example", port) for _ in range(2)]
            waiting = await end.connect()
            assert await probe(waiting, 90)
            start = asyncio.get_running_loop().time()
            end.gateway.cut_idle(start)
            await busy.write(b"moves")
            assert await busy.read() == b"moves"
            end.gateway.cut_idle(start + 99)
            assert not any(guest.cut_because for guest in end.gateway.guests)
            end.gateway.cut_idle(start + 100)
            await reset(quiet)
            await reset(waiting)
            await busy.write(b"moves on")
            assert await busy.read() == b"moves on"
            busy.abort()
            await end.eventually(lambda: len(end.lines("end")) == 2)
            assert end.lines("end")[0]["because"] == "idle"

    run(main())


def test_what_cannot_be_written_down_does_not_happen(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        reached = []

        async def serve(channel: PlainChannel) -> None:
            reached.append(channel)

        async with destination(serve) as port, corporate_end(site, tmp_path) as end:
            channel = await end.connect()
            end.log.close()
            answer = await refused(channel, "site.example", port)
            assert (answer.status, answer.because) == (503, "the gateway cannot write its log")
            await turns()
            assert not reached
            assert end.log.lost

    run(main())


def test_a_client_that_reads_nothing_makes_nothing_grow(run: Run, site: Site, tmp_path: Path) -> None:
    async def flood(channel: PlainChannel) -> None:
        while True:
            await channel.write(b"x" * 1_000_000)

    async def main() -> None:
        async with destination(flood) as port, corporate_end(site, tmp_path) as end:
            tunnel = await end.tunnel("site.example", port)
            (guest,) = end.gateway.guests
            await end.eventually(lambda: guest.counts.downloaded)
            last = -1
            while guest.counts.downloaded != last:
                last = guest.counts.downloaded
                await turns(500)
            assert 0 < last < 20_000_000  # what the kernel's buffers take
            assert guest.channel is not None
            tunnel.abort()
            await end.eventually(lambda: end.lines("end"))

    run(main())


@pytest.mark.parametrize("how", ["reset", "truncated"])
def test_a_client_that_ends_badly_ends_its_destination_badly(
    run: Run, site: Site, tmp_path: Path, how: str
) -> None:
    async def main() -> None:
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def watch(channel: PlainChannel) -> None:
            try:
                await read_all(channel)
                ended.set_result("end of file")
            except Reset:
                ended.set_result("reset")

        async with destination(watch) as port, corporate_end(site, tmp_path) as end:
            tunnel = await end.tunnel("site.example", port)
            await tunnel.write(b"half")
            if how == "reset":
                tunnel.abort()
            else:
                tunnel._raw._sock.shutdown(socket.SHUT_WR)  # beneath TLS
            assert await ended == "reset"
            await end.eventually(lambda: end.lines("end"))
            expected = {"reset": "reset by the client", "truncated": "client's TLS truncated"}
            assert end.lines("end")[0]["because"] == expected[how]
            tunnel.abort()

    run(main())


def test_many_idle_connections_and_one_that_works(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with destination(echo) as port, corporate_end(site, tmp_path) as end:
            context = site.for_client()
            idle = [await end.tunnel("site.example", port, context) for _ in range(150)]
            assert len(end.gateway.guests) == 150
            tunnel = await end.tunnel("site.example", port, context)
            await tunnel.write(b"served")
            assert await tunnel.read() == b"served"
            for channel in (tunnel, *idle):
                channel.abort()
            await end.eventually(lambda: not end.gateway.guests)

    run(main())


def test_stopping_cuts_everybody_and_says_so(run: Run, site: Site, tmp_path: Path) -> None:
    async def main() -> None:
        async with destination(echo) as port:
            async with corporate_end(site, tmp_path) as end:
                tunnel = await end.tunnel("site.example", port)
                waiting = await end.connect()
                assert await probe(waiting, 90)
            await reset(tunnel)
            await reset(waiting)
            assert end.lines("end")[0]["because"] == "the gateway stopped"

    run(main())
