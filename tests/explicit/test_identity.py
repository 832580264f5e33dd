"""One destination, many spellings: only what is canonically equal is admitted, whichever two of them meet.

Rows I1 to I4, I9 and I10 of docs/threats.md for the explicit ingress, as one table.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from corporate_end import echo
from explicit_world import Explicitly, explicitly
from loopback import Run, Site, runner

from proxy.channel.head import BadHead, parse_head
from proxy.explicit import socks
from proxy.explicit.requests import BadRequest, parse_request
from proxy.first_bytes import Seen
from proxy.flow import NEVER, Flow, IPAddress, Protocol, Refusal, Verdict
from proxy.gate import disagreement


@dataclass(frozen=True, slots=True)
class Spelling:
    """A host as it may be written, and by hand what it means; empty where it means nothing to anybody."""

    text: str
    means: str = ""


SPELLINGS = [
    Spelling("site.example", "site.example"),
    Spelling("SITE.Example", "site.example"),
    Spelling("site.example.", "site.example"),
    Spelling("site.example.."),
    Spelling("site..example"),
    Spelling(".site.example"),
    Spelling("www.site.example", "www.site.example"),
    Spelling("site.example.evil.example", "site.example.evil.example"),
    Spelling("xn--bcher-kva.example", "xn--bcher-kva.example"),
    Spelling("XN--BCHER-KVA.example.", "xn--bcher-kva.example"),
    Spelling("xn--bcher-.example"),
    Spelling("xn--site.example", "xn--site.example"),
    Spelling("b\xfccher.example"),
    Spelling("b\xc3\xbccher.example"),
    Spelling("\xef\xbd\x93ite.example"),
    Spelling("me@site.example"),
    Spelling("me:secret@site.example"),
    Spelling("evil.example\\@site.example"),
    Spelling("site%2eexample"),
    Spelling("%73ite.example"),
    Spelling("site.example%00.evil.example"),
    Spelling("site.example\0"),
    Spelling("site.example\t"),
    Spelling("site.example evil.example"),
    Spelling("site.example,evil.example"),
    Spelling("site.example#evil.example"),
    Spelling("site.example?evil.example"),
    Spelling("site.example/evil.example"),
    Spelling("[site.example]"),
    Spelling("-site.example"),
    Spelling("site.123"),
    Spelling("127.0.0.1", "127.0.0.1"),
    Spelling("127.0.0.1.", "127.0.0.1"),
    Spelling("127.1"),
    Spelling("127.0.1"),
    Spelling("0x7f.0.0.1"),
    Spelling("0x7f.1"),
    Spelling("0x7f000001"),
    Spelling("2130706433"),
    Spelling("017700000001"),
    Spelling("0177.0.0.1"),
    Spelling("127.0.0.01"),
    Spelling("0127.0.0.1"),
    Spelling("127.0.0.256"),
    Spelling("127.0.0.0x1"),
    Spelling("0"),
    Spelling("[::ffff:127.0.0.1]", "::ffff:127.0.0.1"),
    Spelling("[::FFFF:7F00:1]", "::ffff:127.0.0.1"),
    Spelling("[::1]", "::1"),
    Spelling("[0:0::0:1]", "::1"),
    Spelling("[::1%25lo]"),
    Spelling("[::1%lo]"),
    Spelling("[::ffff:127.1]"),
    Spelling("[::ffff:0177.0.0.1]"),
    Spelling("[127.0.0.1]"),
    Spelling("[::1"),
    Spelling("[]"),
    Spelling(""),
]


def asked(head: str) -> str:
    """What the HTTP proxy understands; empty where it refuses."""
    try:
        found = parse_request(parse_head(head.encode("latin-1")))
    except (BadHead, BadRequest):
        return ""
    return f"{meant(found.host)} {found.port}"


def meant(host: str | IPAddress) -> str:
    """In one spelling for every version of Python."""
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    return f"::ffff:{mapped}" if mapped else str(host)


def agreed(one: Spelling, other: Spelling, port: int) -> str:
    return f"{one.means} {port}" if one.means and one.means == other.means else ""


def test_the_target_and_host_agree_or_nothing_is_asked() -> None:
    for one in SPELLINGS:
        for other in SPELLINGS:
            connect = f"CONNECT {one.text}:443 HTTP/1.1\r\nHost: {other.text}"
            absolute = f"GET http://{one.text}/ HTTP/1.1\r\nHost: {other.text}"
            # A tab at the end of a value is no part of it (RFC 9110, section 5.5).
            there = Spelling(other.text, "site.example") if other.text == "site.example\t" else other
            # And in a URI what follows /, ? is no host.
            cut = "site.example" if one.text[:13] in ("site.example?", "site.example/") else one.means
            assert asked(connect) == agreed(one, there, 443), (one, other)
            assert asked(connect + ":443") == agreed(one, other, 443), (one, other)
            assert asked(connect + ":444") == "", (one, other)
            assert asked(absolute) == agreed(Spelling(one.text, cut), there, 80), (one, other)
            assert cut != one.means or asked(absolute.replace("/ H", ":81/ H")) == "", (one, other)


def test_a_name_of_socks_means_the_same_or_nothing() -> None:
    for one in SPELLINGS:
        found = socks.named(one.text.encode("latin-1"))
        assert ("" if isinstance(found, Refusal) else meant(found)) == one.means, one


def test_what_is_claimed_in_a_tunnel_is_what_was_asked_for() -> None:
    for one in SPELLINGS:
        if not one.means:
            continue
        try:
            address: IPAddress | None = ip_address(one.means)
        except ValueError:
            address = None
        flow = Flow(
            zone="z", user="u", port=443, at=datetime(2026, 1, 5, tzinfo=UTC),
            name=NEVER if address else one.means, address=address or NEVER,
        )  # fmt: skip
        for other in SPELLINGS:
            agrees = disagreement(flow, Seen(Protocol.HTTPS, other.text)) is None
            latin = any(character > "\x7f" for character in other.text)  # IDNA: the claim is text by now
            assert agrees == (one.means == other.means) or latin, (one, other)


# -- and on the wire ---------------------------------------------------------------------------------

type Make = Callable[..., Any]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def proxy(site: Site, tmp_path: Path) -> Make:
    @asynccontextmanager
    async def make(kind: str) -> AsyncIterator[Explicitly]:
        async with explicitly(site, tmp_path, serve=echo, kind=kind) as there:
            yield there

    return make


# By the rules, where an address in an address is the one within; the gateway knows all of them but the last.
JUDGED = {"site.example", "127.0.0.1", "::ffff:127.0.0.1", "xn--bcher-kva.example"}
ADMITTED = JUDGED - {"xn--bcher-kva.example"}


def admitted(there: Explicitly) -> int:
    return sum(record.verdict is Verdict.TUNNEL for record in there.verdicts())


def test_connect_dials_what_is_meant_and_nothing_else(proxy: Make) -> None:
    async def main() -> None:
        async with proxy("http") as there:
            for one in SPELLINGS:
                before = admitted(there)
                target = f"{one.text}:{there.port}"
                head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("latin-1")
                heard = await there.say(head, b"\0x", end=True)
                assert (admitted(there) > before) is (one.means in JUDGED), (one, heard)
                assert heard.startswith(b"HTTP/1.1 200 ") is (one.means in ADMITTED), (one, heard)

    run: Run = runner("uvloop")
    run(main())


def test_socks_dials_what_is_meant_and_nothing_else(proxy: Make) -> None:
    async def main() -> None:
        async with proxy("socks5") as there:
            for one in SPELLINGS:
                before = admitted(there)
                raw = one.text.encode("latin-1")
                asked = b"\5\1\0\3" + bytes((len(raw),)) + raw + there.port.to_bytes(2)
                heard = await there.say(b"\5\1\0", asked, b"\0x", end=True)
                assert (admitted(there) > before) is (one.means in JUDGED), (one, heard)
                assert heard.startswith(b"\5\0\5\0") is (one.means in ADMITTED), (one, heard)

    run: Run = runner("uvloop")
    run(main())
