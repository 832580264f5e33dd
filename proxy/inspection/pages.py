"""What clients are shown in place of an answer, and how a destination is named to itself."""

from __future__ import annotations

from datetime import UTC, datetime

from mitmproxy import http

from proxy import refusals
from proxy.inspection.exchange import Refused
from proxy.inspection.heads import Destination
from proxy.refusals import Notice


def authority_of(destination: Destination) -> str:
    """The destination as Host names it."""
    host = f"[{destination.host}]" if ":" in str(destination.host) else str(destination.host)
    return host if destination.port == (443 if destination.tls else 80) else f"{host}:{destination.port}"


def page(refused: Refused, request: http.Request | None, destination: str) -> http.Response:
    """The refusal as a response: the one that is shown without inspection."""
    accept = request.headers.get("accept", "") if request is not None else ""
    notice = Notice(refused.refusal, destination, refused.reference, datetime.now(UTC))
    status, fields, content = refusals.response(notice, accept)
    response = http.Response.make(refused.status or status, b"", ())
    response.headers = http.Headers([(name.encode(), value.encode()) for name, value in fields.items()])
    response.raw_content = b"" if request is not None and request.method == "HEAD" else content
    return response
