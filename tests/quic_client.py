"""What another implementation of QUIC sends first. No tests are here."""

from __future__ import annotations

import ssl

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
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
