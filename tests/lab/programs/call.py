"""A video call: `call.py answer HOST PORT`, or `call.py call NAME PORT PACKETS SECONDS`.

Both ends send fifty datagrams a second of 1,200 bytes, numbered and dated as RTP's (RFC 3550), whatever they
hear. The caller prints what came, as JSON, once each has heard so many, or after so many seconds. Standard
library only.
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import struct
import sys
import time
from typing import Any

INTERVAL_S, BYTES, HUNG_UP_S = 0.02, 1200, 10.0
VIDEO = 0x8060  # version 2, payload type 96
_HEAD = struct.Struct("!HHIII")  # kind, number, 90 kHz, source; and how many were heard (RTCP says that)


class Leg:
    """One direction that is sent, and the other that is heard."""

    def __init__(self, source: int) -> None:
        self.source, self.sent, self.heard = source, 0, set[int]()
        self.others_heard, self.strangers, self._jitter = 0, 0, list[float]()
        self._transit: float | None = None
        self._next = time.monotonic()

    def wait_s(self) -> float:
        """Until the next is due."""
        return max(0.0, self._next - time.monotonic())

    def due(self) -> bytes | None:
        """The next packet, None before its time."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = max(self._next + INTERVAL_S, now - 5 * INTERVAL_S)
        self.sent += 1
        head = _HEAD.pack(
            VIDEO, self.sent & 0xFFFF, int(now * 90_000) & 0xFFFFFFFF, self.source, len(self.heard)
        )
        return head.ljust(BYTES, b"v")

    def hear(self, data: bytes) -> None:
        """One of the other's."""
        kind, number, sent_at, source, others_heard = _HEAD.unpack_from(data)
        if len(data) != BYTES or kind != VIDEO or source == self.source:
            self.strangers += 1
            return
        self.heard.add(number)
        self.others_heard = others_heard
        transit = time.monotonic() * 90_000 - sent_at
        if self._transit is not None:
            self._jitter.append(abs(transit - self._transit) / 90)
        self._transit = transit

    def told(self) -> dict[str, Any]:
        """What a call is judged by; jitter in ms, between packets that follow each other."""
        most = max(self.heard, default=0)
        jitter = statistics.median(self._jitter) if self._jitter else None
        worst = statistics.quantiles(self._jitter, n=100)[98] if len(self._jitter) > 2 else None
        return {
            "sent": self.sent, "heard": len(self.heard), "lost": most - len(self.heard),
            "other_heard": self.others_heard, "strangers": self.strangers,
            "jitter_ms": jitter, "jitter_p99_ms": worst,
        }  # fmt: skip


def answer(host: str, port: str) -> None:
    """Be called, by one at a time, for ever; who is not heard any more has hung up."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, int(port)))
    print("ready", flush=True)
    leg, caller, last = Leg(2), None, 0.0
    while True:
        ready, _, _ = select.select([sock], [], [], leg.wait_s() if caller else None)
        if ready:
            data, sender = sock.recvfrom(65_536)
            if sender != caller:
                leg, caller = Leg(2), sender
            leg.hear(data)
            last = time.monotonic()
        elif time.monotonic() - last > HUNG_UP_S:
            caller = None
        if caller and (packet := leg.due()):
            sock.sendto(packet, caller)


def call(name: str, port: str, packets: str, seconds: str) -> None:
    """Call, and hang up."""
    family, kind, _, _, there = socket.getaddrinfo(name, int(port), type=socket.SOCK_DGRAM)[0]
    leg, elsewhere, error = Leg(1), 0, ""
    until = time.monotonic() + float(seconds)
    with socket.socket(family, kind) as sock:
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
        while min(len(leg.heard), leg.others_heard) < int(packets) and time.monotonic() < until:
            ready, _, _ = select.select([sock], [], [], leg.wait_s())
            try:
                if ready:
                    data, sender = sock.recvfrom(65_536)
                    if sender[:2] == there[:2]:
                        leg.hear(data)
                    else:
                        elsewhere += 1
                if packet := leg.due():
                    sock.sendto(packet, there)
            except OSError as found:
                error = str(found)
                break
    print(json.dumps({**leg.told(), "elsewhere": elsewhere, "error": error}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "answer":
        answer(*sys.argv[2:])
    else:
        call(*sys.argv[2:])
