"""The header of a datagram of SOCKS5: what it says, and what is none."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.explicit.headers import Target, read, written


def header(kind: int, host: bytes, port: int = 53) -> bytes:
    return bytes((0, 0, 0, kind)) + host + port.to_bytes(2)


def name(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return bytes((len(raw),)) + raw


V6 = ip_address("fd77::80").packed


@dataclass(frozen=True, slots=True)
class Case:
    sentence: str
    data: bytes
    target: Target | None = None

    def __str__(self) -> str:
        return self.sentence


CASES = [
    Case("IPv4", header(1, bytes((10, 77, 0, 80))), Target(ip_address("10.77.0.80"), 53)),
    Case("IPv6", header(4, V6), Target(ip_address("fd77::80"), 53)),
    Case("a name", header(3, name("time.example")), Target("time.example", 53)),
    Case("a name in another spelling", header(3, name("Time.Example.")), Target("time.example", 53)),
    Case("an address as a name", header(3, name("10.77.0.80")), Target(ip_address("10.77.0.80"), 53)),
    Case("a fragment", b"\0\0\1" + header(3, name("time.example"))[3:]),
    Case("the last fragment", b"\0\0\x81" + header(3, name("time.example"))[3:]),
    Case("reserved bytes that are not 0", b"\0\1\0" + header(3, name("time.example"))[3:]),
    Case("another type of address", header(2, bytes(4))),
    Case("type 0", header(0, bytes(4))),
    Case("port 0", header(3, name("time.example"), 0)),
    Case("an empty name", header(3, b"\0")),
    Case("a name with a NUL", header(3, name("time.example\0.evil"))),
    Case("a name that is not ASCII", header(3, name("bücher.example"))),
    Case("a short form of an address", header(3, name("127.1"))),
    Case("a name that is longer than the datagram", header(3, b"\xffx")),
    Case("an IPv6 address that is cut short", header(4, V6[:12])[:-2]),
    Case("nothing", b""),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("payload", [b"", b"payload"], ids=["alone", "with a payload"])
def test_what_a_header_says(case: Case, payload: bytes) -> None:
    if case.target is None:
        assert read(case.data) is None
    else:
        assert read(case.data + payload) == (case.target, payload)


@pytest.mark.parametrize("case", [one for one in CASES if one.target], ids=str)
def test_whatever_is_cut_off_is_none(case: Case) -> None:
    assert not any(read(case.data[:length]) for length in range(len(case.data)))


LABEL = st.from_regex(r"[a-z]([a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
HOSTS = st.one_of(
    st.builds(IPv4Address, st.integers(0, 2**32 - 1)),
    st.builds(IPv6Address, st.integers(0, 2**128 - 1)),
    st.lists(LABEL, min_size=2, max_size=5).map(".".join),
)


@given(HOSTS, st.integers(1, 65_535), st.binary(max_size=50))
def test_what_is_written_is_read_as_it_was_meant(
    host: str | IPv4Address | IPv6Address, port: int, payload: bytes
) -> None:
    target = Target(host, port)
    assert read(written(target) + payload) == (target, payload)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_datagram_or_none(data: bytes) -> None:
    if (found := read(data)) is not None:
        target, payload = found
        assert data.endswith(payload) and 0 < target.port < 65_536 and target.host
