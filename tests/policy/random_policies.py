"""Small random policies and flows that often meet: few words, many overlaps, values at every boundary."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from naive_policy import ADDRESSES, MEDIA, METHODS, PATHS, SIZES

from proxy.flow import FAILED, NEVER, UNKNOWN, Flow, Protocol, Transfer, TunnelFact, TunnelState
from proxy.policy import Policy
from proxy.policy.loader import read_model

NAMES = (
    "corp.example",
    "git.corp.example",
    "a.git.corp.example",
    "pay.corp.example",
    "other.example",
    "x.other.example",
    "net.example",
)
TO = (
    "code",
    "intranet",
    "servers",
    "mixed",
    "git.corp.example",
    "*.git.corp.example",
    "*.other.example",
    "10.20.0.0/24",
    "8.8.8.8",
    "2a00::/32",
    "0.0.0.0/0",
)
DEFINE = {
    "zones": ["corporate", "lab"],
    "groups": ["a", "b", "c"],
    "postures": {"p": {"managed": "true"}, "q": {"os_version": ">=14"}},
    "destinations": {
        "intranet": ["corp.example", "*.corp.example"],
        "code": ["git.corp.example"],
        "servers": ["10.20.0.0/16", "2a00:1::/32"],
        "mixed": ["pay.corp.example", "*.net.example", "net.example", "10.0.0.0/8"],
    },
    "windows": {"office": "mon-fri 07:00-19:00", "night": "daily 22:00-06:00"},
}
VALUES: dict[str, tuple[str, ...]] = {
    "zone": ("corporate", "lab"),
    "user": ("ann", "bob"),
    "group": ("a", "b", "c"),
    "device": ("d1", "d2"),
    "posture": ("p", "q"),
    "to": TO,
    "port": ("443", "22", "80", "8000-8099", "1-1023"),
    "protocol": tuple(p.value for p in Protocol),
    "window": ("office", "night"),
    "tunnel": ("attested", "stale", "down", "hq", "branch"),
    "method": METHODS[:3],
    "path": ("/", "/api", "/api/v1"),
    "content_type": ("text/html", "text/*", "application/json"),
    "transfer": ("upload", "download"),
}
SIZE_TESTS = (">1KiB", "<=1KiB", ">=1MiB", "<1MiB", ">1MiB")


def match(rng: Random, most: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in rng.sample([*VALUES, "size", "to", "to", "group"], rng.randint(0, most)):
        if name == "size":
            found[name] = rng.choice(SIZE_TESTS)
        else:
            values = VALUES[name]
            found[name] = rng.sample(values, rng.choice((1, 1, 2, min(3, len(values)))))
    return found


def policy(rng: Random, *, rules: int = 7, guards: int = 4) -> dict[str, Any]:
    """A policy as the keys of its file."""
    return {
        "policy": 1,
        "name": "random",
        "timezone": rng.choice(("UTC", "Europe/Berlin", "America/New_York")),
        "define": DEFINE,
        "guards": [guard(rng, i) for i in range(rng.randint(0, guards))],
        "rules": [rule(rng, i) for i in range(rng.randint(0, rules))],
    }


def guard(rng: Random, index: int) -> dict[str, Any]:
    found = {"id": f"g{index}", "match": match(rng, 2), "at_most": rng.choice(("block", "tunnel"))}
    if rng.random() < 0.5 and (unless := match(rng, 2)):
        found["unless"] = unless
    return found


def rule(rng: Random, index: int) -> dict[str, Any]:
    verdict = rng.choice(("block", "tunnel", "tunnel", "direct"))
    found = {"id": f"r{index}", "match": match(rng, 3), "verdict": verdict}
    if verdict == "tunnel" and rng.random() < 0.2:
        found["via"] = rng.sample(("hq", "branch"), rng.randint(1, 2))
    if rng.random() < 0.1:
        found["expires"] = rng.choice(("2026-03-28", "2026-10-25"))
    if rng.random() < 0.1:
        found["mode"] = "report"
    return found


def text(keys: dict[str, Any]) -> bytes:
    """The file of a policy. JSON is YAML."""
    return json.dumps(keys).encode()


def flow(rng: Random, missing: float = 0.0) -> Flow:
    """A flow; each fact that may be missing is so with this chance."""

    def fact(value: object, *kinds: object) -> Any:
        return rng.choice(kinds) if kinds and rng.random() < missing else value

    named = rng.random() < 0.7
    transport = rng.choice((Protocol.TCP, Protocol.TCP, Protocol.UDP))
    protocol = rng.choice([Protocol.HTTPS, Protocol.HTTPS, *(p for p in Protocol if p.is_a(transport))])
    if not protocol.is_a(transport):
        transport = Protocol.TCP
    given: Any = fact(protocol, UNKNOWN)

    def asked(value: object) -> Any:
        """A fact of HTTP, which nobody can have seen before the protocol is known."""
        return fact(value, UNKNOWN, FAILED) if given is not UNKNOWN else UNKNOWN

    return Flow(
        zone=rng.choice(("corporate", "corporate", "lab", "else")),
        user=rng.choice(("ann", "bob", "eve")),
        port=rng.choice((22, 80, 443, 1023, 1024, 7999, 8000, 8099, 8100)),
        at=datetime(2026, 3, 27, tzinfo=UTC)
        + timedelta(minutes=rng.choice((0, 300, 359, 360, 1319, 1320)))
        + timedelta(days=rng.randint(0, 3)),
        groups=frozenset(rng.sample(("a", "b", "c", "d"), rng.randint(0, 3))),
        device=rng.choice(("d1", "d2", "d3", NEVER)),
        postures=frozenset(rng.sample(("p", "q"), rng.randint(0, 2))),
        name=rng.choice(NAMES) if named else NEVER,
        address=fact(
            rng.choice((*ADDRESSES, NEVER, NEVER)) if named else rng.choice(ADDRESSES),
            *((UNKNOWN, FAILED) if named else ()),
        ),
        protocol=given,
        transport=transport,
        method=asked(rng.choice(METHODS)),
        path=asked(rng.choice(PATHS)),
        content_type=asked(rng.choice((*MEDIA, NEVER))),
        transfer=fact(rng.choice((*Transfer, NEVER)), UNKNOWN, FAILED),
        size=fact(rng.choice((*SIZES, NEVER)), UNKNOWN, FAILED),
    )


def tunnel(rng: Random) -> TunnelFact | None:
    if rng.random() < 0.1:
        return None
    return TunnelFact(rng.choice(("hq", "branch", "other")), rng.choice(list(TunnelState)))


def load(keys: dict[str, Any]) -> Policy:
    """The policy, whether or not its routes are stable."""
    return Policy(read_model(text(keys), "random.yaml"), text(keys))
