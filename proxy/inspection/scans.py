"""The scan of one request: its head, its body as it passes, or the messages of its WebSocket.

Knows the policy and the sieve; no HTTP library and no connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.flow import Flow, Refusal
from proxy.gate import gate_refusal
from proxy.inspection.heads import Asked, Fields
from proxy.policy import Policy
from proxy.policy.model import Pattern, Scan
from proxy.scanning.readings import JSON
from proxy.scanning.sieve import Body, Passed, Sieve, Stopped, scan_head

_OPEN_JSON = (b"{", b"[", b'"')
SCAN_CURE = "take it out, or ask whoever answers for the policy"


@dataclass(slots=True, eq=False)
class Scanning:
    """What is looked for in one request, and the names of what was found and let go."""

    scan: Scan
    patterns: tuple[Pattern, ...]
    body: Sieve
    reported: set[str] = field(default_factory=set)

    def head(self, target: str, fields: Fields) -> Stopped | None:
        """Why a request may not even be begun, or not be ended with these fields."""
        stopped, hits = scan_head(self.scan, self.patterns, target, fields)
        self.reported |= {hit.pattern for hit in hits}
        return stopped

    def sift(self, data: bytes, *, last: bool) -> bytes | Stopped:
        """What of the body may go on now; with the last of its bytes, all that was held."""
        return self._taken(self.body.finish() if last else self.body.feed(data))

    def message(self, content: bytes) -> bytes | Stopped:
        """A whole message: a body of its own."""
        sieve = Sieve(self.scan, self.patterns, Body(JSON if content[:1] in _OPEN_JSON else ""))
        first = self._taken(sieve.feed(content))
        return first if isinstance(first, Stopped) else self._taken(sieve.finish())

    def _taken(self, found: Passed | Stopped) -> bytes | Stopped:
        if isinstance(found, Stopped):
            return found
        self.reported |= {hit.pattern for hit in found.reported}
        return found.data


def scanning_of(policy: Policy, flow: Flow, asked: Asked) -> Scanning | None:
    """The scan of a request; None where its destination asks for none."""
    scan = policy.scan(flow)
    if scan is None:
        return None
    media = asked.content_type if isinstance(asked.content_type, str) else ""
    patterns = policy.model.patterns
    return Scanning(scan, patterns, Sieve(scan, patterns, Body(media, asked.charset, asked.codings)))


def scan_refusal(stopped: Stopped) -> Refusal:
    """The refusal of what holds what must not go, or cannot be read."""
    return gate_refusal("scan", stopped.reason, SCAN_CURE)
