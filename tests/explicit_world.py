"""An explicit listener with a real tunnel, a real gateway and real records behind it. No tests are here."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from corporate_end import destination, echo
from leased import Leased, leased
from loopback import Site

from proxy import passwords
from proxy.audit import EndRecord, Record, Segment, VerdictRecord, decode
from proxy.channel import Backlog, Channel
from proxy.datagram_passage import DatagramPassage
from proxy.explicit.associations import Associations
from proxy.explicit.listener import Explicit, server_side
from proxy.explicit.logins import Failures, Login, Logins
from proxy.explicit.web import House
from proxy.flow import NEVER, Flow, IPAddress
from proxy.flow_table import FlowTable
from proxy.gate import Gate
from proxy.passage import Passage
from proxy.policy import load

POLICY = b"""
policy: 1
name: explicit
define:
  zones: [corporate]
  groups: [staff]
  destinations: {site: [site.example, xn--bcher-kva.example], literal: [127.0.0.0/8], nowhere: [wan.example]}
rules:
  - {id: closed, match: {to: site, user: bob}, verdict: block, because: not for bob, owner: the site's desk}
  - {id: web, match: {to: site, protocol: [http, https], user: web}, verdict: tunnel}
  - {id: staff, match: {to: [site, literal, nowhere], group: staff}, verdict: tunnel}
"""
PEOPLE = [
    ["alice", ["corporate"], ["staff"]],
    ["bob", ["corporate"], []],
    ["web", ["corporate"], []],
    ["anonymous", ["corporate"], ["staff"]],
    ["laptop", ["corporate"], ["staff"]],
    ["mallory", ["lab"], ["staff"]],
]
PASSWORD = b"correct: horse"
LOGINS = ("alice", "bob", "web", "mallory")


def basic(login: str = "alice", password: bytes = PASSWORD) -> bytes:
    """The field with which a client of the HTTP proxy logs in."""
    return b"Proxy-Authorization: Basic " + b64encode(login.encode() + b":" + password) + b"\r\n"


class Explicitly:
    """A listener, what is behind it, and what was written down."""

    def __init__(self, tunnel: Leased, port: int, directory: Path, lines: str, **more: Any) -> None:
        self.tunnel, self.port, self._file = tunnel, port, directory / "records"
        self.gate = Gate(load(POLICY, "explicit.policy.yaml"), (tunnel.egress,))
        self.table = FlowTable(100)
        fd = os.open(self._file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self.segment = Segment(fd, max_bytes=1 << 20)
        numbers = map("f{}".format, itertools.count(1))
        now = lambda: datetime(2026, 1, 5, 12, tzinfo=UTC)  # noqa: E731
        self.passage = Passage(self.gate, self.table, self.segment, now, lambda: next(numbers))
        self.seconds = 0.0
        self.failures = Failures(lambda: self.seconds)
        contents = json.dumps({"people": PEOPLE, "passwords": lines}).encode()
        self.logins = Logins("corporate", contents, self.failures)
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.sock.getsockname()
        auth = more.pop("auth", "none")
        context = server_side(*more.pop("tls")) if "tls" in more else None
        datagrams = DatagramPassage(self.passage, self.gate, self.table, (tunnel.egress,))
        associations = Associations(datagrams, 100, lambda: True)
        house = House("proxy", auth, self.logins, self.passage, self._new_flow, associations)
        most = more.pop("most", 100)
        room: Callable[[], bool] = more.pop("room", lambda: True)
        kind = more.pop("kind", "http")
        assert not more
        self.now = datetime.now(UTC)
        now = lambda: self.now  # noqa: E731
        self.explicit = Explicit(kind, self.sock, house, context, Backlog(), most, room, now)

    def _new_flow(self, login: Login, host: str | IPAddress | None, port: int) -> Flow:
        at = datetime(2026, 1, 5, 12, tzinfo=UTC)
        flow = Flow(zone="corporate", user=login.name, groups=login.groups, port=port, at=at, address=NEVER)
        if isinstance(host, IPv4Address | IPv6Address):
            return replace(flow, address=host)
        return flow if host is None else replace(flow, name=host)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client."""
        return await asyncio.open_connection(*self.address)

    async def say(self, *pieces: bytes, end: bool = False) -> bytes:
        """What a client that says this reads to the end; a reset is an end, too."""
        heard = b""
        try:
            reader, writer = await self.connect()
        except ConnectionError:  # so soon that the client was not yet told that it is connected
            return heard
        with suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if end:
                writer.write_eof()
            while data := await reader.read(65536):
                heard += data
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        return heard

    def records(self) -> list[Record]:
        """What was written down."""
        return [decode(line) for line in self._file.read_bytes().splitlines()]

    def verdicts(self) -> list[VerdictRecord]:
        """The verdicts."""
        return [record for record in self.records() if isinstance(record, VerdictRecord)]

    def ends(self) -> list[EndRecord]:
        """The ends."""
        return [record for record in self.records() if isinstance(record, EndRecord)]

    async def quiet(self) -> None:
        """Wait until nobody is connected."""
        async with asyncio.timeout(90):
            while len(self.explicit):
                await asyncio.sleep(0.005)


@asynccontextmanager
async def explicitly(
    site: Site, directory: Path, serve: Any = echo, lines: str = "", **more: Any
) -> AsyncIterator[Explicitly]:
    """A listener in front of a destination that `serve`s."""
    async with leased(site, directory) as tunnel, destination(serve) as port:
        there = Explicitly(tunnel, port, directory, lines, **more)
        try:
            yield there
        finally:
            there.explicit.close()
            await there.quiet()
            there.segment.close()


def password_lines() -> str:
    """A file of passwords; slow, so make it once."""
    return "".join(f"{passwords.line(login, PASSWORD)}\n" for login in LOGINS)


async def web(channel: Channel) -> None:
    """A destination that speaks HTTP: says what it was asked, and what it got."""
    head = b""
    while b"\r\n\r\n" not in head:
        more = await channel.read()
        if not more:
            return
        head += more
    head, _, body = head.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length or (b"transfer-encoding" in head and not body.endswith(b"0\r\n\r\n")):
        if not (more := await channel.read()):
            return
        body += more
    said = head + b"\r\n\r\n" + body
    await channel.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Kept: yes\r\n\r\n" % len(said) + said)
    await channel.read()
    await channel.close()
