"""QUIC by other hands: `quic.py PACKAGES serve HOST PORT CERTIFICATE KEY`, or `... ask NAME PORT CA`.

PACKAGES is the directory of aioquic. The server says back what it hears on a stream; so does the client.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.append(sys.argv[1])

from aioquic.asyncio.client import connect
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say back everything, once it has come."""
    writer.write((await reader.read()).upper())
    writer.write_eof()


async def server(host: str, port: str, certificate: str, key: str) -> None:
    """Serve until ended."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["lab"])
    configuration.load_cert_chain(Path(certificate), Path(key))
    waiting: set[asyncio.Task[None]] = set()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting.add(asyncio.create_task(answer(reader, writer)))

    await serve(host, int(port), configuration=configuration, stream_handler=handle)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def client(name: str, port: str, ca: str, claimed: str = "") -> None:
    """One connection, and a stream on it that is a hundred packets long."""
    configuration = QuicConfiguration(alpn_protocols=["lab"], server_name=claimed or name)
    configuration.load_verify_locations(ca)
    try:
        async with (
            asyncio.timeout(2 if claimed else 60),
            connect(name, int(port), configuration=configuration) as connection,
        ):
            reader, writer = await connection.create_stream()
            writer.write(b"quic" * 30_000)
            writer.write_eof()
            print("whole" if await reader.read() == b"QUIC" * 30_000 else "torn", flush=True)
    except (OSError, TimeoutError) as error:
        print(f"failed: {error!r}", flush=True)


if __name__ == "__main__":
    asyncio.run(server(*sys.argv[3:]) if sys.argv[2] == "serve" else client(*sys.argv[3:]))
