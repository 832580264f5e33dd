"""The holder of an mtls tunnel: dials the one pinned gateway from the host's network, and probes it.

It decides nothing. To the supervisor it says what it saw (Evidence); to workers it hands connected,
still silent sockets. It carries no traffic: TLS and CONNECT are the worker's. It knows no zone and no
policy, and it can be asked for no other address.

Standard library only. Argument: the descriptor of its link to the supervisor.
"""

from __future__ import annotations

import _strptime  # type: ignore[import-not-found]  # noqa: F401  imported now: nobody may read these files
import asyncio
import base64
import calendar  # noqa: F401  the same
import concurrent.futures.thread  # noqa: F401  the same
import encodings.idna  # noqa: F401  the same
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

from proxy import holder_process, ipc, prctl
from proxy.dialling import CONNECT_LIMIT_S, PeerBroken, WarmSockets, connect, serve
from proxy.link import Link
from proxy.messages.holding import TO_HOLDER, Dial, Evidence, Hold, Serve, ToHolder

SLOW_RETRY_S = 5.0  # a wrong peer is said loudly and asked slowly
NOBODYS = (
    "0.0.0.0:1"  # the gateway itself (RFC 1122, 3.2.1.3), a port that nothing has: for nobody to be given
)
UNKNOWN_QUESTION = frozenset({404, 405, 501})  # who answers so lives, and knows no OPTIONS
NOT_THERE = frozenset({502, 503, 504})  # the gateway let the client there, and found nobody
NOTHING_SEEN = Evidence("", 0, broken=False, wrong_peer=False, words="connecting")


class YesToAll(Exception):
    """The peer grants what nobody may be granted."""


class Ended(PeerBroken):
    """The peer ended the connection, in order, where an answer could begin."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The status of an answer, and whether the peer ends the connection after it."""

    status: int
    is_last: bool


def main(arguments: Sequence[str]) -> None:
    """Serve until the supervisor's end of the link is gone. Does not return."""
    holder_process.serve(arguments[0], _begin)


def _begin(sock: socket.socket) -> None:
    hold, fds = ipc.receive(sock, [Hold])
    try:
        context = client_context(*fds)
    except (OSError, ValueError) as error:
        _say_unusable(sock, error)
    if hold.drop_to_uid and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(hold.drop_to_uid)
        os.setuid(hold.drop_to_uid)
    prctl.no_core_dump()
    asyncio.Runner().run(_hold(sock, hold, context))


def _say_unusable(sock: socket.socket, error: Exception) -> NoReturn:
    """Say that the tunnel's files are of no use, and stay: a holder that ends is only started again."""
    reason = error.reason if isinstance(error, ssl.SSLError) else ""
    words = (reason or str(error)).lower().replace("_", " ")
    words = f"the tunnel's ca, certificate or key cannot be used: {words}"
    ipc.send(sock, Evidence("", 0, broken=True, wrong_peer=False, words=words))
    while True:
        ipc.close_all(ipc.receive(sock, [Serve])[1])


def client_context(ca_fd: int, certificate_fd: int, key_fd: int) -> ssl.SSLContext:
    """TLS 1.3, the site's CA and no other, the tunnel's own certificate. Takes the descriptors.

    Raises OSError (ssl.SSLError) or ValueError where they are of no use; a key with a password is one.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # as workers do: what they refuse is not attested
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
        context.load_verify_locations(cadata=ipc.read_file(os.dup(ca_fd)).decode())
        certificate, key = (f"/proc/self/fd/{fd}" for fd in (certificate_fd, key_fd))
        context.load_cert_chain(certificate, key, password=_no_password)
        return context
    finally:
        ipc.close_all([ca_fd, certificate_fd, key_fd])


def _no_password() -> str:
    """Asked for an encrypted key: OpenSSL would otherwise ask on a terminal."""
    raise ValueError("the private key is encrypted; give an unencrypted one that only its owner reads")


async def _hold(sock: socket.socket, hold: Hold, context: ssl.SSLContext) -> None:
    supervisor: Link[ToHolder] = Link(sock, TO_HOLDER)
    warm = WarmSockets(hold.tunnel.host, hold.tunnel.port)
    probing = asyncio.create_task(_probe_for_ever(hold, context, supervisor))
    probing.add_done_callback(lambda _: supervisor.close())  # a holder that does not probe is none
    tasks: set[asyncio.Task[None]] = {probing}
    try:
        while True:
            message, fds = await supervisor.receive()
            if not isinstance(message, Serve):
                raise ipc.LinkBroken("a holder holds one tunnel")
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
    """Keep one TLS connection to the gateway and ask it something each period; say what was seen.

    First it is asked for what it must refuse, since who says yes to everything keeps no list of its own, and
    for what the site says that it must admit, since some gateways answer the probe of whom they let nowhere.

    A gateway that is reloaded ends its idle connections, in order. Then it is judged anew, at once, and once
    in a period. Nothing is said before that is done: what was proved stands, for as long as a proof stands.
    """
    pause_s = hold.probe_every_ms / 1000
    supervisor.send(NOTHING_SEEN)
    judged, ended_at = False, -pause_s
    while True:
        try:
            if not judged:
                await _must_refuse(hold, context)
                await _must_admit(hold, context)
            judged = await _probe_connection(hold, context, supervisor)
            if not judged:
                await asyncio.sleep(ended_at + pause_s - time.monotonic())
                ended_at = time.monotonic()
            continue
        except ssl.SSLCertVerificationError as error:
            words = f"the gateway's certificate does not verify: {error.verify_message.rstrip('.')}"
            supervisor.send(Evidence("", 0, broken=True, wrong_peer=True, words=words))
            await asyncio.sleep(SLOW_RETRY_S)
        except YesToAll as error:
            supervisor.send(Evidence("", 0, broken=True, wrong_peer=True, words=str(error)))
            await asyncio.sleep(SLOW_RETRY_S)
        except TimeoutError:
            words = f"no answer from {hold.tunnel.endpoint} in {hold.probe_limit_ms / 1000:g} s"
            supervisor.send(Evidence("", 0, broken=False, wrong_peer=False, words=words))
        except Exception as error:  # whatever a gateway does to it, the probe goes on
            supervisor.send(Evidence("", 0, broken=True, wrong_peer=False, words=_in_words(error)))
            await asyncio.sleep(pause_s)
        judged = False


async def _must_refuse(hold: Hold, context: ssl.SSLContext) -> None:
    """Raises YesToAll where the gateway grants NOBODYS."""
    async with _connection(hold, context) as (reader, writer):
        answer = await _ask(hold, reader, writer, f"CONNECT {NOBODYS}", NOBODYS)
        if 200 <= answer.status <= 299:
            raise YesToAll(
                f"the gateway says yes to everything, also to what is nobody's (CONNECT {NOBODYS}): "
                "have it refuse what is not to be reached"
            )


async def _must_admit(hold: Hold, context: ssl.SSLContext) -> None:
    """Raises PeerBroken where the gateway does not let this client to where it must."""
    place = hold.tunnel.must_admit
    if not place:
        return
    async with _connection(hold, context) as (reader, writer):
        answer = await _ask(hold, reader, writer, f"CONNECT {place}", place)
        if not (200 <= answer.status <= 299 or answer.status in NOT_THERE):
            raise PeerBroken(
                f"the gateway answers CONNECT {place} with {answer.status}, and must admit it: "
                "is this client's certificate allowed?"
            )


async def _probe_connection(hold: Hold, context: ssl.SSLContext, supervisor: Link[ToHolder]) -> bool:
    """One connection's life, until it has ended in order; raises why else it ended.

    Gives whether the gateway is judged still: it is where it ended the connection as it had said.
    """
    pause_s = hold.probe_every_ms / 1000
    async with _connection(hold, context) as (reader, writer):
        peer = writer.get_extra_info("ssl_object")
        der = peer.getpeercert(binary_form=True)
        expires_s = ssl.cert_time_to_seconds(peer.getpeercert()["notAfter"])
        seen = replace(NOTHING_SEEN, certificate=base64.b64encode(der).decode())
        while True:
            sent_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            try:
                answer = await _ask(hold, reader, writer, "OPTIONS *", hold.tunnel.server_name)
            except Ended:
                if seen.answered_ns:
                    return False
                raise
            if answer.status >= 400 and answer.status not in UNKNOWN_QUESTION:
                raise PeerBroken(
                    f"the gateway answers the probe with {answer.status}: "
                    "is this client's certificate allowed?"
                )
            seen = replace(seen, answered_ns=sent_ns, words="answering")
            supervisor.send(seen)
            if answer.is_last:
                await asyncio.sleep(pause_s)
                return True
            if await _ends_within(pause_s, reader):
                return False
            if time.time() > expires_s:
                return True  # what it has now is to be proved


@asynccontextmanager
async def _connection(
    hold: Hold, context: ssl.SSLContext
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TLS connection to the gateway, reset at the end."""
    tunnel = hold.tunnel
    sock = await connect(tunnel.host, tunnel.port, max(hold.probe_limit_ms / 1000, 1.0))
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(CONNECT_LIMIT_S):
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=context, server_hostname=tunnel.server_name
            )
        yield reader, writer
    finally:
        if writer is not None:
            writer.transport.abort()
        sock.close()


async def _ask(
    hold: Hold, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, question: str, host: str
) -> Answer:
    writer.write(f"{question} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    async with asyncio.timeout(hold.probe_limit_ms / 1000):
        return await _answer(reader)


async def _answer(reader: asyncio.StreamReader) -> Answer:
    """One answer without a body, or with a short one; the body of a last answer is not looked at."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        raise Ended("the gateway closed the connection") from error
    status = re.match(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: |$)", head[0])
    if not status:
        raise PeerBroken("the gateway's answer to the probe is not HTTP")
    length, is_chunked, is_last = b"0", False, status[1] == b"0"
    for line in head[1:]:
        name, _, value = line.partition(b":")
        match name.strip().lower():
            case b"transfer-encoding":
                is_chunked = True
            case b"content-length":
                length = value.strip()
            case b"connection":
                is_last = is_last or value.strip().lower() == b"close"
    if not is_last:
        if is_chunked:
            raise PeerBroken("the gateway's answer to the probe has a body of unknown length")
        if not re.fullmatch(rb"[0-9]{1,4}", length):
            raise PeerBroken("the gateway's answer to the probe is too long")
        await reader.readexactly(int(length))
    return Answer(int(status[2]), is_last)


async def _ends_within(pause_s: float, reader: asyncio.StreamReader) -> bool:
    """Whether the peer ends the connection before the next probe; noticed at once."""
    try:
        async with asyncio.timeout(pause_s):
            if await reader.read(1):
                raise PeerBroken("the gateway spoke unasked on the probe's connection")
    except TimeoutError:
        return False
    return True


def _in_words(error: Exception) -> str:
    """One line for an error of the connection; TLS alerts name what the gateway minds."""
    match error:
        case PeerBroken():
            return str(error)
        case asyncio.IncompleteReadError():
            return "the gateway closed the connection"
        case asyncio.LimitOverrunError():
            return "the gateway's answer to the probe is too long"
        case ssl.SSLError():
            reason = (error.reason or str(error)).lower().replace("_", " ")
            if "alert" in reason:
                return f"the gateway refused this client ({reason})"
            return f"what the gateway says is not TLS 1.3 ({reason})"
        case OSError():
            return f"the connection to the gateway broke: {error.strerror or error}"
    return f"the probe failed: {error!r:.200}"
