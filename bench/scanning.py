"""How fast bodies are scanned: python bench/scanning.py. Prints a table; asserts nothing."""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import time

from proxy.policy.model import BUILT_IN_PATTERNS, Pattern, Scan
from proxy.scanning.readings import JSON
from proxy.scanning.sieve import Body, Sieve

SIZE, PIECE = 16 << 20, 64 << 10
WORDS = Pattern("own", tuple(f"codename{i}" for i in range(50)))


def measure(name: str, data: bytes, scan: Scan, body: Body, shown: int | None = None) -> None:
    """Feed data in pieces and print the rate of what it holds."""
    sieve = Sieve(scan, [WORDS], body)
    began = time.perf_counter()
    for at in range(0, len(data), PIECE):
        sieve.feed(data[at : at + PIECE])
    sieve.finish()
    rate = (shown or len(data)) / (time.perf_counter() - began) / 1e6
    print(f"{name:42} {rate:8.1f} MB/s")


def main() -> None:
    random.seed(1)
    some = ["the", "report", "of", "quarter", "2026", "and", "customers", "in", "Berlin", "1,024", "is"]
    text = " ".join(random.choice(some) for _ in range(SIZE // 5)).encode()[:SIZE]
    numbers = b"".join(
        b"%d,%d\n" % (random.getrandbits(40), random.getrandbits(30)) for _ in range(SIZE // 23)
    )
    everything = Scan(BUILT_IN_PATTERNS, ())
    own = Scan((*BUILT_IN_PATTERNS, "own"), ())
    for name, data in (("text", text), ("numbers", numbers), ("random bytes", os.urandom(SIZE))):
        measure(f"{name}, four patterns", data, everything, Body())
        measure(f"{name}, and fifty words", data, own, Body())
    measure("text in base64, four patterns", base64.b64encode(text), everything, Body())
    measure("text as JSON, four patterns", json.dumps(text.decode()).encode(), everything, Body(JSON))
    for pattern in BUILT_IN_PATTERNS:
        measure(f"text, {pattern}", text, Scan((pattern,), ()), Body())
    measure(
        "text in gzip, four patterns", gzip.compress(text), everything, Body(codings=("gzip",)), len(text)
    )


if __name__ == "__main__":
    main()
