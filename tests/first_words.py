"""What clients say first, as bytes. No tests are here."""

from __future__ import annotations

import ssl


def hello(name: str | None = "site.example", alpn: tuple[str, ...] = ()) -> bytes:
    """OpenSSL's ClientHello to a server of this name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError("a handshake with nobody has succeeded")


def request(host: str = "site.example", *more: str, target: str = "/") -> bytes:
    """An HTTP request."""
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}", *more, "", ""]
    return "\r\n".join(lines).encode()
