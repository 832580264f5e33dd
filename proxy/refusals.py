"""How a refusal looks to a program that is refused: a page in HTTP, an alert in TLS, a reset elsewhere.

Pure: the refusal and the client's first bytes in, bytes to send out.
"""

from __future__ import annotations

import html
import re
from dataclasses import replace

from proxy.flow import Refusal

# RFC 8446, section 6: a fatal alert, access_denied.
TLS_ALERT = bytes.fromhex("15 03 03 00 02 02 31")
_REQUEST = re.compile(rb"[A-Z]{3,24} \S+ HTTP/1\.[01]\r?\n")
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #f5f5f4; --card: #fff; --text: #1c1917; --faint: #6b6560 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --back: #171614; --card: #211f1d; --text: #e7e5e4; --faint: #a19c98 }}
}}
body {{ margin: 0; padding: 8vh 1rem; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, sans-serif }}
main {{ max-width: 34rem; margin: auto; padding: 1.75rem; background: var(--card);
  border-top: 4px solid #b45309; border-radius: 6px }}
h1 {{ margin: 0 0 1.25rem; font-size: 1.375rem; line-height: 1.3 }}
dl {{ margin: 0 }} dt {{ color: var(--faint); font-size: .875rem }}
dd {{ margin: 0 0 .9rem; overflow-wrap: anywhere }} dd:last-child {{ margin: 0 }}
</style>
<main><h1>{title}</h1>
<dl>{rows}</dl></main>
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
        because = refusal.because
        rows = {
            "Destination": destination,
            "Reason": because.text or str(because),
            "What to do": refusal.cure,
            "Decided by": str(replace(because, text="")),
            "Reference": reference,
        }
        body = _PAGE.format(
            title="The tunnel is not up" if refusal.tunnel else "The gate does not let this through",
            rows="\n".join(
                f"<dt>{name}</dt><dd>{html.escape(_one_line(text))}</dd>"
                for name, text in rows.items()
                if text
            ),
        )
    else:
        kind = "text/plain; charset=utf-8"
        body = _one_line(f"zonegate: {destination} is {refusal} [{reference}]") + "\n"
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
