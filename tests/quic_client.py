"""What another implementation of QUIC sends first. No tests are here."""

from __future__ import annotations

import ssl

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicProtocolVersion

VERSIONS = [QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2]


def first_flight(
    name: str | None = "site.example", *, version: int = VERSIONS[0], long: bool = False
) -> list[bytes]:
    """What a client sends before it hears anything; `long` needs two datagrams."""
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=["h3", *(f"protocol-{number:0>200}" for number in range(8 if long else 0))],
        server_name=name,
        verify_mode=ssl.CERT_NONE,
        original_version=version,
        supported_versions=[version],
    )
    client = QuicConnection(configuration=configuration)
    client.connect(("192.0.2.1", 443), now=0.0)
    return [data for data, _ in client.datagrams_to_send(now=0.0)]


def initial(connection: bytes, *pieces: tuple[int, bytes]) -> bytes:
    """A datagram that says these pieces of a hello, each at its place, in a connection of version 1."""
    payload = b"".join(
        b"\6" + (0x4000 + offset).to_bytes(2) + (0x4000 + len(piece)).to_bytes(2) + piece
        for offset, piece in pieces
    ).ljust(1200, b"\0")
    size = (0x4000 + 4 + len(payload) + 16).to_bytes(2)
    head = b"\xc3\0\0\0\1" + bytes([len(connection)]) + connection + b"\0\0" + size + bytes(4)
    keys = CryptoPair()
    keys.setup_initial(connection, is_client=True, version=VERSIONS[0])
    return keys.encrypt_packet(head, payload, 0)
