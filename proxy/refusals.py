"""How a refusal looks to a program that is refused: a page in HTTP, an alert in TLS, a reset elsewhere.

Pure: the refusal and the client's first bytes in, bytes to send out.
"""

from __future__ import annotations

import html
import re

from proxy.flow import Refusal

# RFC 8446, section 6: a fatal alert, access_denied.
TLS_ALERT = bytes.fromhex("15 03 03 00 02 02 31")
_REQUEST = re.compile(rb"[A-Z]{3,24} \S+ HTTP/1\.[01]\r?\n")
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Blocked by the gate</title>
<style>
body {{ font: 1rem/1.6 system-ui, sans-serif; max-width: 36rem; margin: 12vh auto; padding: 0 1.25rem }}
body {{ color: #222 }}
h1 {{ font-size: 1.5rem; margin: 0 0 1rem }}
dt {{ color: #666; font-size: .875rem }} dd {{ margin: 0 0 .75rem; overflow-wrap: anywhere }}
@media (prefers-color-scheme: dark) {{ body {{ background: #181818; color: #ddd }} dt {{ color: #999 }} }}
</style>
<h1>{title}</h1>
<dl><dt>Destination</dt><dd>{destination}</dd>
<dt>Reason</dt><dd>{because}</dd>
{cure}<dt>Reference</dt><dd>{reference}</dd></dl>
</html>
"""


def answer(refusal: Refusal, first: bytes, destination: str, reference: str) -> bytes:
    """What a client that spoke `first` can read of a refusal; empty means a reset is all there is."""
    if first[:1] == b"\x16":
        return TLS_ALERT
    if _REQUEST.match(first):
        return _http(refusal, first, destination, reference)
    return b""


def _http(refusal: Refusal, first: bytes, destination: str, reference: str) -> bytes:
    status = "503 Service Unavailable" if refusal.tunnel else "403 Forbidden"
    reason = _one_line(str(refusal.because))
    if b"text/html" in first.lower():
        kind = "text/html; charset=utf-8"
        cure = f"<dt>What to do</dt><dd>{html.escape(refusal.cure)}</dd>\n" if refusal.cure else ""
        body = _PAGE.format(
            title="The tunnel is not up" if refusal.tunnel else "The gate does not let this through",
            destination=html.escape(destination),
            because=html.escape(reason),
            cure=cure,
            reference=html.escape(reference),
        )
    else:
        kind = "text/plain; charset=utf-8"
        body = f"zonegate: {destination} is {_one_line(str(refusal))} [{reference}]\n"
    content = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
        f"Cache-Control: no-store\r\nZonegate-Because: {_ascii(reason)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if first.startswith(b"HEAD ") else content)


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()
