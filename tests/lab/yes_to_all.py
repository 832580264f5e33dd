"""A gateway that says yes to whatever it is asked: `yes_to_all.py ADDRESS PORT DIRECTORY`.

It shows DIRECTORY's server.crt and asks for no client certificate. Standard library only.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say 200 to every head."""
    try:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await writer.drain()
    except (OSError, EOFError):
        writer.transport.abort()


async def main() -> None:
    """Serve until ended; says so once it listens."""
    address, port, directory = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(directory) / "server.crt", Path(directory) / "server.key")
    await asyncio.start_server(serve, address, int(port), ssl=context)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
