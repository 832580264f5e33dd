"""The holder of an mtls tunnel: dials the one pinned gateway from the host's network, and probes it.

It decides nothing. To the supervisor it says what it saw (Evidence); to workers it hands connected,
still silent sockets. It carries no traffic: TLS and CONNECT are the worker's. It knows no zone and no
policy, and it can be asked for no other address.

Standard library only. Argument: the descriptor of its link to the supervisor.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures.thread  # noqa: F401  imported now: as nobody, the interpreter's files may be unreadable
import contextlib
import encodings.idna  # noqa: F401  the same
import os
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import replace

from proxy import ipc
from proxy.dialling import CONNECT_LIMIT_S, PeerBroken, WarmSockets, connect, serve
from proxy.link import Link
from proxy.messages.holding import TO_HOLDER, Dial, Evidence, Hold, ToHolder

SLOW_RETRY_S = 5.0  # a wrong peer is said loudly and asked slowly
NOTHING_SEEN = Evidence("", 0, broken=False, wrong_peer=False, words="connecting")


def main(arguments: Sequence[str]) -> None:
    """Serve until the supervisor's end of the link is gone."""
    sock = socket.socket(fileno=int(arguments[0]))
    hold, fds = ipc.receive(sock, [Hold])
    context = client_context(*fds)
    if hold.drop_to_uid and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(hold.drop_to_uid)
        os.setuid(hold.drop_to_uid)
    with contextlib.suppress(ipc.LinkBroken):
        asyncio.run(_hold(sock, hold, context))


def client_context(ca_fd: int, certificate_fd: int, key_fd: int) -> ssl.SSLContext:
    """TLS 1.3, the site's CA and no other, the tunnel's own certificate. Takes the descriptors."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ipc.read_file(ca_fd).decode())
    context.load_cert_chain(f"/proc/self/fd/{certificate_fd}", f"/proc/self/fd/{key_fd}")
    ipc.close_all([certificate_fd, key_fd])
    return context


async def _hold(sock: socket.socket, hold: Hold, context: ssl.SSLContext) -> None:
    supervisor: Link[ToHolder] = Link(sock, TO_HOLDER)
    warm = WarmSockets(hold.tunnel.host, hold.tunnel.port)
    probing = asyncio.create_task(_probe_for_ever(hold, context, supervisor))
    probing.add_done_callback(lambda _: supervisor.close())  # a holder that does not probe is none
    tasks: set[asyncio.Task[None]] = {probing}
    try:
        while True:
            _, fds = await supervisor.receive()
            worker: Link[Dial] = Link(socket.socket(fileno=fds[0]), [Dial])
            task = asyncio.create_task(serve(worker, warm))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for task in tasks:
            task.cancel()
        warm.close()
        if probing.done() and not probing.cancelled():
            probing.result()


# -- probing -----------------------------------------------------------------------------------------


async def _probe_for_ever(hold: Hold, context: ssl.SSLContext, supervisor: Link[ToHolder]) -> None:
    """Keep one TLS connection to the gateway and ask it something each period; say what was seen."""
    pause_s = hold.probe_every_ms / 1000
    supervisor.send(NOTHING_SEEN)
    while True:
        try:
            await _probe_connection(hold, context, supervisor)
        except ssl.SSLCertVerificationError as error:
            words = f"the gateway's certificate does not verify: {error.verify_message.rstrip('.')}"
            supervisor.send(Evidence("", 0, broken=True, wrong_peer=True, words=words))
            await asyncio.sleep(SLOW_RETRY_S)
        except TimeoutError:
            words = (
                f"no answer from {hold.tunnel.host}:{hold.tunnel.port} in {hold.probe_limit_ms / 1000:g} s"
            )
            supervisor.send(Evidence("", 0, broken=False, wrong_peer=False, words=words))
        except (PeerBroken, OSError, EOFError) as error:
            supervisor.send(Evidence("", 0, broken=True, wrong_peer=False, words=_in_words(error)))
            await asyncio.sleep(pause_s)


async def _probe_connection(hold: Hold, context: ssl.SSLContext, supervisor: Link[ToHolder]) -> None:
    """One connection's life: returns never, raises why it ended."""
    tunnel, limit_s = hold.tunnel, hold.probe_limit_ms / 1000
    sock = await connect(tunnel.host, tunnel.port, max(limit_s, 1.0))
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(CONNECT_LIMIT_S):
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=context, server_hostname=tunnel.server_name
            )
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        seen = replace(NOTHING_SEEN, certificate=base64.b64encode(der).decode())
        while True:
            sent_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            writer.write(f"OPTIONS * HTTP/1.1\r\nHost: {tunnel.server_name}\r\n\r\n".encode())
            async with asyncio.timeout(limit_s):
                status = await _status(reader)
            if status >= 400:
                raise PeerBroken(
                    f"the gateway answers the probe with {status}: is this client's certificate allowed?"
                )
            supervisor.send(replace(seen, answered_ns=sent_ns, words="answering"))
            await _until_next(reader, hold.probe_every_ms / 1000)
    finally:
        if writer is not None:
            writer.transport.abort()
        sock.close()


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of one answer without a body."""
    head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    words = head[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise PeerBroken("the gateway's answer to the probe is not HTTP")
    if any(line.lower().startswith(b"transfer-encoding:") for line in head):
        raise PeerBroken("the gateway's answer to the probe has a body of unknown length")
    for line in head[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            await reader.readexactly(min(int(value), 65536))
    return int(words[1])


async def _until_next(reader: asyncio.StreamReader, pause_s: float) -> None:
    """Wait for the next probe, but notice at once when the peer ends the connection."""
    try:
        async with asyncio.timeout(pause_s):
            if await reader.read(1):
                raise PeerBroken("the gateway spoke unasked on the probe's connection")
        raise PeerBroken("the gateway closed the connection")
    except TimeoutError:
        return


def _in_words(error: Exception) -> str:
    """One line for an error of the connection; TLS alerts name what the gateway minds."""
    if isinstance(error, asyncio.IncompleteReadError):
        return "the gateway closed the connection"
    if isinstance(error, ssl.SSLError):
        return f"the gateway refused this client ({(error.reason or str(error)).lower().replace('_', ' ')})"
    if isinstance(error, OSError) and not isinstance(error, PeerBroken):
        return f"the connection to the gateway broke: {error.strerror or error}"
    return str(error)
