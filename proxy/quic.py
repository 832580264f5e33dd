"""The name that a QUIC client claims: its ClientHello, read out of its first datagrams.

Pure: datagrams in, a value out. The keys of Initial packets are made of what stands in them (RFC 9001,
section 5.2): they keep out accidents and no reader. Decides nothing: the gate compares the name.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy import first_bytes
from proxy.first_bytes import Seen
from proxy.flow import Protocol

MAX_HELLO = 16 * 1024
MIN_FIRST = 1200  # RFC 9000, section 14.1
_LONG, _FORM, _TYPE = 0xC0, 0x80, 0x30
_PADDING, _PING, _ACK, _ACK_ECN, _CRYPTO, _CLOSE = 0, 1, 2, 3, 6, 0x1C


@dataclass(frozen=True, slots=True)
class _Version:
    """What differs between versions: RFC 9001, section 5.2; RFC 9369, section 3.3."""

    salt: bytes
    label: str
    initial: int


_VERSIONS: Mapping[bytes, _Version] = {
    b"\0\0\0\1": _Version(bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), "quic", 0x00),
    b"\x6b\x33\x43\xcf": _Version(bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), "quicv2", 0x10),
}


class _Malformed(Exception):
    pass


_FAULTS = (_Malformed, IndexError, ValueError, InvalidTag)
type _Keys = tuple[bytes, bytes, bytes]


def is_first(datagram: bytes) -> bool:
    """Whether a datagram begins a QUIC connection of a version that is known here."""
    if len(datagram) < MIN_FIRST or datagram[0] & _LONG != _LONG:
        return False
    version = _VERSIONS.get(datagram[1:5])
    return version is not None and datagram[0] & _TYPE == version.initial


def may_begin(datagram: bytes) -> bool:
    """Whether a datagram could begin a connection, maybe behind another packet that it holds first."""
    return len(datagram) >= MIN_FIRST and bool(datagram[0] & _FORM) and datagram[1:5] in _VERSIONS


class ClientHello:
    """The first message of one client. `take` its datagrams in the order in which they come."""

    def __init__(self) -> None:
        self._keys: _Keys | None = None
        self._pieces: dict[int, bytes] = {}
        self._hello = b""

    def take(self, datagram: bytes) -> Seen | None:
        """What is claimed, once all of the message is there; None while it is not."""
        try:
            for offset, piece in self._said(datagram):
                kept = self._pieces.get(offset, b"")
                _must_agree(kept, piece)
                self._pieces[offset] = max(kept, piece, key=len)
            hello = self._whole()
        except _FAULTS:
            return _malformed()
        if hello is None:
            return None
        self._hello = hello
        # A message of TLS is the same in QUIC, without the record around it (RFC 9001, section 4.1.3).
        return first_bytes.recognise(b"\x16\x03\x01" + len(hello).to_bytes(2) + hello) or _malformed()

    def belongs(self, datagram: bytes) -> bool:
        """Whether a later datagram begins no other connection, and says the same where it says it again:
        what was judged may have been lost, and then this is what the server reads."""
        try:
            for offset, piece in self._said(datagram):
                _must_agree(self._hello[offset:], piece)
        except _FAULTS:
            return False
        return True

    def _whole(self) -> bytes | None:
        said = b""
        for offset, piece in sorted(self._pieces.items()):
            if offset > len(said):
                break
            _must_agree(said[offset:], piece)
            said += piece[len(said) - offset :]
        if len(said) < 4:
            return None
        size = 4 + int.from_bytes(said[1:4])
        if size > MAX_HELLO:
            raise _Malformed
        return said[:size] if len(said) >= size else None

    def _said(self, datagram: bytes) -> Iterator[tuple[int, bytes]]:
        """The pieces of the message in a datagram, each with its place."""
        for packet, at, keys in _initials(datagram):
            if self._keys is None:
                self._keys = keys()
            yield from _pieces(_opened(self._keys, packet, at))


def _must_agree(one: bytes, other: bytes) -> None:
    """What stands twice in a message must be the same: nobody knows which of them the server takes."""
    shared = min(len(one), len(other))
    if one[:shared] != other[:shared]:
        raise _Malformed


def _pieces(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """What CRYPTO frames hold, and where in the message it stands."""
    at = 0
    while at < len(payload):
        kind, at = payload[at], at + 1
        if kind in (_ACK, _ACK_ECN):
            for _ in range(2):
                _, at = _number(payload, at)
            ranges, at = _number(payload, at)
            for _ in range(1 + 2 * ranges + (3 if kind == _ACK_ECN else 0)):
                _, at = _number(payload, at)
        elif kind == _CRYPTO:
            offset, at = _number(payload, at)
            size, at = _number(payload, at)
            if offset + size > MAX_HELLO or at + size > len(payload):
                raise _Malformed
            yield offset, payload[at : at + size]
            at += size
        elif kind == _CLOSE:
            return
        elif kind not in (_PADDING, _PING):
            raise _Malformed


def _malformed() -> Seen:
    return Seen(Protocol.QUIC, malformed="it begins like QUIC and is not")


def _initials(datagram: bytes) -> Iterator[tuple[bytes, int, Callable[[], _Keys]]]:
    """The Initial packets of a datagram: each, where its number stands, and what makes its client's keys."""
    at = 0
    while at < len(datagram) and datagram[at] & _FORM:
        version = _VERSIONS.get(datagram[at + 1 : at + 5])
        if version is None:
            raise _Malformed
        destination, after = _counted(datagram, at + 5)
        _, after = _counted(datagram, after)
        is_initial = datagram[at] & _TYPE == version.initial
        if is_initial:
            size, after = _number(datagram, after)
            after += size
        elif datagram[at] & _TYPE == (version.initial - 0x10) & _TYPE:
            raise _Malformed  # a Retry, which no client sends
        size, after = _number(datagram, after)
        if size < 20 or after + size > len(datagram):
            raise _Malformed
        if is_initial:
            keys = functools.partial(_client_keys, version, destination)
            yield datagram[at : after + size], after - at, keys
        at = after + size


def _counted(data: bytes, at: int) -> tuple[bytes, int]:
    """A connection id and what comes after it."""
    size = data[at]
    if size > 20 or at + 1 + size > len(data):
        raise _Malformed
    return data[at + 1 : at + 1 + size], at + 1 + size


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer (RFC 9000, section 16) and what comes after it."""
    size = 1 << (data[at] >> 6)
    if at + size > len(data):
        raise _Malformed
    return int.from_bytes(data[at : at + size]) & ((1 << (8 * size - 2)) - 1), at + size


def _opened(keys: _Keys, packet: bytes, at: int) -> bytes:
    """What an Initial packet holds; its number stands at `at` (RFC 9001, sections 5.3 and 5.4)."""
    key, iv, protection = keys
    sample = packet[at + 4 : at + 20]
    mask = Cipher(algorithms.AES(protection), modes.ECB()).encryptor().update(sample)
    first = packet[0] ^ (mask[0] & 0x0F)
    size = (first & 3) + 1
    number = bytes(one ^ other for one, other in zip(packet[at : at + size], mask[1 : 1 + size], strict=True))
    nonce = (int.from_bytes(iv) ^ int.from_bytes(number)).to_bytes(len(iv))
    head = bytes([first]) + packet[1:at] + number
    return AESGCM(key).decrypt(nonce, packet[at + size :], head)


def _client_keys(version: _Version, destination: bytes) -> _Keys:
    initial = hmac.digest(version.salt, destination, hashlib.sha256)
    client = _expand(initial, "client in", 32)
    label = version.label
    return (
        _expand(client, f"{label} key", 16),
        _expand(client, f"{label} iv", 12),
        _expand(client, f"{label} hp", 16),
    )


def _expand(secret: bytes, label: str, size: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446, section 7.1), of one block."""
    name = b"tls13 " + label.encode()
    info = size.to_bytes(2) + bytes([len(name)]) + name + b"\0"
    return hmac.digest(secret, info + b"\1", hashlib.sha256)[:size]
