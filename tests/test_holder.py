"""The holder of an mtls tunnel, as a process, against gateways that do everything to it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from loopback import Site

from proxy import ipc, sandbox
from proxy.certificates import issue_client, issue_server, make_authority, write_issued
from proxy.link import Link
from proxy.messages.holding import Dial, Dialled, Evidence, Hold, Serve, TunnelSetup

LIMIT_S = 90.0
SETUP = TunnelSetup("gw", "127.0.0.1", 0, "gate.example", (), False)

type Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


def run(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await main

    asyncio.run(limited())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@contextlib.asynccontextmanager
async def gateway(
    context: ssl.SSLContext | None, behave: Behave, *, refuses: bool = True
) -> AsyncIterator[int]:
    """A gateway on loopback; gives its port. What must be refused it refuses, and behaves so to the rest."""

    serving: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        task.add_done_callback(serving.discard)
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            first = await reader.read(65536)
            if refuses and first.startswith(b"CONNECT 0.0.0.0:1 "):
                await say(writer, b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n")
            else:
                if first:
                    reader.feed_data(first)  # nothing came since: who asks waits for an answer
                await behave(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


class Held:
    """A holder's process and our end of its link."""

    def __init__(self, process: subprocess.Popen[bytes], link: Link[Evidence]) -> None:
        self.process, self.link = process, link

    async def evidence(self, wanted: Callable[[Evidence], bool] = lambda _: True) -> Evidence:
        """The next evidence that is wanted."""
        while True:
            found, _ = await self.link.receive()
            if wanted(found):
                return found

    async def news(self) -> Evidence:
        """The next evidence but that it is connecting."""
        return await self.evidence(lambda found: found.words != "connecting")

    def worker(self) -> Link[Dialled]:
        """A worker's link to the holder."""
        ours, theirs = ipc.pair()
        self.link.send(Serve(), [theirs.fileno()])
        theirs.close()
        return Link(ours, [Dialled])


@contextlib.asynccontextmanager
async def holder(
    site: Site,
    setup: TunnelSetup,
    *,
    files: list[bytes] | None = None,
    uid: int = 0,
    limit_ms: int = 60_000,
    before: str = "",
) -> AsyncIterator[Held]:
    """A holder; it must have ended by itself, and without a word, a moment after its link."""
    ours, theirs = ipc.pair()
    command = sandbox.python_command("holder", str(theirs.fileno()), bare=True)
    command[4] = before + command[4]
    process = _start(command, theirs.fileno())
    theirs.close()
    link: Link[Evidence] = Link(ours, [Evidence])
    contents = files or [site.authority.pem.encode(), *(file.read_bytes() for file in site.client_files)]
    fds = [ipc.memory_file("tunnel", content) for content in contents]
    link.send(Hold(setup, 20, limit_ms, uid), fds)
    ipc.close_all(fds)
    try:
        yield Held(process, link)
    finally:
        link.close()
        try:
            _, errors = await asyncio.to_thread(process.communicate, timeout=LIMIT_S)
        finally:
            process.kill()
            process.wait()
    assert (process.returncode, errors) == (0, b"")


def _start(command: list[str], fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)


async def answer_always(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(NO_CONTENT)


# -- what is seen of a gateway -----------------------------------------------------------------------


def test_a_good_gateway_is_seen_again_and_again(site: Site) -> None:
    requests = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(NO_CONTENT)

    async def main() -> None:
        before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        async with (
            gateway(site.for_server(), behave) as port,
            holder(site, replace(SETUP, port=port)) as held,
        ):
            assert await held.evidence() == Evidence("", 0, False, False, "connecting")
            seen = [await held.evidence() for _ in range(3)]
            after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        times = [one.answered_ns for one in seen]
        assert before_ns < times[0] < times[1] < times[2] < after_ns
        assert {base64.b64decode(one.certificate) for one in seen} == {site.server.der}
        assert {(one.broken, one.wrong_peer, one.words) for one in seen} == {(False, False, "answering")}
        assert set(requests) == {b"OPTIONS * HTTP/1.1\r\nHost: gate.example\r\n\r\n"}

    run(main())


@pytest.mark.parametrize("expires", [False, True])
def test_a_certificate_that_expires_is_asked_for_again(site: Site, expires: bool) -> None:
    """Also after years on one connection: what is attested is what the gateway has now."""
    connections = 0

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answer_always(reader, writer)

    async def main() -> None:
        later = "import time; time.time = lambda: 4e9; " if expires else ""
        async with (
            gateway(site.for_server(), behave) as port,
            holder(site, replace(SETUP, port=port), before=later) as held,
        ):
            for _ in range(4):
                assert (await held.news()).words == "answering"
        assert connections >= 3 if expires else connections == 1

    run(main())


@dataclass(frozen=True, slots=True)
class Impostor:
    sentence: str
    words: str
    authority: str = "site"
    names: tuple[str, ...] = ("gate.example",)
    days: int = 30

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        Impostor("another authority", "unable to get local issuer certificate", authority="other"),
        Impostor("another name", "Hostname mismatch", names=("other.example",)),
        Impostor("a name for all", "Hostname mismatch", names=("*.example.org",)),
        Impostor("a certificate that has expired", "certificate has expired", days=-1),
    ],
    ids=str,
)
def test_an_impostor_is_a_wrong_peer(site: Site, tmp_path: Path, case: Impostor) -> None:
    now = datetime.now(UTC)
    authority = site.authority if case.authority == "site" else make_authority("site", now=now)
    issued = issue_server(authority, case.names, now=now - timedelta(days=60), days=60 + case.days)
    context = site.for_server(write_issued(issued, tmp_path, "impostor"))

    async def main() -> None:
        async with gateway(context, answer_always) as port, holder(site, replace(SETUP, port=port)) as held:
            seen = await held.news()
            assert (seen.certificate, seen.answered_ns, seen.broken, seen.wrong_peer) == ("", 0, True, True)
            assert case.words.lower() in seen.words.lower()

    run(main())


def test_another_key_of_the_same_authority_is_shown_for_the_pin_to_judge(site: Site, tmp_path: Path) -> None:
    issued = issue_server(site.authority, ["gate.example"], now=datetime.now(UTC))
    context = site.for_server(write_issued(issued, tmp_path, "other"))

    async def main() -> None:
        async with gateway(context, answer_always) as port, holder(site, replace(SETUP, port=port)) as held:
            assert base64.b64decode((await held.news()).certificate) == issued.der

    run(main())


async def say(writer: asyncio.StreamWriter, *pieces: bytes) -> None:
    """Say it in pieces, each in a record of its own."""
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)


def scripted(*pieces: bytes, then: str = "wait") -> Behave:
    """A gateway that answers the first probe so, and the later ones not at all."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await say(writer, *pieces)
        if then == "wait":
            await reader.read()
        elif then == "close":
            writer.close()
            await writer.wait_closed()

    return behave


@dataclass(frozen=True, slots=True)
class Answer:
    sentence: str
    pieces: tuple[bytes, ...]
    words: str  # of the evidence after it; "answering" is good
    then: str = "wait"

    def __str__(self) -> str:
        return self.sentence


@pytest.mark.parametrize(
    "case",
    [
        Answer("204", (NO_CONTENT,), "answering"),
        Answer("200 with a body", (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",), "answering"),
        Answer("byte by byte", tuple(bytes([byte]) for byte in NO_CONTENT), "answering"),
        Answer("no reason phrase", (b"HTTP/1.1 204\r\n\r\n",), "answering"),
        Answer("403", (b"HTTP/1.1 403 Forbidden\r\n\r\n",), "answers the probe with 403: is this client's"),
        Answer("500", (b"HTTP/1.1 500 \r\n\r\n",), "answers the probe with 500"),
        Answer("no HTTP", (b"220 ready\r\n\r\n",), "is not HTTP"),
        Answer("HTTP/2", (b"HTTP/2 200 OK\r\n\r\n",), "is not HTTP"),
        Answer("a status of many digits", (b"HTTP/1.1 " + b"2" * 5000 + b"\r\n\r\n",), "is not HTTP"),
        Answer("a negative status", (b"HTTP/1.1 -20 OK\r\n\r\n",), "is not HTTP"),
        Answer("nothing but an end", (b"\r\n\r\n",), "is not HTTP"),
        Answer(
            "a body without length",
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",),
            "has a body of unknown length",
        ),
        Answer("a huge body", (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n",), "is too long"),
        Answer("a length that is none", (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",), "is too long"),
        Answer("a header without end", (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,), "is too long"),
        Answer("a close instead of an answer", (), "closed the connection", then="close"),
        Answer("a reset instead of an answer", (), "", then="reset"),
        Answer("half an answer", (b"HTTP/1.1 20",), "closed the connection", then="close"),
    ],
    ids=str,
)
def test_answers_to_the_probe(site: Site, case: Answer) -> None:
    async def main() -> None:
        behave = scripted(*case.pieces, then=case.then)
        async with (
            gateway(site.for_server(), behave) as port,
            holder(site, replace(SETUP, port=port)) as held,
        ):
            seen = await held.news()
            assert case.words in seen.words
            assert seen.broken is (case.words != "answering")
            assert not seen.wrong_peer
            if seen.broken:
                assert (seen.certificate, seen.answered_ns) == ("", 0)
                assert await held.news()  # and it asks again

    run(main())


def test_who_says_yes_to_everything_is_a_wrong_peer_and_never_asked_again_for_life(site: Site) -> None:
    """Whatever it is asked, it says 200: its word that something is refused would be worth nothing."""
    heard = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async def main() -> None:
        async with (
            gateway(site.for_server(), behave, refuses=False) as port,
            holder(site, replace(SETUP, port=port)) as held,
        ):
            seen = await held.news()
            assert "says yes to everything" in seen.words
            assert (seen.certificate, seen.answered_ns, seen.broken, seen.wrong_peer) == ("", 0, True, True)
        assert heard == [b"CONNECT 0.0.0.0:1 HTTP/1.1\r\nHost: 0.0.0.0:1\r\n\r\n"]

    run(main())


@pytest.mark.parametrize("status", [200, 403, 407, 400, 502, 503])
def test_a_gateway_that_must_admit_something_and_does_not_is_broken(site: Site, status: int) -> None:
    """Although it answers the probe of everybody. That nobody is there is the same as yes."""
    asked = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.readuntil(b"\r\n\r\n"):
            asked.append(request.partition(b"\r\n")[0])
            told = b"HTTP/1.1 %d\r\n\r\n" % status
            await say(writer, told if request.startswith(b"CONNECT") else NO_CONTENT)

    async def main() -> None:
        setup = replace(SETUP, must_admit="intranet.example:443")
        async with (
            gateway(site.for_server(), behave) as port,
            holder(site, replace(setup, port=port)) as held,
        ):
            seen = await held.news()
            assert seen.broken is (status in (400, 403, 407)) and not seen.wrong_peer
            assert seen.answered_ns or f"CONNECT intranet.example:443 with {status}" in seen.words
            assert asked[0] == b"CONNECT intranet.example:443 HTTP/1.1"

    run(main())


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 501 No\r\nConnection: close\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"]
)
def test_a_gateway_that_ends_the_connection_after_each_answer_lives(site: Site, said: bytes) -> None:
    """And it may not know the question: it is asked again on another connection, and nothing is broken."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await say(writer, said + b"what else there is to say")

    async def main() -> None:
        async with (
            gateway(site.for_server(), behave) as port,
            holder(site, replace(SETUP, port=port)) as held,
        ):
            seen = [await held.news() for _ in range(4)]
            assert all(one.answered_ns and not one.broken for one in seen), seen
            assert len({one.answered_ns for one in seen}) == 4

    run(main())


@pytest.mark.parametrize("after", ["the first answer", "the third answer", "the third question"])
def test_a_gateway_that_ends_what_is_idle_in_order_is_judged_anew_and_stays_proved(
    site: Site, after: str
) -> None:
    """It is reloaded: its proof has no gap. What it must refuse it is asked again, on each connection."""
    asked = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers = 0
        while answers < (1 if after == "the first answer" else 3):
            question = (await reader.readuntil(b"\r\n\r\n")).partition(b" ")[0]
            asked.append(question)
            if (after, answers) == ("the third question", 2):
                break
            is_probe = question == b"OPTIONS"
            answers += is_probe
            await say(writer, NO_CONTENT if is_probe else b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with (
            gateway(site.for_server(), behave, refuses=False) as port,
            holder(site, replace(SETUP, port=port)) as held,
        ):
            seen = [await held.news() for _ in range(10)]
        assert all(one.answered_ns and not one.broken for one in seen), seen
        ways = b" ".join(asked).split(b"CONNECT")
        assert len(ways) > 3 and all(way.split() for way in ways[1:-1]), ways

    run(main())


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (b"", "the gateway closed"),
        (b"HTTP/1.1 403 \r\n\r\n", "with 403"),
        (b"220 ready\r\n\r\n", "is not HTTP"),
    ],
)
def test_a_gateway_that_ends_in_order_and_is_not_proved_anew_is_lost(
    site: Site, then: bytes, words: str
) -> None:
    said = iter([NO_CONTENT])

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await say(writer, next(said, then))
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with (
            gateway(site.for_server(), behave) as port,
            holder(site, replace(SETUP, port=port)) as held,
        ):
            assert (await held.news()).answered_ns
            seen = await held.news()
            assert seen.broken and words in seen.words, seen

    run(main())


@pytest.mark.parametrize(("then", "words"), [("reset", "broke"), ("talk", "spoke unasked")])
def test_a_connection_that_breaks_between_two_probes_is_lost_at_once(
    site: Site, then: str, words: str
) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await say(writer, NO_CONTENT)
        if then == "talk":
            await say(writer, b"x")
            await reader.read()
        else:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def main() -> None:
        async with (
            gateway(site.for_server(), behave) as port,
            holder(site, replace(SETUP, port=port)) as held,
        ):
            assert (await held.news()).answered_ns
            seen = await held.news()
            assert seen.broken and words in seen.words, seen

    run(main())


def test_a_gateway_that_falls_silent_is_not_called_broken(site: Site) -> None:
    """Whether its proof is still fresh is judged by the clock, not by the holder."""

    async def main() -> None:
        behave = scripted(NO_CONTENT)
        async with (
            gateway(site.for_server(), behave) as port,
            holder(site, replace(SETUP, port=port), limit_ms=100) as held,
        ):
            await held.evidence(lambda found: found.answered_ns > 0)
            seen = await held.evidence(lambda found: not found.answered_ns)
            assert (seen.broken, seen.wrong_peer) == (False, False)
            assert seen.words == f"no answer from 127.0.0.1:{port} in 0.1 s"

    run(main())


def test_a_gateway_that_refuses_the_clients_certificate_is_quoted(site: Site) -> None:
    stranger = issue_client(make_authority("other", now=datetime.now(UTC)), "laptop", now=datetime.now(UTC))

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A TLS server by hand: asyncio's own sends no alert."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = site.for_server().wrap_bio(incoming, outgoing, server_side=True)
        done = False
        while not done:
            incoming.write(await reader.read(65536))
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                done = True
            await say(writer, outgoing.read())
        await reader.read()

    async def main() -> None:
        files = [site.authority.pem.encode(), stranger.pem.encode(), stranger.key_pem]
        async with (
            gateway(None, behave) as port,
            holder(site, replace(SETUP, port=port), files=files) as held,
        ):
            seen = await held.news()
            assert (seen.broken, seen.wrong_peer) == (True, False)
            assert "the gateway refused this client (" in seen.words
            assert "unknown ca" in seen.words

    run(main())


def test_a_gateway_that_speaks_an_older_tls_is_none(site: Site) -> None:
    context = site.for_server()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2

    async def main() -> None:
        async with gateway(context, answer_always) as port, holder(site, replace(SETUP, port=port)) as held:
            seen = await held.news()
            assert (seen.broken, seen.answered_ns) == (True, 0)

    run(main())


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\x16\x03\x03\xff\xff", b""]
)
def test_what_speaks_no_tls_is_no_gateway(site: Site, said: bytes) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await say(writer, said)

    async def main() -> None:
        async with gateway(None, behave) as port, holder(site, replace(SETUP, port=port)) as held:
            seen = await held.news()
            assert (seen.broken, seen.wrong_peer, seen.answered_ns) == (True, False, 0)

    run(main())


def test_nobody_there_is_said(site: Site) -> None:
    async def main() -> None:
        async with gateway(None, answer_always) as port:
            pass
        async with holder(site, replace(SETUP, port=port)) as held:
            seen = await held.news()
            assert seen.broken
            assert seen.words == f"127.0.0.1:{port} cannot be reached: Connection refused"

    run(main())


def test_a_gateway_without_an_address_is_said(site: Site) -> None:
    async def main() -> None:
        async with holder(site, replace(SETUP, host="gateway.invalid", port=1)) as held:
            seen = await held.news()
            assert seen.broken
            assert "gateway.invalid:1 " in seen.words

    run(main())


# -- its own files and process -----------------------------------------------------------------------


@pytest.mark.parametrize("what", ["no CA", "no certificate", "another key", "a key with a password"])
def test_files_that_are_of_no_use_are_said_and_the_holder_stays(site: Site, what: str) -> None:
    ca, certificate, key = (
        site.authority.pem.encode(),
        *(file.read_bytes() for file in site.client_files),
    )
    match what:
        case "no CA":
            ca = b"nonsense"
        case "no certificate":
            certificate = b"nonsense"
        case "another key":
            key = site.server.key_pem
        case _:
            encryption = serialization.BestAvailableEncryption(b"x")
            form = serialization.PrivateFormat.PKCS8
            key = site.client.key.private_bytes(serialization.Encoding.PEM, form, encryption)

    async def main() -> None:
        async with holder(site, SETUP, files=[ca, certificate, key]) as held:
            seen = await held.evidence()
            assert seen.broken
            assert seen.words.startswith("the tunnel's ca, certificate or key cannot be used: ")
            held.worker().close()
            held.worker().close()

    run(main())


def test_a_hung_resolver_does_not_hold_up_the_end(site: Site) -> None:
    before = """
import socket, time
def hung(*arguments, flags=0, **more):
    if flags & socket.AI_NUMERICHOST:
        raise socket.gaierror
    time.sleep(1000)
socket.getaddrinfo = hung
"""

    async def main() -> None:
        async with holder(site, replace(SETUP, host="gate.example"), before=before, limit_ms=100) as held:
            seen = await held.evidence(lambda found: found.broken)
            assert seen.words == "gate.example:0 did not answer in 1 s"

    run(main())


def test_a_holder_keeps_no_descriptor_of_the_keys_and_no_privilege(site: Site) -> None:
    async def main() -> None:
        async with (
            gateway(site.for_server(), answer_always) as port,
            holder(site, replace(SETUP, port=port), uid=65534) as held,
        ):
            assert (await held.news()).answered_ns
            there = Path(f"/proc/{held.process.pid}")
            command = (there / "cmdline").read_bytes()
            assert b"PRIVATE KEY" not in command
            if os.getuid() == 0:
                assert b"PRIVATE KEY" not in (there / "environ").read_bytes()
                status = dict(line.split(":\t", 1) for line in (there / "status").read_text().splitlines())
                assert (status["Uid"], status["Gid"]) == ("\t".join(["65534"] * 4),) * 2
                assert status["Groups"].strip() == ""
                names = [str(entry.readlink()) for entry in (there / "fd").iterdir()]
                assert not [name for name in names if "memfd" in name]

    run(main())


def test_nonsense_from_the_supervisor_ends_the_holder(site: Site) -> None:
    async def main() -> None:
        async with holder(site, replace(SETUP, port=1)) as held:
            await held.evidence()
            fds = [ipc.memory_file("x", b"") for _ in range(3)]
            held.link.send(Hold(SETUP, 1, 1, 0), fds)
            ipc.close_all(fds)
            with pytest.raises(ipc.LinkBroken):
                while True:
                    await held.evidence()

    run(main())


# -- sockets for workers -----------------------------------------------------------------------------


def test_a_worker_is_given_silent_sockets_to_the_gateway_and_to_nobody_else(site: Site) -> None:
    heard = asyncio.Queue[bytes]()

    async def behave(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        heard.put_nowait(await reader.read(100))

    async def main() -> None:
        async with gateway(None, behave) as port, holder(site, replace(SETUP, port=port)) as held:
            worker = held.worker()
            for number in range(20):
                worker.send(Dial(1))
                answer, fds = await worker.receive()
                assert (answer.trouble, len(fds)) == ("", 1)
                assert not os.get_blocking(fds[0])
                os.write(fds[0], b"mine %d" % number)
                while not (said := await heard.get()).startswith(b"mine"):
                    assert said[:1] in (b"\x16", b"")  # the probe's hello, or a warm socket's end
                assert said == b"mine %d" % number
                ipc.close_all(fds)
            worker.close()

    run(main())


def test_many_sockets_at_once(site: Site) -> None:
    async def behave(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async def main() -> None:
        async with gateway(None, behave) as port, holder(site, replace(SETUP, port=port)) as held:
            worker = held.worker()
            worker.send(Dial(ipc.MAX_DESCRIPTORS))
            answer, fds = await worker.receive()
            assert (answer.trouble, len(fds)) == ("", ipc.MAX_DESCRIPTORS)
            ipc.close_all(fds)
            worker.close()

    run(main())


def test_a_worker_hears_why_it_gets_no_socket(site: Site) -> None:
    async def main() -> None:
        async with gateway(None, answer_always) as port:
            pass
        async with holder(site, replace(SETUP, port=port)) as held:
            worker = held.worker()
            worker.send(Dial(3))
            answer, fds = await worker.receive()
            assert (answer.trouble, fds) == (f"127.0.0.1:{port} cannot be reached: Connection refused", [])
            worker.close()

    run(main())
