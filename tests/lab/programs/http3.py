"""HTTP/3 by other hands: `http3.py PACKAGES serve HOST PORT CERTIFICATE KEY`, `... get NAME PORT CA SECONDS`.

PACKAGES is the directory of aioquic. The server has one page; the client prints what it got.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.append(sys.argv[1])

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

PAGE = b"the intranet, by HTTP/3\n" * 2_000  # some fifty datagrams


class Connection(QuicConnectionProtocol):
    """One end of a connection that carries HTTP/3."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Before anything is said."""
        super().connection_made(transport)
        self.http, self.page, self.whole = H3Connection(self._quic), b"", asyncio.Event()

    def quic_event_received(self, event: QuicEvent) -> None:
        """Understand what QUIC says."""
        for said in self.http.handle_event(event):
            self.said(said)

    def said(self, event: H3Event) -> None:
        """A server answers each request; a client gathers the page."""
        is_client = self._quic.configuration.is_client
        if isinstance(event, HeadersReceived) and not is_client:
            fields = dict(event.headers)
            found = fields[b":authority"].startswith(b"intranet.") and fields[b":path"] == b"/"
            status = b"200" if found else b"404"
            self.http.send_headers(event.stream_id, [(b":status", status), (b"server", b"lab")])
            self.http.send_data(event.stream_id, PAGE if found else b"", end_stream=True)
            self.transmit()
        elif isinstance(event, HeadersReceived):
            self.status = dict(event.headers)[b":status"].decode()
        elif isinstance(event, DataReceived) and is_client:
            self.page += event.data
        if is_client and isinstance(event, HeadersReceived | DataReceived) and event.stream_ended:
            self.whole.set()

    async def get(self, name: str) -> str:
        """Ask for the page: the status, its first line and its length."""
        stream = self._quic.get_next_available_stream_id()
        head = ((":method", "GET"), (":scheme", "https"), (":authority", name), (":path", "/"))
        fields = [(key.encode(), value.encode()) for key, value in head]
        self.http.send_headers(stream, fields, end_stream=True)
        self.transmit()
        await self.whole.wait()
        return f"{self.status} {self.page[: self.page.find(b'\n')].decode()} {len(self.page)}"


async def server(host: str, port: str, certificate: str, key: str) -> None:
    """Serve until ended."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(Path(certificate), Path(key))
    await serve(host, int(port), configuration=configuration, create_protocol=Connection)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def client(name: str, port: str, ca: str, limit_s: str) -> None:
    """Get the page."""
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN, server_name=name)
    configuration.load_verify_locations(ca)
    try:
        async with (
            asyncio.timeout(float(limit_s)),
            connect(name, int(port), configuration=configuration, create_protocol=Connection) as connection,
        ):
            assert isinstance(connection, Connection)
            print(await connection.get(name), flush=True)
    except (OSError, TimeoutError) as error:
        print(f"failed: {error!r}", flush=True)


if __name__ == "__main__":
    asyncio.run(server(*sys.argv[3:]) if sys.argv[2] == "serve" else client(*sys.argv[3:]))
