"""How a refusal looks to a program that is refused: an answer in HTTP, an alert in TLS, a reset elsewhere.

Pure: what is to be told in, bytes to send out. `content` is the one page (or line, or JSON) that every way
into the gate shows; who shows it inside something else (a proxy's own answer, a flow that is inspected)
puts its own head around it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from proxy.flow import Origin, Refusal

# RFC 8446, section 6: a fatal alert, access_denied.
TLS_ALERT = bytes.fromhex("15 03 03 00 02 02 31")
PHRASES: Mapping[int, str] = {
    400: "Bad Request",
    403: "Forbidden",
    407: "Proxy Authentication Required",
    408: "Request Timeout",
    429: "Too Many Requests",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
# What the gate itself decided, where it is not a plain "no": the reason's name, and its status.
_STATUS: Mapping[str, int] = {
    "bad-request": 400,
    "malformed": 400,
    "login": 407,
    "slow-request": 408,
    "too-many-logins": 429,
    "unreachable": 502,
    "no-record": 503,
    "silent-destination": 504,
}
_TITLES: Mapping[int, str] = {
    400: "The gate does not understand this request",
    403: "The gate does not let this through",
    407: "The gate asks who you are",
    408: "The request took too long",
    429: "Too many failed logins",
    502: "The destination cannot be reached",
    503: "The gate cannot let this through now",
    504: "The destination does not answer",
}
_REQUEST = re.compile(rb"([A-Z]{3,24}) \S+ HTTP/1\.[01]\r?\n")
_ACCEPT = re.compile(rb"\r?\naccept:[ \t]*([^\r\n]*)", re.IGNORECASE)
_QUALITY = re.compile(r"q=(0(\.[0-9]{0,3})?|1(\.0{0,3})?)")
_TEXT, _HTML, _JSON = "text/plain", "text/html", "application/json"
_MAX_RANGES = 32
_COMMAND = re.compile(r"`([^`]+)`")
_ASK = "if you need this, send the reference below to whoever keeps the rules here."
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #f4f3f1; --card: #fff; --text: #1c1917; --faint: #625c57;
  --line: #e5e2de; --mark: #b45309 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --back: #151412; --card: #201e1c; --text: #ebe8e5; --faint: #a8a29c; --line: #37332f;
    --mark: #f59e0b }}
}}
* {{ box-sizing: border-box }}
body {{ margin: 0; min-height: 100vh; display: grid; place-content: center;
  grid-template-columns: minmax(0, 40rem); padding: 1.25rem; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }}
main {{ padding: clamp(1.25rem, 5vw, 2.5rem); background: var(--card); border: 1px solid var(--line);
  border-top: 4px solid var(--mark); border-radius: 10px }}
.state {{ margin: 0 0 .5rem; color: var(--mark); font-size: .875rem; font-weight: 600 }}
h1 {{ margin: 0; font-size: clamp(1.375rem, 5vw, 1.75rem); line-height: 1.25; text-wrap: balance }}
.to {{ margin: .5rem 0 0; font: 1rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere }}
.why {{ margin: 1.25rem 0 0; font-size: 1.125rem; overflow-wrap: anywhere }}
.why::first-letter {{ text-transform: uppercase }}
.cure {{ margin: .75rem 0 0; overflow-wrap: anywhere }}
dl {{ margin: 1.75rem 0 0; border-top: 1px solid var(--line); font-size: .9375rem }}
dl div {{ display: grid; grid-template-columns: 9rem minmax(0, 1fr); gap: 0 1rem; padding: .6rem 0;
  border-bottom: 1px solid var(--line) }}
dl div:last-child {{ border-bottom: 0; padding-bottom: 0 }}
dt {{ color: var(--faint) }}
dd {{ margin: 0; overflow-wrap: anywhere }}
code {{ font: .9375em ui-monospace, monospace }}
@media (max-width: 30rem) {{
  body {{ padding: .75rem; place-content: start stretch }}
  dl div {{ grid-template-columns: 1fr }}
}}
</style></head>
<body><main>
<p class="state">{status} {phrase}</p>
<h1>{title}</h1>
{parts}
<dl>
{rows}
</dl>
</main></body></html>
"""


@dataclass(frozen=True, slots=True)
class Notice:
    """Everything that is told of a refusal. `reference` is the flow's number in the records."""

    refusal: Refusal
    destination: str
    reference: str
    at: datetime

    @property
    def status(self) -> int:
        """The HTTP status: 503 is for now, 403 until somebody changes the rules."""
        because = self.refusal.because
        if self.refusal.tunnel:
            return 503
        return _STATUS.get(because.id, 403) if because.origin is Origin.GATE else 403

    @property
    def title(self) -> str:
        """The refusal in a few words."""
        return "The tunnel is not up" if self.refusal.tunnel else _TITLES[self.status]


def answer(notice: Notice, first: bytes) -> bytes:
    """What a client that spoke `first` can read of a refusal; empty means a reset is all there is."""
    if first[:1] == b"\x16":
        return TLS_ALERT
    if request := _REQUEST.match(first):
        accept = b", ".join(_ACCEPT.findall(first.partition(b"\r\n\r\n")[0]))
        return http(notice, accept.decode("latin-1"), bodiless=request[1] == b"HEAD")
    return b""


def http(
    notice: Notice, accept: str, *, bodiless: bool = False, fields: Mapping[str, str] | None = None
) -> bytes:
    """A whole HTTP/1.1 answer; `fields` are further ones of its head."""
    status, own, shown = response(notice, accept)
    head = [f"{name}: {value}" for name, value in {**own, **(fields or {})}.items()]
    lines = [f"HTTP/1.1 {status} {PHRASES[status]}", *head, "", ""]
    return "\r\n".join(lines).encode("ascii") + (b"" if bodiless else shown)


def response(notice: Notice, accept: str) -> tuple[int, dict[str, str], bytes]:
    """Status, fields and body of an answer, with which the connection ends."""
    kind, shown = content(notice, accept)
    fields = {
        "Content-Type": f"{kind}; charset=utf-8",
        "Content-Length": str(len(shown)),
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
        "X-Content-Type-Options": "nosniff",
        "Zonegate-Because": _ascii(_one_line(str(notice.refusal.because))),
        "Connection": "close",
    }
    return notice.status, fields, shown


def content(notice: Notice, accept: str) -> tuple[str, bytes]:
    """The media type and the body that a client with this Accept field reads: a page, JSON or a line."""
    kind = _preferred(accept)
    match kind:
        case "text/html":
            text = _page(notice)
        case "application/json":
            text = json.dumps(_facts(notice)) + "\n"
        case _:
            refusal = notice.refusal
            ask = f"; ask {refusal.ask}" if refusal.ask else ""
            number = f" [{notice.reference}]" if notice.reference else ""
            words = f"zonegate: {notice.destination or 'this request'} is {refusal}{ask}{number}"
            text = _one_line(words) + "\n"
    return kind, text.encode("utf-8", "replace")


def _preferred(accept: str) -> str:
    """Of the three kinds the one that Accept likes best (RFC 9110, section 12.5.1); text where it likes none.

    What is named counts before what a wildcard covers, and what is named first before the rest.
    """
    best, found = (0.0, 0, 0), _TEXT
    for at, one in enumerate(accept.lower().split(",")[:_MAX_RANGES]):
        wanted, *parameters = (word.strip() for word in one.split(";"))
        written = next((word for word in parameters if word.startswith("q=")), "q=1")
        quality = float(written[2:]) if _QUALITY.fullmatch(written) else 0.0
        for kind in (_TEXT, _HTML, _JSON):
            covers = {kind: 3, kind.partition("/")[0] + "/*": 2, "*/*": 1}.get(wanted, 0)
            if covers and quality and (quality, covers, -at) > best:
                best, found = (quality, covers, -at), kind
    return found


def _facts(notice: Notice) -> dict[str, object]:
    refusal, because = notice.refusal, notice.refusal.because
    return {
        "status": notice.status,
        "title": notice.title,
        "destination": notice.destination,
        "reason": because.text,
        "decided_by": {"origin": because.origin.value, "id": because.id},
        "what_to_do": refusal.cure,
        "ask": refusal.ask,
        "tunnel": refusal.tunnel,
        "time": notice.at.astimezone(UTC).isoformat(timespec="seconds"),
        "reference": notice.reference,
    }


def _page(notice: Notice) -> str:
    refusal, because = notice.refusal, notice.refusal.because
    cure = refusal.cure or (_ASK if notice.status == 403 and notice.reference else "")
    parts = (
        ("to", notice.destination),
        ("why", because.text or f"Decided by {because}."),
        ("cure", f"What to do: {cure}" if cure else ""),
    )
    rows = (
        ("Decided by", str(replace(because, text=""))),
        ("Whom to ask", refusal.ask),
        ("Time", f"{notice.at.astimezone(UTC):%d %B %Y, %H:%M:%S} UTC"),
        ("Reference", notice.reference),
    )
    return _PAGE.format(
        title=notice.title,
        status=notice.status,
        phrase=PHRASES[notice.status],
        parts="\n".join(f'<p class="{kind}">{_shown(text)}</p>' for kind, text in parts if text),
        rows="\n".join(f"<div><dt>{name}</dt><dd>{_shown(text)}</dd></div>" for name, text in rows if text),
    )


def _shown(text: str) -> str:
    return _COMMAND.sub(r"<code>\1</code>", html.escape(_one_line(text)))


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()
