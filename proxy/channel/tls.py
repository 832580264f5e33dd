"""TLS 1.3 over a plain channel, each direction ended on its own, and the proof of who the peer is.

OpenSSL works on two memory buffers; every byte goes through the plain channel beneath. close_notify is
the end of one direction while the other goes on (RFC 8446, section 6.1); TCP that ends without it is a
truncation. It knows pins and names, and nothing of what is carried.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Set
from contextlib import suppress

from proxy.certificates import spki_pin
from proxy.channel.contexts import require_client, require_mutual
from proxy.channel.plain import Backlog, PlainChannel, Reset, Truncated

# OpenSSL's memory buffers keep the size that they once had: it stays with the connection. Measured: 64 KiB
# carry 10 % faster than 32, and cost 0.15 MiB more for each connection that has carried anything.
_PIECE_BYTES = 32 * 1024
_RECORD_BYTES = 16 * 1024


class WrongPeer(ConnectionError):
    """Whoever answered is not the pinned peer: chain, name, validity or key. Nothing was sent to it."""


class HandshakeFailed(ConnectionError):
    """No TLS 1.3 connection came about, and nothing is known of the peer."""


class SaidNothing(HandshakeFailed):
    """The peer ended the connection without a byte, as one does that was kept ready and not needed."""


class TlsChannel:
    """A Channel under TLS 1.3. Made by `tls_client` and `tls_server` only."""

    __slots__ = (
        "_eof", "_eof_sent", "_incoming", "_outgoing", "_raw", "_tls", "_unread", "heard", "peer_der",
    )  # fmt: skip

    def __init__(self, raw: PlainChannel, context: ssl.SSLContext, server_name: str | None) -> None:
        self.heard = False  # whether the peer has sent anything
        self._raw = raw
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self._unread = b""
        self._eof = False
        self._eof_sent = False
        self.peer_der = b""
        """The peer's certificate, verified."""

    async def read(self) -> bytes:
        """See Channel."""
        self._raw.raise_if_over()
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        while not self._eof:
            if data := self._decrypt():
                return data
            if not self._eof:
                await self._feed()
        return b""

    def unread(self, data: bytes) -> None:
        """See Channel."""
        self._unread = data + self._unread

    async def write(self, data: bytes) -> None:
        """See Channel."""
        view = memoryview(data)
        with self._raw.backlog.holding(len(view)):
            for start in range(0, len(view), _PIECE_BYTES):
                self._encrypt(view[start : start + _PIECE_BYTES])
                await self._raw.write(self._outgoing.read())

    async def write_eof(self) -> None:
        """See Channel."""
        self._notify_close()
        await self._raw.write(self._outgoing.read())

    def guard(self, admitted: Callable[[], bool]) -> None:
        """See Channel."""
        self._raw.guard(admitted)

    async def drain(self, time_limit_s: float) -> None:
        """See Channel."""
        await self._raw.drain(time_limit_s)

    def abort(self) -> None:
        """See Channel."""
        self._raw.abort()

    async def close(self) -> None:
        """See Channel."""
        with suppress(ConnectionError):
            self._notify_close()
            if self._outgoing.pending:
                self._raw.send(self._outgoing.read())  # as much as the kernel takes: nobody waits for it
        await self._raw.close()

    def is_silent(self) -> bool:
        """Whether the peer has neither spoken nor ended yet. Tickets and the like are no words."""
        try:
            while (data := self._raw.poll()) is not None:
                if not data:
                    return False
                self._incoming.write(data)
            self._unread += self._decrypt()
        except ConnectionError:
            return False
        return not self._unread and not self._eof

    async def shake_hands(self, verify_peer: Callable[[bytes], None]) -> None:
        """Become a connection to a peer that `verify_peer` accepts, before our last flight is sent.

        `verify_peer` gets the peer's certificate (DER), whose chain and name are verified, and raises
        for a wrong one. Raises ConnectionError and ssl.SSLError; the caller resets.
        """
        done = False
        while not done:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            if done:
                self.peer_der = self._tls.getpeercert(True) or b""
                verify_peer(self.peer_der)
            if self._outgoing.pending:
                await self._raw.write(self._outgoing.read())
            if not done:
                await self._feed()

    async def close_with_alert(self) -> None:
        """Close after a failed handshake, with the alert that it left as far as that needs no waiting."""
        self._send_alert()
        await self._raw.close()

    async def _feed(self) -> None:
        data = await self._raw.read()
        if not data:
            raise self._raw.end(Truncated("the connection ended without TLS's close_notify"))
        self.heard = True
        self._incoming.write(data)

    def _encrypt(self, piece: memoryview) -> None:
        try:
            while piece:
                piece = piece[self._tls.write(piece) :]
        except ssl.SSLError as error:
            raise self._raw.end(Reset(_reason(error))) from None

    def _decrypt(self) -> bytes:
        """All plain text that is there. Sets _eof at close_notify. Leaves no whole record behind."""
        parts = []
        try:
            while part := self._tls.read(_RECORD_BYTES):
                parts.append(part)
            self._eof = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._eof = True
        except ssl.SSLError as error:
            self._send_alert()
            raise self._raw.end(Reset(_reason(error))) from None
        # Answers to key updates go out with the next write (RFC 8446, section 4.6.3).
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _send_alert(self) -> None:
        with suppress(ConnectionError):
            self._raw.send(self._outgoing.read())

    def _notify_close(self) -> None:
        if self._eof_sent:
            return
        # unwrap() also looks for the peer's close_notify, and fails for ever on data in front of it.
        if not self._eof:
            self._unread += self._decrypt()
        self._eof_sent = True
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise self._raw.end(Reset(_reason(error))) from None


async def tls_client(
    sock: socket.socket,
    context: ssl.SSLContext,
    server_name: str,
    pins: Set[str],
    time_limit_s: float,
    backlog: Backlog | None = None,
) -> TlsChannel:
    """A channel to the server whose chain, name and public key (`sha256:<base64>`) are the expected ones.

    All three are verified before anything but the ClientHello is sent. Owns `sock` from now on. Raises
    WrongPeer, HandshakeFailed. That the server accepts *our* certificate is known only once it answers.
    """
    require_client(context)

    def verify(der: bytes) -> None:
        try:
            pin = spki_pin(der)
        except ValueError:
            raise WrongPeer(f'the certificate of "{server_name}" cannot be read') from None
        if pin not in pins:
            raise WrongPeer(f'the key of "{server_name}" is {pin}, which is not the pinned one')

    channel = TlsChannel(PlainChannel(sock, backlog, _PIECE_BYTES), context, server_name)
    await _within(time_limit_s, channel, verify)
    return channel


async def tls_server(
    sock: socket.socket, context: ssl.SSLContext, time_limit_s: float, backlog: Backlog | None = None
) -> TlsChannel:
    """A channel to a client that proved a certificate of the authority in `context`: `peer_der`.

    Owns `sock` from now on. Raises WrongPeer, HandshakeFailed.
    """
    require_mutual(context)

    def verify(der: bytes) -> None:
        if not der:
            raise WrongPeer("the client showed no certificate")

    channel = TlsChannel(PlainChannel(sock, backlog, _PIECE_BYTES), context, None)
    await _within(time_limit_s, channel, verify)
    return channel


async def _within(time_limit_s: float, channel: TlsChannel, verify: Callable[[bytes], None]) -> None:
    try:
        async with asyncio.timeout(time_limit_s):
            await channel.shake_hands(verify)
    except TimeoutError:
        channel.abort()
        raise HandshakeFailed(f"no TLS handshake within {time_limit_s:g} s") from None
    except ssl.SSLCertVerificationError as error:
        await channel.close_with_alert()
        raise WrongPeer(error.verify_message or _reason(error)) from None
    except ssl.SSLError as error:
        await channel.close_with_alert()
        raise HandshakeFailed(_reason(error)) from None
    except WrongPeer:
        channel.abort()
        raise
    except ConnectionError as error:
        kind = HandshakeFailed if channel.heard else SaidNothing
        raise kind(f"the connection ended in the TLS handshake ({error})") from None
    except BaseException:
        channel.abort()
        raise


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's own word for it, such as "tlsv13 alert certificate required"."""
    return (error.reason or str(error)).lower().replace("_", " ")
