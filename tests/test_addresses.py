"""Hosts in every spelling: one canonical form, or refused."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from proxy.addresses import inner, parse_host, special


@pytest.mark.parametrize(
    "text",
    [
        "127.1", "0x7f.1", "0x7f000001", "0177.0.0.1", "017700000001", "2130706433", "0", "1", "1.2.3",
        "127.0.0.01", "256.0.0.1", "1.2.3.4.5", "::ffff:0177.0.0.1", "fe80::1%eth0", "[1.2.3.4]", "[::1",
        "x.0x7f", "a.123", "１２７.0.0.1", "", ".", "a..b", ".a", "a b", "a\tb", "a\0b", "a\r\nb",
        "user@host",
        "a%2eb", "a/b", "-a.test", "a-.test", "xn--a", "xn--zzzzzzzz999999", "a" * 64 + ".test",
        ".".join(["a" * 60] * 5), "*.test", "a_b\u200d.test", "\u202etest.example",
    ],
)  # fmt: skip
def test_what_two_programs_could_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|label|host bits|characters|end in a number"):
        parse_host(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Git.Corp.Example.", "git.corp.example"),
        ("git.corp.example", "git.corp.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("a。example", "a.example"),
        ("_dmarc.corp.example", "_dmarc.corp.example"),
        ("192.0.2.1", ip_address("192.0.2.1")),
        ("192.0.2.1.", ip_address("192.0.2.1")),
        ("2001:DB8::1", ip_address("2001:db8::1")),
        ("[2001:db8:0::1]", ip_address("2001:db8::1")),
        ("::ffff:192.0.2.1", ip_address("::ffff:192.0.2.1")),
    ],
)
def test_the_rest_has_one_form(text: str, host: object) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    ("outer", "within"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("64:ff9b::a9fe:a9fe", "169.254.169.254"),
        ("2002:a00:1::", "10.0.0.1"),
        ("2001:0:4136:e378:8000:63bf:f5ff:fffe", "10.0.0.1"),
        ("::ffff:0:10.0.0.1", "10.0.0.1"),
    ],
)
def test_an_address_is_judged_by_the_one_within(outer: str, within: str) -> None:
    assert inner(ip_address(outer)) == ip_address(within)
    assert special(ip_address(outer))


@pytest.mark.parametrize("text", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_ordinary_addresses_are_not_special(text: str) -> None:
    assert not special(ip_address(text))


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0", "10.1.1.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.31.0.1", "192.168.0.1",
     "198.18.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "fe80::1", "fd00::1", "ff02::1",
     "64:ff9b:1::1", "2001:db8::1"],
)  # fmt: skip
def test_special_ranges(text: str) -> None:
    assert special(ip_address(text))
