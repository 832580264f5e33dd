"""The lab's servers, one process for each side: `python servers.py corp|net DIRECTORY`.

`corp` is the intranet: a web site, git over https, a server that speaks first, raw ports, endless streams.
`net` is the public internet and its resolver: whatever reaches it is written to DIRECTORY/net.log.
Standard library only.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

BLOCK = 1 << 20
KEPT_BYTES, DEAF_S = 2 << 20, 120
type Streams = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def block(number: int) -> bytes:
    """One MiB of a long download; every one is different, so that order and loss show in the hash."""
    return number.to_bytes(8) + _FILLER[8:]


_FILLER = hashlib.shake_128(b"lab").digest(BLOCK)


def digest(blocks: int) -> str:
    """The SHA-256 of a download of so many MiB."""
    total = hashlib.sha256()
    for number in range(blocks):
        total.update(block(number))
    return total.hexdigest()


async def _head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ", 2)
    pairs = (line.partition(":") for line in lines[1:] if line)
    return method, target, {name.strip().lower(): value.strip() for name, _, value in pairs}


def web(page: bytes, directory: Path) -> Streams:
    """A web site: pages, /big/MIB, /drip (for ever), POST /upload, a WebSocket at /chat, git below /git/,
    files below /files/."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target, fields = await _head(reader)
        if target.startswith("/git/"):
            body = b"".join([piece async for piece in _body(reader, fields)])
            writer.write(await _git(method, target, fields, body, directory))
        elif target.startswith("/files/"):
            writer.write(_file(directory / target.lstrip("/")))
        elif target.startswith("/big/"):
            await _big(writer, int(target.removeprefix("/big/")))
        elif target == "/chat":
            await _chat(reader, writer, fields)
        elif target == "/drip":
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            while True:
                writer.write(b"drip\n" * 200)
                await writer.drain()
                await asyncio.sleep(0.01)
        else:
            total = hashlib.sha256()
            async for piece in _body(reader, fields):
                total.update(piece)
            said = total.hexdigest().encode() if method == "POST" else page
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(said), said))
        await writer.drain()

    return serve


def _file(path: Path) -> bytes:
    """A file of the site, or that there is none; a directory is its index.html."""
    path = path / "index.html" if path.is_dir() else path
    if not path.is_file():
        return b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    kind = {".html": b"text/html", ".json": b"application/json"}.get(path.suffix, b"application/octet-stream")
    content = path.read_bytes()
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (kind, len(content)) + content


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> AsyncIterator[bytes]:
    if "chunked" in fields.get("transfer-encoding", ""):
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        return
    left = int(fields.get("content-length", "0"))
    while left:
        piece = await reader.readexactly(min(left, BLOCK))
        left -= len(piece)
        yield piece


async def _chat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fields: dict[str, str]) -> None:
    """A WebSocket that says each short message back (RFC 6455)."""
    key = fields["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key).digest())
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    writer.write(b"Sec-WebSocket-Accept: %s\r\n\r\n" % accept)
    while True:
        opcode, length = await reader.readexactly(2)
        mask, data = await reader.readexactly(4), await reader.readexactly(length & 0x7F)
        text = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        writer.write(bytes([opcode, len(text)]) + text)
        await writer.drain()
        if opcode & 0xF == 8:
            return


async def _big(writer: asyncio.StreamWriter, blocks: int) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (blocks * BLOCK))
    for number in range(blocks):
        writer.write(block(number))
        await writer.drain()


async def _git(method: str, target: str, fields: dict[str, str], body: bytes, directory: Path) -> bytes:
    path, _, query = target.removeprefix("/git").partition("?")
    variables = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(directory),
        "GIT_HTTP_EXPORT_ALL": "1",
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": fields.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_CONTENT_ENCODING": fields.get("content-encoding", ""),
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_CONFIG_KEY_1": "http.receivepack",
        "GIT_CONFIG_VALUE_1": "true",
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "git", "http-backend", stdin=pipe, stdout=pipe, env=variables
    )
    out, _ = await process.communicate(body)
    head, _, content = out.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"status:")]
    status = next(
        (line[7:].strip() for line in head.split(b"\r\n") if line.lower()[:7] == b"status:"), b"200 OK"
    )
    length = b"Content-Length: %d" % len(content)
    return b"\r\n".join([b"HTTP/1.1 " + status, *lines, length, b"Connection: close", b"", content])


async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that speaks first, as sshd does, then says back the client's first line."""
    writer.write(b"SSH-2.0-lab\r\n")
    writer.write(b"you said " + await reader.readline())
    await writer.drain()


async def half_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers only once the client has ended its direction."""
    data = await reader.read(-1)
    writer.write(f"{len(data)} {hashlib.sha256(data).hexdigest()}\n".encode())
    await writer.drain()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says back what it hears."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def kept(file: Path) -> Streams:
    """Keeps what it hears in a file, and hears no more in the middle of an upload."""

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        with file.open("wb", buffering=0) as kept:
            while kept.tell() < KEPT_BYTES and (data := await reader.read(65536)):
                kept.write(data)
        await asyncio.sleep(DEAF_S)

    return serve


async def closing(serve: Streams, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A conversation and its end; a client that goes away is no fault."""
    try:
        await serve(reader, writer)
        writer.write_eof()
    except (OSError, EOFError, ValueError):
        writer.transport.abort()
    finally:
        writer.close()


async def corp(directory: Path) -> None:
    """The intranet, on the addresses of world.py."""
    site = web(b"the intranet\n", directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "site.crt", directory / "site.key")
    both = ["10.77.0.80", "fd77::80"]
    upload = kept(directory / "upload")
    for port, serve in ((80, site), (22, banner), (7000, half_closed), (7001, echo), (7002, upload)):
        await asyncio.start_server(_bound(serve), both, port, backlog=1024)
    await asyncio.start_server(_bound(site), both, 443, ssl=context)


def _bound(serve: Streams) -> Streams:
    return lambda reader, writer: closing(serve, reader, writer)


class Resolver(asyncio.DatagramProtocol):
    """A public resolver that answers everybody, and remembers having been asked."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        self._log(f"udp {addr[0]} {data!r}")
        if len(data) > 16 and addr[1]:
            self._transport.sendto(_answer(data), addr)


def _answer(question: bytes) -> bytes:
    """A DNS answer with the public site's address to a question for A."""
    at = 12
    while question[at : at + 1] not in (b"\0", b""):
        at += question[at] + 1
    asked = question[12 : at + 5]
    head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)
    return head + asked + b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + bytes([198, 51, 100, 80])


async def net(directory: Path) -> None:
    """The public internet: a web site and a resolver on every address that `world` gives it."""
    log = (directory / "net.log").open("a", buffering=1)

    def write(line: str) -> None:
        print(line, file=log)

    async def public(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        write(f"tcp {writer.get_extra_info('sockname')} from {writer.get_extra_info('peername')}")
        await web(b"the public internet\n", directory)(reader, writer)

    loop = asyncio.get_running_loop()
    for port in (80, 443, 53, 853, 8443):
        await asyncio.start_server(_bound(public), ["0.0.0.0", "::"], port)
    for address in ("192.0.2.53", "10.200.1.1", "2001:db8:1::1", "198.51.100.80", "2001:db8:80::80"):
        for port in (53, 443):
            await loop.create_datagram_endpoint(lambda: Resolver(write), (address, port))


async def main() -> None:
    """Serve until ended; says so once everything listens."""
    directory = Path(sys.argv[2])
    await {"corp": corp, "net": net}[sys.argv[1]](directory)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
