"""Inspected connections in the test's own event loop: a program, a real tunnel, a destination that records.
No tests are here."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
from leased import Leased, leased
from loopback import Site, turns

from proxy.audit import EndRecord, Record, Segment, VerdictRecord, decode
from proxy.certificates import Issued, issue_server, make_authority
from proxy.channel import PlainChannel
from proxy.flow import NEVER, Flow, IPAddress, Protocol, Verdict
from proxy.flow_table import FlowTable
from proxy.gate import Gate
from proxy.inspection.connection import InspectedConnection
from proxy.inspection.heads import Destination
from proxy.inspection.judging import Judging
from proxy.inspection.tls import TlsSides
from proxy.inspection_ca import Intermediate
from proxy.leaves import Leaves
from proxy.policy import load
from proxy.purse import Accounts
from proxy.recording import Recorder
from proxy.visitor import Visitor

NAME, LIMIT_S = "site.example", 90.0
POLICY = b"""
policy: 1
name: inspection
timezone: UTC
define:
  zones: [corporate]
  destinations: {site: [site.example], chat: [chat.example]}
guards:
  - {id: no-delete, match: {method: DELETE}, at_most: block, because: "nothing is deleted from here"}
  - {id: no-secrets, match: {path: /secret}, at_most: block}
  - {id: no-archives, match: {content_type: application/zip, transfer: upload}, at_most: block}
  - {id: no-programs, match: {content_type: application/x-program, transfer: download}, at_most: block}
  - {id: small-uploads, match: {transfer: upload, size: ">100KiB"}, at_most: block}
  - {id: small-downloads, match: {transfer: download, size: ">1MiB"}, at_most: block}
rules:
  - {id: site, match: {to: site}, verdict: tunnel}
"""
VISITOR = Visitor("b1", "structural")


def trusting(issued: Issued) -> ssl.SSLContext:
    """A program that trusts one authority."""
    context = ssl.create_default_context(cadata=issued.pem)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@dataclass
class Origin:
    """A destination that keeps every byte that reaches it. `answer` is asked after each piece."""

    answer: Callable[[bytes], bytes] = lambda heard: b""
    heard: list[bytearray] = field(default_factory=list)
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def everything(self) -> bytes:
        return b"".join(map(bytes, self.heard))

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = bytearray()
        self.heard.append(heard)
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            if self.serve is not None:
                await self.serve(reader, writer)
            while data := await reader.read(65536):
                heard += data
                if answer := self.answer(bytes(heard)):
                    writer.write(answer)
                    await writer.drain()
                    if b"connection: close" in answer.lower():
                        break
        writer.close()


def whole_requests(body: bytes = b"fine\n", *fields: str) -> Callable[[bytes], bytes]:
    """Answers each request that has come whole, once."""
    head = "".join(f"{one}\r\n" for one in fields)
    kind = "" if "content-type" in head.lower() else "Content-Type: text/plain\r\n"
    answer = f"HTTP/1.1 200 OK\r\n{kind}Content-Length: {len(body)}\r\n{head}\r\n".encode() + body
    answered = 0

    def find(heard: bytes) -> bytes:
        nonlocal answered
        count, at = 0, 0
        while (end := heard.find(b"\r\n\r\n", at)) >= 0:
            head = heard[at:end].lower()
            at = end + 4
            if b"transfer-encoding: chunked" in head:
                stop = heard.find(b"0\r\n\r\n", at)
                if stop < 0:
                    break
                at = stop + 5
            elif b"content-length: " in head:
                at += int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if at > len(heard):
                break
            count += 1
        new, answered = count - answered, count
        return answer * new

    return find


@dataclass
class World:
    """Everything between a program and the destination. Each connection is one InspectedConnection."""

    tunnel: Leased
    origin: Origin
    port: int
    tls: bool
    http2: bool
    gate: Gate
    table: FlowTable
    segment: Segment
    file: Path
    ca: Issued
    tls_sides: TlsSides
    handlers: list[InspectedConnection] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    accounts: Accounts | None = None
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    name: str = NAME
    addresses: tuple[IPAddress, ...] = ()  # those that were judged, through this tunnel
    through: str | None = None

    def enter(self, **changes: Any) -> socket.socket:
        """The program's end of a new connection."""
        ours, theirs = socket.socketpair()
        flow = Flow(
            zone="corporate",
            user="any",
            port=self.port,
            at=datetime.now(UTC),
            name=self.name,
            address=NEVER,
            protocol=Protocol.HTTPS if self.tls else Protocol.HTTP,
        )
        client = PlainChannel(theirs)
        recorder = Recorder(self.gate, self.segment, lambda: datetime.now(UTC))
        judging = Judging(
            self.gate, self.table, recorder, lambda: datetime.now(UTC),
            flow=replace(flow, **changes), visitor=VISITOR, number=f"f{next(self.numbers)}",
            accounts=self.accounts, addresses=self.addresses, through=self.through,
        )  # fmt: skip
        to = Destination(self.name, self.port, self.tls)
        handler = InspectedConnection(client, to, judging, self.tls_sides, http2=self.http2)
        self.handlers.append(handler)
        self.tasks.append(asyncio.create_task(handler.serve()))
        return ours

    async def open(self, *alpn: str, **changes: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A program's connection, with its TLS where the destination has TLS."""
        sock = self.enter(**changes)
        if not self.tls:
            return await asyncio.open_connection(sock=sock)
        context = trusting(self.ca)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        try:
            return await asyncio.open_connection(sock=sock, ssl=context, server_hostname=self.name)
        except BaseException:
            sock.close()
            raise

    async def say(self, *pieces: bytes) -> bytes:
        """All that a program reads that says this, to the end of the connection."""
        try:
            reader, writer = await self.open()
        except (ConnectionError, ssl.SSLError):
            return b"<reset>"
        heard = b""
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            heard = await self.read(reader)
        except (ConnectionError, ssl.SSLError):
            heard += b"<reset>"
        finally:
            writer.close()
        return heard

    async def read(self, reader: asyncio.StreamReader, until: bytes = b"", times: int = 1) -> bytes:
        """What is read until something was seen so many times, or to the end."""
        heard = b""
        async with asyncio.timeout(LIMIT_S):
            while not (until and heard.count(until) >= times):
                try:
                    data = await reader.read(65536)
                except (ConnectionError, ssl.SSLError):
                    return heard + b"<reset>"
                if not data:
                    return heard
                heard += data
        return heard

    async def ended(self) -> None:
        """Every connection is over."""
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*self.tasks)

    def records(self) -> list[Record]:
        return [decode(line) for line in self.file.read_bytes().splitlines()]

    def verdicts(self) -> list[tuple[str, str, str | None]]:
        """Verdict, what decided, and the request of every judgement."""
        return [
            (record.verdict.name.lower(), record.because.id, record.request)
            for record in self.records()
            if isinstance(record, VerdictRecord)
        ]

    def admitted(self) -> int:
        """How many requests were let through."""
        return sum(r.verdict is Verdict.TUNNEL for r in self.records() if isinstance(r, VerdictRecord))

    def ends(self) -> list[EndRecord]:
        return [record for record in self.records() if isinstance(record, EndRecord)]

    def request(self, method: str = "GET", path: str = "/", *fields: str, body: bytes = b"") -> bytes:
        """One request, as a program writes it."""
        host = self.name if self.port in (80, 443) else f"{self.name}:{self.port}"
        head = "".join(f"{one}\r\n" for one in (f"{method} {path} HTTP/1.1", f"Host: {host}", *fields))
        return head.encode() + b"\r\n" + body


@asynccontextmanager
async def inspected(
    site: Site,
    directory: Path,
    origin: Origin,
    *,
    tls: bool = False,
    http2: bool = False,
    origin_http2: bool = True,
    policy: bytes = POLICY,
    trusted: Issued | None = None,
    shown: str = NAME,
) -> AsyncIterator[World]:
    """A world with a destination. `trusted` is another authority than the destination's."""
    now = datetime.now(UTC)
    ca = make_authority("Inspection", now=now, days=7)
    roots = make_authority("Roots", now=now, days=7)
    context = None
    if tls:
        certificate = issue_server(roots, [shown], now=now, days=5)
        files = directory / "origin.pem"
        files.write_bytes(certificate.pem.encode() + certificate.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files)
        context.set_alpn_protocols(["h2", "http/1.1"] if http2 and origin_http2 else ["http/1.1"])
    async with leased(site, directory) as tunnel:
        server = await asyncio.start_server(origin, "127.0.0.1", 0, ssl=context)
        file = directory / "records"
        segment = Segment(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), max_bytes=1 << 20)
        leaves = Leaves(Intermediate(ca, ()), lambda: datetime.now(UTC))
        sides = TlsSides(leaves, (trusted or roots).pem.encode())
        gate = Gate(load(policy, "inspection.policy.yaml"), (tunnel.egress,), inspects=True)
        world = World(
            tunnel, origin, server.sockets[0].getsockname()[1], tls, http2, gate, FlowTable(100), segment,
            file, ca, sides,
        )  # fmt: skip
        try:
            yield world
        finally:
            for handler in world.handlers:
                handler.cut("the test is over")
            await asyncio.gather(*world.tasks, return_exceptions=True)
            server.close()
            for writer in origin.writers:
                writer.transport.abort()
            await turns()  # until no transport is open
            segment.close()


class Http2:
    """A program that speaks HTTP/2 on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.core = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
            )
        )
        self.core.initiate_connection()
        self.status: dict[int, int] = {}
        self.body: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.reset = False

    def ask(self, *fields: tuple[str, str], end: bool = True, **pseudo: str) -> int:
        """Begin a request; its stream."""
        stream: int = self.core.get_next_available_stream_id()
        named = {"method": "GET", "scheme": "https", "path": "/", **pseudo}
        self.core.send_headers(
            stream, [*((f":{key}", value) for key, value in named.items()), *fields], end_stream=end
        )
        return stream

    async def flush(self) -> None:
        self._writer.write(self.core.data_to_send())
        await self._writer.drain()

    async def until_ended(self, *streams: int) -> None:
        """Read until these streams, or the connection, have ended."""
        await self.flush()
        async with asyncio.timeout(LIMIT_S):
            while not self.reset and not self.ended.issuperset(streams):
                await self.step()

    async def step(self) -> None:
        """Read once."""
        try:
            data = await self._reader.read(65536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            self.reset = True
            return
        for event in self.core.receive_data(data):
            match event:
                case h2.events.ResponseReceived():
                    self.status[event.stream_id] = int(dict(event.headers)[b":status"])
                case h2.events.DataReceived():
                    self.body[event.stream_id] = self.body.get(event.stream_id, b"") + event.data
                    self.core.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded() | h2.events.StreamReset():
                    self.ended.add(event.stream_id)
                case h2.events.ConnectionTerminated():
                    self.reset = True
        await self.flush()

    def close(self) -> None:
        self._writer.close()


async def serve_http2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: bytearray) -> None:
    """A destination that speaks HTTP/2: keeps heads and bodies, echoes bodies, answers with trailers."""
    core = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    core.initiate_connection()
    writer.write(core.data_to_send())
    while data := await reader.read(65536):
        for event in core.receive_data(data):
            match event:
                case h2.events.TrailersReceived():
                    heard += b"".join(b"behind %s: %s\n" % (key, value) for key, value in event.headers)
                case h2.events.RequestReceived():
                    heard += b"".join(b"%s: %s\n" % (key, value) for key, value in event.headers)
                    kind = (":status", "200"), ("content-type", "text/plain")
                    core.send_headers(event.stream_id, kind)
                case h2.events.DataReceived():
                    heard += event.data
                    core.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    core.send_data(event.stream_id, event.data)
                case h2.events.StreamEnded():
                    core.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
        writer.write(core.data_to_send())
        await writer.drain()


WEBSOCKET = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Extensions: permessage-deflate",
)


def websocket_echo(heard: bytes) -> bytes:
    """A destination that takes a WebSocket and sends one message back for what it hears first."""
    _, found, rest = heard.partition(b"\r\n\r\n")
    if not found:
        return b""
    if not rest:
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
    return b"\x81\x05hello"


def masked(text: bytes, opcode: int = 0x81) -> bytes:
    """A frame of a client, under a mask of zeros."""
    length = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2)
    return bytes([opcode]) + length + bytes(4) + text
