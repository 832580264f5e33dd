"""What a fuzzer gives bytes to: each function ends in a refusal or in service, or raises. No tests are here.

`python explicit_fuzz.py SECONDS` has atheris make the bytes (`make fuzz`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address

from leased import Clock, unconnected

from proxy.audit import Tally
from proxy.channel.head import BadHead, parse_head
from proxy.channel.plain import PlainChannel
from proxy.datagram_passage import DatagramPassage
from proxy.explicit import socks, web
from proxy.explicit.associations import Associations
from proxy.explicit.logins import Failures, Login, Logins
from proxy.explicit.requests import BadRequest, parse_request
from proxy.explicit.web import Guest, House
from proxy.flow import NEVER, Flow, IPAddress
from proxy.flow_table import FlowTable
from proxy.gate import Gate
from proxy.passage import Passage
from proxy.policy import Policy, load

POLICY = b"""
policy: 1
name: fuzz
define: {zones: [z], destinations: {a: [a.example, 127.0.0.0/8]}}
rules: [{id: a, match: {to: a, protocol: [http, https]}, verdict: tunnel}]
"""
NOW = datetime(2026, 1, 5, tzinfo=UTC)
PEOPLE = {"people": [["*", ["z"], []]], "passwords": ""}
LEASED = Clock()


def http_head(data: bytes) -> None:
    """A head is a request that is sent on as one head, or refused in one line."""
    try:
        request = parse_request(parse_head(data.partition(b"\r\n\r\n")[0]))
    except (BadHead, BadRequest) as error:
        assert "\n" not in str(error)
        return
    onward = request.onward() if not request.is_connect else b""
    assert onward.count(b"\r\n\r\n") == (not request.is_connect) and b"proxy-" not in onward
    with contextlib.suppress(ValueError):
        _, rest = request.body().take(data.partition(b"\r\n\r\n")[2])
        assert len(rest) <= len(data)


class Pieces:
    """A channel whose client says `data` in pieces and then no more."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = [data[start : start + at] for start in range(0, len(data), at)]
        self.heard = b""

    async def read(self) -> bytes:
        """See Channel."""
        return self._data.pop(0) if self._data else b""

    def unread(self, data: bytes) -> None:
        """See Channel."""
        self._data.insert(0, data)

    async def write(self, data: bytes) -> None:
        """See Channel."""
        self.heard += data

    async def write_eof(self) -> None:
        """See Channel."""

    def guard(self, admitted: Callable[[], bool]) -> None:
        """See Channel."""

    async def drain(self, time_limit_s: float) -> None:
        """See Channel."""

    def abort(self) -> None:
        """See Channel."""

    async def close(self) -> None:
        """See Channel."""


def socks_handshake(data: bytes, at: int, *, asks: bool) -> None:
    """A handshake is a destination, or an answer of a few bytes, or none."""
    client = Pieces(data, at)

    async def main() -> None:
        try:
            await socks.greeting(client, asks=asks)
            await socks.request(client)
        except socks.Odd as odd:
            assert len(odd.answer) in (0, 2, 10)

    _to_the_end(main())


def _to_the_end(work: object) -> None:
    """Run a coroutine that waits for nothing; a loop for each would be most of the time."""
    with contextlib.suppress(StopIteration):
        work.send(None)  # type: ignore[attr-defined] # a coroutine
        raise AssertionError("it waits for something")


def whole_conversation(data: bytes, kind: str, *, asks: bool) -> None:
    """A client that says `data` and ends is answered or cut; nothing is left open and nothing was raised."""
    asyncio.run(_conversation(data, kind, asks))


async def _conversation(data: bytes, kind: str, asks: bool) -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    egress = unconnected(LEASED)
    egress.renew(LEASED.lease())
    numbers = map(str, itertools.count())
    table = FlowTable(10)
    gate = Gate(_policy(), (egress,))
    passage = Passage(gate, table, Tally(), lambda: NOW, lambda: next(numbers))
    logins = Logins("z", json.dumps(PEOPLE).encode(), Failures(lambda: 0.0))
    associations = Associations(DatagramPassage(passage, gate, table, (egress,)), 10, lambda: True)
    house = House("fuzz", "passwords" if asks else "none", logins, passage, _new_flow, associations)
    near, far = socket.socketpair()
    with far:
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        login = None if asks else logins.known("anyone")
        guest = Guest(
            PlainChannel(near),
            ip_address("192.0.2.1"),
            login,
            contextlib.nullcontext,
        )
        await {"http": web.converse, "socks5": socks.converse}[kind](guest, house)
        heard = far.recv(1 << 20) if near.fileno() < 0 else b""
    assert near.fileno() < 0 and len(table) == 0 and not faults, faults
    if kind == "http":
        assert heard[:9] in (b"", b"HTTP/1.1 ")
    else:
        assert heard[:1] in (b"", b"\1", b"\5")


def _new_flow(login: Login, host: str | IPAddress | None, port: int) -> Flow:
    flow = Flow(zone="z", user=login.name, groups=login.groups, port=port, at=NOW, address=NEVER)
    if isinstance(host, IPv4Address | IPv6Address):
        return replace(flow, address=host)
    return flow if host is None else replace(flow, name=host)


_POLICIES: list[Policy] = []


def _policy() -> Policy:
    if not _POLICIES:
        _POLICIES.append(load(POLICY, "fuzz.policy.yaml"))
    return _POLICIES[0]


def main() -> None:
    """Fuzz for so many seconds; a finding is an exception, with its bytes in a file."""
    import atheris  # installed by `make fuzz`

    seconds, started = int(sys.argv[1]), time.monotonic()
    counts = dict.fromkeys(("head", "handshake"), 0)

    def one(data: bytes) -> None:
        if data[:1] < b"\x80":
            counts["head"] += 1
            http_head(data[1:])
        else:
            counts["handshake"] += 1
            socks_handshake(data[2:], 1 + data[1] if len(data) > 1 else 1, asks=data[0] & 1 == 1)

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=600", "-print_final_stats=1"], one)
    atheris.Fuzz()
    print(counts, f"{time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
